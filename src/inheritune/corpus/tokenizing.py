"""The reference's own tokenizer as workers use it: saved as one file, special tokens in text taken as plain text."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from inheritune.errors import Refused

if TYPE_CHECKING:
    from tokenizers import Tokenizer


_WORDS = "The harbour lay quiet at that hour."


@dataclass(frozen=True)
class TokenizerFacts:
    """What of a tokenizer decides the bytes that are written."""

    serialized: str
    """The contents of tokenizer.json, without truncation or padding."""
    vocabulary: int
    """One above the largest token id."""
    end_of_text: int
    begin_of_sequence: int | None
    adds_begin_of_sequence: bool
    """Whether it begins a text with it by itself."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all of it, in hexadecimal."""
        special = f"{self.end_of_text} {self.begin_of_sequence} {self.adds_begin_of_sequence}\n"
        return hashlib.sha256(special.encode("ascii") + self.serialized.encode("utf-8")).hexdigest()

    @property
    def token_bytes(self) -> int:
        """Bytes a token on disk: 2 up to 65,536 entries, else 4."""
        return 2 if self.vocabulary <= 1 << 16 else 4

    def adds_bos(self, setting: Literal["auto", "always", "never"]) -> bool:
        """Whether documents begin with begin-of-sequence under `data.add_bos`.

        Raises:
            Refused: asked for, but the tokenizer has none.
        """
        if setting == "always" and self.begin_of_sequence is None:
            raise Refused(
                "data.add_bos: always, but the tokenizer has no beginning-of-sequence token; use auto or never"
            )
        return setting == "always" or (setting == "auto" and self.adds_begin_of_sequence)


def load_tokenizer(tokenizer: Path | str | Any) -> TokenizerFacts:
    """Load a local directory's or a hub id's tokenizer (or take one already loaded) and state what matters of it.

    Raises:
        Refused: there is none, it is no fast tokenizer, or it has no end-of-text token.
    """
    name = (
        tokenizer if isinstance(tokenizer, (Path, str)) else getattr(tokenizer, "name_or_path", "") or "the tokenizer"
    )
    if isinstance(tokenizer, (Path, str)):
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(tokenizer))
        except Exception as error:  # the tokenizers library raises Exception itself for a malformed tokenizer.json
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise Refused(f"{name}: no tokenizer can be loaded from it ({first})") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise Refused(f"{name}: only a slow tokenizer; convert it to a tokenizer.json first")
    if tokenizer.eos_token_id is None:
        raise Refused(f"{name}: the tokenizer has no end-of-text token (eos_token); set it in tokenizer_config.json")
    if len(set(tokenizer(_WORDS, add_special_tokens=False)["input_ids"])) < 2:
        # transformers 5.24 makes an empty one where tokenizer.json is missing
        raise Refused(f"{name}: its tokenizer turns text into nothing; is its tokenizer.json or vocabulary missing?")
    begin = tokenizer.bos_token_id
    sample = tokenizer("a")["input_ids"]
    copy = type(backend).from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    return TokenizerFacts(
        serialized=copy.to_str(),
        vocabulary=max(copy.get_vocab(with_added_tokens=True).values()) + 1,
        end_of_text=tokenizer.eos_token_id,
        begin_of_sequence=begin,
        adds_begin_of_sequence=begin is not None and len(sample) > 0 and sample[0] == begin,
    )


def tokenizer_fingerprint(tokenizer: Path | str) -> str:
    """What a manifest records of a tokenizer: equal for tokenizers that give the same ids."""
    return load_tokenizer(tokenizer).fingerprint


class Encoder:
    """Text to token ids: no token is added, and text that looks like a special token is encoded as the text it is."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer: Tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.encode_special_tokens = True

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The token ids of each text."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def bytes_covered(self, text: str, tokens: int) -> int:
        """UTF-8 bytes of `text` that its first `tokens` tokens cover."""
        if tokens <= 0:
            return 0
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return len(text[: max(end for _, end in offsets[:tokens])].encode("utf-8"))
