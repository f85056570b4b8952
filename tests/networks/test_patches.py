"""Folding places into channels, and the two networks that work on what it gives."""

import pytest
import torch

from sde_gen.networks import make_network
from sde_gen.networks.patches import fold, patch_grid, unfold

SHAPES = [(1, 8, 8), (3, 7, 11), (2, 50), (1, 13), (2, 4, 5, 6)]
SMALL = {"width": 8, "multipliers": (1, 2), "attention": (1,), "heads": 2}


def perturbed(network: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def unet(shape: tuple[int, ...], out_channels: int | None = None, **options: int) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return perturbed(make_network("unet", shape, None, out_channels, **SMALL, **options))


def states(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(2)), torch.tensor([-5.0, 0.0, 7.0])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("patch", [1, 2, 3])
def test_folding_is_undone(shape, patch):
    x, _ = states(shape)
    folded = fold(x, patch)
    grid = [-(-size // patch) for size in shape[1:]]
    assert patch_grid(shape[1:], patch) == grid
    assert folded.shape == (3, shape[0] * patch ** (len(shape) - 1), *grid)
    assert folded.square().sum() == pytest.approx(float(x.square().sum()))
    assert torch.equal(unfold(folded, patch, shape[1:]), x)


def test_a_patch_holds_neighbours():
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    folded = fold(x, 2)
    assert folded[0, :4].flatten(1).T.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert torch.equal(folded[0, 4:], folded[0, :4] + 16)
    assert torch.equal(folded, torch.nn.functional.pixel_unshuffle(x, 2))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("patch", [2, 3])
def test_unet_of_patches_is_the_unet_of_the_folded_data(shape, patch):
    x, c = states(shape)
    volume = patch ** (len(shape) - 1)
    network = unet(shape, 2 * shape[0], patch=patch)
    inner = unet((shape[0] * volume, *patch_grid(shape[1:], patch)), 2 * shape[0] * volume)
    inner.load_state_dict(network.state_dict())
    y = network(x, c)
    assert y.shape == (3, 2 * shape[0], *shape[1:])
    assert torch.equal(y, unfold(inner(fold(x, patch), c), patch, shape[1:]))


@pytest.mark.parametrize("shape", SHAPES)
def test_unet_of_patches_is_zero_untrained(shape):
    x, c = states(shape)
    network = make_network("unet", shape, **SMALL, patch=2)
    assert torch.equal(network(x, c), torch.zeros_like(x))


def test_patch_of_one_is_the_plain_unet():
    plain, explicit = unet((1, 9, 7)), unet((1, 9, 7), patch=1)
    assert plain.options["patch"] == 1
    assert plain.enter.weight.shape == (8, 1, 3, 3) and plain.leave.weight.shape == (1, 8, 3, 3)
    x, c = states((1, 9, 7))
    assert torch.equal(plain(x, c), explicit(x, c))
    old = {name: value for name, value in plain.options.items() if name != "patch"}  # as stored before there were patches
    again = make_network("unet", (1, 9, 7), **old).eval()
    again.load_state_dict(plain.state_dict())
    assert torch.equal(plain(x, c), again(x, c))
    assert list(unet((1, 9, 7), patch=2).state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("name", ["unet", "transformer"])
def test_bad_patches(name):
    for patch in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="patch"):
            make_network(name, (1, 8, 8), patch=patch)
