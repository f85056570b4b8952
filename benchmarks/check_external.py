"""Whether `check_external` names a wrong fact: networks trained here, written as other libraries write them, loaded with one fact wrong.

    python benchmarks/check_external.py [--steps 1000] [--out benchmarks/results/check_external.json]

Six small networks learn coloured digits (8x8, three channels that differ) as score_sde, EDM, guided- and improved-diffusion train theirs.
Each is loaded with its facts as they are, for several draws of pictures (an alarm then is a false one), and with each single fact wrong
that users get wrong: the prediction, the clock, the pictures' range, the order of the channels, the order and the number of the attention
heads, the schedule, the raw weights in the place of the averaged ones. Named is right where both the fact and its right value are.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sde_gen
from sde_gen.external import ExternalModel, check_external, load_external
from sde_gen.external.check import OTHER_CLOCKS
from sde_gen.networks import make_network
from sde_gen.networks.adm import ADMUNet
from sde_gen.networks.song import SongUNet
from sde_gen.unknown_numbers import to_json

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "tests"))
from foreign_checkpoints import adm_state, edm_pickle, score_sde_file  # noqa: E402

PICTURES, DRAWS = 12, 4
"""Pictures of one check, and checks of each network with its facts as they are."""


@dataclass
class Family:
    """A network as a library trains it: options, process and meaning while it is trained, and the facts with which its file is loaded."""

    name: str
    kind: str
    options: dict[str, Any]
    sde: sde_gen.SDE
    settings: dict[str, Any]
    facts: dict[str, Any]
    clock: str
    """Its name among the clocks that the check tries."""
    predictions: tuple[str, ...]
    clocks: tuple[str, ...]
    wrong: tuple[dict[str, Any], ...] = ()
    """Facts of the file that are loaded wrongly; what should be named is in `named`."""
    named: tuple[tuple[str, str], ...] = ()


VP = {"sde": "vp", "continuous": True, "centered": True, "beta_min": 0.1, "beta_max": 20.0, "size": 8, "skip_rescale": True, "fir": False}
VE = {"sde": "ve", "continuous": True, "centered": False, "scale_by_sigma": True, "size": 8, "skip_rescale": True, "fir": True}
SONG: dict[str, Any] = {"width": 16, "multipliers": [1, 2], "attention": [1], "blocks": 1}
NCSNPP = SONG | {"encoder": "residual", "kernel": [1, 3, 3, 1]}
FOURIER = NCSNPP | {
    "embedding": "fourier",
    "noise_multiplier": 2,
    "fourier_scale": 1.0,
    "clock_scale": -1.0,
    "clock_shift": -0.6931471805599453,
}
ADM = {"size": 8, "prediction": "noise", "rescale_timesteps": False, "heads": 4}
ADMNET: dict[str, Any] = {"width": 16, "multipliers": [1, 2], "attention": [0, 1], "heads": 4, "group": 1, "null": False}
of_sigma = sde_gen.make_sde("ve", sigma_min=0.02, sigma_max=100.0)
of_linear = sde_gen.make_sde("ddpm", betas="linear", steps=1000)
of_cosine = sde_gen.make_sde("ddpm", betas="cosine", steps=4000)
FAMILIES = [
    Family(
        *("DDPM++, VP", "song", SONG | {"clock_scale": 999.0, "clock_shift": 0.0}, sde_gen.make_sde("vp")),
        *({"prediction": "noise", "clock": "time"}, VP, "999 t", ("scaled_score", "data", "v", "edm"), ("t", "log sigma", "log(sigma/4)")),
    ),
    Family(
        *("NCSN++, VE", "song", FOURIER, of_sigma, {"prediction": "scaled_score", "clock": "half_log_snr"}, VE, "log(sigma/2)"),
        *(("noise", "score", "data", "edm"), ("999 t", "log sigma", "sigma", "log(sigma)/4")),
    ),
    Family(
        *("NCSN++, VE of indices", "song", NCSNPP | {"clock_scale": -999.0, "clock_shift": 999.0}, of_sigma),
        *({"prediction": "scaled_score", "clock": "time"}, VE | {"continuous": False}, "999 (1 - t), a reversed index"),
        *(("noise", "score", "data", "edm"), ("999 t", "t", "log sigma", "sigma")),
    ),
    Family(
        *("EDM", "song", SONG | {"clock_scale": 1.0, "clock_shift": 0.0}, sde_gen.make_sde("ve", sigma_min=0.002, sigma_max=80.0)),
        *({"prediction": "edm", "clock": "c_noise", "data_std": 0.5}, {}, "log(sigma)/4", ("noise", "scaled_score", "data", "v")),
        ("999 t", "250 log sigma", "sigma", "t"),
    ),
    Family(
        *("ADM", "adm", ADMNET | {"clock_scale": 1.0, "clock_shift": 0.0}, of_linear, {"prediction": "noise", "clock": "index"}),
        *(ADM | {"schedule": "linear", "steps": 1000, "attention_order": "legacy"}, "index", ("scaled_score", "data", "v", "edm")),
        ("t", "999 (1 - t), a reversed index", "log sigma", "sigma"),
        ({"attention_order": "new"}, {"heads": 1}, {"heads": 8}, {"schedule": "cosine"}),
        (("attention order", "legacy"), ("heads", "heads = 4"), ("heads", "heads = 4"), ("schedule", "linear")),
    ),
    Family(
        *(
            "improved diffusion",
            "adm",
            # two channels in a group of the norms: one alone would lose the clock, which is added before its norm
            ADMNET | {"width": 48, "clock_scale": 0.25, "clock_shift": 0.0, "resampling": "conv", "scale_shift": False},
            of_cosine,
        ),
        {"prediction": "noise", "clock": "index"},
        ADM | {"schedule": "cosine", "steps": 4000, "attention_order": "legacy", "rescale_timesteps": True},
        *("index of 1000", ("scaled_score", "data", "v", "edm"), ("t", "999 (1 - t), a reversed index", "log sigma", "sigma")),
        ({"attention_order": "new"}, {"heads": 1}, {"heads": 8}, {"schedule": "linear"}, {"rescale_timesteps": False}),
        (("attention order", "legacy"), ("heads", "heads = 4"), ("heads", "heads = 4"), ("schedule", "cosine"), ("clock", "index of 1000")),
    ),
]
SAME = 1.001
"""An error up to this ratio of the right facts' own is theirs."""
OTHER_CLOCKS = OTHER_CLOCKS | {"log(sigma/4)": lambda sde, t: -sde.half_log_snr(t) / 4 - 0.5}


def coloured_digits(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Digits in inks of three channels that differ in brightness and change from picture to picture: 1500 and 297 of them, 0 .. 255."""
    data = sde_gen.load_dataset("digits")
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for part in (data.train, data.test):
        ink = torch.rand(len(part), 3, 1, 1, generator=generator) * torch.tensor([0.3, 0.5, 0.2]).reshape(3, 1, 1)
        ink = ink + torch.tensor([0.7, 0.4, 0.1]).reshape(3, 1, 1)
        paper = torch.tensor([0.0, 0.1, 0.3]).reshape(3, 1, 1)
        parts.append(255 * (paper + (ink - paper) * part / 16).clamp(0, 1))
    return parts[0].round(), parts[1].round()


def train(family: Family, images: Tensor, steps: int) -> tuple[Any, Any]:
    """The raw and the averaged network after so many steps of 48 pictures."""
    torch.manual_seed(0)
    network = make_network(family.kind, (3, 8, 8), None, 6 if family.kind == "adm" else 3, **family.options)
    variance = {"variance": "learned_range"} if family.kind == "adm" else {}
    model = sde_gen.ScoreModel(network, family.sde, **family.settings, **variance)
    average = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(1)
    z = images / 127.5 - 1
    network.train()
    for step in range(steps):
        x_0 = z[torch.randint(len(z), (48,), generator=generator)]
        level = torch.empty(48, dtype=torch.float64).uniform_(-4.0, 4.0, generator=generator)
        t = family.sde.time_of(level).clamp(family.sde.t_min, family.sde.t_max)
        alpha, sigma = (value.float()[:, None, None, None] for value in family.sde.marginal(t))
        noise = torch.randn(x_0.shape, generator=generator)
        loss = (model.noise(alpha * x_0 + sigma * noise, t) - noise).square()
        # what EDM's weighting does: a noise that is nearly all of the state is no news
        loss = (loss * (1 + (sigma / alpha).square()).clamp_max(30.0)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), network.parameters(), strict=True):
                mine.lerp_(theirs, max(0.01, 1 / (step + 1)))
    return network.eval(), average.eval()


def write(family: Family, raw: Any, average: Any, folder: Path) -> dict[str, Path]:
    """The files: of score_sde one with both, else one each."""
    if family.kind == "adm":
        assert isinstance(raw, ADMUNet) and isinstance(average, ADMUNet)
        for name, network in (("raw", raw), ("ema", average)):
            torch.save(adm_state(network, "legacy"), folder / f"{name}.pt")
        return {name: folder / f"{name}.pt" for name in ("raw", "ema")}
    assert isinstance(raw, SongUNet) and isinstance(average, SongUNet)
    if family.name == "EDM":
        return {name: edm_pickle(folder / f"{name}.pkl", network) for name, network in (("raw", raw), ("ema", average))}
    path = score_sde_file(folder / "checkpoint.pth", raw, average)
    return {"raw": path, "ema": path}


def load(family: Family, files: dict[str, Path], weights: str = "ema", value_range: Any = (0.0, 255.0), **facts: Any) -> ExternalModel:
    weights_in_file = weights if files["raw"] == files["ema"] else "ema"
    return load_external(files[weights], config=family.facts | facts or None, weights=weights_in_file, value_range=value_range)


def altered(model: ExternalModel, **settings: Any) -> ExternalModel:
    """The same with another prediction or clock."""
    given = model.settings() | {"data_std": model.data_std or 0.5} | settings
    other = ExternalModel(model.network, model.sde, **given, normalizer=model.normalizer).eval()
    other.source = model.source
    return other


def planted(family: Family, files: dict[str, Path]) -> list[tuple[str, str, ExternalModel, dict[str, Any]]]:
    """Each single wrong fact: the fact, its right value as the check says it, the model as stated, and what the check is given beside."""
    right = load(family, files)
    level = right.network.embedding.level
    cases: list[tuple[str, str, ExternalModel, dict[str, Any]]] = []
    for name in family.predictions:
        cases.append(("prediction", repr(right.prediction), altered(right, prediction=name, scale_input=name == "edm"), {}))
    for name in family.clocks:
        clock = OTHER_CLOCKS[name]
        told = altered(right, clock=lambda sde, t, clock=clock: (clock(sde, t) - level.shift) / level.scale)
        cases.append(("clock", family.clock, told, {}))
    for low, high in ((0.0, 1.0), (-1.0, 1.0)):
        cases.append(("range", "pictures of 0 .. 255 outside", load(family, files, value_range=(low, high)), {}))
    # as stated the network gets 0 .. 1
    cases.append(("range", "pictures of -1 .. 1 in the network", load(family, files, value_range=(-255.0, 255.0)), {}))
    cases.append(("channel order", "the colours the other way round", right, {"flipped": True}))
    for facts, (fact, value) in zip(family.wrong, family.named, strict=True):
        cases.append((fact, value, load(family, files, **facts), {}))
    cases.append(("average", "averaged weights", load(family, files, "raw"), {"others": {"averaged weights": right}}))
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--family", help="only the families whose name has this in it")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    train_images, test_images = coloured_digits()
    rows: list[dict[str, Any]] = []
    alarms: list[dict[str, Any]] = []
    for family in FAMILIES:
        if arguments.family and arguments.family not in family.name:
            continue
        raw, average = train(family, train_images, arguments.steps)
        with tempfile.TemporaryDirectory() as folder:
            files = write(family, raw, average, Path(folder))
            right = load(family, files)
            for draw in range(DRAWS):
                images = test_images[draw * PICTURES : (draw + 1) * PICTURES]
                found = check_external(right, images, others={"raw weights": load(family, files, "raw")}, seed=draw)
                if draw % 2:  # pictures of 0 .. 1 outside
                    unit = load(family, files, value_range=(0.0, 1.0))
                    found = check_external(unit, images / 255, others={"raw weights": load(family, files, "raw", (0.0, 1.0))}, seed=draw)
                alarms.append(
                    {"family": family.name, "draw": draw, "alarm": found.fact is not None, "error": found.error, "said": found.sentence}
                )
                print(f"{family.name:22} as it is          {'ALARM' if found.fact is not None else 'quiet':6} {found.sentence}", flush=True)
            images = test_images[DRAWS * PICTURES : (DRAWS + 1) * PICTURES]
            as_it_is = check_external(right, images, seed=99).error
            for fact, value, stated, more in planted(family, files):
                shown = images.flip(1) if more.pop("flipped", False) else images
                found = check_external(stated, shown, seed=99, **more)
                # Two names may stand for one thing: the index of 1,000 points and 999 t are one clock but for a part of a step.
                as_good = found.better is not None and found.better <= SAME * as_it_is
                named = found.fact == fact and (found.value == value or as_good)
                rows.append({"family": family.name, "fact": fact, "right": value, "named": named, "said": found.sentence})
                print(f"{family.name:22} {fact:17} {'named' if named else 'MISSED':6} {found.sentence}", flush=True)
        if arguments.out:
            result = {"steps": arguments.steps, "torch": torch.__version__, "wrong": rows, "right": alarms}
            arguments.out.write_text(to_json(result, 1) + "\n")
    count = Counter(row["named"] for row in rows)
    false = sum(row["alarm"] for row in alarms)
    print(f"\n{count[True]} of {len(rows)} wrong facts named; {false} false alarms in {len(alarms)} checks of right ones")


if __name__ == "__main__":
    main()
