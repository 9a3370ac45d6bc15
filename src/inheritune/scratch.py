"""A model where there is none yet, from a recipe's `architecture`: how the packaged reference was made."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerFast

from inheritune.config import ArchitectureConfig
from inheritune.errors import Refused

END_OF_TEXT = "<|endoftext|>"

# GPT-2's split into words, digits at most three together: long numbers would each become an entry of their own.
_SPLIT = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


def train_tokenizer(texts: Iterable[str], vocabulary: int, out: Path, max_length: int) -> None:
    """Train a byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2) and save it as a Hugging Face tokenizer.

    Args:
        texts: documents of the training set alone.
        vocabulary: entries, the 256 bytes and end-of-text included.
        out: the directory that gets it.
        max_length: tokens that the model takes at most, recorded for users of the tokenizer.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, model_max_length=max_length)
    wrapped.save_pretrained(out)


def architecture_config(architecture: ArchitectureConfig, vocabulary: int, end_of_text: int) -> PretrainedConfig:
    """The transformers config of a recipe's `architecture`, with the tokenizer's vocabulary and end-of-text.

    Raises:
        Refused: no `model_type`, an unknown one, or keys that transformers does not accept.
    """
    keys = dict(architecture.config)
    model_type = keys.pop("model_type", None)
    if not isinstance(model_type, str):
        raise Refused(
            "architecture.config: model_type is missing; name one that transformers knows, such as llama or gpt2"
        )
    try:
        config = AutoConfig.for_model(
            model_type, **{"vocab_size": vocabulary, "eos_token_id": end_of_text, "bos_token_id": None, **keys}
        )
    except (ValueError, TypeError, AttributeError, ArithmeticError, StrictDataclassError) as error:
        raise Refused(f"architecture.config: {' '.join(str(error).split())[:300]}") from None
    assert isinstance(config, PretrainedConfig)
    return config
