"""Formats of a reference's files: from each the same target; what is missing, misshapen or quantised is refused; and
only what is kept is read."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, MixtralForCausalLM

from inheritune.cli import main
from inheritune.errors import Refused
from inheritune.reference import StoredTensor, WeightReader, find
from inheritune.surgery import inherit

Tensors = dict[str, torch.Tensor]
Write = Callable[[Tensors, Path], None]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def single(tensors: Tensors, directory: Path) -> None:
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def sharded(tensors: Tensors, directory: Path) -> None:
    in_shards(tensors, directory, "model.safetensors", lambda part, path: save_file(part, path, {"format": "pt"}))


def pickled(tensors: Tensors, directory: Path) -> None:
    torch.save(tensors, directory / "pytorch_model.bin")


def pickled_in_shards(tensors: Tensors, directory: Path) -> None:
    in_shards(tensors, directory, "pytorch_model.bin", torch.save)


def legacy(tensors: Tensors, directory: Path) -> None:
    save_legacy(tensors, directory / "pytorch_model.bin")


def legacy_in_shards(tensors: Tensors, directory: Path) -> None:
    in_shards(tensors, directory, "pytorch_model.bin", save_legacy)


def save_legacy(tensors: Tensors, path: Path) -> None:
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


def in_shards(tensors: Tensors, directory: Path, name: str, write: Callable[[Tensors, Path], object]) -> None:
    """Three files, neighbouring tensors in different ones, and an index."""
    stem, _, ending = name.rpartition(".")
    files = [f"{stem}-0000{number}-of-00003.{ending}" for number in (1, 2, 3)]
    places = {tensor: files[index % 3] for index, tensor in enumerate(tensors)}
    for file in files:
        write({tensor: tensors[tensor] for tensor, place in places.items() if place == file}, directory / file)
    (directory / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


FORMATS: dict[str, Write] = {
    "single": single,
    "sharded": sharded,
    "pickled": pickled,
    "pickled in shards": pickled_in_shards,
    "legacy": legacy,
    "legacy in shards": legacy_in_shards,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def make(source: Path, out: Path, write: Write, tensors: Tensors, **config: object) -> Path:
    """A reference with a source's config and tokenizer, and these tensors."""
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("model.safetensors"))
    edit_json(out / "config.json", **config)
    write(tensors, out)
    return out


def weights(directory: Path) -> Tensors:
    return load_file(directory / "model.safetensors")


def edit_json(path: Path, **keys: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def kept(tensors: Mapping[str, torch.Tensor], indices: tuple[int, ...], blocks: str) -> Tensors:
    """What a target of these layers has to hold, by name."""
    found = {}
    for name, tensor in tensors.items():
        block = re.match(rf"{re.escape(blocks)}\.(\d+)\.", name)
        if block is None:
            found[name] = tensor
        elif int(block.group(1)) in indices:
            place = indices.index(int(block.group(1)))
            found[f"{blocks}.{place}.{name[block.end() :]}"] = tensor
    return found


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].view(torch.uint8), tensor.contiguous().view(torch.uint8)), name


# ---- every format


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_target(form: str, dtype: str, llama_directory: Path, tmp_path: Path) -> None:
    tensors = {name: tensor.to(DTYPES[dtype]) for name, tensor in weights(llama_directory).items()}
    reference = make(llama_directory, tmp_path / "reference", FORMATS[form], tensors, dtype=dtype)
    assert not (form != "single" and (reference / "model.safetensors").exists())
    record = inherit(find(str(reference)), (1, 3), tmp_path / "target")
    assert_same(weights(tmp_path / "target"), kept(tensors, (1, 3), "model.layers"))
    assert {tensor["dtype"] for tensor in record["tensors"]} == {dtype}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "target")
    assert model.dtype == DTYPES[dtype]
    assert model.config.dtype == DTYPES[dtype]


def test_dtypes_may_differ_within_a_reference(llama_directory: Path, tmp_path: Path) -> None:
    tensors = {
        name: tensor if "norm" in name else tensor.bfloat16() for name, tensor in weights(llama_directory).items()
    }
    reference = make(llama_directory, tmp_path / "reference", single, tensors, dtype="bfloat16")
    inherit(find(str(reference)), (0, 1), tmp_path / "target")
    assert_same(weights(tmp_path / "target"), kept(tensors, (0, 1), "model.layers"))


def test_where_the_config_names_no_dtype_the_files_tell(llama_directory: Path, tmp_path: Path) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in weights(llama_directory).items()}
    reference = make(llama_directory, tmp_path / "reference", pickled, tensors, dtype=None)
    inherit(find(str(reference)), (0, 1), tmp_path / "target")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "target").dtype == torch.bfloat16


@pytest.mark.parametrize("form", ["single", "sharded", "pickled in shards"])
def test_a_snapshot_in_the_hub_cache(
    form: str, llama_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    tensors = weights(llama_directory)
    cached = tmp_path / "models--org--tiny"
    in_hub_cache(make(llama_directory, tmp_path / "reference", FORMATS[form], tensors), cached)
    out = tmp_path / "target"
    assert main(["inherit", "org/tiny", "--revision", "old", "--layers", "first:1+last:1", "--out", str(out)]) == 0
    assert_same(weights(out), kept(tensors, (0, 3), "model.layers"))
    lineage = json.loads((out / "config.json").read_text())["inheritune"]
    assert (lineage["reference"], lineage["revision"]) == ("org/tiny", COMMIT)
    assert not any(file.is_symlink() for file in out.iterdir()), "the cache may be cleared"
    assert "base_model: org/tiny" in (out / "README.md").read_text()


def in_hub_cache(reference: Path, cached: Path) -> None:
    """Lay a model out as the hub's cache does: snapshots are links to files named by their content."""
    (cached / "blobs").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "old").write_text(COMMIT)
    snapshot = cached / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(reference.iterdir())):
        file.rename(cached / "blobs" / f"{number:040d}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{number:040d}")


@pytest.mark.parametrize("form", ["pickled", "legacy"])
def test_the_tensors_of_a_pickle_may_lie_in_any_order(form: str, llama_directory: Path, tmp_path: Path) -> None:
    """Column by column, as parts of one storage, as parameters; one number for all of a norm."""
    tensors = weights(llama_directory)
    storage = torch.cat([tensor.flatten() for tensor in tensors.values()])
    ends = torch.tensor([tensor.numel() for tensor in tensors.values()]).cumsum(0).tolist()
    odd = {
        name: storage[end - tensor.numel() : end].view(tensor.shape)
        for (name, tensor), end in zip(tensors.items(), ends, strict=True)
    }
    odd["lm_head.weight"] = torch.nn.Parameter(tensors["lm_head.weight"])
    for name in [name for name in tensors if "up_proj" in name]:
        odd[name] = tensors[name].t().contiguous().t()
    odd["model.norm.weight"] = torch.ones(1).expand(32)
    reference = make(llama_directory, tmp_path / "reference", FORMATS[form], odd)
    inherit(find(str(reference)), (1, 3), tmp_path / "target")
    assert_same(weights(tmp_path / "target"), kept(tensors, (1, 3), "model.layers"))


def test_safetensors_go_before_pickles(llama_directory: Path, tmp_path: Path) -> None:
    tensors = weights(llama_directory)
    reference = make(llama_directory, tmp_path / "reference", single, tensors)
    pickled({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, reference)
    inherit(find(str(reference)), (0,), tmp_path / "target")
    assert_same(weights(tmp_path / "target"), kept(tensors, (0,), "model.layers"))


# ---- heads


def with_head(gpt2_directory: Path, head: torch.Tensor | None = None) -> Tensors:
    """GPT-2's tensors with a head beside the embedding that it is tied to, as pickled models have it."""
    tensors = weights(gpt2_directory)
    return {**tensors, "lm_head.weight": tensors["transformer.wte.weight"].clone() if head is None else head}


@pytest.mark.parametrize("form", ["single", "pickled", "legacy", "pickled in shards"])
def test_a_tied_head_that_is_stored_twice_is_written_once(form: str, gpt2_directory: Path, tmp_path: Path) -> None:
    tensors = with_head(gpt2_directory)
    reference = make(gpt2_directory, tmp_path / "reference", FORMATS[form], tensors)
    record = inherit(find(str(reference)), (0, 2), tmp_path / "target")
    once = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    assert_same(weights(tmp_path / "target"), kept(once, (0, 2), "transformer.h"))
    tied = [tensor for tensor in record["tensors"] if tensor["status"] == "tied"]
    assert [(one["name"], one["source"]) for one in tied] == [("lm_head.weight", "transformer.wte.weight")]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "target")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert record["parameters_after"] == sum(parameter.numel() for parameter in model.parameters())


def test_a_tied_head_under_its_own_name_alone_will_do(gpt2_directory: Path, tmp_path: Path) -> None:
    tensors = with_head(gpt2_directory)
    del tensors["transformer.wte.weight"]
    reference = make(gpt2_directory, tmp_path / "reference", single, tensors)
    inherit(find(str(reference)), (0, 2), tmp_path / "target")
    state = AutoModelForCausalLM.from_pretrained(tmp_path / "target").state_dict()
    assert torch.equal(state["transformer.wte.weight"], tensors["lm_head.weight"])


@pytest.mark.parametrize("form", ["single", "pickled", "legacy"])
def test_a_head_of_its_own_is_kept_although_the_config_says_tied(
    form: str, gpt2_directory: Path, tmp_path: Path
) -> None:
    tensors = with_head(gpt2_directory, torch.randn(320, 32, generator=torch.Generator().manual_seed(0)))
    reference = make(gpt2_directory, tmp_path / "reference", FORMATS[form], tensors, tie_word_embeddings=True)
    record = inherit(find(str(reference)), (0, 2), tmp_path / "target")
    assert_same(weights(tmp_path / "target"), kept(tensors, (0, 2), "transformer.h"))
    assert json.loads((tmp_path / "target" / "config.json").read_text())["tie_word_embeddings"] is False
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "target")
    assert torch.equal(model.state_dict()["lm_head.weight"], tensors["lm_head.weight"])
    assert record["counts"]["tied"] == 0
    assert record["parameters_after"] == sum(parameter.numel() for parameter in model.parameters())


# ---- names


def test_buffers_of_old_are_ignored_and_listed(llama_directory: Path, tmp_path: Path) -> None:
    old = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.rand(4) for layer in range(4)}
    tensors = weights(llama_directory)
    reference = make(llama_directory, tmp_path / "reference", pickled, {**tensors, **old})
    record = inherit(find(str(reference)), (1, 2), tmp_path / "target")
    assert sorted(record["ignored"]) == sorted(old)
    assert_same(weights(tmp_path / "target"), kept(tensors, (1, 2), "model.layers"))


@pytest.mark.parametrize("form", ["single", "pickled"])
def test_gpt2_as_it_was_published(form: str, gpt2_directory: Path, tmp_path: Path) -> None:
    """Names without the base model's prefix, no head, and the causal mask of every layer as a buffer."""
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in weights(gpt2_directory).items()}
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 128, 128).tril() for layer in range(4)}
    old = masks | {f"h.{layer}.attn.masked_bias": torch.tensor(-1e4) for layer in range(4)}
    reference = make(gpt2_directory, tmp_path / "reference", FORMATS[form], {**tensors, **old})
    record = inherit(find(str(reference)), (0, 3), tmp_path / "target")
    assert sorted(record["ignored"]) == sorted(old)
    assert_same(weights(tmp_path / "target"), kept(tensors, (0, 3), "h"))
    modules = {module for tensor in record["tensors"] for module in tensor["module"]}
    assert modules == AutoModelForCausalLM.from_pretrained(tmp_path / "target").state_dict().keys()


def test_the_layers_of_a_longer_model_are_ignored(llama_directory: Path, tmp_path: Path) -> None:
    tensors = weights(llama_directory)
    reference = make(llama_directory, tmp_path / "reference", single, tensors, num_hidden_layers=3)
    record = inherit(find(str(reference)), (0, 2), tmp_path / "target")
    assert record["reference_layers"] == 3
    assert {name.split(".")[2] for name in record["ignored"]} == {"3"}
    assert_same(weights(tmp_path / "target"), kept(tensors, (0, 2), "model.layers"))


def test_a_reference_without_a_tokenizer_is_inherited_from(
    llama_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = make(llama_directory, tmp_path / "reference", single, weights(llama_directory))
    for file in reference.glob("tokenizer*"):
        file.unlink()
    assert main(["inherit", str(reference), "--layers", "2", "--out", str(tmp_path / "target")]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "has no tokenizer" in line]
    assert said == ["it has no tokenizer: the target will have none either, and the proof runs on random token ids"]
    assert not list((tmp_path / "target").glob("tokenizer*"))
    proof = json.loads((tmp_path / "target" / "inheritance.json").read_text())["proof"]
    assert "random" in proof["tokens_from"]


@pytest.mark.parametrize("lineage", ["mine", ["mine"], {"chain": 5}, {"chain": ["mine"]}, {}], ids=str)
def test_a_lineage_that_is_none_of_ours_does_no_harm(lineage: object, llama_directory: Path, tmp_path: Path) -> None:
    reference = make(llama_directory, tmp_path / "reference", single, weights(llama_directory), inheritune=lineage)
    inherit(find(str(reference)), (0,), tmp_path / "target")
    chain = json.loads((tmp_path / "target" / "config.json").read_text())["inheritune"]["chain"]
    assert all(isinstance(step, dict) for step in chain)


# ---- refused


UP = "model.layers.{}.mlp.up_proj.weight"


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {other: tensor for other, tensor in tensors.items() if other != name}


def wider(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: torch.cat([tensors[name], tensors[name]])}


def cast(dtype: torch.dtype) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor.to(dtype) if "_proj." in name else tensor for name, tensor in tensors.items()}


SPOILED: dict[str, tuple[Callable[[Tensors], Tensors], list[str]]] = {
    "a kept block's tensor is missing": (without(UP.format(0)), [UP.format(0), "is missing", "complete model"]),
    "a cut block's tensor is missing": (without(UP.format(1)), [UP.format(1), "is missing", "complete model"]),
    "the embedding is missing": (without("model.embed_tokens.weight"), ["model.embed_tokens.weight is missing"]),
    "the untied head is missing": (without("lm_head.weight"), ["lm_head.weight is missing"]),
    "a kept block's tensor is wider": (wider(UP.format(0)), [UP.format(0), "shape (128, 32), not (64, 32)"]),
    "a cut block's tensor is wider": (wider(UP.format(1)), [UP.format(1), "shape (128, 32), not (64, 32)"]),
    "a norm is longer": (wider("model.norm.weight"), ["model.norm.weight has shape (64,), not (32,)"]),
    "eight-bit floats": (cast(torch.float8_e4m3fn), ["quantised", "float8_e4m3fn", "bfloat16"]),
    "eight-bit integers": (cast(torch.int8), ["quantised", "int8", "bfloat16"]),
}


# torch before 1.6 had no eight-bit floats
@pytest.mark.parametrize(
    ("case", "form"),
    [
        (case, form)
        for case in SPOILED
        for form in ("single", "sharded", "pickled", "legacy")
        if (case, form) != ("eight-bit floats", "legacy")
    ],
)
def test_weights_that_do_not_fit_are_refused_before_anything_is_written(
    case: str, form: str, llama_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, said = SPOILED[case]
    make(llama_directory, tmp_path / "reference", FORMATS[form], spoil(weights(llama_directory)))
    assert_refused(tmp_path, ["--layers", "first:1+last:1"], said, capsys)


def test_a_quantised_reference_is_refused(
    llama_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    make(llama_directory, tmp_path / "reference", single, weights(llama_directory), **keys)
    assert_refused(tmp_path, ["--layers", "2"], ["its weights are quantised", "bfloat16, float16 or float32"], capsys)


def test_an_expert_that_is_missing_is_missed_though_the_module_fuses_experts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=1, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path / "reference")
    tensors = weights(tmp_path / "reference")
    lost = next(name for name in tensors if "layers.1." in name and "experts.2." in name)
    del tensors[lost]
    single(tensors, tmp_path / "reference")
    assert_refused(tmp_path, ["--layers", "first:1+last:1"], ["model.layers.1.mlp.experts", "values, not"], capsys)


def rewrite_header(reference: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a safetensors file's header, the tensors staying as they are."""
    file = reference / "model.safetensors"
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


@pytest.mark.parametrize(
    "change", [{"shape": [31]}, {"dtype": "F8_E8M0"}, {"dtype": "nonsense"}], ids=["shape", "dtype", "no dtype"]
)
def test_a_header_that_contradicts_itself_is_refused(
    change: dict[str, object], llama_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = make(llama_directory, tmp_path / "reference", single, weights(llama_directory))
    rewrite_header(reference, lambda header: header["model.norm.weight"].update(change))
    assert_refused(tmp_path, ["--layers", "2"], ["model.safetensors is no safetensors file"], capsys)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tensors: dict(enumerate(tensors.values())),
        lambda tensors: {**tensors, "model.norm.weight": torch.ones(32).to_sparse()},
        lambda tensors: {"model": tensors},
    ],
    ids=["numbers for names", "sparse", "nested"],
)
def test_a_pickle_of_anything_but_named_dense_tensors_is_refused(
    spoil: Callable[[Tensors], Any], llama_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(llama_directory, tmp_path / "reference", pickled, spoil(weights(llama_directory)))
    assert_refused(tmp_path, ["--layers", "2"], ["pytorch_model.bin is no state dict"], capsys)


def assert_refused(directory: Path, flags: list[str], said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`inherit` from `reference` in a directory is refused in one line and leaves nothing."""
    before = sorted(directory.rglob("*"))
    assert main(["inherit", str(directory / "reference"), *flags, "--out", str(directory / "a" / "target")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("inheritune: ")
    for part in said:
        assert part in line
    assert sorted(directory.rglob("*")) == before


# ---- only what is kept is read


def six_layers(**sizes: Any) -> LlamaConfig:
    return LlamaConfig(
        num_hidden_layers=6, num_attention_heads=4, bos_token_id=0, eos_token_id=0, tie_word_embeddings=False, **sizes
    )


def spoil_blocks(file: Path, layers: set[int]) -> None:
    """Overwrite blocks' bytes in a safetensors file with ones, which are NaN in every floating-point format."""
    content = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    for name, entry in json.loads(content[8:start]).items():
        if name.startswith("model.layers.") and int(name.split(".")[2]) in layers:
            first, end = (start + offset for offset in entry["data_offsets"])
            content[first:end] = b"\xff" * (end - first)
    file.write_bytes(content)


def test_blocks_that_are_cut_are_never_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = tmp_path / "reference"
    config = six_layers(vocab_size=64, hidden_size=32, intermediate_size=48)
    AutoModelForCausalLM.from_config(config).save_pretrained(reference)
    tensors = weights(reference)
    spoil_blocks(reference / "model.safetensors", {2, 3, 4, 5})
    read, names = WeightReader.read, set()

    def watched(self: WeightReader, stored: StoredTensor) -> torch.Tensor:
        names.add(stored.name)
        return read(self, stored)

    monkeypatch.setattr(WeightReader, "read", watched)
    inherit(find(str(reference)), (0, 1), tmp_path / "target")
    assert_same(weights(tmp_path / "target"), kept(tensors, (0, 1), "model.layers"))
    assert names == {name for name in tensors if not re.match(r"model\.layers\.[2-5]\.", name)}, "the proof's"
    with pytest.raises(Refused, match=r"block 2: .* holds NaN or infinity"):  # and what is kept is
        inherit(find(str(reference)), (0, 1, 2), tmp_path / "other")
    assert not (tmp_path / "other").exists()


MEASURED = """
import sys
from pathlib import Path
from inheritune.console import Console
from inheritune.pipeline import inherit
from inheritune.reference import find, load
reference, out = sys.argv[1:]

def tell(word):
    print(word, flush=True)
    sys.stdin.readline()

tell("ready")
inherit(reference, 2, Path(out))
tell("inherited")
whole = [tensor.clone() for tensor in load(find(reference)).state_dict().values()]
tell("loaded")
"""


class Meter:
    """The most anonymous memory that a process has held, in bytes: what it made, not what it maps of files."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._status = Path(f"/proc/{process.pid}/status")
        self._process, self.most = process, 0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def now(self) -> int:
        found = re.search(r"RssAnon:\s+(\d+) kB", self._status.read_text())
        return int(found.group(1)) * 1024 if found else 0

    def _watch(self) -> None:
        while self._process.poll() is None:
            self.most = max(self.most, self.now())
            threading.Event().wait(0.002)

    def until(self, word: str) -> int:
        """Let the process go on until it says this; the most that it held on the way."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.most = 0
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == f"{word}\n"
        return self.most


def sparse_reference(directory: Path, layers: int) -> int:
    """A LLaMA in float32 of which only the first two blocks and what lies outside take room; its size in bytes."""
    config = six_layers(vocab_size=512, hidden_size=1024, intermediate_size=2816)
    config.num_hidden_layers, config.dtype = layers, torch.float32
    config.save_pretrained(directory)
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config).state_dict()
    offset, header = 0, {}
    for name, tensor in shapes.items():
        end = offset + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    generator = torch.Generator().manual_seed(0)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        file.truncate(start + offset)
        for name, tensor in shapes.items():
            if re.match(r"model\.layers\.([01])\.", name) or "layers" not in name:
                file.seek(start + header[name]["data_offsets"][0])
                file.write((torch.randn(tensor.shape, generator=generator) * 0.05).numpy().tobytes())
    return offset


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
def test_memory_follows_the_target_not_the_reference(tmp_path: Path) -> None:
    size = sparse_reference(tmp_path / "reference", 16)
    words = [sys.executable, "-c", MEASURED, str(tmp_path / "reference"), str(tmp_path / "target")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        meter = Meter(process)
        before = meter.now()
        taken = meter.until("inherited") - before
        whole = meter.until("loaded") - before
        process.communicate("\n")
    target = (tmp_path / "target" / "model.safetensors").stat().st_size
    bound = 1.1 * target + 0.5e9
    assert whole > size * 0.95 > bound, "the meter would see it"
    assert taken < bound, f"{taken / 1e6:.0f} MB for a target of {target / 1e6:.0f} MB"
