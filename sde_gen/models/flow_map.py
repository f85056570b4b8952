"""Flow maps: a network that goes from any time to any earlier one in a single call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..networks import Network
from ..sdes import SDE
from ..sdes.base import as_time
from .denoiser import Prediction, like, only_valid
from .score import ScoreModel

UNTIL, STRENGTH = "until", "strength"
"""The names under which the network is told where a jump ends, and how strongly samples are guided."""
FREQUENCIES = (0.15, 0.4, 1.0, 2.5)
"""Of the sines and cosines of the half log-SNR at a jump's end: the slowest turns by less than half a circle over its range."""


class FlowMap(ScoreModel):
    """The probability flow in jumps, x_s = jump(x_t, t, s), one network call each.

        jump(x, t, s) = sigma_s/sigma_t x + (alpha_s - alpha_t sigma_s/sigma_t) G(x, t, s)

    G is the network's output as a prediction of x_0, told the half log-SNR at s beside that at t: the mean of E[x_0 | x_u] over the way,
    with the weights that make the jump exact. jump(x, t, t) is x, and G(x, t, t) would be E[x_0 | x_t]. `distill` makes one of a
    ScoreModel, `sample(flow, shape, steps=1)` draws with it, `save` and `load` keep it.

    It is not asked for E[x_0 | x_t], which its network no longer knows: likelihoods, guidance, posteriors and solvers refuse it. Guidance
    is distilled in, its strength is the condition "strength".

    times: (K + 1,), falling from t_max to t_min, the times between which it was trained to jump; `sample` runs along them.
    strengths: (low, high), the strengths of guidance that were distilled in; None: none were.
    model_settings: those of ScoreModel.

    Raises ValueError for times that do not fall or strengths that do not rise.
    Boffi et al. 2024, arXiv:2406.07507 (flow maps); Frans et al. 2024, arXiv:2410.12557 (shortcut models).
    """

    network: Network

    def __init__(
        self,
        network: Callable[..., Tensor],
        sde: SDE,
        times: Sequence[float],
        strengths: Sequence[float] | None = None,
        **model_settings: Any,
    ) -> None:
        super().__init__(network, sde, **model_settings)
        self.times = tuple(float(t) for t in times)
        if len(self.times) < 2 or any(s >= t for t, s in zip(self.times, self.times[1:], strict=False)):
            raise ValueError(f"a flow map needs at least two falling times, got {list(self.times)}")
        self.strengths = None if strengths is None else (float(strengths[0]), float(strengths[1]))
        if self.strengths is not None and not self.strengths[0] <= 1 <= self.strengths[1]:
            raise ValueError(f"strengths are a lowest and a highest with 1, no guidance, between them, got {list(self.strengths)}")

    def with_network(self, network: Callable[..., Tensor]) -> FlowMap:
        return FlowMap(network, self.sde, **self.settings(), normalizer=self.normalizer, moments=self.moments, mask=self.mask)

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"times": list(self.times), "strengths": None if self.strengths is None else list(self.strengths)}

    @property
    def encoders(self) -> dict[str, Any]:
        return {name: encoder for name, encoder in super().encoders.items() if name not in (UNTIL, STRENGTH)}

    def conditions(self, cond: Mapping[str, Any] | None, count: int, device: torch.device) -> dict[str, Tensor]:
        strength = None if not isinstance(cond, Mapping) else cond.get(STRENGTH)
        if strength is None:
            return super().conditions(cond, count, device)
        assert cond is not None
        if self.strengths is None:
            raise ValueError(f"no guidance was distilled into this flow map: leave {STRENGTH!r} out, or distill with strengths=(1, 4)")
        value = torch.as_tensor(strength, dtype=torch.float32, device=device)
        value = value.expand(count) if value.ndim == 0 else value
        low, high = self.strengths
        if value.shape != (count,) or not bool(((value >= low) & (value <= high)).all()):
            raise ValueError(
                f"{STRENGTH!r} must be a number from {low:g} to {high:g}, or one for each of {count} samples, got {strength!r}"
            )
        return super().conditions({n: v for n, v in cond.items() if n != STRENGTH}, count, device) | {STRENGTH: value}

    def grid(self, steps: int) -> Tensor:
        """So many of the trained times, evenly among them, (steps + 1,). ValueError where there are not so many."""
        most = len(self.times) - 1
        if steps > most:
            raise ValueError(f"this flow map was trained for up to {most} steps, got {steps}: more belong to the model that it came from")
        return torch.tensor([self.times[round(k * most / steps)] for k in range(steps + 1)], dtype=torch.float64)

    def jump(self, x: Tensor, t: Tensor | float, s: Tensor | float, **cond: Tensor) -> Tensor:
        """The flow's state at s from x (B, *) at t >= s; t and s: numbers, or tensors () or (B,). Shape of `x`, normalised units.

        cond: conditions, and "strength" (B,) where guidance was distilled in; without it samples are not guided.
        Raises ValueError for numbers that are not t_min <= s <= t <= t_max.
        """
        low, high = self.sde.t_min, self.sde.t_max
        if not isinstance(t, Tensor) and not isinstance(s, Tensor) and not low <= s <= t <= high:
            raise ValueError(f"a jump goes from t to an earlier s in [{low:.6g}, {high:.6g}], got {float(t):.6g} to {float(s):.6g}")
        weight_x, weight_g = self.weights(t, s, x)
        g = self.mean_prediction(x, t, s, **cond)
        return only_valid(weight_x * x + weight_g * g, self.valid(cond))

    def weights(self, t: Tensor | float, s: Tensor | float, x: Tensor) -> tuple[Tensor, Tensor]:
        """Those of x and of G in a jump, ready to multiply x."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.sde.marginal(as_time(t)), self.sde.marginal(as_time(s))
        ratio = sigma_s / sigma_t
        return like(ratio, x), like(alpha_s - alpha_t * ratio, x)

    def mean_prediction(self, x: Tensor, t: Tensor | float, s: Tensor | float, **cond: Tensor) -> Tensor:
        """G(x, t, s), shape of `x`."""
        told = {UNTIL: until_features(self.sde, as_time(s)).to(x.device).expand(len(x), -1)}
        if self.strengths is not None:
            told[STRENGTH] = cond.pop(STRENGTH, x.new_ones(len(x)))
        return super().predict(x, t, **cond, **told).denoised

    def predict(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> Prediction:
        raise TypeError(
            "a flow map only jumps (flow.jump, sample): it knows no E[x_0 | x_t], which this asks for; give the model that it came from"
        )

    forward = jump  # type: ignore[assignment]


def until_features(sde: SDE, s: Tensor) -> Tensor:
    """Sines and cosines of the half log-SNR at s, () or (B,): (1 or B, features), float32."""
    angles = sde.half_log_snr(s).reshape(-1, 1) * torch.tensor(FREQUENCIES, dtype=torch.float64, device=s.device)
    return torch.cat((angles.cos(), angles.sin()), 1).float()


def flow_map_of(model: ScoreModel, times: Sequence[float], strengths: Sequence[float] | None = None, seed: int = 0) -> FlowMap:
    """A flow map with the weights of `model`, which still takes a straight line: G(x, t, s) = E[x_0 | x_t], DDIM's step.

    seed: of the weights of what the network is told beside the model's own conditions.

    Raises TypeError for a model whose network is none of this package's, ValueError for one that cannot be told where a jump ends.
    """
    network = model.network
    if not isinstance(network, Network):
        raise TypeError(
            f"a flow map is made of a network of sde_gen.networks, which can be told more; this one is a {type(network).__name__}"
        )
    added: dict[str, dict[str, Any]] = {UNTIL: {"kind": "numbers", "size": 2 * len(FREQUENCIES)}}
    if strengths is not None:
        low, high = strengths
        added[STRENGTH] = {"kind": "numbers", "size": 1, "mean": [(low + high) / 2], "std": [max((high - low) / 2, 1e-6)]}
    taken = sorted(set(added) & set(network.conditions))
    if taken:
        raise ValueError(f"a flow map tells its network {', '.join(map(repr, taken))} itself: the model has a condition of that name")
    options = network.options | ({"dropout": 0.0} if "dropout" in network.options else {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = type(network)(network.shape, network.conditions | added, network.out_channels, **options)
    missing, strange = made.load_state_dict(network.state_dict(), strict=False)
    if strange or not missing:
        raise ValueError(f"a {type(network).__name__} cannot be told where a jump ends")
    for encoder in (one for key, one in made.encoders.items() if key in added):
        for parameter in encoder.get_submodule("layers.2").parameters():  # nothing is added to what the network was told, at first
            torch.nn.init.zeros_(parameter)
    return FlowMap(
        made, model.sde, times, strengths, **model.settings(), normalizer=model.normalizer, moments=model.moments, mask=model.mask
    )
