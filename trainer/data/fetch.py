"""`botwatch trainer fetch`: download the published N-BaIoT files once, and recognise them later.

A file that is already there is not downloaded again, an interrupted download is resumed, and a file that differs from
the one fetched first is refused: its SHA-256 is written beside the files at the first fetch and is valid from then on.
"""

import argparse
import dataclasses
import hashlib
import http.client
import json
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edge_agent.contract import settings
from edge_agent.contract.bundle import replace_file
from edge_agent.contract.cli import OK, refuse
from edge_agent.progress import Progress

PROG = "botwatch trainer fetch"
RECORD = "fetched.json"
CHUNK = 1 << 18
UNPACKED = 5
"""Bound of an unpacked archive, as a multiple of ``max_bytes``: text compresses to a fifth, a zip bomb far more."""


class FetchError(Exception):
    """A file that cannot be fetched or must not be used; the message names it and the reason."""


@dataclass(frozen=True)
class RemoteSource:
    """One file and the addresses it can be downloaded from, tried in order."""

    name: str
    addresses: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name or self.name in (".", ".."):
            raise ValueError(f"name: {self.name!r} is not a plain file name")
        if not self.addresses:
            raise ValueError(f"{self.name}: no address")
        for address in self.addresses:
            if urlsplit(address).scheme not in ("http", "https"):
                raise ValueError(f"{self.name}: {address!r} is not an http or https address")


@dataclass(frozen=True)
class FetchSettings:
    """The settings of configs/nbaiot.yaml."""

    files: tuple[RemoteSource, ...]
    retries: int = 5
    timeout_s: float = 30.0
    backoff_s: float = 1.0
    max_bytes: int = 4_000_000_000

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("files: the list is empty")
        if self.retries < 0 or not self.timeout_s > 0 or self.backoff_s < 0 or self.max_bytes < 1:
            raise ValueError("retries and backoff_s must be at least 0, timeout_s and max_bytes above 0")


def fetch(chosen: FetchSettings, out: Path, pause: Callable[[float], None] = time.sleep) -> list[Path]:
    """Download every file into ``out``, unpack archives and return the paths; FetchError names what cannot be fetched.

    A file that is there and has the recorded SHA-256 is not requested again.
    """
    out.mkdir(parents=True, exist_ok=True)
    record = _record(out)
    paths = []
    for source in chosen.files:
        path = out / source.name
        known = record.get(source.name)
        if path.is_file() and known:
            if _digest(path) != known["sha256"]:
                raise FetchError(
                    f"{path}: is not the file that was fetched first (SHA-256 differs); delete it to fetch it again"
                )
        else:
            address = _any_address(source, path, chosen, pause)
            digest = _digest(path.with_name(path.name + ".part"))
            if known and digest != known["sha256"]:
                path.with_name(path.name + ".part").unlink()
                raise FetchError(
                    f"{address}: sent another file than the one fetched first (SHA-256 {digest[:16]}… instead of "
                    f"{known['sha256'][:16]}…); delete its entry in {out / RECORD} to accept it"
                )
            path.with_name(path.name + ".part").replace(path)
            record[source.name] = {"sha256": digest, "address": address, "bytes": path.stat().st_size}
            replace_file(out / RECORD, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
        paths.append(path)
        if path.suffix == ".zip":
            unpack(path, out, chosen.max_bytes * UNPACKED)
    return paths


def _record(out: Path) -> dict[str, Any]:
    path = out / RECORD
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_bytes())
        assert all(isinstance(entry["sha256"], str) for entry in record.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise FetchError(f"{path}: not a record of fetched files: {error!r}") from error
    return dict(record)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _any_address(source: RemoteSource, path: Path, chosen: FetchSettings, pause: Callable[[float], None]) -> str:
    """Download the file to PATH.part from the first address that sends all of it; return that address."""
    reasons = []
    for address in source.addresses:
        reason = ""
        for attempt in range(chosen.retries + 1):
            if attempt:
                pause(min(60.0, chosen.backoff_s * 2 ** (attempt - 1)))
            try:
                _download(address, path.with_name(path.name + ".part"), chosen)
                return address
            except urllib.error.HTTPError as error:
                reason = f"answers {error.code} {error.reason}"
                if error.code < 500 and error.code not in (408, 416, 429):
                    break  # another request would get the same answer
            except (OSError, http.client.HTTPException) as error:
                reason = str(getattr(error, "reason", "") or error)
        reasons.append(f"{address}: {reason}")
    raise FetchError(f"{source.name}: cannot be fetched: {'; '.join(reasons)}")


def _download(address: str, part: Path, chosen: FetchSettings) -> None:
    """Make one request: resume after the bytes in ``part`` if the server supports it, else start again."""
    mark = part.with_name(part.name + ".tag")  # the file's version: a part is never completed from another version
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(address, headers={"User-Agent": "botwatch"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if mark.is_file():
            request.add_header("If-Range", mark.read_text())
    try:
        answer = urllib.request.urlopen(request, timeout=chosen.timeout_s)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # no bytes after those we have, or the file has been replaced
            part.unlink(missing_ok=True)
        raise
    with answer:
        partial = answer.status == 206 and str(answer.headers.get("Content-Range", "")).startswith(f"bytes {have}-")
        start = have if partial else 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length is not None and length.isdigit() else None
        if total is not None and total > chosen.max_bytes:
            raise FetchError(f"{address}: has {total:,} bytes, the bound is {chosen.max_bytes:,}")
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - start > free:
            raise FetchError(f"{part.parent}: {total - start:,} bytes are needed, {free:,} are free")
        if tag := answer.headers.get("ETag") or answer.headers.get("Last-Modified"):
            mark.write_text(tag)
        else:
            mark.unlink(missing_ok=True)
        done = start
        with open(part, "ab" if partial else "wb") as file, Progress(part.stem, total) as progress:
            while chunk := answer.read(CHUNK):
                done += len(chunk)
                if done > chosen.max_bytes:
                    raise FetchError(f"{address}: sent more than {chosen.max_bytes:,} bytes")
                file.write(chunk)
                progress.step(len(chunk), "bytes")
    if total is not None and done < total:
        raise ConnectionError(f"connection cut after {done:,} of {total:,} bytes")
    mark.unlink(missing_ok=True)


def unpack(path: Path, out: Path, most: int) -> None:
    """Unpack a zip file into ``out``.

    If a member would be outside of ``out``, or the members have more than ``most`` bytes, nothing is written and a
    FetchError says why.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
            size = sum(member.file_size for member in members)
            if size > most:
                raise FetchError(f"{path}: unpacks to {size:,} bytes, the bound is {most:,}")
            if size > shutil.disk_usage(out).free:
                raise FetchError(f"{path}: unpacks to {size:,} bytes, less than that is free in {out}")
            for member in members:
                target = (out / member.filename).resolve()
                if not target.is_relative_to(out.resolve()):
                    raise FetchError(f"{path}: holds {member.filename!r}, which would be outside of {out}")
            for member in members:
                target = out / member.filename
                if target.is_file() and target.stat().st_size == member.file_size:
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                half = target.with_name(target.name + ".half")
                with archive.open(member) as packed, open(half, "wb") as file:
                    shutil.copyfileobj(packed, file, CHUNK)
                half.replace(target)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise FetchError(f"{path}: not a complete zip file: {error}") from error
    for rar in sorted(out.rglob("*.rar")):
        if not rar.with_suffix("").exists():
            print(f"{rar}: is packed with RAR; unpack it into {rar.stem}/ (for instance: unar {rar.name})")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `botwatch trainer fetch`."""
    parser.description = (
        "Download the published N-BaIoT files and check them against the first download. Only the presets need them."
    )
    parser.epilog = f"example:\n  {PROG} --out N-BaIoT"
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files")
    parser.add_argument("--config", type=Path, metavar="FILE", help="addresses (default: configs/nbaiot.yaml)")
    parser.add_argument(
        "--from", dest="address", metavar="URL", help="download from this address instead of those of the config"
    )


def run(args: argparse.Namespace, command: str) -> int:
    """Run `botwatch trainer fetch`; return the exit status."""
    try:
        default = Path(str(package_files("configs") / "nbaiot.yaml"))
        chosen = settings.load(FetchSettings, args.config or default)
        if args.address is not None:
            name = Path(urlsplit(args.address).path).name or "nbaiot.zip"
            chosen = dataclasses.replace(chosen, files=(RemoteSource(name, (args.address,)),))
        paths = fetch(chosen, args.out)
    except (FetchError, settings.SettingsError, ValueError) as error:
        return refuse(PROG, error)
    except OSError as error:
        return refuse(PROG, error, file=args.out)
    for path in paths:
        print(f"{path}: {path.stat().st_size:,} bytes, SHA-256 {_digest(path)}")
    return OK
