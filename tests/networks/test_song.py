"""The parts of the published U-Nets, against their equations; whole networks are judged in external/test_parity.py."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sde_gen.networks import make_network, summary
from sde_gen.networks.resampled_blocks import FilteredConv, LevelFeatures, Resample

KERNELS = [(1, 1), (1, 3, 3, 1), (1, 5, 10, 10, 5, 1)]


def upfirdn(x: torch.Tensor, kernel: tuple[int, ...], up: int, down: int, before: int, after: int) -> torch.Tensor:
    """Zeros put between, padding, the filter as a sum over its taps, and every `down`-th place: the definition, slowly."""
    taps = torch.tensor(kernel, dtype=x.dtype)
    taps = torch.outer(taps, taps) / taps.sum() ** 2 * up**2
    b, c, h, w = x.shape
    wide = x.new_zeros(b, c, h * up, w * up)
    wide[:, :, ::up, ::up] = x
    wide = torch.nn.functional.pad(wide, (before, after, before, after))
    size = (wide.shape[2] - len(kernel) + 1, wide.shape[3] - len(kernel) + 1)
    out = sum(taps[i, j] * wide[:, :, i : i + size[0], j : j + size[1]] for i in range(len(kernel)) for j in range(len(kernel)))
    return out[:, :, ::down, ::down]


@pytest.mark.parametrize("kernel", KERNELS)
def test_filters(kernel: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, 6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    more = len(kernel) - 2
    up, down = (Resample(direction, kernel).double() for direction in ("up", "down"))
    torch.testing.assert_close(up(x), upfirdn(x, kernel, 2, 1, (more + 1) // 2 + 1, more // 2), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(down(x), upfirdn(x, kernel, 1, 2, (more + 1) // 2, more // 2), rtol=1e-6, atol=1e-7)
    conv = FilteredConv(3, 4, kernel).double()
    wanted = torch.nn.functional.conv2d(
        upfirdn(x, kernel, 1, 1, (more + 3) // 2, (more + 2) // 2), conv.conv.weight, conv.conv.bias, stride=2
    )
    torch.testing.assert_close(conv(x), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_constant_stays_one_inside(kernel: tuple[int, ...]) -> None:
    x = torch.full((1, 1, 24, 24), 3.0)
    for direction in ("up", "down"):
        y = Resample(direction, kernel)(x)
        inner = y[..., 4:-4, 4:-4]
        torch.testing.assert_close(inner, torch.full_like(inner, 3.0))


def test_positional_features() -> None:
    c = torch.tensor([0.0, 0.5, 1.0])
    for closed in (True, False):
        features = LevelFeatures(8, "positional", 999.0, 3.0, closed=closed, sine_first=closed)(c)
        angles = (999 * c + 3)[:, None] * 10000.0 ** -(torch.arange(4) / (3 if closed else 4))
        parts = [angles.sin(), angles.cos()] if closed else [angles.cos(), angles.sin()]
        torch.testing.assert_close(features, torch.cat(parts, 1), rtol=1e-4, atol=1e-4)


def test_fourier_features_are_drawn_once_kept_and_wide() -> None:
    level = LevelFeatures(64, "fourier", -1.0, 0.0, fourier_scale=16.0)
    assert "frequencies" in level.state_dict() and 10 < float(level.frequencies.std()) < 24
    c = torch.tensor([0.3])
    wanted = (-c[:, None] * level.frequencies * 2 * math.pi).sin()
    torch.testing.assert_close(level(c)[:, :32], wanted, rtol=1e-3, atol=1e-3)
    assert level.half().frequencies.dtype == torch.float32
    assert "frequencies" not in LevelFeatures(64, "positional", 1.0, 0.0).state_dict()


@pytest.mark.parametrize("encoder", ["standard", "residual", "skip"])
@pytest.mark.parametrize("decoder", ["standard", "skip"])
def test_operations_are_counted(encoder: str, decoder: str) -> None:
    options = {"width": 8, "multipliers": (1, 2, 2), "attention": (1,), "encoder": encoder, "decoder": decoder}
    with torch.device("meta"):
        network = make_network("song", (3, 20, 12), **options).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 3, 20, 12), torch.zeros(1))
    filters = 0 if encoder != "residual" else 0.03  # the one of the pyramid, which is left out
    assert network.flops() == pytest.approx(counter.get_total_flops(), rel=filters)
    assert network.tokens() == 60 and "SongUNet" in summary(make_network("song", (3, 8, 8), width=8), (3, 8, 8))


def test_any_size_is_padded_and_cropped() -> None:
    torch.manual_seed(0)
    network = make_network("song", (2, 13, 9), width=8, multipliers=(1, 1, 1), attention=())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2)
    assert network.padded() == (16, 12) and network(torch.randn(1, 2, 13, 9), torch.zeros(1)).shape == (1, 2, 13, 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": (1, 2, 1)}, "even number of entries"),
        ({"encoder": "wide"}, "encoder must be one of standard, residual, skip"),
        ({"embedding": "learned"}, "embedding must be one of positional, fourier"),
        ({"resampling": "none"}, "resampling must be one of block, conv"),
        ({"rescale": 1}, "rescale must be True or False"),
        ({"clock_scale": math.inf}, "clock_scale must be a finite number"),
        ({"width": 7}, "width must be an even number"),
        ({"attention": (3,)}, r"levels in 0\.\.2"),
        ({"heads": 3}, "heads must divide"),
        ({"multipliers": ()}, "at least one level"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_network("song", (3, 8, 8), **options)
