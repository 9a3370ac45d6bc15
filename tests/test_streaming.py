"""The reference read a block at a time, and the names and tensors of files as transformers reads them."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from families import FAMILIES, Family, seeded
from inheritune.errors import Failed
from inheritune.reference import Naming, align, block_list, cast_as_loaded, find, quiet, streamed, weightless
from inheritune.reference.internals import hollow
from inheritune.surgery import save
from tiny import TOKENS, content, family, loaded, one_line, saved

LISTED = [one for one in FAMILIES if one.listed]


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """All that a module holds: parameters, and buffers whether saved or not; a tied one under each of its names."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert (tensor.shape, tensor.dtype) == (expected[name].shape, expected[name].dtype), name
        assert content(tensor) == content(expected[name]), name


def there(blocks: nn.ModuleList) -> list[int]:
    """The blocks of which a saved tensor is in memory."""
    return [
        index
        for index, block in enumerate(blocks)
        if any(tensor.device.type != "meta" for tensor in block.state_dict().values())
    ]


def outside(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What a model holds outside of its blocks."""
    prefix = f"{block_list(model)[0]}."
    return {name: tensor for name, tensor in tensors(model).items() if not name.startswith(prefix)}


def assert_streams(directory: Path, passes: int = 1) -> None:
    """A reference that is streamed computes, and holds, what `from_pretrained` loads; a block at a time."""
    whole = loaded(directory)
    expected = block_list(whole)[1]
    ran: list[int] = []

    def check(index: int) -> Callable[..., None]:
        def after(block: nn.Module, *_: Any) -> None:
            ran.append(index)
            assert there(blocks) == [index]
            assert_same(tensors(block), tensors(expected[index]))
            assert all(tensor.data_ptr() % 64 == 0 for tensor in tensors(block).values() if tensor.numel())

        return after

    with torch.no_grad(), streamed(find(str(directory))) as model, ExitStack() as hooks:
        _, blocks = block_list(model)
        assert there(blocks) == []
        assert not model.training
        assert_same(outside(model), outside(whole))
        assert all(tensor.data_ptr() % 64 == 0 for tensor in outside(model).values() if tensor.numel())
        for index, block in enumerate(blocks):
            hooks.callback(block.register_forward_hook(check(index)).remove)
        for _ in range(passes):  # what was let go is read again
            logits = model(TOKENS, use_cache=False).logits
            assert content(logits) == content(whole(TOKENS, use_cache=False).logits)
            assert there(blocks) == [len(blocks) - 1]
    assert ran == passes * list(range(len(blocks)))
    assert there(blocks) == []
    assert not any(block._forward_pre_hooks for block in blocks)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Family], Path]:
    """Where a family's reference is saved, once for all tests. Read only."""

    @cache
    def save(one: Family) -> Path:
        path = tmp_path_factory.mktemp("reference")
        seeded(one).save_pretrained(path)
        return path

    return save


@pytest.mark.parametrize("one", LISTED, ids=lambda one: one.name)
def test_a_streamed_reference_is_what_transformers_loads(one: Family, directory: Callable[[Family], Path]) -> None:
    assert_streams(directory(one))


@pytest.mark.parametrize(
    "name", ["llama", "gpt2 tied", "mixtral", "gpt_oss", "qwen3_next", "falcon_h1", "granitemoehybrid tied"]
)
def test_in_bfloat16_too(name: str, tmp_path: Path) -> None:
    assert saved(name, tmp_path, lambda model: nn.Module.to(model, torch.bfloat16)).torch_dtype == torch.bfloat16
    assert_streams(tmp_path, passes=2)


@pytest.mark.parametrize("name", ["llama tied", "gpt2 tied", "opt tied", "mpt tied"])
def test_a_tied_head_is_the_embedding(name: str, tmp_path: Path) -> None:
    with streamed(saved(name, tmp_path)) as model:
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        assert head is not None
        assert embedding is not None
        assert head.weight is embedding.weight


@pytest.mark.parametrize("same", [True, False])
def test_a_head_in_the_files_although_the_config_ties_it(same: bool, tmp_path: Path) -> None:
    saved("llama tied", tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    embedding = held["model.embed_tokens.weight"]
    save_file(
        {**held, "lm_head.weight": embedding.clone() if same else embedding + 1},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    assert_streams(tmp_path)


def test_blocks_go_even_when_the_body_fails(tmp_path: Path) -> None:
    reference = saved("llama", tmp_path)
    with pytest.raises(KeyError), torch.no_grad(), streamed(reference) as model:  # noqa: PT012
        blocks = block_list(model)[1]
        model(TOKENS)
        assert there(blocks) == [5]
        raise KeyError
    assert there(blocks) == []
    assert not any(block._forward_pre_hooks for block in blocks)


@pytest.mark.parametrize("changed", ["model.layers.2.mlp.up_proj.weight", "model.norm.weight"])
def test_files_that_changed_fail_in_one_line(changed: str, tmp_path: Path) -> None:
    reference = saved("llama", tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    held[changed] = torch.cat([held[changed], held[changed]])
    save_file(held, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Failed) as error, torch.no_grad(), streamed(reference) as model:
        model(TOKENS)
    assert one_line(error) == (
        f"{reference.source}: its weights do not fit its config: {changed} has no place in the model or another shape"
    )


# ---- models without memory


@pytest.mark.parametrize("one", LISTED, ids=lambda one: one.name)
def test_models_without_memory(one: Family, directory: Callable[[Family], Path]) -> None:
    whole = AutoModelForCausalLM.from_pretrained(directory(one), dtype=torch.bfloat16)
    config = one.config()
    before, state = copy.deepcopy(config.__dict__), torch.get_rng_state()
    empty, half = weightless(config), hollow(config, torch.bfloat16)
    assert config.__dict__ == before
    assert torch.equal(torch.get_rng_state(), state)

    expected = whole.state_dict()
    for model in (empty, half):
        assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
            name: tensor.shape for name, tensor in expected.items()
        }
        assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    assert {tensor.device.type for tensor in tensors(empty).values()} == {"meta"}

    for model, tied in ((empty, one.tied), (half, False)):
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        assert head is not None
        assert embedding is not None
        assert (head.weight is embedding.weight) is tied
    assert {name: tensor.dtype for name, tensor in half.state_dict().items()} == {
        name: tensor.dtype for name, tensor in expected.items()
    }
    assert not half.training
    computed = tensors(whole).keys() - expected.keys()
    assert computed == tensors(half).keys() - expected.keys()
    assert_same(*({name: tensors(model)[name] for name in computed} for model in (half, whole)))


# ---- names


def test_where_a_mixtures_tensors_go() -> None:
    naming = Naming(weightless(family("mixtral").config()))
    block, module = "model.layers.3.block_sparse_moe", "model.layers.3.mlp"
    places = {
        f"{block}.experts.1.w1.weight": f"{module}.experts.gate_up_proj",
        f"{block}.experts.1.w3.weight": f"{module}.experts.gate_up_proj",
        f"{block}.experts.1.w2.weight": f"{module}.experts.down_proj",
        f"{block}.gate.weight": f"{module}.gate.weight",
        "model.layers.3.self_attn.q_proj.weight": "model.layers.3.self_attn.q_proj.weight",
        "model.embed_tokens.weight": "model.embed_tokens.weight",
        "lm_head.weight": "lm_head.weight",
    }
    assert {name: naming.places(name) for name in places} == {name: (place,) for name, place in places.items()}
    assert [name for name in places if naming.converted(name)] == [name for name in places if ".experts." in name]
    none = [f"{block}.experts.1.w4.weight", "model.layers.6.self_attn.q_proj.weight", "model.layers.6.mlp.experts", ""]
    assert [naming.places(name) for name in none] == [()] * len(none)
    assert naming.places("model.layers.6.block_sparse_moe.experts.1.w1.weight") == (), "there is no such block"


def test_names_with_and_without_the_base_models_prefix() -> None:
    naming = Naming(weightless(family("gpt2").config()))
    place = "transformer.h.2.attn.c_attn.weight"
    assert naming.places("h.2.attn.c_attn.weight") == naming.places(place) == (place,)
    assert naming.places("h.2.attn.masked_bias") == ()
    assert not naming.converted(place)


@pytest.mark.parametrize("one", LISTED, ids=lambda one: one.name)
def test_every_tensor_of_a_listed_familys_files_has_a_place(one: Family, directory: Callable[[Family], Path]) -> None:
    reference = find(str(directory(one)))
    naming = Naming(reference.skeleton)
    filled = {place for name in reference.stored for place in naming.places(name)}
    assert naming.held.keys() - filled == ({"lm_head.weight"} if one.tied else set()) & naming.held.keys()
    for name in reference.stored:
        assert naming.places(name), name
        assert naming.converted(name) or len(naming.places(name)) == 1


# ---- beside them


@pytest.mark.parametrize("bars", [True, False])
@pytest.mark.parametrize("verbosity", [20, 30])  # INFO, WARNING
def test_quiet_restores_what_was(verbosity: int, bars: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = importlib.import_module("huggingface_hub.utils.tqdm")  # by attribute it is the class in it
    monkeypatch.setattr(hub, "HF_HUB_DISABLE_PROGRESS_BARS", None)  # set, it keeps bars from being turned on
    before, bars_before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    set_bars: dict[bool, Any] = {True: logging.enable_progress_bar, False: logging.disable_progress_bar}
    try:
        logging.set_verbosity(verbosity)
        set_bars[bars]()
        with pytest.raises(KeyError), quiet():  # noqa: PT012
            assert logging.get_verbosity() == 40  # ERROR
            assert not logging.is_progress_bar_enabled()
            raise KeyError
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (verbosity, bars)
    finally:
        logging.set_verbosity(before)
        set_bars[bars_before]()


def test_align_moves_what_lies_oddly_and_that_alone() -> None:
    memory = torch.arange(256, dtype=torch.float32)
    start = -memory.data_ptr() // 4 % 16  # the first element on a multiple of 64 bytes
    straight, odd, odd_buffer = (memory[start + shift :][:32].view(4, 8) for shift in (0, 1, 2))
    module = nn.Module()
    module.straight, module.odd = nn.Parameter(straight), nn.Parameter(odd)
    module.register_buffer("buffer", odd_buffer, persistent=False)
    module.empty = nn.Parameter(torch.empty(3, device="meta"))
    expected = [tensor.clone() for tensor in (straight, odd, odd_buffer)]
    same = module.odd
    align(module)
    found = [module.get_parameter("straight"), module.get_parameter("odd"), module.get_buffer("buffer")]
    assert found[0].data_ptr() == straight.data_ptr()
    assert module.odd is same, "the parameter stays the one that others may be tied to"
    for tensor, values in zip(found, expected, strict=True):
        assert tensor.data_ptr() % 64 == 0
        assert torch.equal(tensor, values)
    assert module.empty.device.type == "meta"


def test_a_trained_model_is_cast_to_what_it_is_loaded_in(tmp_path: Path) -> None:
    """DeepSeek-V3's routers stay in float32 whatever the dtype; so do rotary frequencies, which are never saved."""
    model = seeded(family("deepseek_v3"))
    cast_as_loaded(model, torch.bfloat16)
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    assert (
        {name for name, dtype in dtypes.items() if dtype == torch.float32}
        == {name for name in dtypes if ".mlp.gate." in name}
        != set()
    )
    assert all(buffer.dtype != torch.bfloat16 for buffer in model.buffers())
    assert save(model, None, tmp_path / "out", {"initialisation": "random"})["equal"]
