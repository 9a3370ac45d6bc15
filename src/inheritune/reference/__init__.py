"""References: where a large model comes from, whether its files can be trusted, and where its blocks are.

`find` reads config, tokenizer and the headers of the weight files, and refuses what cannot be inherited from; `load`
reads the model itself.

    a word → files, checked → a model     finding.py
    weight files: there, whole, safe      weights.py
    a GGUF file → a plain directory       gguf_header.py (checked), dequantising.py
    files and config fit each other       fitting.py
    what a config alone says              outlining.py
    blocks, final norm, parameters        structure.py
    names in files and in the module      internals.py
"""

from inheritune.reference.finding import (
    LINEAGE_KEY,
    LOADING_ERRORS,
    Reference,
    check_sequence_length,
    check_vocabulary,
    describe,
    find,
    load,
)
from inheritune.reference.internals import Naming, align, cast_as_loaded, quiet, weightless, whole_sequences
from inheritune.reference.outlining import outline, outlined
from inheritune.reference.streaming import streamed
from inheritune.reference.structure import (
    block_list,
    eval_mode,
    final_norm,
    fresh,
    not_finite,
    parameters,
    prefix_parameters,
)
from inheritune.reference.weights import DTYPES, StoredTensor, WeightReader, one_line

__all__ = [
    "DTYPES",
    "LINEAGE_KEY",
    "LOADING_ERRORS",
    "Naming",
    "Reference",
    "StoredTensor",
    "WeightReader",
    "align",
    "block_list",
    "cast_as_loaded",
    "check_sequence_length",
    "check_vocabulary",
    "describe",
    "eval_mode",
    "final_norm",
    "find",
    "fresh",
    "load",
    "not_finite",
    "one_line",
    "outline",
    "outlined",
    "parameters",
    "prefix_parameters",
    "quiet",
    "streamed",
    "weightless",
    "whole_sequences",
]
