"""Rows of generated homes: kept, bounded, the same however they are made, and mixed with a user's own."""

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from edge_agent.contract import columns as cols
from edge_agent.contract.bundle import BENIGN
from trainer import config as configs
from trainer.base import rows
from trainer.config import BaseRows
from trainer.data import dataset
from trainer.data.row_table import Limits
from trainer.fit import fit
from trainer.fit.row_parts import MOST_WEIGHT, shared, split
from trainer.traffic import homes


@pytest.fixture(autouse=True)
def apart(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read from or written to the user's own cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


def test_rows_are_made_once_and_say_that_they_are_generated(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configs.load(tiny)
    sources = rows.sources(config)
    assert len(sources) == 2
    assert all(entry.generated for entry in sources)
    times = [entry.path.stat().st_mtime_ns for entry in sources]
    capsys.readouterr()
    assert rows.sources(config) == sources
    assert capsys.readouterr().out == ""
    assert [entry.path.stat().st_mtime_ns for entry in sources] == times
    table = dataset.load(sources, cols.ALL_COLUMNS, cols.CLEAN, Limits())
    assert table.generated
    assert rows.is_base(table).all()
    assert table.profiles is not None
    assert np.isfinite(table.profiles).all()
    assert len(table.captures) > len(sources)  # each capture of a home is one
    sizes = np.bincount(table.capture * len(table.devices) + table.device)
    assert 1 < sizes.max() <= config.base.max_rows


def test_a_home_gives_the_same_rows_however_many_are_made_at_a_time(tiny: Path, tmp_path: Path) -> None:
    config = configs.load(tiny)
    one = tmp_path / "alone.parquet"
    rows.make_home(config.base, 2, homes.draw(7, 2)[1], one)
    assert list(tmp_path.iterdir()) == [one]  # its captures are gone
    together = rows.sources(config)[1].path
    assert pl.read_parquet(one).equals(pl.read_parquet(together))


def test_only_the_last_sets_are_kept_and_what_a_crash_left_is_deleted(tiny: Path, cache: Path) -> None:
    mine = rows.sources(configs.load(tiny))[0].path.parent
    for number, name in enumerate(("old", "older", "oldest")):
        (cache / "botwatch/homes" / name).mkdir()
        os.utime(cache / "botwatch/homes" / name, (1000 - number, 1000 - number))
    (mine / "home-01-crashed").mkdir()
    rows.sources(configs.load(tiny))
    assert {path.name for path in mine.parent.iterdir() if path.is_dir()} == {mine.name, "old"}
    assert {path.name for path in mine.iterdir()} == {"home-01.parquet", "home-02.parquet"}


def test_other_settings_are_another_set() -> None:
    keys = {rows.key(base) for base in (BaseRows(2), BaseRows(3), BaseRows(2, seed=8), BaseRows(2, max_rows=500))}
    assert len(keys) == 4
    assert rows.key(BaseRows(2)) in keys


def test_a_fit_on_benign_rows_of_ones_own_gets_the_names_of_the_bases_attacks(tiny: Path, tmp_path: Path) -> None:
    """The user's few rows weigh as much as all of the base's, within a bound."""
    own = tmp_path / "own.parquet"
    table = dataset.load(rows.sources(configs.load(tiny)), cols.ALL_COLUMNS, cols.CLEAN, Limits())
    benign = np.flatnonzero(np.array(table.labels)[table.label] == BENIGN)[:400]
    frame = pl.DataFrame({c: table.values[benign, i] for i, c in enumerate(table.columns)})
    frame.with_columns(t_ns=pl.Series(table.t_ns[benign]), device=pl.lit("mine"), label=pl.lit(BENIGN)).write_parquet(
        own
    )
    path = tmp_path / "trainer.yaml"
    path.write_text(tiny.read_text() + f"data: [{{kind: rows, path: {own}}}]\n")
    config = configs.load(path)
    mixed = fit.load(config)
    base = rows.is_base(mixed)
    assert (~base).sum() == 400
    parts = split(config, mixed)
    weights = parts.weights(parts.train)
    theirs = base[parts.train]
    assert weights.mean() == pytest.approx(1, rel=1e-3)
    ratio = weights[~theirs][0] / weights[theirs][0]
    assert ratio == pytest.approx(min(MOST_WEIGHT, theirs.sum() / (~theirs).sum()), rel=1e-3)
    sample = parts.sample(1000)["train"]
    assert (~base[sample]).sum() == (~theirs).sum()  # none of them is thinned away
    run = fit.fit(config, mixed, say=lambda text: None)
    assert {"benign", "mirai", "gafgyt"} <= set(run.classes)
    assert run.generated
    assert {name for name in run.metrics["devices"] if not name.startswith(rows.PREFIX)} == {"mine"}


def test_each_side_has_half_of_a_sample_and_the_rest_of_what_the_other_lacks() -> None:
    base = np.repeat([True, False], [1000, 100])
    for limit, ours in ((100, 50), (200, 100), (600, 100)):
        chosen = shared(base, limit, block=1)
        assert len(chosen) == limit
        assert (~base[chosen]).sum() == ours
    assert len(shared(base, 5000)) == 1100
    assert shared(base[:1000], 100, block=1).tolist() == shared(~base[:1000], 100, block=1).tolist()


def test_a_config_without_any_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    path.write_text("seed: 1\n")
    with pytest.raises(configs.settings.SettingsError, match="names no source of rows"):
        configs.load(path)
    path.write_text("base: {homes: 2}\nschemas: [nbaiot115-compat-1]\n")
    with pytest.raises(configs.settings.SettingsError, match="generated homes give rows of"):
        configs.load(path)
    path.write_text("base: {homes: 2}\n")
    with pytest.raises(configs.settings.SettingsError, match="--data replaces the path of the first source"):
        configs.load(path, data=tmp_path)
