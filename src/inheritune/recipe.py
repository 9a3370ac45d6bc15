"""Recipes: found, read, overridden by flags, checked, dumped.

Every mistake is one line: where, key, value, what is allowed.

The dataclasses of `config` are the only source of keys, types, defaults and help; jsonargparse reads them. Its errors
are caught and reworded here. No torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import typing
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings
from jsonargparse.typing import register_type

from inheritune.config import DataConfig, Recipe, SourceConfig, TokenCount
from inheritune.errors import Refused, nearest
from inheritune.recipe_errors import dataclass_in, place, reworded, words
from inheritune.recipe_yaml import parse_yaml
from inheritune.rules import impossible

Config = TypeVar("Config")


def packaged_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("inheritune") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file or a packaged recipe's name, override it by flags, and check it.

    Args:
        recipe: a path to a YAML file, or a packaged name such as `demo`. A file of that name goes first.
        overrides: flags as on the command line, such as `["--data.passes", "4"]`.

    Raises:
        Refused: no such recipe, or anything wrong in it; one line.
    """
    values, where = read_recipe(recipe)
    return parse(build_parser(Recipe), Recipe, overrides, values, where)[0]


def read_recipe(recipe: str) -> tuple[dict[str, Any], str]:
    """A recipe's keys and values as YAML gives them, and what to call it in errors."""
    text, where = _read(recipe)
    return parse_yaml(text, where), where


def parse(
    parser: ArgumentParser,
    kind: type[Config],
    flags: Sequence[str],
    values: dict[str, Any],
    where: str,
    *,
    complete: bool = True,
) -> tuple[Config, Namespace]:
    """Turn a mapping and flags into a config dataclass, and check it.

    Args:
        parser: of `build_parser`; it may have further arguments.
        kind: the dataclass.
        flags: what the command line gave; they override `values`.
        values: keys and values as YAML gave them.
        where: what to name in errors: the file.
        complete: whether `values` are all there is. If not, flags are only read: what they make possible or impossible
            depends on the values to come.

    Returns:
        The config, and the parser's whole namespace (for the further arguments).

    Raises:
        Refused: unknown key, wrong type or impossible value.
    """
    if any(flag.split("=")[0] == "--config" for flag in flags):
        raise Refused("--config: unknown flag; a recipe is given by its name alone, other values by their own flags")
    if values:
        _check_keys(kind, values, where, "")
    _check_mapping_flags(kind, flags)
    try:
        text = yaml.safe_dump(_with_plain_sources(kind, values))
        namespace = parser.parse_args([*(["--config", text] if values else []), *_with_plain_source_flags(flags)])
        for key, annotation in _nulls(kind, namespace):
            raise Refused(f"{place(key, where, flags)}: {key} is null; allowed: {words(annotation)}")
        parsed = parser.instantiate(namespace)
    except (ArgumentError, ValueError, TypeError) as error:
        raise Refused(reworded(kind, str(error), where, values, flags)) from None
    config = kind(**{field.name: getattr(parsed, field.name) for field in dataclasses.fields(kind)})  # type: ignore[arg-type]
    for key, value, allowed in impossible(config) if complete else ():
        raise Refused(f"{place(key, where, flags)}: {key} is {value!r}; allowed: {allowed}")
    return config, namespace


def build_parser(kind: type[Any], prog: str | None = None, description: str | None = None) -> ArgumentParser:
    """A jsonargparse parser with one flag a key of the dataclass, nested ones dotted."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    register_type(TokenCount, serializer=int, deserializer=TokenCount, fail_already_registered=False)
    parser = ArgumentParser(
        exit_on_error=False, prog=prog, description=description, allow_abbrev=False, print_config=None
    )
    parser.add_argument("--config", action="config", help=argparse.SUPPRESS)  # how `parse` hands the file's values on
    parser.add_class_arguments(kind)
    return parser


def as_dict(config: Any) -> dict[str, Any]:
    """A config as plain values, in the order of its fields: what is dumped and compared."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return int(value) if isinstance(value, TokenCount) else value

    result = plain(config)
    assert isinstance(result, dict)
    return result


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML: every key, so that it repeats the run though defaults may change."""
    return yaml.safe_dump(as_dict(resolve_paths(recipe)), sort_keys=False, allow_unicode=True, width=120)


def resolve_paths(recipe: Recipe) -> Recipe:
    """Local paths made absolute, so that the dumped recipe works from any directory."""

    def absolute(path: str | None) -> str | None:
        if path is None or path in ("python-source", "reference") or path.startswith(("hub:", "packaged:")):
            return path
        path = os.path.expanduser(path)
        is_pattern = any(character in path for character in "*?[")
        # os.path's word, since pathlib's raises for a name that is too long
        return str(Path(path).absolute()) if is_pattern or os.path.exists(path) else path

    def source(config: SourceConfig) -> SourceConfig:
        return dataclasses.replace(config, path=absolute(config.path) or config.path)

    data = dataclasses.replace(
        recipe.data,
        sources=[source(item) for item in recipe.data.sources],
        validation_sets={name: source(item) for name, item in recipe.data.validation_sets.items()},
        exclude_seen=absolute(recipe.data.exclude_seen),
        prepared=absolute(recipe.data.prepared),
    )
    architecture = recipe.architecture
    if architecture is not None:
        architecture = dataclasses.replace(architecture, tokenizer=absolute(architecture.tokenizer))
    compare = recipe.compare
    if compare is not None:
        compare = dataclasses.replace(compare, prepared=absolute(compare.prepared))
    evaluate = recipe.evaluate
    if evaluate is not None:
        evaluate = dataclasses.replace(evaluate, datasets=absolute(evaluate.datasets))
    return dataclasses.replace(
        recipe,
        reference=absolute(recipe.reference),
        architecture=architecture,
        data=data,
        compare=compare,
        evaluate=evaluate,
    )


def first_difference(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> tuple[str, Any, Any] | None:
    """The first key, dotted, at which two plain configs differ, with both values; None where they agree."""
    for key in [*one, *(key for key in other if key not in one)]:
        left, right = one.get(key), other.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            found = first_difference(left, right, f"{prefix}{key}.")
            if found is not None:
                return found
        elif left != right:
            return f"{prefix}{key}", left, right
    return None


def _read(recipe: str) -> tuple[str, str]:
    """A recipe's text and what to call it in errors."""
    path = Path(recipe)
    if os.path.isdir(recipe) and recipe not in packaged_recipes():  # pathlib's raises for a name that is too long
        raise Refused(f"{recipe}: a directory; a recipe is a YAML file or one of: {', '.join(packaged_recipes())}")
    if os.path.isfile(recipe):
        try:
            return path.read_text(encoding="utf-8"), recipe
        except (UnicodeDecodeError, OSError) as error:
            raise Refused(f"{recipe}: cannot be read as UTF-8 text ({error})") from None
    names = packaged_recipes()
    if recipe in names:
        return (resources.files("inheritune") / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8"), recipe
    hint = nearest(recipe, names)
    raise Refused(f"{recipe}: no such file, and no packaged recipe of that name{hint}; packaged: {', '.join(names)}")


def _check_keys(kind: type[Any], values: Any, where: str, prefix: str) -> None:
    """Refuse keys that the dataclass does not have, at any depth, naming the nearest that it has."""
    if not isinstance(values, dict):
        allowed = f"a mapping of {', '.join(typing.get_type_hints(kind))}"
        raise Refused(f"{where}: {prefix.rstrip('.')} is {values!r}; allowed: {allowed}")
    hints = typing.get_type_hints(kind)
    for key, value in values.items():
        if key not in hints:
            message = f"{where}: unknown key '{prefix}{key}'{nearest(str(key), list(hints))}"
            raise Refused(f"{message}; allowed: {', '.join(hints)}")
        inner, container = dataclass_in(hints[key]), typing.get_origin(hints[key])
        if inner is None or value is None:
            continue
        if container is list and isinstance(value, list):
            items = [(f"{prefix}{key}[{index}].", item) for index, item in enumerate(value)]
        elif container is dict and isinstance(value, dict):
            _check_names(value, where, f"{prefix}{key}")
            items = [(f"{prefix}{key}.{name}.", item) for name, item in value.items()]
        elif container in (list, dict):
            continue  # a wrong type: jsonargparse says so
        else:
            items = [(f"{prefix}{key}.", value)]
        for inner_prefix, item in items:
            if not (inner is SourceConfig and isinstance(item, str)):  # a source may be its path alone
                _check_keys(inner, item, where, inner_prefix)
    for field in dataclasses.fields(kind):
        if (
            field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
            and field.name not in values
        ):
            raise Refused(f"{where}: {prefix.rstrip('.')} lacks '{field.name}' (allowed: {words(hints[field.name])})")


def _check_mapping_flags(kind: type[Any], flags: Sequence[str]) -> None:
    """Refuse unknown keys after a flag's dot, and within the mapping that it gives.

    Of a mapping without values jsonargparse takes no notice; of one that may be null it names a class of its own.
    """
    for index, flag in enumerate(flags):
        name, equals, value = flag.partition("=")
        if not name.startswith("--") or (not equals and index + 1 >= len(flags)):
            continue
        inner: type[Any] | None = kind
        path = name.removeprefix("--").split(".")
        for depth, key in enumerate(path):
            known = typing.get_type_hints(inner) if inner is not None else {}
            if depth and inner is not None and key not in known:
                hint = nearest(".".join(path), [".".join([*path[:depth], one]) for one in known])
                raise Refused(f"{name}: unknown key{hint}; {'.'.join(path[:depth])} has {', '.join(known)}")
            annotation = known.get(key)
            listed = typing.get_origin(annotation) in (list, dict)
            inner = dataclass_in(annotation) if annotation is not None and not listed else None
        if inner is None:
            continue
        try:
            given = yaml.safe_load(value if equals else flags[index + 1])
        except yaml.YAMLError:
            continue  # jsonargparse says so
        for key in given if isinstance(given, dict) else ():
            if key not in typing.get_type_hints(inner):
                known = typing.get_type_hints(inner)
                hint = nearest(str(key), list(known))
                raise Refused(f"{name}: unknown key '{key}'{hint}; allowed: {', '.join(known)}")


def _check_names(values: dict[Any, Any], where: str, key: str) -> None:
    """Refuse names that YAML takes for something else: a number, a date."""
    for name in values:
        if not isinstance(name, str):
            raise Refused(f"{where}: {key} has the name {name!r}, which is no text; put it in quotes")


def _with_plain_sources(kind: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """A source may be written as its path alone: `sources: [books/*.jsonl]`."""
    values = dict(values)
    if kind is Recipe and isinstance(values.get("data"), dict):
        values["data"] = _with_plain_sources(DataConfig, values["data"])
    if kind is DataConfig:
        if isinstance(values.get("sources"), list):
            values["sources"] = [{"path": item} if isinstance(item, str) else item for item in values["sources"]]
        if isinstance(values.get("validation_sets"), dict):
            sets = values["validation_sets"]
            values["validation_sets"] = {k: {"path": v} if isinstance(v, str) else v for k, v in sets.items()}
    return values


def _with_plain_source_flags(flags: Sequence[str]) -> list[str]:
    """The same on the command line: `--data.sources a.txt` and `--data.sources '[a.txt, b.txt]'`.

    What an item leaves out is written out, because jsonargparse would take it from the recipe's source at that place.
    """
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(SourceConfig)
        if field.default is not dataclasses.MISSING
    }

    def whole(item: Any) -> Any:
        item = {"path": item} if isinstance(item, str) else item
        return defaults | item if isinstance(item, dict) else item

    found = list(flags)
    for index, flag in enumerate(flags):
        name, equals, value = flag.partition("=")
        kind = name.removeprefix("--").removeprefix("data.")
        if kind not in ("sources", "validation_sets") or (not equals and index + 1 >= len(flags)):
            continue
        try:
            items = yaml.safe_load(value if equals else flags[index + 1])
        except yaml.YAMLError:
            continue  # jsonargparse says so
        written: str | None = None
        if kind == "sources" and items and isinstance(items, str | list):
            written = yaml.safe_dump([whole(item) for item in ([items] if isinstance(items, str) else items)])
        elif kind == "validation_sets" and isinstance(items, dict):
            written = yaml.safe_dump({key: whole(item) for key, item in items.items()})
        if written is not None:
            found[index if equals else index + 1] = f"{name}={written}" if equals else written
    return found


def _nulls(kind: type[Any], values: Any, prefix: str = "") -> typing.Iterator[tuple[str, Any]]:
    """(dotted key, type) of each value that is null where it may not be: jsonargparse lets null pass for anything."""
    for name, annotation in typing.get_type_hints(kind).items():
        value = values.get(name)
        key = f"{prefix}{name}"
        inner = dataclass_in(annotation)
        if value is None:
            if type(None) not in typing.get_args(annotation):
                yield key, annotation
        elif inner is not None and isinstance(value, list):
            for index, item in enumerate(value):
                yield from _nulls(inner, item, f"{key}[{index}].")
        elif inner is not None and typing.get_origin(annotation) is dict:
            for part, item in value.items():
                yield from _nulls(inner, item, f"{key}.{part}.")
        elif inner is not None:
            yield from _nulls(inner, value, f"{key}.")
