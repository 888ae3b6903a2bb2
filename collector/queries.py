"""The lists that are read from the database, as SQL: alerts or the newest state of each episode, by what is wanted.

A list is in order of arrival: ``n`` of an alert is its place, which is never used twice. `collector.store` executes the
statements.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, and_, false, func, or_, select, union_all

from collector.tables import ALERT, DOCUMENT, EPISODE, GATEWAY, TEST

_MAC = re.compile(r"(?:[0-9a-f]{2}[:-]?){5}[0-9a-f]{2}")


@dataclass(frozen=True)
class Wanted:
    """The alerts that are wanted: all of them, unless a field says otherwise.

    ``device`` is a MAC, an IP address or a name; ``class_name`` a class, or a family as ``mirai.*``; ``severity`` the
    mildest (1 is the worst); ``since_ns`` a time in Unix ns; ``still_open`` leaves out episodes that have ended. An
    alert that was sent by hand is of no device and no class.
    """

    gateway: str = ""
    device: str = ""
    class_name: str = ""
    severity: int = 0
    since_ns: int = 0
    still_open: bool = False

    @property
    def _tests(self) -> bool:
        """True if alerts that were sent by hand are wanted, too."""
        return not (self.device or self.class_name or self.still_open or self.severity in (1, 2))

    def messages(self) -> Select[Any]:
        """Return a selection of the numbers of all alerts."""
        query = select(ALERT.c.n).where(*self._of(ALERT))
        if self.device or self.still_open:
            query = query.join(EPISODE, EPISODE.c.id == ALERT.c.id).where(*self._of_episode())
        if not self._tests:
            query = query.where(ALERT.c.test.is_(false()))
        return query

    def states(self, tests: bool) -> Select[Any]:
        """Return a selection of the numbers of the newest alert of each episode, and with ``tests`` of each test."""
        same = and_(ALERT.c.id == EPISODE.c.id, ALERT.c.seq == EPISODE.c.seq)
        query = select(ALERT.c.n).select_from(EPISODE).join(ALERT, same).where(*self._of(EPISODE), *self._of_episode())
        if self.since_ns:
            query = query.where(ALERT.c.t_ns >= self.since_ns)
        if not tests or not self._tests:
            return query
        newest = and_(ALERT.c.id == TEST.c.id, ALERT.c.seq == TEST.c.seq)
        sent = select(ALERT.c.n).select_from(TEST).join(ALERT, newest).where(*self._of(ALERT))
        both = union_all(query, sent).subquery()
        return select(both.c.n)

    def _of(self, table: Any) -> list[Any]:
        """Return the conditions on columns that both tables have."""
        conditions = []
        if self.gateway:
            conditions.append(table.c.gateway == self.gateway)
        if self.severity:
            conditions.append(table.c.severity <= self.severity)
        if self.class_name.endswith(".*"):
            family = self.class_name.removesuffix(".*")
            conditions.append(or_(table.c["class"] == family, table.c["class"].startswith(f"{family}.")))
        elif self.class_name:
            conditions.append(table.c["class"] == self.class_name)
        if self.since_ns and table is ALERT:
            conditions.append(ALERT.c.t_ns >= self.since_ns)
        return conditions

    def _of_episode(self) -> list[Any]:
        conditions = [EPISODE.c.state != "end"] if self.still_open else []
        if self.device:
            named = or_(EPISODE.c.name == self.device, func.lower(EPISODE.c.name) == self.device.lower())
            conditions.append(or_(named, EPISODE.c.mac == _mac(self.device), EPISODE.c.ip == _ip(self.device)))
        return conditions


def _mac(text: str) -> str | None:
    """Return the MAC address in ``text`` as alerts spell it; None if there is none."""
    digits = re.sub("[:-]", "", text.lower()) if _MAC.fullmatch(text.lower()) else ""
    return ":".join(re.findall("..", digits)) or None


def _ip(text: str) -> str | None:
    """Return the IP address in ``text`` as alerts spell it; None if there is none."""
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        return None


def alerts(numbers: Select[Any], after: int, limit: int | None) -> Select[Any]:
    """Return a selection of the first ``limit`` alerts of these numbers that come after ``after``, in order."""
    chosen = numbers.where(numbers.selected_columns.n > after).order_by("n").limit(limit).subquery()
    columns = ALERT.c.n, ALERT.c.received_ns, ALERT.c.document
    return select(*columns).join(chosen, ALERT.c.n == chosen.c.n).order_by(ALERT.c.n)


def before_last(numbers: Select[Any], count: int) -> Select[Any]:
    """Return a selection of the number behind which the last ``count`` of these numbers come."""
    return numbers.order_by(numbers.selected_columns.n.desc()).offset(count).limit(1)


def gateway_ids(documents: bool) -> Select[Any]:
    """Return a selection of the ids of all gateways that anything is stored of, ``documents`` and tests included."""
    parts = (select(table.c.gateway) for table in (GATEWAY, EPISODE, *((TEST, DOCUMENT) if documents else ())))
    return select(union_all(*parts).subquery().c.gateway).distinct()


def documents(leaf: str) -> Select[Any]:
    """Return a selection of the newest documents of a leaf."""
    return select(DOCUMENT).where(DOCUMENT.c.leaf == leaf)


def sites() -> Select[Any]:
    """Return a selection of each gateway with the sites that its alerts have named, the newest last."""
    newest = func.max(EPISODE.c.received_ns).label("newest")
    return (
        select(EPISODE.c.gateway, EPISODE.c.site, newest).group_by(EPISODE.c.gateway, EPISODE.c.site).order_by(newest)
    )
