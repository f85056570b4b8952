"""Networks of EDM (Karras et al. 2022): its pickles, read inertly, and state dicts of its preconditioned networks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..conditions import Label
from ..errors import CheckpointError
from ..networks.adm import ADMUNet
from ..networks.resampled_blocks import Attention, Stage
from ..networks.song import SongUNet
from ..pickles import Record
from ..sdes import SDE, make_sde
from ..tensor_files import state_of
from .facts import Facts
from .imported import Imported, mapping, tensors
from .weights import Filler, Weights, parts, stripped

FACTS = (
    *("precond", "sigma_data", "sigma_min", "sigma_max", "beta_d", "beta_min", "M", "epsilon_t", "C_2", "dropout", "size", "channels"),
    *("model_type", "width", "multipliers", "blocks", "attention_sizes", "classes", "augment_dim"),
)
LICENCE = (
    "EDM's published weights are under CC BY-NC-SA 4.0: not for commercial use, and what is derived of them under the same licence; "
    "networks that others trained are their own"
)
PRECONDS = ("EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond")
DEFAULTS = {
    "EDMPrecond": {"sigma_data": 0.5},
    "VPPrecond": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5},
    "VEPrecond": {"sigma_min": 0.02, "sigma_max": 100.0},
    "iDDPMPrecond": {"M": 1000, "C_2": 0.008},
}
"""What EDM's classes take where a file names the class and no other value."""
SAMPLED = (0.002, 80.0)
"""The noise between which EDM samples with EDMPrecond (Karras et al. 2022, table 1), which itself has no ends."""
ARGUMENTS = {
    "img_resolution": "size",
    "img_channels": "channels",
    "label_dim": "classes",
    "model_channels": "width",
    "channel_mult": "multipliers",
    "num_blocks": "blocks",
    "attn_resolutions": "attention_sizes",
    **{name: name for name in ("sigma_data", "beta_d", "beta_min", "M", "epsilon_t", "C_2", "dropout", "model_type", "augment_dim")},
}
"""Arguments of EDM's classes that are facts; sigma_min and sigma_max are, but for EDMPrecond, where they are no ends."""
BLOCK = ("norm0", "conv0", "affine", "norm1", "conv1", "skip")
NETWORKS_IN_FILE = ("ema", "net", "model")


def recognise(tree: Any) -> bool:
    if isinstance(tree, dict) and any(isinstance(tree.get(name), Record) for name in NETWORKS_IN_FILE):
        return any(_class_of(tree[name]) in PRECONDS for name in NETWORKS_IN_FILE if isinstance(tree.get(name), Record))
    return _is_state(tree)


def _is_state(tree: Any) -> bool:
    found = tensors(tree)
    return found is not None and any(re.fullmatch(r"(model\.)?map_layer0\.weight", name) for name in found)


def _class_of(record: Record) -> str:
    """The class of an object that was pickled with its source code, or by name."""
    for part in record.arguments if isinstance(record.arguments, tuple) else ():
        if isinstance(mapping(part).get("class_name"), str):
            return str(mapping(part)["class_name"])
    return record.name.rpartition(".")[2]


def _state_of_object(record: Record) -> dict[Any, Any]:
    if isinstance(record.state, dict):
        return record.state
    for part in record.arguments if isinstance(record.arguments, tuple) else ():
        if isinstance(mapping(part).get("state"), dict):
            return dict(mapping(part)["state"])
    return {}


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """`class_name` and `init_kwargs` of EDM's persistent objects, or facts as they are, as facts."""
    if not {"class_name", "init_kwargs"} & set(config):
        return dict(config)
    precond = config.get("class_name")
    found = {name: value for name, value in config.items() if name not in ("class_name", "init_kwargs")}
    if precond is not None:
        found["precond"] = precond
    inside = config.get("init_kwargs", {})
    found |= {ours: inside[theirs] for theirs, ours in ARGUMENTS.items() if theirs in inside}
    if precond == "VEPrecond":
        found |= {name: inside[name] for name in ("sigma_min", "sigma_max") if name in inside}
    if found.get("classes") == 0:
        found["classes"] = None
    return found


def load(tree: Any, given: Mapping[str, Any], weights: str) -> Imported:
    facts = Facts(flat(given), FACTS)
    average = "only"
    if _is_state(tree):
        named = tensors(tree) or {}
    else:
        held = [name for name in NETWORKS_IN_FILE if isinstance(tree.get(name), Record)]
        average = "ema" if weights == "ema" else "raw"
        wanted = "ema" if weights == "ema" else next((name for name in held if name != "ema"), "net")
        if wanted not in held:
            raise CheckpointError(f"the file has no {average} weights; it holds {', '.join(held)}")
        record = tree[wanted]
        named = state_of(record)
        state = _state_of_object(record)
        facts.find("precond", _class_of(record))
        arguments = {**mapping(state.get("_init_kwargs")), **{name: value for name, value in state.items() if name in ARGUMENTS}}
        for name, value in flat({"class_name": _class_of(record), "init_kwargs": arguments}).items():
            if _is_plain(value):
                facts.find(name, value)
    u = named.pop("u", None)  # iDDPM's own levels
    named = stripped(named, "model.")
    facts.need("precond")
    precond = facts.choose("precond", PRECONDS)
    if u is not None and facts.found.get("M", (0, ""))[1] != "file":
        facts.find("M", len(u) - 1)
    for name, value in DEFAULTS[precond].items():
        if not facts.know(name):
            facts.find(name, value, f"{precond}'s own default")
    kind, options = _structure(named, facts)
    sde, settings, clock = _meaning(facts, precond)
    options |= clock | {"dropout": float(facts.get("dropout", 0.0))}
    size, channels, classes = facts["size"], facts["channels"], facts["classes"]
    out = named[_last(named, size)].shape[0]
    if precond == "iDDPMPrecond":
        settings["variance"] = "learned_range"
        if out != 2 * channels:
            raise CheckpointError(f"iDDPMPrecond's network has {out} outputs for {channels} channels; twice as many are expected")
    filler = Filler(kind, (channels, size, size), classes, out, options, named)
    _fill(filler, size)
    ignored = frozenset(name for name in named if name.endswith("resample_filter") or name == "map_augment.weight")
    return Imported(filler.finish(ignored), sde, settings, facts, average, LICENCE)


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool | None) or (isinstance(value, list) and all(isinstance(n, int) for n in value))


def _last(named: Weights, size: int) -> str:
    return "out_conv.weight" if "out_conv.weight" in named else f"dec.{size}x{size}_aux_conv.weight"


def _structure(named: Weights, facts: Facts) -> tuple[str, dict[str, Any]]:
    """The kind of network and its options that the weights say."""
    sizes = sorted({int(found[1]) for name in named if (found := re.match(r"enc\.(\d+)x\d+_", name))}, reverse=True)
    song = any("_aux_norm" in name for name in named)
    size = sizes[0]
    enter = named[f"enc.{size}x{size}_conv.weight"]
    blocks = len({name for name in named if re.fullmatch(rf"enc\.{size}x{size}_block\d+\.conv0\.weight", name)})
    out = [named[f"enc.{n}x{n}_block0.conv0.weight"].shape[0] for n in sizes]
    width, features = enter.shape[0], named["map_layer0.weight"].shape[1]
    attention = [level for level, n in enumerate(sizes) if f"enc.{n}x{n}_block0.qkv.weight" in named]
    if any(channels % width for channels in out) or features % width:
        raise CheckpointError(f"its levels have {out} channels and its clock {features}, no multiples of the {width} of the first layer")
    multipliers = [channels // width for channels in out]
    label = named.get("map_label.weight")
    facts.find("size", size)
    facts.find("channels", enter.shape[1])
    facts.find("classes", None if label is None else label.shape[1])
    facts.find("blocks", blocks)
    facts.find("width", width if song else features)
    facts.find("multipliers", [channels // (width if song else features) for channels in out])
    facts.found.pop("attention_sizes", None)  # EDM names sizes that a network has not
    facts.find("attention_sizes", [sizes[level] for level in attention], "file")
    facts.find("model_type", "SongUNet" if song else "DhariwalUNet")
    options: dict[str, Any] = {
        **{"width": width, "multipliers": multipliers, "blocks": blocks, "attention": attention, "group": 4},
        "noise_multiplier": features // width,
    }
    if not song:
        return "adm", options | {"head_channels": 64, "scale_shift": True, "resampling": "block"}
    filters = [value for name, value in named.items() if name.endswith("_down.conv0.resample_filter")]
    return "song", options | {
        "embedding": "fourier" if "map_noise.freqs" in named else "positional",
        "encoder": next((kind for kind in ("residual", "skip") if any(f"_aux_{kind}" in name for name in named)), "standard"),
        "decoder": "skip" if sum(name.endswith("_aux_norm.weight") for name in named) > 1 else "standard",
        "kernel": _kernel(filters[0]) if filters else [1, 1],
        "rescale": True,
    }


def _kernel(filter_: Tensor) -> list[int]:
    """The whole numbers whose outer product with themselves is this filter, up to a factor."""
    row = filter_.float().flatten(0, -2).sum(0)
    kernel = [round(float(value / row.min())) for value in row]
    back = torch.tensor(kernel, dtype=torch.float32) / sum(kernel)
    if not torch.allclose(torch.outer(back, back), filter_.float().reshape(len(kernel), -1), atol=1e-6):
        raise CheckpointError(f"its maps are resampled by {row.tolist()}, no filter of whole numbers")
    return kernel


def _meaning(facts: Facts, precond: str) -> tuple[SDE, dict[str, Any], dict[str, float]]:
    """The process, what the output means, and the network's clock."""
    if precond == "EDMPrecond":
        for name, value in zip(("sigma_min", "sigma_max"), SAMPLED, strict=True):
            if not facts.know(name):
                facts.find(name, value, "EDM's sampler")
        sde = make_sde("ve", sigma_min=facts.number("sigma_min"), sigma_max=facts.number("sigma_max"))
        settings = {"prediction": "edm", "clock": "c_noise", "data_std": facts.number("sigma_data")}
        return sde, settings, {"clock_scale": 1.0, "clock_shift": 0.0}
    if precond == "VEPrecond":
        sde = make_sde("ve", sigma_min=facts.number("sigma_min"), sigma_max=facts.number("sigma_max"))
        return sde, {"prediction": "scaled_score", "clock": "half_log_snr"}, {"clock_scale": -1.0, "clock_shift": -math.log(2)}
    if precond == "VPPrecond":
        low, slope, first = (facts.number(name) for name in ("beta_min", "beta_d", "epsilon_t"))
        least = math.sqrt(math.expm1(0.5 * slope * first**2 + low * first))
        sde = make_sde("vp", beta_min=low, beta_max=low + slope, lambda_max=-math.log(least))
        return sde, {"prediction": "noise", "clock": "time"}, {"clock_scale": facts.whole("M") - 1.0, "clock_shift": 0.0}
    sde = make_sde("ddpm", betas="cosine", steps=facts.whole("M"), s=facts.number("C_2"))
    return sde, {"prediction": "noise", "clock": "index"}, {"clock_scale": 1.0, "clock_shift": 0.0}


def _fill(filler: Filler, size: int) -> None:
    network = filler.network
    assert isinstance(network, SongUNet | ADMUNet)
    embedding = network.embedding
    filler.layer(embedding.linear1, "map_layer0")
    filler.layer(embedding.linear2, "map_layer1")
    if "map_noise.freqs" in filler.weights:
        filler.put(embedding.level, "frequencies", filler.take("map_noise.freqs"))
    label = network.encoders.get("label")
    if isinstance(label, Label):
        table = filler.take("map_label.weight").float().T
        null = torch.zeros_like(table[:1])
        if isinstance(network, SongUNet):  # which gives its labels the length of their number's root, and adds a bias
            bias = filler.take("map_label.bias").float()
            table, null = table * math.sqrt(len(table)) + bias, null + bias
        filler.put(label.table, "weight", torch.cat([table, null]))
    for role, level, number, module in parts(network):
        room = "enc" if role in ("enter", "down", "side", "encode") else "dec"
        name = f"{room}.{size >> level}x{size >> level}_"
        if isinstance(module, Stage):
            name += {"encode": f"block{number}", "decode": f"block{number}", "middle": f"in{number}"}.get(role, role)
            filler.block(module.block, f"{name}.", BLOCK)
            if isinstance(module.attention, Attention):
                filler.attention(module.attention, f"{name}.", ("norm2", "qkv", "proj"), "edm")
        elif role == "enter":
            filler.plain(module, f"{name}conv")
        elif role == "side":
            filler.plain(module, f"{name}aux_{network.side_in}")
        else:
            norm, conv = module.children()
            song = isinstance(network, SongUNet)
            filler.layer(norm, f"{name}aux_norm" if song else "out_norm")
            filler.layer(conv, f"{name}aux_conv" if song else "out_conv")
