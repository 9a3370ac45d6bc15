"""Surgery: the directory that is saved, and `inherit_directory`, the whole of it."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from inheritune.errors import Failed, Refused
from inheritune.reference import find, load
from inheritune.surgery import inherit, inherit_directory, lineage, prove, save, verify_saved
from test_surgery import MODELS, TOKENS, llama, one_line


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return MODELS[request.param]()


# ---- saving


def test_a_saved_model_is_a_standard_directory(model: PreTrainedModel, tmp_path: Path) -> None:
    target, _ = inherit(model, (0, 1))
    saved = save(target, None, tmp_path / "out", {"initialisation": "inherited"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "config.json", "generation_config.json", "model.safetensors"}
    assert saved["tensors"] == len(target.state_dict())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, target(TOKENS).logits)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_that_the_umask_gives(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        save(llama(), None, tmp_path / "out", {"initialisation": "random"}, inheritance={})
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()} == {mode}


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: Any, **_keywords: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Failed) as error:
        save(llama(), None, tmp_path / "out", {"initialisation": "random"})
    assert "No space left" in one_line(error)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_save_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".out.tmp").mkdir()
    (tmp_path / ".out.tmp" / "junk").touch()
    save(llama(), None, tmp_path / "out", {"initialisation": "random"})
    assert not (tmp_path / "out" / "junk").exists()


def test_a_change_on_the_disk_is_seen(tmp_path: Path) -> None:
    target = llama()
    save(target, None, tmp_path / "out", {"initialisation": "random"})
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][0] += 1.0
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(Failed) as error:
        verify_saved(tmp_path / "out", target)
    assert "model.norm.weight" in one_line(error)
    del tensors["model.norm.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(Failed) as error:
        verify_saved(tmp_path / "out", target)
    assert "model.norm.weight" in one_line(error)


def test_a_tie_that_saving_changed_is_seen(tmp_path: Path) -> None:
    target = llama(tied=True)
    save(target, None, tmp_path / "out", {"initialisation": "random"})
    target.lm_head.weight = torch.nn.Parameter(target.lm_head.weight.detach().clone())
    with pytest.raises(Failed, match="tied after saving"):
        verify_saved(tmp_path / "out", target)


def test_a_cast_model_is_saved_although_its_rotary_frequencies_were_cast(tmp_path: Path) -> None:
    reference = llama().to(torch.bfloat16)  # type: ignore[arg-type]
    target, _ = inherit(reference, (0, 1))
    prove(reference, target, (0, 1), TOKENS)
    frequencies = target.get_buffer("model.rotary_emb.inv_freq").clone()
    assert frequencies.dtype == torch.bfloat16
    save(target, None, tmp_path / "out", {"initialisation": "random"})
    assert torch.equal(target.get_buffer("model.rotary_emb.inv_freq"), frequencies)
    assert target.get_buffer("model.rotary_emb.inv_freq").dtype == torch.bfloat16
    target.get_buffer("model.rotary_emb.inv_freq").mul_(2.0)
    with pytest.raises(Failed, match="what the saved model gives"):
        verify_saved(tmp_path / "out", target)


def test_a_config_that_computes_otherwise_is_seen(tmp_path: Path) -> None:
    target = llama()
    save(target, None, tmp_path / "out", {"initialisation": "random"})
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["rms_norm_eps"] = 0.5
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(Failed, match="differs"):
        verify_saved(tmp_path / "out", target)


# ---- the whole of it


def test_a_directory_is_inherited(llama_directory: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    before = {path.name: path.read_bytes() for path in llama_directory.iterdir()}
    record = inherit_directory(str(llama_directory), "3", tmp_path / "deep" / "out", report=lines.append)
    out = tmp_path / "deep" / "out"
    assert json.loads((out / "inheritance.json").read_text()) == record
    assert (record["layers_kept"], record["counts"]["fresh"]) == ([0, 1, 2], 0)
    assert record["proof"]["hidden_state_before_final_norm"]["equal"]
    assert record["proof"]["tokens_from"] == "a paragraph of English"
    assert record["saved"]["equal"]
    assert lines
    assert before == {path.name: path.read_bytes() for path in llama_directory.iterdir()}
    tokenizer, theirs = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(llama_directory)
    assert tokenizer("def main():")["input_ids"] == theirs("def main():")["input_ids"]
    target, reference = AutoModelForCausalLM.from_pretrained(out).eval(), load(find(str(llama_directory)))
    assert target.config.num_hidden_layers == 3
    assert prove(reference, target, (0, 1, 2), TOKENS)["hidden_state_before_final_norm"]["equal"]


def test_all_layers_give_the_same_logits(gpt2_directory: Path, tmp_path: Path) -> None:
    record = inherit_directory(str(gpt2_directory), 4, tmp_path / "out")
    assert record["proof"]["logits"] == {"equal": True, "max_abs_difference": 0.0}
    assert record["parameters_before"] == record["parameters_after"]


def test_the_lineage_is_kept_through_two_cuts(llama_directory: Path, tmp_path: Path) -> None:
    inherit_directory(str(llama_directory), 3, tmp_path / "one")
    inherit_directory(str(tmp_path / "one"), 2, tmp_path / "two")
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "two").config
    grandparent, parent = find(str(llama_directory)), find(str(tmp_path / "one"))
    first = {key: value for key, value in lineage(grandparent, (0, 1, 2)).items() if key not in ("chain", "license")}
    assert config.inheritune == {
        "reference": str(tmp_path / "one"),
        "revision": None,
        "fingerprint": parent.fingerprint,
        "layers_kept": [0, 1],
        "reference_layers": 3,
        "chain": [first],
    }
    text = (tmp_path / "two" / "README.md").read_text()
    assert str(tmp_path / "one") in text
    assert str(llama_directory) in text


def test_the_card_has_front_matter_and_the_recipe(tmp_path: Path) -> None:
    descent = {
        "reference": "org/large",
        "revision": "abc",
        "fingerprint": "00",
        "layers_kept": [0, 1, 2, 3],
        "reference_layers": 8,
        "chain": [],
        "license": "apache-2.0",
        "recipe": {"name": "demo", "data": {"passes": 4}},
    }
    target = llama()
    save(target, None, tmp_path / "out", descent)
    _, front, text = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["inheritune"],
        "base_model": "org/large",
        "license": "apache-2.0",
    }
    assert yaml.safe_load(text.split("```yaml\n")[1].split("```")[0]) == descent["recipe"]
    assert "recipe" not in target.config.inheritune


def test_without_a_tokenizer_the_proof_says_so(llama_directory: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(llama_directory, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    record = inherit_directory(str(bare), "half", tmp_path / "out")
    assert "no tokenizer" in record["proof"]["tokens_from"]
    assert record["proof"]["tokens"] == 128


def test_the_proof_runs_on_a_given_text(llama_directory: Path, tmp_path: Path) -> None:
    record = inherit_directory(str(llama_directory), "half", tmp_path / "out", token_text="def main")
    tokenizer = AutoTokenizer.from_pretrained(llama_directory)
    assert record["proof"]["tokens"] == len(tokenizer("def main")["input_ids"])


@pytest.mark.parametrize("layers", [0, 5, "0", "5", "all of them", "-1", "1.5"])
def test_layers_that_are_not_possible_write_nothing(layers: int | str, llama_directory: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused) as error:
        inherit_directory(str(llama_directory), layers, tmp_path / "out")
    assert "from 1 to 4" in one_line(error)
    assert list(tmp_path.iterdir()) == []


def test_incomplete_weights_write_nothing(llama_directory: Path, tmp_path: Path) -> None:
    bad = shutil.copytree(llama_directory, tmp_path / "bad")
    tensors = load_file(bad / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, bad / "model.safetensors", {"format": "pt"})
    with pytest.raises(Refused) as error:
        inherit_directory(str(bad), 2, tmp_path / "out")
    assert "model.norm.weight" in one_line(error)
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_a_directory_with_something_in_it_is_not_overwritten(llama_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    for out in (tmp_path, tmp_path / "note"):
        with pytest.raises(Refused):
            inherit_directory(str(llama_directory), 2, out)
    assert (tmp_path / "note").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    inherit_directory(str(llama_directory), 2, tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").exists()
