import torch

from sde_gen.data import load_dataset
from sde_gen.data.weather import LONGITUDES, VARIABLES, ocean, weather_law


def test_the_fields_have_the_law_that_is_said():
    data = load_dataset("weather", seed=1)
    mean, stds, correlations = weather_law()
    assert data.shape == tuple(mean.shape) == (5, 16, 32) and torch.equal(data.valid, ocean().expand(5, 16, 32))
    valid = data.valid.flatten()
    x = data.train.double()
    rows = valid.nonzero()[:, 0][torch.randperm(int(valid.sum()), generator=torch.Generator().manual_seed(0))[:300]]
    z = ((x - mean) / stds[:, None, None]).flatten(1)[:, rows]
    count, right = len(z), correlations[rows][:, rows]
    assert abs(float(z.mean())) < 0.02
    off = (z.T @ z / count - right).square().mean().sqrt()
    expected = ((1 + right.square()) / count).mean().sqrt()
    assert 0.8 < float(off / expected) < 1.2
    scales = [std for _, std, _ in VARIABLES.values()]
    assert max(scales) / min(scales) > 1e10
    # across the ends of a circle neighbours are as near as anywhere else
    flat = correlations.reshape(5, 16, LONGITUDES, 5, 16, LONGITUDES)[0, 3, :, 0, 3]
    torch.testing.assert_close(flat[0, LONGITUDES - 1], flat[4, 5])
    land = data.train[:, ~data.valid].reshape(len(data.train), 5, -1)
    assert bool((land == land[:1, :, :1]).all())  # nothing of the fields lies there
