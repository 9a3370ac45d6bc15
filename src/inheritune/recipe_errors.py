"""What is wrong with a recipe or a flag, in one line: where, key, value, what is allowed. No torch.

jsonargparse says it in several lines, in words of its own; what it names is looked up in the dataclasses.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Sequence
from typing import Any

from inheritune.config import TokenCount
from inheritune.errors import nearest


def dataclass_in(annotation: Any) -> type[Any] | None:
    """The dataclass that an annotation such as `X`, `X | None`, `list[X]` or `dict[str, X]` speaks of."""
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return annotation
    for argument in typing.get_args(annotation):
        found = dataclass_in(argument)
        if found is not None:
            return found
    return None


def place(key: str, where: str, overrides: Sequence[str]) -> str:
    """Where a key's value came from: the flag that gave it, or what it lies in, else the file.

    Args:
        key: dotted.
        where: what to call the file.
        overrides: what the command line gave.
    """
    for flag in overrides:
        name = flag.split("=")[0]
        if name.startswith("--") and re.match(rf"{re.escape(name[2:])}(?![\w])", key):
            return name
    return where


def _all_keys(kind: type[Any], prefix: str = "") -> list[str]:
    hints = typing.get_type_hints(kind)
    keys: list[str] = []
    for name, annotation in hints.items():
        keys.append(f"{prefix}{name}")
        if dataclasses.is_dataclass(annotation) or (
            typing.get_origin(annotation) is types.UnionType and dataclass_in(annotation) is not None
        ):
            inner = dataclass_in(annotation)
            assert inner is not None
            keys += _all_keys(inner, f"{prefix}{name}.")
    return keys


def _allowed_type(kind: type[Any], key: str) -> str:
    """What values a key takes, in words."""
    annotation: Any = kind
    for part in key.split("."):
        inner = dataclass_in(annotation)
        if inner is None:
            return "see --help"
        annotation = typing.get_type_hints(inner).get(part.split("[")[0])
    return words(annotation) if annotation is not None else "see --help"


def words(annotation: Any) -> str:
    """What values an annotation allows, as one would say it."""
    names = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        type(None): "null",
        TokenCount: "a token count such as 131072, 100M or 1B",
    }
    if annotation in names:
        return names[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(str(argument) for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(words(argument) for argument in arguments)
    if origin is list:
        return f"a list ({words(arguments[0])} an item)"
    if origin is dict:
        return "a mapping"
    return (
        f"a mapping of {', '.join(typing.get_type_hints(annotation))}"
        if dataclasses.is_dataclass(annotation)
        else str(annotation)
    )


def reworded(kind: type[Any], message: str, where: str, values: dict[str, Any], overrides: Sequence[str]) -> str:
    """jsonargparse's error, of several lines, in one of ours.

    Args:
        kind: the dataclass that was parsed.
        message: the error's.
        where: what to name: the file.
        values: keys and values as YAML gave them.
        overrides: what the command line gave.
    """
    unknown = re.search(r"unrecognized arguments: (\S+)|does not accept option '([^']+)'", message, re.IGNORECASE)
    if unknown:
        word = unknown.group(1) or unknown.group(2)
        if unknown.group(1) and not word.startswith("-"):
            return f"{word}: one argument too many; see --help"
        flag = word.lstrip("-").split("=")[0]
        full = next((item.split("=")[0].lstrip("-") for item in overrides if item.split("=")[0].endswith(flag)), flag)
        return f"--{full}: unknown flag{nearest(full, _all_keys(kind))}"
    required = re.search(r"arguments are required: (\w+)", message)
    if required:
        return f"{where}: {required.group(1).upper()} is missing; see --help"
    missing_value = re.search(r"argument --([\w.]+).*expected (?:one|at least one) argument", message, re.DOTALL)
    if missing_value:
        return f"--{missing_value.group(1)}: needs a value; allowed: {_allowed_type(kind, missing_value.group(1))}"
    keys = re.findall(r'[Kk]ey "([^"]+)"', message)
    if not keys:
        return f"{where}: {' '.join(message.split())}"
    # The outermost key is whole; an error inside a list or a mapping names the inner key by itself.
    key = keys[0] if keys[-1].startswith(keys[0]) else f"{keys[0]}.{keys[-1]}"
    got = re.findall(r"(?:Got value|Given value): (.*)", message)
    value = _given(key, values, overrides, got[-1].strip() if got else None)
    allowed = _allowed_type(kind, key)
    if allowed.startswith("a list") and isinstance(value, str) and re.fullmatch(r"[^\[\]{}]+", value):
        allowed += f", written [{value}]"
    return f"{place(key, where, overrides)}: {key} is {value!r}; allowed: {allowed}"


def _given(key: str, values: dict[str, Any], overrides: Sequence[str], fallback: Any) -> Any:
    """The value that a flag or the file gave for a key, as it was written."""
    for index in range(len(overrides) - 1, -1, -1):  # of a flag given twice the last one counts
        name, equals, value = overrides[index].partition("=")
        if name == f"--{key}":
            return value if equals else (overrides[index + 1] if index + 1 < len(overrides) else fallback)
    found: Any = values
    for part in key.split("."):
        if not isinstance(found, dict) or part not in found:
            return fallback
        found = found[part]
    return found
