"""Saving: a directory is whole, read back and as the umask wants it, or it is not there."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from families import seeded
from inheritune.errors import Failed, Refused
from inheritune.reference import Reference, find
from inheritune.surgery import directory, inherit, save, saving, verify_saved
from tiny import TOKENS, content, family, one_line, saved

NAMES = ["llama", "llama tied", "gpt2 tied", "gpt2", "mixtral", "gemma2 tied", "deepseek_v3"]
DESCENT = {"initialisation": "random"}

Write = Callable[[Path], object]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return saved("llama", tmp_path_factory.mktemp("reference"))


@pytest.fixture(params=["a cut", "a model", "parts"])
def write(request: pytest.FixtureRequest, reference: Reference) -> Write:
    """Everything that writes a target's directory."""
    ways: dict[str, Write] = {
        "a cut": lambda out: inherit(reference, (0, 1), out, token_ids=TOKENS),
        "a model": lambda out: save(seeded(family("llama")), None, out, DESCENT, inheritance={}),
        "parts": lambda out: inherit(reference, (0, 1), out, init="mlp", parts=frozenset({"mlp"})),
    }
    return ways[request.param]


# ---- whole or absent


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_that_the_umask_gives(umask: int, mode: int, write: Write, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write(tmp_path / "out")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert set(modes.values()) == {mode}, modes
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == mode | mode >> 2 & 0o111


@pytest.mark.parametrize("function", ["os.fsync", "pathlib.Path.rename"])
def test_a_failed_save_leaves_nothing(
    function: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: Any, **_keywords: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(function, full)
    with pytest.raises(Failed) as error:
        write(tmp_path / "out")
    text = one_line(error)
    assert ": cannot be written: [Errno 28] No space left on device; mend that and give the same command" in text
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_leaves_nothing(
    reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(Failed, match="No space left"):
        inherit(reference, (0, 1), tmp_path / "out", token_ids=TOKENS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [Failed("it differs"), Refused("it cannot be"), KeyboardInterrupt(), RuntimeError()])
def test_a_proof_that_does_not_end_well_leaves_nothing(
    error: BaseException, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prove(_reference: Reference, where: Path, *_rest: Any) -> dict[str, Any]:
        assert (where / "model.safetensors").exists()
        assert not (tmp_path / "out").exists()
        raise error

    monkeypatch.setattr(directory, "prove", prove)
    with pytest.raises(type(error)):
        inherit(reference, (0, 1), tmp_path / "out", token_ids=TOKENS)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_save_left_is_no_obstacle(write: Write, tmp_path: Path) -> None:
    (tmp_path / ".out.tmp").mkdir()
    (tmp_path / ".out.tmp" / "junk").touch()
    write(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / "junk").exists()


def test_a_directory_that_came_in_the_meantime_is_not_overwritten(write: Write, tmp_path: Path) -> None:
    settle = saving._settle

    def meanwhile(temporary: Path) -> None:
        settle(temporary)
        if not temporary.parent.name.startswith("."):  # not the whole cut that parts are taken from
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "note").write_text("mine")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "_settle", meanwhile)
        with pytest.raises(Failed, match="out: cannot be written"):
            write(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["note"]


# ---- a model in memory


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_is_a_standard_directory(name: str, tmp_path: Path) -> None:
    model = seeded(family(name))
    record = save(model, None, tmp_path / "out", DESCENT, inheritance={"a": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("README.md", "config.json", "generation_config.json", "inheritance.json", "model.safetensors")
    }
    assert json.loads((tmp_path / "out" / "inheritance.json").read_text()) == {"a": 1, "saved": record}
    assert (record["tensors"], record["equal"]) == (len(model.state_dict()), True)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.config.inheritune == DESCENT
    with torch.no_grad():
        assert content(again(TOKENS).logits) == content(model(TOKENS).logits)


def test_a_tokenizer_is_saved_with_it(tokenizer_directory: Path, llama_directory: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_directory)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    save(model, tokenizer, tmp_path / "one", DESCENT)
    save(model, None, tmp_path / "two", DESCENT, reference=find(str(llama_directory)))
    for name in ("one", "two"):
        again = AutoTokenizer.from_pretrained(tmp_path / name)
        assert again("def main")["input_ids"] == tokenizer("def main")["input_ids"]
    assert (tmp_path / "two" / "tokenizer.json").read_bytes() == (llama_directory / "tokenizer.json").read_bytes()


def test_recipe_and_licence_stand_in_the_card_alone(tmp_path: Path) -> None:
    model = seeded(family("llama"))
    save(model, None, tmp_path / "out", {**DESCENT, "recipe": {"name": "demo"}, "license": "mit"})
    assert model.config.inheritune == DESCENT
    card = (tmp_path / "out" / "README.md").read_text()
    assert "name: demo" in card
    assert "license: mit" in card


# ---- read back


@pytest.fixture
def both(tmp_path: Path) -> tuple[PreTrainedModel, Path]:
    """A model, and the directory that it was saved to."""
    model = seeded(family("llama"))
    save(model, None, tmp_path / "out", DESCENT)
    return model, tmp_path / "out"


def test_a_change_on_the_disk_is_seen(both: tuple[PreTrainedModel, Path]) -> None:
    model, out = both
    file = out / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"].view(torch.int32)[0] ^= 1
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(Failed) as error:
        verify_saved(out, model)
    assert "model.norm.weight differs after saving and loading (1 of 57 tensors do)" in one_line(error)
    del tensors["model.norm.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(Failed, match=r"model\.norm\.weight differs after saving"):
        verify_saved(out, model)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(Failed, match="what was saved does not load"):
        verify_saved(out, model)


def test_a_config_that_computes_otherwise_is_seen(both: tuple[PreTrainedModel, Path]) -> None:
    model, out = both
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    with pytest.raises(Failed, match="what the saved model gives differs"):
        verify_saved(out, model)


def test_a_tie_that_saving_changed_is_seen(tmp_path: Path) -> None:
    model = seeded(family("llama tied"))
    save(model, None, tmp_path / "out", DESCENT)
    head = model.get_submodule("lm_head")
    head.register_parameter("weight", torch.nn.Parameter(model.get_parameter("lm_head.weight").detach().clone()))
    with pytest.raises(Failed, match=r"tied after saving and loading: \{'lm_head.*; before: none"):
        verify_saved(tmp_path / "out", model)


def test_a_cast_model_is_saved_although_its_rotary_frequencies_were_cast(tmp_path: Path) -> None:
    model = seeded(family("llama")).to(torch.bfloat16)  # type: ignore[arg-type]
    frequencies = model.get_buffer("model.rotary_emb.inv_freq").clone()
    assert frequencies.dtype == torch.bfloat16
    save(model, None, tmp_path / "out", DESCENT)
    after = model.get_buffer("model.rotary_emb.inv_freq")
    assert (after.dtype, content(after)) == (torch.bfloat16, content(frequencies))
    after.mul_(2.0)
    with pytest.raises(Failed, match="what the saved model gives"):
        verify_saved(tmp_path / "out", model)


def test_modes_of_modules_are_left_as_they_were(tmp_path: Path) -> None:
    model = seeded(family("gpt2"))
    model.train()
    model.get_submodule("transformer.h.2").eval()
    before = [module.training for module in model.modules()]
    save(model, None, tmp_path / "out", DESCENT)
    assert [module.training for module in model.modules()] == before
    assert {True, False} == set(before)
