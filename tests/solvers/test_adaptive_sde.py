"""The adaptive reverse SDE: one Brownian path whatever is refused, its orders at fixed steps, every sample its own problem."""

import math
from functools import cache

import pytest
import torch
from toys import CountingNetwork, FailingNetwork, all_sdes

from sde_gen import ScoreModel, SolverError, make_sde, make_solver, sample
from sde_gen.exact.mixtures import GaussianData, MixtureData, slope
from sde_gen.randomness import NoiseStream
from sde_gen.solvers import Run, adaptive_sde, make_grid

SDES = all_sdes()
DATA = GaussianData.correlated()
MIXTURE = MixtureData(
    torch.tensor([0.3, 0.7]), torch.tensor([[0.8, 0.3], [-0.6, -0.4]]), torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.1]]])
)
START, END = 0.7, 0.35
every = pytest.mark.parametrize("name", SDES)


def draw(model, shape, **options):
    return sample(model, shape, "adaptive_sde", **{"dtype": torch.float64, "progress": False, "final": "state", **options})


def run_of(model, count: int, noise=None) -> Run:
    noise = noise or NoiseStream(0, 0, count, (2,), torch.float64, torch.device("cpu"))
    return Run(model, noise, torch.zeros(count, dtype=torch.int64))


def states(sde, count: int) -> torch.Tensor:
    alpha, sigma = sde.marginal(torch.tensor(START, dtype=torch.float64))
    return alpha * MIXTURE.sample(count) + sigma * torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@every
def test_gaussian_data_keep_mean_and_covariance(name, monkeypatch, device):
    """Few panels, so that nearly all steps come from refused ones: noise drawn anew for those would lose variance."""
    monkeypatch.setattr(adaptive_sde, "PANELS", 4)
    sde, count = SDES[name], 4000
    out = draw(DATA.to(device).model(sde), (count, 2), rtol=0.1, atol=0.05, seed=1, device=device)
    x = out.x.cpu()
    mean, covariance = DATA.moments(sde, sde.t_min)
    spread = covariance.diagonal().sqrt()
    assert ((x.mean(0) - mean).abs() < 4 / count**0.5 * spread).all()
    assert ((x.T.cov() - covariance).abs() < 4 * (2 / count) ** 0.5 * spread[:, None] * spread).all()
    assert not out.failed.any() and len(out.nfe.unique()) > 1


def walk_of(count: int, device: torch.device, panels: int = 2):
    sde = make_sde("vp")
    clock = adaptive_sde._Clock(sde, make_grid(sde, "time", START, END, panels), device)
    return clock, adaptive_sde._Path(torch.zeros(count, 1, dtype=torch.float64, device=device), clock)


def test_refusing_large_increments_does_not_make_them_rare(device):
    """Pieces are refused where their increment is large, three levels deep: the path still has its law, piece by piece."""
    count = 20_000
    clock, path = walk_of(count, device)
    generator = torch.Generator().manual_seed(0)
    total, squares, want = torch.zeros_like(path.w), torch.zeros(count, 2, device=device), torch.zeros_like(path.tick)
    while (active := torch.nonzero(path.tick < 2 * adaptive_sde.PANEL)[:, 0]).numel():
        at = path.reveal(active, want, torch.randn(count, 1, dtype=torch.float64, generator=generator).to(device))
        refused = (path.w[at, 0].abs() > path.length(at).sqrt()) & (path.level[at] < 3)
        want[at] = torch.where(refused, path.level[at] + 1, (path.level[at] - 1).clamp_min(0))
        moved = at[~refused]
        panel = path.tick[moved] >> adaptive_sde.DEPTH
        squares[moved, panel] += path.w[moved, 0].float()
        total[moved] += path.w[moved]
        path.accept(moved)
    squares = squares.double()
    for k in range(2):
        assert float(squares[:, k].mean()) == pytest.approx(0, abs=4 * math.sqrt(float(clock.lengths[k]) / count))
        assert float(squares[:, k].var() / clock.lengths[k]) == pytest.approx(1, abs=4 * (2 / count) ** 0.5)
    assert float((squares[:, 0] * squares[:, 1]).mean() / clock.lengths.prod().sqrt()) == pytest.approx(0, abs=4 / count**0.5)
    assert float(total.var() / clock.lengths.sum()) == pytest.approx(1, abs=4 * (2 / count) ** 0.5)


def test_a_piece_is_the_sum_of_its_halves(device):
    count = 50
    _, path = walk_of(count, device)
    generator = torch.Generator().manual_seed(0)
    everyone, want = torch.arange(count, device=device), torch.zeros_like(path.tick)

    def reveal():
        return path.reveal(everyone, want, torch.randn(count, 1, dtype=torch.float64, generator=generator).to(device))

    reveal()
    whole, found = path.w.clone(), torch.zeros_like(path.w)
    want += everyone % 5  # halved to different depths, one level a round
    while len(reveal()) < count:
        pass
    assert torch.equal(path.level, want) and (path.known == adaptive_sde.PANEL).all()
    want.zero_()
    while (inside := torch.nonzero(path.tick < adaptive_sde.PANEL)[:, 0]).numel():
        assert (path.width(inside) <= adaptive_sde.PANEL - path.tick[inside]).all()
        found[inside] += path.w[inside]
        path.accept(inside)
    torch.testing.assert_close(found, whole)
    assert (path.tick == adaptive_sde.PANEL).all()


class Unit:
    """Noise that is 1 in draw k, component j for the row first + 2 k + j, else 0."""

    def __init__(self, count: int, first: int) -> None:
        self.count, self.row = count, first

    def draw(self) -> torch.Tensor:
        z = torch.zeros(self.count, 2, dtype=torch.float64)
        for j in range(2):
            z[self.row + j, j] = 1
        self.row += 2
        return z


@every
def test_weak_order_at_fixed_steps(name, monkeypatch):
    """With no refusals the method is linear on Gaussian data, so that its moments are exact: rows probe start and noise."""
    sde = SDES[name]
    model, solver = DATA.model(sde), make_solver("adaptive_sde", rtol=1e9, atol=1e9)
    start, end = 0.7, 0.5
    start_mean, start_covariance = DATA.moments(sde, start)
    exact = torch.cat([part.flatten() for part in DATA.moments(sde, end)])
    counts, errors = [16, 32, 64], []
    for steps in counts:
        monkeypatch.setattr(adaptive_sde, "PANELS", steps)
        rows = 3 + 2 * steps
        x = torch.zeros(rows, 2, dtype=torch.float64)
        x[1:3] = torch.eye(2)
        out = solver.solve(run_of(model, rows, Unit(rows, 3)), x, start, end, 10_000, "half_log_snr")
        push, noise = (out[1:3] - out[0]).T, out[3:] - out[0]
        moments = out[0] + push @ start_mean, push @ start_covariance @ push.T + noise.T @ noise
        errors.append(float((torch.cat([part.flatten() for part in moments]) - exact).norm()))
    assert slope(counts, errors) == pytest.approx(solver.weak_order, abs=0.1)


class Given(adaptive_sde._Path):
    """A path that was drawn beforehand, at every tick: `values` (ticks + 1, B, d)."""

    values: torch.Tensor

    def reveal(self, active, want, z):
        self.level[active] = torch.maximum(want[active], self._aligned(self.tick[active]))
        self.w[active] = self.values[self.tick[active] + self.width(active), active] - self.values[self.tick[active], active]
        self.known[active] = self.tick[active] + self.width(active)
        return active


def given_path(monkeypatch, sde, count: int, panels: int, depth: int) -> None:
    for name, value in (("DEPTH", depth), ("PANEL", 1 << depth), ("_Path", Given)):
        monkeypatch.setattr(adaptive_sde, name, value)
    ticks = panels << depth
    span = float(sde.half_log_snr(END) - sde.half_log_snr(START))
    steps = torch.randn(ticks, count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) * (span / ticks) ** 0.5
    Given.values = torch.cat((torch.zeros(1, count, 2, dtype=torch.float64), steps.cumsum(0)))


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_strong_order_at_fixed_steps(name, monkeypatch):
    """One Brownian path, panels as fixed steps."""
    sde, count, finest = SDES[name], 300, 256
    model, solver, x = MIXTURE.model(sde), make_solver("adaptive_sde", rtol=1e9, atol=1e9), states(sde, count)
    counts, ends = [16, 32, 64], []
    for steps in (*counts, finest):
        monkeypatch.setattr(adaptive_sde, "PANELS", steps)
        given_path(monkeypatch, sde, count, steps, int(math.log2(finest // steps)))
        ends.append(solver.solve(run_of(model, count), x, START, END, 10_000, "half_log_snr"))
    errors = [float((end - ends[-1]).norm(dim=1).mean()) for end in ends[:-1]]
    assert slope(counts, errors) >= solver.strong_order - 0.15


@pytest.mark.parametrize("name", ["vp", "ve", "cosine"])
def test_error_falls_with_the_tolerance(name, monkeypatch):
    """Against the finest steps along the same Brownian path, which is drawn beforehand."""
    sde, count = SDES[name], 40
    model, x = MIXTURE.model(sde), states(sde, count)

    def solve(tolerance, depth):
        monkeypatch.setattr(adaptive_sde, "PANELS", 1024 >> depth)
        given_path(monkeypatch, sde, count, 1024 >> depth, depth)
        run = run_of(model, count)
        solver = make_solver("adaptive_sde", rtol=tolerance, atol=tolerance)
        return solver.solve(run, x, START, END, 10_000, "half_log_snr"), float(run.nfe.double().mean())

    exact, fixed = solve(1e9, 1)
    (loose, few), (middle, more), (tight, most) = (solve(tolerance, 8) for tolerance in (0.2, 0.05, 0.0125))
    errors = [float((end - exact).norm(dim=1).mean()) for end in (loose, middle, tight)]
    assert errors[1] < 0.7 * errors[0] and errors[2] < 0.7 * errors[1]
    assert few < more < most < fixed == 2 * 512


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-5), (torch.float32, 1e-4)])
def test_a_sample_does_not_depend_on_its_batch(dtype, tolerance, device):
    """Neither on its size nor on a neighbour that needs many more rounds."""
    sde = make_sde("vp")
    model = MIXTURE.to(device).model(sde)
    x = states(sde, 8).to(device, dtype)
    options = {"t_start": START, "seed": 4, "dtype": dtype}
    whole = draw(model, (8, 2), x_init=x, **options)
    split = draw(model, (8, 2), x_init=x, batch_size=3, **options)
    torch.testing.assert_close(split.x, whole.x, rtol=tolerance, atol=tolerance)
    x = x.clone()
    x[3] *= 300
    mixed = draw(model, (8, 2), x_init=x, **options)
    others = torch.arange(8, device=device) != 3
    torch.testing.assert_close(mixed.x[others], whole.x[others], rtol=tolerance, atol=tolerance)
    alone = draw(model, (1, 2), x_init=x[3:4], index_offset=3, **options)
    torch.testing.assert_close(alone.x[0], mixed.x[3], rtol=tolerance, atol=tolerance)
    if dtype == torch.float64:
        assert torch.equal(split.nfe, whole.nfe) and torch.equal(mixed.nfe[others], whole.nfe[others])
        assert len(mixed.nfe.unique()) > 2


def test_watching_changes_nothing():
    sde, count = make_sde("cosine"), 1500
    network = CountingNetwork(DATA.score(sde), count)
    model = ScoreModel(network, sde, prediction="score", prior="matched", moments=DATA.model(sde).moments)
    cond = {"index": torch.arange(count)}
    plain, watched = draw(model, (count, 2), cond=cond), draw(model, (count, 2), cond=cond, trajectory="states")
    assert torch.equal(plain.x, watched.x) and torch.equal(watched.nfe, plain.nfe + adaptive_sde.PANELS)
    assert torch.equal(network.calls, plain.nfe + watched.nfe)
    torch.testing.assert_close(watched.times, make_grid(sde, "half_log_snr", sde.t_max, sde.t_min, adaptive_sde.PANELS)[1:])
    for k in (0, 15, 24):  # what is shown has the law of its time
        mean, covariance = DATA.moments(sde, float(watched.times[k]))
        spread = covariance.diagonal().sqrt()
        assert ((watched.trajectory[k].mean(0) - mean).abs() < 4 / count**0.5 * spread).all()
        assert ((watched.trajectory[k].T.cov() - covariance).abs() < 4 * (2 / count) ** 0.5 * spread[:, None] * spread).all()


@pytest.mark.parametrize("watched", [False, True])
def test_the_step_cap_marks_its_samples_and_spares_the_others(watched, device):
    sde, bad = make_sde("vp"), 2
    plain = MIXTURE.to(device).score(sde)

    def network(x, c, index):
        wave = 0.5 * torch.sin(200 * torch.cos(1.2 * c))[:, None] / sde.marginal(c)[1][:, None]
        return plain(x, c) + torch.where((index == bad)[:, None], wave, 0.0)

    model = ScoreModel(network, sde, prediction="score", prior="sde")
    options = {"cond": {"index": torch.arange(5)}, "device": device} | ({"trajectory": "states"} if watched else {})
    free = draw(model, (5, 2), **options)
    shown = len(free.times) if watched else 0
    attempts = (free.nfe.cpu() - shown) / 2
    cap = int(attempts[[0, 1, 3, 4]].max()) + 1
    assert attempts[bad] > cap and not free.failed.any()
    masked = draw(model, (5, 2), steps=cap, on_failure="mask", **options)
    assert masked.failed.tolist() == [False, False, True, False, False]
    torch.testing.assert_close(masked.x[~masked.failed], free.x[~masked.failed], rtol=1e-10, atol=1e-10)
    assert masked.nfe[bad] == 2 * cap + shown
    with pytest.raises(SolverError, match="step cap") as caught:
        draw(model, (5, 2), steps=cap, **options)
    assert caught.value.failed.tolist() == [bad]


@cache
def broken(bad, below, value):
    sde = make_sde("vp")
    model = ScoreModel(FailingNetwork(MIXTURE.score(sde), bad, below, value), sde, prediction="score")
    return draw(model, (4, 2), cond={"index": torch.arange(4)}, on_failure="mask")


@pytest.mark.parametrize("value, below", [(math.nan, 0.5), (math.nan, 1.0), (math.inf, 0.5), (-math.inf, 1.0), (1e300, 0.5), (1e30, 1.0)])
def test_a_field_that_breaks_ends_and_spares_the_others(value, below):
    good, out = broken(-1, 0.5, 0.0), broken(1, below, value)
    assert out.failed.tolist() == [False, True, False, False]
    assert torch.equal(out.x[[0, 2, 3]], good.x[[0, 2, 3]]) and (out.nfe < 1000).all()


@pytest.mark.parametrize("options", [{"rtol": 0.0}, {"atol": -1.0}, {"rtol": math.nan}])
def test_tolerances_are_positive(options):
    with pytest.raises(ValueError, match="must be positive and finite"):
        make_solver("adaptive_sde", **options)
