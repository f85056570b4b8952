"""Data sets in their own units, and the normaliser between those units and the model's."""

from sde_gen.data.dataset import Dataset, validate
from sde_gen.data.normalizer import Normalizer
from sde_gen.data.registry import DATASETS, load_dataset
from sde_gen.data.toys import gaussians8_centres

__all__ = ["DATASETS", "Dataset", "Normalizer", "gaussians8_centres", "load_dataset", "validate"]
