"""Pipelines of diffusers in and out: folders in the library's layout, and beside the library itself where it is installed."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import peer
from safetensors.torch import load_file, save_file

import sde_gen
from sde_gen.errors import CheckpointError
from sde_gen.external import from_diffusers, load_external, scheduler_times, to_diffusers
from sde_gen.external.diffusers_unet import Unlike, config_of, options_of
from sde_gen.networks import NETWORKS, make_network

FORMS: dict[str, dict[str, Any]] = {
    "plain": {"groups": 8, "attention": (1,), "head_channels": 8, "null": False},
    "ddpm": {"groups": 4, "attention": (0,), "eps": 1e-6, "closed": True, "sine_first": True, "corner": True, "null": False},
    "by blocks": {
        "groups": 16,
        "attention": (),
        "scale_shift": True,
        "resampling": "block",
        "head_channels": 4,
        "null": False,
        "blocks": 2,
    },
    "no middle": {"groups": 2, "attention": (0, 1), "middle": False, "multipliers": (1, 3), "null": False},
}
LINEAR = sde_gen.make_sde("ddpm", betas="linear", steps=100, beta_start=1e-3, beta_end=0.1)


def network(form: str, classes: int | None = None, out: int = 3, size: tuple[int, int] = (16, 12), **options: Any) -> Any:
    """A `unet2d` no parameter of which is zero, told the index."""
    torch.manual_seed(0)
    conditions = None if classes is None else {"label": {"kind": "label", "classes": classes, "fade": None}}
    given = {"width": 32, "multipliers": (1, 2), "clock_scale": 1.0, "clock_shift": 0.0} | FORMS[form] | options
    made = make_network("unet2d", (3, *size), conditions, out, **given)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        if classes is not None and not given["null"]:
            made.encoders["label"].table.weight[-1] = 0.0
    return made.eval()


def model_of(made: Any, sde: sde_gen.SDE = LINEAR, **settings: Any) -> sde_gen.ScoreModel:
    normalizer = sde_gen.Normalizer(torch.full((3, 1, 1), 127.5), torch.full((3, 1, 1), 127.5), "range")
    return sde_gen.ScoreModel(made, sde, **({"prediction": "noise", "clock": "index"} | settings), normalizer=normalizer).eval()


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return set(mine) == set(theirs) and all(torch.equal(mine[key], theirs[key]) for key in mine)


def noisy(count: int, size: tuple[int, int] = (16, 12)) -> torch.Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("classes", "out", "prediction"), [(None, 3, "v"), (5, 6, "noise")])
def test_a_pipeline_comes_back_to_the_bit(form: str, classes: int | None, out: int, prediction: str, tmp_path: Path) -> None:
    made = network(form, classes, out)
    model = model_of(made, prediction=prediction, variance="learned_range" if out == 6 else None)
    again = load_external(to_diffusers(model, tmp_path / "pipe"))
    assert same(again.network, made) and again.network.options == made.options and again.settings() == model.settings()
    assert again.sde.settings == LINEAR.settings and again.network.shape == (3, 16, 12)
    x, cond = noisy(2), {} if classes is None else {"label": torch.tensor([4, 0])}
    assert torch.equal(again.denoise(x, 0.4, **cond), model.denoise(x, 0.4, **cond))
    assert torch.equal(again.normalizer.decode(x), model.normalizer.decode(x))
    assert {again.source["facts"]["schedule"]["value"], again.source["format"]} == {"linear", "diffusers"}
    assert sorted(path.name for path in (tmp_path / "pipe").iterdir()) == ["model_index.json", "scheduler", "unet"]


def test_old_names_of_attention_and_bf16(tmp_path: Path) -> None:
    made = network("plain")
    folder = to_diffusers(model_of(made), tmp_path / "pipe") / "unet"
    file = folder / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(file)
    for new, name in old.items():
        weights = {(key.replace(f".{new}.", f".{name}.") if ".attentions." in key else key): value for key, value in weights.items()}
    assert any(".query." in key for key in weights)
    file.unlink()
    torch.save({key: value.bfloat16() for key, value in weights.items()}, folder / "diffusion_pytorch_model.bin")
    found = load_external(tmp_path / "pipe").network
    assert next(found.parameters()).dtype == torch.float32
    for (name, value), wanted in zip(found.named_parameters(), made.parameters(), strict=True):
        assert torch.equal(value, wanted.bfloat16().float()), name


@pytest.mark.parametrize(
    ("sde", "clock", "scale", "shift"),
    [
        (sde_gen.make_sde("vp"), "half_log_snr", -60.0, 600.0),
        (sde_gen.make_sde("cosine"), "half_log_snr", 25.0, 300.0),
        (sde_gen.make_sde("vp"), "time", 200.0, 0.4),
        (LINEAR, "index", 0.5, 3.0),
    ],
)
def test_any_clock_becomes_steps_of_a_chain(sde: sde_gen.SDE, clock: str, scale: float, shift: float, tmp_path: Path) -> None:
    """At the noise level of each step the pipeline's network denoises as the model does, whatever the model tells it."""
    model = model_of(network("ddpm", 4, null=True, clock_scale=scale, clock_shift=shift), sde, prediction="v", clock=clock)
    again = load_external(to_diffusers(model, tmp_path / "pipe"))
    assert again.network.options["clock_scale"] == 1.0 and again.clock == "index"
    times = again.sde.points.times
    level = again.sde.half_log_snr(times)
    assert len(times) > 20 and float(level[0]) <= float(sde.half_log_snr(sde.t_min)) + 1e-6
    ends = scale * model.scales(torch.tensor([sde.t_min, sde.t_max]).double()).clock
    assert len(times) == pytest.approx(float((ends[0] - ends[1]).abs()), abs=1.01)
    x = noisy(2)
    for k in (0, len(times) // 3, len(times) - 1):
        told = {"label": torch.tensor([1, 4])}  # the last is that of no label, learned
        wanted = model.denoise(x, sde.time_of(level[k]), **told)
        assert again.network.options["null"] is False and again.network.classes == 5
        torch.testing.assert_close(again.denoise(x, times[k], **told), wanted, rtol=1e-3, atol=1e-3)


def test_what_is_trained_here_is_written(tmp_path: Path) -> None:
    """Of pictures by `train`, with a network whose input is not scaled."""
    data = torch.randint(256, (32, 3, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    options = {"width": 8, "groups": 4, "multipliers": (1, 2)}
    model = sde_gen.train(
        data, network="unet2d", network_options=options, prediction="noise", normalizer="range", steps=3, progress=False, seed=0
    )
    assert model.scale_input is False
    again = load_external(to_diffusers(model, tmp_path / "pipe"))
    level = again.sde.half_log_snr(again.sde.points.times)
    x = noisy(2, (8, 8))
    torch.testing.assert_close(
        again.noise(x, again.sde.points.times[300]), model.noise(x, model.sde.time_of(level[300])), rtol=1e-3, atol=1e-3
    )


def test_adm_is_written_where_it_is_the_same_function(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"width": 32, "multipliers": (1, 2), "attention": (0, 1), "group": 1, "null": False, "clock_scale": 1.0, "clock_shift": 0.0}
    made = make_network("adm", (3, 16, 16), 4, 6, head_channels=16, **options)
    made.encoders["label"].fade = None
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model = model_of(made.eval(), variance="learned_range")
    again = load_external(to_diffusers(model, tmp_path / "pipe"))
    x, label = noisy(2, (16, 16)), torch.tensor([3, 0])
    torch.testing.assert_close(again.denoise(x, 0.3, label=label), model.denoise(x, 0.3, label=label), rtol=1e-5, atol=1e-5)
    with pytest.raises(CheckpointError, match="groups, those of UNet2DModel one number"):
        to_diffusers(model_of(make_network("adm", (3, 16, 16), **options | {"width": 16}, head_channels=16)), tmp_path / "b")
    with pytest.raises(CheckpointError, match="attention heads have 16, 32 channels"):
        to_diffusers(model_of(make_network("adm", (3, 16, 16), **options, heads=2)), tmp_path / "c")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": make_network("song", (3, 16, 12), width=8)}, "is no SongUNet: train network='unet2d'"),
        ({"clock": "time", "clock_scale": 1.0}, "fewer than two whole steps"),
        ({"prediction": "score"}, "no prediction 'score': it has noise, data, v"),
        ({"prediction": "edm", "data_std": 0.5}, "no prediction 'edm'"),
        ({"scale_input": True, "data_std": 0.5}, "input is scaled"),
        ({"sde": sde_gen.make_sde("ve"), "clock": "time"}, "does not preserve the variance"),
        ({"sde": sde_gen.make_sde("subvp"), "clock": "time"}, "does not preserve the variance"),
        ({"normalizer": sde_gen.Normalizer(torch.zeros(3, 1, 1), torch.ones(3, 1, 1))}, "normalizer='range'"),
        ({"conditions": {"label": {"kind": "label", "classes": 3, "fade": 3.0}}}, "label fades below a half log-SNR of 3"),
        ({"conditions": {"size": {"kind": "numbers", "size": 1}}}, "class labels alone, not the condition 'size'"),
    ],
)
def test_what_cannot_be_written_says_why(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    scale, given = change.pop("clock_scale", 99.0), dict(change)
    conditions, normalizer = given.pop("conditions", None), given.pop("normalizer", None)
    made = given.pop("network", None) or make_network("unet2d", (3, 16, 12), conditions, width=8, clock_scale=scale, clock_shift=0.0)
    model = model_of(made, given.pop("sde", LINEAR), **given)
    model.normalizer = normalizer or model.normalizer
    with pytest.raises(CheckpointError, match=message) as caught:
        to_diffusers(model, tmp_path / "pipe")
    assert "\n" not in str(caught.value) and not (tmp_path / "pipe").exists()
    change["clock_scale"] = scale


def test_a_wrapped_model_and_a_full_folder_are_refused(tmp_path: Path) -> None:
    model = model_of(network("plain", 3, null=True))
    with pytest.raises(TypeError, match="takes a ScoreModel"):
        to_diffusers(sde_gen.guide(model, strength=2.0), tmp_path / "pipe")  # type: ignore[arg-type]
    to_diffusers(model, tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="there already and not empty"):
        to_diffusers(model, tmp_path / "pipe")


def rewritten(folder: Path, **changes: Any) -> Path:
    """The folder with other settings of its scheduler (None: left out)."""
    file = folder / "scheduler" / "scheduler_config.json"
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return folder


def test_schedulers(tmp_path: Path) -> None:
    folder = to_diffusers(model_of(network("plain")), tmp_path / "pipe")
    ends = {"beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 50}
    for name, ours in (("linear", "linear"), ("scaled_linear", "quadratic"), ("squaredcos_cap_v2", "cosine"), ("sigmoid", "sigmoid")):
        sde = load_external(rewritten(folder, **ends, beta_schedule=name)).sde
        more = {} if ours == "cosine" else {"beta_start": 1e-4, "beta_end": 0.02}
        assert sde.settings == sde_gen.make_sde("ddpm", betas=ours, steps=50, **more).settings
    betas = torch.linspace(0.001, 0.3, 7, dtype=torch.float64)
    given = load_external(rewritten(folder, trained_betas=betas.tolist())).sde
    torch.testing.assert_close(given.points.alpha, torch.cumprod(1 - betas, 0).sqrt())
    rescaled = load_external(rewritten(folder, rescale_betas_zero_snr=True)).sde.points.alpha
    alpha = torch.cumprod(1 - betas, 0).sqrt()
    torch.testing.assert_close(rescaled, ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1]))[:-1])
    rewritten(folder, rescale_betas_zero_snr=False)
    for theirs, ours in (("epsilon", "noise"), ("sample", "data"), ("v_prediction", "v")):
        assert load_external(rewritten(folder, prediction_type=theirs)).prediction == ours
    facts = load_external(rewritten(folder, clip_sample=True, thresholding=True)).source["facts"]
    assert facts["clip_sample"] == {"value": False, "from": "left off; DDPMScheduler says True"} and not facts["thresholding"]["value"]
    for change, message in (
        ({"prediction_type": "flow"}, "prediction_type = 'flow'; choose from epsilon, sample, v_prediction"),
        (
            {"prediction_type": "epsilon", "trained_betas": None, "beta_schedule": "laplace"},
            "beta_schedule = 'laplace'; choose from linear",
        ),
        ({"beta_schedule": "linear", "_class_name": "LCMScheduler"}, "LCMScheduler is of a consistency model"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "timestep_type = 'continuous': only 'discrete' is read"),
        ({"timestep_type": None, "snr_shift_scale": 3.0}, "snr_shift_scale = 3.0: only 1.0 is read"),
        ({"snr_shift_scale": None, "num_train_timesteps": 10**9, "trained_betas": None}, "more than 65536 steps"),
        ({"beta_schedule": None, "_class_name": "FlowMatchEulerDiscreteScheduler"}, "has no betas: .*no flows nor consistency"),
    ):
        with pytest.raises(ValueError, match=message):
            load_external(rewritten(folder, **change))


def test_edm_and_unets_alone(tmp_path: Path) -> None:
    made = network("plain")
    folder = to_diffusers(model_of(made), tmp_path / "pipe")
    scheduler = {"_class_name": "EDMEulerScheduler", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "prediction_type": "epsilon"}
    model = from_diffusers(folder / "unet", scheduler=scheduler)
    assert model.prediction == "edm" and model.clock == "c_noise" and model.data_std == 0.5 and model.scale_input
    assert same(from_diffusers(folder / "unet").network, made)  # the scheduler lies beside it
    (folder / "unet").rename(tmp_path / "alone")
    with pytest.raises(ValueError, match=r"a UNet2DModel alone does not say its process: give from_diffusers\(..., scheduler="):
        from_diffusers(tmp_path / "alone")
    assert same(from_diffusers(tmp_path / "alone", scheduler=folder / "scheduler").network, made)


def test_what_is_no_folder_of_theirs(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder of diffusers"):
        load_external(tmp_path)
    folder = to_diffusers(model_of(network("plain")), tmp_path / "pipe")
    with pytest.raises(ValueError, match="folder, which only diffusers writes"):
        load_external(folder, config="lsun_cat")
    with pytest.raises(ValueError, match="'colour', which this format does not know"):
        load_external(folder, config={"colour": 1})
    with pytest.raises(ValueError, match="size = 8, but the file"):
        load_external(folder, config={"size": 8})
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    for change, message in (
        ({"conv_in.weight": None}, "the file lacks 'conv_in.weight'"),
        ({"more": torch.zeros(2)}, "1 tensors that this network has not, as 'more'"),
        ({"conv_in.weight": torch.zeros(32, 4, 3, 3)}, "enter.weight should be"),
    ):
        save_file({key: value for key, value in (weights | change).items() if value is not None}, file)
        with pytest.raises(CheckpointError, match=message):
            load_external(folder)
    file.unlink()
    with pytest.raises(CheckpointError, match="no weights in one file"):
        load_external(folder)
    (folder / "unet" / "config.json").write_text("[1")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        load_external(folder)
    (folder / "unet" / "config.json").write_text(json.dumps({"_class_name": "os.system"}))
    with pytest.raises(CheckpointError, match="does not name the network's class"):
        load_external(folder)


WRONG = ([], 0, 10**9, [10**400])


@pytest.mark.parametrize("part", ["unet/config.json", "scheduler/scheduler_config.json", "model_index.json"])
def test_any_wrong_setting_is_one_line(part: str, tmp_path: Path) -> None:
    """Each setting missing, of another type or far too large: what is raised is a line for the user, and nothing large is made."""
    folder = to_diffusers(model_of(network("plain", size=(8, 8), width=16, groups=4)), tmp_path / "pipe")
    values = json.loads((folder / part).read_text())
    for name in values:
        others = [{key: value for key, value in values.items() if key != name}, *(values | {name: wrong} for wrong in WRONG)]
        for other in others:
            (folder / part).write_text(json.dumps(other))
            try:
                load_external(folder)
            except (ValueError, ImportError) as error:
                assert "\n" not in str(error) and len(str(error)) < 600, (name, other.get(name))


def test_hostile_folders(tmp_path: Path) -> None:
    folder = to_diffusers(model_of(network("plain")), tmp_path / "pipe")
    config = json.loads((folder / "unet" / "config.json").read_text())
    for change, message in (
        ({"layers_per_block": 10**9}, "layers_per_block = 1000000000, with .* tensors: no network is so large"),
        ({"num_class_embeds": 10**9}, "num_class_embeds = 1000000000"),
        ({"block_out_channels": [10**9]}, "block_out_channels = 1000000000"),
        ({"block_out_channels": [32] * 10**5}, "lists 100000 block_out_channels"),
        ({"block_out_channels": []}, "is not what diffusers writes: IndexError"),
        ({"attention_head_dim": 0}, "is not what diffusers writes: ZeroDivisionError"),
    ):
        (folder / "unet" / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError, match=message):
            load_external(folder)
    (folder / "unet" / "config.json").unlink()
    os.mkfifo(folder / "unet" / "config.json")  # which nobody writes
    with pytest.raises(CheckpointError, match="no such file"):
        load_external(folder)
    (folder / "unet" / "config.json").unlink()
    (folder / "unet" / "config.json").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="no such file"):
        load_external(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"time_embedding_type": "fourier"},
        {"block_out_channels": [32, 48]},
        {"down_block_types": ["SkipDownBlock2D", "AttnDownBlock2D"]},
        {"up_block_types": ["UpBlock2D", "UpBlock2D"]},
        {"attention_head_dim": 24},
        {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": None},
        {"act_fn": "mish"},
        {"freq_shift": 2},
        {"class_embed_type": "timestep"},
        {"mid_block_type": None},
        {"down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"]},
    ],
)
def test_what_unet2d_is_not(change: dict[str, Any]) -> None:
    config = config_of(network("plain"))
    assert options_of(config) == network("plain").options
    with pytest.raises(Unlike):
        options_of(config | change)


def test_where_the_library_is_missing_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    real = builtins.__import__

    def absent(name: str, *arguments: Any, **more: Any) -> Any:
        if name.split(".")[0] == "diffusers":
            raise ModuleNotFoundError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match="package diffusers, which is not here: pip install diffusers"):
        make_network("diffusers", (3, 16, 16))


# Beside the library.

UNETS: dict[str, dict[str, Any]] = {
    "width 128": {"block_out_channels": (128, 128), "layers_per_block": 1},
    "ddpm": {
        "block_out_channels": (32, 64),
        "norm_num_groups": 8,
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        "downsample_padding": 0,
        "attention_head_dim": None,
        "norm_eps": 1e-6,
    },
    "blocks": {
        "block_out_channels": (32, 64),
        "norm_num_groups": 8,
        "attn_norm_num_groups": 8,
        "resnet_time_scale_shift": "scale_shift",
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "num_class_embeds": 5,
        "out_channels": 6,
    },
}


def unet_of_theirs(diffusers: Any, name: str) -> Any:
    torch.manual_seed(0)
    levels = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    made = diffusers.UNet2DModel(sample_size=8, **levels | UNETS[name])
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return made.eval()


def far(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("name", UNETS)
def test_unets_of_the_library_and_back(name: str, tmp_path: Path) -> None:
    """The same outputs to 1e-5, weights that come back to the bit, and the same DDIM samples from the written pipeline."""
    diffusers = peer("diffusers")
    theirs = unet_of_theirs(diffusers, name)
    variance = {"variance_type": "learned_range"} if theirs.config.out_channels == 6 else {}
    pipeline = diffusers.DDPMPipeline(theirs, diffusers.DDPMScheduler(num_train_timesteps=100, beta_end=0.2, clip_sample=False, **variance))
    pipeline.save_pretrained(tmp_path / "theirs")
    model = from_diffusers(tmp_path / "theirs")
    assert type(model.network).__name__ == "UNet2D" and same(model.network, from_diffusers(pipeline).network)
    x, label = noisy(2, (8, 8)), torch.tensor([4, 1])
    labels = theirs.config.num_class_embeds is not None
    told = {"class_labels": label} if labels else {}
    step = torch.tensor([73.0, 2.0])
    with torch.no_grad():
        wanted = theirs(x, step, **told).sample
        assert far(model.network(x, step, **({"label": label} if labels else {})), wanted) < 1e-5
    again = diffusers.DDPMPipeline.from_pretrained(to_diffusers(model, tmp_path / "ours"))
    for key, value in theirs.state_dict().items():
        assert torch.equal(value, again.unet.state_dict()[key]), key
    assert torch.allclose(again.scheduler.betas, pipeline.scheduler.betas, rtol=1e-6)
    scheduler = diffusers.DDIMScheduler.from_config(again.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(5)
    state = x
    with torch.no_grad():
        for step in scheduler.timesteps:
            output = again.unet(state, step, **told).sample
            state = scheduler.step(output[:, :3], step, state).prev_sample
    times = scheduler_times(model, 5)
    torch.testing.assert_close(model.sde.position(times).long(), scheduler.timesteps)
    out = sde_gen.sample(
        model, x.shape, solver="ddim", grid=times, x_init=x, cond={"label": label} if labels else None,
        final="denoise", progress=False,
    )  # fmt: skip
    assert far((out.x - 127.5) / 127.5, state) < 1e-5


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_spacings_are_the_library_s(spacing: str, tmp_path: Path) -> None:
    diffusers = peer("diffusers")
    model = load_external(rewritten(to_diffusers(model_of(network("plain")), tmp_path / "pipe"), timestep_spacing=spacing))
    for steps in (1, 7, 50, 100):
        scheduler = diffusers.DDPMScheduler(num_train_timesteps=100, timestep_spacing=spacing)
        scheduler.set_timesteps(steps)
        assert model.sde.position(scheduler_times(model, steps)).round().long().tolist() == scheduler.timesteps.tolist()


def wrapped(kind: str, diffusers: Any) -> tuple[Any, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A small network of the library's, its conditions as ours and as the library's keywords."""
    torch.manual_seed(0)
    tokens = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(2))
    label = torch.tensor([2, 0])
    if kind == "UNet2DConditionModel":
        made = diffusers.UNet2DConditionModel(
            sample_size=16, in_channels=3, out_channels=3, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=16,
            norm_num_groups=8, attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
        return made, {"encoder_hidden_states": tokens}, {"encoder_hidden_states": tokens}
    if kind == "DiTTransformer2DModel":
        made = diffusers.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=3, out_channels=6, num_layers=2, norm_num_groups=1, sample_size=16,
            num_embeds_ada_norm=5,
        )  # fmt: skip
        return made, {"label": label}, {"class_labels": label}
    made = diffusers.Transformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=8, num_layers=1, norm_num_groups=4, sample_size=16,
        cross_attention_dim=16, num_embeds_ada_norm=100, norm_type="ada_norm",
    )  # fmt: skip
    return made, {"encoder_hidden_states": tokens}, {"encoder_hidden_states": tokens}


@pytest.mark.parametrize("kind", ["UNet2DConditionModel", "DiTTransformer2DModel", "Transformer2DModel"])
def test_other_networks_are_the_library_s_own(kind: str, tmp_path: Path) -> None:
    diffusers = peer("diffusers")
    theirs, cond, told = wrapped(kind, diffusers)
    theirs = theirs.eval()
    theirs.save_pretrained(tmp_path / "transformer")
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=100, beta_end=0.2, prediction_type="v_prediction")
    model = from_diffusers(tmp_path / "transformer", scheduler=scheduler)
    channels = theirs.config.in_channels
    x = torch.randn(2, channels, 16, 16, generator=torch.Generator().manual_seed(1))
    step = torch.tensor([10, 99])
    with torch.no_grad():
        if kind == "Transformer2DModel":  # which takes one step for all
            rows = [theirs(x[[k]], cond["encoder_hidden_states"][[k]], step[k], return_dict=False)[0] for k in range(2)]
        else:
            rows = [theirs(x, timestep=step, return_dict=False, **told)[0]]
    wanted = torch.cat(rows)[:, :channels]
    alpha, sigma = model.sde.marginal(model.sde.points.times[step])
    found = model.denoise(x.double(), model.sde.points.times[step], **cond)
    whole = (alpha[:, None, None, None] * x - sigma[:, None, None, None] * wanted).double()
    assert far(found, whole) < 1e-5
    if kind != "Transformer2DModel":  # which looks whole steps up; the others are told places between them
        between = model.denoise(x.double(), 0.5 * (model.sde.points.times[10] + model.sde.points.times[11]), **cond)
        assert not torch.equal(between[0], model.denoise(x.double(), model.sde.points.times[10], **cond)[0])
    again = sde_gen.load(sde_gen.save(model, tmp_path / "checkpoint"))
    assert same(again.network, model.network) and torch.equal(again.denoise(x, 0.5, **cond), model.denoise(x, 0.5, **cond))
    out = sde_gen.sample(model, x.shape, solver="ddim", steps=2, cond=cond, progress=False)
    assert bool(torch.isfinite(out.x).all())
    if kind == "DiTTransformer2DModel":  # which has learned what no label is
        none = model.denoise(x, 0.5)
        assert torch.equal(none, model.denoise(x, 0.5, label=torch.full((2,), 5))) and not torch.equal(none, model.denoise(x, 0.5, **cond))
    else:
        with pytest.raises(ValueError, match="'encoder_hidden_states' given for every sample"):
            model.denoise(x, 0.5)
    with pytest.raises(CheckpointError, match=f"is no {kind}"):
        to_diffusers(model, tmp_path / "out")


def test_score_sde_of_the_library(tmp_path: Path) -> None:
    """NCSN++ of 256 pixels in diffusers, which divides by the noise itself and works on pictures of 0 .. 1."""
    diffusers = peer("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.UNet2DModel(
        sample_size=16, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8, time_embedding_type="fourier",
        center_input_sample=True, down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"), mid_block_scale_factor=2**0.5,
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"), attention_head_dim=None,
    ).eval()  # fmt: skip
    pipeline = diffusers.ScoreSdeVePipeline(theirs, diffusers.ScoreSdeVeScheduler(sigma_max=348.0))
    model = from_diffusers(pipeline)
    x, sigma = noisy(2, (16, 16)), torch.tensor([0.3, 40.0])
    with torch.no_grad():
        wanted = theirs(x, sigma).sample
    t = model.sde.time_of(-torch.log(sigma.double()))
    assert far(model.score(x.double(), t), wanted) < 1e-5
    ends = model.normalizer.encode(torch.tensor([0.0, 255.0])[:, None, None, None].expand(2, 3, 1, 1))
    torch.testing.assert_close(ends.unique(), torch.tensor([0.0, 1.0]))
    with pytest.raises(CheckpointError, match="no prediction 'score'"):
        to_diffusers(model, tmp_path / "out")


def test_a_latent_pipeline_says_so(tmp_path: Path) -> None:
    diffusers = peer("diffusers")
    unet = unet_of_theirs(diffusers, "ddpm")
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=3, scaling_factor=0.13)
    scheduler = diffusers.DDIMScheduler()
    pipeline = type("LatentPipeline", (), {"unet": unet, "vae": vae, "scheduler": scheduler})()
    model = from_diffusers(pipeline)
    assert model.normalizer is None and model.source["facts"]["latents"]["value"] == "of AutoencoderKL, times 0.13"


def test_every_network_that_is_ours_is_known() -> None:
    assert {"unet2d", "diffusers"} <= set(NETWORKS)
