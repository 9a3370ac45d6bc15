"""Surgery: a reference and layer indices become a target, with an account of every tensor and a proof.

    a word → indices                          layers.py
    config → the target's config              configs.py
    files' tensors → the target's             cut.py (decided), writing.py (done)
    target against reference, by running      proof.py
    parts alone, the rest at random           initial.py
    half the width, all at random             narrow.py
    a trained target, more layers above       growing.py
    a Hugging Face directory, whole or absent saving.py, card.py
    all of it in one call                     directory.py

Inside, the layers kept are always a tuple of indices into the reference's blocks, so any choice of layers is cut,
accounted for and proven in the same way. The reference is never changed, and only what is kept is read.
"""

from inheritune.surgery.configs import cut_config, fitting_config, forms
from inheritune.surgery.cut import Cut, TensorRecord, account, lineage, plan_cut
from inheritune.surgery.directory import check_free, inherit
from inheritune.surgery.growing import grow
from inheritune.surgery.initial import parts, random_like, start, tensor_records
from inheritune.surgery.layers import MEASURES, PROBE, is_probe, kept, measured, parse_layers, spelled
from inheritune.surgery.narrow import half_width, half_width_config
from inheritune.surgery.proof import prove
from inheritune.surgery.saving import save, verify_saved

__all__ = [
    "MEASURES",
    "PROBE",
    "Cut",
    "TensorRecord",
    "account",
    "check_free",
    "cut_config",
    "fitting_config",
    "forms",
    "grow",
    "half_width",
    "half_width_config",
    "inherit",
    "is_probe",
    "kept",
    "lineage",
    "measured",
    "parse_layers",
    "parts",
    "plan_cut",
    "prove",
    "random_like",
    "save",
    "spelled",
    "start",
    "tensor_records",
    "verify_saved",
]
