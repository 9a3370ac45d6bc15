"""A run's ledger in sums: what each model took, and all of them with what came to nothing. No torch.

`ledger.json` has an entry a stage; that of a training holds its `Consumption`. What these sums are over: target,
controls, rounds (abandoned ones too), every learning rate tried, candidates of a probe, pilot, a reference that the run
trained itself; steps that a kill undid count as often as they were done. Trainings that are under way are read from
their own directories.

A measure that a record lacks (of an older version, or of a run that was cut short) is a gap: named with the stages that
lack it, and its sum is of the others, so that it is a lower bound; where all lack it there is no sum.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inheritune import consumption
from inheritune.consumption import Consumption
from inheritune.errors import Failed
from inheritune.run_directory import read_json, read_jsonl, read_object

Record = dict[str, Any]
TOTAL = "total"
"""The ledger's entry that is no stage: these sums."""
PILOT, PROBE, REFERENCE, TARGET, OTHER_DATA = "pilot", "probe", "reference", "target", "other-data"
_JOULES_A_KWH = 3.6e6
_STAGE = re.compile(r"train (?P<arm>.+?)(?: at (?P<rate>[^ ]+))?")


@dataclass(frozen=True)
class _Training:
    """One training's figures; None: not recorded."""

    stage: str
    state: str
    """`finished`, `abandoned`, `diverged` or `under way`."""
    trainings: int = 1
    """A probe's candidates together are one entry."""
    restarts: int | None = None
    steps: int | None = None
    tokens: int | None = None
    unique_tokens: int | None = None
    passes: float | None = None
    flops: float | None = None
    wall_seconds: float | None = None
    device_seconds: float | None = None
    possible_flops: float | None = None
    joules: float | None = None
    sources: tuple[str, ...] = ()
    peak_memory_bytes: int | None = None
    devices: tuple[str, ...] = ()
    lower_bounds: frozenset[str] = field(default_factory=frozenset)
    """Figures that are there, but of a part alone."""


def entries(run: Path) -> Record:
    """A run's ledger as it stands: by stage its entry; empty where nothing is over yet.

    Raises:
        Failed: it is damaged. What trainings took stands nowhere else, so that it cannot be made again.
    """
    mend = "restore it from a copy, or run the recipe into another --out"
    return read_object(run / "ledger.json", mend=mend) or {}


def total(run: Path, *, price_per_device_hour: float | None = None) -> Record:
    """The sums of a run directory's ledger.

    Args:
        run: the run directory; what it lacks, or cannot be read, is a gap.
        price_per_device_hour: of an hour of one device, in any currency.

    Returns:
        `arms`: by arm its sums; `training`: the sums of all arms; `other_seconds`: by stage the wall time of what is no
        training (preparation, surgery, measurement, evaluation); `wall_hours`: of everything; `gaps`: of `wall_hours`.

        Sums: `trainings`; `restarts`; `steps`, `tokens`, `flops` as often as they were done; `unique_tokens`; `passes`
        (of the arm's longest training; of all, tokens over unique tokens); `wall_hours`; `device_hours`, wall hours
        times devices; `mfu`, FLOPs over what the devices' peaks allow in the time in steps; `energy_kwh` with
        `energy_sources` (`nvml`, `rapl`, `estimated: ...`); `peak_memory_bytes` of a device; `devices`; `money`, where
        a price is given; `gaps`, by measure the stages that lack it.
    """
    ledger = _read(read_json, run / "ledger.json")
    ledger = {name: entry for name, entry in ledger.items() if name != TOTAL} if isinstance(ledger, dict) else {}
    by_arm: dict[str, list[_Training]] = {}
    for arm, training in [*_recorded(ledger, run), *_under_way(ledger, run)]:
        by_arm.setdefault(arm, []).append(training)
    final = _final_round(run)
    arms = {
        name: {"kind": _kind(name, final), "state": _state(found), **_sums(found, price_per_device_hour)}
        for name, found in by_arm.items()
    }
    sums = _sums([one for found in by_arm.values() for one in found], price_per_device_hour)
    unique, lacking = _unique(arms)
    sums |= {"unique_tokens": unique, "passes": sums["tokens"] / unique if sums["tokens"] and unique else None}
    sums["gaps"] |= {"unique_tokens": lacking} if lacking else {}
    other = dict(_other(ledger)) | _evaluation(run)
    walls = [sums["wall_hours"], *(None if seconds is None else seconds / 3600 for seconds in other.values())]
    without = [*sums["gaps"].get("wall_hours", []), *(name for name, seconds in other.items() if seconds is None)]
    known = [hours for hours in walls if hours is not None]
    return {
        "arms": arms,
        "training": sums,
        "other_seconds": other,
        "wall_hours": sum(known) if known else None,
        "gaps": {"wall_hours": without} if without else {},
    }


def _read(reader: Callable[[Path], Any], path: Path) -> Any:
    """A record; None where it is absent or cannot be read."""
    try:
        return reader(path)
    except (Failed, OSError):
        return None


def _recorded(ledger: Record, run: Path) -> Iterator[tuple[str, _Training]]:
    """The trainings that the ledger has, with their arms."""
    several = {found["arm"] for name in ledger if (found := _STAGE.fullmatch(name)) and found["rate"]}
    for stage, entry in ledger.items():
        found = _STAGE.fullmatch(stage)
        if found is not None and (found["rate"] or found["arm"] not in several):
            directory = directory_of(run, found["arm"])
            if found["rate"]:
                directory = directory / "learning_rates" / found["rate"]
            yield found["arm"], _of_entry(stage, entry, directory)
        elif stage in (PILOT, PROBE):
            yield stage, _of_entry(stage, entry, run / stage)


def _of_entry(stage: str, entry: Any, directory: Path) -> _Training:
    """A training that is over."""
    if not isinstance(entry, dict):
        return _Training(stage, "finished")
    state = next((word for word in ("abandoned", "diverged") if entry.get(word) is True), "finished")
    count = _count(entry.get("trainings")) or (_count(entry.get("candidates")) if stage == PROBE else None) or 1
    tokens, unique = _count(entry.get("tokens")), _count(entry.get("unique_tokens"))
    own: Record = {
        "trainings": count,
        "steps": _count(entry.get("steps")),
        "tokens": tokens,
        "unique_tokens": unique,
        "passes": tokens / unique if tokens and unique else None,
        "flops": _number(entry.get("flops")),
    }
    taken = Consumption.of(entry.get("consumption"))
    if taken is None:
        return _Training(stage, state, **own, **_older(entry, own["flops"], tokens, directory))
    work = {name: _most(own[name], getattr(taken, name)) for name in ("steps", "tokens", "flops")}
    return _Training(stage, state, **(own | work), **_taken(taken, count))


def _taken(taken: Consumption, trainings: int) -> Record:
    """Time, energy and memory of a consumption."""
    lower = () if taken.whole else ("restarts", "wall_seconds", "device_seconds", "joules", "peak_memory_bytes")
    return {
        "restarts": max(0, taken.starts - trainings),
        "wall_seconds": taken.wall_seconds,
        "device_seconds": taken.device_seconds,
        "possible_flops": taken.possible_flops if taken.whole and taken.possible_flops else None,
        "joules": taken.measured_joules + taken.estimated_joules if taken.energy_sources else None,
        "sources": taken.energy_sources,
        "peak_memory_bytes": taken.peak_memory_bytes or None,
        "devices": taken.devices,
        "lower_bounds": frozenset((*lower, *(() if taken.energy_known else ("joules",)))),
    }


def _older(entry: Record, flops: float | None, tokens: int | None, directory: Path) -> Record:
    """What an entry without a consumption says of time, and what its training's metrics say of peak and memory.

    `seconds` are those in steps alone, so that they are less than the wall's.
    """
    seconds, ranks = _number(entry.get("seconds")), _count(entry.get("ranks"))
    steps = _steps(directory)
    slowness = sum(done / mfu for _, done, mfu, _ in steps if mfu)
    whole = bool(steps) and all(mfu for _, _, mfu, _ in steps) and sum(done for _, done, _, _ in steps) == tokens
    memory = [used for *_, used in steps if used]
    return {
        "wall_seconds": seconds,
        "device_seconds": None if seconds is None or ranks is None else seconds * ranks,
        "possible_flops": flops / tokens * slowness if whole and flops and tokens else None,
        "peak_memory_bytes": max(memory, default=None),
        "lower_bounds": frozenset(("wall_seconds", "device_seconds", "peak_memory_bytes")),
    }


def _steps(directory: Path) -> list[tuple[float, int, float | None, int | None]]:
    """Of each step that a training's metrics have: seconds, tokens, MFU, memory so far."""
    found, before = [], 0
    for one in _read(read_jsonl, directory / "metrics.jsonl") or []:
        now, rate = _count(one.get("tokens")), _number(one.get("tokens_per_second"))
        if one.get("kind") != "step" or not now or not rate or now <= before:
            continue
        found.append(((now - before) / rate, now - before, _number(one.get("mfu")), _count(one.get("memory_bytes"))))
        before = now
    return found


def _under_way(ledger: Record, run: Path) -> Iterator[tuple[str, _Training]]:
    """Trainings that left records in their directories and have no entry in the ledger."""
    for arm, directory in _arm_directories(run):
        over = f"train {arm}" in ledger or (arm in (PILOT, PROBE) and arm in ledger)
        inner = sorted((directory / "learning_rates").glob("*/"))
        places = inner or (sorted(directory.glob("*/")) if arm == PROBE else [directory])
        for place in places:
            stage = arm if arm in (PILOT, PROBE) else f"train {arm}" + (f" at {place.name}" if inner else "")
            if stage in ledger or (over and not inner):
                continue
            found = _of_directory(stage, place, "diverged" if over else "under way")
            if found is not None:
                yield arm, found


def _of_directory(stage: str, directory: Path, state: str) -> _Training | None:
    """A training that is not over, as far as it came; None where none began."""
    taken = consumption.read(directory)
    if taken is not None:
        work: Record = {"steps": taken.steps, "tokens": taken.tokens, "flops": taken.flops}
        lacking = frozenset() if taken.whole else frozenset(work)
        known = _taken(taken, 1)
        return _Training(stage, state, **work, **(known | {"lower_bounds": known["lower_bounds"] | lacking}))
    steps = _steps(directory)
    if not steps:
        return None
    seconds = sum(one for one, *_ in steps)
    memory = max((used for *_, used in steps if used), default=None)
    return _Training(
        stage,
        state,
        steps=len(steps),
        tokens=sum(done for _, done, *_ in steps),
        wall_seconds=seconds,
        peak_memory_bytes=memory,
        lower_bounds=frozenset(("wall_seconds", "peak_memory_bytes")),
    )


def _arm_directories(run: Path) -> Iterator[tuple[str, Path]]:
    """Every directory of a run in which something may have been trained, by its arm."""
    if not (run / "rounds").is_dir() and not (run / "growth.jsonl").exists():  # there the target is one of the rounds
        yield TARGET, run
    yield REFERENCE, run / "reference"
    yield PILOT, run / "pilot"
    yield PROBE, run / "probe"
    yield from ((f"round-{place.name}", place) for place in sorted((run / "rounds").glob("*/")))
    yield from ((name_of_stem(place.name), place) for place in sorted((run / "controls").glob("*/")))


def directory_of(run: Path, arm: str) -> Path:
    """Where an arm's records are, by its name in the ledger."""
    if arm == TARGET:
        return run
    if arm == REFERENCE:
        return run / arm
    if arm.startswith("round-"):
        return run / "rounds" / arm.removeprefix("round-")
    return run / "controls" / arm.replace(":", "-")


def name_of_stem(stem: str) -> str:
    """The model's name whose files and directory have this stem: `random-2x@4` is `random:2x@4`."""
    return re.sub(r"-([0-9]{1,3}x)(?=@|$)", r":\1", stem)


def _final_round(run: Path) -> str | None:
    """The round that became the target of a run that grows; None as long as that is not known."""
    result = _read(read_json, run / "result.json")
    if not isinstance(result, dict):
        return None
    target = result.get("target")
    layers = _count(target.get("layers") if isinstance(target, dict) else result.get("layers"))
    return f"round-{layers}" if layers and ("growth" in result or "matched" in result) else None


def _kind(arm: str, final: str | None) -> str:
    """What an arm is to the run."""
    if arm in (REFERENCE, PILOT, PROBE, TARGET):
        return arm
    if arm.startswith("round-"):
        return TARGET if arm == final else "round"
    return "control"


def _state(trainings: list[_Training]) -> str:
    """Of an arm: under way where one of its trainings is; a rate that diverged does not make it so."""
    states = {one.state for one in trainings}
    return next(state for state in ("under way", "finished", "abandoned", "diverged") if state in states)


def _sums(trainings: list[_Training], price: float | None) -> Record:
    """The sums of some trainings (see `total`)."""
    gaps: dict[str, list[str]] = {}

    def gathered(name: str, shown: str, join: Callable[[list[Any]], Any] = sum) -> Any:
        known = [value for one in trainings if (value := getattr(one, name)) is not None]
        lacking = [one.stage for one in trainings if getattr(one, name) is None or name in one.lower_bounds]
        if lacking:
            gaps[shown] = list(dict.fromkeys(lacking))
        return join(known) if known else None

    walls, devices = gathered("wall_seconds", "wall_hours"), gathered("device_seconds", "device_hours")
    joules = gathered("joules", "energy_kwh")
    measured = [one for one in trainings if one.possible_flops and one.flops is not None]
    if len(measured) < len(trainings):
        gaps["mfu"] = [one.stage for one in trainings if one not in measured]
    sums: Record = {
        "trainings": sum(one.trainings for one in trainings),
        "restarts": gathered("restarts", "restarts"),
        "steps": gathered("steps", "steps"),
        "tokens": gathered("tokens", "tokens"),
        "unique_tokens": max((one.unique_tokens for one in trainings if one.unique_tokens), default=None),
        "passes": max((one.passes for one in trainings if one.passes), default=None),
        "flops": gathered("flops", "flops"),
        "wall_hours": None if walls is None else walls / 3600,
        "device_hours": None if devices is None else devices / 3600,
        "mfu": sum(one.flops or 0.0 for one in measured) / sum(one.possible_flops or 0.0 for one in measured)
        if measured
        else None,
        "energy_kwh": None if joules is None else joules / _JOULES_A_KWH,
        "energy_sources": list(dict.fromkeys(source for one in trainings for source in one.sources)),
        "peak_memory_bytes": gathered("peak_memory_bytes", "peak_memory_bytes", max),
        "devices": list(dict.fromkeys(name for one in trainings for name in one.devices)),
    }
    if price is not None:
        sums["money"] = None if devices is None else devices / 3600 * price
        if "device_hours" in gaps:
            gaps["money"] = gaps["device_hours"]
    sums["gaps"] = {name: gaps[name] for name in sums if name in gaps}
    return sums


def _unique(arms: Mapping[str, Record]) -> tuple[int | None, list[str]]:
    """Unique tokens of all arms, and the arms that may have seen more than is in the sum.

    They share their training set, all but one on other data, and draw it in the same order, all but rounds with seeds
    of their own: of less than a pass these see other tokens.
    """
    seen = {name: one["unique_tokens"] or 0 for name, one in arms.items()}
    unique = max((tokens for name, tokens in seen.items() if name != OTHER_DATA), default=0) + seen.get(OTHER_DATA, 0)
    lacking = [
        name
        for name, one in arms.items()
        if (not seen[name] and name not in (PILOT, PROBE)) or ("-seed-" in name and (one["passes"] or 0) <= 1)
    ]
    return unique or None, lacking


def _other(ledger: Record) -> Iterator[tuple[str, float | None]]:
    """The stages that are no training, and their wall time."""
    for stage, entry in ledger.items():
        if not _STAGE.fullmatch(stage) and stage not in (PILOT, PROBE):
            yield stage, _number(entry.get("seconds")) if isinstance(entry, dict) else None


def _evaluation(run: Path) -> Record:
    """The wall time of an evaluation's tasks, of all models, where there was one."""
    record = _read(read_json, run / "evaluation.json")
    scores = record.get("scores") if isinstance(record, dict) else None
    if not isinstance(scores, dict):
        return {}
    found = [_number(score.get("seconds")) for score in _scores(scores.values())]
    return {"evaluate": sum(one for one in found if one is not None)} if found else {}


def _scores(by_model: Iterable[Any]) -> Iterator[Record]:
    for scores in by_model:
        for score in scores.values() if isinstance(scores, dict) else ():
            if isinstance(score, dict):
                yield score


_BEYOND = 1e300
"""No run takes as much; an integer may be larger than any float, and its sums then fail."""


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < _BEYOND else None


def _number(value: Any) -> float | None:
    return value if type(value) in (int, float) and 0 <= value < _BEYOND else None


def _most(one: float | None, other: float) -> float:
    """The larger one: work that a kill undid is in the consumption, and what came before it is not."""
    return other if one is None else max(one, other)
