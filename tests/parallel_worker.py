"""What the processes that `test_parallel.py` starts do: the same work alone and together, and how far the two are apart; or failures."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor, nn

from sde_gen import parallel
from sde_gen.commands import evaluation
from sde_gen.commands.cli import main
from sde_gen.commands.compare import CompareSettings, compare_run
from sde_gen.commands.config import RunConfig
from sde_gen.commands.likelihood import LikelihoodSettings, likelihood_run
from sde_gen.commands.runs import TrainedRun
from sde_gen.commands.sample_metrics import SampleMetrics
from sde_gen.conditions import fit_condition
from sde_gen.data import Dataset, Source
from sde_gen.discrete import DiscreteChain, elbo, elbo_continuous
from sde_gen.likelihood.bits_per_dim import bits_per_dim
from sde_gen.likelihood.flow import log_likelihood, log_likelihood_together
from sde_gen.metrics import features
from sde_gen.models.score import ScoreModel
from sde_gen.report import figures
from sde_gen.sampling.failures import SolverError
from sde_gen.sampling.sample import sample, sample_together
from sde_gen.training import TrainResult, TrainSettings, build_model, fit, load, read_state, save
from sde_gen.training.trainer import Trainer

CPU = torch.device("cpu")
BASE = TrainSettings(steps=10, batch=18, warmup=2, ema_width=0.2, chain_steps=20, evaluations=2)
TRAININGS: dict[str, TrainSettings] = {
    "dsm": BASE,
    "dsm in parts": dataclasses.replace(BASE, micro_batch=4),
    "dsm, odd batch": dataclasses.replace(BASE, batch=17, micro_batch=8),
    "simple": dataclasses.replace(BASE, objective="simple"),
    "simple in parts": dataclasses.replace(BASE, objective="simple", accumulate=3),
    "vlb, importance": dataclasses.replace(BASE, objective="vlb", indices="importance", chain_steps=2, steps=14),
    "told": dataclasses.replace(BASE, drop={"label": 0.3, "year": 0.5, "coarse": 0.2}, micro_batch=4),
    "muon, reference, averages": dataclasses.replace(BASE, optimizer="muon", reference=40, ema_widths=(0.1,), micro_batch=4),
}
SHARDED = ("dsm", "dsm in parts", "vlb, importance", "told", "muon, reference, averages")


def data() -> Tensor:
    return 3.0 + 2.0 * torch.randn(100, 5, generator=torch.Generator().manual_seed(0))


def conditions() -> dict[str, Tensor]:
    """Of the items of `data`, taken for signals of one channel: a label, numbers of which some are not known, and a map."""
    generator = torch.Generator().manual_seed(4)
    found = {"label": torch.arange(100) % 3, "year": 2000 + 10 * torch.randn(100, 2, generator=generator)}
    found["year"][::7, 0] = torch.nan
    return found | {"coarse": torch.randn(100, 1, 3, generator=generator)}


def work(settings: TrainSettings, dropout: float = 0.0) -> tuple[ScoreModel, Tensor, dict[str, Tensor]]:
    """A model, its data and its conditions: those of `conditions` where they are dropped by name."""
    if not isinstance(settings.drop, dict):
        return fresh(dropout=dropout), data(), {}
    return fresh(data()[:, None], dropout, conditions()), data()[:, None], conditions()


def fresh(x: Tensor | None = None, dropout: float = 0.0, cond: dict[str, Tensor] | None = None) -> ScoreModel:
    """A model whose last layer is not zero, so that every parameter has a gradient from the first step on."""
    options = {"width": 16, "depth": 2, "dropout": dropout}
    x = data() if x is None else x
    specs = {name: fit_condition(name, value, x.shape[2:]) for name, value in (cond or {}).items()}
    model = build_model(x, network="mlp", network_options=options, conditions=specs)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def first_gradients(settings: TrainSettings) -> list[Tensor]:
    model, x, cond = work(settings)
    trainer = Trainer(model, x, dataclasses.replace(settings, clip=1e9), cond, None, None, CPU)
    kept: list[Tensor] = []
    trainer.optimizer.register_step_pre_hook(lambda *_: kept.extend(p.grad.clone() for p in trainer.parameters if p.grad is not None))
    with trainer.running():
        trainer.advance()
    return [gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient for gradient in kept]


def weights_of(model: ScoreModel) -> list[Tensor]:
    assert isinstance(model.network, nn.Module)
    return [parameter.detach().clone() for parameter in model.network.parameters()]


def trained(settings: TrainSettings) -> dict[str, Any]:
    model, x, cond = work(settings)
    result = fit(model, x, settings, cond, progress=False)
    losses = [entry["loss"] for entry in result.history]
    others = [p.detach().clone() for network in result.trainer.placement.whole_averages[1:] for p in network.parameters()]
    return {"weights": weights_of(result.raw), "averaged": weights_of(result.model) + others, "losses": losses}


def resumed(settings: TrainSettings, place: Path) -> float:
    """How far a training that goes on from a checkpoint is from one that never stopped, dropout and all."""
    model, x, cond = work(settings, dropout=0.3)
    whole = fit(model, x, settings, cond, progress=False)

    def keep(step: int, result: TrainResult) -> None:
        if step == 4:
            assert isinstance(result.model.network, nn.Module)
            save(result.raw, place, ema=result.model.network, state=result.state())

    fit(work(settings, dropout=0.3)[0], x, settings, cond, progress=False, on_checkpoint=keep, checkpoint_seconds=1e-9)
    parallel.wait()
    state = read_state(place)
    assert state is not None and state[1]["step"] == 4
    again = fit(work(settings, dropout=0.3)[0], x, settings, cond, progress=False, resume=state)
    load(place)  # as any other, whatever wrote it
    return apart(weights_of(whole.raw), weights_of(again.raw))


def tiny_run() -> TrainedRun:
    """Labelled images of whole numbers and a network that has not learned them."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(64) % 2
    images = (torch.randint(0, 4, (64, 1, 4, 4), generator=generator) + 4 * labels[:, None, None, None]).float()
    dataset = Dataset("tiny", images[:40], images[40:], labels[:40], labels[40:], 2, 8)
    directory = Path("alone" + os.environ["RANK"] if parallel.world() == 1 else "together")
    return TrainedRun(directory, RunConfig(), dataset, fresh(dataset.train).eval())


def measures() -> dict[str, Callable[[bool], Any]]:
    """By name: what a function gives alone (False) and together (True)."""
    model = fresh().eval()
    images = torch.randint(0, 8, (7, 5), generator=torch.Generator().manual_seed(2))

    def samples(together: bool, count: int = 9, **options: Any) -> list[Tensor]:
        out = (sample_together if together else sample)(model, (count, 5), progress=False, **options)
        return [out.x, out.nfe, out.failed]

    def density(together: bool) -> list[Tensor]:
        score = log_likelihood_together if together else log_likelihood
        out = score(model, data()[:5], divergence="hutchinson", rtol=1e-3, atol=1e-3)
        return [out.log_prob, out.std_error, out.nfe, out.latent, out.converged]

    def bits(together: bool) -> list[Any]:
        out = bits_per_dim(model, images, 8, draws=2, together=together, divergence="resampled", rtol=1e-3, atol=1e-3)
        return [out.value, out.std_error, out.each]

    def bounds(together: bool) -> list[Any]:
        chain = DiscreteChain.from_sde(model.sde, 12)
        a = elbo(model, images, chain, 8, terms=3, draws=2, batch_size=2, together=together)
        b = elbo_continuous(model, images, 8, samples=4, together=together)
        return [a.value, a.std_error, a.each, a.terms.nan_to_num(0.0), a.counts, b.value, b.each, b.terms, b.term_errors]

    def measured(together: bool) -> Any:
        run = tiny_run()
        sample_metrics = SampleMetrics(run.data, run.directory)
        return numbers({**sample_metrics(run.data.train[:21] + 0.5), **sample_metrics.of_held_out(20)})

    def compared(together: bool) -> Any:
        rows = compare_run(tiny_run(), CompareSettings(("ddim", "ancestral"), (3,), 21), lambda line: None).get("rows", [])
        return [numbers(row | {"seconds": 0.0}) for row in rows]

    def scored(together: bool) -> Any:
        settings = LikelihoodSettings(images=5, divergence="hutchinson", tolerance=1e-2)
        return numbers(likelihood_run(tiny_run(), settings, lambda line: None)["parts"])

    return {
        "samples, em": lambda together: samples(together, solver="em", steps=4),
        "samples, ode": lambda together: samples(together, solver="ode", steps=50),
        "samples in batches": lambda together: samples(together, solver="dpm", steps=3, batch_size=2),
        "samples from data": lambda together: samples(together, 5, solver="ddim", steps=3, x_init=data()[:5], t_start=0.5, index_offset=3),
        "one sample": lambda together: samples(together, 1, solver="em", steps=2),
        "likelihood": density,
        "bits": bits,
        "bounds": bounds,
        "sample metrics": measured,
        "compare": compared,
        "likelihood run": scored,
    }


def numbers(values: Any) -> list[float]:
    """All finite numbers in nested dictionaries and lists."""
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list | tuple):
        return [number for value in values for number in numbers(value)]
    return [float(values)] if isinstance(values, int | float) and np.isfinite(values) else []


def apart(a: Any, b: Any) -> float:
    """The largest difference, over the largest number where that is above 1."""
    if isinstance(a, dict):
        return max(apart(a[name], b[name]) for name in a)
    if isinstance(a, list) and any(isinstance(value, Tensor | list) for value in a):
        return max(apart(x, y) for x, y in zip(a, b, strict=True))
    a, b = (torch.as_tensor(value).double() for value in (a, b))
    assert a.shape == b.shape and a.numel()
    return float((a - b).abs().max()) / max(1.0, float(a.abs().max()))


def failed_sample() -> list[int]:
    """The samples that a failure in the second process names."""
    x = data()[:6]
    x[4] = torch.nan
    try:
        sample_together(fresh().eval(), (6, 5), solver="ddim", steps=2, x_init=x, t_start=0.5, progress=False, on_failure="raise")
    except SolverError as error:
        return [int(index) for index in error.failed]
    return []


def equal(place: str) -> None:
    """Everything alone, by the first process, then together; the differences go to `place`."""
    first = os.environ["RANK"] == "0"
    alone = {name: {"gradients": first_gradients(settings), **trained(settings)} for name, settings in TRAININGS.items() if first}
    measured = {name: function(False) for name, function in measures().items() if first}
    found: dict[str, Any] = {}
    with parallel.processes(CPU):
        assert parallel.world() == 2
        for name, settings in TRAININGS.items():
            for shard in (None, "fsdp") if name in SHARDED else (None,):
                chosen = dataclasses.replace(settings, shard=shard)
                mine = {"gradients": first_gradients(chosen), **trained(chosen)}
                if first:
                    found[f"training: {name}, {shard}"] = {part: apart(alone[name][part], mine[part]) for part in mine}
        for name, function in measures().items():
            together = function(True)
            if first:
                found[name] = apart(measured[name], together)
        for shard in (None, "fsdp"):
            found[f"resumed, {shard}"] = resumed(dataclasses.replace(TRAININGS["told"], shard=shard), Path(f"checkpoint-{shard}"))
        text = parallel.broadcast_text("déjà " + str(parallel.rank()))
        found["broadcast"] = [text, parallel.agreed(parallel.rank()), parallel.anywhere(parallel.rank() == 1, False)]
        if first:
            Path(place).write_text(json.dumps(found, indent=1))


def fails(how: str) -> None:
    """A training whose data fails in the second process."""
    x, reads = data(), 0

    def read(rows: np.ndarray) -> np.ndarray:
        nonlocal reads
        reads += 1
        if parallel.rank() == 1 and reads == 20:
            if how == "exit":
                os._exit(3)
            raise OSError("the second disk is gone")
        return x[rows].numpy()

    with parallel.processes(CPU):
        source = Source("x", (5,), read, np.arange(len(x)))
        fit(fresh(), source, dataclasses.replace(BASE, steps=100_000), held_out=x[:20], progress=False)


def commands(lines: str) -> None:
    """The command lines of a JSON list, one after the other: their exit codes, and which of this process's threads are still gloo's."""
    codes = [main(line) for line in json.loads(lines)]
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]  # none but on Linux
    found = {"codes": codes, "threads": [name for name in threads if "gloo" in name]}
    Path(f"found{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    evaluation.FRAMES, figures.DPI = 4, 40  # the pictures have tests of their own
    ConstrainedLayoutEngine.execute = lambda *_: None  # type: ignore[method-assign, assignment]
    features._SETTINGS["least_steps"] = 50
    {"equal": equal, "fails": fails, "commands": commands}[sys.argv[1]](sys.argv[2])
