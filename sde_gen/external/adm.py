"""Checkpoints of guided-diffusion (ADM), improved-diffusion and consistency_models' EDM: bare state dicts of their UNetModel (MIT)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from ..conditions import Label
from ..errors import CheckpointError
from ..networks.adm import ADMUNet
from ..networks.resampled_blocks import Attention, ResampledConv, Stage
from ..sdes import SDE, make_sde
from .facts import Facts
from .imported import Imported, tensors
from .weights import Filler, Weights, parts, stripped

FACTS = (
    *("size", "schedule", "steps", "prediction", "heads", "head_channels", "attention_order", "rescale_timesteps", "dropout"),
    *("width", "multipliers", "blocks", "attention_sizes", "classes", "channels", "learn_sigma", "scale_shift", "resblock_updown"),
    *("sigma_data", "sigma_min", "sigma_max", "training_mode"),
)
LICENCE = "guided-diffusion, improved-diffusion and consistency_models and their published weights are under the MIT licence"
BLOCK = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")
FLAGS = {
    "image_size": "size",
    "num_channels": "width",
    "model_channels": "width",
    "num_res_blocks": "blocks",
    "num_heads": "heads",
    "num_head_channels": "head_channels",
    "noise_schedule": "schedule",
    "diffusion_steps": "steps",
    "use_scale_shift_norm": "scale_shift",
    "rescale_timesteps": "rescale_timesteps",
    "learn_sigma": "learn_sigma",
    "resblock_updown": "resblock_updown",
    "dropout": "dropout",
    "in_channels": "channels",
    "num_classes": "classes",
    "channel_mult": "multipliers",
    "sigma_min": "sigma_min",
    "sigma_max": "sigma_max",
    "training_mode": "training_mode",
}
"""The library's own flags and arguments that are facts; `predict_xstart`, `use_new_attention_order` and num_head_channels -1 say more."""
OTHERS = {
    "attention_resolutions",
    "out_channels",
    "class_cond",
    "use_fp16",
    "parameters",
    "timestep_respacing",
    "use_kl",
    "weight_schedule",
}


def recognise(tree: Any) -> bool:
    found = tensors(tree)
    return found is not None and {"time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight"} <= set(stripped(found, "module."))


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The library's flags, or facts as they are, as facts."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if name == "use_new_attention_order":
            found["attention_order"] = "new" if value else "legacy"
        elif name == "predict_xstart":
            found["prediction"] = "data" if value else "noise"
        elif name == "training_mode" and value == "edm":
            found |= {"prediction": "edm", "attention_order": "new"}  # whose attention has no other
        elif name == "num_head_channels" and value == -1:
            continue
        elif name in FLAGS:
            found[FLAGS[name]] = list(value) if isinstance(value, tuple) else value
        elif name not in OTHERS:
            found[name] = value
    return found


def load(tree: Any, given: Mapping[str, Any], weights: str) -> Imported:
    facts = Facts(flat(given), FACTS)
    named = stripped(tensors(tree) or {}, "module.")
    options = _structure(named, facts)
    heads = "head_channels" if facts.know("head_channels") else "heads"
    facts.need("size", "prediction", heads, "attention_order")
    order, size = facts.choose("attention_order", ("legacy", "new")), facts.whole("size")
    channels, out = facts["channels"], named["out.2.weight"].shape[0]
    sde, settings, clock = _meaning(facts)
    options |= clock | {"dropout": float(facts.get("dropout", 0.0)), heads: facts.whole(heads)}
    if facts["learn_sigma"]:
        settings["variance"] = "learned_range"
    facts.found.pop("attention_sizes", None)
    facts.find("attention_sizes", [size >> level for level in options["attention"]])
    filler = Filler("adm", (channels, size, size), facts["classes"], out, options, named)
    _fill(filler, order)
    return Imported(filler.finish(), sde, settings, facts, "only", LICENCE)


def _meaning(facts: Facts) -> tuple[SDE, dict[str, Any], dict[str, float]]:
    """The process, what the output means, and the network's clock."""
    if facts.know("training_mode"):
        raise ValueError(
            f"config says training_mode = {facts['training_mode']!r}: of consistency_models only 'edm' is read; a consistency model gives "
            "the start of the flow that leads to a state and not the mean of the data, of which no score, likelihood or guidance follows"
        )
    prediction = facts.choose("prediction", ("noise", "data", "edm"))
    if prediction == "edm":  # consistency_models' teachers: EDM's form on this network, which is told 250 log sigma
        facts.need("sigma_data", "sigma_min", "sigma_max")
        sde = make_sde("ve", sigma_min=facts.number("sigma_min"), sigma_max=facts.number("sigma_max"))
        settings = {"prediction": "edm", "clock": "c_noise", "data_std": facts.number("sigma_data")}
        return sde, settings, {"clock_scale": 1000.0, "clock_shift": 0.0}
    facts.need("schedule", "steps", "rescale_timesteps")
    schedule, steps = facts.choose("schedule", ("linear", "cosine")), facts.whole("steps")
    # the library's linear betas keep the noise of the chain's end whatever the number of steps
    ends = {"beta_start": 0.1 / steps, "beta_end": 20.0 / steps} if schedule == "linear" else {}
    scale = 1000.0 / steps if facts.choose("rescale_timesteps", (True, False)) else 1.0
    chain = make_sde("ddpm", betas=schedule, steps=steps, **ends)
    return chain, {"prediction": prediction, "clock": "index"}, {"clock_scale": scale, "clock_shift": 0.0}


def _structure(named: Weights, facts: Facts) -> dict[str, Any]:
    """The options of an `ADMUNet` that the weights say."""
    into, out_of = (
        1 + max(int(name.split(".")[1]) for name in named if name.startswith(f"{room}_blocks.")) for room in ("input", "output")
    )
    ups = {name.split(".")[1] for name in named if re.fullmatch(r"output_blocks\.\d+\.[12]\.(conv|in_layers\.2)\.weight", name)}
    levels = len(ups) + 1
    blocks, rest = divmod(into - levels, levels)
    if rest or out_of != levels * (blocks + 1) or blocks < 1:
        raise CheckpointError(f"it has {into} blocks on the way down and {out_of} on the way up, which {levels} levels do not explain")
    firsts = [1 + level * (blocks + 1) for level in range(levels)]
    enter = named["input_blocks.0.0.weight"]
    width, features = enter.shape[0], named["time_embed.0.weight"].shape[1]
    channels = [named[f"input_blocks.{k}.0.in_layers.2.weight"].shape[0] for k in firsts]
    if any(n % width for n in channels) or features % width:
        raise CheckpointError(
            f"its levels have {channels} channels and its clock {features}, no multiples of the {width} of the first layer"
        )
    conv = any(re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight", name) for name in named)
    modulation = named["middle_block.0.emb_layers.1.weight"].shape[0] // channels[-1]
    out = named["out.2.weight"].shape[0]
    if out not in (enter.shape[1], 2 * enter.shape[1]):
        raise CheckpointError(
            f"it has {out} outputs for {enter.shape[1]} inputs: an upsampler or another network that is no plain denoiser"
        )
    label = named.get("label_emb.weight")
    facts.find("width", features)
    facts.find("multipliers", [n / features if n % features else n // features for n in channels])
    facts.find("blocks", blocks)
    facts.find("channels", enter.shape[1])
    facts.find("classes", None if label is None else label.shape[0])
    facts.find("learn_sigma", out != enter.shape[1])
    facts.find("scale_shift", modulation == 2)
    if levels > 1:
        facts.find("resblock_updown", not conv)
    return {
        "width": width,
        "multipliers": [n // width for n in channels],
        "blocks": blocks,
        "attention": [level for level, k in enumerate(firsts) if f"input_blocks.{k}.1.qkv.weight" in named],
        "noise_multiplier": features // width,
        "scale_shift": modulation == 2,
        "resampling": "conv" if conv else "block",
        "group": 1,
        "null": False,
    }


def _fill(filler: Filler, order: str) -> None:
    network = filler.network
    assert isinstance(network, ADMUNet)
    filler.layer(network.embedding.linear1, "time_embed.0")
    filler.layer(network.embedding.linear2, "time_embed.2")
    label = network.encoders.get("label")
    if isinstance(label, Label):  # its last row, of no label, is one that nothing was learned about
        table = filler.take("label_emb.weight")
        filler.put(label.table, "weight", torch.cat([table, torch.zeros_like(table[:1])]))
    blocks, last = network.options["blocks"], len(network.encoder) - 1
    for role, level, number, module in parts(network):
        into, out_of = level * (blocks + 1), (last - level) * (blocks + 1)
        if role == "leave":
            norm, conv = module.children()
            filler.layer(norm, "out.0")
            filler.layer(conv, "out.2")
            continue
        # A block's place in its room, and in that the attention's. What doubles a level is kept behind the last block of the one below.
        room, place, second = {
            "enter": (f"input_blocks.{into}", 0, 0),
            "down": (f"input_blocks.{into}", 0, 0),
            "encode": (f"input_blocks.{into + 1 + number}", 0, 1),
            "middle": ("middle_block", 2 * number, 1),
            "up": (f"output_blocks.{out_of - 1}", 1, 0),
            "decode": (f"output_blocks.{out_of + number}", 0, 1),
        }[role]
        if role == "up" and level + 1 in network.options["attention"]:
            place = 2
        name = f"{room}.{place}"
        if isinstance(module, Stage):
            filler.block(module.block, f"{name}.", BLOCK)
            if isinstance(module.attention, Attention):
                filler.attention(module.attention, f"{room}.{second}.", ("norm", "qkv", "proj_out"), order)
        elif isinstance(module, ResampledConv):
            filler.plain(module, f"{name}.{'conv' if module.up else 'op'}")
        else:
            filler.plain(module, name)
