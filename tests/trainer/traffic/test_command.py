"""`botwatch trainer generate`."""

import argparse

import yaml

from trainer.traffic import command as module
from trainer.traffic.homes import draw


def test_the_command_line_makes_a_plan_and_prints_generated(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    words = [
        "--out",
        str(tmp_path),
        "--seed",
        "9",
        "--days",
        "1",
        "--hours",
        "0.1",
        "--devices",
        "plug,plug",
        "--start",
        "2026-03-01",
    ]
    words += ["--attacks", "mirai.scan:rate=10", "--infected", "plug-2", "--lead-minutes", "1", "--tail-minutes", "0.2"]
    assert module.run(parser.parse_args(words), "") == 0
    assert "generated" in capsys.readouterr().out
    captures = yaml.safe_load((tmp_path / "manifest.yaml").read_text())["captures"]
    files = ["plug-1/day1.pcap", "plug-2/day1.pcap", "plug-2/mirai.scan-rate=10.pcap"]
    assert [c["file"] for c in captures] == files
    assert captures[2]["attack"]["start"].date().isoformat() == "2026-03-02"
    assert len({c["mac"] for c in captures}) == 2


def test_the_command_line_reports_a_bad_plan(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    assert module.run(parser.parse_args(["--out", str(tmp_path / "x"), "--devices", "toaster"]), "") == 2
    assert "toaster" in capsys.readouterr().err


def test_homes_are_drawn_and_written_each_into_its_folder(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    seed = next(seed for seed in range(100) if len(draw(seed, 1)[0].devices) == 3 and not draw(seed, 1)[0].attacks)
    assert module.run(parser.parse_args(["--out", str(tmp_path), "--homes", "1", "--seed", str(seed)]), "") == 0
    assert "1 home," in capsys.readouterr().out
    manifest = yaml.safe_load((tmp_path / "home-01" / "manifest.yaml").read_text())
    assert manifest["generated"] is True
    assert len({entry["device"] for entry in manifest["captures"]}) == 3
    assert all(entry["device"].startswith("home-01.") and entry["kind"] for entry in manifest["captures"])


def test_an_impossible_number_of_homes_is_refused(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    assert module.run(parser.parse_args(["--out", str(tmp_path), "--homes", "0"]), "") == 2
    assert "homes is 0" in capsys.readouterr().err
