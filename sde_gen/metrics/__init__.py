"""Metrics of samples, each with its standard error."""

from sde_gen.metrics.distances import frechet_distance, kernel_distance, sliced_wasserstein
from sde_gen.metrics.estimate import Estimate, share
from sde_gen.metrics.features import FeatureNet, cached_features
from sde_gen.metrics.neighbours import (
    memorised_fraction,
    memorised_of,
    mode_fractions,
    nearest_distances,
    neighbour_ratio,
    precision_recall,
)

__all__ = [
    "Estimate",
    "FeatureNet",
    "cached_features",
    "frechet_distance",
    "kernel_distance",
    "memorised_fraction",
    "memorised_of",
    "mode_fractions",
    "nearest_distances",
    "neighbour_ratio",
    "precision_recall",
    "share",
    "sliced_wasserstein",
]
