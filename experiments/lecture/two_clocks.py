"""One network, two clocks: DDPM's chain by index and the SDE by time, with noise on the way and without."""

from __future__ import annotations

import torch
from torch import Tensor

import sde_gen
from sde_gen.discrete import ChainView, DiscreteChain, chain_of
from sde_gen.metrics import nearest_distances, neighbour_ratio
from sde_gen.randomness import NoiseStream
from sde_gen.report import figures as fig

from .lesson import Lesson, Numbers, Studio, root_mean, show

CALLS = 100
COLUMNS = 12
FEW = (10, 20, 50, CALLS)
"""Calls of DDIM, on its way to the flow."""


def by_index(model: sde_gen.ScoreModel, chain: DiscreteChain, shape: torch.Size, seed: int) -> list[Tensor]:
    """Algorithm 2 of Ho et al. 2020: x_i for i = N - 1, ..., 0 and the sample, normalised units. The noise is `sample`'s own."""
    view = ChainView(model, chain)
    noise = NoiseStream(seed, 0, shape[0], shape[1:], torch.float32, torch.device("cpu"))
    states = [model.prior.from_noise(noise.draw())]
    with torch.no_grad():
        for i in reversed(range(len(chain))):
            states.append(view.step(states[-1], i, noise.draw()))
    return states


def draw(studio: Studio) -> Numbers:
    data, model = studio.digits, studio.model
    assert data.test is not None and data.value_range is not None and model.normalizer is not None
    variance = float((data.train - data.train.mean(0)).square().flatten(1).sum(1).mean())
    calls = studio.count(CALLS, 10)
    shape = torch.Size((studio.count(24, COLUMNS), *data.shape))

    chain = chain_of(model.sde, 1000).strided(calls)
    indexed = by_index(model, chain, shape, 0)
    runs = {
        "ancestral": sde_gen.sample(model, shape, "ancestral", grid=chain.times.flip(0), seed=0, trajectory="states"),
        "pc": sde_gen.sample(model, shape, "pc", steps=calls // 2, seed=0),
        "ddim": sde_gen.sample(model, shape, "ddim", steps=calls - 1, seed=0),
        "ode": sde_gen.sample(model, shape, "ode", seed=0),
    }
    first = model.normalizer.decode(indexed[-1])
    flow = runs["ode"].x
    nfe = {name: float(run.nfe.double().mean()) for name, run in runs.items()}

    figure = fig.new_figure(11, 8.2)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.55, 1))
    axes = top.subplots()
    rows = {
        f"DDPM, by index i\n{len(chain)} calls": first,
        f"ancestral, by time t\n{nfe['ancestral']:.0f} calls": runs["ancestral"].x,
        f"predictor-corrector\n{nfe['pc']:.0f} calls": runs["pc"].x,
        f"DDIM\n{nfe['ddim']:.0f} calls": runs["ddim"].x,
        f"flow, adaptive\n{nfe['ode']:.0f} calls": flow,
    }
    show(axes, torch.stack([x[:COLUMNS] for x in rows.values()]), data.value_range, list(rows))
    axes.set_title("One network: in each column all five start from the same noise", fontsize=fig.TEXT + 1, loc="left")

    left, right = bottom.subplots(1, 2)
    apart = {name: root_mean((run.x - flow).square().flatten(1).sum(1) / variance) for name, run in runs.items() if name != "ode"}
    unrelated = root_mean((flow - flow.roll(1, 0)).square().flatten(1).sum(1) / variance)
    sweep = {nfe["ddim"]: apart["ddim"]}
    for few in FEW[:-1]:
        run = sde_gen.sample(model, shape, "ddim", steps=few - 1, seed=0)
        sweep[float(run.nfe[0])] = root_mean((run.x - flow).square().flatten(1).sum(1) / variance)
    sweep = dict(sorted(sweep.items()))
    bars = {f"DDIM, {few:.0f} calls": (found, fig.BLUE) for few, found in sweep.items()}
    bars |= {"ancestral": (apart["ancestral"], fig.ORANGE), "predictor-corrector": (apart["pc"], fig.ORANGE)}
    bars["flow, another seed"] = (unrelated, fig.GREY)
    for place, ((value, error), colour) in enumerate(bars.values()):
        left.errorbar([value], [-place], xerr=[2 * error], fmt="o", color=colour, capsize=3)
    left.set_yticks([-place for place in range(len(bars))], list(bars))
    left.set_xscale("log")
    left.set_xlim(0.01, 3)
    fig.style(left, "How far from the flow's image of the same seed", "distance / spread of the data ± 2 s.e.")

    assert runs["ancestral"].trajectory is not None
    timed = (indexed[0], *runs["ancestral"].trajectory, model.normalizer.encode(runs["ancestral"].x))
    steps = [float((x - y).abs().max()) for x, y in zip(indexed, timed, strict=True)]
    size = [float(x.abs().max()) for x in indexed]
    right.semilogy(size, color=fig.GREY, label="largest |x_i|")
    right.semilogy(range(1, len(steps)), steps[1:], color=fig.BLUE, label="largest |x_i − x_t|, index against time")
    fig.style(right, "Two clocks, one path", "steps taken, noise to data", "normalised units")
    right.set_ylim(1e-8, 1e2)
    fig.legend(right)
    studio.save(figure, "two_clocks")

    held_out = nearest_distances(data.test, data.train)
    numbers = {
        "seeds": len(flow),
        "index": float((first - runs["ancestral"].x).abs().max()),
        "chain": len(chain),
        "unrelated": unrelated[0],
    }
    numbers["unrelated_error"] = unrelated[1]
    paired = root_mean((runs["pc"].x - runs["ancestral"].x).square().flatten(1).sum(1) / variance)
    numbers["paired"], numbers["paired_error"] = paired
    for name, run in runs.items():
        near = neighbour_ratio(nearest_distances(run.x, data.train), held_out)
        numbers |= {f"{name}_near": near.value, f"{name}_near_error": near.std_error, f"{name}_calls": nfe[name]}
    for name, (value, error) in apart.items():
        numbers |= {name: value, f"{name}_error": error}
    (numbers["ddim_few"], numbers["ddim_few_error"]), numbers["few"] = next(iter(sweep.values())), next(iter(sweep))
    return numbers


LESSON = Lesson(
    "One network, two clocks",
    r"""
One score serves a family of ways back, by how much noise $\eta$ is added and taken out again on the way, all with the same marginals:

$$\mathrm{d}x = \left[ f\, x - \tfrac{1 + \eta^2}{2}\, g^2\, \nabla \log p_t(x) \right] \mathrm{d}t + \eta\, g\, \mathrm{d}\bar w .$$

$\eta = 0$ is the probability flow, which DDIM (Song et al. 2020, arXiv:2010.02502) also follows; $\eta = 1$ is the reverse SDE, whose steps
are DDPM's ancestral ones (Ho et al. 2020, arXiv:2006.11239). The network does not know which it serves, nor whether it is asked by DDPM's
index or by time: Ho et al.'s loop by index and `ancestral` by time give the same images to within <<index:.0e>> of 16 grey levels. From
the same seed DDIM comes to the flow's image (<<ddim:.3f>> of the data's spread apart at <<ddim_calls:.0f>> calls); the stochastic ones,
which start from the same noise too, end in other images: <<ancestral:.2f>> and <<pc:.2f>> away, unrelated ones <<unrelated:.2f>>.
In this package the noise on the way is a function of seed and image too, so that the two stochastic samplers draw the same numbers in the
same order, and come nearer to each other (<<paired:.2f>>).
""",
    (
        "DDPM's loop by index against ancestral by time, <<chain>> steps: largest difference <<index:.1e>> (values 0 to 16)",
        "from the flow's image of the same seed, over the data's spread: ddim <<ddim_few:.3f>> +- <<ddim_few_error:.3f>> at <<few:.0f>>"
        " calls, <<ddim:.4f>> +- <<ddim_error:.4f>> at <<ddim_calls:.0f>>; ancestral <<ancestral:.2f>> +- <<ancestral_error:.2f>>, pc"
        " <<pc:.2f>> +- <<pc_error:.2f>>; another seed's <<unrelated:.2f>> +- <<unrelated_error:.2f>>",
        "pc from ancestral, same seeds: <<paired:.2f>> +- <<paired_error:.2f>>",
        "distance to the nearest training digit over held-out digits': ancestral <<ancestral_near:.2f>> +- <<ancestral_near_error:.2f>>,"
        " pc <<pc_near:.2f>> +- <<pc_near_error:.2f>>, ddim <<ddim_near:.2f>> +- <<ddim_near_error:.2f>>, flow <<ode_near:.2f>> +-"
        " <<ode_near_error:.2f>> (<<seeds>> seeds)",
    ),
    "Digits of five samplers from the same seeds, how far each is from the flow's image, and the difference between the two clocks",
    draw,
)
