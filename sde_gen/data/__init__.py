"""Data sets in their own units: how they are read, and the normaliser between those units and the model's.

`load_dataset` gives a `Dataset` of a registered name or of the user's own files (folders and archives of images, arrays, tables),
`from_torch` one of a PyTorch data set; `as_items`, `as_floats` and `check_labels` take a caller's own arrays and labels. Every loader
ends in `assemble`, where labels are numbered, a part is held out and what does not fit in memory becomes a `Source`. This room
imports nothing of the package but itself and the ground modules.
"""

from sde_gen.data.dataset import Dataset, rows_drawn, validate
from sde_gen.data.download import SOURCES, download
from sde_gen.data.labels import check_labels
from sde_gen.data.normalizer import Normalizer
from sde_gen.data.precision import as_floats, as_items, needs_float64
from sde_gen.data.registry import DATASETS, PATHS, is_path, item_shape, load_dataset
from sde_gen.data.source import Source
from sde_gen.data.torch_data import from_torch
from sde_gen.data.toys import gaussians8_centres

__all__ = [
    "DATASETS",
    "PATHS",
    "SOURCES",
    "Dataset",
    "Normalizer",
    "Source",
    "as_floats",
    "as_items",
    "check_labels",
    "download",
    "from_torch",
    "gaussians8_centres",
    "is_path",
    "item_shape",
    "load_dataset",
    "needs_float64",
    "rows_drawn",
    "validate",
]
