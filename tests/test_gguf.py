"""GGUF references: what a file becomes, what is said of it, and what of a damaged or hostile one is refused."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import shutil
import stat
import struct
import sys
import time
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from inheritune import pipeline, recipe as recipes
from inheritune.cli import main
from inheritune.config import Recipe
from inheritune.console import Console
from inheritune.errors import Refused
from inheritune.pipeline.recorded import recorded_reference
from inheritune.reference import Reference, dequantising, describe, find, gguf_checks, load
from inheritune.reference.gguf_header import Header, read_header
from inheritune.report.account import account_of
from tiny import content, one_line

gguf = pytest.importorskip("gguf")

Metadata = dict[str, Any]
Tensors = dict[str, "np.ndarray[Any, Any]"]
LAYERS, WIDTH, HEADS, KEYS, VOCABULARY = 3, 64, 4, 2, 320
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LONG = "\N{LATIN SMALL LETTER E WITH ACUTE}" * 500


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own; where it is made."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "inheritune" / "gguf"


# ---- files


@pytest.fixture(scope="module")
def words(tokenizer_directory: Path) -> tuple[list[str], list[str]]:
    """The tokens of the tests' tokenizer in order, and its merges."""
    model = json.loads((tokenizer_directory / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return [*tokens, "<|endoftext|>"], merges


def weights(*, tied: bool = True) -> dict[str, torch.Tensor]:
    """A tiny LLaMA's, by transformers' names."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEYS,
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = LlamaForCausalLM(config).state_dict()
        for name in state:
            if "norm" in name:
                state[name] += 0.1 * torch.randn(WIDTH)
    return {name: tensor for name, tensor in state.items() if not (tied and name == "lm_head.weight")}


NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def named(name: str) -> str:
    """A tensor's name in the file."""
    block = re.fullmatch(r"model\.layers\.(\d+)\.(.*)\.weight", name)
    return f"blk.{block[1]}.{NAMES[block[2]]}.weight" if block else f"{NAMES[name.removesuffix('.weight')]}.weight"


def turned(name: str, tensor: torch.Tensor, *, back: bool = False) -> torch.Tensor:
    """Rows of queries and keys in llama.cpp's order, halves of each head interleaved; or from there back."""
    heads = HEADS if "q_proj" in name else KEYS if "k_proj" in name else None
    if heads is None:
        return tensor
    half = tensor.shape[0] // heads // 2
    pair = (heads, half, 2) if back else (heads, 2, half)
    return tensor.reshape(*pair, WIDTH).transpose(1, 2).reshape(tensor.shape)


def metadata(words: tuple[list[str], list[str]]) -> Metadata:
    """What llama.cpp's converter writes of such a model."""
    tokens, merges = words
    return {
        "general.type": "model",
        "general.license": "apache-2.0",
        "llama.block_count": LAYERS,
        "llama.context_length": 128,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": 2 * WIDTH,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KEYS,
        "llama.attention.layer_norm_rms_epsilon": 1e-6,
        "llama.vocab_size": VOCABULARY,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (VOCABULARY - 1) + [3],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": VOCABULARY - 1,
        "tokenizer.ggml.eos_token_id": VOCABULARY - 1,
        "tokenizer.ggml.add_bos_token": False,
    }


def write(
    path: Path,
    keys: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    kind: str,
    architecture: str = "llama",
    others: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """A GGUF file: matrices as `kind`, the embedding as Q8_0 (where `kind` is a quantised one), norms as they are.

    `others` stand in it under their own names, in float32.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    add(writer, keys)
    for name, tensor in tensors.items():
        stored = kind_of(name, kind)
        packed = gguf.quants.quantize(turned(name, tensor).contiguous().numpy(), stored)
        writer.add_tensor(named(name), packed, raw_dtype=stored)
    for name, tensor in (others or {}).items():
        writer.add_tensor(name, tensor.float().numpy())
    finish(writer)
    return path


def add(writer: Any, keys: Mapping[str, Any]) -> None:
    for key, value in keys.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


def finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def kind_of(name: str, kind: str) -> Any:
    word = "F32" if "norm" in name else "Q8_0" if "embed" in name and kind.startswith("Q") else kind
    return gguf.GGMLQuantizationType[word]


def expected(tensors: Mapping[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """The weights as the file holds them."""
    found = {}
    for name, tensor in tensors.items():
        stored = kind_of(name, kind)
        packed = gguf.quants.quantize(turned(name, tensor).contiguous().numpy(), stored)
        plain = torch.from_numpy(np.array(gguf.quants.dequantize(packed, stored), dtype=np.float32))
        found[name] = turned(name, plain, back=True).contiguous()
    return found


@pytest.fixture
def keys(words: tuple[list[str], list[str]]) -> Metadata:
    return metadata(words)


@pytest.fixture
def file(tmp_path: Path, keys: Metadata) -> Path:
    """A tiny LLaMA, tied, in Q4_1."""
    return write(tmp_path / "models" / "tiny.Q4_1.gguf", keys, weights(), "Q4_1")


def refused(reference: Path | str, *arguments: Any) -> str:
    with pytest.raises(Refused) as error:
        find(str(reference), *arguments)
    return one_line(error)


# ---- what a file becomes


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "F16", "BF16"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_directory_holds_what_the_file_holds(kind: str, tied: bool, tmp_path: Path, keys: Metadata) -> None:
    held = weights(tied=tied)
    found = find(str(write(tmp_path / "model.gguf", keys, held, kind)))
    plain = expected(held, kind)
    stored = load(found).state_dict()
    assert stored.keys() == plain.keys() | {"lm_head.weight"}
    for name, tensor in plain.items():
        assert content(stored[name]) == content(tensor), name
    assert (found.tied, found.dtype, found.layers, found.max_positions) == (tied, "float32", LAYERS, 128)
    assert found.dequantised_from == (kind if kind.startswith("Q") else None)
    assert found.license == "apache-2.0"
    ids = torch.arange(16)[None]
    config = LlamaConfig(**{**found.config.to_dict(), "tie_word_embeddings": tied})
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict({**plain, "lm_head.weight": plain.get("lm_head.weight", plain["model.embed_tokens.weight"])})
    with torch.no_grad():
        assert torch.equal(model(ids).logits, load(found)(ids).logits)


LFM2 = {
    r"^model\.embed_tokens\.": "token_embd.",
    r"^model\.embedding_norm\.": "token_embd_norm.",
    r"^model\.layers\.": "blk.",
    r"operator_norm": "attn_norm",
    r"self_attn\.(.)_proj": r"attn_\1",
    r"self_attn\.out_proj": "attn_output",
    r"self_attn\.(.)_layernorm": r"attn_\1_norm",
    r"feed_forward\.w1": "ffn_gate",
    r"feed_forward\.w3": "ffn_up",
    r"feed_forward\.w2": "ffn_down",
    r"conv\.(conv|in_proj|out_proj)\.": r"shortconv.\1.",
}


def test_a_family_that_transformers_would_leave_packed(tmp_path: Path, keys: Metadata) -> None:
    """LFM2 goes through transformers' other reader, which keeps weights in their blocks where it finds kernels."""
    config = Lfm2Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        block_auto_adjust_ff_dim=False,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KEYS,
        layer_types=["conv", "full_attention"],
        tie_word_embeddings=True,
    )
    state = Lfm2ForCausalLM(config).state_dict()
    del state["lm_head.weight"]
    own = {key.replace("llama", "lfm2"): value for key, value in keys.items()}
    own |= {
        "lfm2.block_count": 2,
        "lfm2.attention.head_count_kv": [0, KEYS],
        "lfm2.shortconv.l_cache": 3,
        "lfm2.rope.freq_base": 1e6,
    }
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "lfm2")
    add(writer, own)
    plain = {}
    for name, tensor in state.items():
        called = name
        for pattern, word in LFM2.items():
            called = re.sub(pattern, word, called)
        kind = gguf.GGMLQuantizationType["Q8_0" if tensor.dim() == 2 else "F32"]
        packed = gguf.quants.quantize(tensor.squeeze(1).numpy() if tensor.dim() == 3 else tensor.numpy(), kind)
        writer.add_tensor(called, packed, raw_dtype=kind)
        plain[name] = torch.from_numpy(np.array(gguf.quants.dequantize(packed, kind))).reshape(tensor.shape)
    finish(writer)
    found = find(str(tmp_path / "model.gguf"))
    stored = load(found).state_dict()
    assert found.dequantised_from == "Q8_0"
    for name, tensor in plain.items():
        assert content(stored[name]) == content(tensor), name


def test_the_directory_is_a_plain_one(file: Path, cache: Path) -> None:
    found = find(str(file))
    assert found.path.parent.parent == cache
    config = json.loads((found.path / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert not {"quantization_config", "_name_or_path", "_model_name_or_path"} & config.keys()
    model = AutoModelForCausalLM.from_pretrained(found.path)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    tokenizer = AutoTokenizer.from_pretrained(found.path)
    assert (len(tokenizer), tokenizer.eos_token_id) == (VOCABULARY, VOCABULARY - 1)
    assert not [path.name for path in cache.iterdir() if path.name not in (".lock", found.path.parent.name)]


def test_the_tokenizer_is_the_files(file: Path, tokenizer_directory: Path) -> None:
    ours, theirs = find(str(file)).tokenizer, AutoTokenizer.from_pretrained(tokenizer_directory)
    assert ours is not None
    text = Path(__file__).read_text(encoding="utf-8")
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert ours.decode(ours(text)["input_ids"]) == text


def test_what_is_recorded(file: Path, keys: Metadata) -> None:
    record = describe(find(str(file)))
    assert json.loads(json.dumps(record)) == record
    assert record["dequantised_from"] == "Q4_1"
    assert record["gguf"]["file"] == file.name
    assert record["gguf"]["tensors"] == {"Q4_1": 7 * LAYERS, "F32": 2 * LAYERS + 1, "Q8_0": 1}
    assert record["gguf"]["lost"] == []
    assert len(record["gguf"]["sha256"]) == 64
    assert "gguf-" in record["gguf"]["read_by"]
    assert "reference_file" not in record


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_files_have_the_mode_that_the_umask_gives(umask: int, mode: int, file: Path) -> None:
    before = os.umask(umask)
    try:
        found = find(str(file))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in found.path.iterdir()} == {mode}


def test_a_file_is_dequantised_once(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    first = find(str(file))
    assert [record.getMessage() for record in caplog.records] == [f"{file}: being dequantised, once, into {cache}"]
    monkeypatch.setattr(dequantising, "from_gguf", lambda *_: pytest.fail("again"))
    copy = shutil.copyfile(file, file.with_name("other name.gguf"))
    for name, text in {"config.json": "{}", "adapter_config.json": "{", "tokenizer_config.json": "["}.items():
        file.with_name(name).write_text(text)
    again = find(str(copy))
    assert (again.path, again.fingerprint) == (first.path, first.fingerprint)


def test_nothing_beside_the_file_is_read(file: Path) -> None:
    for name, text in {"config.json": "{", "adapter_config.json": "{", "tokenizer_config.json": "["}.items():
        file.with_name(name).write_text(text)
    assert find(str(file)).layers == LAYERS


def test_a_directory_that_is_not_as_it_was_written_is_made_again(file: Path) -> None:
    first = find(str(file))
    before = first.fingerprint
    path = first.path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert find(str(file)).fingerprint == before
    whole = path.read_bytes()
    path.write_bytes(bytes([*whole[:-1], whole[-1] ^ 1]))
    assert find(str(file)).fingerprint == before
    assert path.read_bytes() == whole
    (first.path / "gguf.json").write_text("{")
    assert find(str(file)).fingerprint == before


def test_one_that_waits_and_is_stopped_leaves_the_others_work_alone(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    half = cache / ".making" / "made" / "model.safetensors"
    half.parent.mkdir(parents=True)
    half.touch()
    with (cache / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        real = fcntl.flock

        def flock(lock: Any, how: int) -> None:
            if how == fcntl.LOCK_EX:
                raise KeyboardInterrupt
            real(lock, how)

        monkeypatch.setattr(fcntl, "flock", flock)
        with pytest.raises(KeyboardInterrupt):
            find(str(file))
    assert half.exists()
    assert f"{file}: waiting for another process" in caplog.text


def test_what_a_killed_one_left_does_no_harm(file: Path, cache: Path) -> None:
    (cache / ".making" / "made").mkdir(parents=True)
    (cache / ".making" / "made" / "stray").touch()
    assert not (find(str(file)).path / "stray").exists()


def test_a_cache_without_room_is_said(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    text = refused(file)
    assert "GB are free" in text
    assert "XDG_CACHE_HOME" in text
    monkeypatch.undo()
    (tmp_path / "no directory").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no directory"))
    assert "XDG_CACHE_HOME" in refused(file)


def test_a_file_that_cannot_be_read_is_said(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(dequantising, "read_header", denied)
    assert "cannot be read ([Errno 13] Permission denied" in refused(file)


# ---- words for it


def test_a_file_of_a_directory_by_its_name(file: Path) -> None:
    found = find(str(file.parent), None, False, file.name)
    assert (found.source, found.file) == (str(file), None)
    assert f"give reference_file, such as {file.name}" in refused(file.parent)
    assert f"holds no x.gguf; there are {file.name}" in refused(file.parent, None, False, "x.gguf")
    for word in ("../tiny.gguf", "*.gguf", "/etc/passwd", "", "a//b"):
        assert "names no file in it" in refused(file.parent, None, False, word)
    (file.parent / "notes.txt").write_text("notes")
    assert "notes.txt is no GGUF file" in refused(file.parent, None, False, "notes.txt")
    assert "a file has no revision" in refused(file, "main")
    assert "a file has no reference_file" in refused(file, None, False, file.name)


def test_a_file_of_a_hub_id(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    cached = tmp_path / "hub" / "models--org--tiny-GGUF"
    snapshot = cached / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    shutil.copyfile(file, snapshot / file.name)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    found = find("org/tiny-GGUF", None, False, file.name)
    assert found.license == "apache-2.0"
    assert (found.source, found.revision, found.hub_id) == ("org/tiny-GGUF", COMMIT, "org/tiny-GGUF")
    assert describe(found)["reference_file"] == file.name
    assert file.name in refused("org/tiny-GGUF", None, False, "other.gguf")
    run = tmp_path / "run"
    run.mkdir()
    (run / "reference.json").write_text(json.dumps(describe(found)))
    again = recorded_reference(run, reference="x", revision=None, trust_remote_code=False)
    assert again is not None
    assert (again.file, again.fingerprint) == (file.name, found.fingerprint)


def test_the_licence_of_a_file_is_its_repositorys(tmp_path: Path, keys: Metadata, monkeypatch: Any) -> None:
    del keys["general.license"]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--org--tiny" / "snapshots" / COMMIT
    write(snapshot / "Q8_0" / "model.gguf", keys, weights(), "Q8_0")
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\n")
    assert find("org/tiny", COMMIT, False, "Q8_0/model.gguf").license == "mit"


def test_a_recipe_names_a_file_of_its_reference(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def parsed(**values: Any) -> Recipe:
        return recipes.parse(recipes.build_parser(Recipe), Recipe, [], values, "r.yaml")[0]

    assert parsed(reference="org/name", reference_file="a.gguf").reference_file == "a.gguf"
    with pytest.raises(Refused, match=r"reference_file is 'a\.gguf'; allowed: null"):
        parsed(reference_file="a.gguf")
    monkeypatch.chdir(file.parent)
    resolved = recipes.resolve_paths(parsed(reference=file.name))
    assert resolved.reference == str(file)


def test_the_package_is_asked_for_where_it_is_missing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "install inheritune[gguf]" in refused(file)


# ---- surgery and runs


def test_inherit_from_a_file(file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "half"
    assert main(["inherit", str(file), "--layers", "0,2", "--out", str(out)]) == 0
    assert "float32, dequantised from Q4_1" in capfd.readouterr().err
    model = AutoModelForCausalLM.from_pretrained(out)
    plain = expected(weights(), "Q4_1")
    for name, tensor in model.state_dict().items():
        source = name.replace("layers.1.", "layers.2.").replace("lm_head", "model.embed_tokens")
        assert content(tensor) == content(plain[source]), name
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert not hasattr(model.config, "quantization_config")
    model.save_pretrained(tmp_path / "saved again")
    assert AutoTokenizer.from_pretrained(out)("a")["input_ids"]
    record = json.loads((out / "inheritance.json").read_text())
    assert record["proof"]["tensors_equal"] > 0
    sha256 = dequantising._sha256(file)
    for place in (record, record["lineage"], model.config.inheritune):
        assert place["dequantised_from"] == "Q4_1"
        assert place["gguf"] == {"file": file.name, "sha256": sha256, "dtype": "float32"}
    assert account_of(record)["layers"].endswith("; the reference dequantised from Q4_1")
    card = (out / "README.md").read_text()
    assert f"- Its weights were dequantised from Q4_1, to float32: the GGUF file {file.name} (SHA-256 {sha256})" in card
    assert "license: apache-2.0" in card
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()}
    assert len(set(modes.values())) == 1, modes


def test_a_file_is_dequantised_to_bfloat16_if_that_is_asked_for(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "half"
    words = ["inherit", str(file), "--layers", "0,2", "--reference_dtype", "bfloat16", "--out", str(out)]
    assert main(words) == 0
    model = AutoModelForCausalLM.from_pretrained(out)
    plain = expected(weights(), "Q4_1")
    for name, tensor in model.state_dict().items():
        source = name.replace("layers.1.", "layers.2.").replace("lm_head", "model.embed_tokens")
        assert content(tensor) == content(plain[source].to(torch.bfloat16)), name
    assert "dequantised from Q4_1, to bfloat16: the GGUF file" in (out / "README.md").read_text()
    both = {dtype: find(str(file), reference_dtype=dtype) for dtype in ("float32", "bfloat16")}
    assert {dtype: found.dtype for dtype, found in both.items()} == {dtype: dtype for dtype in both}
    assert both["float32"].path != both["bfloat16"].path
    assert describe(both["bfloat16"])["gguf"]["dtype"] == "bfloat16"


def test_what_is_no_gguf_file_keeps_its_dtype(llama_directory: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "small"
    words = ["inherit", str(llama_directory), "--layers", "2", "--reference_dtype", "bfloat16", "--out", str(out)]
    assert main(words) == 2
    assert "reference_dtype: no GGUF file" in capsys.readouterr().err
    assert not out.exists()


def test_a_plan_counts_the_dtype_that_a_file_is_dequantised_to(
    file: Path, llama_directory: Path, tmp_path: Path, capsys: Any
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "data: {sources: [x.txt], tokens: 100K, sequence_length: 32}\ninherit: {layers: 2}\ntrain: {warmup_steps: 9}\n"
    )
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        words = ["plan", str(recipe), "--device", "a100", "--json", "--reference_dtype", dtype]
        assert main([*words, "--reference", str(file)]) == 0
        sizes[dtype] = json.loads(capsys.readouterr().out)["disk"]["models_bytes"]
    assert sizes["float32"] == 2 * sizes["bfloat16"] > 0
    assert main([*words, "--reference", str(llama_directory)]) == 2
    assert "reference_dtype: no GGUF file" in capsys.readouterr().err


def test_a_file_that_was_never_quantised_is_called_so(tmp_path: Path, keys: Metadata) -> None:
    file = write(tmp_path / "tiny.F16.gguf", keys, weights(), "F16")
    out = tmp_path / "small"
    assert main(["inherit", str(file.parent), "--reference_file", file.name, "--layers", "1", "--out", str(out)]) == 0
    card = (out / "README.md").read_text()
    assert "- Its weights were read into float32: the GGUF file tiny.F16.gguf" in card
    assert "dequantised from" not in card


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_run_from_a_file_goes_on_and_is_found_again(file: Path, dtype: str | None, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"the {number} boats came in with the tide" * 3 for number in range(300)))
    values = {
        "name": "tiny",
        "reference": str(file.parent),
        "reference_file": file.name,
        "reference_dtype": dtype,
        "data": {
            "sources": [{"path": str(text), "document_separator": "\n\n"}],
            "tokens": 4000,
            "sequence_length": 32,
            "validation_share": 0.2,
            "development_share": 0.1,
            "workers": 1,
        },
        "inherit": {"layers": 2},
        "train": {"batch_sequences": 8, "warmup_steps": 1, "max_steps": 3, "compile": "never"},
    }
    recipe = recipes.parse(recipes.build_parser(Recipe), Recipe, [], values, "r.yaml")[0]
    run = tmp_path / "run"
    assert pipeline.run(recipe, run, console=Console(silent=True), until="inherit")["state"] == "inherited"
    recorded = json.loads((run / "reference.json").read_text())
    assert (recorded["source"], recorded["dequantised_from"]) == (str(file), "Q4_1")
    again = recipes.load_recipe(str(run / "recipe.yaml"))
    assert pipeline.run(again, run, console=Console(silent=True))["state"] == "done"
    assert "dequantised from Q4_1" in (run / "model" / "README.md").read_text()
    assert AutoModelForCausalLM.from_pretrained(run / "model").config.inheritune["dequantised_from"] == "Q4_1"
    assert "dequantised from Q4_1" in (run / "report.html").read_text()
    same = recorded_reference(run, reference=None, revision=None, trust_remote_code=False)
    assert same is not None
    assert (same.source, same.dtype) == (str(file), dtype or "float32")
    assert AutoModelForCausalLM.from_pretrained(run / "model").dtype == same.torch_dtype
    file.unlink()
    with pytest.raises(Refused, match=re.escape(file.name)):
        recorded_reference(run, reference=None, revision=None, trust_remote_code=False)


def test_text_is_prepared_with_a_files_tokenizer(file: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join("the boats came in" for _ in range(50)))
    words = ["prepare", str(text), "--tokenizer", str(file), "--validation_share", "0", "--development_share", "0"]
    assert main([*words, "--workers", "1", "--out", str(tmp_path / "shards")]) == 0
    assert json.loads((tmp_path / "shards" / "manifest.json").read_text())["tokenizer"]["vocabulary"] == VOCABULARY


# ---- what transformers does not read


def llama3(factor: float, context: int) -> torch.Tensor:
    """What llama.cpp's converter writes of Llama 3's scaling: each frequency over transformers' own scaled one."""
    config = LlamaConfig(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        rope_parameters={
            **{"rope_type": "llama3", "rope_theta": 500_000.0, "factor": factor, "low_freq_factor": 1.0},
            **{"high_freq_factor": 4.0, "original_max_position_embeddings": context},
        },
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = WIDTH // HEADS
    plain = 500_000.0 ** -(torch.arange(0, size, 2) / size)
    return plain / scaled


@pytest.mark.parametrize(("factor", "context", "stated"), [(8.0, 8192, False), (32.0, 8192, False), (4.0, 2048, True)])
def test_llama_3s_frequencies_are_carried_over(
    factor: float, context: int, stated: bool, tmp_path: Path, keys: Metadata
) -> None:
    keys |= {"llama.rope.freq_base": 500_000.0}
    keys |= {"llama.rope.scaling.original_context_length": context} if stated else {}
    divided = llama3(factor, context)
    assert divided.max() > 1
    file = write(tmp_path / "model.gguf", keys, weights(), "Q8_0", others={"rope_freqs.weight": divided})
    found = find(str(file))
    rope = found.config.get_text_config().rope_parameters
    assert (rope["rope_type"], rope["factor"]) == ("llama3", pytest.approx(factor, rel=1e-5))
    plain = 500_000.0 ** -(torch.arange(0, WIDTH // HEADS, 2) / (WIDTH // HEADS))
    assert load(found).model.rotary_emb.inv_freq.allclose(plain / divided, rtol=1e-4)
    assert dequantising.config_in(str(file), file).get_text_config().rope_parameters == rope
    assert not lost(found)


def test_factors_of_one_scale_nothing(tmp_path: Path, keys: Metadata) -> None:
    ones = torch.ones(WIDTH // HEADS // 2)
    found = find(str(write(tmp_path / "model.gguf", keys, weights(), "Q8_0", others={"rope_freqs.weight": ones})))
    assert found.config.get_text_config().rope_parameters["rope_type"] == "default"


@pytest.mark.parametrize("kind", [None, "linear"])
def test_linear_scaling_is_carried_over(kind: str | None, tmp_path: Path, keys: Metadata) -> None:
    keys |= {"llama.rope.freq_base": 10_000.0, "llama.rope.scaling.factor": 4.0}
    keys |= {"llama.rope.scaling.type": kind} if kind else {}
    found = find(str(write(tmp_path / "model.gguf", keys, weights(), "Q8_0")))
    assert found.config.get_text_config().rope_parameters["rope_type"] == "linear"
    plain = 10_000.0 ** -(torch.arange(0, WIDTH // HEADS, 2) / (WIDTH // HEADS))
    assert load(found).model.rotary_emb.inv_freq.allclose(plain / 4)


BIAS = {f"blk.{block}.attn_q.bias": torch.ones(WIDTH) for block in range(LAYERS)}
OTHER_MODELS: dict[str, tuple[Metadata, Mapping[str, torch.Tensor], str]] = {
    "yarn": ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, {}, "rope.scaling.type is yarn"),
    "shrunk": ({"llama.rope.scaling.factor": 0.5}, {}, "rope.scaling.factor is 0.5"),
    "factors": ({}, {"rope_freqs.weight": torch.linspace(1, 3, WIDTH // HEADS // 2)}, "that are not Llama 3's"),
    "no numbers": ({}, {"rope_freqs.weight": torch.full((8,), math.nan)}, "that are not Llama 3's"),
    "long": ({}, {"rope_factors_long.weight": torch.ones(8)}, "8 values that .* such as rope_factors_long.weight"),
    "biases": ({}, BIAS, "192 values that transformers does not read, such as blk.0.attn_q.bias"),
}


@pytest.mark.parametrize("case", OTHER_MODELS)
def test_what_would_be_another_model_is_refused(case: str, tmp_path: Path, keys: Metadata, cache: Path) -> None:
    changes, others, words = OTHER_MODELS[case]
    file = write(tmp_path / "model.gguf", keys | changes, weights(), "Q8_0", others=others)
    assert re.search(f"{words}.*would be another model; give the model as a Hugging Face directory", refused(file))
    assert not [path for path in cache.glob("*") if path.name != ".lock"]


def test_blocks_that_predict_further_tokens_are_left_out_and_said(tmp_path: Path, keys: Metadata) -> None:
    others = {f"blk.{LAYERS}.nextn.eh_proj.weight": torch.ones(WIDTH, 2 * WIDTH)}
    file = write(tmp_path / "model.gguf", keys, weights(), "Q8_0", others=others)
    assert "damaged: it holds blk.3.nextn.eh_proj.weight, and its header says 3 blocks" in refused(file)
    said = keys | {"llama.nextn_predict_layers": 1}
    found = find(str(write(tmp_path / "further.gguf", said, weights(), "Q8_0", others=others)))
    assert lost(found) == ["1 tensors of blocks that predict further tokens are left out"]


# ---- what is lost


def lost(found: Reference) -> list[str]:
    assert found.gguf is not None
    return list(found.gguf.lost)


LOST: dict[str, tuple[Metadata, str]] = {
    "rule": ({"tokenizer.ggml.pre": "viking"}, "it splits text by the rule 'viking' (tokenizer.ggml.pre)"),
    "no rule": ({"tokenizer.ggml.pre": None}, "it does not say by which rule text is split"),
    "special": ({"tokenizer.ggml.eot_token_id": 5}, "tokenizer.ggml.eot_token_id (5) has no place"),
    "size": ({"tokenizer.ggml.tokens": "twice"}, "its vocabulary has 320 tokens, the tokenizer 319"),
    "unknown kind": (
        {"tokenizer.ggml.model": "rwkv"},
        "transformers cannot build its tokenizer (rwkv), so there is no",
    ),
    "none": ({"tokenizer.ggml.model": None}, "the file holds no tokenizer"),
}


@pytest.mark.parametrize("case", LOST)
def test_what_is_not_carried_over_is_said(case: str, tmp_path: Path, keys: Metadata, caplog: Any) -> None:
    changes, words = LOST[case]
    if case == "size":
        tokens = list(keys["tokenizer.ggml.tokens"])
        tokens[-2] = tokens[-3]
        changes = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": keys["tokenizer.ggml.merges"][:10]}
    keys = {key: value for key, value in (keys | changes).items() if value is not None}
    file = write(tmp_path / "model.gguf", keys, weights(), "Q8_0")
    for _ in range(2):  # made, and found again
        caplog.clear()
        found = find(str(file))
        (line,) = lost(found)
        assert words in line
        assert f"{file}: {line}" in [record.getMessage() for record in caplog.records]
    assert (found.tokenizer is None) == (case in ("unknown kind", "none"))


@pytest.mark.parametrize("rule", ["smollm", "starcoder"])
def test_digits_are_taken_one_by_one_where_the_file_says_so(rule: str, tmp_path: Path, keys: Metadata) -> None:
    file = write(tmp_path / "model.gguf", keys | {"tokenizer.ggml.pre": rule}, weights(), "Q8_0")
    found = find(str(file))
    assert not lost(found)
    split = AutoTokenizer.from_pretrained(found.path).backend_tokenizer.pre_tokenizer.pre_tokenize_str("In  185: 7")
    assert [piece for piece, _ in split] == ["In", "ĠĠ", "1", "8", "5", ":", "Ġ", "7"]


def test_special_tokens_that_come_otherwise_are_said(words: tuple[list[str], list[str]], keys: Metadata) -> None:
    class Other:
        bos_token_id, eos_token_id, unk_token_id, pad_token_id = None, VOCABULARY - 1, 3, None

        def get_vocab(self) -> dict[str, int]:
            return {token: index for index, token in enumerate(words[0])}

        def __len__(self) -> int:
            return VOCABULARY

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [1, VOCABULARY - 1]}

    header = Header(keys | {"tokenizer.ggml.add_eos_token": False}, ())
    other: Any = Other()
    assert dequantising.lost_in(other, header) == [
        f"its bos token is {VOCABULARY - 1}, the tokenizer's none",
        "its unk token is none, the tokenizer's 3",
        "it does not add eos, the tokenizer does",
    ]


# ---- what is no model


NO_MODEL: dict[str, tuple[str, Metadata, list[str]]] = {
    "vocabulary": ("llama", {"no tensors": True}, ["a vocabulary alone (llama)"]),
    "embedding": ("llama", {"llama.pooling_type": 3}, ["an embedding model (llama)"]),
    "bert": ("bert", {}, ["an embedding model (bert)"]),
    "adapter": ("llama", {"general.type": "adapter"}, ["GGUF of type adapter"]),
    "part": ("llama", {"split.count": 3}, ["one of 3 parts", "llama-gguf-split --merge"]),
    "architecture": ("clip", {}, ["its architecture is clip", "falcon", "llama", "qwen2moe", "as a Hugging Face"]),
    "encoder-decoder": ("t5", {}, ["its architecture is t5"]),
    "no blocks": ("llama", {"llama.block_count": 0}, ["llama.block_count is 0"]),
    "too many blocks": ("llama", {"llama.block_count": 10**9}, ["llama.block_count is 1000000000"]),
    "blocks in words": ("llama", {"llama.block_count": "three"}, ["llama.block_count is none"]),
    "a huge width": ("llama", {"llama.embedding_length": 2**31}, ["transformers cannot read it|its header describes"]),
    "a huge vocabulary": ("llama", {"llama.vocab_size": 2**31}, ["its header describes 137,", "its tensors hold"]),
    "no heads": ("llama", {"llama.attention.head_count": 0}, ["llama.attention.head_count is 0, and must be above 0"]),
    "no base": ("llama", {"llama.rope.freq_base": math.nan}, ["llama.rope.freq_base is nan, and must be above 0"]),
    "no context": ("llama", {"llama.context_length": 0}, ["llama.context_length is 0, and must be above 0"]),
    "more layers": ("llama", {"llama.block_count": 4}, ["incomplete: its header describes"]),
    "an id beyond": ("llama", {"tokenizer.ggml.eos_token_id": 320}, ["eos_token_id is 320, and it has 320 tokens"]),
    "an id in words": ("llama", {"tokenizer.ggml.bos_token_id": "0"}, ["bos_token_id is '0'"]),
    "tokens in numbers": ("llama", {"tokenizer.ggml.tokens": [1, 2]}, ["tokens is no array of strings"]),
    "types in strings": ("llama", {"tokenizer.ggml.token_type": ["a"]}, ["token_type is no array of integers"]),
    "alignment": ("llama", {"general.alignment": 3}, ["general.alignment is 3, no power of 2"]),
}


@pytest.mark.parametrize("case", NO_MODEL)
def test_what_is_no_model_is_refused(case: str, tmp_path: Path, keys: Metadata, cache: Path) -> None:
    architecture, changes, expected_words = NO_MODEL[case]
    tensors = {} if "no tensors" in changes else weights()
    changes = {key: value for key, value in changes.items() if key != "no tensors"}
    file = write(tmp_path / "model.gguf", keys | changes, tensors, "Q4_1", architecture)
    started = time.monotonic()
    text = refused(file)
    assert text.startswith(f"{file}: ")
    for pattern in expected_words:
        assert re.search(pattern.replace("(", r"\(").replace(")", r"\)"), text), text
    assert time.monotonic() - started < 20
    assert not [path for path in cache.glob("*") if path.name != ".lock"]


def test_a_tensor_of_another_shape_is_named(tmp_path: Path, keys: Metadata) -> None:
    tensors = weights()
    for block in range(LAYERS):
        tensors[f"model.layers.{block}.mlp.up_proj.weight"] = torch.ones(3 * WIDTH, WIDTH)
    said = refused(write(tmp_path / "model.gguf", keys, tensors, "Q8_0"))
    assert "damaged: its header gives another shape to model.layers.0.mlp.up_proj.weight and 2 others; copy it" in said


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_no_number_is_named(value: float, tmp_path: Path, keys: Metadata, cache: Path) -> None:
    tensors = weights()
    tensors["model.norm.weight"][3] = value
    said = refused(write(tmp_path / "model.gguf", keys, tensors, "F16"))
    assert "damaged: NaN or infinity in model.norm.weight; copy it again" in said
    assert [path.name for path in cache.iterdir()] == [".lock"]


def test_text_that_is_no_utf_8_is_said(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"<|endoftext|>", b"<|end\xff\xfetext|>"[:13]))
    assert "damaged: its header holds text that is no UTF-8" in refused(file)


def test_a_tensor_that_is_missing_is_named(file: Path, cache: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"blk.0.attn_norm.weight", b"blk.9.attn_norm.weight"))
    assert "incomplete: it lacks model.layers.0.input_layernorm.weight; copy" in refused(file)
    assert [path.name for path in cache.iterdir()] == [".lock"]


# ---- damaged and hostile files


def places(data: bytes) -> dict[str, int]:
    """Where the numbers of a header stand that a hostile file would change."""
    first = 24
    length = struct.unpack_from("<Q", data, first)[0]
    tokens = data.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens")
    tensor = data.index(b"token_embd.weight") + len("token_embd.weight")
    return {
        "version": 4,
        "tensors": 8,
        "keys": 16,
        "key's length": first,
        "key's type": first + 8 + length,
        "string's length": first + 8 + length + 4,
        "elements' type": tokens + 4,
        "elements": tokens + 8,
        "element's length": tokens + 16,
        "tensor's name": tensor - len("token_embd.weight") - 8,
        "dimensions": tensor,
        "width": tensor + 4,
        "rows": tensor + 12,
        "type": tensor + 20,
        "offset": tensor + 24,
    }


def put(place: str, value: int, kind: str) -> Callable[[bytearray], None]:
    return lambda data: struct.pack_into(f"<{kind}", data, places(bytes(data))[place], value)


def whole(new: bytes) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[:] = new

    return change


HOSTILE: dict[str, tuple[Callable[[bytearray], None], str]] = {
    "empty": (whole(b""), "no GGUF file: it begins with b''"),
    "bad magic": (whole(b"GGML" + bytes(100)), "no GGUF file: it begins with b'GGML'"),
    "the magic alone": (whole(b"GGUF"), "its version would end at byte 8, and the file has 4"),
    "git lfs": (whole(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "version 1": (put("version", 1, "I"), "GGUF of version 1"),
    "big-endian": (put("version", 3 << 24, "I"), "big-endian"),
    "tensors": (put("tensors", 2**63, "Q"), "its number of tensors is 9,223,372,036,854,775,808"),
    "tensors beyond": (put("tensors", 16_384, "Q"), "damaged"),
    "keys": (put("keys", 2**40, "Q"), "its number of keys is"),
    "keys beyond": (put("keys", 10_000, "Q"), "damaged"),
    "a key's length": (put("key's length", 2**62, "Q"), "the name of key 0 has 4,611,686,018,427,387,904 bytes"),
    "a key's type": (put("key's type", 77, "I"), "general.architecture is of type 77"),
    "a string's length": (put("string's length", 2**63 + 5, "Q"), "general.architecture has 9,223,372"),
    "a string beyond": (put("string's length", 2**20, "Q"), "truncated or damaged: general.architecture would end"),
    "an array of arrays": (put("elements' type", 9, "I"), "is an array of type 9"),
    "elements": (put("elements", 2**60, "Q"), "tokenizer.ggml.tokens have 1,152,921,504,606,8"),
    "elements beyond": (put("elements", 4_000_000, "Q"), "tokenizer.ggml.tokens"),
    "an element's length": (put("element's length", 2**64 - 1, "Q"), "a string in tokenizer.ggml.tokens would end"),
    "a tensor's name": (put("tensor's name", 2**50, "Q"), "the name of tensor 0 has"),
    "dimensions": (put("dimensions", 2**31, "I"), "tensor token_embd.weight has 2,147,483,648 dimensions"),
    "no dimension": (put("dimensions", 0, "I"), "tensor token_embd.weight|damaged"),
    "no block": (put("width", 33, "Q"), "which Q8_0 in blocks of 32 cannot hold"),
    "nothing": (put("width", 0, "Q"), "which Q8_0 in blocks of 32 cannot hold"),
    "rows": (put("rows", 2**58, "Q"), "tensor token_embd.weight would end at byte"),
    "overflow": (put("rows", 2**64 - 1, "Q"), "tensor token_embd.weight would end at byte"),
    "type": (put("type", 999, "I"), "is of quantisation type 999"),
    "an integer type": (put("type", 24, "I"), "is of quantisation type 24"),
    "offset": (put("offset", 2**62, "Q"), "tensor token_embd.weight would end at byte"),
    "an odd offset": (put("offset", 7, "Q"), "begins at 7, no multiple of 32"),
    "overlap": (put("offset", 32_768, "Q"), "lies on"),
    "a name twice": (
        lambda data: data.__setitem__(slice(None), bytes(data).replace(b"blk.1.attn_norm", b"blk.0.attn_norm")),
        "two of its tensors have one name",
    ),
    "a key twice": (
        lambda data: data.__setitem__(slice(None), bytes(data).replace(b"ggml.bos_token_id", b"ggml.eos_token_id")),
        "it has the key tokenizer.ggml.eos_token_id twice",
    ),
    "no UTF-8": (lambda data: data.__setitem__(32, 0xFF), "the name of key 0 is no UTF-8"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line_and_asks_for_nothing(case: str, file: Path, cache: Path) -> None:
    change, words = HOSTILE[case]
    data = bytearray(file.read_bytes())
    change(data)
    file.write_bytes(data)
    tracemalloc.start()
    try:
        text = refused(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert text.startswith(f"{file}: ")
    assert re.search(words, text), text
    assert len(text) < 600
    assert peak < 8_000_000
    assert not cache.exists()


def test_one_line_and_exit_code_2(file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file.write_bytes(file.read_bytes()[:3000])
    assert main(["inherit", str(file), "--layers", "1", "--out", str(tmp_path / "out")]) == 2
    captured = capfd.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith(f"inheritune: {file}: truncated or damaged: ")
    assert not (tmp_path / "out").exists()


def test_a_file_cut_anywhere_is_refused(file: Path) -> None:
    data = file.read_bytes()
    blocks = dequantising._blocks("")
    starts = data.index(b"tokenizer.ggml.tokens")
    cuts = {*range(0, 400), *range(starts, starts + 200), *range(0, len(data), 997), len(data) - 1}
    for cut in sorted(cuts):
        file.write_bytes(data[:cut])
        with pytest.raises(Refused) as error:
            read_header("x", file, blocks)
        assert len(one_line(error)) < 300


def test_flipped_bytes_are_read_or_refused_and_nothing_else(file: Path) -> None:
    data = file.read_bytes()
    blocks = dequantising._blocks("")
    chosen = np.random.default_rng(0)
    end = data.index(b"output_norm.weight") + 50
    read = 0
    for _ in range(600):
        changed = bytearray(data)
        place = int(chosen.integers(end))
        changed[place] = int(chosen.integers(256))
        file.write_bytes(changed)
        with contextlib.suppress(Refused):
            gguf_checks.check_model("x", read_header("x", file, blocks))
            read += 1
    assert 10 < read < 590


def test_names_of_a_file_cannot_write_to_the_terminal(tmp_path: Path, keys: Metadata) -> None:
    file = write(tmp_path / "model.gguf", keys, weights(), "Q4_1", "lla\n\x1b[2Jma" + LONG)
    text = refused(file)
    assert text.isprintable()
    assert len(text) < 500
