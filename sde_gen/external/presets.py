"""What the published checkpoints do not say of themselves, by the names under which their libraries published them."""

from __future__ import annotations

from typing import Any

_VE = {"sde": "ve", "centered": False, "scale_by_sigma": True, "sigma_min": 0.01}
_VP = {"sde": "vp", "centered": True, "scale_by_sigma": False, "beta_min": 0.1, "beta_max": 20.0}
_SUBVP = _VP | {"sde": "subvp"}
_CIFAR = {"size": 32, "channels": 3, "steps": 1000, "multipliers": [1, 2, 2, 2], "width": 128, "attention_sizes": [16]}
_PLAIN = _CIFAR | {"blocks": 2, "dropout": 0.1}
_SHALLOW = _CIFAR | {"blocks": 4, "skip_rescale": True, "dropout": 0.1}
_DEEP = _SHALLOW | {"blocks": 8}
_LARGE = {
    **{"size": 256, "channels": 3, "steps": 2000, "width": 128, "multipliers": [1, 1, 2, 2, 2, 2, 2], "blocks": 2, "dropout": 0.0},
    **{"attention_sizes": [16], "skip_rescale": True, "fir": True, "continuous": True, "embedding": "fourier"},
}
_LARGEST = _LARGE | {"size": 1024, "width": 16, "multipliers": [1, 2, 4, 8, 16, 32, 32, 32], "blocks": 1, "sigma_max": 1348.0}
_DDPM_LARGE = _VP | {
    **{"size": 256, "channels": 3, "width": 128, "multipliers": [1, 1, 2, 2, 4, 4], "blocks": 2, "attention_sizes": [16], "dropout": 0.0},
    **{"continuous": False, "steps": 1000},
}


def _score_sde() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    fourier, positional, fir, no_fir = {"embedding": "fourier"}, {"embedding": "positional"}, {"fir": True}, {"fir": False}
    at_all, at_points = {"continuous": True}, {"continuous": False}
    of_cifar = {"sigma_max": 50.0}
    found["ve/cifar10_ncsnpp"] = _VE | _SHALLOW | of_cifar | positional | fir | at_points
    found["ve/cifar10_ncsnpp_continuous"] = _VE | _SHALLOW | of_cifar | fourier | fir | at_all
    found["ve/cifar10_ncsnpp_deep_continuous"] = _VE | _DEEP | of_cifar | fourier | fir | at_all
    found["ve/cifar10_ddpm"] = _VE | _PLAIN | of_cifar | at_points
    found["vp/ddpm/cifar10"] = found["vp/cifar10_ddpm"] = _VP | _PLAIN | at_points
    found["vp/ddpm/cifar10_continuous"] = found["vp/cifar10_ddpm_continuous"] = _VP | _PLAIN | at_all
    found["subvp/cifar10_ddpm_continuous"] = _SUBVP | _PLAIN | at_all
    for process, facts in (("vp", _VP), ("subvp", _SUBVP)):
        for kind, filtered in (("ncsnpp", fir), ("ddpmpp", no_fir)):
            found[f"{process}/cifar10_{kind}_continuous"] = facts | _SHALLOW | positional | filtered | at_all
            found[f"{process}/cifar10_{kind}_deep_continuous"] = facts | _DEEP | positional | filtered | at_all
            if process == "vp":
                found[f"vp/cifar10_{kind}"] = facts | _SHALLOW | positional | filtered | at_points
    for name, sigma_max in (("celebahq_256", 348.0), ("ffhq_256", 348.0), ("bedroom", 378.0), ("church", 380.0)):
        found[f"ve/{name}_ncsnpp_continuous"] = _VE | _LARGE | {"sigma_max": sigma_max}
    found["ve/ffhq_ncsnpp_continuous"] = found["ve/ffhq_1024_ncsnpp_continuous"] = _VE | _LARGEST
    for name in ("celebahq", "bedroom", "church"):
        found[f"vp/ddpm/{name}"] = dict(_DDPM_LARGE)
    return found


def _edm() -> dict[str, dict[str, Any]]:
    ours: dict[str, Any] = {"precond": "EDMPrecond", "sigma_data": 0.5}
    found = {
        f"edm-{data}-{kind}-{form}": ours | {"size": 32 if data.startswith("cifar") else 64, "model_type": "SongUNet"}
        for data, kinds in (("cifar10-32x32", ("cond", "uncond")), ("ffhq-64x64", ("uncond",)), ("afhqv2-64x64", ("uncond",)))
        for kind in kinds
        for form in ("vp", "ve")
    }
    found["edm-imagenet-64x64-cond-adm"] = ours | {"size": 64, "model_type": "DhariwalUNet", "classes": 1000}
    for form in ("vp", "ve"):
        found[f"baseline-cifar10-32x32-uncond-{form}"] = {"precond": f"{form.upper()}Precond", "size": 32, "model_type": "SongUNet"}
    found["baseline-imagenet-64x64-cond-adm"] = {"precond": "iDDPMPrecond", "size": 64, "model_type": "DhariwalUNet", "classes": 1000}
    return found


def _adm() -> dict[str, dict[str, Any]]:
    guided: dict[str, Any] = {
        **{
            "prediction": "noise",
            "rescale_timesteps": False,
            "learn_sigma": True,
            "scale_shift": True,
            "resblock_updown": True,
            "steps": 1000,
        },
        **{"schedule": "linear", "attention_order": "legacy", "width": 256, "blocks": 2, "channels": 3, "dropout": 0.0},
    }
    large = guided | {"size": 256, "head_channels": 64, "classes": None}
    lsun = large | {"dropout": 0.1}
    improved = {
        **{
            "prediction": "noise",
            "rescale_timesteps": True,
            "learn_sigma": True,
            "scale_shift": True,
            "resblock_updown": False,
            "steps": 4000,
        },
        **{"schedule": "cosine", "attention_order": "legacy", "heads": 4, "width": 128, "blocks": 3, "channels": 3, "dropout": 0.0},
    }
    cifar, imagenet = improved | {"size": 32, "dropout": 0.3, "classes": None}, improved | {"size": 64, "classes": None}
    bedroom = improved | {
        **{"size": 256, "blocks": 2, "heads": 1, "scale_shift": False, "steps": 1000, "schedule": "linear", "rescale_timesteps": False},
        "classes": None,
    }
    teacher: dict[str, Any] = {
        **{"prediction": "edm", "sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0, "attention_order": "new", "head_channels": 64},
        **{"learn_sigma": False, "resblock_updown": True, "channels": 3, "dropout": 0.1},
    }
    lsun_teacher = teacher | {"size": 256, "width": 256, "blocks": 2, "scale_shift": False, "classes": None}
    return {
        "edm_imagenet64_ema": teacher | {"size": 64, "width": 192, "blocks": 3, "scale_shift": True, "classes": 1000},
        "edm_bedroom256_ema": lsun_teacher,
        "edm_cat256_ema": lsun_teacher,
        "64x64_diffusion": guided
        | {"size": 64, "width": 192, "blocks": 3, "head_channels": 64, "attention_order": "new", "schedule": "cosine", "classes": 1000}
        | {"dropout": 0.1},
        "128x128_diffusion": guided | {"size": 128, "heads": 4, "classes": 1000},
        "256x256_diffusion": large | {"classes": 1000},
        "256x256_diffusion_uncond": large,
        "512x512_diffusion": large | {"size": 512, "classes": 1000},
        "lsun_bedroom": lsun,
        "lsun_cat": lsun,
        "lsun_horse": lsun,
        "lsun_horse_nodropout": large,
        "cifar10_uncond_50M_500K": cifar,
        "cifar10_uncond_vlb_50M_500K": cifar,
        "imagenet64_uncond_100M_1500K": imagenet,
        "imagenet64_uncond_vlb_100M_1500K": imagenet,
        "imagenet64_cond_270M_250K": imagenet | {"width": 192, "classes": 1000, "rescale_timesteps": False},
        "lsun_uncond_100M_1200K_bs128": bedroom,
        "lsun_uncond_100M_2400K_bs64": bedroom,
    }


def _lucid() -> dict[str, dict[str, Any]]:
    defaults = {"auto_normalize": True, "objective": "pred_v", "schedule": "sigmoid", "steps": 1000}
    readme: dict[str, Any] = {"size": 128, "width": 64, "multipliers": [1, 2, 4, 8]}
    return {"defaults": defaults, "readme": defaults | readme}


PRESETS: dict[str, dict[str, dict[str, Any]]] = {"score_sde": _score_sde(), "edm": _edm(), "adm": _adm(), "lucid": _lucid()}
"""By format and name: score_sde_pytorch's configurations (configs/), EDM's files, those of guided-diffusion, improved-diffusion and
consistency_models' teachers, and what the classes of denoising-diffusion-pytorch take unless told, which published none."""
