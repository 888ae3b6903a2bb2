"""Homes drawn from a seed, and their generation by several processes."""

from collections import Counter
from dataclasses import replace

import pytest
import yaml

from tests.trainer.traffic.packets import digests
from trainer.traffic.homes import INFECTED_EVERY, SHARES, SIZES, draw, generate_homes
from trainer.traffic.plan import ATTACKS, DEVICES, PEOPLES, PlanError


def test_homes_differ_in_kinds_sizes_and_seeds_and_repeat_by_the_seed():
    homes = draw(7, 60)
    assert draw(7, 60) == homes
    assert draw(7, 20) == homes[:20]
    assert draw(8, 60) != homes
    assert len({home.seed for home in homes}) == 60
    assert [home.home for home in homes[:2]] == ["home-01", "home-02"]
    assert {len(home.devices) for home in homes} == set(SIZES)
    kinds = Counter(kind for home in homes for kind in home.devices)
    assert set(kinds) == set(SHARES) == set(DEVICES)
    assert kinds["plug"] > kinds["printer"] > 0


def test_every_fifth_home_has_a_thing_or_two_with_the_ten_attacks():
    homes = draw(3, 50)
    infected = [home for home in homes if home.attacks]
    assert 0 < len(infected) <= 50 / INFECTED_EVERY
    for home in infected:
        assert home.attacks == ATTACKS
        assert 1 <= len(home.infected) <= 2
        assert not {name.rpartition("-")[0] for name in home.infected} & {*PEOPLES, "battery_camera"}
    assert {len(home.infected) for home in infected} == {1, 2}


@pytest.mark.parametrize(("seed", "count", "named"), [(1, 0, "homes is 0"), (1, 1001, "1001"), (-1, 3, "seed is -1")])
def test_what_cannot_be_drawn_is_refused_by_name(seed, count, named):
    with pytest.raises(PlanError, match=named):
        draw(seed, count)


def test_the_number_of_processes_does_not_change_the_files(tmp_path):
    plans = [replace(home, devices=home.devices[:2], hours=0.5, attacks=()) for home in draw(5, 3)]
    lines: list[str] = []
    manifests = generate_homes(plans, tmp_path / "two", lines.append, jobs=2)
    generate_homes(plans, tmp_path / "one", jobs=1)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert len(lines) == 3
    assert [path.parent.name for path in manifests] == ["home-01", "home-02", "home-03"]
    for plan, path in zip(plans, manifests, strict=True):
        entries = yaml.safe_load(path.read_text())["captures"]
        assert {entry["device"] for entry in entries} == {f"{plan.home}.{name}" for name in plan.names}
        assert {entry["kind"] for entry in entries} == set(plan.devices)


def test_a_home_without_a_name_has_no_folder(tmp_path):
    with pytest.raises(PlanError, match="home is empty"):
        generate_homes([replace(draw(1, 1)[0], home="")], tmp_path)
