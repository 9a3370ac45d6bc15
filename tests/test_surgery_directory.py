"""The directory of a target: what `inherit` writes, what it takes along, where it says the target comes from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from inheritune.errors import Refused
from inheritune.reference import find
from inheritune.surgery import inherit, lineage, parse_layers, writing
from inheritune.surgery.card import model_card
from tiny import TOKENS, file_sums, loaded, one_line, saved

FILES = {"README.md", "config.json", "generation_config.json", "inheritance.json", "model.safetensors"}


def made(source: Path, out: Path, layers: str = "first:2", **keywords: Any) -> dict[str, Any]:
    reference = find(str(source), trust_remote_code=bool(keywords.pop("trust_remote_code", False)))
    indices = parse_layers(layers, reference.layers)
    assert indices is not None
    return inherit(reference, indices, out, **keywords)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_a_target_is_a_standard_directory(llama_directory: Path, tmp_path: Path) -> None:
    before, out = contents(llama_directory), tmp_path / "deep" / "out"
    record = made(llama_directory, out, "first:2+last:1", extra={"a": 1})
    assert set(contents(out)) == FILES | {"tokenizer.json", "tokenizer_config.json"}
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert json.loads((out / "inheritance.json").read_text()) == record
    assert (record["init"], record["layers_kept"], record["reference_layers"]) == ("inherit", [0, 1, 3], 4)
    assert record["counts"] == {"inherited": 30, "tied": 0, "fresh": 0}
    assert record["a"] == 1
    assert contents(llama_directory) == before


def test_what_was_done_is_told(llama_directory: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    told: list[tuple[int, int]] = []
    made(llama_directory, tmp_path, "0-1,3", report=lines.append, progress=lambda *now: told.append(now))
    assert [line.split(" ")[0] for line in lines] == ["cut,", "layers", "proven"]
    assert "layers kept: 0, 1, 3; " in lines[1]
    assert lines[2].endswith(
        "loaded by transformers, equal to the reference bit for bit on 128 tokens of a paragraph of English"
    )
    assert told[-4:] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    done = [now for now, _ in told[:-4]]
    assert done == sorted(done)
    assert {total for _, total in told[:-4]} == {done[-1]}


def test_the_config_names_no_directory_of_this_machine_but_in_the_lineage(
    llama_directory: Path, tmp_path: Path
) -> None:
    made(llama_directory, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.pop("inheritune")["reference"] == str(llama_directory)
    assert str(llama_directory) not in json.dumps(config)
    assert (config["architectures"], config["num_hidden_layers"], config["dtype"]) == (
        ["LlamaForCausalLM"],
        2,
        "float32",
    )


def test_it_loads_where_this_package_is_not(llama_directory: Path, tmp_path: Path) -> None:
    made(llama_directory, tmp_path / "out")
    out = str(tmp_path / "out")
    program = (
        "import sys; sys.modules['inheritune'] = None\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model, tokenizer = (one.from_pretrained({out!r}) for one in (AutoModelForCausalLM, AutoTokenizer))\n"
        "tokens = tokenizer('def main', return_tensors='pt')\n"
        "longer = model.generate(**tokens, max_new_tokens=3, min_new_tokens=3)\n"
        "print(model.config.num_hidden_layers, longer.shape[1] - tokens['input_ids'].shape[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.split() == ["2", "3"]


def test_what_stands_beside_the_weights_is_taken_along_byte_for_byte(llama_directory: Path, tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    shutil.copytree(llama_directory, reference)
    along = {
        **{"LICENSE": "do as you like", "LICENSE.txt": "or not", "NOTICE": "note", "USE_POLICY.md": "be good"},
        **{"chat_template.jinja": "{{ messages }}", "special_tokens_map.json": "{}", "merges.txt": "#version\r\n"},
        **{"vocab.json": "{}", "added_tokens.json": "{}", "tokenizer.model": "\0\1", "spiece.model": "\1"},
        "generation_config.json": '{ "max_new_tokens":7}\n',
    }
    left = [
        "training.jsonl",
        "seen.txt",
        "inheritune.json",
        "optimizer.pt",
        "modeling_own.py",
        "notes.md",
        "model.onnx",
    ]
    for name, text in {**along, **dict.fromkeys(left, "{}")}.items():
        (reference / name).write_text(text, newline="")
    (reference / "README.md").write_text("---\nlicense: mit\n---\n# The reference\n")
    (reference / "LICENSES").mkdir()
    made(reference, tmp_path / "out", token_ids=TOKENS)
    ours, theirs = contents(tmp_path / "out"), contents(reference)
    assert set(ours) == FILES | {*along, "tokenizer.json", "tokenizer_config.json"}
    for name in {*along, "tokenizer.json", "tokenizer_config.json"}:
        assert ours[name] == theirs[name], name
    assert b"# The reference" not in ours["README.md"]
    assert b"license: mit" in ours["README.md"]


def test_a_tokenizer_gives_the_same_ids(llama_directory: Path, tmp_path: Path) -> None:
    made(llama_directory, tmp_path / "out")
    ours, theirs = AutoTokenizer.from_pretrained(tmp_path / "out"), AutoTokenizer.from_pretrained(llama_directory)
    assert ours("def main():")["input_ids"] == theirs("def main():")["input_ids"]
    assert ours.eos_token == theirs.eos_token


def test_without_a_tokenizer_the_proof_runs_on_random_ids(llama_directory: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(llama_directory, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    record = made(bare, tmp_path / "out")
    assert record["proof"]["tokens_from"] == "a seeded random generator (no tokenizer)"
    assert record["proof"]["tokens"] == 128
    assert set(contents(tmp_path / "out")) == FILES


def test_the_proof_runs_on_given_tokens(llama_directory: Path, tmp_path: Path) -> None:
    record = made(llama_directory, tmp_path / "out", token_ids=torch.arange(12).view(3, 4))
    assert (record["proof"]["tokens"], record["proof"]["sequences"]) == (12, 3)
    assert record["proof"]["tokens_from"] == "the given text"


def test_positions_bound_the_proof(tmp_path: Path) -> None:
    record = made(saved("gpt2 tied", tmp_path / "reference").path, tmp_path / "out")
    assert record["proof"]["tokens"] == 64


def test_many_tensors_go_into_shards(llama_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(llama_directory, tmp_path / "one")
    monkeypatch.setattr(writing, "_SHARD_BYTES", 30_000)
    made(llama_directory, tmp_path / "out")
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 3
    assert shards == [f"model-{one + 1:05d}-of-{len(shards):05d}.safetensors" for one in range(len(shards))]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    one = file_sums(tmp_path / "one")
    assert file_sums(tmp_path / "out") == one
    assert set(index["weight_map"]) == set(one)
    for name, file in index["weight_map"].items():
        assert name in (tmp_path / "out" / file).read_bytes().decode("latin-1")
    model = loaded(tmp_path / "out")
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in model.state_dict().values())
    for held in (load_file(tmp_path / "out" / name) for name in shards):
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= 30_000


# ---- lineage


def test_the_lineage_is_chained(llama_directory: Path, tmp_path: Path) -> None:
    sources = [llama_directory, tmp_path / "one", tmp_path / "two", tmp_path / "three"]
    words = ["first:2+last:1", "1-2", "first:1"]
    for before, after, word in zip(sources, sources[1:], words, strict=False):
        made(before, after, word, token_ids=TOKENS)
    steps = [
        {
            "reference": str(source),
            "revision": None,
            "fingerprint": find(str(source)).fingerprint,
            "init": "inherit",
            "layers_kept": kept,
            "reference_layers": layers,
        }
        for source, kept, layers in zip(sources, [[0, 1, 3], [1, 2], [0]], [4, 3, 2], strict=False)
    ]
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "three").config
    assert config.inheritune == {**steps[2], "chain": steps[:2]}
    assert lineage(find(str(tmp_path / "three")), (0,))["chain"] == steps
    card = (tmp_path / "three" / "README.md").read_text()
    assert [card.index(f": {source}") for source in sources[2::-1]] == sorted(
        card.index(f": {source}") for source in sources[:3]
    )
    assert "- Layers kept: 0 of its 2, counted from 0" in card
    assert f"- Before that: {llama_directory}, layers 0, 1, 3" in card


def test_a_stack_is_recorded_as_it_was_made(llama_directory: Path, tmp_path: Path) -> None:
    record = made(llama_directory, tmp_path / "out", "first:3", init="stack", token_ids=TOKENS)
    assert (record["init"], record["layers_kept"]) == ("stack", [0, 1, 0])
    assert (record["lineage"]["init"], record["lineage"]["layers_kept"]) == ("stack", [0, 1, 0])
    sources = {tensor["name"]: tensor["source"] for tensor in record["tensors"]}
    assert sources["model.layers.2.mlp.up_proj.weight"] == "model.layers.0.mlp.up_proj.weight"


def test_the_card_has_front_matter_and_the_recipe(llama_directory: Path) -> None:
    model = loaded(llama_directory)
    descent = {
        **{"reference": "org/large", "revision": "abc", "fingerprint": "00", "license": "apache-2.0"},
        **{"layers_kept": [0, 1, 2, 3], "reference_layers": 8, "chain": []},
        "recipe": {"name": "demo", "data": {"passes": 4}},
    }
    _, front, text = model_card(model, "small", descent).split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["inheritune"],
        "base_model": "org/large",
        "license": "apache-2.0",
    }
    assert "- Reference: org/large at revision abc\n" in text
    assert f"4 layers and {sum(parameter.numel() for parameter in model.parameters()):,} parameters (llama)" in text
    assert yaml.safe_load(text.split("```yaml\n")[1].split("```")[0]) == descent["recipe"]
    local = model_card(model, "small", descent | {"reference": "/some/where", "revision": None, "license": None})
    assert set(yaml.safe_load(local.split("---\n")[1])) == {"library_name", "pipeline_tag", "tags"}
    assert "- Reference: /some/where\n" in local


# ---- refused


@pytest.mark.parametrize("init", ["inherit", "stack", "attention"])
@pytest.mark.parametrize("name", ["", "note"])
def test_what_is_there_is_not_touched(name: str, init: str, llama_directory: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    note = out / name
    note.parent.mkdir(exist_ok=True)
    note.write_text("mine")
    with pytest.raises(Refused) as error:
        made(llama_directory, out, init=init)
    assert one_line(error) == f"{out}: exists and is not an empty directory; choose another --out"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert note.read_text() == "mine"


def test_an_empty_directory_is_filled(llama_directory: Path, tmp_path: Path) -> None:
    made(llama_directory, tmp_path, token_ids=TOKENS)
    assert set(contents(tmp_path)) >= FILES


def test_a_reference_of_random_init_is_said_to_be_one(llama_directory: Path, tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    shutil.copytree(llama_directory, reference)
    config = json.loads((reference / "config.json").read_text())
    (reference / "config.json").write_text(json.dumps(config | {"inheritune": {"initialisation": "random"}}))
    inherit(find(str(reference)), (0, 1), tmp_path / "target")
    card = (tmp_path / "target" / "README.md").read_text()
    assert "- Before that: random init\n" in card
    assert "None" not in card
