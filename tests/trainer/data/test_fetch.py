"""Downloads over a real HTTP server on loopback that cuts connections, ignores ranges and changes files."""

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edge_agent.contract import settings
from trainer.__main__ import main
from trainer.data import fetch
from trainer.data.fetch import FetchError, FetchSettings, RemoteSource

CONTENT = bytes(range(256)) * 4000


class Server(ThreadingHTTPServer):
    """Sends ``content`` for every path, with the faults that its fields describe."""

    content = CONTENT
    tag = '"one"'
    cuts: list[int]  # bytes after which the next connections are cut
    ranges = True
    status = 200
    asked: list[str | None]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/nbaiot.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        if server.status != 200:
            self.send_error(server.status)
            return
        start, content = 0, server.content
        if wanted and server.ranges and self.headers.get("If-Range", server.tag) == server.tag:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            if start >= len(content):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", server.tag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        end = start + server.cuts.pop(0) if server.cuts else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as made:
        made.cuts, made.asked = [], []
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def chosen(server: Server, **changes: object) -> FetchSettings:
    return FetchSettings((RemoteSource("nbaiot.bin", (server.address,)),), **{"retries": 4, "timeout_s": 5.0} | changes)


def get(server: Server, out: Path, **changes: object) -> list[float]:
    """Fetch without waiting; return the pauses that were skipped."""
    pauses: list[float] = []
    fetch.fetch(chosen(server, **changes), out, pauses.append)
    return pauses


def test_a_file_is_fetched_and_its_hash_recorded(server, tmp_path):
    assert get(server, tmp_path) == []
    assert (tmp_path / "nbaiot.bin").read_bytes() == CONTENT
    assert hashlib.sha256(CONTENT).hexdigest() in (tmp_path / fetch.RECORD).read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == [fetch.RECORD, "nbaiot.bin"]


def test_a_file_that_is_there_is_not_requested_again(server, tmp_path):
    get(server, tmp_path)
    get(server, tmp_path)
    assert server.asked == [None]


def test_an_interrupted_download_is_resumed(server, tmp_path):
    server.cuts = [300_000, 200_000]
    assert get(server, tmp_path) == [1.0, 2.0]
    assert (tmp_path / "nbaiot.bin").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=500000-"]


def test_a_fetch_that_failed_is_resumed_by_the_next(server, tmp_path):
    server.cuts = [400_000]
    with pytest.raises(FetchError, match="connection cut after 400,000 of 1,024,000 bytes"):
        get(server, tmp_path, retries=0)
    assert not (tmp_path / "nbaiot.bin").exists()
    get(server, tmp_path)
    assert server.asked[-1] == "bytes=400000-"
    assert (tmp_path / "nbaiot.bin").read_bytes() == CONTENT


def test_a_server_without_ranges_sends_the_file_again(server, tmp_path):
    server.cuts, server.ranges = [300_000], False
    get(server, tmp_path)
    assert (tmp_path / "nbaiot.bin").read_bytes() == CONTENT


def test_a_file_that_changed_between_two_requests_is_not_glued_together(server, tmp_path):
    server.cuts = [300_000]
    with pytest.raises(FetchError):
        get(server, tmp_path, retries=0)
    server.content, server.tag = CONTENT[::-1], '"two"'
    get(server, tmp_path)
    assert (tmp_path / "nbaiot.bin").read_bytes() == CONTENT[::-1]


def test_a_part_longer_than_the_file_is_thrown_away(server, tmp_path):
    (tmp_path / "nbaiot.bin.part").write_bytes(bytes(2_000_000))
    get(server, tmp_path)
    assert (tmp_path / "nbaiot.bin").read_bytes() == CONTENT


def test_another_file_at_the_address_is_refused(server, tmp_path):
    get(server, tmp_path)
    (tmp_path / "nbaiot.bin").unlink()
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(FetchError, match="another file than the one fetched first"):
        get(server, tmp_path)
    assert not (tmp_path / "nbaiot.bin").exists()


def test_a_file_changed_on_disk_is_refused(server, tmp_path):
    get(server, tmp_path)
    (tmp_path / "nbaiot.bin").write_bytes(b"other")
    with pytest.raises(FetchError, match=r"nbaiot\.bin: is not the file that was fetched first"):
        get(server, tmp_path)


@pytest.mark.parametrize(("status", "asked"), [(404, 1), (403, 1), (503, 5)])
def test_only_a_temporary_error_is_tried_again(server, tmp_path, status, asked):
    server.status = status
    with pytest.raises(FetchError, match=f"answers {status}"):
        get(server, tmp_path)
    assert len(server.asked) == asked


def test_the_next_address_is_tried(server, tmp_path):
    made = FetchSettings((RemoteSource("a.bin", ("http://127.0.0.1:1/a", server.address)),), retries=0)
    fetch.fetch(made, tmp_path, lambda _: None)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_file_beyond_the_bound_is_refused_before_it_is_written(server, tmp_path):
    with pytest.raises(FetchError, match="has 1,024,000 bytes, the bound is 1,000"):
        get(server, tmp_path, max_bytes=1000)
    assert not (tmp_path / "nbaiot.bin.part").exists()


def test_offline_is_one_readable_line(tmp_path, capsys):
    config = tmp_path / "nbaiot.yaml"
    config.write_text("files: [{name: a.zip, addresses: ['http://127.0.0.1:1/a.zip']}]\nretries: 0\n")
    assert main(["fetch", "--config", str(config), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "a.zip: cannot be fetched: http://127.0.0.1:1/a.zip" in error
    assert len(error.strip().splitlines()) == 1


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def test_an_archive_is_unpacked(server, tmp_path, capsys):
    server.content = zipped(**{"Danmini/benign_traffic.csv": b"1,2\n", "Danmini/mirai_attacks.rar": b"R"})
    address = server.address.replace("nbaiot.bin", "nbaiot.zip")
    assert main(["fetch", "--from", address, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "Danmini" / "benign_traffic.csv").read_bytes() == b"1,2\n"
    assert "is packed with RAR" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (zipped(**{"../outside.csv": b"x"}), "would be outside of"),
        (zipped(**{"big.csv": bytes(2_000_000)}), "unpacks to 2,000,000 bytes, the bound is"),
        (zipped(**{"a.csv": bytes(1000)})[:-30], "not a complete zip file"),
    ],
)
def test_an_archive_that_must_not_be_unpacked_is_refused(tmp_path, content, words):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(FetchError, match=words):
        fetch.unpack(tmp_path / "a.zip", out, 1_000_000)
    assert list(tmp_path.rglob("*.csv")) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("files: []", "files: the list is empty"),
        ("files: [{name: ../x, addresses: ['http://a/b']}]", "not a plain file name"),
        ("files: [{name: x, addresses: ['ftp://a/b']}]", "not an http or https address"),
        ("files: [{name: x, addresses: []}]", "no address"),
    ],
)
def test_bad_addresses_are_named(text, words):
    with pytest.raises(settings.SettingsError, match=words):
        settings.loads(FetchSettings, text, "nbaiot.yaml")


def test_the_addresses_that_ship_can_be_read(tmp_path):
    from importlib.resources import files

    made = settings.load(FetchSettings, Path(str(files("configs") / "nbaiot.yaml")))
    assert [source.name for source in made.files] == ["nbaiot.zip"]


def test_a_broken_record_is_named(server, tmp_path):
    (tmp_path / fetch.RECORD).write_text("[1]")
    with pytest.raises(FetchError, match=r"fetched\.json: not a record"):
        get(server, tmp_path)
