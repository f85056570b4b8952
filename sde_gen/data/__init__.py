"""Data sets in their own units, and the normaliser between those units and the model's."""

from sde_gen.data.dataset import Dataset, validate
from sde_gen.data.download import SOURCES, download
from sde_gen.data.normalizer import Normalizer
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
    "download",
    "from_torch",
    "gaussians8_centres",
    "is_path",
    "item_shape",
    "load_dataset",
    "validate",
]
