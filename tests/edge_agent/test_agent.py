"""The agent's command and configuration: alerts and counters of capture files, and one line for all that is wrong."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

from edge_agent import agent as agents
from edge_agent.__main__ import main
from edge_agent.config import AgentConfig
from edge_agent.contract import bundle as bundles
from edge_agent.contract import captures, settings
from edge_agent.contract.columns import CLEAN, COMPAT, DEVICE, NBAIOT_COLUMNS
from edge_agent.delivery.outbox import Outbox
from edge_agent.state import State
from tests.broker import free_port
from tests.conftest import Home
from tests.edge_agent.detection.test_detector import other_bundle
from tests.reference import frames as craft

SCHEMA = jsonschema.Draft202012Validator(
    json.loads(files("edge_agent.contract").joinpath("alert.schema.json").read_text())
)


@pytest.fixture
def ask(home: Home, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[dict], str]]:
    """A function: words of `botwatch agent replay` -> exit status, alerts, what it said on stderr."""

    def run(*words: object, bundle: Path | None = home.bundle) -> tuple[int, list[dict], str]:
        capsys.readouterr()
        given = [] if bundle is None else ["--bundle", str(bundle)]
        status = main(["replay", "--json", *map(str, words), *given])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, [json.loads(line) for line in out.splitlines()], err

    return run


def own(alert: dict) -> dict:
    return alert["alert"]["context"]["botwatch"]


# -- what it says --


def test_alerts_are_json_lines_by_the_schema_and_counters_come_at_the_end(ask, attack_capture, attack_frames):
    status, alerts, said = ask(attack_capture)
    assert status == 0
    for alert in alerts:
        SCHEMA.validate(alert)
        assert alert["host"] == "gw-001"
        assert own(alert)["model"]["generated"] is True
    assert [s for s in (own(a)["state"] for a in alerts) if s != "update"] == ["new", "end", "new", "end"]
    assert f"{len(attack_frames):,} packets in " in said
    assert "this model was trained on generated traffic" in said
    counters = re.sub(" +", " ", said.partition(" packets in ")[2])
    for line in (
        f"{len(attack_frames):,} rows, one for each judged frame",
        f"{len(attack_frames):,} rows that the model scored",
        " senders (MACs) that are followed",
        " dropped from the full table of streams",
        " votes, each of enough flagged rows",
        "2 episodes that began with an alert",
    ):
        assert line in counters


def test_without_json_each_alert_is_a_line_for_people_and_none_is_said(home, attack_capture, ask, tmp_path, capsys):
    alerts = ask(attack_capture)[1]
    words = ["--utc", "--bundle", str(home.bundle)]
    assert main(["replay", str(attack_capture), *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(alerts)
    for line, alert in zip(lines, alerts, strict=True):
        time = alert["timestamp"][:19].replace("T", " ")
        assert line.startswith(f"{time} UTC  {own(alert)['state']:<6}  {own(alert)['id'][-8:]}  ")
        assert own(alert)["device"]["mac"] in line
        assert own(alert)["explanation"] in line
    (tmp_path / "silence.pcap").write_bytes(craft.pcap([]))
    assert main(["replay", str(tmp_path / "silence.pcap"), *words]) == 0
    out, err = capsys.readouterr()
    assert (out, "no alerts\n" in err) == ("", True)


def test_the_same_packets_give_the_same_alerts_whatever_the_tables_gave_up(ask, attack_capture, tmp_path):
    """With max_streams this small, which streams are given up was by chance, and so were times and ids."""
    config = tmp_path / "agent.yaml"
    config.write_text("extractor: {max_streams: 256}")
    first, second = (ask(attack_capture, "--config", config) for _ in range(2))
    assert first[:2] == second[:2]
    assert "sockets dropped from the full table of streams" in first[2]


def test_files_one_after_the_other_are_as_one(ask, attack_capture, attack_frames, tmp_path):
    parts = [tmp_path / "a.pcap", tmp_path / "b.pcap"]
    for path, part in zip(parts, (attack_frames[:1500], attack_frames[1500:]), strict=True):
        path.write_bytes(craft.pcap(part, nanoseconds=True))
    assert ask(*parts)[:2] == ask(attack_capture)[:2]


def test_a_capture_can_come_through_a_pipe(ask, attack_capture, home):
    """As `tcpdump -w - | botwatch agent replay -` gives it; a named pipe is tested with floods."""
    command = [sys.executable, "-m", "edge_agent", "replay", "--json", "-", "--bundle", str(home.bundle)]
    with subprocess.Popen(["cat", str(attack_capture)], stdout=subprocess.PIPE) as feeding:
        done = subprocess.run(command, stdin=feeding.stdout, capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == ask(attack_capture)[1]


def test_unknown_blocks_of_a_pcapng_change_nothing(ask, attack_capture, attack_frames, tmp_path):
    extra = craft.block(0x0BAD0BAD, b"some vendor's own") + craft.block(0x80000BAD, b"")
    (tmp_path / "x.pcapng").write_bytes(craft.pcapng(attack_frames, extra=extra))
    assert ask(tmp_path / "x.pcapng")[:2] == ask(attack_capture)[:2]


def test_gateway_site_and_names_of_the_configuration_are_in_the_alerts(ask, attack_capture, home, tmp_path):
    mac = captures.load(home.later)[0].captures[0].mac
    config = tmp_path / "agent.yaml"
    config.write_text(f"{{gateway: gw-7, site: plant, names: {{'{mac.upper().replace(':', '-')}': cam}}}}")
    alert = ask(attack_capture, "--config", config)[1][0]
    assert (alert["host"], own(alert)["site"], own(alert)["device"]["name"]) == ("gw-7", "plant", "cam")
    assert ask(attack_capture, "--config", config, "--gateway", "gw-8")[1][0]["host"] == "gw-8"


def test_the_bundle_can_be_named_by_the_configuration(ask, attack_capture, home, tmp_path):
    config = tmp_path / "agent.yaml"
    config.write_text(f"bundle: {home.bundle}")
    assert ask(attack_capture, "--config", config, bundle=None)[1] == ask(attack_capture)[1]


def test_who_reads_only_the_first_line_gets_no_traceback(home, attack_capture):
    words = ["agent", "replay", "--json", *[str(attack_capture)] * 3, "--bundle", str(home.bundle)]
    process = subprocess.Popen(
        [sys.executable, "-m", "edge_agent.command", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline().startswith("{")
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 1
    assert "Traceback" not in said
    assert "Broken" not in said


# -- bad files --


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "truncated"),
        (b"no capture at all\n" * 9, "unknown file format"),
        (craft.pcap([])[:20], "truncated"),
        (None, "No such file"),
    ],
    ids=["empty", "text", "half a header", "missing"],
)
def test_a_file_that_is_no_capture_is_a_usage_error_before_any_packet_is_judged(
    ask, attack_capture, tmp_path, content, words
):
    bad = tmp_path / "bad.pcap"
    if content is not None:
        bad.write_bytes(content)
    status, alerts, said = ask(attack_capture, bad)
    assert (status, alerts) == (2, [])
    [line] = said.splitlines()
    assert "bad.pcap: " in line
    assert words in line


def test_a_capture_that_breaks_off_gives_what_came_before(ask, attack_capture, attack_frames, tmp_path):
    cut = tmp_path / "cut.pcap"
    cut.write_bytes(attack_capture.read_bytes()[:-30])
    status, alerts, said = ask(cut)
    assert status == 1
    assert len(alerts) == len(ask(attack_capture)[1])
    assert "cut.pcap: truncated" in said
    assert f"{len(attack_frames) - 1:,} packets in" in said


# -- bad bundles and configurations --


def refused(answer: tuple[int, list[dict], str], *words: str) -> None:
    """Exit status 2, no alert, and one line that says all of ``words``."""
    status, alerts, said = answer
    assert (status, alerts, said.count("\n")) == (2, [], 1), said
    assert said.startswith("botwatch agent: ")
    for word in words:
        assert word in said


@pytest.fixture
def copy(home: Home, tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    for file in home.bundle.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("name", ["manifest.json", "autoencoder.tflite", "classifier.tflite", "selftest.npz"])
def test_a_bundle_with_a_missing_file_is_refused_by_its_name(ask, attack_capture, copy, name):
    (copy / name).unlink()
    refused(ask(attack_capture, bundle=copy), str(copy), f"{name} is missing")


def test_a_bundle_with_a_changed_file_is_refused(ask, attack_capture, copy):
    content = bytearray((copy / "autoencoder.tflite").read_bytes())
    content[-9] ^= 1
    (copy / "autoencoder.tflite").write_bytes(content)
    refused(ask(attack_capture, bundle=copy), "autoencoder.tflite", "SHA-256 differs")


def test_a_bundle_of_another_schema_is_refused(ask, attack_capture, home, copy, tmp_path):
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text.replace(CLEAN, "nbaiot115-clean-9"))
    refused(ask(attack_capture, bundle=copy), "unknown schema 'nbaiot115-clean-9'")
    compat = other_bundle(bundles.load(home.bundle), tmp_path / "compat", schemas=(COMPAT, DEVICE))
    refused(ask(attack_capture, bundle=compat.path), COMPAT, "hold the date")


def test_a_bundle_whose_models_are_not_those_of_its_selftest_is_refused(ask, attack_capture, home, tmp_path):
    """Whole and by the manifest's hashes, but the classifier stands where the autoencoder should."""
    bundle = bundles.load(home.bundle)
    content = {name: (bundle.path / name).read_bytes() for name in bundle.manifest.files}
    content[bundles.AUTOENCODER] = content[bundles.CLASSIFIER]
    other = bundles.write(tmp_path / "other", bundle.manifest, content)
    refused(ask(attack_capture, bundle=other.path), "maps 140 columns to 5, the manifest says 140 to 140")


@pytest.mark.parametrize(
    ("counts", "words"),
    [({"device_L1_new_peers": 0.0}, "limit of device_L1_new_peers is 0"), ({"new_peers": 5.0}, "bounds new_peers")],
)
def test_a_bundle_whose_rule_could_not_work_is_refused(ask, attack_capture, home, tmp_path, counts, words):
    """A bound of 0 made every ratio 0/0, no number, and blinded the autoencoder too."""
    bundle = bundles.load(home.bundle)
    decision = {**vars(bundle.manifest.decision), "counts": counts}
    other = other_bundle(bundle, tmp_path / "other", decision=bundles.Decision(**decision))
    refused(ask(attack_capture, bundle=other.path), words)


def test_without_a_bundle_the_built_in_one_judges_and_alerts_say_so(ask, attack_capture, tmp_path, capsys):
    status, alerts, said = ask(attack_capture, bundle=None)
    assert status == 0
    assert alerts
    assert all(own(alert)["model"]["version"].startswith("builtin-") for alert in alerts)
    assert all(own(alert)["model"]["generated"] for alert in alerts)
    assert "trained on generated traffic" in said
    assert ask(attack_capture, bundle="builtin")[1] == alerts
    config = tmp_path / "agent.yaml"
    config.write_text("gateway: gw-1\ncapture: {interfaces: [nowhere0]}\n")
    main(["check", "--config", str(config), "--json"])
    texts = {found["what"]: found["text"] for found in json.loads(capsys.readouterr().out)["findings"]}
    assert re.match("model builtin-[0-9a-f]{8}, which comes with botwatch, self-test passed", texts["bundle"])


def test_a_model_on_fewer_columns_replays(ask, attack_capture, tmp_path):
    """22 columns without HH_jit and without the device's, no classes; the counts rule works beside it all the same."""
    from converter.__main__ import main as convert
    from tests.converter.synthetic_run import write_run

    few = tuple(c for c in NBAIOT_COLUMNS if c.startswith(("H_L", "HpHp_L1_")))
    run = write_run(tmp_path / "few", few, classes=())
    assert convert([str(run), "--out", str(tmp_path / "bundle")]) == 0
    status, alerts, _ = ask(attack_capture, bundle=tmp_path / "bundle")
    assert status == 0
    assert alerts
    for alert in alerts:
        SCHEMA.validate(alert)
        assert own(alert)["class"] == "anomaly"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gatway: gw-1", "agent.yaml: unknown key 'gatway': did you mean 'gateway'?"),
        ("broker: {prot: 1883}", "agent.yaml [broker]: unknown key 'prot': did you mean 'port'?"),
        ("gateway: GW 1", "agent.yaml: gateway 'GW 1'"),
        (f"site: {'s' * 64}", "agent.yaml: site: 64 characters"),
        ("networks: [home]", "agent.yaml: networks: 'home' does not appear to be"),
        ("networks: ['2001:db8::/96']", "agent.yaml: networks: 2001:db8::/96: an IPv6 network of more than 64 bits"),
        ("names: {cam: x}", "agent.yaml: names: mac: 'cam' is not a MAC address"),
        (
            "names: {'b8:27:eb:00:00:0a': x, 'B8-27-EB-00-00-0A': y}",
            "names: b8:27:eb:00:00:0a and B8-27-EB-00-00-0A are the same MAC address",
        ),
        ("broker: {host: 'mqtt://gw:pw@box'}", "agent.yaml [broker]: host: a URL is not accepted"),
        ("broker: {host: 'box:1883'}", "[broker]: host: 'box:1883' is neither the name nor the address of a host"),
        ("extractor: {max_streams: 10}", "[extractor]: max_streams: 10, must be 64 to 1048575"),
        ("alerts: {end_s: 0}", "[alerts]: end_s: 0, must be 4 to 86400"),
        ("outbox: {max_bytes: 100}", "[outbox]: max_bytes: 100, must be 16384 to 1099511627776"),
        ("a: [", "agent.yaml line 1: not YAML"),
    ],
)
def test_a_bad_configuration_is_one_line(ask, attack_capture, tmp_path, text, words):
    config = tmp_path / "agent.yaml"
    config.write_text(text)
    refused(ask(attack_capture, "--config", config), words)


def test_a_broker_or_gateway_that_cannot_be_is_one_line(ask, attack_capture, tmp_path):
    refused(ask(attack_capture, "--broker", "localhost:port"), "broker 'localhost:port' is not HOST or HOST:PORT")
    refused(ask(attack_capture, "--gateway", "GW"), "gateway 'GW'")
    refused(ask(attack_capture, "--config", tmp_path / "none.yaml"), "none.yaml: cannot be read")


@pytest.mark.parametrize(
    "text",
    [
        "broker: {host: 'mqtt://joe:Secret-1@box'}",
        "broker: 'mqtt://joe:Secret-1@box'",
        "broker: ['mqtt://joe:Secret-1@box']",
        f"broker: 'mqtt://joe:Secret-1{'x' * 60}@box'",
        "broker: {'mqtt://joe:Secret-1@box': 1883}",
        "broker: {port: 'joe:Secret-1@box'}",
        "broker: {base: 'mqtt://joe:Secret-1@box'}",
        "broker: {version: 'mqtt://joe:Secret-1@box'}",
        "gateway: mqtt://joe:Secret-1@box",
        f"capture: {{interfaces: ['mqtt://joe:Secret-1{'x' * 60}@box']}}",
        "commands: ['mqtt://joe:Secret-1@box']",
        "names: {'mqtt://joe:Secret-1@box': cam}",
    ],
)
def test_a_password_in_a_url_is_not_printed(ask, attack_capture, tmp_path, text):
    config = tmp_path / "agent.yaml"
    config.write_text(text)
    answer = ask(attack_capture, "--config", config)
    refused(answer, "agent.yaml")
    assert "Secret" not in answer[2]
    answer = ask(attack_capture, "--broker", "mqtt://joe:Secret-1@box:1883")
    refused(answer, "broker: a URL is not accepted")
    assert "Secret" not in answer[2]


@pytest.mark.parametrize("wait", ["nan", "inf", "-1", "long"])
def test_a_wait_that_never_ends_or_is_no_number_is_refused(capsys, wait):
    with pytest.raises(SystemExit) as stopped:
        main(["replay", "x.pcap", "--wait", wait])
    assert stopped.value.code == 2
    assert f"--wait: {wait!r} is not a number of seconds" in capsys.readouterr().err


def test_what_an_operator_asks_first_is_reported_even_when_it_is_zero():
    counts = {"frames": 2000, "rows": 1999, "malformed": 0, "malformed_short_ip": 0, "devices": 1}
    counts |= {"evicted_pairs": 3, "evicted_seen_peers": 4, "subjects_evicted": 0, "scored": 1999}
    assert list(agents.report(counts, 2.0)) == [
        "2,000 packets in 2.00 s (1,000 packets/s), 0 malformed",
        "1,999  rows, one for each judged frame",
        "1,999  rows that the model scored",
        "    3  pairs of hosts dropped from the full table of streams",
        "    4  peers that a device's memory of its own peers had no more room for",
        "    1  senders (MACs) that are followed, of extractor.max_devices",
    ]


def test_an_outbox_that_cannot_be_opened_is_one_line(ask, attack_capture, tmp_path):
    status, alerts, said = ask(attack_capture, "--broker", "127.0.0.1:1", "--outbox", tmp_path / "no" / "folder.sqlite")
    assert (status, alerts) == (1, [])
    assert said.splitlines()[-1].startswith("botwatch agent: ")


def test_the_defaults_are_as_documented():
    assert settings.loads(AgentConfig, "", "agent.yaml") == AgentConfig()
    named = settings.loads(AgentConfig, "names: {B8-27-EB-12-34-56: cam}", "agent.yaml")
    assert named.names == {"b8:27:eb:12:34:56": "cam"}


# -- broker --


def waiting(path: Path) -> int:
    with closing(State(path)) as state:
        return Outbox(state).depth()


def test_without_a_broker_alerts_wait_in_the_outbox(ask, attack_capture, tmp_path):
    """How they leave it is tested end to end."""
    outbox = tmp_path / "o.sqlite"
    address = f"127.0.0.1:{free_port()}"
    status, alerts, said = ask(attack_capture, "--broker", address, "--outbox", outbox, "--wait", "0.1")
    assert status == 1
    assert f"{len(alerts)} alerts wait in {outbox} for {address} (connection refused)" in said
    assert waiting(outbox) == len(alerts)
