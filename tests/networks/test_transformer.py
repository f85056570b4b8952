import pytest
import torch

from sde_gen.networks.transformer import position_table


@pytest.mark.parametrize(("grid", "width"), [((5,), 8), ((4, 4), 32), ((3, 4, 5), 10), ((9, 9), 6)])
def test_positions_differ(grid, width):
    table = position_table(grid, width)
    assert table.shape[1] == width
    distance = torch.cdist(table, table) + torch.eye(len(table))
    assert distance.min() > 1e-3
