"""What an episode is called, and what is called nothing that is known."""

import numpy as np
import pytest

from edge_agent.capture.features import Extractor
from edge_agent.contract.bundle import PROFILE_FIELDS, PacketProfile
from edge_agent.detection import classify
from tests.traffic import S, arp, one_socket, packet, scan, spoofed, steady

CLASSES = ("benign", "gafgyt.tcp", "gafgyt.udp", "mirai.scan", "mirai.udp")
ANY = PacketProfile((0.5,) * len(PROFILE_FIELDS), (1.0,) * len(PROFILE_FIELDS), (0.0,) * len(PROFILE_FIELDS))


def looks(frames: list[bytes]) -> np.ndarray:
    rows = Extractor(256, seed=1).push_frames(list(steady(frames, S, 100)))
    return classify.packet_profile(rows.meta)


def figures(values: np.ndarray) -> dict[str, float]:
    return dict(zip(PROFILE_FIELDS, values, strict=True))


def test_looks_are_protocol_flags_sizes_and_what_is_new():
    mean = figures(looks(list(scan(20))).mean(axis=0))
    assert (mean["tcp"], mean["syn"], mean["ack"], mean["udp"]) == (1, 1, 0, 0)
    assert mean["new_peer"] == mean["new_socket"] == 1
    flood = figures(looks(list(one_socket(20))).mean(axis=0))
    assert (flood["udp"], flood["tcp"], flood["new_socket"]) == (1, 0, 1 / 20)
    size = np.log(554 / 60) / np.log(1514 / 60)
    assert flood["length"] == pytest.approx(size)
    assert flood["length_2"] == pytest.approx(size**2)
    closing = figures(looks([packet("192.168.1.2", "1.2.3.4", proto=6, flags=0x11)])[0])
    assert (closing["ack"], closing["fin_rst"], closing["syn"]) == (1, 1, 0)


def test_looks_tell_what_repeats_from_packet_to_packet_wherever_batches_are_cut():
    mean = figures(looks(list(scan(20))).mean(axis=0))
    assert (mean["same_src"], mean["same_sport"], mean["same_dport"], mean["same_dst"]) == (1, 1, 1, 1 / 20)
    mean = figures(looks(list(spoofed(20))).mean(axis=0))
    assert (mean["same_src"], mean["same_sport"], mean["same_dport"], mean["same_dst"]) == (1 / 20, 1 / 20, 1, 1)
    meta = Extractor(256, seed=1).push_frames(list(steady(list(scan(20)), S, 100))).meta
    cut = np.concatenate(
        [
            classify.packet_profile(meta[:7]),
            classify.packet_profile(meta[7:7], meta[6:7]),
            classify.packet_profile(meta[7:], meta[6:7]),
        ]
    )
    assert (cut == classify.packet_profile(meta)).all()


def test_frames_without_ip_and_giants_have_looks_too():
    seen = figures(looks([arp(2, "192.168.1.2", "192.168.1.1")])[0])
    assert sum(seen[name] for name in ("udp", "tcp", "syn", "ack", "fin_rst", "length")) == 0
    assert looks([packet("192.168.1.2", "1.2.3.4", size=8000)])[0][PROFILE_FIELDS.index("length")] == 1.0


OWN = packet("192.168.1.2", "1.2.3.4", proto=6, flags=0x10, size=200)


def learnt() -> dict[str, PacketProfile]:
    """Three classes, each from two devices that send a few packets of their own in between."""

    def with_own(frames: list[bytes], every: int) -> np.ndarray:
        return looks([f for i, frame in enumerate(frames) for f in ([OWN, frame] if i % every == 0 else [frame])])

    kinds = {"udp": spoofed, "scan": scan, "socket": one_socket}
    return classify.learn(
        [(kind, f"cam{every}", with_own(list(of(400)), every)) for kind, of in kinds.items() for every in (50, 80)]
    )


def test_a_class_is_known_by_its_looks():
    signatures = learnt()
    for kind, of in (("udp", spoofed), ("scan", scan), ("socket", one_socket)):
        seen = looks(list(of(300, seed=9) if kind != "socket" else of(300)))[1:]
        assert {name for name, s in signatures.items() if classify.fits(seen.mean(axis=0), 299, s)} == {kind}


def test_a_few_packets_of_the_devices_own_do_not_make_an_attack_another():
    seen = looks([*([OWN] * 3), *spoofed(297)])
    assert classify.fits(seen.mean(axis=0), 300, learnt()["udp"])


def test_a_scan_that_differs_in_what_repeats_alone_is_another():
    """Ever another source port, as sockets of the kernel's have: BASHLITE's scan, where Mirai's was learnt."""
    frames = [frame[:34] + i.to_bytes(2, "big") + frame[36:] for i, frame in enumerate(scan(300), 2000)]
    assert not classify.fits(looks(frames).mean(axis=0), 300, learnt()["scan"])


def test_few_packets_fit_more_loosely_than_many():
    signature = PacketProfile((0.5,) * len(PROFILE_FIELDS), (0.1,) * len(PROFILE_FIELDS), (1.0,) * len(PROFILE_FIELDS))
    seen = np.full(len(PROFILE_FIELDS), 0.7)
    assert classify.fits(seen, 15, signature)
    assert not classify.fits(seen, 200, signature)


def named(probabilities: list[float], signatures: dict[str, PacketProfile], seen: np.ndarray | None = None):
    seen = np.full(len(PROFILE_FIELDS), 0.5) if seen is None else seen
    return classify.name(CLASSES, np.array(probabilities), seen, 100, signatures, 0.5)


FAR = PacketProfile((50.0,) * len(PROFILE_FIELDS), (1.0,) * len(PROFILE_FIELDS), (0.0,) * len(PROFILE_FIELDS))


@pytest.mark.parametrize(
    ("probabilities", "signatures", "expected"),
    [
        ([0.1, 0.0, 0.0, 0.9, 0.0], {"mirai.scan": ANY}, ("mirai.scan", 0.9)),
        ([0.1, 0.0, 0.0, 0.9, 0.0], {}, ("mirai.scan", 0.9)),  # learnt from rows without packets
        ([0.9, 0.0, 0.0, 0.1, 0.0], {"mirai.scan": ANY}, ("unknown", None)),  # benign most of all
        ([0.2, 0.0, 0.0, 0.4, 0.4], {"mirai.scan": ANY, "mirai.udp": ANY}, ("mirai", 0.8)),  # which of two is open
        ([0.0, 0.0, 0.0, 0.9, 0.1], {"mirai.scan": FAR, "mirai.udp": ANY}, ("mirai", 1.0)),
        ([0.0, 0.0, 0.0, 0.9, 0.1], {"mirai.scan": FAR, "mirai.udp": FAR}, ("unknown", None)),
        ([0.0, 0.3, 0.3, 0.4, 0.0], {"mirai.scan": ANY}, ("unknown", None)),  # no family has half
    ],
)
def test_names_go_from_type_over_family_to_unknown(probabilities, signatures, expected):
    name, probability = named(probabilities, signatures)
    assert name == expected[0]
    assert probability == (None if expected[1] is None else pytest.approx(expected[1]))


def test_a_family_that_is_itself_a_class_is_reported_as_that_class():
    classes = ("benign", "mirai", "mirai.scan")
    told = classify.name(
        classes, np.array([0.0, 0.8, 0.2]), np.full(len(PROFILE_FIELDS), 0.5), 100, {"mirai": ANY}, 0.5
    )
    assert told == ("mirai", 0.8)
    rejected = classify.name(
        classes, np.array([0.0, 0.8, 0.2]), np.full(len(PROFILE_FIELDS), 0.5), 100, {"mirai": FAR}, 0.5
    )
    assert rejected == ("unknown", None)
