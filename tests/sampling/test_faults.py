"""Faults: whatever a score returns, every registered solver ends in time, names what failed and leaves the others alone."""

import math
import time
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from toys import CountingNetwork

from sde_gen import SDE, Moments, ScoreModel, SolverError, make_sde, make_solver, sample
from sde_gen.sampling.failures import GROWTH
from sde_gen.sdes import SDES
from sde_gen.shapes import expand_as
from sde_gen.solvers import SOLVERS, make_grid

COUNT, BAD, GOOD = 5, [0, 3], [1, 2, 4]  # sample 0 is one that a solver might read time or direction from
INDEX = {"index": torch.arange(COUNT)}
STEPS, SECONDS = 4, 10.0  # of this process's own time, since other processes may hold it up
NAN, INF = math.nan, math.inf
VP = make_sde("vp")

every_solver = pytest.mark.parametrize("solver", SOLVERS)
Fault = Callable[[Tensor, Tensor], Tensor]


def adaptive(solver: str) -> bool:
    return make_solver(solver).adaptive


def gaussian(sde: SDE, mean: float = 0.7, std: float = 0.5) -> Callable[..., Tensor]:
    """The exact score of data N(mean, std^2 I) of any shape; never to be asked for nobody."""

    def score(x: Tensor, c: Tensor, **cond: Tensor) -> Tensor:
        assert len(x) == len(c) > 0
        alpha, sigma = (expand_as(value, x) for value in sde.marginal(c.double()))
        return ((alpha * mean - x.double()) / ((alpha * std) ** 2 + sigma**2)).to(x.dtype)

    return score


def bounded(x: Tensor, c: Tensor, **cond: Tensor) -> Tensor:
    """A network that is wrong and bounded, and mixes the elements of each sample."""
    return torch.tanh(1.5 * x.flip(-1) + expand_as(c, x) - x.flatten(1).mean(1).reshape(-1, *[1] * (x.ndim - 1)))


def with_fault(network: Callable[..., Tensor], fault: Fault, bad: list[int], below: float) -> Callable[..., Tensor]:
    """`network`, with fault(output, x) for the samples `bad` from time `below` down."""

    def faulty(x: Tensor, c: Tensor, *, index: Tensor) -> Tensor:
        output = network(x, c)
        return torch.where(expand_as(torch.isin(index, torch.tensor(bad)) & (c <= below), x), fault(output, x), output)

    return faulty


def constant(value: float) -> Fault:
    return lambda output, x: torch.full_like(output, value)


FAULTS: dict[str, tuple[Fault, torch.dtype]] = {
    "nan": (constant(NAN), torch.float64),
    "inf in float32": (constant(INF), torch.float32),
    "-inf": (constant(-INF), torch.float64),
    "one element": (lambda output, x: output.index_fill(-1, torch.tensor([-1]), NAN), torch.float64),
    "huge": (constant(1e30), torch.float64),
    "-huge in float32": (constant(-1e30), torch.float32),
    "the largest": (lambda output, x: torch.full_like(output, torch.finfo(output.dtype).max), torch.float32),
}


def onset(sde: SDE, when: str) -> float:
    share = {"the first call": 1.0, "half": 0.5, "the last call": 1e-6}[when]
    return sde.t_min + share * (sde.t_max - sde.t_min) * (1 + 1e-6)  # times reach the network in the state's dtype


def draw(network: Callable[..., Tensor], solver: str, sde: SDE | None = None, count: int = COUNT, **options):
    model = ScoreModel(network, sde or VP, prediction=options.pop("prediction", "score"))
    if options.get("cond", INDEX) is INDEX:
        options["cond"] = {"index": torch.arange(count) + options.get("index_offset", 0)}
    steps = cap(solver) if adaptive(solver) else STEPS
    options = {"steps": steps, "dtype": torch.float64, "progress": False, **options}
    began = time.process_time()
    try:
        return sample(model, (count, *options.pop("shape", (2,))), solver, **options)
    finally:
        assert time.process_time() - began < SECONDS


@cache
def cap(solver: str, name: str = "vp") -> int:
    """Attempts that are plenty for the Gaussian, so that samples which cannot get on are soon given up."""
    model = ScoreModel(gaussian(make_sde(name)), make_sde(name), prediction="score")
    nfe = sample(model, (COUNT, 2), solver, dtype=torch.float32, progress=False).nfe
    return int(nfe.max()) // 2 + 50  # an attempt is two calls or more


@cache
def alone(solver: str, dtype: torch.dtype) -> Tensor:
    """What the samples GOOD are in batches without the bad ones."""
    parts = ((1, 2), (4, 1))
    return torch.cat([draw(gaussian(VP), solver, count=n, index_offset=first, dtype=dtype).x for first, n in parts])


def assert_equal(x: Tensor, expected: Tensor) -> None:
    tolerance = 1e-5 if expected.dtype == torch.float64 else 1e-4
    torch.testing.assert_close(x, expected, rtol=tolerance, atol=tolerance)


ONSETS = ("the first call", "half", "the last call")
_PAIRS = [(fault, when) for fault in FAULTS for when in ONSETS]
_SPREAD = [(solver, *pair) for s, solver in enumerate(SOLVERS) for k, pair in enumerate(_PAIRS) if (k + s) % 5 == 0]
"""Every solver meets every onset and every fault several solvers; all three ways together would be five times as many."""


@pytest.mark.parametrize(("solver", "fault", "when"), _SPREAD)
def test_bad_samples_are_named_and_good_ones_are_what_they_are_alone(solver, fault, when):
    sde = make_sde("vp")
    below = onset(sde, when)
    function, dtype = FAULTS[fault]
    network = with_fault(gaussian(sde), function, BAD, below)
    masked = draw(network, solver, on_failure="mask", dtype=dtype)
    assert masked.failed.nonzero()[:, 0].tolist() == BAD
    assert_equal(masked.x[GOOD], alone(solver, dtype))
    if adaptive(solver) and fault != "nan" and (fault, when) != ("-huge in float32", "half"):
        return  # those that fail take many small steps, and twice as many to say where
    with pytest.raises(SolverError) as caught:
        draw(network, solver, dtype=dtype)
    error = caught.value
    assert (error.solver, error.failed.tolist(), error.healthy.tolist()) == (solver, BAD, GOOD)
    assert_equal(error.x, alone(solver, dtype))
    assert sde.t_min <= error.time <= below and error.step >= 1
    assert when != "the last call" or error.time == sde.t_min
    for part in (repr(solver), f"t = {error.time:.6g} (step {error.step})", "2 of 5 samples", "samples 0, 3"):
        assert part in str(error)
    assert "\n" not in str(error)


@every_solver
@pytest.mark.parametrize("name", SDES)
def test_a_zero_score_is_legitimate(solver, name):
    sde = make_sde(name)
    for bad in (list(range(COUNT)), BAD):
        out = draw(with_fault(gaussian(sde), constant(0.0), bad, sde.t_max), solver, sde, steps=None if adaptive(solver) else STEPS)
        assert torch.isfinite(out.x).all() and not out.failed.any()


STIFF: list[Fault] = [
    lambda output, x: -1e8 * x,
    lambda output, x: 1e8 * x,
    lambda output, x: -1e4 * torch.sign(x),
    lambda output, x: torch.sin(1e9 * x) * 1e3,
    lambda output, x: -1e3 * x**3,
    lambda output, x: -1 / x,
    lambda output, x: torch.rand(x.shape, dtype=x.dtype) * 1e3,  # not even a function
]


@every_solver
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stiff_fields_end_in_time_and_stay_where_they_are(solver, dtype):
    sde = make_sde("vp")
    torch.manual_seed(0)

    def network(x: Tensor, c: Tensor, *, index: Tensor) -> Tensor:
        output = gaussian(sde)(x, c)
        for i, field in enumerate(STIFF):
            output = torch.where(expand_as(index == i, x), field(output, x), output)
        return output

    options = {"dtype": dtype, **({} if adaptive(solver) else {"steps": 20})}
    masked = draw(network, solver, count=len(STIFF) + 3, on_failure="mask", **options)
    assert torch.isfinite(masked.x[~masked.failed]).all() and not masked.failed[-3:].any()
    assert_equal(masked.x[-3:], draw(gaussian(sde), solver, count=3, index_offset=len(STIFF), **options).x)


@every_solver
def test_a_stiff_field_ends_in_time_with_the_default_steps(solver):
    network = with_fault(gaussian(VP), STIFF[2], [0], 1.0)
    out = draw(network, solver, count=1, steps=None, on_failure="mask")
    assert torch.isfinite(out.x[~out.failed]).all() and (adaptive(solver) or not out.failed.any())


@every_solver
@pytest.mark.parametrize("scale", [1e5, 1e9])
def test_large_units_are_no_fault(solver, scale):
    """Data of this size in normalised units, from the prior that knows it and from the one that does not."""
    moments = Moments(torch.tensor(0.7 * scale), variance=torch.tensor((0.5 * scale) ** 2))
    for prior in ("sde", "matched"):
        model = ScoreModel(gaussian(VP, 0.7 * scale, 0.5 * scale), VP, prediction="score", data_std=scale, prior=prior, moments=moments)
        for dtype in (torch.float32, torch.float64):
            out = sample(model, (COUNT, 2), solver, steps=None if adaptive(solver) else 20, dtype=dtype, progress=False)
            assert torch.isfinite(out.x).all() and not out.failed.any()
            if prior == "matched" and solver != "langevin":  # which is not there after 20 steps
                assert 0.1 * scale < out.x.abs().max() < 10 * scale


@every_solver
@pytest.mark.parametrize("gain", [1.0, 10.0])
@pytest.mark.parametrize("prediction", ["noise", "v"])
def test_an_untrained_network_is_no_fault(solver, gain, prediction):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 2))
    options = {"prediction": prediction, "dtype": torch.float32, "steps": None if adaptive(solver) else 20}
    out = draw(lambda x, c, index: gain * layers(x), solver, **options)
    assert torch.isfinite(out.x).all() and not out.failed.any()


def test_the_bound_is_relative_to_the_start_and_the_prior():
    def fails(factor: float, start: float, sde: SDE, dtype: torch.dtype) -> bool:
        network = lambda x, c: torch.full_like(x, factor * max(start, sde.prior_std))  # noqa: E731
        x_init = torch.full((1, 3), start, dtype=dtype)
        model = ScoreModel(network, sde, prediction="data")
        out = sample(model, (1, 3), "ddim", steps=2, x_init=x_init, t_start=0.01, on_failure="mask", progress=False)
        assert torch.isfinite(out.x).all()
        return bool(out.failed)

    for sde in (make_sde("vp"), make_sde("ve", sigma_max=1e4)):
        for start in (1e-3, 1.0, 1e6, 1e12):
            for dtype in (torch.float32, torch.float64):
                outcome = [fails(factor * GROWTH, start, sde, dtype) for factor in (2, -2, 0.5)]
                assert outcome == [True, True, False]


def test_one_that_came_back_is_not_blamed():
    """Sample 1 is thrown far out and forgets it; sample 3 fails later, and the step named is where sample 3 did."""
    sde = make_sde("vp")

    def network(x: Tensor, c: Tensor, *, index: Tensor) -> Tensor:
        output = torch.zeros_like(x)
        output[(index == 1) & (c > 0.4) & (c < 0.8)] = 1e20
        output[(index == 3) & (c < 0.05)] = NAN
        return output

    states = draw(network, "ancestral", sde, prediction="data", steps=20, trajectory="states", on_failure="mask")
    assert states.trajectory[:, 1].abs().max() > 1e17 and states.failed.nonzero().tolist() == [[3]]
    with pytest.raises(SolverError) as caught:
        draw(network, "ancestral", sde, prediction="data", steps=20)
    first = int((~torch.isfinite(states.trajectory[:, 3]).all(1)).nonzero()[0])
    assert (caught.value.step, caught.value.time) == (first + 1, float(states.times[first])) and caught.value.time < 0.05


WRONG: dict[str, tuple[Fault, type[Exception], str]] = {
    "one column": (lambda output, x: output[:, :1], ValueError, r"shape \(\d, 1\) where \(\d, 2\) was expected"),
    "one row": (lambda output, x: output[:1], ValueError, r"shape \(1, 2\)"),
    "no dimension": (lambda output, x: output.sum(), ValueError, r"shape \(\)"),
    "one more": (lambda output, x: output[:, None], ValueError, r"shape \(\d, 1, 2\)"),
    "transposed": (lambda output, x: output.T, ValueError, r"shape \(2, \d\)"),
    "integer": (lambda output, x: output.long(), TypeError, "dtype torch.int64 where a floating dtype was expected"),
    "truth": (lambda output, x: output > 0, TypeError, "dtype torch.bool"),
    "complex": (lambda output, x: output.to(torch.complex128), TypeError, "dtype torch.complex128"),
}


@every_solver
@pytest.mark.parametrize("late", [False, True])
def test_wrong_shapes_and_dtypes_are_refused_at_once(solver, late):
    for wrong, error, match in WRONG.values():
        answers = []

        def network(x: Tensor, c: Tensor, *, index: Tensor, wrong: Fault = wrong, answers: list[bool] = answers) -> Tensor:
            assert not any(answers)  # not called again
            output = gaussian(VP)(x, c)
            answers.append(not late or bool((c < 0.5).any()))
            return wrong(output, x) if answers[-1] else output

        for on_failure in ("raise", "mask"):
            with pytest.raises(error, match=match) as caught:
                draw(network, solver, on_failure=on_failure, steps=1000 if adaptive(solver) else STEPS)
            assert "\n" not in str(caught.value) and (len(answers) > 1) == late
            answers.clear()


@every_solver
def test_bad_steps_and_times_are_refused_before_any_call(solver):
    calls = []
    network = lambda x, c, index: calls.append(1) or x  # noqa: E731
    for name in SDES:
        sde = make_sde(name)
        outside = [sde.t_min - 1e-9, sde.t_max + 1e-9, -0.1, 1.1, NAN, INF, -INF]
        cases = [{"steps": steps} for steps in (0, -3)] + [{end: t} for end in ("t_start", "t_end") for t in outside]
        for options in (*cases, {"t_start": 0.5, "t_end": 0.5}):
            (key, value), *_ = options.items()
            with pytest.raises(ValueError, match=key) as caught:
                draw(network, solver, sde, **options)
            assert f"{value!r}" in str(caught.value) and "\n" not in str(caught.value)
    assert not calls


@every_solver
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_start_that_is_not_finite_is_a_fault_of_its_sample(solver, value):
    start = torch.ones(COUNT, 2, dtype=torch.float64)
    network = gaussian(VP)
    expected = draw(network, solver, x_init=start)
    start[BAD, 0] = value
    masked = draw(network, solver, x_init=start, on_failure="mask")
    assert masked.failed.nonzero()[:, 0].tolist() == BAD
    assert_equal(masked.x[GOOD], expected.x[GOOD])
    with pytest.raises(SolverError, match="samples 0, 3"):
        draw(network, solver, x_init=start)


@pytest.mark.parametrize("final", ["denoise", "raw"])
def test_overflow_in_the_datas_units_is_a_fault(final):
    exponential = SimpleNamespace(encode=torch.log, decode=torch.exp)  # what is finite may overflow there
    network = with_fault(lambda x, c: 0 * x, constant(2e3), BAD, 1.0)
    model = ScoreModel(network, make_sde("vp"), prediction="data", normalizer=exponential)
    options = {"steps": 3, "cond": INDEX, "final": final, "dtype": torch.float64, "progress": False}
    out = sample(model, (COUNT, 2), "ddim", on_failure="mask", **options)
    assert out.failed.nonzero()[:, 0].tolist() == BAD and torch.isfinite(out.x[GOOD]).all()
    with pytest.raises(SolverError) as caught:
        sample(model, (COUNT, 2), "ddim", **options)
    assert (caught.value.time, caught.value.step) == (model.sde.t_min, 3)


def test_a_hook_that_stops_batches_at_different_steps_leaves_no_trajectory():
    stop = iter([False, True] + [False] * 10)
    with pytest.raises(ValueError, match="stopped batches after 2 and 4 steps"):
        draw(gaussian(VP), "ddim", batch_size=3, step_hook=lambda step, t, x: next(stop), trajectory="states")


FIXED = settings(derandomize=True, database=None, deadline=None)  # the same examples in every run


@st.composite
def requests(draw_):
    """A solver and arguments of `sample` that are all in order."""
    solver = draw_(st.sampled_from(sorted(SOLVERS)))
    up = draw_(st.booleans()) and not make_solver(solver).stochastic
    sde = make_sde(draw_(st.sampled_from(sorted(SDES))))
    count = draw_(st.integers(1, 5))
    options = {
        "solver": solver,
        "steps": None if adaptive(solver) else draw_(st.integers(1, 6)),
        "dtype": draw_(st.sampled_from([torch.float32, torch.float64])),
        "on_failure": draw_(st.sampled_from(["raise", "mask"])),
        "final": draw_(st.sampled_from(["state", "raw", "denoise"])),
        "seed": draw_(st.integers(0, 3)),
        "batch_size": draw_(st.none() | st.integers(1, 5)),
        "cond": {"index": torch.arange(count)},
        "progress": False,
    }
    options |= {"t_start": sde.t_min, "t_end": sde.t_max, "final": "state"} if up else {}
    return sde, (count, *draw_(st.lists(st.integers(1, 3), min_size=1, max_size=4))), options


@settings(FIXED, max_examples=100)
@given(requests(), st.sampled_from(["data", "noise", "v"]), st.sampled_from([None, "states", "denoised"]))
def test_a_bounded_network_gives_finite_samples_and_honest_counts(request_, prediction, trajectory):
    sde, shape, options = request_
    network = CountingNetwork(bounded, shape[0])
    out = sample(ScoreModel(network, sde, prediction=prediction), shape, trajectory=trajectory, **options)
    assert out.x.shape == shape and out.x.dtype == options["dtype"]
    assert torch.isfinite(out.x).all() and not out.failed.any()
    assert out.nfe.shape == out.failed.shape == shape[:1] and torch.equal(out.nfe, network.calls)
    if trajectory is None:
        return
    start, end = options.get("t_start", sde.t_max), options.get("t_end", sde.t_min)
    assert out.trajectory.shape == (len(out.times), *shape) and out.trajectory.dtype == options["dtype"]
    passed = torch.cat((torch.tensor([start], dtype=torch.float64), out.times))
    assert float(passed[-1]) == end and (passed.diff() * (end - start) > 0).all()
    if options["steps"] is not None:
        grid = "half_log_snr" if end > start else make_solver(options["solver"]).default_grid
        torch.testing.assert_close(passed, make_grid(sde, grid, start, end, options["steps"]))
    if trajectory == "states" and options["final"] == "state":
        assert torch.equal(out.trajectory[-1], out.x)


@settings(FIXED, max_examples=60)
@given(requests(), st.data(), st.sampled_from(sorted(FAULTS)), st.floats(0.0, 1.0))
def test_neighbours_do_not_notice_bad_samples_nor_batches(request_, data, fault, share):
    sde, shape, options = request_
    bad = sorted(data.draw(st.sets(st.integers(0, shape[0] - 1), max_size=shape[0])))
    good = [i for i in range(shape[0]) if i not in bad]
    # A fault below t_min, or in a run that never calls there, would be none.
    top = max(options.get("t_start", 0.0), sde.t_min) + share * (sde.t_max - sde.t_min)
    below = top * (1 + 1e-6) if options["final"] == "denoise" and "t_end" not in options else sde.t_max
    clean = ScoreModel(gaussian(sde), sde, prediction="score")
    faulty = clean.with_network(with_fault(clean.network, FAULTS[fault][0], bad, below))
    on_failure = options.pop("on_failure")
    if adaptive(options["solver"]):
        options["steps"] = cap(options["solver"], next(name for name, kind in SDES.items() if type(sde) is kind))
    expected = sample(clean, shape, on_failure="mask", **{**options, "batch_size": None})
    out = sample(faulty, shape, on_failure="mask", **options)
    assert out.failed.nonzero()[:, 0].tolist() == bad
    assert_equal(out.x[good], expected.x[good])
    if options["dtype"] == torch.float64:
        assert torch.equal(out.nfe[good], expected.nfe[good])
    if on_failure == "raise" and bad:
        with pytest.raises(SolverError) as caught:
            sample(faulty, shape, **options)
        size = options["batch_size"] or shape[0]
        done = min(shape[0], size * (bad[0] // size + 1))  # the batches up to the first that fails
        failed, healthy = (part.tolist() for part in (caught.value.failed, caught.value.healthy))
        assert (failed, healthy) == ([i for i in bad if i < done], [i for i in good if i < done])
        assert torch.equal(caught.value.x, out.x[healthy])
