"""The order of the modules, and what `import` may cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import inheritune

SOURCE = Path(inheritune.__file__).parent

# In order: a module may import only from those above it, and of those only what stands here. A package is one module.
ALLOWED = {
    "errors": "",
    "config": "errors",
    "arms": "errors config",
    "rules": "errors config arms",
    "recipe_yaml": "errors",
    "recipe_errors": "errors config",
    "recipe": "errors config rules recipe_yaml recipe_errors",
    "run_directory": "errors config",
    "environment": "errors",
    "console": "errors",
    "distributed": "errors",
    "hardware": "errors",
    "devices": "errors",
    "costs": "errors devices",
    "energy": "errors devices",
    "consumption": "errors run_directory",
    "ledger": "errors run_directory consumption",
    "tracking": "errors run_directory",
    "versions": "errors",
    "metering": "errors consumption distributed energy hardware",
    "loss": "errors",
    "attention": "errors",
    "schedule": "errors",
    "stopping": "errors",
    "published": "errors",
    "scores": "errors",
    "scoring": "errors scores",
    "against": "errors published scores scoring",
    "comparison": "errors",
    "decision": "errors comparison",
    "abandonment": "errors schedule",
    "depth": "errors comparison",
    "growth": "errors config",
    "result": "errors config run_directory published comparison decision growth",
    "reference": "errors config run_directory",
    "planning": "errors config reference",
    "corpus": "errors config run_directory",
    "tokens": "errors config run_directory distributed",
    "trained": "errors consumption",
    "batching": "errors loss tokens",
    "surgery": "errors run_directory reference",
    "scratch": "errors config reference",
    "parallel": "errors config versions distributed reference",
    "between": "errors scores parallel",
    "recomputation": "errors attention reference",
    "objective": "errors config loss attention reference parallel",
    "optimizer": "errors config",
    "checkpoint": "errors run_directory distributed",
    "training_state": "errors distributed trained optimizer checkpoint",
    "validation": "errors distributed loss reference tokens parallel objective",
    "layerwise": "errors config comparison result reference tokens loss parallel objective validation",
    "metrics": "errors run_directory hardware tracking",
    "micro_batch": "errors run_directory distributed hardware",
    "memory": "errors config versions attention reference recomputation objective optimizer",
    "evaluation": "errors config run_directory published scores scoring comparison reference hardware",
    "training": "errors config run_directory hardware tracking distributed metering schedule stopping trained scores"
    " reference planning tokens batching parallel between recomputation objective optimizer checkpoint training_state"
    " validation metrics micro_batch",
    "probing": "errors config arms run_directory distributed reference surgery tokens metrics training",
    "report": "errors run_directory devices ledger published scores scoring comparison growth result",
}
ALLOWED["pipeline"] = " ".join(ALLOWED)
ALLOWED["cli"] = " ".join(ALLOWED)
ALLOWED["__init__"] = " ".join(module for module in ALLOWED if module != "cli")
ALLOWED["__main__"] = "cli"

# What answers at once, on a machine without a GPU: neither may be imported with it.
LIGHT = [
    "config",
    "arms",
    "rules",
    "recipe",
    "recipe_yaml",
    "recipe_errors",
    "run_directory",
    "console",
    "tracking",
    "schedule",
    "published",
    "devices",
    "costs",
    "scores",
    "scoring",
    "against",
    "comparison",
    "decision",
    "abandonment",
    "depth",
    "result",
]
LIGHT += ["devices", "energy", "consumption", "ledger", "report", "cli"]
HEAVY = ["torch", "transformers", "datasets", "datatrove", "matplotlib", "pandas"]

RELATIVE = "."


def module_names(source: Path) -> dict[str, Path]:
    """Every file of the package by its dotted name below `inheritune`; a folder's own file by the folder's name."""
    names = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        names[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return names


def imported(path: Path, names: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import of our own modules: in functions and under TYPE_CHECKING, too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, RELATIVE
                continue
            prefix = f"{node.module}."
            within = [prefix + alias.name for alias in node.names]
            # `from inheritune.corpus import prepare` means the file `prepare` if there is one, else a name.
            targets = [name if name.removeprefix("inheritune.") in names else str(node.module) for name in within]
            if node.module == "inheritune":
                targets = [name for name in within if name != "inheritune.__version__"]
        else:
            continue
        for target in targets:
            if target == "inheritune":
                yield node.lineno, "__init__"
            elif target.startswith("inheritune."):
                yield node.lineno, target.removeprefix("inheritune.")


def violations(source: Path) -> list[str]:
    """What breaks the order: unknown modules, imports that are not allowed, circles of files."""
    found = []
    names = module_names(source)
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        module = name.split(".")[0]
        if module not in ALLOWED:
            found.append(f"{name}: not in the order of modules; give it a place in ALLOWED and in the design")
            continue
        graph[name] = set()
        for line, target in imported(path, names):
            if target == RELATIVE:
                found.append(f"{name}:{line}: relative import; name the module in full")
                continue
            graph[name].add(target)
            other = target.split(".")[0]
            if other != module and other not in ALLOWED[module].split():
                found.append(f"{name}:{line}: {module} must not import {other}")
    return found + [f"circle: {' -> '.join(circle)}" for circle in circles(graph)]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """A circle for every import that closes one."""
    found, done = [], set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
        elif name not in done:
            for target in sorted(graph.get(name, ())):
                visit(target, [*path, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])
    return found


def test_modules_import_only_what_stands_above_them() -> None:
    assert violations(SOURCE) == []


def test_the_table_itself_is_in_order() -> None:
    order = list(ALLOWED)
    for module, allowed in ALLOWED.items():
        assert set(allowed.split()) <= set(order[: order.index(module)]), module
        assert module == "__main__" or "cli" not in allowed.split(), f"{module} may import cli"


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("import inheritune.cli", "config:1: config must not import cli"),
        ("from inheritune import run_directory", "config:1: config must not import run_directory"),
        ("from inheritune import run", "config:1: config must not import run"),
        ("import inheritune", "config:1: config must not import __init__"),
        ("from inheritune.corpus.reading import read", "config:1: config must not import corpus"),
        ("def late():\n    from inheritune.surgery import inherit", "config:2: config must not import surgery"),
        ("if TYPE_CHECKING:\n    from inheritune.loss import x", "config:2: config must not import loss"),
    ],
)
def test_the_check_sees_an_import(source: str, complaint: str, tmp_path: Path) -> None:
    write(tmp_path, {"config.py": source, "corpus/reading.py": ""})
    assert violations(tmp_path) == [complaint]


def test_the_check_sees_what_training_must_not_import(tmp_path: Path) -> None:
    forbidden = ["surgery", "layerwise", "corpus", "evaluation"]
    write(tmp_path, {"training.py": "\n".join(f"from inheritune import {module}" for module in forbidden)})
    assert violations(tmp_path) == [
        f"training:{line}: training must not import {module}" for line, module in enumerate(forbidden, start=1)
    ]


def test_the_check_sees_into_folders(tmp_path: Path) -> None:
    write(tmp_path, {"corpus/__init__.py": "", "corpus/reading.py": "import inheritune.tokens"})
    assert violations(tmp_path) == ["corpus.reading:1: corpus must not import tokens"]


def test_the_check_sees_a_module_without_a_place(tmp_path: Path) -> None:
    write(tmp_path, {"utils.py": ""})
    assert violations(tmp_path) == ["utils: not in the order of modules; give it a place in ALLOWED and in the design"]


def test_the_check_sees_a_relative_import(tmp_path: Path) -> None:
    write(tmp_path, {"config.py": "from . import errors"})
    assert violations(tmp_path) == ["config:1: relative import; name the module in full"]


@pytest.mark.parametrize(
    ("files", "circle"),
    [
        (
            {"a": "from inheritune.corpus.b import x", "b": "def late():\n    from inheritune.corpus import a"},
            "corpus.a -> corpus.b -> corpus.a",
        ),
        (
            {"__init__": "from inheritune.corpus import a", "a": "from inheritune.corpus import prepare"},
            "corpus -> corpus.a -> corpus",
        ),
    ],
)
def test_the_check_sees_a_circle(files: dict[str, str], circle: str, tmp_path: Path) -> None:
    write(tmp_path, {f"corpus/{name}.py": text for name, text in files.items()})
    assert violations(tmp_path) == [f"circle: {circle}"]


def test_the_check_lets_pass_what_is_allowed(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "errors.py": "",
            "config.py": "import os\nfrom inheritune.errors import Refused\nfrom inheritune import __version__",
            "corpus/__init__.py": "from inheritune.corpus.reading import read\nfrom inheritune import config",
            "corpus/reading.py": "from inheritune.run_directory import write_json",
            "pipeline.py": "from inheritune import corpus\nfrom inheritune.corpus import read",
            "cli.py": "def main():\n    from inheritune import pipeline",
        },
    )
    assert violations(tmp_path) == []


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


def heavy_after(statement: str) -> list[str]:
    """Which heavy libraries a new interpreter has imported after a statement."""
    program = f"import sys\n{statement}\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize("module", ["", *(f".{name}" for name in LIGHT)])
def test_light_modules_import_no_heavy_library(module: str) -> None:
    assert heavy_after(f"import inheritune{module}") == []


def test_heavy_libraries_would_be_seen() -> None:
    assert "torch" in heavy_after("import torch")


def test_public_names_are_there() -> None:
    for name in inheritune.__all__:
        assert getattr(inheritune, name) is not None
        assert name in dir(inheritune)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'inherits'"):
        _ = inheritune.inherits
