"""One file to read: where it is, what kind of text it holds, what separates its records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["jsonl", "parquet", "text", "python"]


@dataclass(frozen=True)
class SourceFile:
    """One file to read, and how."""

    path: str
    """What to open."""
    name: str
    """What messages call it; for Python source a stable name such as `torch/nn/modules/linear.py`."""
    kind: Kind
    compression: Literal["", "gz", "zst"]
    size: int
    """Bytes on disk."""
    text_field: str = "text"
    separator: str | None = None

    @property
    def divisible(self) -> bool:
        """Whether parts of it can be read without what stands before them."""
        return self.kind == "parquet" or (not self.compression and self.record_separator is not None)

    @property
    def record_separator(self) -> bytes | None:
        """The bytes between two records; None where the whole file is one."""
        if self.kind == "jsonl":
            return b"\n"
        return self.separator.encode("utf-8") if self.separator is not None else None
