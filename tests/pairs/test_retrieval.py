"""Ranks and R@k, by hand and against their binomial law."""

from __future__ import annotations

import pytest
import torch

from sde_gen.pairs import recall
from sde_gen.pairs.retrieval import ranks


def test_ranks_by_hand() -> None:
    similarity = torch.tensor([[0.9, 0.1, 0.5], [0.9, 0.1, 0.5], [0.3, 0.3, 0.3]])
    right = torch.tensor([[True, False, False], [False, True, True], [False, True, False]])
    assert ranks(similarity, right).tolist() == [1, 2, 2]  # the best of several right answers; the mean place of ties
    assert recall(similarity, right).value == pytest.approx(1 / 3) and recall(similarity, right, 2).value == 1
    assert str(recall(similarity, right, 2)) == "1.000 +- 0.000"


def test_the_error_is_that_of_independent_queries_or_of_groups() -> None:
    generator = torch.Generator().manual_seed(0)
    hits = torch.rand(4000, generator=generator) < 0.3
    similarity = torch.stack([hits.float(), torch.full((4000,), 0.5)], 1)
    right = torch.tensor([[True, False]]).expand(4000, 2)
    found = recall(similarity, right)
    share = float(hits.float().mean())
    assert found.value == pytest.approx(share) and found.std_error == pytest.approx((share * (1 - share) / 4000) ** 0.5, rel=1e-3)
    twice = recall(similarity.repeat_interleave(2, 0), right.repeat_interleave(2, 0), groups=torch.arange(4000).repeat_interleave(2))
    assert twice.queries == 8000 and twice.std_error == pytest.approx(found.std_error, rel=1e-3)  # copies tell nothing new


@pytest.mark.parametrize(
    ("right", "k", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.bool), 1, r"right must be Boolean of shape \(2, 3\) with a right answer in each row"),
        (torch.ones(2, 2, dtype=torch.bool), 1, r"got torch.bool of \(2, 2\)"),
        (torch.ones(2, 3, dtype=torch.bool), 0, "k must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_arguments_are_one_line(right: torch.Tensor, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recall(torch.zeros(2, 3), right, k)


def test_a_similarity_of_nan_is_not_the_first_place() -> None:
    similarity = torch.tensor([[0.9, 0.1], [torch.nan, torch.nan], [0.2, torch.nan]])
    with pytest.raises(ValueError, match="similarity is NaN for 2 queries: 1, 2"):
        ranks(similarity, torch.tensor([[True, False]]).expand(3, 2))
