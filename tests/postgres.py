"""A real PostgreSQL for tests: Debian's binaries with a temporary folder and a Unix socket; no system service.

PostgreSQL refuses to run as root; root starts it as the user that Debian's package makes, or as `nobody`.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from tests.broker import wait_until

INSTALL = "PostgreSQL is not installed: there is no /usr/lib/postgresql/*/bin/initdb. Run `make`, which installs it."


def programs() -> Path:
    """Return the folder of the newest initdb; without one the test fails, or is skipped where none can be installed."""
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if not folders:
        if os.getuid() == 0 or os.environ.get("CI"):
            pytest.fail(INSTALL)
        pytest.skip(INSTALL)
    return max(folders, key=lambda folder: float(folder.parent.name))


class Postgres:
    """A server with one superuser, ``botwatch``, without a password; `database` makes an empty database."""

    def __init__(self) -> None:
        self._programs = programs()
        self._folder = Path(tempfile.mkdtemp(prefix="botwatch-pg-"))  # short: a socket's path has 107 bytes
        self._user: dict[str, int] = {}
        if os.getuid() == 0:
            names = {entry.pw_name: entry for entry in pwd.getpwall()}
            entry = names.get("postgres") or names["nobody"]
            self._user = {"user": entry.pw_uid, "group": entry.pw_gid}
            os.chown(self._folder, entry.pw_uid, entry.pw_gid)
        self._process: subprocess.Popen[bytes] | None = None
        self._made = 0

    def __enter__(self) -> "Postgres":
        data = ["-D", self._folder / "data", "-U", "botwatch", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        initdb = [self._programs / "initdb", *data]
        subprocess.run(initdb, check=True, cwd=self._folder, stdout=subprocess.DEVNULL, **self._user)
        self.start()
        return self

    def start(self) -> None:
        """Start the server; it listens when this returns."""
        options = ["-c", "listen_addresses=", "-c", "fsync=off", "-k", self._folder]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._folder / "data", *options],
                cwd=self._folder,
                stdout=log,
                stderr=log,
                **self._user,
            )
        wait_until(self._answers, 60)

    def stop(self) -> None:
        """Stop the server; clients lose their connections."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # a "fast shutdown", which ends the connections
            self._process.wait(30)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "log").read_text()
        ready = [self._programs / "pg_isready", "-q", "-h", self._folder, "-U", "botwatch", "-d", "postgres"]
        return subprocess.run(ready, check=False).returncode == 0

    def url(self, name: str) -> str:
        return f"postgresql+psycopg://botwatch@/{name}?host={self._folder}"

    def database(self) -> str:
        """Make an empty database and return its URL."""
        self._made += 1
        name = f"test_{self._made}"
        engine = create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as db:
            db.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return self.url(name)

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder)
