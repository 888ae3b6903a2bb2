"""A client that stays connected to its broker: when it tries again, and how it recognises another one with its id.

The agent's link and the collector have the same rules, which are here. `edge_agent.mqtt` makes the connections.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edge_agent.contract.broker import Backoff
from edge_agent.contract.cli import printable
from edge_agent.mqtt import Connected, Connection, ConnectionEnded, Dialer, Event

logger = logging.getLogger(__name__)

_STEADY_S = 10.0  # a connection that lasted this long was a working one
_MARGIN_S = 5.0  # time that a connection may take to be made
_SHORT_ENDS = 3  # connections in a row that end soon: the sign of another client where the broker says nothing
_OWN_S = 60.0  # time in which a broker may still read an attempt that was given up
_REMIND_S = 3600.0  # between two log lines about another client
_MAX_LOGGED = 16  # problems that are logged between two steady connections


@dataclass
class ConnectionCounts:
    """Counters of a client's connections since the start."""

    connects: int = 0
    failures: int = 0  # attempts to connect, and connections, that failed
    client_id_taken: int = 0  # connections that another client with the same id has ended


class Reconnecter:
    """Keeps one client connected: makes its connections, waits between them, and names what is wrong.

    The waits double, with jitter, until a connection has been *steady*. Where two clients have one id, the broker ends
    the connection of the one whenever the other connects. Some brokers of MQTT 5 say so; else it shows in connections
    that end soon and without a reason, one after the other. Such a connection is steady only once it has lasted longer
    than the other client waits before it comes back, so that both keep waiting longer.

    ``connected``, ``protocol`` ("5", "3.1.1" or ""), ``trouble`` (why there is no lasting connection, "" when there is
    one) may be read from any thread. ``remedy`` says what to do about another client. ``clock`` is a steady clock.
    """

    def __init__(
        self, dialer: Dialer, counts: ConnectionCounts, remedy: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.connected, self.trouble = False, ""
        self.protocol: Literal["5", "3.1.1", ""] = ""
        self._dialer, self._counts, self._remedy, self._clock = dialer, counts, remedy, clock
        self._address, self._config = dialer.config.address, dialer.config
        self._backoff = Backoff(dialer.config.retry_min_s, dialer.config.retry_max_s)
        self._connected_at = self._steady_after = 0.0
        self._steady = True  # the connection at hand, or the last one
        self._short = 0  # connections in a row that ended soon and without a reason
        self._unanswered_at = -_OWN_S  # when an attempt of ours was given up, which the broker may still read
        self._rival = ""  # what is known of another client with our id
        self._rival_logged_at, self._rival_logged = -_REMIND_S, False
        self._logged: set[str] = set()  # problems in the log since the last steady connection

    def run(
        self,
        stop: threading.Event,
        converse: Callable[[Connection], None],
        *,
        will: Callable[[], tuple[str, bytes] | None] = lambda: None,
        waiting: Callable[[], object] = lambda: None,
    ) -> None:
        """Connect, and again when the connection has ended, until ``stop`` is set or ``converse`` returns.

        ``converse`` uses one connection, calls `step` in a loop and lets ConnectionEnded pass. ``will`` returns the
        last will of the next connection. ``waiting`` is called before each wait.
        """
        while not stop.is_set():
            end = self._once(converse, will)
            if end is None or stop.is_set():
                break
            self._counts.failures += 1
            wait = self._judge(end)
            waiting()
            stop.wait(wait)

    def step(self, connection: Connection, timeout_s: float, wake: socket.socket | None = None) -> list[Event]:
        """Do as `Connection.step`, and notice that the connection is made, and that it lasts."""
        events = connection.step(timeout_s, wake)
        if any(isinstance(event, Connected) for event in events):
            self._begin(connection)
        elif self.connected and not self._steady and self._clock() - self._connected_at >= self._steady_after:
            self._settle()
        return events

    def _once(
        self, converse: Callable[[Connection], None], will: Callable[[], tuple[str, bytes] | None]
    ) -> ConnectionEnded | None:
        """Make one connection and use it; return its end, None if ``converse`` has returned."""
        connection = None
        try:
            connection = self._dialer.dial(will())
            converse(connection)
        except ConnectionEnded as end:
            return end
        finally:
            if self.connected and self._clock() - self._connected_at >= self._steady_after:
                self._settle()
            self.connected = False
            if connection is not None:
                connection.close()
        return None

    def _begin(self, connection: Connection) -> None:
        self._counts.connects += 1
        self.protocol, self.connected, self._steady = connection.protocol, True, False
        self._connected_at = self._clock()
        # Else one that was made after a long outage of the broker would have to last as long.
        others_wait = min(2.0 * self._backoff.longest, self._config.retry_max_s + _MARGIN_S) if self._short else 0.0
        self._steady_after = max(_STEADY_S, others_wait)
        self.trouble = self._rival

    def _settle(self) -> None:
        """Begin anew with short waits, as the connection has lasted."""
        self._backoff.reset()
        self._logged.clear()
        self._steady, self._short, self.trouble = True, 0, ""
        self._rival = ""
        if self._rival_logged:
            self._rival_logged = False
            logger.info(
                "broker %s: the connection has lasted %.0f s; no other client uses the client id %s any more",
                *(self._address, self._steady_after, printable(self._dialer.client_id)),
            )

    def _judge(self, end: ConnectionEnded) -> float:
        """Log what an end means when that is new, and return the seconds to wait."""
        now = self._clock()
        if not end.accepted and not end.try_other_version:
            self._short, self._rival = 0, ""  # no other client has anything to do with that
            self._unanswered_at = now
        elif end.explained:
            pass
        elif end.taken_over and now - self._unanswered_at < _OWN_S:
            self._unanswered_at = -_OWN_S  # by an attempt of ours that the broker has read late; that happens once
        elif end.taken_over or (end.hung_up and not self._steady):
            self._short += 1
            if end.taken_over or self._short >= _SHORT_ENDS:
                self._taken(end, now)
        wait = 0.0 if end.try_other_version else self._backoff.next()
        problem = self._rival or str(end)
        if problem != self._rival:
            self._report(problem, wait)
        self.trouble = problem
        return wait

    def _taken(self, end: ConnectionEnded, now: float) -> None:
        """Note that another client with our id has ended the connection; log it at first, then once an hour."""
        self._counts.client_id_taken += 1
        id_ = printable(self._dialer.client_id)
        if end.taken_over:
            self._rival = f"another client uses the client id {id_}, too, and each ends the other's connection"
        elif not self._rival:
            self._rival = (
                f"has ended {self._short} connections in a row soon after it accepted them: probably another client "
                f"uses the client id {id_}, too, and each ends the other's connection"
            )
        if now - self._rival_logged_at >= _REMIND_S:
            self._rival_logged_at, self._rival_logged = now, True
            logger.warning(
                "broker %s: %s; %s (%d connections so far)",
                *(self._address, self._rival, self._remedy, self._counts.client_id_taken),
            )

    def _report(self, problem: str, wait_s: float) -> None:
        """Log a problem when it is a new one; the same again, also in turn with another, is not logged."""
        if problem not in self._logged and len(self._logged) < _MAX_LOGGED:
            self._logged.add(problem)
            again = f"; trying again in {wait_s:.1f} s" if wait_s else "; trying MQTT 3.1.1"
            logger.warning("broker %s: %s%s", self._address, problem, again)
