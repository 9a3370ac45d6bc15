"""The text that every installation brings along: the Python source of the standard library and of five pinned packages.

It needs no network and is the same wherever the same versions are installed, so a recipe on it can be repeated.
Nothing of it is imported: it is only read.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from inheritune.errors import Refused

PACKAGES = ("torch", "sympy", "pandas", "numpy", "networkx")
_TEST_DIRECTORIES = frozenset({"test", "tests", "testing", "idle_test"})
_NOT_SOURCE = frozenset({"site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True)
class PythonFile:
    """A source file under the name it has on every machine."""

    name: str
    path: str
    size: int


@dataclass(frozen=True)
class PythonPackage:
    """The standard library or an installed package, without its tests."""

    name: str
    version: str
    files: list[PythonFile]

    def record(self) -> dict[str, str | int]:
        """As JSON, for the manifest."""
        return {
            "name": self.name,
            "version": self.version,
            "files": len(self.files),
            "bytes": sum(file.size for file in self.files),
        }


def list_python_source() -> list[PythonPackage]:
    """The standard library and the five packages, each with its files sorted by name.

    Raises:
        Refused: a package is not installed.
    """
    found = [PythonPackage("python", platform.python_version(), _files("python", Path(sysconfig.get_path("stdlib"))))]
    for name in PACKAGES:
        specification = importlib.util.find_spec(name)
        locations = list(specification.submodule_search_locations or []) if specification else []
        if not locations:
            raise Refused(f"python-source: the package {name} is not installed; pip install {name}")
        found.append(PythonPackage(name, importlib.metadata.version(name), _files(name, Path(locations[0]))))
    return found


def _files(package: str, root: Path) -> list[PythonFile]:
    found = [
        PythonFile(f"{package}/{path.relative_to(root).as_posix()}", str(path), path.stat().st_size)
        for path in _walk(root)
        if path.stat().st_size > 0
    ]
    return sorted(found, key=lambda file: file.name)


def _walk(root: Path) -> Iterator[Path]:
    for directory, directories, names in os.walk(root):
        directories[:] = [name for name in directories if name not in _TEST_DIRECTORIES | _NOT_SOURCE]
        for name in names:
            if name.endswith(".py") and not name.startswith("test_"):
                yield Path(directory, name)
