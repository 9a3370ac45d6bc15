"""What the measurements come to: each peer's figures, ratios turn by turn, a table."""

from __future__ import annotations

import statistics
from typing import Any

from training.peers import OURS

Record = dict[str, Any]

SAME_LOSS = {"float32": 1e-3, "bfloat16": 1e-2}
"""How far the first step's loss may be from ours, in nats a token; further off, it was other work."""


def tokens_per_second(measurement: Record, tokens_a_step: int) -> float:
    """The median over the timed steps."""
    return float(statistics.median(tokens_a_step / seconds for seconds in measurement["step_seconds"]))


def summarise(record: Record) -> list[Record]:
    """One entry a shape and dtype in which ours and a peer were measured; see `_entry`."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for measurement in record["measurements"]:
        if "failed" not in measurement:
            groups.setdefault((measurement["shape"], measurement["dtype"]), []).append(measurement)
    return [_entry(record, shape, dtype, found) for (shape, dtype), found in groups.items()]


def _entry(record: Record, shape: str, dtype: str, found: list[Record]) -> Record:
    """Each peer's medians over the turns, and ours over each peer, turn by turn, with the best peer's."""
    matmul = {
        one["turn"]: one["flops_per_second"]
        for one in record["matmul"]
        if one["shape"] == shape and one["dtype"] == dtype and "failed" not in one
    }
    flops = record["shapes"][shape]["flops_per_token"]
    turns = {
        name: {one["turn"]: one for one in found if one["peer"] == name} for name in {one["peer"] for one in found}
    }
    peers: dict[str, Record] = {}
    for name, by_turn in sorted(turns.items(), key=lambda item: list(record["peers"]).index(item[0])):
        measured = list(by_turn.values())
        speeds = {turn: one["tokens_per_second"] for turn, one in by_turn.items()}
        peers[name] = {
            "variant": measured[-1]["variant"],
            "turns": len(measured),
            "tokens_per_second": _spread(list(speeds.values())),
            "mfu": _spread([flops * speed / matmul[turn] for turn, speed in speeds.items() if turn in matmul]),
            "memory_bytes": max(one["memory_bytes"] for one in measured),
            "steady_memory_bytes": max(one["steady_memory_bytes"] for one in measured),
            "first_step_seconds": [one["first_step_seconds"] for one in measured],
            "first_loss": measured[-1]["losses"][0],
            "loss_difference": _difference(turns.get(OURS, {}), by_turn),
        }
        if name != OURS and turns.get(OURS, {}).keys() & by_turn.keys():
            both = sorted(turns[OURS].keys() & by_turn.keys())
            peers[name]["ratio"] = _spread([turns[OURS][turn]["tokens_per_second"] / speeds[turn] for turn in both])
    rivals = {name: one for name, one in peers.items() if "ratio" in one and one["loss_difference"] <= SAME_LOSS[dtype]}
    entry: Record = {"shape": shape, "dtype": dtype, "peers": peers, "matmul": _spread(list(matmul.values()))}
    if rivals:
        entry["best_peer"] = max(rivals, key=lambda name: rivals[name]["tokens_per_second"]["median"])
        entry["ratio_to_best_peer"] = rivals[entry["best_peer"]]["ratio"]
    return entry


def _spread(values: list[float]) -> Record | None:
    """Median, least and most; None of nothing."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)} if values else None


def _difference(ours: dict[int, Record], theirs: dict[int, Record]) -> float | None:
    """The largest difference of the first step's losses from ours, over the turns; None without ours."""
    both = ours.keys() & theirs.keys()
    return max((abs(ours[turn]["losses"][0] - theirs[turn]["losses"][0]) for turn in both), default=None)


def overall(summary: list[Record]) -> float | None:
    """The smallest ratio to the best peer; None if none was measured."""
    return min((one["ratio_to_best_peer"]["median"] for one in summary if "best_peer" in one), default=None)


def table(record: Record, summary: list[Record]) -> str:
    """The summary as Markdown, a table a shape and dtype."""
    lines: list[str] = []
    for entry in summary:
        facts = record["shapes"][entry["shape"]]
        rate = f"{entry['matmul']['median'] / 1e9:,.0f} GFLOP/s" if entry["matmul"] else "not measured"
        lines += [
            "",
            f"**{entry['shape']}, {entry['dtype']}**: {facts['parameters'] / 1e6:.1f}M parameters, "
            f"{facts['batch_sequences']} sequences of {facts['sequence_length']} a step; matrix products {rate}.",
            "",
            "| | settings | turns | tokens/s (range) | MFU | ours / it (range) | peak memory, GB: all, steps alone "
            "| first step, s: each turn | first loss |",
            "|---|---|---|---|---|---|---|---|---|",
            *(_row(name, one, SAME_LOSS[entry["dtype"]]) for name, one in entry["peers"].items()),
        ]
        lines += [f"\n{name} left out: {why}." for name, why in facts["left_out"].items()]
    for one in [*record["tuning"], *record["measurements"]]:
        if "failed" in one:
            lines.append(f"\nfailed: {one['peer']} ({one['variant']}), {one['shape']}, {one['dtype']}: {one['failed']}")
    return "\n".join(lines).lstrip("\n")


def _row(name: str, one: Record, allowed: float) -> str:
    speed, ratio = one["tokens_per_second"], one.get("ratio")
    mfu = f"{one['mfu']['median']:.0%}" if one["mfu"] else ""
    versus = f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else ""
    loss = f"{one['first_loss']:.5f}"
    if ratio and one["loss_difference"] > allowed:
        loss += f" (not the same work: {one['loss_difference']:.0e} off ours)"
    return (
        f"| {name} | {one['variant']} | {one['turns']} "
        f"| {speed['median']:,.0f} ({speed['low']:,.0f} to {speed['high']:,.0f}) | {mfu} | {versus} "
        f"| {one['memory_bytes'] / 1e9:.2f}, {one['steady_memory_bytes'] / 1e9:.2f} "
        f"| {', '.join(f'{seconds:.0f}' for seconds in one['first_step_seconds'])} | {loss} |"
    )
