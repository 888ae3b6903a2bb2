"""Each attack's name and what carries it out."""

from collections.abc import Callable

from trainer.traffic import checkins, gafgyt, mirai
from trainer.traffic.client import Client
from trainer.traffic.plan import AttackPlan
from trainer.traffic.strike import Strike

CARRIED_OUT: dict[str, Callable[[Strike, int], None]] = {
    "mirai.scan": mirai.scan,
    "mirai.syn": mirai.syn,
    "mirai.ack": mirai.ack,
    "mirai.udp": mirai.udp,
    "mirai.udpplain": mirai.udpplain,
    "gafgyt.scan": gafgyt.scan,
    "gafgyt.junk": gafgyt.junk,
    "gafgyt.combo": gafgyt.combo,
    "gafgyt.tcp": gafgyt.tcp,
    "gafgyt.udp": gafgyt.udp,
    "checkins.held": checkins.held,
    "checkins.anew": checkins.anew,
    "checkins.unanswered": checkins.unanswered,
    "checkins.refused": checkins.refused,
}
"""Label -> the function that adds its packets from a time on."""


def carry_out(life: Client, attack: AttackPlan, begin: int, seconds: float, cap: int) -> tuple[Strike, tuple[int, int]]:
    """Add the packets of `attack` to a device's life; return the attack, and the times of its first and last packet.

    At most `seconds` of it are generated, and about `cap` packets that the device sends.
    """
    before = life.tape.mark()
    strike = Strike(life, attack, begin, seconds, cap)
    CARRIED_OUT[attack.label](strike, begin)
    return strike, life.tape.span(before, life.device.mac)
