"""A plan for the terminal: parameters by part, what each training takes, memory, disk; and its gist in three lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.text import Text

from inheritune.errors import printable
from inheritune.report.numbers import NOT_APPLICABLE, count, duration, flops, significant
from inheritune.report.terminal_table import Column, table

Record = Mapping[str, Any]

_PART_HEADINGS = {"embeddings": "Embeddings", "attention": "Attention", "mlp": "MLP", "norms": "Norms", "head": "Head"}
_GIB, _GB = 2**30, 1e9


def render_plan(plan: Record, *, width: int) -> Group:
    """A plan, a title above each table.

    Args:
        plan: as `pipeline.make_plan` gives it.
        width: columns to fit.
    """
    lines = [
        *_head(plan),
        *_models(plan, width),
        *_trainings(plan, width),
        *_memory(plan, width),
        *_foot(plan),
    ]
    return Group(*lines)


def three_lines(plan: Record) -> list[str]:
    """The gist of a plan: what is trained, what that takes, and what it needs to be there.

    Args:
        plan: as `pipeline.make_plan` gives it, quick or not.
    """
    return [_what(plan), _takes(plan), _needs(plan)]


def _what(plan: Record) -> str:
    """The models and their tokens."""
    first, data, growth = _target(plan), plan["data"], plan["growth"]
    if growth is not None:
        depths = growth["depths"]
        layers = f"{len(depths)} rounds of {depths[0]} to {depths[-1]} layers" if len(depths) > 1 else "one round"
        what = f"{layers}, {count(_round(plan, -1)['parameters'])} parameters at most"
    else:
        reference = plan["reference"]
        of = f" of {reference['layers']}" if reference is not None else ""
        what = f"{first['layers']}{of} layers, {count(first['parameters'])} parameters"
    others = len(plan["models"]) - (len(growth["depths"]) if growth is not None else 1)
    beside = f", and {others} other training{'s' if others > 1 else ''}" if others else ""
    return (
        f"Plan: {what}; {count(first['tokens'])} tokens in {first['steps']:,} steps of {data['step_tokens']:,}{beside}."
    )


def _takes(plan: Record) -> str:
    """FLOPs and hours of everything."""
    device, growth = plan["device"], plan["growth"]
    spent = plan["total"] if growth is None else growth["expected"]
    used = device["utilisation"]
    expected = "" if growth is None else f" expected ({_range_of(growth)})"
    beside = f", and {flops(spent['other_flops'])} beside (validation and the like)" if spent["other_flops"] else ""
    return (
        f"  {flops(spent['training_flops'])} FLOPs{expected}{beside} on {_devices(device)}: at least "
        f"{_hours(spent['floor_hours'])} at the peak, with all else {_hours(spent['hours']['likely'])} at "
        f"{used['likely']:.0%} of it ({_hours(spent['hours']['fastest'])} to {_hours(spent['hours']['slowest'])})."
    )


def _needs(plan: Record) -> str:
    """Memory and disk."""
    device = plan["device"]
    memory = plan["memory"]
    size = plan["state_bytes"] if memory is None else memory["total_bytes"]
    what = " for weights, gradients and moments, activations besides" if memory is None else " at the peak of a step"
    needed = f"{size / _GIB:.3g} of {device['memory_bytes'] / _GIB:.3g} GiB{what}"
    return f"  Memory: {needed}. Disk: up to {plan['disk']['total_bytes'] / _GB:.3g} GB."


def _target(plan: Record) -> Record:
    """The target, or the first round."""
    named = [one for one in plan["models"] if one["name"] == "target" or one["name"].startswith("round ")]
    assert isinstance(named[0], Mapping)
    return named[0]


def _round(plan: Record, index: int) -> Record:
    rounds = [one for one in plan["models"] if one["name"].startswith("round ")]
    found = rounds[index]
    assert isinstance(found, Mapping)
    return found


def _range_of(growth: Record) -> str:
    """What a growth takes if its first and if its last round matches."""
    least, most = growth["first_matches"]["training_flops"], growth["last_matches"]["training_flops"]
    return f"{flops(least)} to {flops(most)}"


def _devices(device: Record) -> str:
    return f"{device['count']} {device['title']}" if device["name"] != "measured" else str(device["title"])


def _hours(hours: float) -> str:
    return duration(3600 * hours)


def _head(plan: Record) -> Iterator[Text]:
    """What is planned, on what, and what is taken for granted."""
    device, data, used = plan["device"], plan["data"], plan["device"]["utilisation"]
    watts = f", {device['watts']:.4g} W" if device["watts"] is not None else ""
    yield Text(f"Plan of {plan['recipe']} on {_devices(device)}", style="bold")
    yield Text(
        f"Each: {device['peak_flops'] / 1e12:.4g} TFLOP/s dense in {device['dtype']}, "
        f"{device['memory_bytes'] / _GIB:.4g} GiB{watts} ({device['source']}). MFU {used['likely']:.2g}, "
        f"{used['low']:.2g} to {used['high']:.2g} ({used['source']})."
    )
    tokens = f"{count(data['tokens'])} tokens, {data['passes']} pass{'es' if data['passes'] > 1 else ''}"
    if data["tokens"] is None:
        tokens = "As many tokens as the steps take"
    yield Text(
        f"{tokens}, in sequences of {data['sequence_length']:,}, {data['step_tokens']:,} tokens a step, "
        f"{data['steps']:,} steps; at most {count(data['held_out_tokens'])} held-out tokens measured every "
        f"{data['validate_every_steps']:,}."
    )
    if plan["reference"] is not None:
        named = plan["reference"]
        yield Text(printable(f"Reference: {named['source']}, its config from {named['config_from']}."))
    yield Text()


def _models(plan: Record, width: int) -> Iterator[Text]:
    """Parameters by part."""
    untrained = [plan["reference"] | {"name": "reference"}] if plan["reference"] is not None else []
    rows: Sequence[Record] = [*untrained, *plan["models"]]
    parts = [name for name in (*_PART_HEADINGS, "other") if any(name in row["parts"] for row in rows)]
    yield Text("Parameters", style="bold")
    yield from table(
        [
            Column("", [row["name"] for row in rows], words=True),
            Column("Layers", [str(row["layers"]) for row in rows]),
            Column("All", [count(row["parameters"]) for row in rows]),
            *(
                Column(
                    _PART_HEADINGS.get(name, "Other"),
                    [count(row["parts"][name]) if name in row["parts"] else NOT_APPLICABLE for row in rows],
                )
                for name in parts
            ),
        ],
        width,
    )
    yield Text()


def _trainings(plan: Record, width: int) -> Iterator[Text]:
    """What each training takes, and all of them."""
    rows: list[tuple[str, Record, Record]] = [(one["name"], one, one) for one in plan["models"]]
    growth = plan["growth"]
    if growth is None:
        rows += [("all", plan["total"], {})] if len(rows) > 1 else []
    else:
        named = {"first_matches": "all, if the first round matches", "expected": "all, expected",
                 "last_matches": "all, if the last matches"}  # fmt: skip
        rows += [(title, growth[key], {}) for key, title in named.items()]
    prices = plan["device"]["price"] is not None
    yield Text("Trainings", style="bold")
    yield from table(
        [
            Column("", [name for name, *_ in rows], words=True),
            Column("Steps", [f"{known['steps']:,}" if known else "" for *_, known in rows]),
            Column("Tokens", [count(known["tokens"] * known["learning_rates"]) if known else "" for *_, known in rows]),
            Column("FLOPs", [flops(spent["training_flops"]) for _, spent, _ in rows]),
            Column("Other", [flops(spent["other_flops"]) if spent["other_flops"] else "" for _, spent, _ in rows]),
            Column("Floor", [_hours(spent["floor_hours"]) for _, spent, _ in rows]),
            Column("Likely", [_hours(spent["hours"]["likely"]) for _, spent, _ in rows]),
            Column("Range", [_range(spent) for _, spent, _ in rows]),
            Column("kWh", [significant(spent["kilowatt_hours"]) for _, spent, _ in rows]),
            *([Column("Price", [significant(spent["money"]) for _, spent, _ in rows])] if prices else []),
        ],
        width,
        dim=[False] * len(plan["models"]),
    )
    yield Text(
        "Other FLOPs: validation, on as many held-out tokens as there may be at most, a teacher, what is recomputed; "
        "Likely and Range hold them, the floor does not.",
        style="dim",
    )
    if growth is not None:
        yield Text(f"Controls stand beside the deepest round. Expected: {growth['assumption']}.", style="dim")
    yield Text()


def _range(spent: Record) -> str:
    return f"{_hours(spent['hours']['fastest'])} to\n{_hours(spent['hours']['slowest'])}"


def _memory(plan: Record, width: int) -> Iterator[Text]:
    """A step's peak by part, and what follows from it."""
    memory = plan["memory"]
    if memory is None:
        return
    parts = memory["parts_bytes"]
    yield Text(f"Memory of each device at the peak of a step of {memory['model']}, GiB", style="bold")
    yield from table(
        [
            *(Column(name.capitalize(), [f"{size / _GIB:.2f}"]) for name, size in parts.items()),
            Column("All", [f"{memory['total_bytes'] / _GIB:.2f}"]),
            Column("Usable", [f"{memory['usable_bytes'] / _GIB:.2f}"]),
        ],
        width,
    )
    yield Text(_fits(memory))
    if memory["host_bytes"]:
        yield Text(f"The host needs {memory['host_bytes'] / _GIB:.2f} GiB for moments.")
    yield Text()


def _fits(memory: Record) -> str:
    """Whether it fits, and what would make it fit."""
    most = memory["largest_micro_batch_sequences"]
    at = f"micro-batches of {memory['micro_batch_sequences']}"
    shared = f", the state shared by {memory['shared_by']} devices" if memory["shared_by"] > 1 else ""
    if memory["fits"]:
        return f"It fits with {at}{shared}; at most {most} would."
    settings = [_setting(one) for one in memory["would_fit"]]
    mends = f"It would with {'; or with '.join(settings)}." if settings else "No setting makes it fit."
    return f"It does not fit with {at}{shared}. {mends}"


def _setting(mend: Record) -> str:
    """Settings as flags."""

    def shown(value: Any) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value)

    flags = [f"--train.{key} {shown(value)}" for key, value in mend["train"].items()]
    return " ".join([*([f"{mend['devices']} devices,"] if "devices" in mend else []), *flags])


def _foot(plan: Record) -> Iterator[Text]:
    """Disk, the claim, what was timed, and what is left out."""
    disk = plan["disk"]
    yield Text(
        f"Disk at most {disk['total_bytes'] / _GB:.3g} GB: shards {disk['shards_bytes'] / _GB:.3g}, checkpoints "
        f"{disk['checkpoints_bytes'] / _GB:.3g}, models {disk['models_bytes'] / _GB:.3g}; what is downloaded "
        "besides, and as much again as the shards while text is prepared."
    )
    if plan["step_seconds"] is not None:
        yield Text(f"A step of the target takes {plan['step_seconds']['median']:.3g} s here.")
    claim = plan["claim"]
    if claim is not None:
        yield Text(f"The claim of {claim['hours']:g} hours for the target {claim['verdict']}.")
    for note in plan["notes"]:
        yield Text(f"Note: {note}.")
    yield Text(f"Not counted: {plan['not_counted']}.", style="dim")
