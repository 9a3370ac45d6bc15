"""A recipe's YAML as plain values, or one line that says what is wrong with it. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from inheritune.errors import Refused

_MOST_NODES = 100_000
"""Values in a recipe, every alias counted as all that it stands for."""


class _Loader(yaml.SafeLoader):
    """YAML of plain values, without what PyYAML lets pass: a key that stands twice, aliases that explode."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node, with what it holds counted; an alias counts as all that it stands for."""
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        inner = [] if node is None or isinstance(node, yaml.ScalarNode) else node.value
        parts = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
        size = self._sizes.setdefault(id(node), 1 + sum(self._sizes.get(id(part), 1) for part in parts))
        if size > _MOST_NODES:
            raise yaml.constructor.ConstructorError(None, None, f"more than {_MOST_NODES:,} values", mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        """A mapping, each key of which stands once."""
        node = super().compose_mapping_node(anchor)
        found: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in found:
                problem = f"key {key.value!r} stands twice in one mapping"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            found.add(key.value if isinstance(key, yaml.ScalarNode) else "")
        return node


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """The mapping that a text holds; empty where it holds nothing.

    Args:
        text: of the recipe.
        where: what to name in errors: the file.

    Raises:
        Refused: it is no YAML, or no mapping.
    """
    try:
        values = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date, say
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise Refused(f"{where}{line}: not valid YAML ({reason})") from None
    except RecursionError:
        raise Refused(f"{where}: not a recipe: lists or mappings nested too deeply") from None
    if values is None:
        return {}
    for word in _words(values):
        if not _encodable(word):
            raise Refused(
                f"{where}: {ascii(word)[:80]} holds half a character (a surrogate), which no text has; mend it"
            )
    if not isinstance(values, dict):
        raise Refused(f"{where}: a recipe is a mapping of keys to values, this is a {type(values).__name__}")
    return values


def _words(values: Any) -> Iterator[str]:
    """Every string in a recipe, keys included."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict):
        for key, value in values.items():
            yield from _words(key)
            yield from _words(value)
    elif isinstance(values, list):
        for value in values:
            yield from _words(value)


def _encodable(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True
