"""Checkpoints of denoising-diffusion-pytorch (MIT): what its Trainer writes, a GaussianDiffusion's or a Unet's state dict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..networks import LucidUNet, make_network
from ..networks.lucid import Block, MemoryAttention
from ..sdes import SDE, make_sde
from .facts import Facts
from .imported import Imported, mapping, tensors
from .weights import Weights

FACTS = (
    *("size", "auto_normalize", "objective", "schedule", "steps", "dropout", "width", "multipliers", "attention_levels", "heads"),
    *("head_channels", "memory", "channels", "self_condition", "learn_sigma"),
)
LICENCE = "denoising-diffusion-pytorch is under the MIT licence; the weights are whose network it is"
OBJECTIVES = {"pred_noise": "noise", "pred_x0": "data", "pred_v": "v"}
ARGUMENTS = {"image_size": "size", "timesteps": "steps", "beta_schedule": "schedule", "dim": "width", "dim_mults": "multipliers"}
"""Arguments of its classes that are facts under other names."""
LEFT = {"sampling_timesteps", "ddim_sampling_eta", "flash_attn", "min_snr_loss_weight", "min_snr_gamma", "offset_noise_strength"}
AVERAGED, PLAIN = "ema_model.", "model."
CLOSE = 1e-4


def _unet(tree: Any) -> dict[str, Tensor] | None:
    """The weights of its Unet among a dict of tensors, or None."""
    found = tensors(tree)
    if found is None:
        return None
    named = {key.removeprefix(PLAIN): value for key, value in found.items() if key.startswith(PLAIN)} or found
    return named if {"init_conv.weight", "final_res_block.block1.proj.weight"} <= set(named) else None


def recognise(tree: Any) -> bool:
    return _unet(mapping(tree).get("model")) is not None or _unet(tree) is not None


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the library's classes, or facts as they are, as facts."""
    found = {ARGUMENTS.get(name, name): value for name, value in config.items() if name not in LEFT}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def load(tree: Any, given: Mapping[str, Any], weights: str) -> Imported:
    facts, average = Facts(flat(given), FACTS), "only"
    whole = mapping(tree).get("model")
    held = tensors(whole) if isinstance(whole, dict) else tensors(tree)
    assert held is not None
    named = _unet(held)
    assert named is not None
    if isinstance(whole, dict):
        average = "raw"
        if weights == "ema":
            all_averaged = mapping(tree).get("ema")
            averaged = {
                key.removeprefix(AVERAGED): value
                for key, value in mapping(all_averaged).items()
                if key.startswith(AVERAGED) and isinstance(value, Tensor)
            }
            found = _unet(averaged)
            if found is None or set(found) != set(named):
                raise CheckpointError("the file has no averaged weights (ema, ema_model): weights='raw' takes the others")
            named, average = found, "ema"
    betas = held.get("betas")  # the process is no weight: of the network, whatever an average has made of it
    options = _structure(named, facts)
    if betas is not None:
        facts.find("steps", len(betas))
        facts.find("schedule", _schedule_of(betas))
        objective = _objective_of(betas, held.get("loss_weight"))
        if objective is not None:
            facts.find("objective", objective)
    facts.need("size", "auto_normalize", "objective", "schedule", "steps")
    sde = _process(facts, betas)
    size, channels = facts.whole("size"), facts["channels"]
    options |= {"clock_scale": 1.0, "clock_shift": 0.0, "dropout": float(facts.get("dropout", 0.0))}
    out = named["final_conv.weight"].shape[0]
    network = _filled(named, (channels, size, size), out, options)
    settings = {"prediction": OBJECTIVES[facts.choose("objective", tuple(OBJECTIVES))], "clock": "index"}
    if facts["learn_sigma"]:
        settings["variance"] = "learned_range"
    lowest = -1 if facts.choose("auto_normalize", (True, False)) else 0
    return Imported(network, sde, settings, facts, average, LICENCE, lowest)


def _structure(named: Weights, facts: Facts) -> dict[str, Any]:
    """The options of a `LucidUNet` that the weights say."""
    if "time_mlp.0.weights" in named or "mid_attn.to_qkv.weight" not in named:
        raise CheckpointError("its Unet is of another version or kind: learned sinusoids, other conditions, or norms of before 2023")
    levels = 1 + max(int(found[1]) for key in named if (found := re.match(r"downs\.(\d+)\.", key)))
    enter, out = named["init_conv.weight"], named["final_conv.weight"].shape[0]
    first, width = enter.shape[0], named["time_mlp.1.weight"].shape[1]
    below = [named[f"downs.{level}.3.{'weight' if level == levels - 1 else '1.weight'}"].shape[0] for level in range(levels)]
    if first != width or any(n % width for n in below):
        raise CheckpointError(f"its levels have {first} and {below} channels, no multiples of the {width} of its clock")
    memories = [named[f"{place}.mem_kv"] for place in (*(f"downs.{level}.2" for level in range(levels)), "mid_attn")]
    full = [f"downs.{level}.2.to_out.weight" in named for level in range(levels)] + [True]
    forms = {tuple(m.shape[1:] if whole else (m.shape[1], m.shape[3], m.shape[2])) for m, whole in zip(memories, full, strict=True)}
    if len(forms) > 1:
        raise CheckpointError(f"its attentions have several numbers of heads, memories and channels: {sorted(forms)}")
    heads, memory, head_channels = forms.pop()
    channels = enter.shape[1]
    if out not in (channels, 2 * channels):  # it is told its own estimate of x_0 beside the state: that of zeros is what is asked here
        if channels % 2 or out not in (channels // 2, channels):
            raise CheckpointError(f"it has {out} outputs for {channels} inputs")
        channels //= 2
    facts.find("self_condition", channels != enter.shape[1])
    facts.find("channels", channels)
    facts.find("learn_sigma", out == 2 * channels)
    facts.find("width", width)
    facts.find("multipliers", [n // width for n in below])
    facts.find("attention_levels", [level for level in range(levels) if full[level]])
    for name, value in (("heads", heads), ("head_channels", head_channels), ("memory", memory)):
        facts.find(name, value)
    shared = {name: facts[name] for name in ("width", "multipliers", "heads", "head_channels", "memory")}
    return shared | {"attention": facts["attention_levels"]}


def _sigmoid_betas(steps: int, start: float = -3.0, end: float = 3.0) -> Tensor:
    """The library's schedule "sigmoid" (Jabri et al. 2022, arXiv:2212.11972, figure 8): abar falls along a sigmoid from 1 to 0."""
    u = torch.arange(steps + 1, dtype=torch.float64) / steps
    low, high = torch.tensor([start, end]).sigmoid().double()  # of which the library takes the sigmoids in float32
    abar = (high - torch.sigmoid(start + u * (end - start))) / (high - low)
    abar = abar / abar[0]
    return (1 - abar[1:] / abar[:-1]).clamp(0, 0.999)


def _schedules(steps: int) -> dict[str, SDE]:
    return {
        "linear": make_sde("ddpm", betas="linear", steps=steps, beta_start=0.1 / steps, beta_end=20.0 / steps),
        "cosine": make_sde("ddpm", betas="cosine", steps=steps),
        "sigmoid": make_sde("ddpm", betas=_sigmoid_betas(steps).tolist()),
    }


def _schedule_of(betas: Tensor) -> str:
    """The schedule's name, or "betas" where it is none of the library's own."""
    for name, sde in _schedules(len(betas)).items():
        alpha = sde.points.alpha  # type: ignore[attr-defined]
        if torch.allclose(1 - (alpha / torch.cat([alpha.new_ones(1), alpha[:-1]])) ** 2, betas.double(), rtol=CLOSE, atol=1e-7):
            return name
    return "betas"


def _process(facts: Facts, betas: Tensor | None) -> SDE:
    known = _schedules(facts.whole("steps"))
    if facts["schedule"] == "betas" and betas is not None:
        return make_sde("ddpm", betas=betas.double().tolist())
    return known[facts.choose("schedule", tuple(known))]


def _objective_of(betas: Tensor, weight: Tensor | None) -> str | None:
    """What the network predicts, as the weights of its loss say; None where they say nothing.

    They are the signal-to-noise ratio r or its minimum with a number (Hang et al. 2023, arXiv:2303.09556): for pred_x0 as it is, for
    pred_noise over r, for pred_v over r + 1.
    """
    if weight is None:
        return None
    abar = torch.cumprod(1 - betas.double(), 0)
    snr = abar / (1 - abar)
    fits = []
    for name, factor in (("pred_noise", snr), ("pred_x0", torch.ones_like(snr)), ("pred_v", snr + 1)):
        clipped = weight.double() * factor
        if torch.allclose(torch.minimum(snr, clipped.max()), clipped, rtol=1e-2, atol=1e-6):
            fits.append(name)
    return fits[0] if len(fits) == 1 else None


def _filled(named: Weights, shape: tuple[int, ...], out: int, options: dict[str, Any]) -> LucidUNet:
    with torch.device("meta"):  # nothing is allocated before the file is known to hold as much
        network = make_network("lucid", shape, None, out, **options)
    assert isinstance(network, LucidUNet)
    names = {module: name for name, module in network.named_modules()}
    state: dict[str, Tensor] = {}
    used: set[str] = set()

    def take(name: str) -> Tensor:
        if name not in named:
            raise CheckpointError(f"the file lacks {name!r}")
        used.add(name)
        return named[name]

    def layer(module: nn.Module, name: str) -> None:
        for key, _ in module.named_parameters():
            state[f"{names[module]}.{key}"] = take(f"{name}.{'g' if key == 'factor' else key}")

    def block(module: Block, name: str) -> None:
        layer(module.modulation, f"{name}.mlp.1")
        for ours, theirs in (("conv1", "block1.proj"), ("norm1", "block1.norm"), ("conv2", "block2.proj"), ("norm2", "block2.norm")):
            layer(getattr(module, ours), f"{name}.{theirs}")
        if not isinstance(module.shortcut, nn.Identity):
            layer(module.shortcut, f"{name}.res_conv")

    def attention(module: MemoryAttention, name: str) -> None:
        layer(module.norm, f"{name}.norm")
        layer(module.qkv, f"{name}.to_qkv")
        layer(module.mix, f"{name}.to_out.0" if module.linear else f"{name}.to_out")
        if module.linear:
            layer(module.norm_out, f"{name}.to_out.1")
        memory = take(f"{name}.mem_kv")
        state[f"{names[module]}.memory"] = memory.transpose(2, 3) if module.linear else memory

    def stage(modules: nn.Module, name: str) -> None:
        for number, module in enumerate(modules.children()):
            put = attention if isinstance(module, MemoryAttention) else block
            put(module, f"{name}.{number}")  # type: ignore[arg-type]

    layer(network.embedding.linear1, "time_mlp.1")
    layer(network.embedding.linear2, "time_mlp.3")
    layer(network.enter, "init_conv")
    last = len(options["multipliers"]) - 1
    for level in range(last + 1):
        stage(network.encoder[level], f"downs.{level}")
        layer(network.down[level], f"downs.{level}.3" if level == last else f"downs.{level}.3.1")
        stage(network.decoder[level], f"ups.{last - level}")
        layer(network.up[level], f"ups.{last - level}.3" if level == 0 else f"ups.{last - level}.3.1")
    one, middle, two = network.middle
    assert isinstance(one, Block) and isinstance(middle, MemoryAttention) and isinstance(two, Block)
    block(one, "mid_block1")
    attention(middle, "mid_attn")
    block(two, "mid_block2")
    one, leave = network.leave
    assert isinstance(one, Block)
    block(one, "final_res_block")
    layer(leave, "final_conv")
    enter = state["enter.weight"]
    state["enter.weight"] = enter[:, enter.shape[1] - shape[0] :]
    if left := sorted(set(named) - used):
        raise CheckpointError(f"the file has {len(left)} tensors that this network has not, as {left[0]!r}")
    for name, value in network.state_dict().items():
        if name not in state or state[name].numel() != value.numel():
            raise CheckpointError(
                f"{name} should be {tuple(value.shape)}, the file has {tuple(state[name].shape) if name in state else None}"
            )
    filled = {name: state[name].float().reshape(value.shape) for name, value in network.state_dict().items()}
    network = make_network("lucid", shape, None, out, **options)
    assert isinstance(network, LucidUNet)
    network.load_state_dict(filled)
    return network
