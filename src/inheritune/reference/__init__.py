"""References: where a large model comes from, whether its files can be trusted, and where its blocks are.

`find` reads config, tokenizer and the headers of the weight files, and refuses what cannot be inherited from; `load`
reads the model itself.

    a word → files, checked → a model     finding.py
    weight files: there, whole, safe      weights.py
    blocks, final norm, parameters        structure.py
"""

from inheritune.reference.finding import (
    LINEAGE_KEY,
    Reference,
    check_sequence_length,
    check_vocabulary,
    describe,
    find,
    load,
)
from inheritune.reference.structure import block_list, final_norm, fresh
from inheritune.reference.weights import one_line

__all__ = [
    "LINEAGE_KEY",
    "Reference",
    "block_list",
    "check_sequence_length",
    "check_vocabulary",
    "describe",
    "final_norm",
    "find",
    "fresh",
    "load",
    "one_line",
]
