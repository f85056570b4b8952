"""Blended edits: what is not masked comes back to the bit, what is masked is the conditional law of what stands beside it at the end."""

import pytest
import torch

import sde_gen
from sde_gen.data import Normalizer
from sde_gen.exact.mixtures import GaussianData
from sde_gen.models.score import ScoreModel


def pictures(count: int = 6) -> torch.Tensor:
    return torch.randint(0, 256, (count, 2, 4, 4), generator=torch.Generator().manual_seed(0)).float()


class Reads(torch.nn.Module):
    """A network that says how bright its input is, and that of a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, x, c, **cond):
        shift = cond["wish"].to(x).reshape(-1, 1, 1, 1) if "wish" in cond else 0.0
        return self.weight * x.mean((1, 2, 3), keepdim=True).expand_as(x) + shift


def model() -> ScoreModel:
    x = pictures(50)
    return ScoreModel(Reads(), sde_gen.make_sde("vp"), "data", normalizer=Normalizer.fit(x, "standard"))


@pytest.mark.parametrize("solver", ["ancestral", "ddim", "em", "dpm", "heun"])
@pytest.mark.parametrize("t", [None, 0.4])
def test_what_is_not_masked_is_what_it_was(solver, t):
    x = pictures()
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1:3, 1:3] = True
    out = sde_gen.edit(model(), x, mask, t=t, solver=solver, steps=8, cond={"wish": torch.arange(6.0)})
    assert torch.equal(out[..., ~mask], x[..., ~mask])
    assert not torch.equal(out[..., mask], x[..., mask])
    other = sde_gen.edit(model(), x, mask, t=t, solver=solver, steps=8, cond={"wish": torch.arange(6.0) + 1})
    assert bool((other[..., mask] > out[..., mask]).all())  # the condition reaches what is masked


def test_each_item_has_its_own_mask_and_does_not_depend_on_the_others():
    x = pictures()
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    out = sde_gen.edit(model(), x, mask, t=0.5, steps=6)
    assert torch.equal(out[~mask], x[~mask])
    alone = sde_gen.edit(model(), x[:2], mask[:2], t=0.5, steps=6)
    torch.testing.assert_close(out[:2], alone, atol=1e-4, rtol=0)


def test_a_shallow_edit_stays_near_what_was_there():
    exact = GaussianData(torch.zeros(3), torch.eye(3)).model(sde_gen.make_sde("vp"))
    x, mask = torch.full((200, 3), 2.0), torch.tensor([False, True, True])
    near, far = ((sde_gen.edit(exact, x, mask, t=t, steps=12) - x)[:, 1:].abs().mean() for t in (0.05, None))
    assert float(near) < 0.3 * float(far)


def test_independent_entries_are_drawn_from_their_law():
    law = GaussianData(torch.tensor([1.0, -2.0, 0.5]), torch.diag(torch.tensor([0.5, 2.0, 1.0])))
    exact = law.model(sde_gen.make_sde("vp"))
    x = torch.full((4000, 3), 9.0)
    out = sde_gen.edit(exact, x, torch.tensor([False, True, True]), steps=100, solver="dpm_sde")
    assert torch.equal(out[:, 0], x[:, 0])
    torch.testing.assert_close(out[:, 1:].mean(0), torch.tensor([-2.0, 0.5]), atol=0.1, rtol=0)
    torch.testing.assert_close(out[:, 1:].var(0), torch.tensor([2.0, 1.0]), atol=0, rtol=0.1)


@pytest.mark.parametrize(
    ("mask", "t", "error", "message"),
    [
        (torch.ones(4, 4), None, TypeError, "mask must be Boolean"),
        (torch.ones(3, 4, dtype=torch.bool), None, ValueError, r"mask of shape \(3, 4\) does not fit data of shape \(6, 2, 4, 4\)"),
        (torch.zeros(4, 4, dtype=torch.bool), None, ValueError, "mask must be True somewhere"),
        (torch.ones(4, 4, dtype=torch.bool), None, ValueError, "not everywhere"),
        (torch.eye(4).bool(), 2.0, ValueError, r"t must be in \("),
    ],
)
def test_bad_masks_get_one_line(mask, t, error, message):
    with pytest.raises(error, match=message):
        sde_gen.edit(model(), pictures(), mask, t=t)


def test_an_edit_that_begins_at_another_index_is_that_part_of_the_whole():
    x, mask = pictures(), torch.eye(4).bool()
    whole = sde_gen.edit(model(), x, mask, t=0.5, steps=6)
    part = sde_gen.edit(model(), x[2:5], mask, t=0.5, steps=6, index_offset=2)
    torch.testing.assert_close(part, whole[2:5], atol=1e-4, rtol=0)
