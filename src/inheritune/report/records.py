"""A run's records as the report reads them: whatever is missing or damaged is empty, and named as a gap."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from inheritune.comparison import Documents
from inheritune.errors import Failed, printable
from inheritune.ledger import name_of_stem
from inheritune.report.numbers import number_of, plain
from inheritune.report.table import dict_of, judging_set, models_of
from inheritune.run_directory import read_json, read_jsonl

Record = Mapping[str, Any]

_READERS: dict[str, Callable[[Path], Any]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".yaml": lambda path: path.read_text(encoding="utf-8"),
}
_LOSSES = "losses"
_MOST_ROUNDS = 1000


def read_record(run: Path, name: str, kind: type, gaps: dict[str, str]) -> Any:
    """A record of the run, or an empty one of its kind with the reason noted under the file's name in `gaps`."""
    path = run / name
    try:
        if not path.exists():
            gaps[name] = f"{name} is not in the run directory"
            return kind()
        record = _READERS[path.suffix](path)
        if any(mark in path.read_bytes().lower() for mark in _UNPRINTABLE):
            record = _printable(record)
    except (ValueError, OSError, RecursionError, Failed) as error:
        gaps[name] = f"{name} cannot be read: {error}"
        return kind()
    if not isinstance(record, kind) or not record:
        gaps[name] = f"{name} holds no record"
        return kind()
    return record


UNREADABLE = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError)
"""What PyYAML raises for a recipe that was damaged or edited."""


_UNPRINTABLE = (rb"\ud", rb"\u00", b"\x1b", b"\x00", b"\x7f")
"""What may stand for text that is not to be passed on: JSON's own escapes, and control characters as they are."""


def _printable(value: Any) -> Any:
    """A record whose text can be written: JSON may escape halves of characters, and control characters."""
    if isinstance(value, dict):
        return {_printable(key): _printable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_printable(one) for one in value]
    return printable(value.encode("utf-8", "replace").decode("utf-8")) if isinstance(value, str) else value


def file_stem(name: str) -> str | None:
    """A model's name as its files and its directory have it; None where it is no such name.

    Records name models, so a name might lead out of the run directory.
    """
    known = re.fullmatch(r"[a-z_+-]+(:[0-9]{1,3}x)?(@[0-9]{1,4})?", name)
    return name.replace(":", "-") if known else None


@dataclass(frozen=True)
class Records:
    """What table 4 and the story of the rounds are made of; what a run lacks is empty."""

    result: Record = field(default_factory=dict)
    rounds: tuple[Record, ...] = ()
    """The trainings that are over, in order (see `round_name`)."""
    ledger: Record = field(default_factory=dict)
    losses: Mapping[str, Record] = field(default_factory=dict)
    """By model's name its losses by document, `losses/NAME.json`."""
    evaluation: Record = field(default_factory=dict)

    @property
    def judge(self) -> str:
        """The validation set that verdicts are about."""
        name = judging_set(self.result)
        known = next((list(sets) for record in self.losses.values() if (sets := dict_of(record.get("sets")))), [])
        return name if name in known or not known else next((set_ for set_ in known if set_ != "development"), name)

    def documents(self, name: str) -> tuple[Documents, Documents] | None:
        """A model's loss of each document in nats and the documents' tokens, (documents,) each; None where damaged."""
        values = dict_of(dict_of(self.losses.get(name, {}).get("sets")).get(self.judge))
        try:
            nats, tokens = (np.asarray(values.get(key), np.float64) for key in ("nats", "tokens"))
        except (TypeError, ValueError, OverflowError):
            return None
        whole = nats.ndim == 1 and nats.shape == tokens.shape and nats.size > 0
        return (nats, tokens) if whole and np.isfinite(nats).all() and (tokens > 0).all() else None

    def model(self, name: str) -> Record:
        """What is recorded of a model: the result's word, else what was noted with its losses and its training."""
        losses, trained = self.losses.get(name, {}), dict_of(self.ledger.get(f"train {name}"))
        found = {
            "layers": losses.get("layers"),
            "validation_loss": _mean_loss(self.documents(name)),
            "steps": trained.get("steps"),
            "flops": trained.get("flops"),
        }
        known = found | {key: value for key, value in models_of(self.result).get(name, {}).items() if value is not None}
        return {key: value for key, value in known.items() if value is not None}

    @property
    def benchmark(self) -> float | None:
        """The reference's validation loss, nats a token."""
        return number_of(self.result.get("benchmark")) or number_of(self.model("reference").get("validation_loss"))

    @property
    def final(self) -> Record | None:
        """The round that became the run's target; None as long as the run is not over."""
        layers = dict_of(self.result.get("target")).get("layers")
        ended = [one for one in self.rounds if one.get("state") != "abandoned" and not one.get("seed")]
        return next((one for one in ended if layers is not None and one.get("layers") == layers), None)


def round_name(record: Record) -> str:
    """The name of a round's training, as files and figures have it: `round-4`, `round-4-seed-1`."""
    seed = number_of(record.get("seed")) or 0
    return f"round-{number_of(record.get('layers')) or 0:.0f}" + (f"-seed-{seed:.0f}" if seed else "")


def round_title(record: Record) -> str:
    """`Round 2`, and which seed where a match was repeated."""
    seed = number_of(record.get("seed"))
    return f"Round {plain(record.get('round'))}" + (f", seed {plain(seed)}" if seed else "")


def grows(run: Path, result: Record) -> bool:
    """Whether the run's target grows in rounds."""
    return "growth" in result or (run / "growth.jsonl").exists() or (run / "rounds").is_dir()


def records_of(run: Path, result: Record | None = None, gaps: dict[str, str] | None = None) -> Records:
    """The table's records from a run directory.

    Args:
        run: the run directory.
        result: `result.json`'s record where it was read before.
        gaps: takes the reason why a record is missing, under its file's name.
    """
    gaps = {} if gaps is None else gaps
    result = read_record(run, "result.json", dict, gaps) if result is None else result
    rounds = _rounds(run, result, gaps) if grows(run, result) else ()
    evaluation = read_record(run, "evaluation.json", dict, {})
    models = {name: stem for name in dict_of(result.get("controls")) if (stem := file_stem(name)) is not None}
    models |= {name: name for name in ("reference", *([] if rounds else ["target"]), *map(round_name, rounds))}
    if not dict_of(result.get("target")) and (run / _LOSSES).is_dir():  # not over: what was measured so far
        models |= {name_of_stem(path.stem): path.stem for path in sorted((run / _LOSSES).glob("*.json"))}
    losses = {name: read_record(run, f"{_LOSSES}/{stem}.json", dict, {}) for name, stem in models.items()}
    return Records(
        result=result,
        rounds=rounds,
        ledger=read_record(run, "ledger.json", dict, {}),
        losses={name: record for name, record in losses.items() if record},
        evaluation=evaluation,
    )


def _rounds(run: Path, result: Record, gaps: dict[str, str]) -> tuple[Record, ...]:
    """The rounds of `growth.jsonl`, and those that the result alone has; what is missing is noted in `gaps`."""
    name = "growth.jsonl"
    lines = [line for line in read_record(run, name, list, gaps) if isinstance(line, dict)]
    listed = dict_of(result.get("growth")).get("rounds")
    known = [line for line in listed if isinstance(line, dict)] if isinstance(listed, list) else []
    found = {(plain(line.get("round")), round_name(line)): line for line in [*known, *lines]}
    if name not in gaps:
        have = {number_of(line.get("round")) for line in lines}
        numbers = [number for line in found.values() if (number := number_of(line.get("round"))) is not None]
        last = int(min(max(numbers, default=0), _MOST_ROUNDS))
        absent = [number for number in range(1, last + 1) if number not in have]
        texts = [f"{name} lacks round {', '.join(map(str, absent))}"] if absent else []
        texts += [f"the last line of {name} is cut short"] if _cut_short(run / name) else []
        gaps |= {name: "; ".join(texts)} if texts else {}
    elif not (run / name).exists() and not known:
        gaps[name] = "no round is over yet"
    return tuple(sorted(found.values(), key=lambda line: number_of(line.get("round")) or 0))


def _cut_short(path: Path) -> bool:
    """Whether a file of records ends within a line."""
    try:
        json.loads(path.read_text(encoding="utf-8", errors="replace").rpartition("\n")[2] or "{}")
    except ValueError:
        return True
    return False


def _mean_loss(documents: tuple[Documents, Documents] | None) -> float | None:
    """Nats a token over all documents."""
    return None if documents is None else float(documents[0].sum() / documents[1].sum())
