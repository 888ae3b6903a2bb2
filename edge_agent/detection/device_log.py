"""The log of devices: a line for each change of a device's state, and of what its bursts add to its limits."""

import logging

from edge_agent.detection.device_limits import DeviceLimits

logger = logging.getLogger(__name__)

_NEW = "learning", "", False


class DeviceLog:
    """Remembers the state in which each device was logged last."""

    def __init__(self) -> None:
        self._logged: dict[int, tuple[str, str, bool]] = {}

    def knows(self, mac: int, limits: DeviceLimits) -> None:
        """Take the state of a device as logged."""
        self._logged[mac] = _state(limits)

    def forget(self, mac: int) -> None:
        """Forget a device; if it comes back it is a new one."""
        self._logged.pop(mac, None)

    def look(self, mac: int, limits: DeviceLimits, who: str) -> bool:
        """Log a change of a device, which people know as ``who``; return True if there was one."""
        now, before = _state(limits), self._logged.get(mac, _NEW)
        self._logged[mac] = now
        if now[:2] != before[:2]:
            _log_state(limits, who)
        if now[2] and not before[2]:
            logger.info(
                "device %s: its bursts have recurred on several days without looking like an attack and are learnt; %s",
                *(who, limits_in_words(limits)),
            )
        elif before[2] and not now[2]:
            logger.info("device %s: its bursts do not recur any more and are forgotten", who)
        return now != before


def limits_in_words(limits: DeviceLimits) -> str:
    """Return the limits of a device as multiples of the model's."""
    score, counts = limits.factors()
    capped = "; that is the highest allowed, so the device is hardly protected" if limits.capped else ""
    peers = f", {limits.peers_factor:.3g} for new peers over minutes" if limits.peers_factor < 1.0 else ""
    return f"its limits are {score:.3g} (score) and {counts:.3g} (counts{peers}) times the model's{capped}"


def _state(limits: DeviceLimits) -> tuple[str, str, bool]:
    return limits.state, limits.refused, limits.bursts.recurring > 0.0


def _log_state(limits: DeviceLimits, who: str) -> None:
    if limits.refused:
        logger.warning("device %s has not learnt limits of its own and keeps the model's: %s", who, limits.refused)
    elif limits.state == "stale":
        logger.warning(
            "device %s is stale: for some minutes its traffic has exceeded what it had learnt. If it recurs on several "
            "days without looking like an attack, it is learnt; if you know why (a firmware update, a new use), let it "
            "learn anew (`botwatch agent learn`); if not, look at its alerts",
            who,
        )
    elif limits.state == "active":
        logger.info("device %s is active: %s", who, limits_in_words(limits))
    else:
        logger.info("device %s is learning", who)
