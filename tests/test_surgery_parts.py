"""Inits of parts, as directories: where the account says that tensors come from; what fails leaves nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from inheritune.errors import Failed
from inheritune.reference import Reference
from inheritune.surgery import inherit, saving
from tiny import content, file_sums, loaded, saved

INDICES = (1, 4)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return saved("llama", tmp_path_factory.mktemp("llama"))


def partly(reference: Reference, out: Path, words: str, seed: int = 3) -> dict[str, Any]:
    wanted = frozenset() if words == "random" else frozenset(words.split("+"))
    return inherit(reference, INDICES, out, init=words, parts=wanted, seed=seed)


def test_the_account_names_the_layers_that_parts_come_from(llama: Reference, tmp_path: Path) -> None:
    record = partly(llama, tmp_path / "out", "attention")
    assert (record["init"], record["proof"], record["layers_kept"]) == ("attention", None, [1, 4])
    assert record["counts"] == {"inherited": 8, "tied": 0, "fresh": 13}
    ours, theirs = file_sums(tmp_path / "out"), file_sums(llama.path)
    assert {tensor["name"]: tensor["sha256"] for tensor in record["tensors"]} == ours
    for tensor in record["tensors"]:
        expected = "self_attn" in tensor["name"]
        assert tensor["status"] == ("inherited" if expected else "fresh")
        assert tensor["source"] == (tensor["name"].replace(".1.", ".4.").replace(".0.", ".1.") if expected else None)
        assert not expected or tensor["sha256"] == theirs[tensor["source"]]
    lineage = json.loads((tmp_path / "out" / "config.json").read_text())["inheritune"]
    assert (lineage["init"], lineage["seed"], lineage["layers_kept"]) == ("attention", 3, [1, 4])
    assert record["saved"]["equal"]


def test_experts_that_are_fused_come_from_several_tensors_of_the_files(tmp_path: Path) -> None:
    reference = saved("mixtral", tmp_path / "reference")
    record = partly(reference, tmp_path / "out", "mlp")
    ours, theirs = loaded(tmp_path / "out").state_dict(), loaded(reference.path).state_dict()
    sources = {tensor["name"]: tensor["source"] for tensor in record["tensors"]}
    for position, index in enumerate(INDICES):
        for name in ("gate_up_proj", "down_proj"):
            fused = f"model.layers.{position}.mlp.experts.{name}"
            assert content(ours[fused]) == content(theirs[f"model.layers.{index}.mlp.experts.{name}"])
            assert sources[fused] in reference.stored
            assert f".layers.{index}." in sources[fused]


def test_a_tied_head_has_the_embeddings_source(tmp_path: Path) -> None:
    reference = saved("gpt2 tied", tmp_path / "reference")
    record = partly(reference, tmp_path / "out", "head")
    sources = {tensor["name"]: (tensor["status"], tensor["source"]) for tensor in record["tensors"]}
    assert sources["transformer.wte.weight"] == ("inherited", "transformer.wte.weight")
    assert sources["lm_head.weight"] == ("tied", "transformer.wte.weight")
    assert sources["transformer.wpe.weight"] == ("fresh", None)


def test_a_reload_that_differs_leaves_nothing(
    llama: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = saving.verify_saved

    def spoil(out: Path, model: PreTrainedModel, **keywords: bool) -> dict[str, Any]:
        model.get_parameter("model.norm.weight").data[0] += 1.0
        return verify(out, model, **keywords)

    monkeypatch.setattr(saving, "verify_saved", spoil)
    with pytest.raises(Failed, match=r"model\.norm\.weight differs after saving and loading"):
        partly(llama, tmp_path / "out", "mlp")
    assert list(tmp_path.iterdir()) == []
