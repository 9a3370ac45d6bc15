"""The account of the surgery as the page shows it: layers, init, proof, a row a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inheritune.report.numbers import NOT_APPLICABLE, by_key, flat, number_of
from inheritune.report.table import dict_of

MOST_TENSORS = 1500
"""Rows of the account on a page."""
_MOST_MODULE_NAMES = 2
_MOST_IGNORED = 40


def indices(values: Any) -> str:
    """Layer indices with runs joined: 0–3, 7."""
    if not isinstance(values, list) or not values:
        return NOT_APPLICABLE
    runs: list[list[Any]] = []
    for value in values:
        if runs and isinstance(value, int) and value - 1 == runs[-1][-1]:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(f"{group[0]}–{group[-1]}" if len(group) > 1 else str(group[0]) for group in runs)


def _tensor(tensor: Mapping[str, Any]) -> dict[str, str]:
    """A row of the account; a source of the same name, the rule, is said so: names are long and pages narrow.

    Where the module's names for it are the file's own, nothing is said.
    """
    name, source, shape = by_key("", tensor.get("name")), by_key("", tensor.get("source")), tensor.get("shape")
    listed = tensor.get("module")
    module = [str(inside) for inside in listed] if isinstance(listed, list) else []
    more = f" and {len(module) - _MOST_MODULE_NAMES} more" if len(module) > _MOST_MODULE_NAMES else ""
    return {
        "name": name,
        "module": "" if module == [name] else ", ".join(module[:_MOST_MODULE_NAMES]) + more,
        "status": str(tensor.get("status", "unknown")),
        "source": "same name" if source == name else source,
        "shape": " × ".join(map(str, shape)) if isinstance(shape, list) and shape else NOT_APPLICABLE,
        "dtype": by_key("", tensor.get("dtype")),
        "sha256": by_key("", tensor.get("sha256"))[:12],
    }


def _compared(record: Any) -> str:
    """A comparison of the proof, one of its hidden states or of all its blocks, in words."""
    records = [dict_of(item) for item in record] if isinstance(record, list) else [dict_of(record)]
    if not any(records):
        return "does not apply"
    equal = sum(item.get("equal") is True for item in records)
    differences = [number_of(item.get("max_abs_difference")) for item in records]
    largest = max((value for value in differences if value is not None), default=None)
    outcome = ("equal" if equal else "differs") if len(records) == 1 else f"{equal} of {len(records)} equal"
    return f"{outcome}, largest difference {NOT_APPLICABLE if largest is None else f'{largest:.4g}'}"


def _proof(proof: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The proof as (name, text) pairs, the blocks' comparisons summed up."""
    compared = ("hidden_state_before_final_norm", "logits", "blocks")
    return flat({key: _compared(value) if key in compared else value for key, value in proof.items()})


def _layers(inheritance: Mapping[str, Any]) -> str:
    """The layers kept, with the user's word for them where it is another, and the init: 0–11, 25 (first:12+last:1).

    Of a reference that was quantised also in what.
    """
    kept, word, init = (inheritance.get(key) for key in ("layers_kept", "layers_word", "init"))
    text = indices(kept)
    if word is not None and str(word).replace("-", "–").replace(",", ", ") != text:
        text += f" ({word})"
    text = f"{text}, init {init}" if init is not None else text
    kind = inheritance.get("dequantised_from")
    return f"{text}; the reference dequantised from {kind}" if isinstance(kind, str) else text


def account_of(inheritance: Mapping[str, Any], most: int = MOST_TENSORS) -> dict[str, Any]:
    """The account of the surgery: how many tensors are inherited, tied or fresh, and a row for each.

    Args:
        inheritance: `inheritance.json`'s record.
        most: rows that are shown.
    """
    listed = inheritance.get("tensors")
    tensors = [tensor for tensor in listed if isinstance(tensor, dict)] if isinstance(listed, list) else []
    statuses = [str(tensor.get("status", "unknown")) for tensor in tensors]
    rows = [_tensor(tensor) for tensor in tensors[:most]]
    ignored = inheritance.get("ignored")
    ignored = [str(name) for name in ignored] if isinstance(ignored, list) else []
    return {
        "layers": _layers(inheritance),
        "counts": [(status, statuses.count(status)) for status in dict.fromkeys(statuses)],
        "rows": rows,
        "modules": any(row["module"] for row in rows),
        "left_out": max(0, len(tensors) - most),
        "ignored": ignored[:_MOST_IGNORED],
        "ignored_left_out": max(0, len(ignored) - _MOST_IGNORED),
        "proof": _proof(dict_of(inheritance.get("proof"))),
    }
