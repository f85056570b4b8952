"""Checkpoints in the libraries' own layouts: recognised, filled in, asked about; test_imported.py has what follows."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_checkpoints import adm_state, edm_pickle, edm_state, moved, randomised, score_sde_file, score_sde_state
from safetensors.torch import save_file

from sde_gen import CheckpointError
from sde_gen.external import FORMATS, PRESETS, load_external
from sde_gen.networks import make_network

SONG: dict[str, dict[str, Any]] = {
    "ncsnpp": {"embedding": "fourier", "noise_multiplier": 2, "encoder": "residual", "kernel": (1, 3, 3, 1), "clock_scale": -1.0}
    | {"clock_shift": -math.log(2)},
    "ncsnpp of three levels": {"embedding": "fourier", "noise_multiplier": 2, "encoder": "skip", "decoder": "skip", "kernel": (1, 3, 3, 1)}
    | {"multipliers": (1, 2, 2), "attention": (1, 2), "clock_scale": -1.0, "clock_shift": -math.log(2)},
    "ddpmpp": {"multipliers": (1, 2), "blocks": 2, "clock_scale": 999.0, "clock_shift": 0.0},
    "ddpm": {"resampling": "conv", "rescale": False, "group": 1, "width": 32, "clock_scale": 999.0, "clock_shift": 0.0},
    "ddpm of one level": {"resampling": "block", "multipliers": (2,), "attention": (0,), "clock_scale": 999.0, "clock_shift": 0.0},
}
VP = {"sde": "vp", "continuous": True, "centered": True, "beta_min": 0.1, "beta_max": 20.0, "size": 16}
VE = {"sde": "ve", "continuous": True, "centered": False, "scale_by_sigma": True, "size": 16}
ADM = {"size": 16, "schedule": "linear", "steps": 1000, "prediction": "noise", "rescale_timesteps": False}


def song(kind: str, **options: Any) -> Any:
    return randomised("song", **{"width": 16, "multipliers": (1, 2), "attention": (1,), **SONG[kind], **options})


def facts_of(kind: str) -> dict[str, Any]:
    rescaled = {} if kind == "ddpm" else {"skip_rescale": True, "fir": SONG[kind].get("kernel") == (1, 3, 3, 1)}
    return (VE if "ncsnpp" in kind else VP) | rescaled


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("kind", SONG)
def test_score_sde_comes_back_to_the_bit(kind: str, tmp_path: Path) -> None:
    raw = song(kind)
    average = moved(raw)
    path = score_sde_file(tmp_path / "checkpoint_8.pth", raw, average)
    for weights, network in (("ema", average), ("raw", raw)):
        model = load_external(path, config=facts_of(kind), weights=weights)
        assert same(model.network, network) and model.source["average"] == weights
        assert {key: model.network.options[key] for key in raw.options if key != "fourier_scale"} == {
            key: value for key, value in raw.options.items() if key != "fourier_scale"
        }


def test_an_average_of_other_tensors_is_refused(tmp_path: Path) -> None:
    raw = song("ncsnpp")
    path = score_sde_file(tmp_path / "a.pth", raw, raw)
    tree = torch.load(path, weights_only=True)
    tree["ema"]["shadow_params"].insert(0, tree["model"]["module.all_modules.0.W"])
    torch.save(tree, path)
    with pytest.raises(CheckpointError, match=r"averages \d+ tensors, but its network has \d+ that are trained"):
        load_external(path, config=facts_of("ncsnpp"))
    del tree["ema"]
    torch.save(tree, path)
    with pytest.raises(CheckpointError, match="weights='raw'"):
        load_external(path, config=facts_of("ncsnpp"))


EDM: dict[str, dict[str, Any]] = {
    "ncsnpp": SONG["ncsnpp"] | {"classes": 4},
    "skip": SONG["ncsnpp of three levels"],
    "ddpmpp": SONG["ddpmpp"],
    "adm": {"name": "adm", "width": 32, "head_channels": 64, "multipliers": (1, 2), "classes": 4, "attention": (1,)},
}


@pytest.mark.parametrize("kind", EDM)
@pytest.mark.parametrize("precond", ["EDMPrecond", "VPPrecond", "VEPrecond"])
def test_edm_comes_back(kind: str, precond: str, tmp_path: Path) -> None:
    clocks = {"EDMPrecond": (1.0, 0.0), "VPPrecond": (999.0, 0.0), "VEPrecond": (-1.0, -math.log(2))}
    options = {"name": "song", "width": 16, "multipliers": (1, 2), "attention": (1,)} | EDM[kind]
    scale, shift = clocks[precond]
    network = randomised(options.pop("name"), **options | {"clock_scale": scale, "clock_shift": shift})
    weights = edm_state(network)
    save_file({f"model.{key}": value.contiguous() for key, value in weights.items()}, tmp_path / "a.safetensors")
    edm_pickle(tmp_path / "a.pkl", network, precond)
    with pytest.raises(ValueError, match="precond"):
        load_external(tmp_path / "a.safetensors")
    for path, config, kind_of_file in (("a.safetensors", {"precond": precond}, "safetensors"), ("a.pkl", None, "inert")):
        model = load_external(tmp_path / path, config=config)
        assert model.source["read"] == kind_of_file and model.source["facts"]["precond"]["value"] == precond
        for key, value in network.state_dict().items():
            torch.testing.assert_close(model.network.state_dict()[key], value, rtol=1e-6, atol=1e-7)
        x, c = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.7])
        torch.testing.assert_close(model.network(x, c), network(x, c), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", ["legacy", "new"])
@pytest.mark.parametrize("resampling", ["block", "conv"])
@pytest.mark.parametrize("scale_shift", [True, False])
def test_adm_comes_back_to_the_bit(order: str, resampling: str, scale_shift: bool, tmp_path: Path) -> None:
    options = {"width": 32, "multipliers": (1, 2, 2), "attention": (1,), "head_channels": 16, "group": 1, "null": False, "blocks": 2}
    more = {"resampling": resampling, "scale_shift": scale_shift, "clock_scale": 1.0, "clock_shift": 0.0}
    network = randomised("adm", classes=5, out=6, **options, **more)
    torch.save(adm_state(network, order), tmp_path / "a.pt")
    model = load_external(tmp_path / "a.pt", config=ADM | {"attention_order": order, "head_channels": 16})
    assert same(model.network, network) and model.variance == "learned_range" and model.network.options == network.options
    other = load_external(
        tmp_path / "a.pt", config=ADM | {"attention_order": {"legacy": "new", "new": "legacy"}[order], "head_channels": 16}
    )
    assert not same(other.network, network)
    assert model.null("label", torch.zeros(3, dtype=torch.long)) is None
    with pytest.raises(ValueError, match="given for every sample"):
        model.denoise(torch.zeros(1, 3, 16, 16), 0.5)


def test_adm_of_half_the_width_at_its_first_level(tmp_path: Path) -> None:
    """As guided-diffusion's of 512 pixels, whose first level has half of the channels that its clock is made for."""
    options = {"width": 32, "multipliers": (1, 2), "attention": (1,), "noise_multiplier": 2, "group": 1, "null": False}
    network = randomised("adm", heads=2, clock_scale=0.25, clock_shift=0.0, **options)
    torch.save(adm_state(network, "legacy"), tmp_path / "a.pt")
    given = ADM | {"attention_order": "legacy", "heads": 2, "steps": 4000, "rescale_timesteps": True}
    assert same(load_external(tmp_path / "a.pt", config=given).network, network)


# The recurrent bugs of the trackers, each with what would let it through.


def test_a_fact_that_nobody_says_is_asked_for(tmp_path: Path) -> None:
    path = score_sde_file(tmp_path / "a.pth", song("ddpmpp"), song("ddpmpp"))
    with pytest.raises(ValueError, match=r"size \(.*sde \(.*continuous \(.*centered \(.*skip_rescale \(.*fir \("):
        load_external(path)
    given = facts_of("ddpmpp")
    for name in given:
        less = {key: value for key, value in given.items() if key != name}
        with pytest.raises(ValueError, match=rf"does not say {name} \("):
            load_external(path, config=less)
    torch.save(adm_state(randomised("adm", width=32, group=1, null=False), "legacy"), tmp_path / "a.pt")
    given = ADM | {"attention_order": "legacy", "heads": 1}
    for name in given:
        with pytest.raises(ValueError, match=rf"does not say {name} \("):
            load_external(tmp_path / "a.pt", config={key: value for key, value in given.items() if key != name})


def test_what_contradicts_the_file_is_refused(tmp_path: Path) -> None:
    path = score_sde_file(tmp_path / "a.pth", song("ncsnpp"), song("ncsnpp"))
    for wrong, message in (
        ({"width": 128}, "width = 128, but the file 16"),
        ({"sigma_max": 90.0}, "sigma_max = 90.0, but the file (50|49.99)"),
        ({"multipliers": [1, 2, 2]}, r"multipliers = \[1, 2, 2\]"),
        ({"fir": False}, "fir = False, but the file True"),
        ({"attention_sizes": [16]}, r"attention_sizes = \[16\], but the file \[8\]"),
        ({"sde": "vpp"}, "sde = 'vpp'; allowed: 've', 'vp', 'subvp'"),
        ({"size": 0}, "size = 0"),
        ({"size": 15}, "size = 15.*cannot halve"),
        ({"colour": 1}, "'colour', which this format does not know; known: size"),
        ({"scale_by_sigma": False}, "scale_by_sigma = False"),
        ({"continuous": 1}, "continuous = 1; allowed: True, False"),
        ({"preset": "ve/cifar10"}, "no preset 've/cifar10'; known: ve/cifar10_ncsnpp"),
        ({"preset": "lsun_cat"}, "it is one of adm"),
        ({"preset": "vp/cifar10_ddpmpp_continuous"}, "but the file"),
    ):
        with pytest.raises(ValueError, match=message):
            load_external(path, config=facts_of("ncsnpp") | wrong)
    with pytest.raises(ValueError, match="unknown format 'tf'; choose from score_sde, edm, adm"):
        load_external(path, format="tf")
    with pytest.raises(CheckpointError, match="holds no network of edm"):
        load_external(path, format="edm")
    with pytest.raises(ValueError, match="unknown weights 'best'"):
        load_external(path, weights="best")
    with pytest.raises(ValueError, match="value_range"):
        load_external(path, value_range=(1.0, 0.0))
    with pytest.raises(TypeError, match="preset's name or a dict"):
        load_external(path, config=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FORMATS)
def test_presets_know_their_own_format_alone(name: str) -> None:
    from sde_gen.external.facts import MEANINGS, Facts

    assert len(PRESETS[name]) >= (2 if name == "lucid" else 9)  # which published no networks
    for facts in PRESETS[name].values():
        Facts(facts, FORMATS[name].FACTS)
    assert set(MEANINGS) >= {"size", "sde"}


def test_the_published_networks_have_their_published_size() -> None:
    """In millions of parameters: those of Karras et al. 2022, table 7 (CIFAR-10, FFHQ, ImageNet), and of Ho et al. 2020, whose network has
    attention in each of the three blocks of a level on the way up, score_sde's in the last alone."""
    attention = 4 * (256 * 256 + 256) + 2 * 256
    song = {"width": 128, "blocks": 4}
    ddpm = {"blocks": 2, "resampling": "conv", "rescale": False, "group": 1, "multipliers": [1, 2, 2, 2], "attention": [1]}
    adm = {"width": 192, "multipliers": [1, 2, 3, 4], "blocks": 3, "attention": [1, 2, 3], "head_channels": 64}
    for name, size, classes, options, count in (
        ("song", 32, None, song | {"multipliers": [2, 2, 2], "attention": [1]}, 55.7),
        ("song", 64, None, song | {"multipliers": [1, 2, 2, 2], "attention": [2]}, 61.8),
        ("adm", 64, 1000, adm, 295.9),
        ("song", 32, None, song | ddpm, 35.7 - 2 * attention / 1e6),
    ):
        with torch.device("meta"):
            network = make_network(name, (3, size, size), classes, **options)
        assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(count, abs=0.06)


def test_units_of_the_pictures(tmp_path: Path) -> None:
    """The noise of a VE process in 0 .. 1 is that of 0.01 .. 50 there, whatever the pictures' range outside is."""
    path = score_sde_file(tmp_path / "a.pth", song("ncsnpp"), song("ncsnpp"))
    for low, high in ((0.0, 255.0), (0.0, 1.0), (-1.0, 1.0)):
        model = load_external(path, config=facts_of("ncsnpp"), value_range=(low, high))
        ends = torch.tensor([low, high])[:, None, None, None].expand(2, 3, 16, 16)
        assert torch.equal(model.normalizer.encode(ends).unique(), torch.tensor([-1.0, 1.0]))
        assert float(model.sde.marginal(torch.tensor(1.0))[1]) == pytest.approx(2 * 50.0)
        assert float(model.normalizer.log_det(torch.zeros(1, 3, 16, 16))) == pytest.approx(-768 * math.log((high - low) / 2))
    centred = load_external(path, config=facts_of("ncsnpp") | {"centered": True})
    assert float(centred.sde.marginal(torch.tensor(1.0))[1]) == pytest.approx(50.0)


def test_clocks(tmp_path: Path) -> None:
    """What the network is told, at the ends and in the middle."""

    def told(model: Any, t: float) -> float:
        level = model.network.embedding.level
        c = model.scales(torch.tensor([t], dtype=torch.float64)).clock
        return float(level.scale * c + level.shift)

    ve, vp = (score_sde_file(tmp_path / f"{k}.pth", song(k), song(k)) for k in ("ncsnpp", "ddpmpp"))
    discrete = song("ddpmpp", encoder="residual", kernel=(1, 3, 3, 1), clock_scale=-999.0, clock_shift=999.0)
    of_chain = score_sde_file(tmp_path / "chain.pth", discrete, discrete)
    assert told(load_external(vp, config=facts_of("ddpmpp")), 0.5) == pytest.approx(499.5)
    chain = load_external(vp, config=facts_of("ddpmpp") | {"continuous": False})
    assert told(chain, 1.0) == pytest.approx(999.0) and told(chain, 0.001) == pytest.approx(0.0)
    assert float(chain.sde.marginal(torch.tensor(1.0, dtype=torch.float64))[0]) ** 2 == pytest.approx(4.04e-5, rel=0.01)
    model = load_external(ve, config=facts_of("ncsnpp"))
    assert told(model, 1.0) == pytest.approx(math.log(50.0)) and told(model, 0.0) == pytest.approx(math.log(0.01))
    facts = VE | {"continuous": False, "skip_rescale": True}
    reversed_ = load_external(of_chain, config=facts)
    assert told(reversed_, 0.0) == pytest.approx(999.0) and told(reversed_, 1.0) == pytest.approx(0.0)
    adm = randomised("adm", width=32, group=1, null=False)
    torch.save(adm_state(adm, "legacy"), tmp_path / "a.pt")
    given = ADM | {"attention_order": "legacy", "heads": 1, "steps": 4000, "schedule": "cosine"}
    assert told(load_external(tmp_path / "a.pt", config=given), 1.0) == pytest.approx(3999.0)
    assert told(load_external(tmp_path / "a.pt", config=given | {"rescale_timesteps": True}), 1.0) == pytest.approx(3999 / 4)
    edm = randomised("song", width=16, multipliers=(1, 2))
    for precond, wanted in (("EDMPrecond", math.log(80.0) / 4), ("VPPrecond", 999.0), ("VEPrecond", math.log(50.0))):
        assert told(load_external(edm_pickle(tmp_path / "e.pkl", edm, precond)), 1.0) == pytest.approx(wanted)


def test_noise_and_score_are_not_the_same(tmp_path: Path) -> None:
    """VE networks give sigma times the score, VP networks the noise: the same network as either one denoises with opposite signs."""
    x, t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.9])
    for kind, sign in (("ncsnpp", -1.0), ("ddpmpp", 1.0)):
        model = load_external(score_sde_file(tmp_path / "a.pth", song(kind), song(kind)), config=facts_of(kind))
        output = model.network(x, model.scales(t.double()).clock.float())
        torch.testing.assert_close(model.noise(x, t), sign * output, rtol=1e-3, atol=1e-3)


def test_learned_variance_is_not_taken_for_colour(tmp_path: Path) -> None:
    network = randomised("adm", width=32, group=1, null=False, out=6)
    torch.save(adm_state(network, "legacy"), tmp_path / "a.pt")
    model = load_external(tmp_path / "a.pt", config=ADM | {"attention_order": "legacy", "heads": 1})
    x = torch.randn(2, 3, 16, 16)
    assert model.denoise(x, 0.5).shape == x.shape and model.predict(x, 0.5).variance_fraction.shape == x.shape
    narrow = adm_state(network, "legacy")
    narrow["out.2.weight"], narrow["out.2.bias"] = narrow["out.2.weight"][:5], narrow["out.2.bias"][:5]
    torch.save(narrow, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="5 outputs for 3 inputs"):
        load_external(tmp_path / "a.pt", config=ADM | {"attention_order": "legacy", "heads": 1})


def test_scaling_is_in_the_model_and_not_in_the_network_too(tmp_path: Path) -> None:
    """EDM's network gets c_in x once."""
    network = randomised("song", width=16, multipliers=(1, 2), clock_scale=1.0, clock_shift=0.0)
    model = load_external(edm_pickle(tmp_path / "e.pkl", network))
    t = torch.tensor([0.6], dtype=torch.float64)
    sigma = float(model.sde.marginal(t)[1])
    x = sigma * torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    s2 = 0.25 + sigma**2
    wanted = 0.25 / s2 * x + sigma * 0.5 / math.sqrt(s2) * network(x / math.sqrt(s2), torch.tensor([math.log(sigma) / 4]))
    torch.testing.assert_close(model.denoise(x, t), wanted, rtol=1e-4, atol=1e-5)


def test_frequencies_are_not_averaged(tmp_path: Path) -> None:
    """W of NCSN++ has no gradient: it is in the model and not in the average, whose list is one shorter than the parameters."""
    raw = song("ncsnpp")
    model = load_external(score_sde_file(tmp_path / "a.pth", raw, moved(raw)), config=facts_of("ncsnpp"))
    assert torch.equal(model.network.embedding.level.frequencies, raw.embedding.level.frequencies)
    assert len(score_sde_state(raw)) - 2 == len(list(raw.parameters())) + sum(4 for m in raw.modules() if type(m).__name__ == "Attention")
