"""What every test stands on: no network, no screen, few threads, and two tiny references with their tokenizer."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from inheritune.tokens import Prepared

# Before any test imports the libraries that read them. The models are tiny: threads cost more than they give, and one
# thread adds in one order.
os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
)

_CACHES = pytest.StashKey[tempfile.TemporaryDirectory[str]]()

END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 320


def pytest_configure(config: pytest.Config) -> None:
    """Give libraries caches of this session's own: a test may find nothing there that an earlier one left at home."""
    caches = config.stash[_CACHES] = tempfile.TemporaryDirectory(prefix="inheritune-tests-")
    for variable in ("HF_HOME", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "XDG_CACHE_HOME"):
        os.environ[variable] = str(Path(caches.name) / variable.lower())


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the caches."""
    config.stash[_CACHES].cleanup()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none; torch is asked only then."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of 320 entries, in Hugging Face form; the last entry is `<|endoftext|>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    text = Path(__file__).read_text(encoding="utf-8")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        text.splitlines(keepends=True),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    directory = tmp_path_factory.mktemp("tokenizer")
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT)
    assert len(wrapped) == VOCABULARY
    wrapped.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def llama_directory(tmp_path_factory: pytest.TempPathFactory, tokenizer_directory: Path) -> Path:
    """A LLaMA of 4 layers, d 32, 4 query and 2 key-value heads, untied head, random weights in float32. Read only."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        bos_token_id=VOCABULARY - 1,
        eos_token_id=VOCABULARY - 1,
    )
    return _save(LlamaForCausalLM, config, tokenizer_directory, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def gpt2_directory(tmp_path_factory: pytest.TempPathFactory, tokenizer_directory: Path) -> Path:
    """A GPT-2 of 4 layers, d 32, 4 heads, tied head, no dropout, random weights in float32. Read only."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=4,
        n_head=4,
        n_positions=128,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=VOCABULARY - 1,
        eos_token_id=VOCABULARY - 1,
    )
    return _save(GPT2LMHeadModel, config, tokenizer_directory, tmp_path_factory.mktemp("gpt2"))


def _save(model_class: type, config: object, tokenizer_directory: Path, directory: Path) -> Path:
    """A model from random init, the same in every session, beside the tokenizer's files."""
    import shutil

    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config)
    model.save_pretrained(directory)
    shutil.copytree(tokenizer_directory, directory, dirs_exist_ok=True)
    return directory


@pytest.fixture
def make_prepared(tmp_path: Path) -> Callable[..., Prepared]:
    """A function that writes documents (lists of token ids) by set as `inheritune prepare` would, and opens them."""
    from inheritune.run_directory import write_json
    from inheritune.tokens import open_prepared

    def make(sets: dict[str, list[list[int]]], name: str = "data") -> Prepared:
        directory = tmp_path / name
        entries = {}
        for set_name, documents in sets.items():
            folder = directory / set_name
            folder.mkdir(parents=True)
            tokens = np.array([token for document in documents for token in document], "<u2")
            tokens.tofile(folder / "00000.ds")
            np.cumsum([len(document) for document in documents]).astype("<u8").tofile(folder / "00000.ds.index")
            np.array([3 * len(document) for document in documents], "<u8").tofile(folder / "00000.ds.bytes")
            digest = hashlib.sha256((folder / "00000.ds").read_bytes()).hexdigest()
            file = {"name": "00000.ds", "tokens": len(tokens), "documents": len(documents), "sha256": digest}
            entries[set_name] = {"tokens": len(tokens), "documents": len(documents), "files": [file]}
        tokenizer = {"vocabulary": VOCABULARY, "end_of_text": VOCABULARY - 1, "token_bytes": 2}
        write_json(directory / "manifest.json", {"sets": entries, "tokenizer": tokenizer})
        return open_prepared(directory)

    return make
