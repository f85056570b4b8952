"""What must hold on a GPU alone; skipped where there is none. What must hold on every device takes the fixture `device`."""

import copy
from collections.abc import Iterator

import pytest
import torch

import sde_gen
from sde_gen.randomness import NoiseStream
from sde_gen.solvers import SOLVERS, FixedStepSolver, Run, make_solver, run_updates
from sde_gen.training import TrainSettings, build_model, fit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device here")


@pytest.fixture(scope="module")
def model() -> sde_gen.ScoreModel:
    """Trained once: tests leave it as it is."""
    data = torch.randn(256, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 3 + 5
    made = build_model(data, "vp", "unet", network_options={"width": 16, "multipliers": [1], "attention": []})
    result = fit(made, data, TrainSettings(steps=20, batch=32), device="cuda", progress=False)
    assert result.history[-1]["loss"] < 2 and next(result.model.parameters()).is_cuda
    return result.model


@pytest.fixture
def full_precision() -> Iterator[None]:
    """Convolutions in float32 and not in TF32, PyTorch's default: other sizes of batch get other kernels, which would differ by a
    thousandth, and sampling amplifies it."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_samples_on_the_device(solver: str, model: sde_gen.ScoreModel) -> None:
    steps = None if make_solver(solver).adaptive else 10
    out = sde_gen.sample(model, (8, 1, 8, 8), solver, steps=steps, progress=False)
    assert out.x.is_cuda and not bool(out.failed.any()) and float(out.x.mean()) == pytest.approx(5, abs=2)


@pytest.mark.parametrize("solver", SOLVERS)
def test_samples_do_not_depend_on_their_batch(solver: str, model: sde_gen.ScoreModel, full_precision: None) -> None:
    steps = None if make_solver(solver).adaptive else 10
    whole = sde_gen.sample(model, (12, 1, 8, 8), solver, steps=steps, progress=False).x
    parts = sde_gen.sample(model, (12, 1, 8, 8), solver, steps=steps, batch_size=5, progress=False).x
    torch.testing.assert_close(parts, whole, rtol=0, atol=0.05 if make_solver(solver).adaptive else 5e-3)


@pytest.mark.parametrize("name", [name for name in SOLVERS if isinstance(make_solver(name), FixedStepSolver)])
@pytest.mark.parametrize("conditional", [False, True])
def test_a_fixed_step_loop_does_not_wait_for_the_device(name: str, conditional: bool, model: sde_gen.ScoreModel) -> None:
    device, solver, steps = torch.device("cuda"), make_solver(name), 70  # past the end of a block of noise
    cond = {"shift": torch.ones(4, 1, 1, 1, device=device)} if conditional else {}
    if conditional:
        unconditional = model.network
        model = model.with_network(lambda x, c, shift: unconditional(x, c) + 0 * shift)
    count = torch.zeros(4, dtype=torch.int64, device=device)
    loops = [Run(model, NoiseStream(0, 0, 4, (1, 8, 8), torch.float32, device), count.clone(), cond) for _ in range(2)]
    x = loops[0].noise.draw()
    times = solver.times(loops[0], x, model.sde.t_max, model.sde.t_min, steps, solver.default_grid)
    with torch.no_grad():
        tables = [solver.table(run, x, model.sde.t_max, times) for run in loops]  # made before the loop, and may wait
        first = run_updates(loops[0], *tables[0])  # kernels are loaded once
        loops[1].noise.draw()
        torch.cuda.set_sync_debug_mode("error")
        try:
            second = run_updates(loops[1], *tables[1])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(second, first, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", [name for name in SOLVERS if isinstance(make_solver(name), FixedStepSolver)])
@pytest.mark.parametrize("conditional", [False, True])
def test_a_captured_loop_gives_the_same_samples(name: str, conditional: bool, model: sde_gen.ScoreModel) -> None:
    cond = {"shift": torch.arange(14.0).reshape(14, 1, 1, 1)} if conditional else {}
    if conditional:
        unconditional = model.network
        model = model.with_network(lambda x, c, shift: unconditional(x, c + 0.01 * shift[:, 0, 0, 0]))
    options = {"solver": name, "steps": 70 if name == "restart" else 30, "batch_size": 4, "cond": cond, "progress": False}
    options["device"] = "cuda"  # a function as the network does not say where it is
    plain = sde_gen.sample(model, (14, 1, 8, 8), **options)  # three batches of one size and a smaller one
    captured = sde_gen.sample(model, (14, 1, 8, 8), **options, graph=True)
    torch.testing.assert_close(captured.x, plain.x, rtol=0, atol=2e-3)  # a last bit is a thousandth after a convolution in TF32
    torch.testing.assert_close(captured.nfe, plain.nfe)


def test_what_cannot_be_captured_is_said_in_one_line(model: sde_gen.ScoreModel) -> None:
    waiting = model.with_network(lambda x, c: x * float(c.sum().cpu()))
    with pytest.raises(RuntimeError, match="cannot be captured"):
        sde_gen.sample(waiting, (4, 1, 8, 8), "ddim", steps=5, batch_size=2, progress=False, graph=True, on_failure="mask", device="cuda")
    sde_gen.sample(model, (4, 1, 8, 8), "ddim", steps=5, batch_size=2, progress=False)  # the device is as it was


@pytest.mark.parametrize("divergence", ["exact", "hutchinson", "resampled"])
def test_likelihoods_are_those_of_the_cpu_and_of_each_sample(divergence: str, model: sde_gen.ScoreModel, full_precision: None) -> None:
    data = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 3 + 5
    options = {"divergence": divergence, "rtol": 1e-4, "atol": 1e-4}
    whole = sde_gen.log_likelihood(model, data.cuda(), **options)
    parts = sde_gen.log_likelihood(model, data.cuda(), batch_size=4, **options)
    assert whole.log_prob.is_cuda and bool(whole.converged.all())
    torch.testing.assert_close(parts.log_prob, whole.log_prob, rtol=0, atol=0.05)
    if divergence == "exact":  # the CPU draws other random vectors
        host = sde_gen.log_likelihood(copy.deepcopy(model).cpu(), data, **options)
        torch.testing.assert_close(whole.log_prob.cpu(), host.log_prob, rtol=0, atol=0.05)
