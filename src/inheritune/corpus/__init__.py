"""Sources to token shards: strict reading, an exact budget, a seeded sample, sets by content; resumable, repeatable.

    sources → files, checked              settings.py, sources.py, files.py, python_source.py, hub.py
    files → an index of documents         reading.py, placement.py, plan.py, steps.Scan
    index → the documents of each set     selection.py, steps.Tokenise (only what is needed, in waves)
    documents → shards and manifest       shards.py, build.py, preparation.py

The number of workers decides only how many tasks run at once (worker.py); what a task does is decided by the input.
"""

from inheritune.corpus.preparation import check_sources, prepare
from inheritune.corpus.texts import iterate_training_texts
from inheritune.corpus.tokenizing import tokenizer_fingerprint

__all__ = ["check_sources", "iterate_training_texts", "prepare", "tokenizer_fingerprint"]
