"""Checkpoints of score_sde_pytorch (Song et al. 2021, Apache-2.0): NCSN++, DDPM++ and DDPM."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..networks.resampled_blocks import Attention, ResidualBlock, Stage
from ..networks.song import SongUNet
from ..sdes import SDE, make_sde
from .facts import Facts
from .imported import Imported, mapping, tensors
from .weights import BLOCK, Filler, Part, Weights, parts, stripped

FACTS = (
    *("size", "sde", "continuous", "centered", "scale_by_sigma", "skip_rescale", "fir", "beta_min", "beta_max", "sigma_min", "sigma_max"),
    *("steps", "dropout", "width", "multipliers", "blocks", "attention_sizes", "embedding", "channels"),
)
LICENCE = "score_sde_pytorch and its published weights are under the Apache License 2.0"
NESTED = {
    "data": {"image_size": "size", "centered": "centered", "num_channels": "channels"},
    "training": {"sde": "sde", "continuous": "continuous"},
    "model": {
        **{name: name for name in ("scale_by_sigma", "skip_rescale", "fir", "beta_min", "beta_max", "sigma_min", "sigma_max", "dropout")},
        **{"nf": "width", "ch_mult": "multipliers", "num_res_blocks": "blocks", "attn_resolutions": "attention_sizes"},
        **{"num_scales": "steps", "embedding_type": "embedding"},
    },
}
"""Where the library's own configuration has the facts."""
ONLY = {"nonlinearity": "swish", "normalization": "GroupNorm", "progressive_combine": "sum", "conditional": True, "resamp_with_conv": True}
"""Settings of its configuration that have one value in all that it published, and no other here."""


def recognise(tree: Any) -> bool:
    model = tensors(mapping(tree).get("model")) or tensors(tree)
    return model is not None and any(name.removeprefix("module.").startswith("all_modules.0.") for name in model)


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The library's nested configuration, or facts as they are, as facts."""
    if not set(config) & set(NESTED):
        return dict(config)
    found = {name: value for name, value in config.items() if name not in NESTED}
    for room, names in NESTED.items():
        inside = config.get(room, {})
        found |= {ours: inside[theirs] for theirs, ours in names.items() if theirs in inside}
        for name, value in ONLY.items():
            if inside.get(name, value) != value:
                raise ValueError(f"config says {name} = {inside[name]!r}; this format is read with {value!r} alone")
    if isinstance(found.get("sde"), str):
        found["sde"] = found["sde"].removesuffix("sde")
    if config.get("model", {}).get("name") == "ddpm":  # which knows none of these
        found = {name: value for name, value in found.items() if name not in ("skip_rescale", "fir", "embedding")}
    return found


def load(tree: Any, given: Mapping[str, Any], weights: str) -> Imported:
    facts = Facts(flat(given), FACTS)
    model = tensors(mapping(tree).get("model")) or tensors(tree)
    assert model is not None
    named = stripped(model, "module.")
    average = "raw"
    shadow = mapping(mapping(tree).get("ema")).get("shadow_params")
    if weights == "ema":
        if not isinstance(shadow, list):
            raise CheckpointError("the file has no averaged weights (ema, shadow_params): weights='raw' takes the others")
        named, average = named | _averaged(named, shadow), "ema"
    sigmas = named.pop("sigmas", None)
    if sigmas is not None and sigmas.ndim == 1 and len(sigmas) > 1:
        facts.find("steps", len(sigmas))
        facts.find("sigma_max", float(sigmas[0]))
        facts.find("sigma_min", float(sigmas[-1]))
    layers = _layers(named)
    options = _structure(layers, facts)
    plain = options["resampling"] == "conv"  # the class DDPM
    facts.need("size", "sde", "continuous", "centered", *(() if plain else ("skip_rescale", "fir")))
    process = facts.choose("sde", ("ve", "vp", "subvp"))
    for name in ("continuous", "centered", *(() if plain else ("skip_rescale", "fir"))):
        facts.choose(name, (True, False))
    sde, settings, clock = _meaning(facts, process)
    if not plain:
        options |= {"rescale": facts["skip_rescale"], "kernel": [1, 3, 3, 1] if facts["fir"] else [1, 1]}
    options |= clock | {"dropout": float(facts.get("dropout", 0.0))}
    size = facts.whole("size")
    if size % 2 ** (len(options["multipliers"]) - 1):
        raise ValueError(f"config says size = {size}, which this network of {len(options['multipliers'])} levels cannot halve")
    facts.find("attention_sizes", [size >> level for level in options["attention"]])
    channels = facts["channels"]
    filler = Filler("song", (channels, size, size), None, channels, options, named)
    _fill(filler, layers)
    return Imported(filler.finish(), sde, settings, facts, average, LICENCE)


def _averaged(named: Weights, shadow: list[Any]) -> dict[str, Tensor]:
    """The unnamed list of averages under the names that they belong to: the order of named_parameters(), without what has no gradient."""
    names = [name for name in named if name not in ("sigmas", "all_modules.0.W")]
    if len(names) != len(shadow):
        raise CheckpointError(f"the file averages {len(shadow)} tensors, but its network has {len(names)} that are trained")
    for name, value in zip(names, shadow, strict=True):
        if not isinstance(value, Tensor) or value.shape != named[name].shape:
            raise CheckpointError(f"the average of {name!r} is {tuple(getattr(value, 'shape', ()))}, not {tuple(named[name].shape)}")
    return dict(zip(names, shadow, strict=True))


def _layers(named: Weights) -> list[dict[str, Tensor]]:
    """The layers all_modules.0, 1, ... as dicts of their own tensors."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, value in named.items():
        room, _, rest = name.partition(".")
        number, _, key = rest.partition(".")
        if room != "all_modules" or not number.isdecimal():
            raise CheckpointError(f"the file has a tensor {name!r}, which no network of score_sde has")
        found.setdefault(int(number), {})[key] = value
    return [found[k] for k in sorted(found)]


def _kind(layer: Mapping[str, Tensor]) -> str:
    if "W" in layer:
        return "fourier"
    if "NIN_3.W" in layer:
        return "attention"
    if "Dense_0.weight" in layer:
        out, channels = layer["Conv_0.weight"].shape[:2]
        return "resampled" if out == channels and "Conv_2.weight" in layer else "block"
    if "Conv2d_0.weight" in layer:
        return "residual"
    if "Conv_0.weight" in layer:
        return "skip" if layer["Conv_0.weight"].shape[-1] == 1 else "strided"
    weight = layer["weight"]
    return {1: "norm", 2: "linear", 4: "conv"}[weight.ndim]


def _structure(layers: list[dict[str, Tensor]], facts: Facts) -> dict[str, Any]:
    """The options of a `SongUNet` that the weights say."""
    kinds = [_kind(layer) for layer in layers]
    fourier = kinds[0] == "fourier"
    start = 3 if fourier else 2
    enter = layers[start]["weight"]
    width = enter.shape[0]
    rest, shapes = kinds[start + 1 :], layers[start + 1 :]
    halving = [k for k, kind in enumerate(rest) if kind in ("resampled", "strided")]
    levels = len(halving) // 2 + 1
    downs = halving[: levels - 1]
    borders = [-1, *downs]
    blocks = (rest[: downs[0]] if downs else rest).count("block")
    if not downs:
        blocks = (blocks - 3) // 2
    multipliers, attention = [], []
    for level, border in enumerate(borders):
        first = next(k for k in range(border + 1, len(rest)) if rest[k] == "block")
        out = shapes[first]["Conv_0.weight"].shape[0]
        if out % width:
            raise CheckpointError(f"a level has {out} channels, no multiple of the {width} of the first")
        multipliers.append(out // width)
        if rest[first + 1] == "attention":
            attention.append(level)
    side = {"residual", "skip"} & set(rest)
    conv = "strided" in rest
    facts.find("width", width)
    facts.find("multipliers", multipliers)
    facts.find("blocks", blocks)
    facts.find("channels", enter.shape[1])
    if not conv:
        facts.find("embedding", "fourier" if fourier else "positional")
    else:
        facts.found.pop("embedding", None)
    if "residual" in side:
        facts.find("fir", True)
    return {
        "width": width,
        "multipliers": multipliers,
        "blocks": blocks,
        "attention": attention,
        "embedding": "fourier" if fourier else "positional",
        "noise_multiplier": 2 if fourier else 1,
        "encoder": side.pop() if side else "standard",
        "decoder": "skip" if rest.count("norm") > 1 else "standard",
        "resampling": "conv" if conv else "block",
        "rescale": not conv,
        "group": 1 if conv else 4,
    }


def _meaning(facts: Facts, process: str) -> tuple[SDE, dict[str, Any], dict[str, float]]:
    """The process in units of -1 .. 1, what the output means, and the network's clock."""
    continuous, centered = facts["continuous"], facts["centered"]
    if process == "ve":
        facts.need("scale_by_sigma", "sigma_min", "sigma_max", *(() if continuous else ("steps",)))
        if continuous and facts.get("embedding") != "fourier":
            raise ValueError("config says continuous = True and sde = 've': score_sde trains that with the embedding 'fourier' alone")
        if not facts.choose("scale_by_sigma", (True, False)):
            raise ValueError("config says scale_by_sigma = False: score_sde trains sde = 've' with True alone")
        # The network doubles data in 0 .. 1 and takes 1 away itself; in these units so is the noise, and the network gets what it makes.
        unit = 1.0 if centered else 2.0
        sde = make_sde("ve", sigma_min=unit * facts.number("sigma_min"), sigma_max=unit * facts.number("sigma_max"))
        if continuous:
            return sde, {"prediction": "scaled_score", "clock": "half_log_snr"}, {"clock_scale": -1.0, "clock_shift": -math.log(unit)}
        last = facts.whole("steps") - 1
        return sde, {"prediction": "scaled_score", "clock": "time"}, {"clock_scale": -float(last), "clock_shift": float(last)}
    facts.need("beta_min", "beta_max", *(() if continuous else ("steps",)))
    if not centered:
        raise ValueError(f"config says centered = False and sde = {process!r}: score_sde trains that on data in -1 .. 1 alone")
    if facts.get("scale_by_sigma"):
        raise ValueError(f"config says scale_by_sigma = True and sde = {process!r}: its output is the noise, undivided")
    if facts.get("embedding") == "fourier":
        raise ValueError(f"the file has the embedding 'fourier', whose clock for sde = {process!r} score_sde does not say")
    low, high = facts.number("beta_min"), facts.number("beta_max")
    if continuous or process == "subvp":
        sde = make_sde(process, beta_min=low, beta_max=high)
        return sde, {"prediction": "noise", "clock": "time"}, {"clock_scale": 999.0, "clock_shift": 0.0}
    steps = facts.whole("steps")
    sde = make_sde("ddpm", betas="linear", steps=steps, beta_start=low / steps, beta_end=high / steps)
    return sde, {"prediction": "noise", "clock": "index"}, {"clock_scale": 1.0, "clock_shift": 0.0}


class _Sequence:
    """The layers one after the other, as our network comes to them."""

    def __init__(self, filler: Filler, layers: list[dict[str, Tensor]]) -> None:
        self.filler, self.layers, self.number = filler, layers, 0

    def next(self, *kinds: str) -> str:
        if self.number >= len(self.layers):
            raise CheckpointError(f"the file ends where a layer of kind {kinds[0]!r} is expected")
        found = _kind(self.layers[self.number])
        if found not in kinds:
            raise CheckpointError(f"all_modules.{self.number} is of kind {found!r}, where {kinds[0]!r} is expected")
        self.number += 1
        return f"all_modules.{self.number - 1}."


def _fill(filler: Filler, layers: list[dict[str, Tensor]]) -> None:
    network, sequence = filler.network, _Sequence(filler, layers)
    assert isinstance(network, SongUNet)
    if network.options["embedding"] == "fourier":
        filler.put(network.embedding.level, "frequencies", filler.take(f"{sequence.next('fourier')}W"))
    for linear in (network.embedding.linear1, network.embedding.linear2):
        filler.layer(linear, sequence.next("linear").rstrip("."))
    for part in parts(network):
        _part(filler, sequence, part)


def _part(filler: Filler, sequence: _Sequence, part: Part) -> None:
    module = part.module
    if isinstance(module, Stage):
        _block(filler, module.block, sequence.next("resampled" if part.role in ("down", "up") else "block"))
        if isinstance(module.attention, Attention):
            _attention(filler, module.attention, sequence.next("attention"))
    elif part.role == "leave":
        norm, conv = module.children()
        filler.layer(norm, sequence.next("norm").rstrip("."))
        filler.layer(conv, sequence.next("conv").rstrip("."))
    elif part.role == "side":
        residual = filler.network.side_in == "residual"
        filler.plain(module, f"{sequence.next('residual')}Conv2d_0" if residual else f"{sequence.next('skip')}Conv_0")
    elif part.role == "enter":
        filler.plain(module, sequence.next("conv").rstrip("."))
    else:
        filler.plain(module, f"{sequence.next('strided')}Conv_0")


def _block(filler: Filler, block: ResidualBlock, name: str) -> None:
    for ours, theirs in zip(BLOCK, ("GroupNorm_0", "Conv_0", "Dense_0", "GroupNorm_1", "Conv_1", "Conv_2"), strict=True):
        layer = getattr(block, ours)
        if ours == "shortcut" and f"{name}NIN_0.W" in filler.weights:
            filler.put(layer, "weight", filler.take(f"{name}NIN_0.W").T[:, :, None, None])
            filler.put(layer, "bias", filler.take(f"{name}NIN_0.b"))
        elif not isinstance(layer, nn.Identity):
            filler.layer(layer, f"{name}{theirs}")


def _attention(filler: Filler, attention: Attention, name: str) -> None:
    filler.layer(attention.norm, f"{name}GroupNorm_0")
    filler.put(attention.qkv, "weight", torch.cat([filler.take(f"{name}NIN_{k}.W").T for k in range(3)]))
    filler.put(attention.qkv, "bias", torch.cat([filler.take(f"{name}NIN_{k}.b") for k in range(3)]))
    filler.put(attention.mix, "weight", filler.take(f"{name}NIN_3.W").T)
    filler.put(attention.mix, "bias", filler.take(f"{name}NIN_3.b"))
