"""Likelihood: the flow carries an image to its latent, and keeps account of the volume."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import sde_gen
from sde_gen.likelihood.bits_per_dim import matching_time
from sde_gen.report import figures as fig

from .lesson import Lesson, Numbers, Studio, show

IMAGES, POINTS, COLUMNS, EXTREMES = 100, 25, 9, 6
NAMES = {"most likely": fig.BLUE, "median": fig.GREY, "least likely": fig.ORANGE}


def kept(model: sde_gen.ScoreModel, x: Tensor, t: float) -> Tensor:
    """alpha tr dE[x_0 | x_t]/dx_t, exactly, (B,): near data of how many directions the network keeps what the state says."""
    alpha = float(model.sde.marginal(torch.tensor(t, dtype=torch.float64))[0])
    dim = x[0].numel()

    def denoise(flat: Tensor) -> Tensor:
        return model.denoise(flat.reshape(1, *x.shape[1:]), t).flatten()

    with sdpa_kernel(SDPBackend.MATH):  # the fused attention cannot be batched
        jacobians = torch.func.vmap(torch.func.jacrev(denoise))(x.flatten(1))
    return alpha * jacobians.reshape(-1, dim, dim).diagonal(dim1=1, dim2=2).sum(1).detach().double()


def draw(studio: Studio) -> Numbers:
    data, model, sde = studio.digits, studio.model, studio.model.sde
    assert data.test is not None and data.value_range is not None and model.normalizer is not None
    x = data.test[: studio.count(IMAGES, 2 * EXTREMES)]
    dim = x[0].numel()
    bits = sde_gen.bits_per_dim(
        model, x.long(), levels=data.levels, dequantization="truncated_normal", seed=0, probes=1, rtol=1e-3, atol=1e-3
    )
    order = bits.each.argsort()
    chosen = torch.stack((order[0], order[len(order) // 2], order[-1]))

    start, _ = matching_time(model, x.shape[1:], 1.0)
    ends = torch.tensor([start, sde.t_max], dtype=torch.float64)
    levels = torch.linspace(*sde.half_log_snr(ends).tolist(), studio.count(POINTS, 5), dtype=torch.float64)
    times = sde.time_of(levels)
    times[0], times[-1] = ends
    alpha, sigma = sde.marginal(times)
    noise = torch.randn(3, *data.shape, generator=torch.Generator().manual_seed(0))
    state = alpha[0].float() * model.normalizer.encode(x[chosen]) + sigma[0].float() * noise
    flow = sde_gen.sample(model, state.shape, "unipc", grid=times, x_init=state, trajectory="states")
    assert flow.trajectory is not None
    states = torch.cat((state[None], flow.trajectory))

    # Along the flow d log p_t(x_t) = -div(velocity) dt = -D dlog(sigma) - alpha tr(J) dlambda
    directions = torch.stack([kept(model, x_t, t) for x_t, t in zip(states, times.tolist(), strict=True)])
    pieces = 0.5 * (directions[1:] + directions[:-1]) * levels.diff()[:, None]
    after = torch.cat((pieces.flip(0).cumsum(0).flip(0), torch.zeros(1, 3)))  # from each level to the last
    volume = dim * (torch.log(sigma[-1]) - torch.log(sigma))[:, None] + after
    of_latent = model.prior.log_prob(states[-1]).double()
    log_p = of_latent + volume

    checked = studio.count(3, 1)
    data_like = model.normalizer.decode(state[:checked] / alpha[0].float())
    with sdpa_kernel(SDPBackend.MATH):
        exact = sde_gen.log_likelihood(model, data_like, divergence="exact", t=start, rtol=1e-3, atol=1e-3).log_prob.double()
    units = dim * math.log(float(alpha[0])) + float(model.normalizer.log_det(x[:1]))
    off = float((log_p[0, :checked] + units - exact).abs().max())

    noise_of_all = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    first = alpha[0].float() * model.normalizer.encode(x) + sigma[0].float() * noise_of_all
    kept_first = kept(model, first, float(times[0]))
    agreement = float(torch.corrcoef(torch.stack((kept_first, bits.each.double())))[0, 1])

    figure = fig.new_figure(11, 7.6)
    top, middle, low = figure.subfigures(3, 1, height_ratios=(1.3, 1.2, 0.62))
    columns = [round(k) for k in torch.linspace(0, len(levels) - 1, COLUMNS).tolist()]
    axes = top.subplots()
    path = torch.stack([model.normalizer.decode(states[k]) for k in columns], 1)
    labels = [f"{float(levels[k]):+.1f}\nt = {float(times[k]):.2f}" for k in columns]
    labels[0] = "λ = " + labels[0]
    names = [f"{name}\n{float(bits.each[k]):.2f} bits/dim" for name, k in zip(NAMES, chosen, strict=True)]
    show(axes, path, data.value_range, names, labels)
    axes.set_title("The flow carries three real digits to their latents", fontsize=fig.TEXT + 1, loc="left")
    left, centre, right = middle.subplots(1, 3)
    for values, (name, colour) in zip(log_p.T, NAMES.items(), strict=True):
        left.plot(levels.numpy(), values.numpy(), color=colour, label=name, linewidth=2)
    left.invert_xaxis()
    fig.style(left, "Log-density along the way", "λ: data left, noise right", "log p_t(x_t), nats")
    centre.plot(kept_first, bits.each, "o", color=fig.GREEN, markersize=3.5, alpha=0.6)
    for k, colour in zip(chosen.tolist(), NAMES.values(), strict=True):
        centre.plot(kept_first[k], bits.each[k], "o", color=colour, markersize=9, markeredgecolor="white")
    fig.style(
        centre, f"Fewer ways to move, likelier: r = {agreement:.2f}", f"directions kept of {dim}, first state", "bits/dim (low: likely)"
    )
    fig.legend(left)
    heights, *_ = right.hist(bits.each.numpy(), bins=24, color=fig.BLUE, alpha=0.75)
    right.set_ylim(0, 1.25 * max(heights))
    right.axvline(bits.value, color="black", linewidth=1.5, label=f"mean {bits.value:.3f} ± {bits.std_error:.3f} (s.e.)")
    fig.style(right, f"{len(x)} held-out digits", "bits/dim (low: likely)", "digits")
    fig.legend(right)
    axes = low.subplots(1, 2)
    for part, row, title in ((axes[0], order[:EXTREMES], "most"), (axes[1], order[-EXTREMES:].flip(0), "least")):
        show(part, x[row][None], data.value_range, (), [f"{float(bits.each[k]):.2f}" for k in row])
        part.set_title(f"The {EXTREMES} {title} likely, bits/dim", fontsize=fig.TEXT + 1, loc="left")
    studio.save(figure, "likelihood")

    gap = log_p[0, 0] - log_p[0, -1]
    return {
        "bits": bits.value,
        "bits_error": bits.std_error,
        "solver": bits.solver,
        "best_kept": float(kept_first[chosen[0]]),
        "median_kept": float(kept_first[chosen[1]]),
        "worst_kept": float(kept_first[chosen[2]]),
        "agreement": agreement,
        "count": len(x),
        "best": float(bits.each[order[0]]),
        "worst": float(bits.each[order[-1]]),
        "gap": float(gap),
        "of_latent": float(of_latent[0] - of_latent[-1]),
        "of_volume": float(volume[0, 0] - volume[0, -1]),
        "check": off,
        "level": float(levels[0]),
    }


LESSON = Lesson(
    "Likelihood",
    r"""
The probability flow is invertible, so that densities follow by the change of variables, continuously (Chen et al. 2018, arXiv:1806.07366;
Song et al. 2021, arXiv:2011.13456):

$$\log p_0(x_0) = \log p_T(x_T) + \int_0^T \mathrm{div}\, v_t(x_t)\, \mathrm{d}t , \qquad
v_t(x) = f(t)\, x - \tfrac12 g^2(t)\, \nabla \log p_t(x) .$$

The divergence is a count of directions: of a change of $x_t$ the denoiser keeps what is possible among digits and removes the rest, and
$\alpha\, \mathrm{tr}\, \partial \mathrm{E}[x_0 | x_t] / \partial x_t$ says how much it keeps. At the first state that is <<best_kept:.0f>>
of 64 directions for the most likely of <<count>> held-out digits, <<median_kept:.0f>> for the median and <<worst_kept:.0f>> for the least
likely. Over all of them it goes with the bits (correlation <<agreement:.2f>>, the middle picture): where fewer directions are possible the
density is higher. It is no law for two digits, since the count goes on along the whole way and the latent has its say. Of the <<gap:.1f>>
nats between the most and the least likely the volume makes <<of_volume:.1f>> and the latents themselves <<of_latent:.1f>>. All are
densities of digits blurred as in the first column, by a sixth of a grey level, which bounds the bits of the discrete values (Zheng et al.
2023, arXiv:2305.03935): <<bits:.2f>> bits/dim on average.
""",
    (
        "held-out digits: <<bits:.3f>> +- <<bits_error:.3f>> bits/dim (<<count>> digits; solver's own estimate of its error"
        " <<solver:.3f>>), from <<best:.2f>> (most likely) to <<worst:.2f>> (least)",
        "the most likely is <<gap:.1f>> nats above the least: <<of_latent:.1f>> of them by the latent, <<of_volume:.1f>> by the volume",
        "directions kept at the first state, of 64: <<best_kept:.1f>> (most likely), <<median_kept:.1f>> (median), <<worst_kept:.1f>>"
        " (least); correlation with the bits over <<count>> digits <<agreement:.2f>>",
        "trapezoids of the exact trace against log_likelihood: largest difference <<check:.2f>> nats",
    ),
    "Three digits on their way to their latents, their log-density on it, bits against directions kept, and a histogram with its extremes",
    draw,
)
