"""One preparation's phases: scan, share out, tokenise what is needed, write. Each goes on where a kill stopped it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inheritune.config import DataConfig, SourceConfig
from inheritune.corpus.assignment import Assignment, assign
from inheritune.corpus.files import SourceFile
from inheritune.corpus.hub import fetch
from inheritune.corpus.placement import DOCUMENT, Documents
from inheritune.corpus.plan import Plan, divide
from inheritune.corpus.python_source import list_python_source
from inheritune.corpus.selection import Chosen, Selection, TokenisedDocuments, choose, interleave
from inheritune.corpus.shards import TaskTokens, write_set
from inheritune.corpus.sources import HUB, PYTHON_SOURCE
from inheritune.corpus.steps import WANTED, Scan, Tokenise, load_encoder, reread, save_array
from inheritune.corpus.tokenizing import TokenizerFacts
from inheritune.corpus.worker import Step, run_tasks
from inheritune.errors import Failed, Refused
from inheritune.run_directory import read_json, write_atomic, write_json

MANIFEST = "manifest.json"
HASHES = "train.hashes"

# Starting workers takes about two seconds, so smaller jobs are done in this process (those of tokenising by threads).
_SMALL_SCAN_BYTES = 128 << 20
_SMALL_TOKENISE_BYTES = 256 << 20
_TOKENISE_TASK_BYTES = 4 << 20
_TOKENISE_TASKS = 64
"""Tasks of little text are smaller, down to a quarter, so that workers end together."""
_PARTS_OF_A_STREAM = 8


@dataclass
class Build:
    """Everything between checked sources and the finished directory."""

    data: DataConfig
    files_of: list[list[SourceFile]]
    """By source, those of `validation_sets` last; hub data sets are still empty."""
    facts: TokenizerFacts
    add_bos: bool
    seen: list[bytes]
    out: Path
    work: Path
    workers: int
    report: Callable[[str], None]
    task_files: list[Path] = field(default_factory=list)

    def run(self, header: dict[str, Any]) -> dict[str, Any]:
        """All phases; returns the manifest, written last.

        Raises:
            Refused, Failed: as `prepare` says.
        """
        began = time.monotonic()
        fetched_bad = self._fetch_hub()
        plan = self._plan()
        documents, counts = self._scan(plan)
        self.report(f"scanned {len(documents):,} documents, {int(documents['bytes'].sum()):,} bytes")
        assignment = assign(self.data, self.sources, documents, np.array(plan.source_of, np.int64), self.seen)
        tokenised = self._tokenise(plan, documents, assignment.selections)
        sets = self._choose(plan, documents, tokenised, assignment)
        records = self._write(sets, tokenised)
        train = sets["train"].documents
        write_atomic(self.out / HASHES, _hash_lines(np.unique(documents["high"][train])))
        for number, bad in fetched_bad.items():
            counts[number]["bad"] += bad
        manifest = header | {
            "sets": records,
            "sources": [
                self._source_record(number, plan, documents, counts[number], sets)
                for number in range(len(self.sources))
            ],
            "duplicates": assignment.duplicates,
            "seen_removed": assignment.seen_removed,
            "validation_removed_from_train": assignment.removed_from_train,
            "fingerprint": _fingerprint(records, self.facts.fingerprint),
        }
        write_json(self.out / MANIFEST, manifest)
        total = sum(record["tokens"] for record in records.values())
        self.report(f"wrote {total:,} tokens in {len(records)} sets, {time.monotonic() - began:.1f} s")
        return manifest

    @cached_property
    def sources(self) -> list[SourceConfig]:
        """Training sources, then those of `validation_sets`."""
        return [*self.data.sources, *self.data.validation_sets.values()]

    def _fetch_hub(self) -> dict[int, int]:
        """Fetch hub data sets; the number of bad records left out, by source."""
        bad = {}
        for number, source in enumerate(self.sources):
            if source.path.startswith(HUB):
                self.report(f"fetching {source.path}")
                target = self.work / "hub" / f"{number}.jsonl"
                try:
                    file, bad[number] = fetch(source, target, skip_bad=self.data.on_bad_line == "skip")
                except Refused as error:
                    if any(target.parent.glob("*.jsonl")):  # a refusal would take it away, and it may have taken hours
                        raise Failed(f"{error}; what was fetched before is kept") from error
                    raise
                self.files_of[number] = [file]
        return bad

    def _plan(self) -> Plan:
        files = [file for source in self.files_of for file in source]
        plan = Plan(
            files=files,
            source_of=[number for number, source in enumerate(self.files_of) for _ in source],
            tasks=divide(files),
            seed=self.data.seed,
            skip_bad=self.data.on_bad_line == "skip",
            end_of_text=self.facts.end_of_text,
            begin_of_sequence=self.facts.begin_of_sequence if self.add_bos else None,
            token_bytes=self.facts.token_bytes,
        )
        plan.save(self.work)
        write_atomic(self.work / "tokenizer.json", self.facts.serialized)
        return plan

    def _run(self, step: Step, name: str, tasks: int, *, small: bool) -> None:
        run_tasks(step, name, tasks, self.data, self.workers, small=small, report=self.report)

    def _scan(self, plan: Plan) -> tuple[Documents, list[dict[str, Any]]]:
        """The index of all documents in the sources' order, and what was counted by source."""
        (self.work / "scan").mkdir(exist_ok=True)
        small = sum(file.size * (4 if file.compression else 1) for file in plan.files) < _SMALL_SCAN_BYTES
        self._run(Scan(str(self.work)), "scan", len(plan.tasks), small=small)
        counts: list[dict[str, Any]] = [{"bad": 0, "empty": 0, "first_bad": ""} for _ in self.sources]
        parts = [np.zeros(0, DOCUMENT)]
        for rank in range(len(plan.tasks)):
            parts.append(np.load(self.work / "scan" / f"{rank:05d}.npy"))
            for number, count in read_json(self.work / "scan" / f"{rank:05d}.json").items():
                total = counts[int(number)]
                total["bad"] += count["bad"]
                total["empty"] += count["empty"]
                total["first_bad"] = total["first_bad"] or count["first_bad"]
        return np.concatenate(parts), counts

    def _tokenise(self, plan: Plan, documents: Documents, selections: list[Selection]) -> TokenisedDocuments:
        """Tokenise in waves until every budget is full or its documents have run out."""
        tokenised = TokenisedDocuments.none(len(documents))
        wave = 0
        while True:
            parts = [(part, selection.document_limit) for selection in selections
                     if len(part := selection.next_wave(documents, tokenised))]  # fmt: skip
            if not parts:
                return tokenised
            ids = np.concatenate([part for part, _ in parts])
            limits = np.repeat([limit for _, limit in parts], [len(part) for part, _ in parts])
            order = np.argsort(ids)
            self._run_wave(plan, documents, tokenised, f"waves/{wave:03d}", ids[order], limits[order])
            for selection in selections:
                selection.update(tokenised)
            wave += 1

    def _run_wave(
        self,
        plan: Plan,
        documents: Documents,
        tokenised: TokenisedDocuments,
        name: str,
        ids: npt.NDArray[np.int64],
        limits: Any,
    ) -> None:
        directory = self.work / name
        directory.mkdir(parents=True, exist_ok=True)
        wanted = np.zeros(len(ids), WANTED)
        for key in ("high", "low", "file", "position", "length", "bytes"):
            wanted[key] = documents[key][ids]
        wanted["limit"] = limits
        borders = _task_borders(plan.files, wanted)
        save_array(directory / "wanted.npy", wanted)
        save_array(directory / "borders.npy", borders)
        size = int(wanted["bytes"].sum())
        began = time.monotonic()
        step = Tokenise(str(self.work), name)
        self._run(step, name, len(borders) - 1, small=size < _SMALL_TOKENISE_BYTES)
        for rank, (first, last) in enumerate(zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True)):
            result = np.load(directory / f"{rank:05d}.npy")
            part = ids[first:last]
            tokenised.tokens[part] = result["tokens"]
            tokenised.bytes[part] = result["bytes"]
            tokenised.cut[part] = result["cut"]
            tokenised.task[part] = len(self.task_files)
            tokenised.offset[part] = np.cumsum(tokenised.tokens[part]) - tokenised.tokens[part]
            self.task_files.append(directory / f"{rank:05d}.ds")
        seconds = time.monotonic() - began
        tokens = int(tokenised.tokens[ids].sum())
        shown = f"{len(ids):,} document{'s' if len(ids) != 1 else ''}"
        self.report(f"tokenised {shown}, {size:,} bytes, {tokens:,} tokens in {seconds:.1f} s")

    def _choose(
        self, plan: Plan, documents: Documents, tokenised: TokenisedDocuments, assignment: Assignment
    ) -> dict[str, Chosen]:
        train: list[Chosen] = []
        sets: dict[str, Chosen] = {}
        for selection in assignment.selections:
            chosen = choose(selection, tokenised)
            if selection.name == "train":
                self._check_budget(selection, chosen)
                train.append(chosen)
            else:
                sets[selection.name] = chosen
        sets = {"train": interleave(train)} | sets
        for chosen in sets.values():
            self._count_cut_bytes(plan, documents, chosen)
        return sets

    def _check_budget(self, selection: Selection, chosen: Chosen) -> None:
        if selection.budget is None or chosen.total == selection.budget:
            return
        assert selection.source is not None
        source = self.sources[selection.source]
        asked = f"data.tokens asks {selection.budget:,}"
        if len(self.data.sources) > 1:
            asked = f"its share of data.tokens is {selection.budget:,}"
        limit = self.data.document_tokens
        cut, raised = ("", "") if limit is None else (f" at {limit:,} a document", "raise data.document_tokens, ")
        raise Refused(
            f"{source.path}: its training documents hold {chosen.total:,} tokens{cut}, {asked}; "
            f"lower data.tokens, {raised}add text, or set the source's repeat"
        )

    def _count_cut_bytes(self, plan: Plan, documents: Documents, chosen: Chosen) -> None:
        """Fill in the bytes of documents that a budget cut."""
        encoder = load_encoder(self.work / "tokenizer.json")
        for index in np.flatnonzero(chosen.bytes < 0).tolist():
            number = int(chosen.documents[index])
            row = documents[number : number + 1]
            (text,) = reread(plan.files[int(row["file"][0])], row)
            chosen.bytes[index] = encoder.bytes_covered(text, int(chosen.tokens[index]) - int(self.add_bos))

    def _write(self, sets: dict[str, Chosen], tokenised: TokenisedDocuments) -> dict[str, Any]:
        tokens = TaskTokens(self.task_files, self.facts.token_bytes)
        return {name: write_set(self.out / name, chosen, tokenised, tokens) for name, chosen in sets.items()}

    def _source_record(
        self, number: int, plan: Plan, documents: Documents, counts: dict[str, Any], sets: dict[str, Chosen]
    ) -> dict[str, Any]:
        source = self.sources[number]
        source_of = np.array(plan.source_of, np.int64)[documents["file"]]
        own = documents[source_of == number]
        record: dict[str, Any] = {
            "path": source.path,
            "files": len(self.files_of[number]),
            "documents": len(own),
            "bytes": int(own["bytes"].sum()),
            "content": hashlib.sha256(own[["high", "low"]].tobytes()).hexdigest(),
            "tokens_selected": {
                name: int(chosen.tokens[source_of[chosen.documents] == number].sum()) for name, chosen in sets.items()
            },
            "bad_lines": counts["bad"],
            "first_bad_line": counts["first_bad"] or None,
            "empty": counts["empty"],
        }
        if source.path == PYTHON_SOURCE:
            record["packages"] = [package.record() for package in list_python_source()]
        return record


def _hash_lines(hashes: npt.NDArray[np.uint64]) -> bytes:
    """A line of 16 hexadecimal digits a hash; by NumPy, for Python takes ten times the memory."""
    digits = np.frombuffer(hashes.astype(">u8").tobytes(), np.uint8).reshape(-1, 8)
    codes = np.frombuffer(b"0123456789abcdef", np.uint8)
    lines = np.full((len(hashes), 17), ord("\n"), np.uint8)
    lines[:, 0:16:2], lines[:, 1:16:2] = codes[digits >> 4], codes[digits & 15]
    return lines.tobytes()


def _task_borders(files: list[SourceFile], wanted: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """(tasks + 1,): where tasks of about equal work begin among the wanted documents.

    A task on a compressed file decompresses all that stands before its documents, so such a file makes few tasks.
    """
    sizes = wanted["bytes"].astype(np.float64)
    totals = np.bincount(wanted["file"], sizes, len(files))
    stream = np.array([not file.divisible for file in files])
    task = float(np.clip(sizes.sum() / _TOKENISE_TASKS, _TOKENISE_TASK_BYTES / 4, _TOKENISE_TASK_BYTES))
    largest = np.where(stream, np.maximum(task, totals / _PARTS_OF_A_STREAM), task)
    work = np.cumsum(sizes / largest[wanted["file"]])
    tasks = np.floor(work - sizes / largest[wanted["file"]]).astype(np.int64)
    return np.append(np.flatnonzero(np.diff(tasks, prepend=-1)), len(wanted))


def _fingerprint(sets: dict[str, Any], tokenizer: str) -> str:
    """What training reads, in one value: the sets' checksums and the tokenizer."""
    sums = [
        [name, [[file["sha256"], file["index_sha256"], file["bytes_sha256"]] for file in sets[name]["files"]]]
        for name in sorted(sets)
    ]
    return hashlib.sha256(json.dumps([sums, tokenizer]).encode("ascii")).hexdigest()
