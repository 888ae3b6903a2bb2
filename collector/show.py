"""The form in which people read an alert: a row of a table, or one line of a list that grows.

Words that come from gateways are printed without characters that a terminal would obey. Which alerts are shown, and
where, is the command's decision.
"""

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from edge_agent.contract.alert import CLASSES, Alert
from edge_agent.contract.cli import printable
from edge_agent.contract.messages import format_time


def alert_table(alerts: Iterable[Alert]) -> Table:
    """Return a table with one row per alert, in the order given."""
    table = Table("time (UTC)", "gateway", "state", "alert", "device", box=SIMPLE_HEAD, pad_edge=False)
    for number in ("confidence", "packets", "seconds"):
        table.add_column(number, justify="right")
    table.add_column("model")
    for alert in alerts:
        numbers = (f"{alert.confidence:.2f}", str(alert.packets), f"{alert.duration_s:.1f}")
        table.add_row(
            *(_time(alert), printable(alert.gateway), alert.state, _headline(alert), printable(alert.device.name)),
            *(("", "", "") if alert.test else numbers),
            _model(alert),
        )
    return table


def alert_line(alert: Alert) -> Text:
    """Return one alert on one line."""
    line = Text(f"{_time(alert)}  {printable(alert.gateway)}  {alert.state:<6}  ")
    line += _headline(alert)
    if alert.test:
        return line
    name = f" ({printable(alert.device.name)})" if alert.device.name else ""
    totals = f"{alert.packets} packets in {alert.duration_s:.1f} s"
    return line + Text(f"{name}  confidence {alert.confidence:.2f}, {totals}, model {_model(alert)}")


def _headline(alert: Alert) -> Text:
    """Return the words for what is reported, in a colour by state and severity."""
    style = "dim" if alert.state == "end" else "bold red" if CLASSES[alert.class_name].severity == 1 else "yellow"
    if alert.test:
        style = "cyan"
    return Text(printable(alert.signature.removeprefix("botwatch ")), style)


def _model(alert: Alert) -> str:
    return f"{printable(alert.model.version)}{' (generated)' if alert.model.generated else ''}"


def _time(alert: Alert) -> str:
    return format_time(alert.t_ns)[:23].replace("T", " ")
