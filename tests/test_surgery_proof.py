"""The proof: what it states, and that it sees whatever is changed in a target that was saved."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from inheritune.errors import Failed, InherituneError, Interrupted, Refused
from inheritune.reference import Reference
from inheritune.surgery import directory as directories, inherit, proof, prove
from tiny import TOKENS, one_line, saved

Tensors = dict[str, torch.Tensor]
Change = Callable[[dict[str, Any]], object]
EQUAL = {"equal": True, "max_abs_difference": 0.0}


@dataclass(frozen=True)
class Pair:
    """A reference, its target, and what the proof of it runs on."""

    reference: Reference
    target: Path
    indices: tuple[int, ...]

    def prove(self, directory: Path | None = None) -> dict[str, Any]:
        return prove(self.reference, directory or self.target, self.indices, TOKENS)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, tuple[int, ...]], Pair]:
    """Targets of families, each made once; read only."""
    found = lru_cache(maxsize=None)(lambda name: saved(name, tmp_path_factory.mktemp("reference")))

    @cache
    def pair(name: str, indices: tuple[int, ...]) -> Pair:
        out = tmp_path_factory.mktemp("target")
        inherit(found(name), indices, out, token_ids=TOKENS)
        return Pair(found(name), out, indices)

    return pair


MakePair = Callable[[str, tuple[int, ...]], Pair]


def spoiled(pair: Pair, directory: Path, tensors: Change | None = None, config: Change | None = None) -> Path:
    """A copy of a target with something changed in its files."""
    shutil.copytree(pair.target, directory)
    if tensors is not None:
        held = load_file(directory / "model.safetensors")
        tensors(held)
        save_file(held, directory / "model.safetensors", {"format": "pt"})
    if config is not None:
        settings = json.loads((directory / "config.json").read_text())
        config(settings)
        (directory / "config.json").write_text(json.dumps(settings))
    return directory


def flip(name: str) -> Callable[[Tensors], None]:
    """Change the lowest bit of a tensor's last value."""

    def change(tensors: Tensors) -> None:
        tensors[name].view(torch.int32).view(-1)[-1] ^= 1

    return change


# ---- what it states


@pytest.mark.parametrize(("name", "tensors"), [("llama", 30), ("gpt2 tied", 41), ("mixtral", 30)])
def test_a_prefix_is_proven(name: str, tensors: int, pairs: MakePair) -> None:
    record = pairs(name, (0, 1, 2)).prove()
    assert record["hidden_state_before_final_norm"] == EQUAL
    assert record["logits"] is None
    assert record["blocks"] == [{"block": one, "source": one, **EQUAL} for one in range(3)]
    assert (record["tokens"], record["sequences"]) == (48, 2)
    assert (record["dtype"], record["device"], record["attention"]) == ("float32", "cpu", "sdpa")
    assert record["generation"] == "works"
    assert record["arguments_equal"] is True
    assert record["tensors_equal"] == tensors
    json.dumps(record, allow_nan=False)


def test_any_choice_is_proven_block_by_block(pairs: MakePair) -> None:
    record = pairs("llama", (3, 0, 3)).prove()
    assert record["hidden_state_before_final_norm"] is None
    assert record["logits"] is None
    assert [(block["block"], block["source"]) for block in record["blocks"]] == [(0, 3), (1, 0), (2, 3)]


def test_all_layers_give_the_references_logits(pairs: MakePair) -> None:
    record = pairs("gpt2 tied", tuple(range(6))).prove()
    assert record["logits"] == record["hidden_state_before_final_norm"] == EQUAL


def test_progress_is_told_up_to_the_last_block_that_is_kept(pairs: MakePair) -> None:
    pair, told = pairs("llama", (1, 4)), []
    prove(pair.reference, pair.target, pair.indices, TOKENS, lambda done, total: told.append((done, total)))
    assert told == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_both_compute_on_tensors_that_lie_alike(pairs: MakePair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = pairs("llama", (1, 4))
    odd: list[int] = []
    assert any(tensor.data_ptr() % 64 for tensor in AutoModelForCausalLM.from_pretrained(pair.target).parameters())

    def look(reference: PreTrainedModel, target: PreTrainedModel) -> None:
        odd.extend(tensor.data_ptr() % 64 for tensor in (*reference.parameters(), *target.parameters()))

    monkeypatch.setattr(proof, "_check_comparable", look)
    pair.prove()
    assert set(odd) == {0}


# ---- what it sees


@pytest.mark.parametrize("indices", [(0, 1), (1, 4), (0, 1, 0)])
@pytest.mark.parametrize(
    "tensor",
    [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.1.input_layernorm.weight",
        "model.norm.weight",
        "lm_head.weight",
    ],
)
def test_one_bit_of_a_tensor_is_seen(tensor: str, indices: tuple[int, ...], pairs: MakePair, tmp_path: Path) -> None:
    pair = pairs("llama", indices)
    with pytest.raises(Failed) as error:
        pair.prove(spoiled(pair, tmp_path / "out", flip(tensor)))
    first = "hidden state before the final norm" if indices == (0, 1) and "embed" in tensor else tensor
    assert re.sub(r".*layers\.(.)\.", r"block \1: ", first) in one_line(error)


def test_one_bit_of_one_expert_is_seen(pairs: MakePair, tmp_path: Path) -> None:
    pair = pairs("mixtral", (0, 1, 2))
    expert = "model.layers.2.block_sparse_moe.experts.3.w2.weight"
    with pytest.raises(Failed, match=r"block 2: .*experts"):
        pair.prove(spoiled(pair, tmp_path / "out", flip(expert)))


def test_a_saved_buffer_is_seen(pairs: MakePair, tmp_path: Path) -> None:
    pair = pairs("deepseek_v3", (0, 1, 2))
    with pytest.raises(Failed, match=r"block 1: .*e_score_correction_bias"):
        pair.prove(spoiled(pair, tmp_path / "out", flip("model.layers.1.mlp.gate.e_score_correction_bias")))


def test_another_sign_of_zero_is_seen(tmp_path: Path) -> None:
    def zero(model: PreTrainedModel) -> None:
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[3, 4] = 0.0

    reference = saved("llama", tmp_path / "reference", zero)
    pair = Pair(reference, tmp_path / "target", (0, 1))
    inherit(reference, (0, 1), pair.target, token_ids=TOKENS)

    def negate(tensors: Tensors) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = -0.0

    with pytest.raises(Failed, match=r"block 1: mlp\.up_proj\.weight"):
        pair.prove(spoiled(pair, tmp_path / "out", negate))


def test_another_embedding_is_seen(pairs: MakePair, tmp_path: Path) -> None:
    def roll(tensors: Tensors) -> None:
        tensors["transformer.wte.weight"] = tensors["transformer.wte.weight"].roll(1, 0)

    pair = pairs("gpt2 tied", (0, 1, 2))
    with pytest.raises(Failed, match="hidden state before the final norm"):
        pair.prove(spoiled(pair, tmp_path / "out", roll))


def test_swapped_blocks_are_seen(pairs: MakePair, tmp_path: Path) -> None:
    def swap(tensors: Tensors) -> None:
        for name in [name for name in tensors if ".layers.0." in name]:
            other = name.replace(".layers.0.", ".layers.1.")
            tensors[name], tensors[other] = tensors[other], tensors[name]

    pair = pairs("llama", (0, 2, 5))
    with pytest.raises(Failed, match=r"block 0: input_layernorm\.weight differs"):
        pair.prove(spoiled(pair, tmp_path / "out", swap))


@pytest.mark.parametrize(
    ("name", "indices", "change", "complaint"),
    [
        # a block of another type of attention: its mask is another
        ("gemma2", (0, 1), {"layer_types": ["full_attention", "full_attention"]}, "block 0 would get other arguments"),
        ("gemma2", (1, 4), {"layer_types": ["sliding_attention", "full_attention"]}, "would get other arguments"),
        ("mistral", (1, 4), {"sliding_window": 4}, "block 1 would get other arguments"),
        # rotary frequencies
        ("llama", (1, 4), {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "other arguments"),
        # what a block computes with beside its tensors
        ("llama", (1, 4), {"rms_norm_eps": 0.5}, "block 0 differs from the reference's by up to .* bit for bit"),
        ("smollm3", (1, 2), {"no_rope_layers": [1, 1]}, "block 0 differs from the reference's by up to"),
        ("granite", (0, 1), {"residual_multiplier": 0.25}, "block 0 differs"),
        # before the blocks, and after them
        ("granite", (0, 1), {"embedding_multiplier": 3.0}, "hidden state before the final norm differs"),
        ("granite", tuple(range(6)), {"logits_scaling": 2.0}, "logits differs"),
        # another number of blocks
        ("llama", (1, 4), {"num_hidden_layers": 3}, "lacks or has too much: model.layers.2"),
        ("llama", (1, 4), {"num_hidden_layers": 1}, "lacks or has too much: model.layers.1"),
    ],
)
def test_a_config_that_computes_otherwise_is_seen(
    name: str, indices: tuple[int, ...], change: dict[str, Any], complaint: str, pairs: MakePair, tmp_path: Path
) -> None:
    pair = pairs(name, indices)
    with pytest.raises(InherituneError, match=complaint) as error:
        pair.prove(spoiled(pair, tmp_path / "out", config=lambda settings: settings.update(change)))
    one_line(error)


def test_a_tie_that_was_made_is_seen(pairs: MakePair, tmp_path: Path) -> None:
    pair = pairs("llama", (1, 4))
    tie: Change = lambda settings: settings.update(tie_word_embeddings=True)  # noqa: E731
    out = spoiled(pair, tmp_path / "out", lambda tensors: tensors.pop("lm_head.weight"), tie)
    with pytest.raises(Failed, match=r"lm_head\.weight"):
        pair.prove(out)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), r"lacks or has too much: model\.norm\.weight"),
        (lambda tensors: tensors.update(extra=torch.ones(2)), "lacks or has too much: extra"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.ones(31)}), "what was saved does not load|norm"),
    ],
)
def test_a_tensor_too_few_or_too_much_is_seen(change: Change, complaint: str, pairs: MakePair, tmp_path: Path) -> None:
    pair = pairs("llama", (1, 4))
    with pytest.raises(Failed, match=complaint) as error:
        pair.prove(spoiled(pair, tmp_path / "out", change))
    one_line(error)


def test_the_layers_of_another_choice_are_seen(pairs: MakePair) -> None:
    with pytest.raises(Failed, match=r"block 1: .* differs"):
        prove(pairs("llama", (1, 4)).reference, pairs("llama", (1, 4)).target, (1, 3), TOKENS)


def test_models_that_compute_in_different_ways_are_not_compared(
    pairs: MakePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = proof.load_saved

    def eager(directory: Path, reference: Reference) -> PreTrainedModel:
        model = load(directory, reference)
        model.set_attn_implementation("eager")
        return model

    monkeypatch.setattr(proof, "load_saved", eager)
    with pytest.raises(Failed, match="attention differs, sdpa in the reference and eager in the target"):
        pairs("llama", (1, 4)).prove()


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        (math.nan, Refused, r"block 0: mlp.down_proj.weight holds NaN or infinity; its file is damaged"),
        (3e38, Failed, r"hidden state after block 0 is not finite, so nothing is shown; try another dtype"),
    ],
)
def test_numbers_that_are_not_finite_prove_nothing(
    value: float, kind: type[InherituneError], said: str, tmp_path: Path
) -> None:
    def spoil(model: PreTrainedModel) -> None:
        model.get_parameter("model.layers.0.mlp.down_proj.weight").fill_(value)

    reference = saved("llama", tmp_path / "reference", spoil)
    with pytest.raises(kind, match=said):
        inherit(reference, (0, 1), tmp_path / "out", token_ids=TOKENS)
    assert [path.name for path in tmp_path.iterdir()] == ["reference"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.35, 0.5, 0.77, 0.9, 1.0])
def test_one_byte_that_changes_after_writing_is_seen(
    share: float, pairs: MakePair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damage(reference: Reference, directory: Path, *rest: Any) -> dict[str, Any]:
        file = directory / "model.safetensors"
        content = bytearray(file.read_bytes())
        start = 8 + int.from_bytes(content[:8], "little")
        content[start + int(share * (len(content) - start - 1))] ^= 0x40
        file.write_bytes(content)
        return prove(reference, directory, *rest)

    monkeypatch.setattr(directories, "prove", damage)
    with pytest.raises(Failed, match="differs"):
        inherit(pairs("llama", (1, 4)).reference, (1, 4), tmp_path / "out", token_ids=TOKENS)
    assert list(tmp_path.iterdir()) == []


def test_a_stop_is_no_failure_of_generation() -> None:
    class Target:
        def generate(self, *_: Any, **__: Any) -> None:
            raise Interrupted("stopped by SIGTERM", 143)

    target: Any = Target()
    with pytest.raises(Interrupted):
        proof._generation(target, torch.zeros(1, 8, dtype=torch.long))
    assert not issubclass(Interrupted, Exception), "libraries would take it for an error of theirs"
