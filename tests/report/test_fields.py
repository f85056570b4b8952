"""Fields beside held-out ones, channel by channel."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

from sde_gen.report import picture_film, picture_samples
from sde_gen.report.fields import EACH, MOST_CHANNELS, picture_fields


def scaled_fields(count: int, channels: int, seed: int, space: tuple[int, ...] = (8, 12)) -> torch.Tensor:
    """Channels of scales 1e5, 1, 1e-5 ..., each a wave along the last axis of a random phase and noise."""
    generator = torch.Generator().manual_seed(seed)
    phase = 2 * torch.pi * torch.rand(count, channels, *[1] * len(space), generator=generator)
    wave = torch.cos(2 * torch.pi * 3 * torch.arange(space[-1]) / space[-1] + phase)
    x = wave + 0.1 * torch.randn(count, channels, *space, generator=generator)
    return (x + 3) * 10.0 ** (5 - 5 * torch.arange(channels)).reshape(-1, *[1] * len(space))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list]:
    """What the axes of a figure were given: images, histograms and curves, in order."""
    kept: dict[str, list] = {"imshow": [], "stairs": [], "plot": []}
    for name, calls in kept.items():
        real = getattr(Axes, name)
        monkeypatch.setattr(Axes, name, lambda self, *a, _real=real, _calls=calls, **k: (_calls.append((a, k)), _real(self, *a, **k))[1])
    return kept


@pytest.mark.parametrize("space", [(8, 12), (8, 9, 12)])
def test_each_channel_has_its_range_and_its_spectrum(space: tuple[int, ...], drawn: dict[str, list], tmp_path: Path) -> None:
    x, held_out = scaled_fields(40, 3, 0, space), scaled_fields(30, 3, 1, space)
    assert picture_fields(x, held_out, tmp_path / "f.png").exists() and len(drawn["imshow"]) == 3 * 2 * EACH
    for channel in range(3):
        of_channel = drawn["imshow"][2 * EACH * channel : 2 * EACH * (channel + 1)]
        low, high = np.quantile(held_out[:, channel].double().numpy(), (0.005, 0.995))
        assert all(k["vmin"] == pytest.approx(low) and k["vmax"] == pytest.approx(high) for _, k in of_channel)
        shown = x[0, channel] if len(space) == 2 else x[0, channel, space[0] // 2]
        np.testing.assert_array_equal(np.asarray(of_channel[0][0][0]), shown.double().numpy())
        for a, _ in drawn["plot"][2 * channel : 2 * channel + 2]:
            assert int(a[1].argmax()) == 3
    scale = [float(a[1].max()) for a, _ in drawn["plot"][::2]]
    assert scale[0] / scale[1] == pytest.approx(1e10, rel=0.5) and scale[1] / scale[2] == pytest.approx(1e10, rel=0.5)


def test_what_is_no_data_is_grey_and_changes_nothing(drawn: dict[str, list], tmp_path: Path) -> None:
    x, held_out = scaled_fields(9, 2, 0), scaled_fields(9, 2, 1)
    land = torch.zeros(8, 12, dtype=torch.bool)
    land[2:5, 3:9] = True
    clouds = torch.rand(9, 1, 8, 12, generator=torch.Generator().manual_seed(3)) < 0.3
    pictures = []
    for junk in (torch.nan, 1e30):
        a, b = x.masked_fill(land, junk), held_out.masked_fill(clouds, junk)
        picture_fields(a, b, tmp_path / f"{junk}.png", ~land, ~clouds, ["wind", "rain"])
        pictures.append((tmp_path / f"{junk}.png").read_bytes())
    assert pictures[0] == pictures[1]
    masks = [np.ma.getmaskarray(a[0]) for a, _ in drawn["imshow"][: 2 * EACH]]
    np.testing.assert_array_equal(masks[0], land.numpy())
    np.testing.assert_array_equal(masks[EACH], clouds[0, 0].numpy())
    for (a, _), (share, valid) in zip(drawn["stairs"][:2], ((x, ~land.expand(9, 8, 12)), (held_out, ~clouds[:, 0])), strict=True):
        assert float(a[0].sum()) == pytest.approx(1.0, abs=0.02) and share[:, 0][valid].isfinite().all()


def test_odd_fields_have_a_picture_too(tmp_path: Path) -> None:
    many = torch.zeros(2, MOST_CHANNELS + 3, 4, 5)  # constant, more channels than are shown, fewer items than columns
    assert Image.open(picture_fields(many, many[:1], tmp_path / "a.png")).width > 100
    x = scaled_fields(4, 1, 0)
    x[0] = torch.nan
    assert picture_fields(x, x[1:], tmp_path / "b.png").exists()


def test_pictures_of_many_channels_are_in_the_range_of_what_they_show(tmp_path: Path) -> None:
    x = scaled_fields(4, 5, 0)
    wide = np.asarray(Image.open(picture_samples(x, tmp_path / "a.png", x)).convert("L")).astype(int)
    assert wide.max() > 240 and wide.min() < 15  # and not as white as where the range were that of all channels
    x[:, 0] += 1e6
    film = Image.open(picture_film([x, x], tmp_path / "f.gif")).convert("L")
    assert np.asarray(film).min() < 15
