"""What each layer is worth before any training: how it turns the hidden state, what it attends to, what prefixes score.

`passes.py` runs a model and catches what its blocks show; `turning.py` makes of that block influence, angular distances
and the layers that they choose; `prefixes.py` takes from the same pass what every prefix scores. `degeneracy.py` looks
at attention matrices, head by head.
"""

from inheritune.layerwise.degeneracy import Degeneracy, degeneracy_record, measure_degeneracy, untrained
from inheritune.layerwise.prefixes import Scan, scan_prefixes, scan_record
from inheritune.layerwise.turning import (
    Turning,
    choose,
    first_batches,
    measure_turning,
    most_influential,
    outside_closest_stretch,
)

__all__ = [
    "Degeneracy",
    "Scan",
    "Turning",
    "choose",
    "degeneracy_record",
    "first_batches",
    "measure_degeneracy",
    "measure_turning",
    "most_influential",
    "outside_closest_stretch",
    "scan_prefixes",
    "scan_record",
    "untrained",
]
