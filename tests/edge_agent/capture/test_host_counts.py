"""What a sender sent in vain to a host and newly tried there: the numbers beside a row's columns, by subject."""

from collections.abc import Iterable

import numpy as np

from edge_agent.capture.features import Extractor, SenderTable
from edge_agent.contract.addresses import PRIVATE_NETWORKS
from edge_agent.contract.columns import HOST_COUNTS
from edge_agent.contract.networks import Networks
from tests.reference import frames as craft
from tests.reference.frames import START_NS, Spec

HOME = Networks.parse(PRIVATE_NETWORKS)
MS = 1_000_000
DEVICE, NEIGHBOUR, ROUTER = 0, 1, 2  # MACs
INSIDE, OUTSIDE = 1, 3  # addresses


def counted(specs: Iterable[Spec], gap_ms: int = 10, first: list[Spec] | None = None) -> dict[str, float]:
    """The counts of the last row, after what the device and others sent ``first``, 1 ms apart."""
    frames, t = [], START_NS
    for spec in first if first is not None else TALK:
        t += MS
        frames.append((t, *craft.craft(spec)))
    for spec in specs:
        t += gap_ms * MS
        frames.append((t, *craft.craft(spec)))
    rows = Extractor().push_frames(frames)
    table = SenderTable(64, None, HOME.v4, HOME.v6)
    routes = table.route(rows.meta, rows.meta["t_ns"].copy())
    return dict(zip(HOST_COUNTS, routes.host_counts[-1].tolist(), strict=True))


def to_outside(**rest: int | str) -> Spec:
    return Spec(**{"src_mac": DEVICE, "dst_mac": ROUTER, "src": 0, "dst": OUTSIDE, "transport": "udp", **rest})  # type: ignore[arg-type]


def from_outside(**rest: int | str) -> Spec:
    ends = {"src_mac": ROUTER, "dst_mac": DEVICE, "src": OUTSIDE, "dst": 0, "sport": 443, "dport": 40000}
    return Spec(**{**ends, "transport": "udp", **rest})  # type: ignore[arg-type]


TALK = [to_outside(), from_outside()] * 20


def test_packets_that_nothing_answers_count_for_the_side_their_target_is_on() -> None:
    old = [to_outside(payload=18)] * 400
    sent = counted([from_outside(), *old])
    # 20 answers of 4 s ago account for ten packets each, as long as they are remembered
    assert 400 * 0.8 - 21 * 10 < sent["host_L0.1_unanswered"] < 400
    assert sent["host_L0.1_unanswered_inside"] == 0
    inside = Spec(src_mac=DEVICE, dst_mac=NEIGHBOUR, src=0, dst=INSIDE, transport="udp")
    sent = counted([inside] * 100)
    assert sent["host_L0.1_unanswered"] == 0
    assert 90 < sent["host_L0.1_unanswered_inside"] < 100
    assert sent["host_L0.01_unanswered_inside"] > sent["host_L0.1_unanswered_inside"]


def test_one_answer_in_ten_of_udp_and_one_in_twenty_of_tcp_is_enough() -> None:
    for transport, answers in (("udp", 10), ("tcp", 20)):
        for every, some in ((answers - 2, False), (2 * answers, True)):
            talk = [
                *[to_outside(transport=transport, tcp_flags=16)] * every,
                from_outside(transport=transport, tcp_flags=16),
            ]
            first = [to_outside(transport=transport, tcp_flags=16), *[from_outside(transport=transport)] * 16]
            sent = counted(talk * 20 + talk[:-1], first=first)
            assert (sent["host_L0.1_unanswered"] > 20) == some, (transport, every)


def test_nothing_is_unanswered_where_answers_are_not_captured() -> None:
    """A mirror of one direction, or answers of hosts inside only, must not make every device one that floods."""
    sent = [to_outside()] * 200
    assert counted(sent, first=[])["host_L0.1_unanswered"] == 0
    neighbours = [
        Spec(src_mac=DEVICE, dst_mac=NEIGHBOUR, src=0, dst=INSIDE, transport="udp"),
        Spec(src_mac=NEIGHBOUR, dst_mac=DEVICE, src=INSIDE, dst=0, transport="udp", sport=443, dport=40000),
    ]
    assert counted(sent, first=neighbours)["host_L0.1_unanswered"] == 0
    assert counted(sent)["host_L0.1_unanswered"] > 0


def test_group_addresses_and_what_a_router_carries_are_not_counted() -> None:
    assert set(counted([from_outside()] * 100).values()) == {0.0}
    broken = [to_outside(network="arp"), to_outside(network="unknown")]
    for spec in broken:
        assert set(counted([spec] * 50).values()) == {0.0}


def test_tried_ports_logins_and_pings_have_counts_of_their_own() -> None:
    def tcp(number: int, port: int) -> Spec:
        return Spec(src_mac=DEVICE, dst_mac=NEIGHBOUR, src=0, dst=INSIDE, sport=50000 + number, dport=port)

    ports = counted(tcp(i, 1000 + i) for i in range(20))
    assert 19 < ports["host_L0.1_ports"] < ports["host_L0.01_ports"] <= 20
    assert counted(tcp(i, 80) for i in range(20))["host_L0.1_ports"] <= 1, "many connections to one port"
    logins = counted(tcp(i, 22) for i in range(20))
    assert 19 < logins["host_L0.1_logins"] <= 20
    assert logins["host_L0.1_ports"] == 0
    echo = counted(to_outside(transport="echo", src=0, dst=n % 3 + 1) for n in range(3))
    assert np.isclose(echo["host_L0.01_pinged"], 2, atol=0.1), "one of the three hosts was no new peer"
