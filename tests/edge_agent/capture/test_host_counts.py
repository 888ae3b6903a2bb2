"""What a sender sent in vain to a host and newly tried there: the numbers beside a row's columns, by subject."""

from collections.abc import Iterable

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


TALK = [to_outside(network="ipv6"), from_outside(network="ipv6")] * 20  # with a host that the tests do not mean


def test_packets_that_nothing_answers_count_for_the_side_their_target_is_on() -> None:
    sent = counted([to_outside()] * 100, gap_ms=1000)
    assert 10 < sent["host_L0.1_unanswered"] < 15 < sent["host_L0.01_unanswered"] < 100
    inside = Spec(src_mac=DEVICE, dst_mac=NEIGHBOUR, src=0, dst=INSIDE, transport="udp")
    sent = counted([inside] * 100)
    assert sent["host_L0.1_unanswered"] == 0
    assert 90 < sent["host_L0.1_unanswered_inside"] < sent["host_L0.01_unanswered_inside"] < 100


def test_one_answer_in_two_hundred_is_enough_and_an_icmp_error_is_none() -> None:
    for back, some in ((from_outside(), False), (from_outside(transport="error udp"), True)):
        sent = counted([*([to_outside()] * 100), back] * 3 + [to_outside()] * 100)
        assert (sent["host_L0.1_unanswered"] > 250) == some, back


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
    assert 19 < ports["host_L0.01_ports"] <= 20
    assert counted(tcp(i, 80) for i in range(20))["host_L0.01_ports"] <= 1, "many connections to one port"
    logins = counted(tcp(i, 22) for i in range(20))
    assert 19 < logins["host_L0.01_logins"] <= 20
    assert logins["host_L0.01_ports"] == 0
    echo = counted(to_outside(transport="echo", src=0, dst=n % 3 + 1) for n in range(3))
    assert 2.9 < echo["host_L0.01_pinged"] <= 3
