import pytest
import torch

from sde_gen.networks import PatchTransformer
from sde_gen.networks.transformer import position_table


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 11), (2, 50), (2, 4, 5, 6)])
@pytest.mark.parametrize("patch", [1, 2, 3])
def test_patches_are_undone(shape, patch):
    network = PatchTransformer(shape, patch=patch, width=8, depth=1, heads=1)
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    patches = network.to_patches(x)
    tokens = 1
    for size in shape[1:]:
        tokens *= -(-size // patch)
    assert patches.shape == (2, tokens, shape[0] * patch ** (len(shape) - 1))
    assert torch.equal(network.from_patches(patches), x)


def test_a_patch_holds_neighbours():
    network = PatchTransformer((1, 4, 4), patch=2, width=8, depth=1, heads=1)
    patches = network.to_patches(torch.arange(16.0).reshape(1, 1, 4, 4))
    assert patches[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


@pytest.mark.parametrize(("grid", "width"), [((5,), 8), ((4, 4), 32), ((3, 4, 5), 10), ((9, 9), 6)])
def test_positions_differ(grid, width):
    table = position_table(grid, width)
    assert table.shape[1] == width
    distance = torch.cdist(table, table) + torch.eye(len(table))
    assert distance.min() > 1e-3
