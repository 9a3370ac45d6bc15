"""Prepared directories without text: random tokens, or sparse files as long as a large corpus."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from inheritune.run_directory import write_json
from inheritune.tokens import Prepared, open_prepared

DOCUMENT_TOKENS = 1000
_FILE_TOKENS = 100_000_000


def make(directory: Path, tokens: dict[str, int], *, sparse: bool = False) -> Prepared:
    """Write sets of so many tokens, as `inheritune prepare` would, in documents of 1,000.

    `sparse` shards read as zeros and take no room on the disk.
    """
    sets = {}
    for name, total in tokens.items():
        (directory / name).mkdir(parents=True)
        files = []
        for number, first in enumerate(range(0, total, _FILE_TOKENS)):
            count = min(_FILE_TOKENS, total - first)
            path = directory / name / f"{number:05d}.ds"
            if sparse:
                with path.open("wb") as file:
                    file.truncate(2 * count)
            else:
                np.random.default_rng(0).integers(1, 4096, count).astype("<u2").tofile(path)
            ends = np.append(np.arange(DOCUMENT_TOKENS, count, DOCUMENT_TOKENS), count).astype("<u8")
            ends.tofile(f"{path}.index")
            np.diff(ends, prepend=np.uint64(0)).tofile(f"{path}.bytes")
            files.append({"name": path.name, "tokens": count, "documents": len(ends), "sha256": ""})
        sets[name] = {"tokens": total, "files": files}
    tokenizer = {"vocabulary": 4096, "end_of_text": 0, "token_bytes": 2}
    write_json(directory / "manifest.json", {"sets": sets, "tokenizer": tokenizer})
    return open_prepared(directory)
