"""A run folder holds the trained model, and each of its figures can be computed again from its other files."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import polars as pl
import pytest

from edge_agent.contract import scaling, settings
from edge_agent.contract.columns import CLEAN, COMPAT, COUNT_COLUMNS, DEVICE, NBAIOT_COLUMNS
from edge_agent.contract.decision import Decision
from edge_agent.contract.scaling import Scaler
from edge_agent.detection import calibrate
from edge_agent.detection.scorer import Scorer
from trainer.config import ClassifierSettings, Config, DatasetEntry, DecisionSettings, Scaling, Training
from trainer.data.protocol import TEST, Split
from trainer.data.row_table import RowTable
from trainer.fit import autoencoder, classifier, fit
from trainer.fit.row_parts import FitError, split

QUICK = Training(epochs=5, batch=256, patience=5)
OFF = ClassifierSettings(enabled=False)
SPLIT = Split(gap_rows=20, gap_s=10, min_rows=20)


def config(table: RowTable, **changes: Any) -> Config:
    """A configuration for ``table``, quick enough for tests."""
    given: dict[str, Any] = {
        "data": (DatasetEntry("captures", Path("/nowhere")),),
        "columns": table.columns,
        "split": SPLIT,
        "attack_split": SPLIT,
        "autoencoder": QUICK,
        "classifier": ClassifierSettings(training=QUICK),
        **changes,
    }
    return Config(**given)


def silent(line: str) -> None:
    """Take the place of print."""


@dataclasses.dataclass
class Saved:
    """A run, its folder, and the lines that it printed."""

    table: RowTable
    run: fit.FittedModel
    path: Path
    lines: list[str]

    def json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text())


@pytest.fixture(scope="module")
def saved(make_table, tmp_path_factory) -> Saved:
    table, lines = make_table(), []
    run = fit.fit(config(table), table, lines.append)
    path = tmp_path_factory.mktemp("runs") / "home"
    fit.save(run, path, "botwatch trainer fit x.yaml --out home", 1.0)
    return Saved(table, run, path, lines)


def test_layers_have_the_published_sizes():
    assert autoencoder.hidden(115) == (87, 58, 29, 58, 87)
    assert autoencoder.build(115).count_params() == 33_900
    assert classifier.build(115, 3).count_params() == 1_027
    assert classifier.build(115, 5).count_params() == 1_045


def test_the_scaler_knows_the_benign_train_rows_only(saved):
    parts = split(saved.run.config, saved.table)
    assert set(saved.table.label[parts.train]) == {0}
    expected = scaling.fit(saved.table.values[parts.train])
    assert saved.run.scaler.mean == pytest.approx(expected.mean)
    assert saved.run.scaler.scale == pytest.approx(expected.scale)


def test_tau_is_that_of_the_weights_in_the_folder(saved):
    """Scores of the saved model on the saved optimise rows give the decision again."""
    model = saved.json("model.json")
    rows = pl.read_parquet(saved.path / "rows.parquet").filter(pl.col("part").is_in(["train", "optimise"]))
    network = keras.models.load_model(saved.path / "autoencoder.keras")
    scorer = Scorer(autoencoder.predictor(network), Scaler.from_json(model["scaler"]), model["columns"])
    values, optimise = rows.select(model["columns"]).to_numpy(), (rows["part"] == "optimise").to_numpy()
    scores = calibrate.Benign(
        full=scorer.full(values),
        fast=scorer.fast(values),
        device=calibrate.senders(rows["device"].to_numpy()),
        runs=rows["run"].to_numpy(),
        optimise=optimise,
        start=rows["start"].to_numpy(),
        t_ns=rows["t_ns"].to_numpy(),
    )
    made = settings.build(Decision, model["decision"], "model.json")
    again, full = calibrate.recalibrate(made, scores), scores.full[optimise & ~scores.start]
    assert _flat(dataclasses.asdict(again)) == pytest.approx(_flat(model["decision"]), rel=1e-5)
    mean, std = full.astype(np.float64).mean(), full.astype(np.float64).std()
    assert model["decision"]["full"]["tau"] == pytest.approx(mean + 10 * std, rel=1e-5)
    assert any(f"τ = mean + 10·std = {model['decision']['full']['tau']:.6g}" in line for line in saved.lines)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, float]:
    found = {}
    for key, value in tree.items():
        if not isinstance(value, str):
            found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def test_the_final_weights_are_those_of_the_best_epoch():
    """This holds even if later epochs are worse."""
    rng = np.random.default_rng(0)
    train, check = (rng.normal(size=(n, 8)).astype(np.float32) for n in (600, 200))
    network, history = autoencoder.train(train, check, Training(epochs=30, batch=32, learning_rate=0.05, patience=5), 3)
    losses = history["validation_loss"]
    assert history["best_epoch"] == int(np.argmin(losses)) + 1 < history["epochs"] < 30
    rebuilt = autoencoder.predictor(network)(check)
    assert np.mean((rebuilt - check) ** 2) == pytest.approx(min(losses), rel=1e-4)


def test_same_rows_and_seed_give_the_same_metrics(saved, make_table, tmp_path):
    table = make_table()
    fit.save(fit.fit(config(table), table, silent), tmp_path / "again", "again", 2.0)
    for name in ("metrics.json", "history.json", "config.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (saved.path / name).read_bytes()
    other = fit.fit(config(table, seed=2, classifier=OFF), table, silent)
    assert other.metrics["threshold"] != saved.run.metrics["threshold"]


def test_metrics_can_be_computed_again_from_the_rows(saved):
    metrics, run, table = saved.json("metrics.json"), saved.run, saved.table
    parts = split(run.config, table)
    scorer = Scorer(autoencoder.predictor(run.network), run.scaler, run.columns)
    test = scorer.full(table.values[parts.test]) > run.decision.full.tau
    assert metrics["false_positive_rate"]["full"] == pytest.approx(test.mean())
    assert metrics["false_positive_rate"]["rows"] == len(parts.test)
    for label in ("mirai.scan", "gafgyt.udp"):
        rows = table.values[table.label == table.labels.index(label)]
        found = metrics["detection_rate"][label]
        assert found["rows"] == len(rows)
        assert found["full"] == pytest.approx((scorer.full(rows) > run.decision.full.tau).mean())
    of_classes = metrics["classifier"]
    matrix = np.array(of_classes["confusion"])
    assert of_classes["accuracy"] == pytest.approx(np.trace(matrix) / matrix.sum())
    assert of_classes["recall"]["mirai.scan"] == pytest.approx(matrix[2, 2] / matrix[2].sum())
    assert of_classes["classes"] == ["benign", "gafgyt.udp", "mirai.scan"]


def test_the_classifier_learns_easy_classes(saved, make_table):
    table = make_table()
    slow = ClassifierSettings(training=Training(epochs=25, batch=64, learning_rate=0.02, patience=25))
    run = fit.fit(config(table, classifier=slow), table, silent)
    assert run.metrics["classifier"]["accuracy"] > 0.9


def test_test_rows_and_attacks_do_not_influence_the_training(saved, make_table):
    """They do not influence the decision either: they change figures only, and attack rows the classifier."""
    table = make_table()
    parts = split(saved.run.config, table)
    table.values[parts.part == TEST] *= 50
    run = fit.fit(saved.run.config, table, silent)
    assert run.decision == saved.run.decision
    assert run.history == saved.run.history
    assert run.metrics["false_positive_rate"] != saved.run.metrics["false_positive_rate"]
    table = make_table()
    table.values[parts.attack] += 99
    run = fit.fit(saved.run.config, table, silent)
    assert run.decision == saved.run.decision
    assert run.history["autoencoder"] == saved.run.history["autoencoder"]
    assert run.history["classifier"] != saved.run.history["classifier"]


def test_the_folder_says_everything_the_converter_needs(saved):
    model = saved.json("model.json")
    assert set(model) == {
        *("format", "schemas", "columns", "classes", "scaler", "decision", "generated", "normal"),
        *("seed", "provenance", "signatures"),
    }
    assert model["format"] == 2
    assert model["schemas"] == [CLEAN, DEVICE]
    assert tuple(model["columns"]) == saved.table.columns
    assert model["classes"] == ["benign", "gafgyt.udp", "mirai.scan"]
    assert settings.build(Decision, model["decision"], "model.json") == saved.run.decision
    parts = split(saved.run.config, saved.table)
    column = saved.table.values[parts.train, 0]
    assert model["normal"][saved.table.columns[0]] == pytest.approx([np.median(column), np.quantile(column, 0.999)])
    assert all(isinstance(v, str) and len(v) <= 64 for v in model["provenance"].values())
    provenance = saved.json("provenance.json")
    assert {"command", "seed", "versions", "inputs"} <= set(provenance)
    assert (
        keras.models.load_model(saved.path / "classifier.keras").count_params() == saved.run.classifier.count_params()
    )
    assert {p.name for p in saved.path.iterdir()} == {
        *("autoencoder.keras", "classifier.keras", "model.json", "metrics.json", "history.json", "config.yaml"),
        *("provenance.json", "rows.parquet"),
    }


def test_rows_in_the_folder_are_named_and_in_time_order_per_device(saved):
    rows = pl.read_parquet(saved.path / "rows.parquet")
    assert rows.columns == [*saved.table.columns, "part", "label", "device", "mac", "t_ns", "run", "start"]
    assert rows["mac"].dtype == pl.UInt64
    assert rows["t_ns"].dtype == pl.Int64
    assert all(rows[c].dtype == pl.Float32 for c in saved.table.columns)
    assert set(rows["part"]) == {"train", "optimise", "test", "attack"}
    for frame in rows.partition_by("part", "label", "device"):
        assert frame["t_ns"].is_sorted()
    last = rows.filter(pl.col("label") == "benign").group_by("device", "part").agg(pl.col("t_ns").max().alias("last"))
    first = rows.filter(pl.col("label") == "benign").group_by("device", "part").agg(pl.col("t_ns").min().alias("first"))
    for device in ("camera", "plug"):
        for before, after in (("train", "optimise"), ("optimise", "test")):
            end = last.filter((pl.col("device") == device) & (pl.col("part") == before))["last"].item()
            start = first.filter((pl.col("device") == device) & (pl.col("part") == after))["first"].item()
            assert start - end >= 20 * 10**9


def test_the_rows_in_the_folder_are_bounded(make_table):
    table = make_table(benign=20_000, attacks={"mirai.scan": 6_000})
    once = Training(epochs=1, batch=4096, patience=1)
    run = fit.fit(config(table, autoencoder=once, classifier=OFF, part_rows=12_288), table, silent)
    sizes = dict(run.rows.group_by("part").len().iter_rows())
    assert sizes == {"train": 12_224, "optimise": 7_960, "test": 7_960, "attack": 4_720}  # whole blocks of 256
    assert run.decision.full.rows == 7_960


def test_the_config_in_the_folder_is_complete_and_loads_again(saved):
    assert settings.load(Config, saved.path / "config.yaml") == saved.run.config


def test_a_new_run_leaves_nothing_of_the_old_one(saved, make_table, tmp_path):
    table = make_table()
    fit.save(saved.run, tmp_path, "first", 1.0)
    fit.save(fit.fit(config(table, classifier=OFF), table, silent), tmp_path, "second", 1.0)
    assert not (tmp_path / "classifier.keras").exists()
    assert json.loads((tmp_path / "model.json").read_text())["classes"] == []


def test_without_attacks_there_is_no_classifier_and_a_line_says_so(make_table, tmp_path):
    table, lines = make_table(attacks={}), []
    run = fit.fit(config(table), table, lines.append)
    assert run.classes == ()
    assert run.metrics["classifier"] is None
    assert "classifier: skipped, there are only benign rows" in lines
    fit.save(run, tmp_path, "x", 1.0)
    assert json.loads((tmp_path / "metrics.json").read_text())["detection_rate"] == {}


def test_labels_can_be_trained_as_one_class(make_table):
    table = make_table(attacks={"gafgyt.tcp": 200, "gafgyt.udp": 200, "mirai.scan": 200})
    joined = {"gafgyt.tcp": "gafgyt.tcp_udp", "gafgyt.udp": "gafgyt.tcp_udp"}
    run = fit.fit(config(table, classifier=ClassifierSettings(classes=joined, training=QUICK)), table, silent)
    assert run.classes == ("benign", "gafgyt.tcp_udp", "mirai.scan")


def test_a_class_no_alert_can_carry_is_refused(make_table):
    table = make_table(attacks={"worm": 200})
    with pytest.raises(FitError, match="label 'worm': 'worm' is not a class that an alert can carry"):
        fit.fit(config(table), table, silent)


def test_a_class_with_no_rows_is_refused_by_name(make_table):
    table = dataclasses.replace(make_table(), labels=("benign", "mirai.scan", "gafgyt.udp", "mirai.ack"))
    with pytest.raises(FitError, match=r"class 'mirai.ack' has no rows in the train part \(0 in all\)"):
        fit.fit(config(table), table, silent)


@pytest.mark.parametrize("rows", [1, 30])
def test_too_few_benign_rows_are_refused_with_the_number_needed(make_table, rows):
    table = make_table(benign=rows)
    with pytest.raises(FitError, match=f"{2 * rows} benign rows of 2 device.* too few: no device has 20 rows in each"):
        fit.fit(config(table), table, silent)


def test_attacks_alone_are_refused(make_table):
    table = make_table(benign=0)
    with pytest.raises(FitError, match="no benign rows"):
        fit.fit(config(table), table, silent)


def test_a_constant_column_is_named_and_does_no_harm(make_table):
    table, lines = make_table(), []
    table.values[:, 2] = 7.0
    run = fit.fit(config(table, classifier=OFF), table, lines.append)
    assert f"constant in the benign train rows: {table.columns[2]}" in lines
    assert run.metrics["columns"]["constant"] == [table.columns[2]]
    assert run.metrics["fisher"][table.columns[2]] is None
    assert run.scaler.scale[2] == scaling.SCALE_FLOOR
    assert np.isfinite(run.decision.full.tau)


def test_raw_z_of_the_study_stays_available(make_table):
    table = make_table()
    raw = Scaling(squash="none", clip=None)
    run = fit.fit(config(table, scaling=raw, classifier=OFF), table, silent)
    parts = split(run.config, table)
    assert run.scaler.mean == pytest.approx(table.values[parts.train].mean(axis=0, dtype=np.float64))
    assert run.scaler.network_input(run.scaler.z(table.values[:9])) is not None
    assert run.scaler.clip is None


def test_top_n_keeps_the_best_distinct_columns(make_table):
    table, lines = make_table(), []
    table.values[:, 0] = table.values[:, 1]  # MI_dir_L5_weight repeats H_L5_weight
    table.values[:, 1:3] += 1e6 * table.label[:, None]
    table.values[:, 0] = table.values[:, 1]
    run = fit.fit(config(table, top_n=2, classifier=OFF), table, lines.append)
    assert run.columns == ("H_L5_weight", "H_L5_mean")
    assert run.schemas == (CLEAN,)
    assert any("1 columns repeat others and were not ranked: MI_dir_L5_weight" in line for line in lines)
    assert run.rows.columns[:2] == ["H_L5_weight", "H_L5_mean"]
    assert set(COUNT_COLUMNS) <= set(run.rows.columns)  # the counts rule needs them whatever the model uses


def test_top_n_needs_labels_and_enough_columns(make_table):
    table = make_table(attacks={})
    with pytest.raises(FitError, match="rows of at least two labels are needed"):
        fit.fit(config(table, top_n=2, classifier=OFF), table, silent)
    table = make_table()
    with pytest.raises(FitError, match=r"top_n is 99, but only \d+ distinct columns"):
        fit.fit(config(table, top_n=99), table, silent)


def test_published_rows_have_no_counts_rule(make_table, tmp_path):
    columns = NBAIOT_COLUMNS[:30]
    table = make_table(columns=columns)
    run = fit.fit(config(table, schemas=(COMPAT,), classifier=OFF), table, silent)
    assert run.decision.counts == {}


def test_without_jitter_columns_compat_rows_make_a_clean_model(make_table):
    """Both jitter modes agree on every other column, so that such a model can judge live traffic."""
    kept, jitter = NBAIOT_COLUMNS[:20], tuple(c for c in NBAIOT_COLUMNS if c.startswith("HH_jit"))[:3]
    for columns, schema in ((kept, CLEAN), (kept + jitter, COMPAT)):
        table = make_table(columns=columns)
        assert fit.fit(config(table, schemas=(COMPAT,), classifier=OFF), table, silent).schemas == (schema,)


def test_a_training_that_runs_away_is_an_error(make_table):
    table = make_table()
    wild = Training(epochs=5, batch=256, optimiser="sgd", learning_rate=100.0, patience=5)
    with pytest.raises(autoencoder.TrainingError, match="a lower learning_rate may help"):
        fit.fit(config(table, autoencoder=wild), table, silent)


def test_decision_settings_reach_the_decision(make_table):
    table = make_table()
    decided = DecisionSettings(n=3, margin=1.5, vote="fixed", vote_k=5, vote_w=9, floors={"device_L5_new_peers": 1e9})
    run = fit.fit(config(table, decision=decided, classifier=OFF), table, silent)
    assert (run.decision.full.n, run.decision.vote_k, run.decision.vote_w) == (3, 5, 9)
    assert set(run.decision.counts) == {"device_L5_new_peers"}
