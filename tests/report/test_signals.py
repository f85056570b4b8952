import math

import numpy as np
import pytest
import torch
from PIL import Image

from sde_gen.report import plot_signals
from sde_gen.report.images import NOT_FINITE
from sde_gen.report.signals import SignalGrid, signals_image


def waves(n=6, channels=1, length=32):
    phase = torch.arange(n * channels, dtype=torch.float32).view(n, channels, 1)
    return torch.sin(torch.linspace(0, 6, length) + phase)


def red_share(image):
    return float((np.asarray(image) == NOT_FINITE).all(-1).mean())


@pytest.mark.parametrize(("n", "channels"), [(1, 1), (3, 2), (40, 6)])
def test_file(tmp_path, n, channels):
    path = plot_signals(waves(n, channels), tmp_path / "a.png", rows=3, columns=3, title="waves")
    assert path.stat().st_size < 300_000
    with Image.open(path) as image:
        assert 400 <= image.width <= 900


def test_where_a_value_is_lost_the_panel_is_red():
    x = waves()
    assert red_share(signals_image(x, (-1, 1))) == 0
    x[0, 0, 5] = math.nan
    one = red_share(signals_image(x, (-1, 1)))
    x[1] = math.inf
    many = red_share(signals_image(x, (-1, 1)))
    assert 0 < one < 0.02 and many > 0.05


def test_all_lost():
    assert red_share(signals_image(torch.full((4, 1, 16), math.nan))) > 0.3


def test_a_grid_draws_each_set_as_if_it_were_the_first():
    x, y = waves(), waves().flip(2)
    x[2, 0, 3] = math.nan
    grid = SignalGrid(x.shape, (-1, 1), 2, 3)
    first, _, again = grid.draw(x, "x"), grid.draw(y, "y"), grid.draw(x, "x")
    assert np.array_equal(np.asarray(first), np.asarray(again))
    assert np.array_equal(np.asarray(grid.draw(y, "y")), np.asarray(SignalGrid(x.shape, (-1, 1), 2, 3).draw(y, "y")))


@pytest.mark.parametrize("shape", [(3, 4), (2, 1, 0), (1, 1, 2, 2)])
def test_bad_shapes(tmp_path, shape):
    with pytest.raises(ValueError, match=r"\(N, C, L\)"):
        plot_signals(torch.zeros(shape), tmp_path / "a.png")
