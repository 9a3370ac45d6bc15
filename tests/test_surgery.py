"""Surgery over every decoder-only family that transformers has: the matrix, printed when its tests are done.

What `inherit` says of a target is checked here by other means than its own proof's: target and reference are loaded by
transformers, and all that both hold and compute is compared to the bit.

Families that surgery promises by name are cut in every way of CHOICES, but where they have an untied head, too, only in
three ways with a tied one. Of the others, a tied one keeps its first three layers, an untied one three that are no
neighbours. `INHERITUNE_ALL_FAMILIES=1` cuts all of them in every way.
"""

from __future__ import annotations

import copy
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from families import FAMILIES, LAYERS, Family, seeded
from inheritune.errors import Refused
from inheritune.reference import find
from inheritune.surgery import inherit
from refusals import CHOICES, refusal
from tiny import TOKENS, content, file_sums, hidden, loaded, one_line, watched

Kept = tuple[int, ...]
Matrix = dict[str, dict[str, str]]

# transformers 5.17 scripts parts of GPT BigCode
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

EVERY_CHOICE = os.environ.get("INHERITUNE_ALL_FAMILIES") == "1"


def choices(family: Family) -> tuple[str, ...]:
    """How a family is cut."""
    if EVERY_CHOICE or (family.listed and not family.name.endswith(" tied")):
        return tuple(CHOICES)
    if family.listed:
        return ("first 3", "1, 4", "all 6")
    return ("first 3",) if family.tied else ("0, 2, 5",)


CELLS = [
    pytest.param(family, choice, id=f"{family.name}-{choice}") for family in FAMILIES for choice in choices(family)
]


@dataclass(frozen=True)
class Original:
    """A reference as transformers loads and runs it."""

    family: Family
    sums: dict[str, str]
    """SHA-256 of its files' tensors."""
    model: PreTrainedModel
    blocks: str
    """The name of the list of its blocks."""
    given: list[tuple[tuple[Any, ...], dict[str, Any]]]
    """What each block was called with."""
    outputs: list[torch.Tensor]
    hidden_states: tuple[torch.Tensor, ...]
    logits: torch.Tensor


@pytest.fixture(scope="module")
def directories() -> Iterator[Callable[[Family], Path]]:
    """Where a family's reference is saved; the one before it is let go."""
    with ExitStack() as held:

        @lru_cache(maxsize=1)
        def directory(family: Family) -> Path:
            held.close()
            path = Path(held.enter_context(TemporaryDirectory(prefix="inheritune-")))
            seeded(family).save_pretrained(path)
            return path

        yield directory


found = lru_cache(maxsize=1)(lambda directory: find(str(directory)))


@lru_cache(maxsize=1)
def original(family: Family, directory: Path) -> Original:
    """The reference, loaded and run once for all its choices."""
    with torch.no_grad():
        model = loaded(directory)
        blocks = block_list(model)
        given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        with watched(model.get_submodule(blocks), given) as outputs:
            result = model(TOKENS, use_cache=False, output_hidden_states=True)
        sums = file_sums(directory)
        return Original(family, sums, model, blocks, given, outputs, result.hidden_states, result.logits)


@pytest.fixture(scope="module", autouse=True)
def matrix(request: pytest.FixtureRequest) -> Iterator[Matrix]:
    """Family × choice → proven, refused or FAILED; shown at the end, whether or not pytest captures what is printed."""
    found: Matrix = defaultdict(dict)
    yield found
    reporter = request.config.pluginmanager.getplugin("terminalreporter")
    capture = request.config.pluginmanager.getplugin("capturemanager")
    words = Counter(word for row in found.values() for word in row.values())
    width = max(map(len, found), default=0) + 2
    with capture.global_and_fixture_disabled():
        reporter.write_line("")
        reporter.write_line(" " * width + "".join(f"{choice:9}" for choice in CHOICES).rstrip())
        for name, row in found.items():
            reporter.write_line(f"{name:{width}}" + "".join(f"{row.get(one, ''):9}" for one in CHOICES).rstrip())
        counts = ", ".join(f"{count} {word}" for word, count in words.most_common())
        reporter.write_line(f"{len(found)} models: {counts} (* transformers cannot generate with a cache)")


@pytest.fixture(scope="module", autouse=True)
def unsettled() -> Iterator[None]:
    """Without waiting for the disk, hundreds of times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)
        yield


@pytest.mark.parametrize(("family", "choice"), CELLS)
def test_layers_are_inherited_or_refused(
    family: Family, choice: str, directories: Callable[[Family], Path], matrix: Matrix, tmp_path: Path
) -> None:
    matrix[family.name][choice] = "FAILED"
    init, named, kept = CHOICES[choice]
    directory, out, expected = directories(family), tmp_path / "target", refusal(family, choice)
    if expected is not None:
        with pytest.raises(Refused, match=expected) as error:
            inherit(found(directory), named, out, init=init, token_ids=TOKENS)
        one_line(error)
        assert list(tmp_path.iterdir()) == []
        matrix[family.name][choice] = "refused"
        return
    record = inherit(found(directory), named, out, init=init, token_ids=TOKENS)
    assert record["layers_kept"] == list(kept)
    reference = original(family, directory)
    with torch.no_grad():
        target = loaded(out)
        check_tensors(reference, target, kept)
        check_record(reference, target, out, record)
        check_blocks(reference, target, kept)
        if kept == tuple(range(len(kept))):
            check_prefix(reference, target, len(kept))
        check_generation(reference, target, record)
    matrix[family.name][choice] = "proven" if record["proof"]["generation"] == "works" else "proven*"


def check_tensors(reference: Original, target: PreTrainedModel, kept: Kept) -> None:
    """Every tensor of the target is its source block's, and there are no others."""
    theirs, ours = reference.model.state_dict(), target.state_dict()
    sources = sources_of(theirs, reference.blocks, kept)
    assert ours.keys() == sources.keys()
    for name, source in sources.items():
        assert (ours[name].dtype, ours[name].shape) == (theirs[source].dtype, theirs[source].shape), name
        assert content(ours[name]) == content(theirs[source]), name


def check_record(reference: Original, target: PreTrainedModel, out: Path, record: dict[str, Any]) -> None:
    """The account names the tensors of both directories' files, with their checksums, and all of the module's."""
    theirs, ours, state = reference.sums, file_sums(out), target.state_dict(keep_vars=True)
    by_status: dict[str, list[dict[str, Any]]] = {"inherited": [], "tied": []}
    for tensor in record["tensors"]:
        by_status[tensor["status"]].append(tensor)
    assert sorted(tensor["name"] for tensor in by_status["inherited"]) == sorted(ours)
    for tensor in by_status["inherited"]:
        assert tensor["sha256"] == ours[tensor["name"]] == theirs[tensor["source"]], tensor["name"]
        check_numbers(tensor, reference.blocks, record["layers_kept"])
    for tensor in by_status["tied"]:
        assert state[tensor["name"]] is state[tensor["source"]]
    assert {place for tensor in record["tensors"] for place in tensor["module"]} == state.keys()
    assert record["counts"] == {"fresh": 0} | {status: len(tensors) for status, tensors in by_status.items()}
    assert record["parameters_after"] == sum(parameter.numel() for parameter in target.parameters())
    assert record["parameters_before"] == sum(parameter.numel() for parameter in reference.model.parameters())


def check_numbers(tensor: dict[str, Any], blocks: str, kept: list[int]) -> None:
    """Of the numbers in a name only the block's is changed, and in the same way as in the module."""
    pieces = list(zip(tensor["source"].split("."), tensor["name"].split("."), strict=True))
    changed = {(before, after) for before, after in pieces if before != after}
    inside = [place.removeprefix(f"{blocks}.") for place in tensor["module"] if place.startswith(f"{blocks}.")]
    positions = {int(place.partition(".")[0]) for place in inside}
    assert len(positions) <= 1
    assert changed == {(str(kept[one]), str(one)) for one in positions if kept[one] != one}
    assert all((str(kept[one]), str(one)) in pieces for one in positions)


def check_blocks(reference: Original, target: PreTrainedModel, kept: Kept) -> None:
    """Given what its source block was given, a block gives the same."""
    for block, source in zip(target.get_submodule(reference.blocks), kept, strict=True):  # type: ignore[call-overload]
        arguments, keywords = copy.deepcopy(reference.given[source])
        assert content(hidden(block(*arguments, **keywords))) == content(reference.outputs[source])


def check_prefix(reference: Original, target: PreTrainedModel, count: int) -> None:
    """A target of the first layers is the reference left early: before the final norm, and in its logits."""
    with watched(target.get_submodule(reference.blocks)) as outputs:
        logits = target(TOKENS, use_cache=False).logits
    assert content(outputs[-1]) == content(reference.outputs[count - 1])
    if count == LAYERS:
        assert content(logits) == content(reference.logits)
        return
    # some of the others leave the embeddings out of what they call hidden states
    states = reference.hidden_states[count - (not reference.family.listed) : count + 1]
    assert content(outputs[-1]) in [content(state) for state in states]
    with left_after(reference.model.get_submodule(reference.blocks), count):
        assert content(logits) == content(reference.model(TOKENS, use_cache=False).logits)


def check_generation(reference: Original, target: PreTrainedModel, record: dict[str, Any]) -> None:
    """Greedy tokens with a cache are those of a pass without, as in the reference."""
    said, listed = record["proof"]["generation"], reference.family.listed
    if said == "works":
        assert cached_as_uncached(target) or not (listed or cached_as_uncached(reference.model))
    else:  # transformers 5.24 wants a layer with attention for it
        assert "LinearAttention layers" in said or not listed


def cached_as_uncached(model: PreTrainedModel) -> bool:
    """Whether each token that is generated with a cache is the likeliest in a pass without."""
    start, generator = TOKENS[:1, :12], model
    assert generator.generation_config is not None
    generator.generation_config.eos_token_id = None
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "use_cache": True, "pad_token_id": 0}
    tokens = generator.generate(start, attention_mask=torch.ones_like(start), **settings)  # type: ignore[operator]
    assert tokens.shape == (1, 17)
    return torch.equal(tokens[:, 12:], model(tokens, use_cache=False).logits.argmax(-1)[:, 11:-1])


def block_list(model: PreTrainedModel) -> str:
    """The name of the list of blocks, told by names alone: the first number after it goes from 0 to LAYERS - 1."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for name in model.state_dict():
        if match := re.match(r"(.*?)\.([0-9]+)\.", name):
            numbers[match[1]].add(int(match[2]))
    (name,) = (name for name, found in numbers.items() if found == set(range(LAYERS)))
    return name


def sources_of(names: Iterable[str], blocks: str, kept: Kept) -> dict[str, str]:
    """The names of a target that keeps these blocks, and the reference's that they come from."""
    found = {}
    for name in names:
        if not name.startswith(f"{blocks}."):
            found[name] = name
            continue
        index, _, rest = name.removeprefix(f"{blocks}.").partition(".")
        for position in (place for place, one in enumerate(kept) if one == int(index)):
            found[f"{blocks}.{position}.{rest}"] = name
    return found


@contextmanager
def left_after(blocks: Any, count: int) -> Iterator[None]:
    """The model with its first blocks alone, its own norm and head."""
    rest = list(blocks)[count:]
    del blocks[count:]
    try:
        yield
    finally:
        blocks.extend(rest)
