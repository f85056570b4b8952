"""Metrics of samples, each with its standard error."""

from sde_gen.metrics.distances import frechet_distance, kernel_distance, sliced_wasserstein
from sde_gen.metrics.estimate import Estimate, share
from sde_gen.metrics.features import FeatureNet, cached_features
from sde_gen.metrics.frechet import Frechet, Moments, frechet_to
from sde_gen.metrics.image_features import ImageFeatures, as_bytes
from sde_gen.metrics.imagenet import ImageNet
from sde_gen.metrics.inception import Inception, PytorchFidInception
from sde_gen.metrics.inception_score import Score, inception_score
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
    "Frechet",
    "ImageFeatures",
    "ImageNet",
    "Inception",
    "Moments",
    "PytorchFidInception",
    "Score",
    "as_bytes",
    "cached_features",
    "frechet_distance",
    "frechet_to",
    "inception_score",
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
