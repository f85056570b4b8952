"""What fits a network to symbols: the bound of discrete diffusion as a loss, what measures it, and a model for some data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..devices import find_device
from ..networks import affordable_options, make_network
from ..tokens import TokenModel, make_process
from ..tokens.bound import mask_term, rate_term
from .checkpoint import TOKENS, WEIGHTS, load_network, loading
from .losses import strata
from .objective import Draw, Objective
from .settings import TrainSettings

LEVELS = 16


class TokenObjective(Objective):
    """The bound on -log p(x) of discrete diffusion in nats an entry, at one noise level of each item (see `tokens.token_bound`).

    Of a batch, each item gets one of as many equal parts of the noise levels: of masked diffusion the number of masks, which makes the
    loss the bound exactly, with no weight that grows where few are left (Sahoo et al. 2024, arXiv:2406.07524, use 1/t).

    Raises ValueError for settings that are for data of numbers alone.
    """

    def __init__(self, settings: TrainSettings) -> None:
        nn.Module.__init__(self)
        if settings.reference or settings.loss != "l2":
            what = f"reference {settings.reference}" if settings.reference else f"loss {settings.loss!r}"
            raise ValueError(f"{what} is for data of numbers, and these are symbols: leave it out")
        self.settings, self.levels, self.chain = settings, None, None

    def encode(self, model: Any, x: Tensor) -> Tensor:
        """Items as int64. ValueError, one line, for entries that are no symbols of the model's, of which rounding would make others."""
        symbols = x.long()
        low, high = float(x.min()), float(x.max())
        if not (low >= 0 and high < model.process.symbols) or not bool((symbols == x).all()):
            what = f"{low:g} .. {high:g}" + ("" if bool((symbols == x).all()) else ", fractions among them")
            raise ValueError(f"symbols must be whole numbers 0 .. {model.process.symbols - 1}, got {what}")
        return symbols

    def validation(self, model: Any, held: Tensor, cond: dict[str, Tensor]) -> Any:
        return TokenValidation.prepare(model, held, cond, self.settings.seed)

    def draw(self, model: Any, shape: Sequence[int], generator: torch.Generator, drop: Mapping[str, float] | None = None) -> Draw:
        place = generator.device
        level = strata(shape[0], generator)
        noise = torch.rand(tuple(shape), generator=generator, device=place, dtype=torch.float64)
        left_out = {name: torch.rand(shape[0], generator=generator, device=place) < share for name, share in (drop or {}).items()}
        return Draw(level, torch.ones_like(level), noise, left_out)

    def forward(self, model: Any, x_0: Tensor, draw: Draw, **cond: Any) -> Tensor:
        term = mask_term if model.process.reveals else rate_term
        return term(model, x_0, draw.level, draw.noise, cond) / model.entries


@dataclass(frozen=True)
class TokenValidation:
    """Held-out items, corrupted once and for all at `LEVELS` levels; `measure` gives -log p(x_0 | x_t) an entry that is not shown, over
    log K, the same of a network that knows nothing.

    levels: half the log-odds of what is kept. linear: the same of the frequencies of symbols at each entry.
    """

    x_0: Tensor
    times: list[float]
    levels: list[float]
    linear: list[float]
    cond: dict[str, Tensor]
    seed: int

    @classmethod
    def prepare(cls, model: TokenModel, x_0: Tensor, cond: dict[str, Tensor], seed: int) -> TokenValidation:
        kept = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
        shares = nn.functional.one_hot(x_0, model.process.symbols).double().mean(0)
        of_frequencies = float(torch.special.entr(shares).sum(-1).mean()) / float(torch.tensor(model.process.symbols).log())
        levels = (0.5 * torch.log(kept / (1 - kept))).tolist()
        return cls(x_0, kept.tolist(), levels, [of_frequencies] * LEVELS, cond, seed)

    @torch.no_grad()
    def measure(self, model: TokenModel, items: int | None = None) -> list[float]:
        """The ratios by level, of so many items spread over all."""
        count = len(self.x_0)
        items = count if items is None else min(items, count)
        rows = torch.arange(items, device=self.x_0.device) * count // items
        cond = {name: value[rows] for name, value in self.cond.items()}
        x, ratios = self.x_0[rows].flatten(1), []
        generator = torch.Generator().manual_seed(self.seed)
        for share in self.times:
            noise = torch.rand(self.x_0.shape, generator=generator, dtype=torch.float64).to(x.device)[rows]
            kept = torch.full((len(x),), share, dtype=torch.float64, device=x.device)
            state = model.process.corrupt(self.x_0[rows], kept, noise)
            missed = -model.log_probabilities(state, kept, **cond).gather(2, x[..., None])[..., 0]
            hidden = state.flatten(1) >= model.process.symbols if model.process.reveals else torch.ones_like(x, dtype=torch.bool)
            mean = torch.where(hidden, missed, 0.0).sum() / hidden.sum().clamp_min(1)
            ratios.append(float(mean) / float(torch.tensor(model.process.symbols).log()))
        return ratios


def build_token_model(
    shape: Sequence[int],
    symbols: int,
    process: str = "absorbing",
    network: str | nn.Module | None = None,
    conditions: int | Mapping[str, Mapping[str, Any]] | None = None,
    ordered: bool = False,
    network_options: Mapping[str, Any] | None = None,
    process_settings: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> TokenModel:
    """A model for items (C, *spatial) of whole numbers 0 .. symbols - 1, not trained yet.

    network: a name in NETWORKS, or a module (see `TokenModel`). None: "transformer" with a token for each place of a sequence, else "unet".
    ordered: whether symbols are levels of one quantity (grey, counts).
    conditions, network_options: of a network given by name, as `build_model` takes them.
    """
    shape = tuple(shape)
    made = make_process(process, symbols, **(process_settings or {}))
    if not isinstance(network, nn.Module):
        name = network or ("transformer" if len(shape) == 2 else "unet")
        options = dict(network_options or {})
        if len(shape) == 2 and name == "transformer":
            options = {"patch": 1, **options}
        channels, out = TokenModel.channels(made, shape, ordered)
        options = affordable_options(name, (channels, *shape[1:]), options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = make_network(name, (channels, *shape[1:]), conditions, out, **options)
    return TokenModel(network, made, shape, ordered).eval()


def load_tokens(
    path: str | PathLike[str], ema: bool = True, device: torch.device | str = "cpu", network: nn.Module | None = None
) -> TokenModel:
    """The TokenModel saved at the directory `path`, or that of the run directory `path`, in evaluation mode on `device`; the arguments and
    errors are those of `load`."""
    device = find_device(device)
    with loading(path) as (description, version):
        if description.get("kind") != TOKENS:
            raise ValueError("it holds no model of symbols: sde_gen.load reads it")
        tensors = load_file(version / WEIGHTS, device=str(device))
        process = make_process(description["process"]["name"], **description["process"]["settings"])
        shape, ordered = [int(n) for n in description["shape"]], bool(description["ordered"])
        about = description["network"]
        wanted = TokenModel.channels(process, shape, ordered)
        if "shape" in about and (about["shape"][0], about["out_channels"]) != wanted:
            raise ValueError(f"a network of {about['shape'][0]} and {about['out_channels']} channels where {wanted} are needed")
        model = TokenModel(load_network(about, tensors, ema, device, network), process, shape, ordered)
    return model.eval().requires_grad_(False)
