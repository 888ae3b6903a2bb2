"""What an episode is called, and what is called nothing that is known."""

import numpy as np
import pytest

from edge_agent import classify
from edge_agent.contract.bundle import SIGNATURE, Signature
from edge_agent.features import Extractor
from tests.traffic import S, arp, one_socket, packet, scan, spoofed, steady

CLASSES = ("benign", "gafgyt.tcp", "gafgyt.udp", "mirai.scan", "mirai.udp")
ANY = Signature((0.5,) * len(SIGNATURE), (1.0,) * len(SIGNATURE))


def looks(frames: list[bytes]) -> np.ndarray:
    rows = Extractor(256, seed=1).push_frames(list(steady(frames, S, 100)))
    return classify.looks(rows.meta)


def figures(values: np.ndarray) -> dict[str, float]:
    return dict(zip(SIGNATURE, values, strict=True))


def test_looks_are_protocol_flags_sizes_and_what_is_new():
    mean = figures(looks(list(scan(20))).mean(axis=0))
    assert (mean["tcp"], mean["syn"], mean["ack"], mean["udp"]) == (1, 1, 0, 0)
    assert mean["new_peer"] == mean["new_socket"] == 1
    flood = figures(looks(list(one_socket(20))).mean(axis=0))
    assert (flood["udp"], flood["tcp"], flood["new_socket"]) == (1, 0, 1 / 20)
    assert flood["length"] == pytest.approx(554 / 1500)
    assert flood["length_2"] == pytest.approx((554 / 1500) ** 2)
    closing = figures(looks([packet("192.168.1.2", "1.2.3.4", proto=6, flags=0x11)])[0])
    assert (closing["ack"], closing["fin_rst"], closing["syn"]) == (1, 1, 0)


def test_frames_without_ip_and_giants_have_looks_too():
    assert looks([arp(2, "192.168.1.2", "192.168.1.1")]).sum() == pytest.approx((60 / 1500) + (60 / 1500) ** 2, abs=1.1)
    assert looks([packet("192.168.1.2", "1.2.3.4", size=8000)])[0][SIGNATURE.index("length")] == 1.0


def test_a_class_is_known_by_its_looks():
    udp, syn = looks(list(spoofed(300))), looks(list(scan(300)))
    learnt = classify.learn(np.stack([udp[i : i + 20].mean(axis=0) for i in range(0, 280, 20)]))
    assert classify.fits(udp[100:140].mean(axis=0), learnt)
    assert not classify.fits(syn[100:140].mean(axis=0), learnt)
    assert not classify.fits(looks(list(one_socket(40))).mean(axis=0), learnt)


def test_a_few_packets_of_the_devices_own_do_not_make_an_attack_another():
    udp = looks(list(spoofed(300)))
    learnt = classify.learn(np.stack([udp[i : i + 20].mean(axis=0) for i in range(0, 280, 20)]))
    own = looks([packet("192.168.1.2", "1.2.3.4", proto=6, flags=0x10, size=200)] * 4)
    assert classify.fits(np.concatenate([udp[:36], own]).mean(axis=0), learnt)


def named(probabilities: list[float], signatures: dict[str, Signature], seen: np.ndarray | None = None):
    seen = np.full(len(SIGNATURE), 0.5) if seen is None else seen
    return classify.name(CLASSES, np.array(probabilities), seen, signatures, 0.5)


FAR = Signature((50.0,) * len(SIGNATURE), (1.0,) * len(SIGNATURE))


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


def test_a_family_that_is_a_class_itself_is_told_as_that():
    classes = ("benign", "mirai", "mirai.scan")
    told = classify.name(classes, np.array([0.0, 0.8, 0.2]), np.full(9, 0.5), {"mirai": ANY}, 0.5)
    assert told == ("mirai", 0.8)
    rejected = classify.name(classes, np.array([0.0, 0.8, 0.2]), np.full(9, 0.5), {"mirai": FAR}, 0.5)
    assert rejected == ("unknown", None)
