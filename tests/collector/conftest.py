"""The databases that the collector's tests run on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import Postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What names an empty database, once of each kind that is supported."""
    if request.param == "sqlite":
        return str(tmp_path / "c.sqlite")
    server: Postgres = request.getfixturevalue("postgres")
    return server.database()
