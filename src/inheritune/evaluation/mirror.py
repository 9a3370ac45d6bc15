"""Where evaluation data comes from: the hub, or a mirror of it in a directory, without a network.

A mirror holds data sets as `hf download --repo-type dataset ORG/NAME --local-dir DIR/ORG/NAME` leaves them, or is the
hub's own cache (`datasets--ORG--NAME/snapshots/COMMIT`).
"""

from __future__ import annotations

import errno
import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune.errors import Refused


class Missing(Exception):
    """A task's data is not to be had: what is missing and how to get it, in one line."""


@dataclass(frozen=True)
class Mirror:
    """A directory that holds data sets of the hub."""

    directory: Path

    def find(self, dataset: str) -> Path:
        """The directory of a data set's files.

        Raises:
            Missing: the mirror has no such data set.
        """
        plain = self.directory / dataset
        if plain.is_dir():
            return plain
        name = f"datasets--{dataset.replace('/', '--')}"
        for cache in (self.directory / name, self.directory / "hub" / name):
            snapshot = _snapshot(cache)
            if snapshot is not None:
                return snapshot
        raise Missing(f"{dataset} is not in {self.directory}; {self.fetch(dataset)}")

    def fetch(self, dataset: str) -> str:
        """How to get a data set, as part of a sentence."""
        return f"get it by: {fetch_command(dataset, self.directory)}"

    def files(
        self, dataset: str, name: str | None, given: dict[str, Any] | None = None
    ) -> tuple[Path, dict[str, list[str]]]:
        """The directory of a data set, and by split the files that its configuration `name` has there.

        Raises:
            Missing: the data set or the configuration is not in the mirror, or its files cannot be understood.
        """
        path = self.find(dataset)
        import datasets

        known = {key: given[key] for key in ("data_dir", "data_files") if given and key in given}
        try:
            builder = datasets.load_dataset_builder(str(path), name, **known)
        except Exception as error:  # the library raises many kinds for a directory that it cannot read
            unwritable = unwritable_cache(error)
            if unwritable is not None:
                raise Missing(unwritable) from error
            what = f"{dataset} ({name})" if name else dataset
            raise Missing(f"{what} is not whole in {path}: {one_line(error)}; {self.fetch(dataset)}") from error
        return path, {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}


def open_mirror(directory: Path | None) -> Mirror | None:
    """The mirror in a directory; None for none.

    Raises:
        Refused: there is no such directory.
    """
    if directory is None:
        return None
    if not directory.is_dir():
        raise Refused(f"--datasets {directory}: no such directory; give one that holds data sets as ORG/NAME")
    return Mirror(directory)


def fetch_command(dataset: str, directory: Path | str = "DIR") -> str:
    """The command that puts a data set of the hub into a mirror."""
    return f"hf download --repo-type dataset {dataset} --local-dir {shlex.quote(f'{directory}/{dataset}')}"


def changes(config: dict[str, Any], shots: int, mirror: Mirror) -> dict[str, Any]:
    """The keys of a packaged task that must change for it to read its data from the mirror.

    Its path; the splits that are absent, for the harness opens every split that a task names as soon as it is built,
    and a 0-shot run needs but one; and a cache by the files' content. The `datasets` library keeps what it made of a
    local directory by the names in its card alone, so another directory of the same names, or one whose files changed,
    would be read as the first (5.2.0).

    Args:
        config: the task's keys, as its file has them.
        shots: worked examples; where they come from must be there if any are asked for.
        mirror: where the data is.

    Raises:
        Missing: the split that is evaluated, or the one that examples come from, is not there.
    """
    dataset, name = config.get("dataset_path"), config.get("dataset_name")
    if not isinstance(dataset, str):
        raise Missing("its data does not come from the hub, so no mirror can hold it")
    given = config.get("dataset_kwargs") or {}
    path, splits = mirror.files(dataset, name, given)
    cache = _cache([file for files in splits.values() for file in files])
    changed: dict[str, Any] = {"dataset_path": str(path.resolve()), "dataset_kwargs": given | {"cache_dir": cache}}
    needed = {evaluated_split(config), *([examples_split(config)] if shots else [])}
    for split in sorted(filter(None, needed)):
        if split not in splits:
            where = f"{dataset} ({name})" if name else dataset
            have = f"it has {', '.join(splits)}" if splits else "it has none"
            raise Missing(f"{where} has no split {split} in {path}: {have}; {mirror.fetch(dataset)}")
    for key in ("training_split", "validation_split", "test_split", "fewshot_split"):
        if config.get(key) is not None and config[key] not in splits:
            changed[key] = None
    examples = config.get("fewshot_config")
    if isinstance(examples, dict) and examples.get("split") not in (None, *splits):
        changed["fewshot_config"] = examples | {"split": None}
    return changed


def evaluated_split(config: dict[str, Any]) -> str | None:
    """The split that the harness evaluates: test, else validation."""
    found = config.get("test_split") or config.get("validation_split")
    return str(found) if found is not None else None


def examples_split(config: dict[str, Any]) -> str | None:
    """The split that the harness takes worked examples from; None where the task brings its own."""
    own = config.get("fewshot_config")
    own = own if isinstance(own, dict) else {}
    if own.get("split") or config.get("fewshot_split"):
        return str(own.get("split") or config["fewshot_split"])
    if own.get("samples") is not None:
        return None
    found = config.get("training_split") or config.get("validation_split") or config.get("test_split")
    return str(found) if found is not None else None


def unwritable_cache(error: BaseException) -> str | None:
    """What to say where the `datasets` library cannot write what it makes of files; None for any other error."""
    import datasets

    if not isinstance(error, OSError):
        return None
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    place = Path(error.filename) if isinstance(error.filename, str) else None
    refused = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
    if error.errno in refused or (place is not None and (place == cache or cache in place.parents)):
        return f"{place or cache}: {error.strerror}; set HF_DATASETS_CACHE to a directory that can be written"
    return None


def one_line(error: BaseException) -> str:
    """An error's first words in one line."""
    text = " ".join(str(error).split())
    return f"{text[:240]}..." if len(text) > 240 else text or type(error).__name__


def _cache(files: list[str]) -> str:
    """Where the `datasets` library is to keep what it makes of files of this content.

    Raises:
        Missing: a file cannot be read.
    """
    import datasets

    digest = hashlib.sha256()
    for file in sorted(files):
        try:
            with open(file, "rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        except OSError as error:
            raise Missing(f"{file}: cannot be read ({error.strerror}); mend or fetch it again") from error
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "mirrors" / digest.hexdigest()[:32])


def _snapshot(cache: Path) -> Path | None:
    """The snapshot of a data set in the hub's cache: the one that `main` stands for, else the only or newest one."""
    snapshots = cache / "snapshots"
    if not snapshots.is_dir():
        return None
    main = cache / "refs" / "main"
    if main.is_file() and (snapshots / main.read_text(encoding="utf-8").strip()).is_dir():
        return snapshots / main.read_text(encoding="utf-8").strip()
    found = sorted((path for path in snapshots.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None
