import math

import pytest
import torch

from sde_gen.networks.embeddings import LabelEmbedding, SinusoidalEmbedding


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


def test_null_label_is_an_index_of_its_own():
    embedding = LabelEmbedding(2, 5).eval()
    assert embedding.table.weight.shape == (3, 5)
    assert torch.equal(embedding(None, 2), embedding.table.weight[[2, 2]])
    assert torch.equal(embedding(torch.tensor([0, 2]), 2), embedding.table.weight[[0, 2]])


def test_label_dropout_rate():
    torch.manual_seed(0)
    embedding = LabelEmbedding(2, 3, dropout=0.25)
    label = torch.zeros(10_000, dtype=torch.long)
    dropped = (embedding(label, 10_000) == embedding.table.weight[2]).all(1)
    assert abs(dropped.float().mean() - 0.25) < 0.02
    assert torch.equal(label, torch.zeros_like(label))
    assert torch.equal(embedding.eval()(label, 10_000), embedding.table.weight[0].expand(10_000, -1))
