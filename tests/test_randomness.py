"""Noise is a function of (seed, sample index, draw), and it is normal."""

import pytest
import torch
from scipy import stats

from sde_gen.randomness import NoiseStream, check_seed, counter_normal, splitmix64

CPU = torch.device("cpu")


def stream(seed=0, start=0, count=64, shape=(2,), dtype=torch.float64) -> NoiseStream:
    return NoiseStream(seed, start, count, shape, dtype, CPU)


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8), (3, 5, 7), (5000,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_batches_of_1_7_and_64_are_bit_equal(shape, dtype):
    draws = 3 if shape == (5000,) else 70  # past the end of one block
    whole = stream(shape=shape, dtype=dtype)
    expected = torch.stack([whole.draw().clone() for _ in range(draws)], dim=1)
    assert expected.shape == (64, draws, *shape) and expected.dtype == dtype
    for size in (1, 7):
        for start in (0, size, 64 - size):
            part = stream(start=start, count=size, shape=shape, dtype=dtype)
            got = torch.stack([part.draw().clone() for _ in range(draws)], dim=1)
            assert torch.equal(got, expected[start : start + size])


def test_a_draw_is_not_overwritten_by_later_ones():
    noise = stream()
    first = noise.draw()
    kept = first.clone()
    for _ in range(200):
        noise.draw()
    assert torch.equal(first, kept)


def test_no_number_comes_twice():
    noise = stream(shape=(1, 8, 8))
    draws = torch.stack([noise.draw() for _ in range(150)])  # more than two blocks
    assert len(torch.unique(draws)) == draws.numel()


def test_seeds_indices_and_draws_differ():
    a, b, c = stream(0), stream(1), stream(2**40)
    rows = torch.cat([s.draw() for s in (a, b, c, a, b, c)])
    assert len(torch.unique(rows[:, 0])) == len(rows)
    again = stream(0)
    assert torch.equal(again.draw(), rows[:64])


def test_rank_does_not_matter():
    flat, square = stream(shape=(16,)), stream(shape=(1, 4, 4))
    for _ in range(5):
        assert torch.equal(flat.draw(), square.draw().flatten(1))


def normal_checks(x: torch.Tensor) -> None:
    """Moments, Kolmogorov-Smirnov and correlations of (samples, draws) numbers that ought to be independent normals."""
    n = x.numel()
    flat = x.flatten().double()
    assert abs(float(flat.mean())) < 4 / n**0.5
    assert abs(float(flat.var()) - 1) < 4 * (2 / n) ** 0.5
    assert abs(float((flat**3).mean())) < 4 * (15 / n) ** 0.5
    assert abs(float((flat**4).mean()) - 3) < 4 * (96 / n) ** 0.5
    assert stats.kstest(flat.numpy(), "norm").pvalue > 1e-3
    for a, b in ((x[1:], x[:-1]), (x[:, 1:], x[:, :-1]), (x[1:, 1:], x[:-1, :-1])):
        for power in (1, 2):  # squares too: a shared radius would leave the values uncorrelated
            first, second = a.flatten().double() ** power, b.flatten().double() ** power
            correlation = float(torch.corrcoef(torch.stack((first, second)))[0, 1])
            assert abs(correlation) < 4 / first.numel() ** 0.5


def test_streams_are_normal_and_independent():
    noise = stream(seed=3, count=2000, shape=(4,), dtype=torch.float32)
    normal_checks(torch.cat([noise.draw() for _ in range(20)], dim=1))


def test_a_run_of_seeds_is_independent():
    normal_checks(torch.stack([stream(seed, count=40, shape=(50,)).draw().flatten() for seed in range(50)]))


def keys(count: int) -> torch.Tensor:
    return splitmix64(torch.arange(count, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counter_normals_are_normal_and_independent(dtype):
    x = torch.cat([counter_normal(keys(1000), block, 40, dtype) for block in range(2)], dim=1)
    assert x.dtype == dtype and torch.isfinite(x).all()
    normal_checks(x)
    half = x[:, :40].reshape(1000, 2, 20)  # the two numbers of one Box-Muller pair
    pairs = torch.stack((half[:, 0].flatten(), half[:, 1].flatten())).double()
    for power in (1, 2):
        assert abs(float(torch.corrcoef(pairs**power)[0, 1])) < 4 / pairs.shape[1] ** 0.5


def test_counter_normals_do_not_depend_on_the_batch():
    whole = counter_normal(keys(64), 5, 33, torch.float32)
    assert whole.shape == (64, 33)
    for size in (1, 7):
        assert torch.equal(counter_normal(keys(64)[10 : 10 + size], 5, 33, torch.float32), whole[10 : 10 + size])
    assert not torch.equal(counter_normal(keys(64), 6, 33, torch.float32), whole)
    assert len(torch.unique(torch.cat([counter_normal(keys(64), b, 1, torch.float64) for b in range(4)]))) == 256


def test_splitmix64_is_the_published_one():
    def reference(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    values = [0, 1, 12345, 2**62 + 7, -1, -(2**63)]
    got = splitmix64(torch.tensor(values, dtype=torch.int64)).tolist()
    assert [value % 2**64 for value in got] == [reference(value % 2**64) for value in values]


def test_batches_are_bit_equal_on_every_device(device):
    whole = NoiseStream(0, 0, 64, (3, 4), torch.float32, device)
    expected = torch.stack([whole.draw() for _ in range(70)], dim=1)
    assert expected.device.type == device.type
    part = NoiseStream(0, 7, 7, (3, 4), torch.float32, device)
    assert torch.equal(torch.stack([part.draw() for _ in range(70)], dim=1), expected[7:14])
    normal_checks(expected.flatten(1).cpu())


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, "0", None])
def test_bad_seeds(seed):
    error = ValueError if type(seed) is int else TypeError
    with pytest.raises(error, match="seed must be"):
        check_seed(seed)
