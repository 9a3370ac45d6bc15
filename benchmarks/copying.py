"""Ways of copying from file to file: seconds for a gigabyte that is in the page cache, in turns, median of five.

python benchmarks/copying.py [--directory /tmp] [--gigabytes 1.3]
"""

from __future__ import annotations

import argparse
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


def mapped(source: int, target: int, size: int) -> None:
    """Write from a mapping of the source, as libraries do that save mapped tensors."""
    with mmap.mmap(source, size, access=mmap.ACCESS_READ) as whole, memoryview(whole) as view:
        for start in range(0, size, 1 << 24):
            with view[start : start + (1 << 24)] as piece:
                os.pwrite(target, piece, start)


def kernel(source: int, target: int, size: int) -> None:
    """Let the kernel copy."""
    done = 0
    while done < size:
        done += os.copy_file_range(source, target, size - done, done, done)


def buffered(size_of_buffer: int, *, room_first: bool, odd: int = 0) -> Callable[[int, int, int], None]:
    """Read into a small buffer and write from it; the file's room taken first or not; so far off a page's beginning."""

    def copy(source: int, target: int, size: int) -> None:
        if room_first:
            os.posix_fallocate(target, 0, size)
        buffer, done = memoryview(mmap.mmap(-1, size_of_buffer + mmap.PAGESIZE))[odd : odd + size_of_buffer], 0
        while done < size:
            read = os.preadv(source, [buffer[: min(len(buffer), size - done)]], done)
            os.pwrite(target, buffer[:read], done)
            done += read

    return copy


WAYS = {
    "from a mapping": mapped,
    "in the kernel": kernel,
    "buffer of 256 KiB": buffered(1 << 18, room_first=False),
    "buffer of 1 MiB": buffered(1 << 20, room_first=False),
    "buffer of 1 MiB, room first": buffered(1 << 20, room_first=True),
    "the same, 16 bytes off a page": buffered(1 << 20, room_first=True, odd=16),
    "buffer of 8 MiB, room first": buffered(1 << 23, room_first=True),
}


def main() -> None:
    """Time every way in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--gigabytes", type=float, default=1.3)
    given = parser.parse_args()
    size = int(given.gigabytes * 1e9)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory(dir=given.directory) as scratch:
        source = Path(scratch) / "source"
        with source.open("wb") as file:
            for _ in range(0, size, 1 << 24):
                file.write(os.urandom(1 << 24))
        for turn in range(6):
            for name, copy in WAYS.items():
                with source.open("rb") as read, (Path(scratch) / "target").open("wb") as write:
                    started = time.perf_counter()
                    copy(read.fileno(), write.fileno(), size)
                    if turn:
                        seconds[name].append(time.perf_counter() - started)
                (Path(scratch) / "target").unlink()
    for name, taken in seconds.items():
        print(f"{name:30} {statistics.median(taken):.2f} s ({min(taken):.2f} to {max(taken):.2f})")


if __name__ == "__main__":
    main()
