"""diffusers' UNet2DModel and our `unet2d`: one's configuration and weights as the other's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..conditions import Label
from ..errors import CheckpointError
from ..networks import make_network
from ..networks.adm import ADMUNet
from ..networks.resampled import ResampledUNet
from ..networks.resampled_blocks import Attention, GroupNorm, ResampledConv, Stage
from ..networks.unet2d import UNet2D
from .weights import BLOCK, Filler, Weights, parts

THEIR_BLOCK = ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut")
DOWN, UP = ("DownBlock2D", "ResnetDownsampleBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "ResnetUpsampleBlock2D", "AttnUpBlock2D")
"""Their levels that halve by a convolution, by a residual block, and with attention either way."""
OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""What files of before 2023 call the parts of an attention."""
ONLY = {
    "time_embedding_type": ("positional",),
    "center_input_sample": (False,),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1, None),
    "class_embed_type": (None,),
    "act_fn": ("silu", "swish"),
    "freq_shift": (0, 1),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "downsample_padding": (0, 1),
}
"""Settings of theirs and the values of which `unet2d` has the function."""
DEFAULTS: dict[str, Any] = {
    **{name: allowed[0] for name, allowed in ONLY.items()},
    **{"downsample_padding": 1, "in_channels": 3, "out_channels": 3, "layers_per_block": 2, "downsample_type": "conv"},
    **{"upsample_type": "conv", "dropout": 0.0, "attention_head_dim": 8, "norm_num_groups": 32, "attn_norm_num_groups": None},
    **{"norm_eps": 1e-5, "add_attention": True, "num_class_embeds": None, "flip_sin_to_cos": True, "time_embedding_dim": None},
    **{"block_out_channels": [224, 448, 672, 896], "down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 3]},
    "up_block_types": [*["AttnUpBlock2D"] * 3, "UpBlock2D"],
}
"""What UNet2DModel takes where a configuration does not say: older ones lack newer settings."""


class Unlike(ValueError):
    """A configuration of which `unet2d` does not have the function; one line says why."""


def options_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a `UNet2D` with the function of a UNet2DModel of this configuration; `Unlike` where there are none."""
    given = DEFAULTS | dict(config)
    for name, allowed in ONLY.items():
        if given[name] not in allowed:
            raise Unlike(f"{name} = {given[name]!r}")
    channels, down, up = (list(given[name]) for name in ("block_out_channels", "down_block_types", "up_block_types"))
    width = channels[0]
    if any(n % width for n in channels) or given["time_embedding_dim"] not in (None, 4 * width):
        raise Unlike(f"block_out_channels = {channels}, no multiples of the first")
    if not set(down) <= set(DOWN) or [UP[DOWN.index(kind)] for kind in reversed(down)] != up:
        raise Unlike(f"down_block_types = {down}, up_block_types = {up}")
    attention = [level for level, kind in enumerate(down) if kind == DOWN[2]]
    halving = {"conv" if kind == DOWN[0] else "block" if kind == DOWN[1] else _resampling(given["downsample_type"]) for kind in down[:-1]}
    doubling = {"conv" if kind == UP[0] else "block" if kind == UP[1] else _resampling(given["upsample_type"]) for kind in up[:-1]}
    if len(halving | doubling) > 1:
        raise Unlike(f"its levels are halved and doubled by {', '.join(sorted(halving | doubling))}")
    groups, scale_shift = given["norm_num_groups"], given["resnet_time_scale_shift"] == "scale_shift"
    of_middle = given["attn_norm_num_groups"] or (None if scale_shift else groups)
    if given["add_attention"] and of_middle != groups:
        raise Unlike(f"attn_norm_num_groups = {given['attn_norm_num_groups']!r}, norm_num_groups = {groups!r}")
    head = given["attention_head_dim"]
    attended = [channels[level] for level in attention] + ([channels[-1]] if given["add_attention"] else [])
    if head is not None and any(n % head for n in attended):
        raise Unlike(f"attention_head_dim = {head}, no divisor of {attended}")
    return {
        "width": width,
        "multipliers": [n // width for n in channels],
        "blocks": given["layers_per_block"],
        "attention": attention,
        "middle": bool(given["add_attention"]),
        "head_channels": head,
        "groups": groups,
        "eps": float(given["norm_eps"]),
        "scale_shift": scale_shift,
        "resampling": (halving | doubling).pop() if halving | doubling else "conv",
        "corner": given["downsample_padding"] == 0,
        "closed": given["freq_shift"] == 1,
        "sine_first": not given["flip_sin_to_cos"],
        "dropout": float(given["dropout"]),
        "clock_scale": 1.0,
        "clock_shift": 0.0,
        "null": False,
    }


def _resampling(kind: Any) -> str:
    if kind not in ("conv", "resnet"):
        raise Unlike(f"downsample_type or upsample_type = {kind!r}")
    return "conv" if kind == "conv" else "block"


def config_of(network: UNet2D) -> dict[str, Any]:
    """The configuration of the UNet2DModel with the function of `network`."""
    options, down = network.options, []
    for level in range(len(options["multipliers"])):
        down.append(DOWN[2] if level in options["attention"] else DOWN[0 if options["resampling"] == "conv" else 1])
    label = network.encoders.get("label")
    kind = "conv" if options["resampling"] == "conv" else "resnet"
    return DEFAULTS | {
        "_class_name": "UNet2DModel",
        "sample_size": list(network.shape[1:]) if network.shape[1] != network.shape[2] else network.shape[1],
        "in_channels": network.shape[0],
        "out_channels": network.out_channels,
        "block_out_channels": [options["width"] * multiplier for multiplier in options["multipliers"]],
        "down_block_types": down,
        "up_block_types": [UP[DOWN.index(block)] for block in reversed(down)],
        "layers_per_block": options["blocks"],
        "add_attention": options["middle"],
        "attention_head_dim": options["head_channels"],
        "norm_num_groups": options["groups"],
        "attn_norm_num_groups": options["groups"],
        "norm_eps": options["eps"],
        "resnet_time_scale_shift": "scale_shift" if options["scale_shift"] else "default",
        "downsample_type": kind,
        "upsample_type": kind,
        "downsample_padding": 0 if options["corner"] else 1,
        "freq_shift": 1 if options["closed"] else 0,
        "flip_sin_to_cos": not options["sine_first"],
        "num_class_embeds": len(_table(label, options["null"])) if isinstance(label, Label) else None,
        "dropout": options["dropout"],
    }


def _table(label: Label, null: bool) -> Tensor:
    """The vectors of the classes, and that of no label where there is one."""
    table = label.table.weight.detach()
    return table if null else table[:-1]


def layers(network: ResampledUNet) -> Iterator[tuple[nn.Module, str]]:
    """Every layer of a `UNet2D` with its name in UNet2DModel; an attention, whose layers have other forms there, as a whole."""
    last = len(network.encoder) - 1
    yield network.embedding.linear1, "time_embedding.linear_1"  # type: ignore[misc]
    yield network.embedding.linear2, "time_embedding.linear_2"  # type: ignore[misc]
    for role, level, number, module in parts(network):
        if role == "leave":
            yield from zip(module.children(), ("conv_norm_out", "conv_out"), strict=True)
            continue
        room, name = {
            "enter": ("", "conv_in"),
            "down": (f"down_blocks.{level - 1}.", "downsamplers.0"),
            "encode": (f"down_blocks.{level}.", f"resnets.{number}"),
            "middle": ("mid_block.", f"resnets.{number}"),
            "up": (f"up_blocks.{last - level - 1}.", "upsamplers.0"),
            "decode": (f"up_blocks.{last - level}.", f"resnets.{number}"),
        }[role]
        if isinstance(module, Stage):
            for ours, theirs in zip(BLOCK, THEIR_BLOCK, strict=True):
                layer = getattr(module.block, ours)
                if not isinstance(layer, nn.Identity):
                    yield layer, f"{room}{name}.{theirs}"
            if isinstance(module.attention, Attention):
                yield module.attention, f"{room}attentions.{number}"
        elif isinstance(module, ResampledConv):
            yield module.conv, f"{room}{name}.conv"
        else:
            yield module, f"{room}{name}"


def read_unet(config: Mapping[str, Any], weights: Weights, size: tuple[int, int]) -> UNet2D:
    """The `UNet2D` of a UNet2DModel's configuration and weights; `Unlike` where it has another function, CheckpointError where the weights
    are not those of the configuration."""
    given = DEFAULTS | dict(config)
    named = {}
    for key, value in weights.items():
        for old, new in OLD_NAMES.items():
            key = key.replace(old, new) if ".attentions." in key else key
        named[key] = value
    shape = (given["in_channels"], *size)
    filler = Filler("unet2d", shape, given["num_class_embeds"], given["out_channels"], options_of(config), named)
    network = filler.network
    for module, name in layers(network):
        if isinstance(module, Attention):
            filler.layer(module.norm, f"{name}.group_norm")
            filler.layer(module.mix, f"{name}.to_out.0")
            for key in ("weight", "bias"):
                filler.put(module.qkv, key, torch.cat([filler.take(f"{name}.to_{part}.{key}") for part in "qkv"]))
        else:
            filler.layer(module, name)
    label = network.encoders.get("label")
    if isinstance(label, Label):  # its last row, of no label, is one that nothing was learned about
        table = filler.take("class_embedding.weight")
        filler.put(label.table, "weight", torch.cat([table, torch.zeros_like(table[:1])]))
    found = filler.finish()
    assert isinstance(found, UNet2D)
    return found


def write_unet(network: UNet2D) -> dict[str, Tensor]:
    """The weights of `network` under UNet2DModel's names."""
    found: dict[str, Tensor] = {}
    for module, name in layers(network):
        if isinstance(module, Attention):
            found |= {f"{name}.group_norm.{key}": value for key, value in module.norm.named_parameters()}
            found |= {f"{name}.to_out.0.{key}": value for key, value in module.mix.named_parameters()}
            for key, value in module.qkv.named_parameters():
                found |= {f"{name}.to_{part}.{key}": rows for part, rows in zip("qkv", value.chunk(3), strict=True)}
        else:
            found |= {f"{name}.{key}": value for key, value in module.named_parameters()}
    label = network.encoders.get("label")
    if isinstance(label, Label):
        found["class_embedding.weight"] = _table(label, network.options["null"])
    return {key: value.detach().float().cpu().contiguous().clone() for key, value in found.items()}


def as_unet2d(network: ADMUNet) -> UNet2D:
    """The `UNet2D` that is the same function, with the same weights; CheckpointError, one line, where UNet2DModel cannot be it."""
    groups = {module.num_groups for module in network.modules() if isinstance(module, GroupNorm)}
    heads = {module.qkv.in_features // module.heads for module in network.modules() if isinstance(module, Attention)}
    options = network.options
    if len(groups) > 1:
        raise CheckpointError(f"its norms have {', '.join(map(str, sorted(groups)))} groups, those of UNet2DModel one number of them")
    if len(heads) > 1:
        raise CheckpointError(f"its attention heads have {', '.join(map(str, sorted(heads)))} channels, those of UNet2DModel one number")
    if options["noise_multiplier"] != 1:
        raise CheckpointError("its clock has more features than its first level channels, which those of UNet2DModel have not")
    same = ("width", "multipliers", "blocks", "attention", "scale_shift", "resampling", "clock_scale", "clock_shift", "null", "dropout")
    made = make_network(
        "unet2d",
        network.shape,
        network.conditions,
        network.out_channels,
        **{name: options[name] for name in same},
        head_channels=heads.pop(),
        groups=groups.pop(),
    )
    made.load_state_dict(network.state_dict())
    assert isinstance(made, UNet2D)
    return made.train(network.training)
