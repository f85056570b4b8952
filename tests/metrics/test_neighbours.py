import numpy as np
import pytest
import torch

from sde_gen.metrics import (
    memorised_fraction,
    memorised_of,
    mode_fractions,
    nearest_distances,
    neighbour_ratio,
    neighbours,
    precision_recall,
)


def normal(n, d, seed, shift=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def plain_precision(samples, reference, k):
    own = torch.cdist(reference, reference).sort(dim=1).values[:, k]
    return float((torch.cdist(samples, reference) <= own).any(1).double().mean())


def test_precision_and_recall_of_the_same_set_and_of_disjoint_sets():
    a = normal(60, 3, 0)
    assert [e.value for e in precision_recall(a, a)] == [1.0, 1.0]
    found = precision_recall(a, normal(70, 3, 1, shift=100.0))
    assert [e.value for e in found] == [0.0, 0.0] and all(0 < e.std_error < 0.05 for e in found)


def test_precision_is_of_the_samples_and_recall_of_the_reference():
    wide, mode = normal(300, 2, 0, torch.tensor([[0.0, 0.0], [40.0, 0.0]], dtype=torch.float64).repeat(150, 1)), normal(300, 2, 1)
    precision, recall = precision_recall(mode, wide)
    assert precision.value > 0.9 and recall.value == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_recall_equal_their_definition(k, monkeypatch):
    monkeypatch.setattr(neighbours, "_CHUNK", 1000)  # many chunks
    a, b = normal(80, 3, 0, 0.7), normal(50, 3, 1)
    precision, recall = precision_recall(a, b, k=k)
    assert precision.value == plain_precision(a, b, k) and recall.value == plain_precision(b, a, k)


def test_radii_of_subsets_equal_those_computed_alone():
    points, subset = normal(200, 2, 0), torch.randperm(200, generator=torch.Generator().manual_seed(0))[:100]
    radii = neighbours._radii(points, [subset], 3)[0]
    alone = torch.cdist(points[subset], points[subset]).sort(dim=1).values[:, 3]
    torch.testing.assert_close(radii[subset], alone)
    assert int((radii == -1).sum()) == 100


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_the_errors_of_precision_and_recall_are_their_spread(shift):
    found = [precision_recall(normal(150, 2, 2 * i, shift), normal(200, 2, 2 * i + 1), bootstrap=12, seed=i) for i in range(100)]
    for side in (0, 1):
        true = np.std([e[side].value for e in found])
        stated = np.sqrt(np.mean([e[side].std_error ** 2 for e in found]))
        assert stated / true == pytest.approx(1, abs=0.3)


def test_precision_of_two_clusters_has_its_error():
    # Where the half-samples' non-linear part was taken away, the error was 0.84 of the spread.
    sides = torch.tensor([-5.0, 5.0], dtype=torch.float64)
    found = []
    for i in range(120):
        x, y = normal(150, 2, 2 * i), normal(150, 2, 2 * i + 1)
        for points, share in ((x, 0.8), (y, 0.5)):
            side = (torch.rand(150, generator=torch.Generator().manual_seed(i + int(10_000 * share))) > share).long()
            points[:, 0] += sides[side]
        found.append(precision_recall(x, y, bootstrap=12, seed=i)[0])
    stated = np.sqrt(np.mean([e.std_error**2 for e in found]))
    assert 0.92 < stated / np.std([e.value for e in found]) < 1.25


def test_memorised_fraction_of_copies_fresh_and_distant_samples():
    train, held_out = normal(400, 3, 0), normal(2000, 3, 1)
    assert memorised_fraction(train[:100], train, held_out).value == 1.0
    assert memorised_fraction(torch.cat([train[:100], normal(100, 3, 2, 50.0)]), train, held_out).value == 0.5
    far = memorised_fraction(normal(100, 3, 3, 50.0), train, held_out)
    assert far.value == 0 and far.std_error > 0
    fresh = memorised_fraction(normal(4000, 3, 4), train, held_out)
    assert abs(fresh.value - 0.05) < 3 * fresh.std_error < 0.03
    tenth = memorised_fraction(normal(4000, 3, 4), train, held_out, quantile=0.1)
    assert abs(tenth.value - 0.1) < 3 * tenth.std_error < 0.04


def test_memorised_fraction_finds_copies_far_from_the_origin():
    train = normal(300, 1, 0, 1e5).reshape(300, 1, 1)
    assert memorised_fraction(train[:50], train, normal(300, 1, 1, 1e5).reshape(300, 1, 1)).value == 1.0


def test_the_error_of_the_memorised_fraction_is_its_spread():
    train = normal(300, 2, 10_000)
    draws = [(normal(300, 2, 2 * i), normal(250, 2, 2 * i + 1)) for i in range(200)]
    found = [memorised_fraction(x, train, fresh, quantile=0.1, bootstrap=60, seed=i) for i, (x, fresh) in enumerate(draws)]
    stated = np.sqrt(np.mean([e.std_error**2 for e in found]))
    assert stated / np.std([e.value for e in found]) == pytest.approx(1, abs=0.3)


def test_nearest_distances_are_those_of_all_pairs_and_give_the_memorised_fraction(monkeypatch):
    monkeypatch.setattr(neighbours, "_CHUNK", 1000)  # many chunks
    x, train, fresh = normal(40, 6, 0).reshape(40, 2, 3), normal(90, 6, 1).reshape(90, 2, 3), normal(50, 6, 2).reshape(50, 2, 3)
    near, held_out = nearest_distances(x, train), nearest_distances(fresh, train)
    torch.testing.assert_close(near, torch.cdist(x.flatten(1), train.flatten(1)).amin(1))
    assert memorised_of(near, held_out, 0.2) == memorised_fraction(x, train, fresh, 0.2)


def test_the_neighbour_ratio_of_copies_fresh_and_distant_samples():
    train, held_out = normal(400, 3, 0), nearest_distances(normal(2000, 3, 1), normal(400, 3, 0))

    def ratio(x):
        return neighbour_ratio(nearest_distances(x, train), held_out)

    assert ratio(train[:100]).value < 1e-6
    assert ratio(train[:100] + 0.5 * (normal(100, 3, 5) * 1e-3)).value < 0.01
    fresh = ratio(normal(2000, 3, 4))
    assert abs(fresh.value - 1) < 3 * fresh.std_error < 0.15
    assert ratio(normal(100, 3, 3, 50.0)).value > 10
    by_hand = neighbour_ratio(torch.tensor([1.0, 3.0]), torch.tensor([4.0, 4.0, 4.0]))
    assert (by_hand.value, by_hand.std_error) == pytest.approx((0.5, 1 / 4))


def test_the_error_of_the_neighbour_ratio_is_its_spread():
    train = normal(300, 2, 10_000)
    near = [nearest_distances(normal(100 + 60 * (i % 2), 2, i), train) for i in range(400)]
    found = [neighbour_ratio(*near[2 * i : 2 * i + 2]) for i in range(200)]
    stated = np.sqrt(np.mean([e.std_error**2 for e in found]))
    assert stated / np.std([e.value for e in found]) == pytest.approx(1, abs=0.15)


def test_the_neighbour_ratio_where_there_is_nothing_to_compare():
    assert np.isnan(neighbour_ratio(torch.ones(3), torch.zeros(3)).value)
    alone = neighbour_ratio(torch.ones(1), torch.tensor([2.0, 2.0]))
    assert alone.value == 0.5 and np.isnan(alone.std_error)


def test_data_that_hold_their_items_several_times(monkeypatch):
    monkeypatch.setattr(neighbours, "_CHUNK", 1000)  # many chunks
    train = 3 + normal(8, 36, 0).float().repeat(40, 1)
    held_out, copies, fresh = (nearest_distances(x, train) for x in (train[:32], train[40:80], 3 + normal(20, 36, 1)))
    assert not held_out.any() and not copies.any() and fresh.min() > 1
    for found in (neighbour_ratio(fresh, held_out), memorised_of(copies, held_out)):
        assert np.isnan([found.value, found.std_error]).all() and found.reason == "every held-out item is a training item"
    held_out[8:] = fresh.mean()  # a quarter
    partly = memorised_of(copies, held_out)
    assert np.isnan(partly.value) and partly.reason == "25% of the held-out items are training items"
    held_out[1:8] = fresh.mean()  # fewer than one in twenty
    assert memorised_of(copies, held_out).value == 1 and memorised_of(fresh, held_out).value < 1
    near = train[:1].double() + 1e-7  # what is not 0 is not lost
    torch.testing.assert_close(nearest_distances(near, train), torch.tensor([6e-7], dtype=torch.float64), rtol=1e-6, atol=0)


def test_mode_fractions():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    samples = torch.cat([normal(50, 2, 0).float() + centres[0], normal(150, 2, 1).float() + centres[1]])
    assert [e.value for e in mode_fractions(samples, centres)] == [0.25, 0.75, 0.0]
    assert mode_fractions(samples, centres)[1].std_error == pytest.approx((0.75 * 0.25 / 200) ** 0.5, rel=0.02)
    lost = torch.cat([samples, torch.full((200, 2), 500.0)])
    assert [e.value for e in mode_fractions(lost, centres, radius=6.0)] == [0.125, 0.375, 0.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: precision_recall(normal(7, 2, 0), normal(20, 2, 1)), "N >= 8"),
        (lambda: precision_recall(normal(9, 2, 0), normal(20, 2, 1), k=0), "k 0"),
        (lambda: precision_recall(normal(9, 2, 0), normal(20, 3, 1)), "reference 3"),
        (lambda: memorised_fraction(normal(9, 2, 0), normal(9, 2, 0), normal(9, 3, 0)), "held_out has 3"),
        (lambda: memorised_fraction(normal(9, 2, 0), normal(9, 2, 0), normal(9, 2, 0), quantile=5), "quantile 5"),
        (lambda: memorised_fraction(normal(9, 2, 0) / 0, normal(9, 2, 0), normal(9, 2, 0)), "samples holds"),
        (lambda: mode_fractions(normal(9, 2, 0), normal(3, 2, 0), radius=0), "radius 0"),
        (lambda: nearest_distances(normal(9, 2, 0), normal(3, 3, 0)), "points 3"),
        (lambda: neighbour_ratio(torch.ones(0), torch.ones(3)), "near of shape"),
        (lambda: neighbour_ratio(torch.ones(3), torch.ones(3, 2)), "held_out of shape"),
        (lambda: neighbour_ratio(torch.ones(3) / 0, torch.ones(3)), "finite distances"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
