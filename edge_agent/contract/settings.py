"""Strict YAML to a frozen dataclass: every key is known and every type right, or one readable line names the error.

A role's configuration is one frozen dataclass; nested dataclasses are sections. The keys, their types, defaults and
bounds are the dataclass's knowledge; this module only checks a file against it.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from edge_agent.contract.cli import unknown

T = TypeVar("T")


class SettingsError(Exception):
    """A configuration that cannot be used; the message names file, section, key and what was expected.

    A password in a URL, which somebody wrote where none belongs, is not in the message.
    """

    def __init__(self, message: str) -> None:
        super().__init__(without_password(message))


STRUCK = "(struck out)"


def without_password(text: str) -> str:
    """Return ``text`` without user and password of each URL or address in it, even if the URL is cut short.

    >>> without_password("broker 'mqtt://joe:secret@box:1883' of joe:secret@box")
    "broker '(struck out)@box:1883' of (struck out)@box"
    >>> without_password("found 'mqtt://joe:secr...; see http://box:8080/x")
    "found '(struck out); see http://box:8080/x"
    """
    return re.sub(r"\S+", _struck_word, text)


def _struck_word(word: re.Match[str]) -> str:
    text = word[0]
    opening = text[: len(text) - len(text.lstrip("'\"([{"))]
    before, at, after = text.rpartition("@")
    if at and ":" in before:
        return f"{opening}{STRUCK}@{after}"
    _, is_url, rest = text.partition("://")
    user, colon, port = rest.partition(":")
    if is_url and colon and "/" not in user and "[" not in user and not re.match(r"[0-9]+(?![^/?'\");,.])", port):
        return f"{opening}{STRUCK}{';' if text.endswith(';') else ''}"
    return text


def within(default: Any, low: float, high: float) -> Any:
    """Return a field of a settings dataclass with its default and bounds, which `check` enforces.

    The number, or the number of characters or entries, must be from ``low`` to ``high``, both included.
    """
    metadata = {"within": (low, high)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def derived(default: Any) -> Any:
    """Return a field that no file may set: the program derives it from others, so it does not count in comparisons."""
    return dataclasses.field(default=default, compare=False, metadata={"derived": True})


def check(given: Any, error: type[ValueError] = ValueError) -> None:
    """Check the fields of a settings dataclass against their bounds; an ``error`` names the first that is beyond them.

    None is always allowed here: a field's type says if it may be None.
    """
    for field in dataclasses.fields(given):
        value = getattr(given, field.name)
        if "within" not in field.metadata or value is None:
            continue
        low, high = field.metadata["within"]
        size, unit = value, ""
        if isinstance(value, str | tuple | dict):
            size, unit = len(value), " characters" if isinstance(value, str) else " entries"
        if not low <= size <= high:  # true of nan
            raise error(f"{field.name}: {_number(size)}{unit}, must be {_number(low)} to {_number(high)}")


def load(cls: type[T], path: str | Path) -> T:
    """Read ``path`` into the dataclass ``cls``; an empty file gives its defaults."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from error
    return loads(cls, text, path.name)


def peek(path: str | Path, section: str, key: str) -> object:
    """Return one value of a YAML file whose other values may be wrong; None where it cannot be found."""
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    inner = data.get(section) if isinstance(data, Mapping) else None
    return inner.get(key) if isinstance(inner, Mapping) else None


def loads(cls: type[T], text: str, name: str) -> T:
    """Read YAML ``text`` into ``cls``; ``name`` begins every error."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise SettingsError(f"{name}{where}: not YAML: {getattr(error, 'problem', error)}") from error
    return build(cls, {} if data is None else data, name)


def build(cls: type[T], data: object, name: str, section: str = "") -> T:
    """Make ``cls`` from parsed YAML; a ``ValueError`` of its ``__post_init__`` becomes a SettingsError."""
    where = f"{name} [{section}]" if section else name
    if not isinstance(data, Mapping):
        raise SettingsError(f"{where}: expected keys and values, found {_show(data)}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init and "derived" not in f.metadata}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise SettingsError(f"{where}: {unknown('key', str(key), fields)}")
    values = {}
    for key, field in fields.items():
        if key in data:
            inner = f"{section}.{key}" if section else key
            values[key] = _convert(hints[key], data[key], name, inner, where, key)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SettingsError(f"{where}: missing key {key!r}")
    try:
        return cls(**values)
    except ValueError as error:
        raise SettingsError(f"{where}: {error}") from error


def _convert(hint: Any, value: object, name: str, section: str, where: str, key: str) -> Any:
    """Return ``value`` as the type ``hint``, or raise SettingsError. Ints pass as floats; nothing else is coerced."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, name, section)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        inner = [a for a in args if a is not type(None)]
        if len(inner) == 1:
            return _convert(inner[0], value, name, section, where, key)
        for arm in inner:
            try:
                return _convert(arm, value, name, section, where, key)
            except SettingsError:
                continue
    elif origin is Literal:
        if value in args and not isinstance(value, bool):
            return value
        raise SettingsError(f"{where}: {key}: {_show(value)} is none of {', '.join(map(str, args))}")
    elif origin is tuple and isinstance(value, list):
        return tuple(_convert(args[0], v, name, f"{section}[{i}]", where, key) for i, v in enumerate(value))
    elif origin is dict and isinstance(value, Mapping):
        return {
            _convert(args[0], k, name, section, where, key): _convert(args[1], v, name, f"{section}.{k}", where, key)
            for k, v in value.items()
        }
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif hint is Path and isinstance(value, str):
        return Path(value)
    elif isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise SettingsError(f"{where}: {key}: expected {_name(hint)}, found {_show(value)}")


def _number(value: float) -> str:
    return f"{value}" if isinstance(value, int) else f"{value:.10g}"


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def _show(value: object) -> str:
    text = without_password(repr(value))
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
