"""The whole chain on captures of real devices and real attacks: the first table of docs/measured.md (`make real`)."""

import re
from pathlib import Path

import pytest

from trainer.demo import main

CAPTURES = Path(__file__).parents[1] / "configs" / "captures"


def test_the_third_day_of_four_devices_gives_no_alert_and_scans_and_a_flood_do(
    real_captures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Fit on two days of each device, then converter, broker and collector; exit status 0 means no false alerts."""
    status = main(["--captures", str(CAPTURES), "--root", str(real_captures), "--out", str(tmp_path / "real")])
    output = capfd.readouterr()
    assert status == 0, output.out + output.err
    attacks = re.findall(r"│ attack/(\S+)\s+│ \w+\s+│ (yes|no)", output.out)
    assert {name for name, detected in attacks if detected == "yes"} >= {
        "masscan/tcp_0_1000_20190821.pcap",
        "masscan/udp_0_1000_20190821.pcap",
        "synscan.pcap",
        "pkt.TCP.DOMINATE.syn.ecn.cwr.pcapng",
        "nmap/nmap_80_all.pcap",
    }
    assert "anomaly (flood) against 10.10.10.10" in output.out, "DOMINATE must be seen from its victim's side"
    assert "0 false alerts" in output.out
