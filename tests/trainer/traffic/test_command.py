"""`botwatch trainer generate`."""

import argparse

import yaml

from trainer.traffic import command as module


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
