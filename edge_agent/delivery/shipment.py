"""The outbox's way to the broker on one connection: which are under way, and which rest because it refused them.

A message leaves the outbox only when the broker has acknowledged it without an error. Under MQTT 5 a broker says when
it refuses a message; under 3.1.1 it cannot, and a refused message looks like a delivered one. A broker that has no
subscriber for a message throws it away: under MQTT 5 it says so, and the message waits.

Of a topic that the broker refuses, one message at a time is tried, less and less often, and the others are passed over,
so that messages under a gateway's former name do not hold up those under its new one.

A message that the broker does not take at all, since it is larger than the broker allows, is set aside in the outbox:
the others go first, and then it is tried alone from time to time.
"""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass

from edge_agent.contract.broker import Backoff
from edge_agent.contract.messages import MessageError, check_uuid7, decode
from edge_agent.culprit import Culprit
from edge_agent.delivery.outbox import ASIDE_S, Outbox
from edge_agent.delivery.outbox_table import STRIKES
from edge_agent.mqtt import Acknowledged, Connection

logger = logging.getLogger(__name__)

_RETRY_REFUSED_S = 300.0  # a refused message is tried again after this time, or on the next connection
_MAX_HOLD_S = 30.0  # longest wait between two messages tried on a topic that the broker refuses
ALERT = "alert"  # the kind of these messages for `Culprit`
_ALL = ""  # the topic under which all topics are held


@dataclass
class ShipmentCounts:
    """Counters of the outbox's messages since the start, by what became of them."""

    published: int = 0  # handed to the broker, repeats included
    acknowledged: int = 0
    repeated: int = 0  # acknowledged on an earlier connection, and sent again on a new one
    unheard: int = 0  # discarded by the broker because nobody subscribes; the message stays in the outbox
    refused: int = 0  # refusals by the broker, repeats included; the message stays in the outbox


@dataclass
class _Hold:
    """A topic whose last message the broker refused."""

    backoff: Backoff
    until: float = 0.0  # steady clock
    trying: bool = False  # one message is under way, to find out whether the broker takes it now


class Shipment:
    """Sends the messages of ``outbox`` over ``connection``, at most ``inflight`` at a time.

    The next connection's shipment sends again what is unacknowledged when the connection ends.
    """

    def __init__(
        self, outbox: Outbox, connection: Connection, inflight: int, counts: ShipmentCounts, culprit: Culprit
    ) -> None:
        self._outbox, self._connection, self._inflight, self._counts = outbox, connection, inflight, counts
        self._culprit = culprit
        self._under_way: dict[int, tuple[int, str, bytes]] = {}  # message id -> outbox row, topic, payload
        self._refused: set[int] = set()  # rows
        self._retry_refused = 0.0  # steady clock
        self._holds: dict[str, _Hold] = {}  # by topic
        self._passed_over = False  # the outbox has handed over rows whose topic is held
        self._unheard = False  # a message that is or was under way had no subscriber
        self._begin_again = False

    def __contains__(self, message_id: int) -> bool:
        return message_id in self._under_way

    @property
    def empty(self) -> bool:
        """True if no message is under way."""
        return not self._under_way

    @property
    def window(self) -> int:
        """The number of messages that may be under way: as configured, or fewer where the broker takes fewer."""
        return min(self._inflight, self._connection.receive_maximum)

    def begin_again(self) -> None:
        """Go back to the oldest message of the outbox as soon as nothing is under way."""
        self._begin_again = True

    def settle(self, answers: Iterable[Acknowledged]) -> str | None:
        """Act on the broker's answers to messages of this shipment.

        Returns what is wrong, "" when messages are taken and none waits for another try, None when neither is known.
        """
        done: dict[int, str] = {}  # row -> topic
        failed: set[str] = set()  # topics
        problem = ""
        for answer in answers:
            row, topic, _ = self._under_way.pop(answer.id)
            self._culprit.answered((ALERT, row))
            if answer.refused:
                problem = f"refuses alerts on {topic}: {answer.reason}"
                self._counts.refused += 1
                self._pass_by(row)
                failed.add(topic)
            elif answer.unheard:
                problem = "has no subscriber for alerts"
                self._counts.unheard += 1
                self._unheard = True
                failed.add(_ALL)
            else:
                done[row] = topic
        if done:
            self._outbox.done(done)
            self._counts.acknowledged += len(done)
        for topic in failed:
            self._hold(topic)
        for topic in {_ALL, *done.values()} - failed if done else ():
            self._holds.pop(topic, None)
        if problem:
            return problem
        return "" if done and not self._refused else None

    def ship(self) -> None:
        """Publish messages that wait, as far as the window allows. Raises ConnectionEnded."""
        now, again = time.monotonic(), False
        if not self._under_way:
            again = self._unheard or self._begin_again or self._rested(now)
            if self._refused and now > self._retry_refused:
                self._refused.clear()
                again = True
            if again:  # in order again from the oldest
                self._unheard = self._begin_again = self._passed_over = False
                self._outbox.rewind()
        everything = self._holds.get(_ALL)
        if self._unheard or self._begin_again or (everything and now < everything.until):
            return
        window = 1 if everything else self.window
        if len(self._under_way) < window:
            self._outbox.drain(lambda row, topic, payload: self._send(row, topic, payload, window, now))
        if self._culprit.idle:
            self._try_aside(now)
        if again or not self._passed_over:  # of a topic that could be tried and was not, no row is left
            held = self._holds.items()
            self._holds = {topic: hold for topic, hold in held if topic == _ALL or hold.trying or now < hold.until}

    def _send(self, row: int, topic: str, payload: bytes, window: int, now: float) -> bool:
        """Publish or pass over one message that the outbox hands over; False when the window is full."""
        if row in self._refused:
            return True
        hold = self._holds.get(topic)
        if hold and (hold.trying or now < hold.until):
            self._passed_over = True
            return True
        if len(self._under_way) >= window or not self._culprit.free():
            return False
        if not self._connection.fits(topic, payload):
            self._counts.refused += 1
            self._outbox.strike(row, STRIKES)
            _log_aside(row, payload, f"the broker accepts packets of at most {self._connection.max_packet} bytes")
            return True
        self._publish(row, topic, payload)
        if hold:
            hold.trying = True
        return True

    def _publish(self, row: int, topic: str, payload: bytes, *, alone: bool = False) -> None:
        self._under_way[self._connection.publish(topic, payload)] = row, topic, payload
        self._culprit.sent((ALERT, row), alone=alone)
        self._counts.published += 1

    def _try_aside(self, now: float) -> None:
        """Publish a message that is set aside, alone, if one is due and the broker may take it."""
        while waiting := self._outbox.next_aside():
            row, topic, payload = waiting
            hold = self._holds.get(topic)
            if not self._connection.fits(topic, payload) or (hold and now < hold.until):
                self._outbox.rest(row)
                continue
            self._publish(row, topic, payload, alone=True)
            return

    def blame(self, row: int) -> None:
        """Note that a message has ended the connection: the second time it is set aside."""
        known = self._outbox.aside()
        if not self._outbox.strike(row):
            return
        self._culprit.answered((ALERT, row))
        if self._outbox.aside() > known:
            payload = next((payload for r, _, payload in self._under_way.values() if r == row), b"")
            _log_aside(row, payload, "the broker has ended the connection each time it was sent")

    def _hold(self, topic: str) -> None:
        """Let ``topic`` rest. The messages under way count as one refusal, since usually all of them are refused."""
        hold, now = self._holds.setdefault(topic, _Hold(Backoff(1.0, _MAX_HOLD_S))), time.monotonic()
        if now >= hold.until:
            hold.until = now + hold.backoff.next()
        hold.trying = False

    def _pass_by(self, row: int) -> None:
        """Let the others pass ``row`` until it is time to try it again."""
        self._outbox.rest(row)
        if not self._refused:
            self._retry_refused = time.monotonic() + _RETRY_REFUSED_S
        self._refused.add(row)

    def _rested(self, now: float) -> bool:
        """Return True if rows were passed over that may be tried now."""
        due = (now >= hold.until for topic, hold in self._holds.items() if topic != _ALL)
        return self._passed_over and (not self._holds or any(due))


def _log_aside(row: int, payload: bytes, reason: str) -> None:
    try:
        name = f"alert {check_uuid7(decode(payload)['alert']['context']['botwatch']['id'])}"
    except (MessageError, LookupError, TypeError):
        name = f"the message in row {row}"
    logger.error(
        "%s of %d bytes is set aside: %s; it stays in the outbox and is sent again, after all others and alone, every "
        "%.0f minutes and at each start; look at the broker's size limits",
        *(name, len(payload), reason, ASIDE_S / 60),
    )
