"""The configurations we ship: they load, hold every key, and say the defaults."""

import dataclasses
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from collector.ingest import CollectorConfig
from edge_agent.config import AgentConfig
from edge_agent.contract import captures, settings
from edge_agent.contract.columns import COPIES
from trainer.config import Config as TrainerConfig
from trainer.config import load, plain, presets

CONFIGS = Path(str(files("configs")))
ROLES = {"agent.yaml": AgentConfig, "collector.yaml": CollectorConfig, "trainer.yaml": TrainerConfig}


def keys(tree: object, where: str = "") -> set[str]:
    """Every key of nested mappings, as section.key."""
    if not isinstance(tree, dict):
        return set()
    return {f"{where}{k}" for k in tree}.union(*(keys(v, f"{where}{k}.") for k, v in tree.items()))


@pytest.mark.parametrize("name", ROLES)
def test_it_loads_and_equals_the_defaults(name):
    loaded = settings.load(ROLES[name], CONFIGS / name)
    given = {"data": loaded.data} if name == "trainer.yaml" else {}  # what to train on has no default
    assert loaded == ROLES[name](**given)


@pytest.mark.parametrize("name", ["agent.yaml", "trainer.yaml"])
def test_it_holds_every_key_there_is(name):
    """So that nobody has to read the source to find a setting. Sections of collector.yaml are tested by its own."""
    loaded = settings.load(ROLES[name], CONFIGS / name)
    known = {f.name for f in dataclasses.fields(loaded)} | keys(plain(loaded))
    written = keys(yaml.safe_load((CONFIGS / name).read_text()))
    assert known - written == set()


@pytest.mark.parametrize("name", ["agent.yaml", "collector.yaml", "trainer.yaml"])
def test_a_mistyped_key_in_it_is_named(name):
    text = (CONFIGS / name).read_text() + "\nnonsense: 1\n"
    with pytest.raises(settings.SettingsError, match=f"{name}: unknown key 'nonsense'"):
        settings.loads(ROLES[name], text, name)


def test_no_configuration_is_untested():
    assert {path.name for path in CONFIGS.glob("*.yaml")} == {*ROLES, "nbaiot.yaml"}  # that one: test_fetch.py


@pytest.mark.parametrize("name", ["log2021", "nbaiot-live", "paper", "seed"])
def test_a_preset_loads_by_its_name(name, tmp_path):
    assert set(presets()) == {"log2021", "nbaiot-live", "paper", "seed"}
    loaded = load(Path(name), data=tmp_path)
    assert loaded.data[0].path == tmp_path
    assert loaded == dataclasses.replace(load(presets()[name]), data=loaded.data)


def test_a_preset_for_live_traffic_has_no_column_that_a_gateway_cannot_see_or_that_repeats_another():
    columns = load(presets()["nbaiot-live"]).model_columns()
    assert len(columns) == 85
    assert not any(c.startswith("HH_jit") or COPIES.get(c) in columns for c in columns)


@pytest.mark.parametrize("name", ["fit.yaml", "replay.yaml", "unseen.yaml"])
def test_the_manifests_of_published_captures_name_files_that_are_there(name, real_captures):
    manifest, _, root = captures.load(CONFIGS / "captures" / name, real_captures)
    assert manifest.captures
    assert not manifest.generated
    assert all((root / capture.file).is_file() for capture in manifest.captures)
