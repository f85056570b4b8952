"""Predictor and corrector: what each step does to the error of the marginals, and which of the two to spend a network call on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sde_gen import SDE, Moments, Normalizer, make_sde, make_solver
from sde_gen.report import figures as fig
from sde_gen.solvers import FixedStepSolver, PredictorCorrector, Update, make_grid

from .lesson import Lesson, Numbers, Studio

CALLS = (16, 8, 32, 64, 128, 256, 512, 1024)
"""In the order in which they are kept where a lesson is only tried."""
STEPS, SNR = 16, 0.3
"""Of the walk that is shown."""
PREDICTORS = {"em": "Euler–Maruyama", "ancestral": "Ancestral", "ddim": "DDIM (flow)"}
SNRS = {0.05: (fig.GREY, "v"), 0.16: (fig.BLUE, "o"), 0.3: (fig.ORANGE, "^"), 0.5: (fig.PURPLE, "s")}


def walk(variances: Tensor, sde: SDE, solver: FixedStepSolver, steps: int) -> Iterator[tuple[float, Update, Tensor]]:
    """Time, update and variances over the exact ones of p_t after each update, for centred Gaussian data of these variances.

    The denoiser is linear, E[x_0|x] = k x, so that a x + b E[x_0|x] + c z has the variance (a + b k)^2 v + c^2: no Monte Carlo.
    """

    def exact(t: float) -> tuple[float, Tensor]:
        alpha, sigma = (float(value) for value in sde.marginal(torch.tensor(t, dtype=torch.float64)))
        return alpha, alpha**2 * variances + sigma**2

    v = exact(sde.t_max)[1]
    for update in solver.plan(sde, make_grid(sde, "half_log_snr", sde.t_max, sde.t_min, steps)):
        assert update.t is not None
        alpha, before = exact(update.t)
        v = (update.a + update.b[0] * alpha * variances / before) ** 2 * v + update.c**2
        t = update.t if update.s is None else update.s
        yield t, update, v / exact(t)[1]


def divergence(ratio: Tensor) -> float:
    """KL in nats of a Gaussian from the exact one, both centred, given the ratios of their variances."""
    return 0.5 * float((ratio - 1 - torch.log(ratio)).sum())


def width(ratio: Tensor) -> float:
    """Error of the standard deviation in percent, in the mean over the directions."""
    return 100 * float((ratio.sqrt() - 1).mean())


def draw(studio: Studio) -> Numbers:
    sde = make_sde("vp")
    digits = studio.digits.train
    variances = Moments.fit(Normalizer.fit(digits).encode(digits)).eigenvalues
    figure = fig.new_figure(11, 8)
    figure.suptitle("Gaussian data of the digits' covariance, 64 dimensions, exact score", fontsize=fig.TEXT + 1)
    first, *others = figure.subplots(2, 2).flat

    pc = [*walk(variances, sde, PredictorCorrector("ancestral", snr=SNR), STEPS)]
    errors = [0.0] + [width(ratio) for *_, ratio in pc]
    levels = [float(sde.half_log_snr(t)) for t in (sde.t_max, *(t for t, *_ in pc))]
    for k, (_, update, _) in enumerate(pc):
        corrects = update.s is None
        label = f"corrector, snr {SNR}" if corrects else f"ancestral predictor, {STEPS} steps"
        look: dict[str, Any] = {"color": fig.ORANGE if corrects else fig.BLUE, "linewidth": 3 if corrects else 1.7}
        first.plot(levels[k : k + 2], errors[k : k + 2], **look, label=label if k < 2 else None)
    alone = [(t, ratio) for t, _, ratio in walk(variances, sde, make_solver("ancestral"), 2 * STEPS)]
    first.plot(
        [float(sde.half_log_snr(t)) for t, _ in alone],
        [width(ratio) for _, ratio in alone],
        color="black",
        linewidth=2,
        label=f"ancestral alone, {2 * STEPS} steps: as many calls",
    )
    first.axhline(0, color="0.6", linewidth=0.8)
    first.set_ylim(1.35 * min(errors), None)
    fig.style(
        first,
        "Ancestral steps narrow the marginal, corrector steps widen it",
        "λ = log α/σ, from noise to data",
        "error, % of the exact standard deviation",
    )
    fig.legend(first)

    calls = sorted(CALLS[: studio.count(len(CALLS), 3)])
    ends: dict[tuple[str, float], list[float]] = {}
    numbers: dict[str, float] = {"cases": len(SNRS) * len(calls), "few": calls[0], "many": calls[-1]}
    for (name, title), axes in zip(PREDICTORS.items(), others, strict=True):
        for snr in (0.0, *SNRS):
            solver, share = (PredictorCorrector(name, snr=snr), 2) if snr else (make_solver(name), 1)
            ends[name, snr] = [divergence([*walk(variances, sde, solver, n // share)][-1][2]) for n in calls]
        best = ends[name, 0.0]
        axes.loglog(calls, best, color="black", linewidth=2.4, label="predictor alone, as many calls")
        for snr, (colour, mark) in SNRS.items():
            axes.loglog(calls, ends[name, snr], color=colour, marker=mark, markersize=6, label=f"with a corrector, snr {snr}")
        wins = sum(mine < other for snr in SNRS for mine, other in zip(ends[name, snr], best, strict=True))
        numbers |= {f"{name}_wins": wins, f"{name}_few": ends[name, 0.16][0] / best[0], f"{name}_floor": ends[name, 0.5][-1]}
        numbers[f"{name}_gain"] = max(b / e for snr in SNRS for e, b in zip(ends[name, snr], best, strict=True))
        numbers |= {f"{name}_alone": best[-1], f"{name}_width": width([*walk(variances, sde, make_solver(name), 2 * STEPS)][-1][2])}
        fig.style(
            axes, f"{title}: the corrector pays in {wins} of {numbers['cases']} cases", "network calls", "error at the end (KL, nats)"
        )
        axes.set_ylim(2e-4, 1e3)
        axes.set_xticks(calls, [str(n) for n in calls])
        axes.minorticks_off()
    fig.legend(others[0])
    studio.save(figure, "predictor_corrector")
    lifted = [errors[k + 1] - errors[k] for k, (_, update, _) in enumerate(pc) if update.s is None]
    return numbers | {
        "width_pc": errors[-1],
        "first_lift": lifted[0],
        "last_lift": lifted[-1],
        "steps": STEPS,
        "twice": 2 * STEPS,
        "snr": SNR,
    }


LESSON = Lesson(
    "Predictor and corrector",
    r"""
A predictor carries x from time t to an earlier one. A corrector stays at t and takes a Langevin step, which leaves p_t alone where it is
reached and pulls towards it where it is not (Song et al. 2021, arXiv:2011.13456):

$$x \leftarrow x + e\, \nabla_x \log p_t(x) + \sqrt{2 e}\, z, \qquad e = 2\, (\mathrm{snr} \cdot \sigma(t))^2 .$$

Does that beat a finer predictor, which costs the same calls? Gaussian data of the digits' covariance (64 dimensions) answer without Monte
Carlo or training. A corrector of finite step widens the marginal: by <<first_lift:.1f>> % of its standard deviation at the first time,
where nothing was wrong, and by <<last_lift:.2f>> % at the last, where the step is too short for what is wrong. Ancestral sampling and DDIM
come out too narrow (<<ancestral_width:.0f>> and <<ddim_width:.0f>> % of the exact standard deviation at <<twice>> calls) and can gain, up
to <<ancestral_gain:.1f>> and <<ddim_gain:.1f>> times less error for the same calls, but which snr is best depends on their number: at snr
0.5 the corrector's own error, <<ddim_floor:.2f>> nats, is still there at <<many>> calls. Euler-Maruyama comes out too wide
(<<em_width:+.0f>> % of it) and gains in <<em_wins>> of <<cases>> cases; and at <<few>> calls a corrector of the usual snr, 0.16, is worse
than the finer predictor for all three.
""",
    (
        "error of the standard deviation at the end, of the exact one, <<twice>> calls:"
        " Euler-Maruyama <<em_width:+.1f>> %, ancestral <<ancestral_width:+.1f>> %, DDIM <<ddim_width:+.1f>> %",
        "the same with <<steps>> calls of ancestral and <<steps>> of a corrector of snr <<snr>>: <<width_pc:+.1f>> %",
        "cases of <<cases>> where the corrector pays: Euler-Maruyama <<em_wins>>, ancestral <<ancestral_wins>>, DDIM <<ddim_wins>>;"
        " at best <<em_gain:.2f>>, <<ancestral_gain:.2f>>, <<ddim_gain:.2f>> times less error",
        "snr 0.16 at <<few>> calls: <<em_few:,.0f>>, <<ancestral_few:.1f>>, <<ddim_few:.1f>> times the predictor's error",
        "snr 0.5 at <<many>> calls: KL <<em_floor:.3f>>, <<ancestral_floor:.3f>>, <<ddim_floor:.3f>> nats;"
        " predictors alone <<em_alone:.5f>>, <<ancestral_alone:.5f>>, <<ddim_alone:.5f>>",
    ),
    "A zigzag of the error of the standard deviation after each predictor and corrector step, and errors at the end against network calls",
    draw,
)
