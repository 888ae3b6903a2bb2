"""Check-ins of a bot that waits for orders with its command server."""

from collections.abc import Iterator

from trainer.traffic.flow import Flow
from trainer.traffic.plan import SECOND
from trainer.traffic.strike import SYN_AGAIN, Strike


def checkin_times(strike: Strike, begin: int) -> Iterator[int]:
    """Yield the times of check-ins: every 5 to 60 s as the seed chooses (Mirai: 60), each up to 30 % off.

    The deviation is that of sleeps, timeouts and the server's own rhythm together.
    """
    seconds = 1 / strike.attack.rate if strike.attack.rate else strike.life.rng.uniform(5, 60)
    t = begin
    while t < strike.over:
        yield t
        t += strike.life.period(seconds, 0.3)


def to_server(strike: Strike) -> Flow:
    """Return a connection to the command server that is not open yet."""
    return Flow(strike.life, strike.far, strike.target, strike.life.next_port(), strike.attack.port or 23)


def held(strike: Strike, begin: int) -> None:
    """Check in as main.c does: four bytes at first, then two each time, which the server returns."""
    flow = None
    for t in checkin_times(strike, begin):
        if flow is None:
            flow = to_server(strike)
            flow.open(t)
            flow.send(4)
        flow.t = max(flow.t, t)
        flow.send(strike.size(2), ack=False)
        flow.receive(strike.size(2))


def anew(strike: Strike, begin: int) -> None:
    """Check in on a new connection each time."""
    for t in checkin_times(strike, begin):
        flow = to_server(strike)
        flow.open(t)
        flow.send(strike.size(6), ack=False)
        flow.receive(strike.size(2))
        flow.close()


def unanswered(strike: Strike, begin: int) -> None:
    """Check in with a dead address: the kernel repeats a SYN until the bot makes another attempt."""
    times = list(checkin_times(strike, begin))
    for t, following in zip(times, [*times[1:], strike.over], strict=True):
        flow = to_server(strike)
        for after in SYN_AGAIN:
            if t + after * SECOND < following:
                flow.call(t + after * SECOND)


def refused(strike: Strike, begin: int) -> None:
    """Check in with a server that has closed its port."""
    for t in checkin_times(strike, begin):
        to_server(strike).refused(t)
