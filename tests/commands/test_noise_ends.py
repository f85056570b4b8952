"""The ends of the noise from the data: planted distances and levels are found, units do not matter, bad choices are named."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from toys import TINY_RUN, Command

import sde_gen
from sde_gen.commands.noise_ends import HIDDEN, MISMATCH, SUGGESTED, distances, granularity, ill_chosen, suggest_ends
from sde_gen.data import Normalizer, load_dataset
from sde_gen.sdes import SDES, make_sde

TINY = {"width": 16, "depth": 1}


def normal(count: int = 400, *shape: int) -> torch.Tensor:
    return torch.randn(count, *(shape or (3,)), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_distances_are_those_of_all_pairs() -> None:
    z = torch.cat((normal(), normal()[:5]))  # five copies, which are no neighbours
    found = distances(z)
    pairs = torch.cdist(z, z)
    assert found.largest == pytest.approx(float(pairs.max()), rel=1e-9)
    apart = pairs.masked_fill(pairs < 1e-6, math.inf).amin(1)
    assert found.neighbour == pytest.approx(float(apart.median()), rel=1e-9)
    assert (found.items, found.dimensions) == (405, 3)
    assert distances(normal(5000, 2)).items == 2000
    assert distances(torch.ones(4, 2)).largest == 0.0


def test_many_dimensions_are_compared_in_fewer_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sde_gen.commands.noise_ends.MOST_PRODUCTS", 64 * 100)
    found = distances(torch.zeros(300, 1, 8, 8).index_fill_(0, torch.tensor([299]), 1.0))
    assert found.items == 10 and found.largest == pytest.approx(8.0)  # the ends of the data are among them


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (100.0, 5000.0), (1e-3, -7.0)])
def test_levels_are_found_in_any_units(scale: float, shift: float) -> None:
    whole = torch.randint(0, 17, (300, 2, 4), generator=torch.Generator().manual_seed(0))
    data = (whole * scale + shift).float()
    units = Normalizer.fit(data)
    assert granularity(units.encode(data)) == pytest.approx(scale / float(units.scale.max()), rel=1e-3)


def test_data_without_levels_have_none() -> None:
    assert granularity(normal()) is None
    mixed = torch.stack((torch.arange(400.0) % 5, normal()[:, 0].float()), dim=1)
    assert granularity(mixed) is None, "one feature is continuous"
    uneven = torch.tensor([0.0, 1.0, math.e])[torch.arange(400) % 3][:, None]
    assert granularity(uneven) is None
    assert granularity(torch.stack((torch.arange(400.0) % 5, torch.ones(400)), dim=1)) == 1.0, "a constant feature says nothing"


def test_sigma_max_is_the_largest_distance_and_sigma_min_half_a_bins_deviation() -> None:
    z = 0.5 * (torch.arange(400) % 9)[:, None].double() * torch.ones(1, 4)
    found = suggest_ends(z, "ve")
    assert found.settings == {"sigma_min": pytest.approx(0.5 * 0.5 / 12**0.5, rel=5e-3), "sigma_max": 8.0}
    assert found.evidence[1] == "sigma_max 8: largest pairwise distance 8 among 400 items (Song and Ermon 2020)"
    assert "levels 0.5 apart" in found.evidence[0]
    clusters = normal(400, 2) * 1e-3 + torch.arange(2).repeat(200)[:, None]
    assert suggest_ends(clusters, "ve").settings["sigma_min"] < 1e-3 < suggest_ends(normal(), "ve").settings["sigma_min"] == 0.01


@pytest.mark.parametrize("name", ["vp", "subvp", "cosine"])
@pytest.mark.parametrize("shape", [(2,), (1, 8, 8), (3, 16, 16)])
def test_the_prior_is_near_the_data_at_the_end(name: str, shape: tuple[int, ...]) -> None:
    z = normal(300, *shape)
    found = suggest_ends(z, name)
    assert set(found.settings) == set(SUGGESTED[name])
    sde = make_sde(name, **found.settings)
    largest, count = distances(z).largest, math.prod(shape)
    alpha, sigma = (float(value) for value in sde.marginal(torch.tensor(sde.t_max, dtype=torch.float64)))
    # N(alpha x, sigma^2 I) against N(0, I), by torch, for an item x at the largest distance.
    away = torch.distributions.Normal(torch.tensor(alpha * largest / count**0.5), sigma)
    mismatch = float(torch.distributions.kl_divergence(away, torch.distributions.Normal(0.0, 1.0)))
    assert mismatch < 1.05 * MISMATCH and alpha * largest < 1.05 * HIDDEN * sigma
    assert mismatch > 0.9 * MISMATCH or alpha * largest > 0.95 * HIDDEN * sigma, "and not much nearer"
    assert float(sde.half_log_snr(sde.t_min)) == pytest.approx(-math.log(suggest_ends(z, "ve").settings["sigma_min"]), abs=0.02)
    assert not ill_chosen(z, sde)


def test_beta_max_suits_the_beta_min_that_is_given() -> None:
    z = normal()
    for beta_min in (0.01, 2.0):
        beta_max = suggest_ends(z, "vp", {"beta_min": beta_min}).settings["beta_max"]
        assert beta_max + beta_min == pytest.approx(suggest_ends(z, "vp", {}).settings["beta_max"] + 0.1, rel=0.01)
    with pytest.raises(ValueError, match="beta_min must be positive and finite, got 'x'"):
        suggest_ends(z, "vp", {"beta_min": "x"})


def test_what_cannot_be_suggested_is_one_line() -> None:
    with pytest.raises(ValueError, match="no setting of SDE 'ddpm' can be auto; it is for vp, subvp, ve, cosine"):
        suggest_ends(normal(), "ddpm")
    with pytest.raises(ValueError, match="are equal"):
        suggest_ends(torch.ones(9, 2), "ve")


@pytest.mark.parametrize("name", SUGGESTED)
@pytest.mark.parametrize("kind", ["standard", "range"])
@pytest.mark.parametrize("source", ["digits", "table"])
def test_data_scaled_by_100_and_shifted_give_the_same(name: str, kind: str, source: str) -> None:
    data = load_dataset(source, limit=1000).train
    found = [suggest_ends(Normalizer.fit(x, kind).encode(x), name).settings for x in (data, 100 * data + 1000)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_the_defaults_suit_our_data() -> None:
    for source in ("digits", "gaussians8", "sines", "table", "moons"):
        data = load_dataset(source).train
        z = Normalizer.fit(data).encode(data)
        assert not [line for name in SDES for line in ill_chosen(z, make_sde(name))], source


def test_too_little_and_too_much_noise_are_named() -> None:
    z = normal()
    (line,) = ill_chosen(z, make_sde("ve", sigma_max=0.4 * distances(z).largest))
    assert "less than half the largest pairwise distance" in line and "sigma_max" in line
    (line,) = ill_chosen(z, make_sde("ve", sigma_min=0.5))
    assert "hides detail" in line and "sigma_min" in line
    lines = ill_chosen(z, make_sde("vp", beta_max=1.0, lambda_max=1.0))
    assert len(lines) == 2 and "beta_max" in lines[0] and "lambda_max" in lines[1]
    assert all("\n" not in line for line in lines)


def test_auto_is_resolved_shown_kept_and_the_same_the_next_time(sde_gen_command: Command, tmp_path: Path) -> None:
    arguments = ["run", *TINY_RUN, "--solver", "ddim", "--data", "gaussians8", "--set", "data.limit=500"]
    arguments += ["--sde", "ve", "--sigma-max", "auto", "--sigma-min", "0.3"]
    code, out, err = sde_gen_command(*arguments)
    assert (code, err) == (0, [])
    text = "\n".join(out)
    assert "noise     sigma_max 3." in text and text.count("warning   ") == 1 and "warning   the smallest noise, 0.3, hides" in text
    kept = yaml.safe_load((tmp_path / "runs" / "gaussians8-ve" / "config.yaml").read_text())["sde"]["settings"]
    assert 3.2 < kept["sigma_max"] < 3.5 and kept["sigma_min"] == 0.3
    assert list(tmp_path.rglob("model.json")), "and a checkpoint"
    described = [json.loads(file.read_text()) for file in tmp_path.rglob("model.json")]
    assert described[0]["sde"]["settings"] == kept
    code, out, err = sde_gen_command(*arguments)
    assert (code, err) == (0, []) and any(line.startswith("reusing") for line in out)


def test_auto_by_set_and_in_a_dry_run(sde_gen_command: Command) -> None:
    arguments = ["run", "--dry-run", "--data", "gaussians8"]
    code, out, err = sde_gen_command(*arguments, "--set", "sde.settings={beta_min: auto, beta_max: auto, lambda_max: auto}")
    assert (code, err) == (0, [])
    found = yaml.safe_load("\n".join(out))["sde"]["settings"]
    assert 15 < found["beta_max"] < 17 and list(found) == ["beta_min", "beta_max", "lambda_max"]
    assert sum(line.startswith("# noise: ") for line in out) == 3
    code, out, err = sde_gen_command(*arguments, "--beta-max", "auto", "--dry-run")
    assert yaml.safe_load("\n".join(out))["sde"]["settings"].keys() == {"beta_max"}


def test_bad_choices_are_named_before_training(sde_gen_command: Command) -> None:
    code, out, err = sde_gen_command("run", "--dry-run", "--data", "gaussians8", "--sde", "ve", "--sigma-max", "1.2", "--sigma-min", "0.3")
    assert (code, err) == (0, [])
    assert [line.split(",")[0] for line in out if line.startswith("# noise")] == [
        "# noise: the largest noise",
        "# noise: the smallest noise",
    ]


def test_data_scaled_by_100_give_the_same_normalised_samples() -> None:
    values = normal(200, 2).float()
    found = []
    for data in (values, 100 * values):
        units = Normalizer.fit(data)
        ends = suggest_ends(units.encode(data), "ve").settings
        made = sde_gen.train(data, "ve", "mlp", steps=8, batch=16, network_options=TINY, sde_settings=ends, progress=False, device="cpu")
        found.append(units.encode(sde_gen.sample(made, (8, 2), "ddim", steps=4, progress=False).x))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)
