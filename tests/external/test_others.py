"""Consistency models and their teachers, and what is known and not read: each is one line that says what is missing."""

import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_checkpoints import adm_state, randomised

from sde_gen.errors import CheckpointError
from sde_gen.external import load_external

FLAGS = {"image_size": 16, "num_heads": 2, "sigma_min": 0.002, "sigma_max": 80.0, "weight_schedule": "karras"}


def test_teachers_of_consistency_models_are_told_250_log_sigma(tmp_path: Path) -> None:
    network = randomised("adm", width=32, heads=2, group=1, null=False, clock_scale=1000.0, clock_shift=0.0)
    torch.save(adm_state(network, "new"), tmp_path / "edm.pt")
    model = load_external(tmp_path / "edm.pt", config=FLAGS | {"training_mode": "edm", "sigma_data": 0.5})
    told = []
    handle = model.network.embedding.level.register_forward_hook(
        lambda module, given, _: told.append(module.scale * given[0] + module.shift)
    )
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    sigma = model.sde.marginal(t)[1]
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = model.denoise(x, t)
    handle.remove()
    torch.testing.assert_close(told[0].double(), 250 * torch.log(sigma), rtol=1e-5, atol=1e-3)
    s = sigma.float()[:, None, None, None]
    inside = network(x / (s**2 + 0.25).sqrt(), torch.log(sigma.float()) / 4)
    wanted = 0.25 / (s**2 + 0.25) * x + 0.5 * s / (s**2 + 0.25).sqrt() * inside
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"does not say sigma_data \("):
        load_external(tmp_path / "edm.pt", config=FLAGS | {"training_mode": "edm"})


@pytest.mark.parametrize("mode", ["consistency_distillation", "consistency_training", "progdist"])
def test_a_consistency_model_is_no_denoiser(mode: str, tmp_path: Path) -> None:
    torch.save(adm_state(randomised("adm", width=32, heads=2, group=1, null=False), "new"), tmp_path / "cd.pt")
    given = FLAGS | {"training_mode": mode, "use_new_attention_order": True, "prediction": "edm"}
    with pytest.raises(ValueError, match=f"training_mode = '{mode}': of consistency_models only 'edm' is read"):
        load_external(tmp_path / "cd.pt", config=given)


def edm2_pickle(path: Path) -> None:
    module = types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta: Any) -> None:
        raise AssertionError("executed")

    _reconstruct_persistent_obj.__module__, _reconstruct_persistent_obj.__qualname__ = module.__name__, "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]

    class Persistent:
        def __init__(self, name: str, buffers: dict[str, torch.Tensor], modules: dict[str, Any]) -> None:
            state = {"_parameters": {}, "_buffers": buffers, "_modules": modules}
            self.meta = {"type": "class", "version": 6, "module_src": "raise AssertionError", "class_name": name, "state": state}

        def __reduce__(self) -> tuple[Any, ...]:
            return _reconstruct_persistent_obj, (self.meta,), None

    fourier = Persistent("MPFourier", {"freqs": torch.zeros(8, dtype=torch.float16), "phases": torch.zeros(8)}, {})
    whole = Persistent("Precond", {}, {"unet": Persistent("UNet", {}, {"emb_fourier": fourier})})
    sys.modules["torch_utils"], sys.modules["torch_utils.persistence"] = types.ModuleType("torch_utils"), module
    try:
        path.write_bytes(pickle.dumps({"ema": whole}, 4))
    finally:
        del sys.modules["torch_utils"], sys.modules["torch_utils.persistence"]


def test_what_is_known_and_not_read(tmp_path: Path) -> None:
    latent = {"model.diffusion_model.out.2.weight": torch.zeros(1000, 1000), "first_stage_model.conv.weight": torch.zeros(3)}
    lightning = {"state_dict": latent | {"scale_factor": torch.tensor(0.18215)}, "epoch": 3}
    classifier = {
        "time_embed.0.weight": torch.zeros(4, 4),
        "input_blocks.0.0.weight": torch.zeros(4, 3, 3, 3),
        "out.1.bias": torch.zeros(9),
    }
    unet = {"conv_in.weight": torch.zeros(8, 3, 3, 3), "down_blocks.0.resnets.0.norm1.weight": torch.zeros(8)}
    for tree, message in (
        (latent, r"latent-diffusion: its U-Net of 1 million parameters .* \(first_stage_model\), and latents are not read yet"),
        ({"state_dict": lightning["state_dict"]}, r"the same file \(first_stage_model, times 0.18215\)"),
        ({"model.diffusion_model.x": torch.zeros(3)}, "latents of an autoencoder that is not in the file"),
        (classifier, r"a classifier of noisy pictures \(guided-diffusion\)"),
        (unet, "a U-Net of diffusers alone: give the folder"),
    ):
        torch.save(tree, tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match=message) as caught:
            load_external(tmp_path / "a.pt")
        assert "\n" not in str(caught.value)
    edm2_pickle(tmp_path / "edm2.pkl")
    with pytest.raises(CheckpointError, match=r"it is of EDM2: 2 tensors, .* not among ours"):
        load_external(tmp_path / "edm2.pkl")
