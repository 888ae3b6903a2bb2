"""The configurations we ship: they load, have every key, and state the defaults."""

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from collector.config import CollectorConfig
from edge_agent.config import AgentConfig
from edge_agent.contract import captures, settings
from edge_agent.contract.bundle import BENIGN
from edge_agent.contract.columns import COPIES
from trainer.config import Config as TrainerConfig
from trainer.config import load, plain, presets
from trainer.judge import inject

CONFIGS = Path(str(files("configs")))
ROLES = {"agent.yaml": AgentConfig, "collector.yaml": CollectorConfig, "trainer.yaml": TrainerConfig}


def keys(tree: object, where: str = "") -> set[str]:
    """Return every key of nested mappings, as section.key."""
    if not isinstance(tree, dict):
        return set()
    return {f"{where}{k}" for k in tree}.union(*(keys(v, f"{where}{k}.") for k, v in tree.items()))


NEEDED: dict[str, dict[str, Any]] = {
    "trainer.yaml": {"data": [{"kind": "rows", "path": "x.parquet"}]},
    "trainer.yaml study.devices.x": {"learning_rate": 0.1, "epochs": 1, "tr": 1.0, "ws": 1},
}
"""Values without which a configuration is refused, by role, or by role and section."""


def tables(role: str, cls: type, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str, type, tuple[str | int, ...]]]:
    """Yield (role, dataclass, path) of every section of a role's configuration."""
    yield role, cls, path
    for key, hint in typing.get_type_hints(cls).items():
        inner = [a for a in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(a)]
        for section in inner:
            step = {tuple: (key, 0), dict: (key, "x")}.get(typing.get_origin(hint), (key,))
            yield from tables(role, section, (*path, *step))


def written(role: str, path: tuple[str | int, ...], key: str, value: object) -> dict[str, Any]:
    """Return a configuration with one value in it, and with the values that it needs."""
    section = ".".join(map(str, path))
    tree: Any = {**NEEDED.get(f"{role} {section}", {}), key: value}
    if path[:1] == ("data",):
        tree = NEEDED[role]["data"][0] | tree
    for step in reversed(path):
        tree = [tree] if step == 0 else {step: tree}
    return {**NEEDED.get(role, {}), **tree}


def wrong(hint: Any) -> object:
    """Return a value of another type than ``hint``: a list, or text where a list is wanted."""
    return "x" if typing.get_origin(hint) is tuple else [[1]]


def beyond(hint: Any, low: float, high: float) -> list[object]:
    """Return values just outside the bounds of a field."""
    kinds = [a for a in typing.get_args(hint) if a is not type(None)] if isinstance(hint, types.UnionType) else [hint]
    (kind,) = kinds
    if kind is int:
        return [low - 1, high + 1]
    if kind is float:
        return [math.nextafter(low, -math.inf), math.nextafter(high, math.inf), math.nan, math.inf, -math.inf]
    sizes = [size for size in (low - 1, high + 1) if size >= 0]
    if kind is str:
        return ["x" * int(size) for size in sizes]
    if typing.get_origin(kind) is dict:
        of = typing.get_args(kind)[1]
        entry = NEEDED["trainer.yaml study.devices.x"] if dataclasses.is_dataclass(of) else 1.0 if of is float else "x"
        return [{f"k{i}": entry for i in range(int(n))} for n in sizes]
    item: object = {"kind": "rows", "path": "x"} if dataclasses.is_dataclass(typing.get_args(kind)[0]) else "x"
    item = {int: 1, float: 1.0}.get(typing.get_args(kind)[0], item)
    return [[item] * int(size) for size in sizes]


def bounded(hint: Any) -> bool:
    """Return True if a value needs bounds: all but switches, choices, paths and sections do."""
    kinds = set(typing.get_args(hint)) - {type(None)} if isinstance(hint, types.UnionType) else {hint}
    free = (bool, Path)
    return not any(k in free or dataclasses.is_dataclass(k) or typing.get_origin(k) is Literal for k in kinds)


TABLES = [table for role, cls in ROLES.items() for table in tables(role, cls)]
KEYS = [
    (role, path, field, typing.get_type_hints(cls)[field.name])
    for role, cls, path in TABLES
    for field in dataclasses.fields(cls)
    if "derived" not in field.metadata
]


def named(role: str, path: tuple[str | int, ...]) -> str:
    """Return the begin of an error about a value in a section."""
    section = "".join(f"[{step}]" if step == 0 else f".{step}" for step in path).lstrip(".")
    return f"{role} [{section}]: " if section else f"{role}: "


def refusal(role: str, tree: dict[str, Any]) -> str:
    """Return the one line with which a configuration is refused."""
    with pytest.raises(settings.SettingsError) as refused:
        settings.build(ROLES[role], tree, role)
    line = str(refused.value)
    assert "\n" not in line
    assert len(line) < 1000  # the refusal of an unknown key lists the known ones
    return line


def name_of(value: object) -> str | None:
    if isinstance(value, tuple):
        return ".".join(map(str, value)) or "-"
    return value.name if isinstance(value, dataclasses.Field) else value if isinstance(value, str) else ""


def test_the_cases_below_cover_every_section():
    """They include sections in sections, in lists and in tables."""
    covered = {(role, path) for role, _, path in TABLES}
    for role, path in (
        *(("agent.yaml", (section,)) for section in ("capture", "broker", "control")),
        *(("collector.yaml", (section,)) for section in ("broker", "retention")),
        *(("trainer.yaml", path) for path in (("data", 0), ("classifier", "training"), ("study", "devices", "x"))),
    ):
        assert (role, path) in covered
    assert len(KEYS) > 150


@pytest.mark.parametrize(("role", "cls", "path"), TABLES, ids=name_of)
def test_an_unknown_key_is_refused_by_its_name(role, cls, path):
    assert refusal(role, written(role, path, "nonsense", 1)).startswith(
        f"{named(role, path)}unknown key 'nonsense'; known"
    )


@pytest.mark.parametrize(("role", "path", "field", "hint"), KEYS, ids=name_of)
def test_a_value_of_another_type_is_refused_by_its_key(role, path, field, hint):
    line = refusal(role, written(role, path, field.name, wrong(hint)))
    if dataclasses.is_dataclass(hint):
        assert line.startswith(f"{named(role, (*path, field.name))}expected keys and values, found ")
    else:
        assert line.startswith(f"{named(role, path)}{field.name}: ")
        assert "[[1]] (list)" in line or "'x' (str)" in line
    optional = type(None) in typing.get_args(hint)
    if not optional:
        line = refusal(role, written(role, path, field.name, None))
        assert "found None" in line or "None (NoneType)" in line


@pytest.mark.parametrize(("role", "path", "field", "hint"), [key for key in KEYS if bounded(key[3])], ids=name_of)
def test_a_value_out_of_bounds_is_refused_by_its_key(role, path, field, hint):
    """A new key fails here until it has bounds (`settings.within`) and its section checks them (`settings.check`)."""
    low, high = field.metadata["within"]
    for value in beyond(hint, low, high):
        line = refusal(role, written(role, path, field.name, value))
        assert line.startswith(f"{named(role, path)}{field.name}: ")
        assert ", must be " in line


@pytest.mark.parametrize(
    ("role", "text", "line"),
    [
        (
            "agent.yaml",
            "capture: {interfaces: [br0, br0]}",
            "agent.yaml [capture]: interfaces: an interface is named twice",
        ),
        ("agent.yaml", "capture: {interfaces: [a/b]}", "agent.yaml [capture]: interfaces: 'a/b' cannot be"),
        ("agent.yaml", "commands: [reboot]", "agent.yaml: commands: unknown command 'reboot'"),
        ("agent.yaml", "networks: [home]", "agent.yaml: networks: 'home' does not"),
        ("agent.yaml", "names: {cam: x}", "agent.yaml: names: mac: 'cam' is not a MAC address"),
        ("agent.yaml", "gateway: GW 1", "agent.yaml: gateway 'GW 1': "),
        (
            "agent.yaml",
            "control: {max_entries: 5}",
            "agent.yaml [control]: remote_entries: 8 is more than max_entries, 5",
        ),
        ("agent.yaml", "broker: {base: a b}", "agent.yaml [broker]: base: "),
        (
            "agent.yaml",
            "broker: {retry_min_s: 90}",
            "agent.yaml [broker]: retry_max_s: 60 is less than retry_min_s, 90",
        ),
        ("agent.yaml", "broker: {ca_file: a}", "agent.yaml [broker]: ca_file: needs tls: true"),
        ("agent.yaml", "broker: {tls: true, cert_file: a}", "agent.yaml [broker]: cert_file: needs key_file"),
        ("agent.yaml", "broker: {tls: true, key_file: a}", "agent.yaml [broker]: key_file: needs cert_file"),
        ("agent.yaml", "broker: {password_file: a}", "agent.yaml [broker]: password_file: needs a username"),
        ("trainer.yaml", "split: {train: 0.9}", "trainer.yaml [split]: train + optimise + test is 1.3"),
        ("trainer.yaml", "decision: {vote_k: 30}", "trainer.yaml [decision]: vote_k: 30 is more than vote_w, 20"),
        (
            "trainer.yaml",
            "decision: {vote_k: 1, vote_w: 2}",
            "trainer.yaml [decision]: count_votes: 3 is more than vote_w",
        ),
    ],
)
def test_values_that_contradict_each_other_or_name_nothing_are_refused_by_their_key(role, text, line):
    assert refusal(role, {**NEEDED.get(role, {}), **yaml.safe_load(text)}).startswith(line)


@pytest.mark.parametrize("name", ROLES)
def test_it_loads_and_equals_the_defaults(name):
    loaded = settings.load(ROLES[name], CONFIGS / name)
    given = {"data": loaded.data} if name == "trainer.yaml" else {}  # the data to train on have no default
    assert loaded == ROLES[name](**given)


@pytest.mark.parametrize("name", ["agent.yaml", "trainer.yaml"])
def test_it_has_every_key(name):
    """All settings can be found without reading the source. The collector's tests cover the sections of its file."""
    loaded = settings.load(ROLES[name], CONFIGS / name)
    derived = {f.name for f in dataclasses.fields(loaded) if "derived" in f.metadata}
    known = ({f.name for f in dataclasses.fields(loaded)} | keys(plain(loaded))) - derived
    written = keys(yaml.safe_load((CONFIGS / name).read_text()))
    assert known - written == set()


@pytest.mark.parametrize("name", ["agent.yaml", "collector.yaml", "trainer.yaml"])
def test_a_mistyped_key_in_it_is_named(name):
    text = (CONFIGS / name).read_text() + "\nnonsense: 1\n"
    with pytest.raises(settings.SettingsError, match=f"{name}: unknown key 'nonsense'"):
        settings.loads(ROLES[name], text, name)


def test_no_configuration_is_untested():
    assert {path.name for path in CONFIGS.glob("*.yaml")} == {*ROLES, "nbaiot.yaml"}  # tested in test_fetch.py


@pytest.mark.parametrize("name", ["log2021", "nbaiot-live", "paper", "seed"])
def test_a_preset_loads_by_its_name(name, tmp_path):
    assert set(presets()) == {"base", "log2021", "nbaiot-live", "paper", "seed"}
    loaded = load(Path(name), data=tmp_path)
    assert loaded.data[0].path == tmp_path
    assert loaded == dataclasses.replace(load(presets()[name]), data=loaded.data)


def test_the_preset_of_the_built_in_bundle_fits_on_generated_homes_alone():
    """The terms of published captures do not clearly allow a model of them to be shipped."""
    base = load(Path("base"))
    assert base == load(presets()["base"])
    assert base.data == ()
    assert base.base.homes == 40


def test_the_preset_for_live_traffic_has_no_column_that_a_gateway_cannot_compute_or_that_repeats_another():
    columns = load(presets()["nbaiot-live"]).model_columns()
    assert len(columns) == 85
    assert not any(c.startswith("HH_jit") or COPIES.get(c) in columns for c in columns)


@pytest.mark.parametrize("path", sorted((CONFIGS / "captures").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_manifests_of_published_captures_name_files_that_load_and_devices_that_send(path, real_captures):
    """A battery camera may be silent for a day; otherwise the device that an entry is about sends something in it."""
    manifest, _, root = captures.load(path, real_captures)
    assert manifest.captures
    assert not manifest.generated
    for capture in manifest.captures:
        frames = inject.read(root / capture.file, capture.span)
        sender = captures.parse_mac(capture.mac or "").to_bytes(6, "big")
        assert any(data[6:12] == sender for _, _, data in frames) or capture.kind == "battery_camera", capture.name
        if capture.label == BENIGN:
            assert capture.kind
        else:
            assert inject.attack(frames, capture).sent()


def test_what_is_fitted_on_is_not_judged(real_captures):
    """all.yaml and all-later.yaml have the same devices and no moment in common."""
    first, later = (
        captures.load(CONFIGS / "captures" / name, real_captures)[0] for name in ("all.yaml", "all-later.yaml")
    )
    assert {c.device for c in first.captures} == {c.device for c in later.captures}
    spans = {c.name: c.span for c in first.captures}
    for capture in later.captures:
        assert capture.name not in spans
        of_file = [c for c in first.captures if c.file == capture.file]
        assert all(c.span and capture.span and c.span.end < capture.span.start for c in of_file)
