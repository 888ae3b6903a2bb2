"""Dataclasses that travel as JSON objects: a field says once how it is spelt, and everything else follows from that.

The type of a field gives its grammar and the way between value and JSON; `spelt` adds bounds, another key or another
form:

    class Evidence:
        sha256: Annotated[str, spelt(pattern="^[0-9a-f]{64}$")]
        first_ns: Annotated[int, spelt("first_seen", form=TIME)]

`write`, `read` and `grammar` are the writer, the reader and the JSON Schema of such a class. A field that has a default
may be absent, and is left out when its value is empty (None, False, "" or ()). The fields of one class may lie in
several objects; ``part`` names the object of a field. Standard library only.
"""

import math
import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from edge_agent.contract.messages import MessageError, check_uuid7, format_time, parse_time


@dataclass(frozen=True)
class Form:
    """The JSON form of a type: its grammar in JSON Schema, and the functions that write and read a value.

    ``read`` raises ValueError (a MessageError is one), TypeError or OverflowError for what the grammar does not allow.
    Bounds of texts, numbers and lists are checked here, all else of the grammar by a judge who applies it.
    """

    schema: Mapping[str, Any]
    write: Callable[[Any], Any]
    read: Callable[[Any], Any]


@dataclass(frozen=True)
class Spelling:
    """The content of a field's annotation; see `spelt`."""

    key: str
    part: str
    form: Form | None
    optional: bool
    bounds: Mapping[str, Any]


def spelt(
    key: str = "", *, part: str = "", form: Form | None = None, optional: bool = False, **bounds: Any
) -> Spelling:
    """Return the annotation of a field that is ``key`` (else its name) in the object ``part``.

    ``form`` replaces that of the field's type. ``bounds`` are keywords of JSON Schema, as ``maxLength=40``. With
    ``optional`` a reader accepts an object without the key though the field has no default: its class finds a value.
    """
    return Spelling(key, part, form, optional, bounds)


def one_of(options: Iterable[str]) -> Form:
    """Return the form of a text that is one of ``options``."""
    known = tuple(options)

    def read(value: object) -> str:
        if value not in known:
            raise ValueError(f"{str(value)[:40]!r} is none of {', '.join(known)}")
        return str(value)

    return Form({"enum": list(known)}, _same, read)


def six_digits(value: float) -> float:
    """Return ``value`` with six significant digits: all that a reader can use, in a third of the bytes.

    >>> six_digits(0.123456789)
    0.123457
    """
    return float(f"{value:.6g}")


def _same(value: Any) -> Any:
    return value


def _reader(accepted: type, what: str) -> Callable[[Any], Any]:
    def read(value: object) -> Any:
        if not isinstance(value, accepted):
            raise ValueError(f"{str(value)[:40]!r} is not {what}")
        return value

    return read


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value % 1:
        raise ValueError(f"{str(value)[:40]!r} is not a whole number")
    if not -(2**63) <= value < 2**63:  # 1e300 is a whole number, too, but no database takes it
        raise ValueError(f"{str(value)[:40]!r} is beyond 64 bits")
    return int(value)


def _real(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{str(value)[:40]!r} is not a number")
    return float(value)


TIME = Form(
    {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+0000$"},
    format_time,
    lambda value: parse_time(str(value)),
)
"""Unix nanoseconds, as EVE spells times."""

UUID7 = Form(
    {"type": "string", "pattern": "^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"},
    _same,
    check_uuid7,
)
"""A UUID of version 7 as text."""

_FORMS: Mapping[type, Form] = {
    str: Form({"type": "string"}, _same, _reader(str, "a text")),
    bool: Form({"type": "boolean"}, _same, _reader(bool, "true or false")),
    int: Form({"type": "integer"}, _same, _whole),
    float: Form({"type": "number"}, six_digits, _real),
}


@dataclass(frozen=True)
class _Field:
    name: str
    key: str
    part: str
    form: Form
    optional: bool


@cache
def _fields(cls: type) -> tuple[_Field, ...]:
    hints, entries = get_type_hints(cls, include_extras=True), []
    for entry in fields(cls):
        hint, spelling = hints[entry.name], spelt()
        if get_origin(hint) is Annotated:
            hint, spelling = get_args(hint)
        form = spelling.form or _form(hint)
        form = Form({**form.schema, **spelling.bounds}, form.write, form.read)
        optional = spelling.optional or entry.default is not MISSING or entry.default_factory is not MISSING
        entries.append(_Field(entry.name, spelling.key or entry.name, spelling.part, form, optional))
    return tuple(entries)


def _form(hint: Any) -> Form:
    """Return the form that belongs to a type."""
    if get_origin(hint) is Literal:
        return one_of(get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):  # only with None: `write` leaves that out
        return _form(next(of for of in get_args(hint) if of is not type(None)))
    if is_dataclass(hint):
        cls: Any = hint
        return Form({**grammar(cls), "additionalProperties": False}, write, lambda value: cls(**read(cls, value)))
    return _FORMS[hint]


def write(record: Any, part: str = "") -> dict[str, Any]:
    """Return the JSON object of the fields of a dataclass instance that lie in ``part``, in the order of the fields."""
    written = {}
    for entry in _fields(record.__class__):
        value = getattr(record, entry.name)
        empty = value is None or value is False or value in ("", ())
        if entry.part == part and not (empty and entry.optional):
            written[entry.key] = entry.form.write(value)
    return written


def read(cls: type, document: object, part: str = "") -> dict[str, Any]:
    """Return the values, by field, of the fields of ``cls`` that lie in ``part``, as ``document`` has them.

    Unknown keys are ignored; a MessageError names the key that is missing or has no such value.
    """
    if not isinstance(document, Mapping):
        raise MessageError(f"{part or cls.__name__}: not a JSON object")
    values = {}
    for entry in _fields(cls):
        if entry.part != part:
            continue
        if entry.key in document:
            try:
                values[entry.name] = entry.form.read(document[entry.key])
                _check_bounds(entry.form.schema, document[entry.key])
            except (ValueError, TypeError, OverflowError) as error:
                raise MessageError(f"{part}{'.' if part else ''}{entry.key}: {error}") from error
        elif not entry.optional:
            raise MessageError(f"{part}{'.' if part else ''}{entry.key}: missing")
    return values


def _check_bounds(schema: Mapping[str, Any], value: object) -> None:
    """Raise ValueError for a text, number or list beyond the bounds of its grammar, which no writer would make."""
    if isinstance(value, str):
        # Of the whole text: the "$" of a pattern would let a line break at the end pass.
        fits = "pattern" not in schema or re.fullmatch(schema["pattern"], value)
        within = fits and len(value) <= schema.get("maxLength", len(value))
    elif isinstance(value, int | float):
        low, high = schema.get("minimum", value), schema.get("maximum", value)
        within = low <= value <= high and value > schema.get("exclusiveMinimum", -math.inf)
    else:
        within = not isinstance(value, list) or len(value) <= schema.get("maxItems", len(value))
    if not within:
        raise ValueError(f"{str(value)[:40]!r} is beyond the bounds")


def longest(cls: type, name: str) -> int:
    """Return the largest number of characters of the text field ``name`` of ``cls``."""
    return int(next(entry for entry in _fields(cls) if entry.name == name).form.schema["maxLength"])


def grammar(cls: type, part: str = "") -> dict[str, Any]:
    """Return the JSON Schema of the object that `write` makes."""
    entries = [entry for entry in _fields(cls) if entry.part == part]
    required = [entry.key for entry in entries if not entry.optional]
    return {
        "type": "object",
        **({"required": required} if required else {}),
        "properties": {entry.key: dict(entry.form.schema) for entry in entries},
    }
