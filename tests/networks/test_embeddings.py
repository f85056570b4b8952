import math

import pytest
import torch

from sde_gen.networks.embeddings import SinusoidalEmbedding


def test_sinusoids_tell_noise_levels_apart():
    embedding = SinusoidalEmbedding(32)
    c = torch.linspace(-7, 9, 161)
    y = embedding(c)
    assert y.shape == (161, 32)
    torch.testing.assert_close(y.square().sum(1), torch.full((161,), 16.0))
    distance = torch.cdist(y, y)
    neighbours = distance.diagonal(1)
    # neighbours a tenth apart are near but not equal, all others are further away than neighbours are
    assert neighbours.min() > 0.2 and neighbours.max() < 1.5
    far = (c[:, None] - c).abs() > 1.5
    assert distance[far].min() > neighbours.max()


def test_sinusoid_frequencies():
    y = SinusoidalEmbedding(4, w_min=0.5, w_max=2.0)(torch.tensor([1.0]))
    expected = [math.cos(0.5), math.cos(2.0), math.sin(0.5), math.sin(2.0)]
    torch.testing.assert_close(y, torch.tensor([expected]))
    for bad in ({"features": 3}, {"features": 0}, {"features": 4, "w_min": 2.0, "w_max": 1.0}, {"features": 4, "w_min": 0.0}):
        with pytest.raises(ValueError, match=r"features|w_min"):
            SinusoidalEmbedding(**bad)
