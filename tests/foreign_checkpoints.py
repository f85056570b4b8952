"""Checkpoints in other libraries' layouts, written from networks of our own: what the importers must give back."""

import copy
import math
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sde_gen.external.weights import parts
from sde_gen.networks import LucidUNet, make_network
from sde_gen.networks.adm import ADMUNet
from sde_gen.networks.lucid import Block, MemoryAttention
from sde_gen.networks.resampled import ResampledUNet
from sde_gen.networks.resampled_blocks import Attention, FilteredConv, ResampledConv, Stage
from sde_gen.networks.song import SongUNet


def randomised(name: str, size: int = 16, classes: int | None = None, out: int = 3, seed: int = 0, **options: Any) -> Any:
    """A small network no parameter of which is zero."""
    torch.manual_seed(seed)
    conditions = None if classes is None else {"label": {"kind": "label", "classes": classes, "fade": None}}
    network = make_network(name, (3, size, size), conditions, out, **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return network.eval()


def put(found: dict[str, Tensor], name: str, layer: nn.Module) -> None:
    inside = layer.conv if isinstance(layer, FilteredConv | ResampledConv) else layer
    for key, value in inside.named_parameters():
        found[f"{name}.{key}"] = value.detach().clone()


def shuffled(attention: Attention, key: str, order: str) -> Tensor:
    """Rows (3, heads, channels) in another library's order."""
    value = getattr(attention.qkv, key).detach().unflatten(0, (3, attention.heads, -1))
    if order == "legacy":
        value = value.transpose(0, 1)
    elif order == "edm":
        value = value.movedim(0, 2)
    return value.flatten(0, 2).clone()


def score_sde_state(network: SongUNet, seed: int = 9) -> dict[str, Tensor]:
    """The `model` of a checkpoint of score_sde_pytorch, under module.all_modules."""
    found: dict[str, Tensor] = {"module.sigmas": torch.exp(torch.linspace(math.log(50.0), math.log(0.01), 1000, dtype=torch.float64))}
    count = 0

    def name() -> str:
        nonlocal count
        count += 1
        return f"module.all_modules.{count - 1}"

    if network.options["embedding"] == "fourier":
        found[f"{name()}.W"] = network.embedding.level.frequencies.clone()
    put(found, name(), network.embedding.linear1)
    put(found, name(), network.embedding.linear2)
    by_matrix = network.options["resampling"] == "conv"
    for role, _, _, module in parts(network):
        here = name()
        if isinstance(module, Stage):
            block = module.block
            for ours, theirs in (("norm1", "GroupNorm_0"), ("conv1", "Conv_0"), ("modulation", "Dense_0"), ("norm2", "GroupNorm_1")):
                put(found, f"{here}.{theirs}", getattr(block, ours))
            put(found, f"{here}.Conv_1", block.conv2)
            if not isinstance(block.shortcut, nn.Identity) and by_matrix:
                found[f"{here}.NIN_0.W"] = block.shortcut.weight.detach()[:, :, 0, 0].T.clone()
                found[f"{here}.NIN_0.b"] = block.shortcut.bias.detach().clone()
            else:
                put(found, f"{here}.Conv_2", block.shortcut)
            if isinstance(module.attention, Attention):
                here = name()
                put(found, f"{here}.GroupNorm_0", module.attention.norm)
                for k, (weight, bias) in enumerate(
                    zip(module.attention.qkv.weight.chunk(3), module.attention.qkv.bias.chunk(3), strict=True)
                ):
                    found[f"{here}.NIN_{k}.W"], found[f"{here}.NIN_{k}.b"] = weight.detach().T.clone(), bias.detach().clone()
                found[f"{here}.NIN_3.W"] = module.attention.mix.weight.detach().T.clone()
                found[f"{here}.NIN_3.b"] = module.attention.mix.bias.detach().clone()
        elif role == "leave":
            norm, conv = module.children()
            put(found, here, norm)
            put(found, name(), conv)
        elif role == "side":
            put(found, f"{here}.{'Conv2d_0' if network.side_in == 'residual' else 'Conv_0'}", module)
        else:
            put(found, here if role == "enter" else f"{here}.Conv_0", module)
    return found


def score_sde_file(path: Path, raw: SongUNet, average: SongUNet) -> Path:
    model, averaged = score_sde_state(raw), score_sde_state(average)
    trained = [key for key in model if not key.endswith(("sigmas", ".all_modules.0.W"))]
    ema = {"decay": 0.999, "num_updates": 5, "shadow_params": [averaged[key] for key in trained]}
    torch.save({"optimizer": {"state": {}, "param_groups": []}, "model": model, "ema": ema, "step": 5}, path)
    return path


def edm_state(network: ResampledUNet) -> dict[str, Tensor]:
    """The state dict of EDM's SongUNet or DhariwalUNet."""
    size, song = network.shape[1], isinstance(network, SongUNet)
    found: dict[str, Tensor] = {}
    put(found, "map_layer0", network.embedding.linear1)
    put(found, "map_layer1", network.embedding.linear2)
    if song and network.options["embedding"] == "fourier":
        found["map_noise.freqs"] = network.embedding.level.frequencies.clone()
    if network.classes is not None:
        table = network.encoders["label"].table.weight.detach()
        null = table[-1] if song else torch.zeros_like(table[-1])
        scale = math.sqrt(network.classes) if song else 1.0
        found["map_label.weight"] = ((table[:-1] - null) / scale).T.clone()
        if song:
            found["map_label.bias"] = null.clone()
        else:
            with torch.no_grad():
                network.encoders["label"].table.weight[-1] = 0.0  # EDM's has no bias
    filter_ = torch.tensor(network.options.get("kernel", [1, 1]), dtype=torch.float32)
    filter_ = torch.outer(filter_, filter_)[None, None] / filter_.sum() ** 2
    for role, level, number, module in parts(network):
        room = "enc" if role in ("enter", "down", "side", "encode") else "dec"
        name = f"{room}.{size >> level}x{size >> level}_"
        if isinstance(module, Stage):
            name += {"encode": f"block{number}", "decode": f"block{number}", "middle": f"in{number}"}.get(role, role)
            names = {"norm1": "norm0", "conv1": "conv0", "modulation": "affine", "norm2": "norm1", "conv2": "conv1", "shortcut": "skip"}
            for ours, theirs in names.items():
                put(found, f"{name}.{theirs}", getattr(module.block, ours))
            if role in ("up", "down"):
                found[f"{name}.conv0.resample_filter"] = filter_.clone()
            if isinstance(module.attention, Attention):
                put(found, f"{name}.norm2", module.attention.norm)
                put(found, f"{name}.proj", module.attention.mix)
                found[f"{name}.proj.weight"] = found[f"{name}.proj.weight"][:, :, None, None]
                found[f"{name}.qkv.weight"] = shuffled(module.attention, "weight", "edm")[:, :, None, None]
                found[f"{name}.qkv.bias"] = shuffled(module.attention, "bias", "edm")
        elif role == "leave":
            norm, conv = module.children()
            put(found, f"{name}aux_norm" if song else "out_norm", norm)
            put(found, f"{name}aux_conv" if song else "out_conv", conv)
        else:
            put(found, f"{name}conv" if role == "enter" else f"{name}aux_{network.side_in}", module)
    return found


def edm_pickle(path: Path, network: ResampledUNet, precond: str = "EDMPrecond", **arguments: Any) -> Path:
    """What EDM's training writes: every module a call of a function of a package that is not here, with its source code, its class's name
    and its state."""
    persistence = types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta: Any) -> None:
        raise AssertionError("executed")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    source = "raise AssertionError('executed')\n"

    class Persistent:
        def __init__(self, name: str, state: dict[str, Any]) -> None:
            self.meta = {"type": "class", "version": 6, "module_src": source, "class_name": name, "state": state}

        def __reduce__(self) -> tuple[Any, ...]:
            return _reconstruct_persistent_obj, (self.meta,), None

    def module(name: str, weights: dict[str, Tensor], **state: Any) -> Persistent:
        own = {key: nn.Parameter(value) for key, value in weights.items() if "." not in key}
        children: dict[str, dict[str, Tensor]] = {}
        for key, value in weights.items():
            first, _, rest = key.partition(".")
            if rest:
                children.setdefault(first, {})[rest] = value
        modules = {key: module("Module", value) for key, value in children.items()}
        return Persistent(name, {"training": False, "_parameters": own, "_buffers": {}, "_modules": modules, **state})

    given = {"img_resolution": network.shape[1], "img_channels": network.shape[0], "label_dim": network.classes or 0, **arguments}
    weights = {f"model.{key}": value for key, value in edm_state(network).items()}
    whole = module(precond, weights, _init_args=[], _init_kwargs=given, **given)
    sys.modules["torch_utils"], sys.modules["torch_utils.persistence"] = types.ModuleType("torch_utils"), persistence
    try:
        path.write_bytes(pickle.dumps({"ema": whole, "augment_pipe": None, "dataset_kwargs": {"path": "x"}}, 4))
    finally:
        del sys.modules["torch_utils"], sys.modules["torch_utils.persistence"]
    return path


def adm_state(network: ADMUNet, order: str) -> dict[str, Tensor]:
    """The state dict of guided-diffusion's UNetModel."""
    found: dict[str, Tensor] = {}
    put(found, "time_embed.0", network.embedding.linear1)
    put(found, "time_embed.2", network.embedding.linear2)
    if network.classes is not None:
        found["label_emb.weight"] = network.encoders["label"].table.weight.detach()[:-1].clone()
        with torch.no_grad():
            network.encoders["label"].table.weight[-1] = 0.0
    blocks, last = network.options["blocks"], len(network.encoder) - 1
    for role, level, number, module in parts(network):
        into, out_of = level * (blocks + 1), (last - level) * (blocks + 1)
        if role == "leave":
            put(found, "out.0", module[0])
            put(found, "out.2", module[1])
            continue
        room, place, second = {
            "enter": (f"input_blocks.{into}", 0, 0),
            "down": (f"input_blocks.{into}", 0, 0),
            "encode": (f"input_blocks.{into + 1 + number}", 0, 1),
            "middle": ("middle_block", 2 * number, 1),
            "up": (f"output_blocks.{out_of - 1}", 2 if level + 1 in network.options["attention"] else 1, 0),
            "decode": (f"output_blocks.{out_of + number}", 0, 1),
        }[role]
        if isinstance(module, Stage):
            names = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")
            for ours, theirs in zip(("norm1", "conv1", "modulation", "norm2", "conv2", "shortcut"), names, strict=True):
                put(found, f"{room}.{place}.{theirs}", getattr(module.block, ours))
            if isinstance(module.attention, Attention):
                put(found, f"{room}.{second}.norm", module.attention.norm)
                put(found, f"{room}.{second}.proj_out", module.attention.mix)
                found[f"{room}.{second}.proj_out.weight"] = found[f"{room}.{second}.proj_out.weight"][:, :, None]
                found[f"{room}.{second}.qkv.weight"] = shuffled(module.attention, "weight", order)[:, :, None]
                found[f"{room}.{second}.qkv.bias"] = shuffled(module.attention, "bias", order)
        elif isinstance(module, ResampledConv):
            put(found, f"{room}.{place}.{'conv' if module.up else 'op'}", module)
        else:
            put(found, f"{room}.{place}", module)
    return found


def lucid_state(network: LucidUNet) -> dict[str, Tensor]:
    """The state dict of denoising-diffusion-pytorch's Unet."""
    found: dict[str, Tensor] = {}

    def layer(module: nn.Module, name: str) -> None:
        for key, value in module.named_parameters():
            found[f"{name}.g" if key == "factor" else f"{name}.{key}"] = value.detach().reshape(
                (1, -1, 1, 1) if key == "factor" else value.shape
            )

    def stage(modules: list[nn.Module], names: list[str]) -> None:
        for module, name in zip(modules, names, strict=True):
            if isinstance(module, MemoryAttention):
                memory = module.memory.detach()
                found[f"{name}.mem_kv"] = memory.transpose(2, 3).clone() if module.linear else memory
                layer(module.norm, f"{name}.norm")
                layer(module.qkv, f"{name}.to_qkv")
                layer(module.mix, f"{name}.to_out.0" if module.linear else f"{name}.to_out")
                layer(module.norm_out, f"{name}.to_out.1")
            else:
                assert isinstance(module, Block)
                layer(module.modulation, f"{name}.mlp.1")
                for ours, theirs in (
                    ("conv1", "block1.proj"),
                    ("norm1", "block1.norm"),
                    ("conv2", "block2.proj"),
                    ("norm2", "block2.norm"),
                ):
                    layer(getattr(module, ours), f"{name}.{theirs}")
                layer(module.shortcut, f"{name}.res_conv")

    layer(network.embedding.linear1, "time_mlp.1")
    layer(network.embedding.linear2, "time_mlp.3")
    layer(network.enter, "init_conv")
    last = len(network.encoder) - 1
    for level in range(last + 1):
        stage(list(network.encoder[level].children()), [f"downs.{level}.{k}" for k in range(3)])
        layer(network.down[level], f"downs.{level}.3" + ("" if level == last else ".1"))
        stage(list(network.decoder[level].children()), [f"ups.{last - level}.{k}" for k in range(3)])
        layer(network.up[level], f"ups.{last - level}.3" + ("" if level == 0 else ".1"))
    stage(list(network.middle), ["mid_block1", "mid_attn", "mid_block2"])
    stage([network.leave[0]], ["final_res_block"])
    layer(network.leave[1], "final_conv")
    return found


def lucid_file(path: Path, raw: LucidUNet, average: LucidUNet, betas: Tensor, weight: Tensor) -> Path:
    """What the library's Trainer writes: the diffusion, the optimiser, and the average with the same buffers, here spoilt."""

    def diffusion(network: LucidUNet, factor: float) -> dict[str, Tensor]:
        buffers = {"betas": betas.float() * factor, "loss_weight": weight.float() * factor, "alphas_cumprod": torch.cumprod(1 - betas, 0)}
        return {f"model.{key}": value for key, value in lucid_state(network).items()} | buffers

    ema = {"initted": torch.tensor(True), "step": torch.tensor(7)}
    ema |= {f"ema_model.{key}": value for key, value in diffusion(average, 0.9).items()}
    torch.save({"step": 7, "model": diffusion(raw, 1.0), "opt": {"state": {}}, "ema": ema, "scaler": None, "version": "2.2.5"}, path)
    return path


def moved(network: Any, seed: int = 3) -> Any:
    """A copy with other weights but the same frequencies: what an average is to the weights of which it is one."""
    other = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return other
