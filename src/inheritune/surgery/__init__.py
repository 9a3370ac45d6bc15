"""Surgery: a reference and layer indices become a target, with an account of every tensor and a proof.

    indices → target and account          cut.py
    target against reference, by running  proof.py
    target → a Hugging Face directory     saving.py, card.py
    all of it in one call                 directory.py

Inside, the layers kept are always a tuple of indices into the reference's blocks, so any choice of layers is cut,
accounted for and proven in the same way. The reference is never changed.
"""

from inheritune.surgery.cut import (
    Account,
    TensorRecord,
    cut_config,
    inherit,
    lineage,
    parse_layers,
    random_like,
    spelled,
)
from inheritune.surgery.directory import inherit_directory
from inheritune.surgery.proof import prove
from inheritune.surgery.saving import save, verify_saved

__all__ = [
    "Account",
    "TensorRecord",
    "cut_config",
    "inherit",
    "inherit_directory",
    "lineage",
    "parse_layers",
    "prove",
    "random_like",
    "save",
    "spelled",
    "verify_saved",
]
