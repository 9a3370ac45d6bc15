"""References: what is found, what is refused, and where the blocks are."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers.utils.logging
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

from inheritune.errors import Failed, InherituneError, Refused
from inheritune.reference import (
    block_list,
    check_sequence_length,
    check_vocabulary,
    describe,
    final_norm,
    find,
    fresh,
    load,
)

Spoil = Callable[[Path], object]


@pytest.fixture
def llama(tmp_path: Path, llama_directory: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(llama_directory, tmp_path / "model"))


def one_line(error: pytest.ExceptionInfo[InherituneError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def small(**keys: Any) -> LlamaConfig:
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    return LlamaConfig(**{**sizes, "num_hidden_layers": 3, "bos_token_id": 0, "eos_token_id": 0, **keys})


def test_a_llama_is_described(llama_directory: Path) -> None:
    found = find(str(llama_directory))
    assert (found.layers, found.embedding_rows, found.max_positions) == (4, 320, 128)
    assert (found.tied, found.dtype, found.revision) == (False, "float32", None)
    block = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
    assert found.parameters_without_embeddings == 4 * block + 32
    assert found.parameters == 4 * block + 32 + 2 * 320 * 32
    assert found.tokenizer is not None
    assert found.tokenizer("a")["input_ids"]
    assert (found.tokens_trained, found.seen_hashes, found.license) == (None, None, None)


def test_a_gpt2_is_described(gpt2_directory: Path) -> None:
    found = find(str(gpt2_directory))
    assert (found.layers, found.max_positions, found.tied) == (4, 128, True)
    assert found.parameters - found.parameters_without_embeddings == (320 + 128) * 32
    assert found.parameters == sum(parameter.numel() for parameter in load(found).parameters())


def test_what_lies_beside_the_weights_is_found(llama: Path) -> None:
    (llama / "inheritune.json").write_text('{"tokens_trained": 123}')
    (llama / "seen.txt").write_text("00\n")
    (llama / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    found = find(str(llama))
    assert (found.tokens_trained, found.seen_hashes, found.license) == (123, llama / "seen.txt", "mit")


def test_tokens_trained_may_stand_in_the_config(llama: Path) -> None:
    edit_json(llama / "config.json", inheritune={"tokens_trained": 5})
    assert find(str(llama)).tokens_trained == 5


def test_the_description_is_json_and_holds_no_path_but_the_source(llama: Path) -> None:
    text = json.dumps(describe(find(str(llama))))
    assert json.loads(text)["weight_files"] == {"model.safetensors": (llama / "model.safetensors").stat().st_size}
    assert text.count(str(llama)) == 1


def test_the_fingerprint_sees_one_flipped_bit(llama: Path) -> None:
    before = find(str(llama)).fingerprint
    assert before == find(str(llama)).fingerprint
    content = bytearray((llama / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (llama / "model.safetensors").write_bytes(content)
    assert find(str(llama)).fingerprint != before


def test_a_reference_without_a_tokenizer_is_found(llama: Path) -> None:
    for file in llama.glob("tokenizer*"):
        file.unlink()
    assert find(str(llama)).tokenizer is None


def test_the_dtype_is_the_files_where_the_config_names_none(llama: Path) -> None:
    tensors = load_file(llama / "model.safetensors")
    save_file(
        {name: value.bfloat16() for name, value in tensors.items()}, llama / "model.safetensors", {"format": "pt"}
    )
    edit_json(llama / "config.json", dtype=None)
    found = find(str(llama))
    assert found.dtype == "bfloat16"
    assert load(found).dtype == torch.bfloat16
    assert load(found, torch.float32).dtype == torch.float32


def edit_json(path: Path, **keys: object) -> None:
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, **keys}))


def to_pickle(directory: Path, write: Callable[[dict[str, torch.Tensor], Path], object]) -> None:
    write(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


class Asks:
    """A pickle that runs a command when it is read without care."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["INHERITUNE_TEST_TRAP"],)


def truncate(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def shard(directory: Path) -> None:
    """Split the weights into two files with an index."""
    tensors = load_file(directory / "model.safetensors")
    places = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(tensors)}
    for file in set(places.values()):
        part = {name: tensors[name] for name, place in places.items() if place == file}
        save_file(part, directory / file, {"format": "pt"})
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (directory / "model.safetensors").unlink()


def shard_and_lose_a_file(directory: Path) -> None:
    shard(directory)
    (directory / "model-00002-of-00002.safetensors").unlink()


def shard_and_lose_a_tensor(directory: Path) -> None:
    shard(directory)
    file = directory / "model-00001-of-00002.safetensors"
    tensors = load_file(file)
    tensors.pop("model.embed_tokens.weight", None) if "model.embed_tokens.weight" in tensors else tensors.popitem()
    save_file(tensors, file, {"format": "pt"})


def dump_pickle(protocol: int) -> Callable[[dict[str, torch.Tensor], Path], object]:
    return lambda _tensors, path: path.write_bytes(pickle.dumps({"a": Asks()}, protocol=protocol))


def foreign_tokenizer(directory: Path) -> None:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "word": 320}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(directory)


SPOILED: dict[str, tuple[Spoil, list[str]]] = {
    "no config": (lambda d: (d / "config.json").unlink(), ["no model", "config.json"]),
    "config is no JSON": (lambda d: (d / "config.json").write_text("{"), ["config.json"]),
    "config without a model type": (lambda d: (d / "config.json").write_text("{}"), ["config.json"]),
    "unknown model type": (lambda d: edit_json(d / "config.json", model_type="nosuch"), ["nosuch"]),
    "no language model": (lambda d: edit_json(d / "config.json", model_type="vit"), ["no decoder-only language model"]),
    "encoder-decoder": (lambda d: edit_json(d / "config.json", model_type="t5"), ["encoder-decoder"]),
    "quantised": (
        lambda d: edit_json(d / "config.json", quantization_config={"quant_method": "fp8"}),
        ["quantised", "bfloat16"],
    ),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), ["no weights", "model.safetensors"]),
    "truncated": (lambda d: truncate(d / "model.safetensors", 0.7), ["model.safetensors", "bytes", "copy it again"]),
    "truncated header": (lambda d: truncate(d / "model.safetensors", 0.01), ["model.safetensors", "truncated"]),
    "empty file": (lambda d: truncate(d / "model.safetensors", 0), ["model.safetensors", "0 bytes"]),
    "too long": (
        lambda d: (d / "model.safetensors").open("ab").write(b"\0"),
        ["model.safetensors", "that its header states"],
    ),
    "header is no JSON": (
        lambda d: (d / "model.safetensors").write_bytes((4).to_bytes(8, "little") + b"\xff{[("),
        ["no safetensors file"],
    ),
    "git lfs pointer": (
        lambda d: (d / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        ["git lfs pull"],
    ),
    "lost shard": (shard_and_lose_a_file, ["model-00002-of-00002.safetensors is missing", "of 2"]),
    "lost tensor": (shard_and_lose_a_tensor, ["model-00001-of-00002.safetensors lacks"]),
    "index is no index": (
        lambda d: (d / "model.safetensors").rename(d / "model.safetensors.index.json").write_text("[]"),
        ["model.safetensors.index.json is no index"],
    ),
    "unsafe pickle of torch": (
        lambda d: to_pickle(d, lambda _tensors, path: torch.save({"a": Asks()}, path)),
        ["unsafe pickle", "posix.mkdir", "safetensors"],
    ),
    "unsafe pickle, protocol 2": (lambda d: to_pickle(d, dump_pickle(2)), ["unsafe pickle", "posix.mkdir"]),
    "unsafe pickle, protocol 5": (lambda d: to_pickle(d, dump_pickle(5)), ["unsafe pickle", "posix.mkdir"]),
    "pickle that is none": (
        lambda d: to_pickle(d, lambda _tensors, path: path.write_bytes(b"not a pickle")),
        ["pytorch_model.bin is truncated or holds more than tensors"],
    ),
    "pickle of no state dict": (
        lambda d: to_pickle(d, lambda _tensors, path: torch.save([1, 2], path)),
        ["pytorch_model.bin is no state dict"],
    ),
    "foreign tokenizer": (foreign_tokenizer, ["tokenizer does not fit", "320"]),
    "tokenizer is no JSON": (lambda d: (d / "tokenizer.json").write_text("{"), ["tokenizer"]),
}


@pytest.mark.parametrize("case", SPOILED)
@pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning")
def test_a_spoiled_reference_is_refused_in_one_line(case: str, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trap = llama.parent / "trap"
    monkeypatch.setenv("INHERITUNE_TEST_TRAP", str(trap))
    spoil, expected = SPOILED[case]
    spoil(llama)
    with pytest.raises(Refused) as error:
        find(str(llama))
    text = one_line(error)
    assert text.startswith(str(llama))
    for words in expected:
        assert words in text.removeprefix(str(llama))
    assert not trap.exists()


@pytest.mark.parametrize(
    ("reference", "revision", "words"),
    [
        ("no/such/directory", None, "no such directory"),
        ("../nowhere", None, "no such directory"),
        ("org/model-not-in-the-cache", None, "hub"),
        ("packaged:nosuch", None, "brings no such reference"),
        ("packaged:", None, "brings no such reference"),
        ("packaged:../..", None, "brings no such reference"),
        ("", None, "no such directory"),
        ("{file}", None, "a file, not a model directory"),
        ("{directory}", None, "no model"),
        ("{directory}", "main", "no revision"),
    ],
)
def test_what_is_no_reference_is_refused(reference: str, revision: str | None, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    name = reference.format(file=tmp_path / "file", directory=tmp_path / "directory")
    with pytest.raises(Refused) as error:
        find(name, revision)
    assert words in one_line(error)


def test_the_working_directory_is_no_reference_by_an_empty_word(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(llama)
    with pytest.raises(Refused):
        find("")
    assert find(".").layers == 4


def test_a_hub_id_is_found_in_the_cache_without_a_network(
    llama_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--org--tiny"
    shutil.copytree(llama_directory, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    found = find("org/tiny")
    assert (found.revision, found.hub_id, found.layers) == (commit, "org/tiny", 4)
    assert find("org/tiny", revision=commit).fingerprint == found.fingerprint


def test_shards_and_safe_pickles_load_as_the_same_model(llama: Path) -> None:
    whole = load(find(str(llama))).state_dict()
    shard(llama)
    assert len(find(str(llama)).weight_files) == 2
    sharded = load(find(str(llama))).state_dict()
    for file in llama.glob("model*"):
        file.unlink()
    torch.save(whole, llama / "pytorch_model.bin")
    pickled = load(find(str(llama))).state_dict()
    for name, tensor in whole.items():
        assert torch.equal(tensor, sharded[name])
        assert torch.equal(tensor, pickled[name])


def test_weights_that_do_not_fit_the_config_are_not_made_up(llama: Path) -> None:
    before = find(str(llama))
    tensors = load_file(llama / "model.safetensors")
    norm = tensors.pop("model.layers.2.input_layernorm.weight")
    for spoiled in (tensors, {**tensors, "model.layers.2.input_layernorm.weight": torch.cat([norm, norm])}):
        save_file(spoiled, llama / "model.safetensors", {"format": "pt"})
        with pytest.raises(Refused) as refused:
            find(str(llama))
        assert "model.layers.2.input_layernorm.weight" in one_line(refused)
        with pytest.raises(Failed) as failed:  # the files changed since they were found
            load(before)
        assert "model.layers.2.input_layernorm.weight" in one_line(failed)


def test_tensors_that_the_model_has_no_place_for_are_named_in_one_line(
    llama: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_warning()
    try:
        edit_json(llama / "config.json", num_hidden_layers=3)
        load(find(str(llama)))
        assert transformers.utils.logging.get_verbosity() == logging.WARNING
    finally:
        transformers.utils.logging.set_verbosity(before)
    (message,) = [record.getMessage() for record in caplog.records]
    assert "model.layers.3.input_layernorm.weight" in message
    assert "9 such tensors" in message
    assert "REPORT" not in capfd.readouterr().err


def test_a_loaded_reference_is_in_eval_mode(gpt2_directory: Path) -> None:
    assert not any(module.training for module in load(find(str(gpt2_directory))).modules())


def test_fresh_is_a_function_of_the_seed_alone() -> None:
    config = small(dtype="bfloat16")
    before, state = config.to_dict(), torch.get_rng_state()
    one, again, other = fresh(config, 1), fresh(config, 1), fresh(config, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert config.to_dict() == before
    assert one.dtype == torch.bfloat16
    weights = [model.state_dict()["model.layers.0.mlp.up_proj.weight"] for model in (one, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_blocks_and_final_norm_are_found_by_structure(gpt2_directory: Path) -> None:
    llama = LlamaForCausalLM(small())
    assert block_list(llama)[0] == "model.layers"
    assert final_norm(llama) is llama.model.norm
    gpt2 = load(find(str(gpt2_directory)))
    assert block_list(gpt2) == ("transformer.h", gpt2.get_submodule("transformer.h"))
    assert final_norm(gpt2) is gpt2.get_submodule("transformer.ln_f")
    # OPT defines its final norm before its blocks
    opt = OPTForCausalLM(
        OPTConfig(
            vocab_size=32,
            hidden_size=16,
            ffn_dim=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            word_embed_proj_dim=16,
        )
    )
    assert final_norm(opt) is opt.model.decoder.final_layer_norm


def test_experts_as_many_as_layers_are_not_taken_for_blocks() -> None:
    config = MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
    )
    model = MixtralForCausalLM(config)
    model.model.layers[0].extra = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
    assert block_list(model)[0] == "model.layers"


def test_two_lists_that_could_be_the_blocks_are_named() -> None:
    model = LlamaForCausalLM(small())
    model.model.single = nn.ModuleList(nn.Linear(1, 1) for _ in range(3))  # no blocks: made of no modules
    assert block_list(model)[0] == "model.layers"
    model.model.others = nn.ModuleList(nn.Sequential(nn.Linear(1, 1)) for _ in range(3))
    with pytest.raises(Refused) as error:
        block_list(model)
    assert "model.layers, model.others" in one_line(error)


def test_two_norms_that_could_be_the_final_one_are_named() -> None:
    model = LlamaForCausalLM(small())
    model.model.other = nn.LayerNorm(16)
    with pytest.raises(Refused) as error:
        final_norm(model)
    assert "norm, other" in one_line(error)
    model.model.norm, model.model.other = nn.Identity(), nn.Identity()
    assert final_norm(model) is None


def test_sequences_and_ids_beyond_the_reference_are_refused(llama_directory: Path) -> None:
    found = find(str(llama_directory))
    check_sequence_length(found, 128)
    with pytest.raises(Refused) as error:
        check_sequence_length(found, 129)
    assert "129" in one_line(error)
    assert "128 positions" in one_line(error)
    check_vocabulary(found, 320)
    with pytest.raises(Refused) as error:
        check_vocabulary(found, 321)
    assert "320 rows" in one_line(error)
