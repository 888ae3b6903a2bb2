"""Strict YAML: what a dataclass says may be written, nothing else, and one line that says what is wrong where."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from edge_agent.contract import settings
from edge_agent.contract.settings import SettingsError


@dataclass(frozen=True)
class Wheel:
    spokes: int
    size: float = 28.0


@dataclass(frozen=True)
class Bicycle:
    name: str = "bike"
    gears: Literal[1, 3, "many"] = 1
    bell: bool = False
    lock: Path | None = None
    front: Wheel = Wheel(32)
    spares: tuple[Wheel, ...] = ()
    notes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name == "car":
            raise ValueError("name: a car is no bicycle")


def test_an_empty_file_gives_the_defaults():
    assert settings.loads(Bicycle, "", "b.yaml") == Bicycle()
    assert settings.loads(Bicycle, "# only a comment\n", "b.yaml") == Bicycle()


def test_every_kind_of_value_is_read():
    text = """
        {name: x, gears: many, bell: true, lock: /tmp/l, front: {spokes: 3, size: 5},
         spares: [{spokes: 1}, {spokes: 2}], notes: {a: 1}}
    """
    expected = Bicycle("x", "many", True, Path("/tmp/l"), Wheel(3, 5.0), (Wheel(1), Wheel(2)), {"a": 1})
    assert settings.loads(Bicycle, text, "b.yaml") == expected
    assert settings.loads(Bicycle, "lock: null", "b.yaml").lock is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nam: x", "b.yaml: unknown key 'nam': did you mean 'name'?"),
        ("front: {spokes: 3, sise: 4}", "b.yaml [front]: unknown key 'sise': did you mean 'size'?"),
        ("front: {}", "b.yaml [front]: missing key 'spokes'"),
        ("front: {spokes: 3.0}", "b.yaml [front]: spokes: expected int, found 3.0 (float)"),
        ("front: {spokes: true}", "b.yaml [front]: spokes: expected int, found True (bool)"),
        ("front: 3", "b.yaml [front]: expected keys and values, found 3 (int)"),
        ("spares: [{spokes: 1}, {}]", "b.yaml [spares[1]]: missing key 'spokes'"),
        ("spares: {spokes: 1}", "b.yaml: spares: expected"),
        ("gears: 2", "b.yaml: gears: 2 (int) is none of 1, 3, many"),
        ("gears: true", "b.yaml: gears: True (bool) is none of 1, 3, many"),
        ("bell: 1", "b.yaml: bell: expected bool, found 1 (int)"),
        ("bell: 'yes'", "b.yaml: bell: expected bool, found 'yes' (str)"),
        ("name: 1", "b.yaml: name: expected str, found 1 (int)"),
        ("name: null", "b.yaml: name: expected str, found None (NoneType)"),
        ("notes: {a: b}", "b.yaml: notes: expected int, found 'b' (str)"),
        ("name: car", "b.yaml: name: a car is no bicycle"),
        ("[1, 2]", "b.yaml: expected keys and values, found [1, 2] (list)"),
        ("name: [", "b.yaml line 1: not YAML:"),
        ("name: !!python/object:os.system x", "b.yaml line 1: not YAML:"),
        (f"front: {'x' * 500}", "b.yaml [front]: expected keys and values, found 'xxx"),
    ],
)
def test_anything_else_is_refused_by_file_section_and_key(text, said):
    with pytest.raises(SettingsError) as error:
        settings.loads(Bicycle, text, "b.yaml")
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    for name, words in (("none.yaml", "No such file"), ("latin.yaml", "utf-8"), (".", "directory")):
        with pytest.raises(SettingsError, match=f"cannot be read: .*{words}") as error:
            settings.load(Bicycle, tmp_path / name)
        assert "Errno" not in str(error.value)
