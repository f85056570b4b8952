"""Captions as conditions: words, letters, masks, what is not known, and texts all the way from Python to the network."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sde_gen
from sde_gen.conditions import Text, TextTransformer, Tokenizer, fit_condition, make_condition
from sde_gen.conditions.tokenizer import FIRST, LETTERS, PAD, UNKNOWN, _fnv, words_of
from sde_gen.data.captions import text_tensor, texts_of
from sde_gen.exact.mixtures import GaussianData
from sde_gen.guidance import Combine
from sde_gen.guidance.combine import predict_each
from sde_gen.networks import NETWORKS
from sde_gen.networks.embeddings import ConditionEmbedding
from sde_gen.training import build_model

WORDS = ["red", "green", "blue", "heart", "owl", "in", "the", "style", "of", "noto"]
CAPTIONS = ["red heart, in the style of noto", "green owl", "blue owl, in the style of noto", ""]
VP = sde_gen.make_sde("vp")


def encoder(**options: Any) -> Text:
    torch.manual_seed(0)
    made = make_condition("caption", {"kind": "text", "words": WORDS, "length": 12, "width": 32, **options}, 24, (8, 8))
    assert isinstance(made, Text)
    return made.eval()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A red  Heart, in the style-of 'noto'!", ["a", "red", "heart", "in", "the", "style", "of", "noto"]),
        ("I'm STRASSE Straße", ["im", "strasse", "strasse"]),
        ("❤️ + 👩‍🚀", ["❤", "+", "👩", "🚀"]),
        ("ｆｕｌｌ ½ é é", ["full", "1", "⁄", "2", "é", "é"]),
        ("हिन्दी 日本語", ["हिन्दी", "日本語"]),
        (" \t\n.,;", []),
    ],
)
def test_words_of_any_language(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_texts_go_through_a_tensor_and_come_back() -> None:
    texts = ["", "a", "Grüße ❤", "\ud83d broken", "x" * 5000, "é" * 3000]
    found = texts_of(text_tensor(texts))
    assert found[:3] == texts[:3] and found[3] == "? broken" and found[4] == "x" * 4096 and found[5] == "é" * 2048
    assert text_tensor([""]).shape == (1, 1) and text_tensor([]).shape == (0, 1)


def test_words_that_are_not_in_the_list_keep_their_letters() -> None:
    tokenizer = Tokenizer(WORDS)
    numbers = tokenizer(["green greenish owl", "greenest"])
    assert numbers.shape == (2, 3, 1 + LETTERS) and numbers.dtype == torch.int32
    assert numbers[:, :, 0].tolist() == [[FIRST + 1, UNKNOWN, FIRST + 4], [UNKNOWN, PAD, PAD]]

    def letters(row: int, place: int) -> set[int]:
        return set(numbers[row, place, 1:].tolist()) - {0}

    assert len(letters(0, 0) & letters(0, 1)) >= 4 and letters(0, 0) & letters(1, 0) and not letters(0, 2) & letters(0, 1)
    assert int(numbers.max()) <= tokenizer.buckets and tokenizer.unknown("Green greenish, owls") == ["greenish", "owls"]
    assert tokenizer(["word " * 1000]).shape == (1, 32, 1 + LETTERS) and tokenizer(["", ""]).shape == (2, 0, 1 + LETTERS)


def test_hashes_are_the_same_everywhere() -> None:
    """FNV-1a of 32 bits, by the values that its authors publish."""
    assert (_fnv(""), _fnv("a"), _fnv("foobar")) == (0x811C9DC5, 0xE40C292C, 0xBF9CF968)
    numbers = Tokenizer(["a"])(["a"])
    assert numbers[0, 0].tolist() == [FIRST, 1 + _fnv("^a$") % 4096, *[0] * (LETTERS - 1)]


def test_the_words_of_captions_are_learned_the_commonest_first() -> None:
    found = Tokenizer.fit([*CAPTIONS, "red red"], most=4)
    assert found.words == ["red", "in", "noto", "of"] and found.length == 16
    spec = fit_condition("caption", text_tensor([*CAPTIONS, "owl " * 99]), (), "text")
    assert spec["length"] == 64 and len(spec["words"]) == len(WORDS) and json.loads(json.dumps(spec)) == spec


def test_a_vocabulary_of_pieces(tmp_path: Path) -> None:
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "green", "gr", "##een", "##ish", "##s", "owl", ",", "cafe"]), encoding="utf-8")
    spec = fit_condition("caption", text_tensor(CAPTIONS), (8, 8), {"kind": "text", "vocabulary": str(file), "depth": 1})
    assert spec["pieces"] and spec["depth"] == 1 and spec["words"][0] == "green" and "vocabulary" not in spec
    tokenizer = Tokenizer(spec["words"], pieces=True)
    assert tokenizer.split("Greenish owls, Café xyz") == ["green", "##ish", "owl", "##s", ",", "cafe", "xyz"]
    assert tokenizer(["xyz"])[0, 0, 0] == UNKNOWN and Tokenizer([*spec["words"], "Owl"], pieces=True).split("Green") == ["Green"]
    file.write_text("green\nowl", encoding="utf-8")
    with pytest.raises(ValueError, match=r"condition 'caption': vocab.txt: no line \[UNK\]; a BERT vocab.txt, an entry a line, is needed"):
        fit_condition("caption", text_tensor(CAPTIONS), (), {"kind": "text", "vocabulary": str(file)})


def test_what_lies_where_nothing_is_changes_nothing() -> None:
    """Pads are never attended to: whatever their letters, wherever they stand after the words, and however many there are."""
    made = encoder()
    numbers = made.tokenizer(CAPTIONS)
    garbage = torch.randint(1, 4096, numbers.shape, generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    there = numbers[:, :, :1] != PAD
    dirty = torch.where(there, numbers, garbage)
    dirty[:, :, :1] = numbers[:, :, :1]
    more = torch.cat([dirty, dirty[-1:].expand(len(dirty), -1, -1)], dim=1)[:, :12]
    tokens, seen, whole = made(numbers)
    for changed in (dirty, more):
        found, found_seen, found_whole = made(changed)
        torch.testing.assert_close(found_whole, whole, rtol=0, atol=1e-6)
        width = tokens.shape[1]
        assert torch.equal(found_seen[:, :width], seen) and not found_seen[:, width:].any()
        torch.testing.assert_close(found[:, :width][seen], tokens[seen], rtol=0, atol=1e-6)
    alone = made(numbers[1:2, :2])
    torch.testing.assert_close(alone[2], whole[1:2], rtol=0, atol=1e-6)


def test_attention_looks_both_ways_and_knows_the_order() -> None:
    made = encoder()
    first, turned = (made(made.tokenizer([text])) for text in ("red heart owl", "owl heart red"))
    assert float((first[0][:, 1] - turned[0][:, 3]).detach().abs().max()) > 1e-3  # the same word at another place
    last = made(made.tokenizer(["red heart noto"]))
    assert float((first[0][:, 1] - last[0][:, 1]).detach().abs().max()) > 1e-4  # the first word knows the last one


def test_an_empty_caption_is_the_null_and_finite() -> None:
    made = encoder()
    null = made(made.missing(3, torch.device("cpu")))
    for value in (text_tensor(["", " ,. ", ""]), made.null(made.check(text_tensor(CAPTIONS[:3])))):
        tokens, there, whole = made(made.check(value))
        assert there.sum(1).tolist() == [1, 1, 1] and bool(tokens.isfinite().all())
        torch.testing.assert_close(whole, null[2], rtol=0, atol=1e-6)
        torch.testing.assert_close(tokens[:, :1], null[0], rtol=0, atol=1e-6)
    assert float((made(made.check(text_tensor(["red"])))[2] - null[2][:1]).detach().abs().max()) > 1e-3


def test_hidden_words_are_drawn_as_said_and_never_pads() -> None:
    torch.manual_seed(0)
    tower = TextTransformer(len(WORDS), 64, 12, width=8, depth=1, heads=2, hidden=0.25)
    tower.word.weight.data.zero_()
    tower.word.weight.data[UNKNOWN] = 1.0
    seen: list[Tensor] = []
    tower.word.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    numbers = Tokenizer(WORDS, 64)(["red green blue heart owl", "red"] * 400)
    tower.train()(numbers)
    tower.eval()(numbers)
    there = numbers[:, :, 0] != PAD
    share = float((seen[0][there] == UNKNOWN).float().mean())
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / int(there.sum())) ** 0.5
    assert bool((seen[0][~there] == PAD).all()) and torch.equal(seen[1], numbers[:, :, 0].long())


def test_long_prompts_are_cut_and_said() -> None:
    made = encoder()
    with pytest.warns(UserWarning, match="condition 'caption' has 1,000 words; the first 12 are read"):
        assert made.check(text_tensor(["red " * 1000])).shape == (1, 12, 1 + LETTERS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.check(text_tensor(["❤️ a completely strange prompt ½"]))


def model_of_captions(network: str = "unet") -> sde_gen.ScoreModel:
    options = {"unet": {"width": 8, "multipliers": [1], "attention": [0]}, "mlp": {"width": 16, "depth": 1}}
    options["transformer"] = {"width": 16, "depth": 1, "heads": 2}
    x = 5 + 2 * torch.randn(32, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    specs = {"caption": {"kind": "text", "words": WORDS, "length": 12, "width": 16}}
    model = build_model(x, network=network, network_options=options[network], conditions=specs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


@pytest.mark.parametrize("network", ["unet", "transformer", "mlp"])
def test_strings_reach_the_network_from_python(network: str, tmp_path: Path) -> None:
    model = model_of_captions(network)
    texts = ["red heart", "green owl", ""]

    def drawn(cond: Any, of: sde_gen.Denoiser = model) -> Tensor:
        return sde_gen.sample(of, (3, 2, 8, 8), "ddim", steps=4, cond=cond, progress=False).x

    told = drawn({"caption": texts})
    assert torch.equal(told, drawn({"caption": tuple(texts)})) and torch.equal(told, drawn({"caption": text_tensor(texts)}))
    without = drawn(None)
    torch.testing.assert_close(told[2], without[2], rtol=0, atol=1e-4)
    assert float((told[:2] - without[:2]).abs().amax((1, 2, 3)).min()) > 1e-3
    loaded = sde_gen.load(sde_gen.save(model, tmp_path / "saved"))
    torch.testing.assert_close(drawn({"caption": texts}, loaded), told, rtol=0, atol=1e-5)
    guided = sde_gen.guide(loaded, 3.0)
    assert float((drawn({"caption": texts}, guided) - told)[:2].abs().max()) > 1e-3
    mixed = Combine([(2.0, loaded, {"caption": "red heart"}), (-1.0, loaded, {"caption": ""})])
    assert bool(drawn(None, mixed).isfinite().all())
    ll = sde_gen.log_likelihood(model, told.double(), cond={"caption": texts}, rtol=0.3, atol=0.3)
    assert bool(ll.log_prob.isfinite().all())
    for wrong in ("red heart", ["red", 3, ""]):
        with pytest.raises(TypeError, match=r"condition 'caption' must be a tensor, got (str|list)"):
            drawn({"caption": wrong})


FEW: dict[str, Any] = {"width": 8, "multipliers": (1, 2), "attention": (1,)}
OPTIONS = {
    "adm": FEW | {"head_channels": 4},
    "lucid": FEW | {"heads": 2, "head_channels": 4},
    "mlp": {"width": 16, "depth": 2},
    "song": FEW | {"heads": 2},
    "transformer": {"patch": 4, "width": 16, "depth": 2, "heads": 2},
    "unet": FEW | {"heads": 2},
    "unet2d": FEW | {"head_channels": 4},
}


@pytest.mark.parametrize("network", sorted(set(NETWORKS) - {"diffusers"}))
def test_every_network_is_told_texts(network: str) -> None:
    torch.manual_seed(0)
    spec = {"kind": "text", "words": WORDS, "length": 12, "width": 16}
    made = sde_gen.make_network(network, (1, 8, 8), {"caption": spec}, **OPTIONS[network]).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        x, c = torch.randn(3, 1, 8, 8, generator=generator), torch.tensor([-2.0, 0.0, 2.0])
        told = made(x, c, caption=text_tensor(["red heart", "the owl of noto", ""]))
        without = made(x, c)
        again = made(x, c, caption=text_tensor(["red heart", "the owl of noto, in the style of noto", ""]))
    torch.testing.assert_close(told[2], without[2], rtol=0, atol=1e-4)
    assert float((told - without)[:2].abs().amax((1, 2, 3)).min()) > 1e-3
    torch.testing.assert_close(again[0], told[0], rtol=0, atol=1e-4)  # another row's longer text changes nothing
    assert float((again - told)[1].abs().max()) > 1e-4


def test_captions_are_dropped_as_drawn_and_train() -> None:
    x = torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    captions = [CAPTIONS[k % 3] for k in range(64)]
    seen: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        if module.training:
            seen.append(kwargs["caption"][:, :, 0].bool().any(1))

    specs = {"caption": fit_condition("caption", text_tensor(captions), (4, 4), {"kind": "text", "width": 16, "depth": 1})}
    network = sde_gen.make_network("unet", (1, 4, 4), specs, width=8, multipliers=[1], attention=[])
    network.register_forward_pre_hook(note, with_kwargs=True)
    model = sde_gen.train(x, network=network, conditions={"caption": captions}, drop={"caption": 0.3}, steps=12, batch=64, progress=False)
    kept = torch.cat(seen)
    assert abs(1 - float(kept.float().mean()) - 0.3) < 4 * (0.21 / len(kept)) ** 0.5
    assert isinstance(model.encoders["caption"], Text)
    kinds = {"caption": {"kind": "text", "depth": 1}}
    by_name = sde_gen.train(x, network="mlp", conditions={"caption": captions}, steps=1, batch=16, kinds=kinds)
    assert by_name.encoders["caption"].options["depth"] == 1


def test_texts_and_sequences_of_unlike_lengths_share_a_call() -> None:
    specs = {
        "caption": {"kind": "text", "words": WORDS, "length": 12, "width": 16},
        "series": {"kind": "sequence", "features": 2, "length": 5},
    }
    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
    model = build_model(x, network="mlp", network_options={"width": 16, "depth": 1}, conditions=specs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    series = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(2))
    conds = [
        model.conditions({"caption": ["red heart", "owl"], "series": series[:, :2]}, 2, x.device),
        model.conditions({"caption": ["the blue owl in the style of noto", ""], "series": series}, 2, x.device),
    ]
    for found, cond in zip(predict_each(model, x[:2], 0.5, conds), conds, strict=True):
        torch.testing.assert_close(found.denoised, model.denoise(x[:2], 0.5, **cond), rtol=0, atol=1e-5)


class Spoken(nn.Module):
    """A network that is exact: data N(mean of the words, covariance), without a caption of a mean and covariance of their own."""

    def __init__(self, sde: sde_gen.SDE) -> None:
        super().__init__()
        self.sde = sde
        self.encoders = {"caption": make_condition("caption", {"kind": "text", "words": WORDS, "length": 12}, 4, ())}
        root = torch.randn(3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        self.covariance, self.wide = 0.3 * root @ root.T + 0.1 * torch.eye(3), root @ root.T + 2 * torch.eye(3)
        means = {"red": (2.0, -1.0, 0.5), "green": (-1.5, 1.0, 0.0)}
        self.laws = {FIRST + WORDS.index(word): GaussianData(torch.tensor(mean).double(), self.covariance) for word, mean in means.items()}
        self.null_law = GaussianData(torch.tensor([0.3, 0.2, -0.1]).double(), self.wide)

    def null(self, name: str, value: Tensor) -> Tensor:
        return self.encoders[name].null(value)

    def forward(self, x: Tensor, c: Tensor, caption: Tensor | None = None) -> Tensor:
        found = self.null_law.denoise_at(x, self.sde, c)
        for number, law in self.laws.items() if caption is not None else ():
            told = (self.encoders["caption"].fit(caption)[:, :, 0] == number).any(1)
            found = torch.where(told[:, None], law.denoise_at(x, self.sde, c), found)
        return found


@pytest.mark.parametrize("strength", [1.0, 2.5])
def test_gaussian_classes_told_by_words_flow_as_the_exact_linear_flow(strength: float) -> None:
    """Guided scores of Gaussians are affine in the state, s = w s_c + (1 - w) s_0, so that the flow is a linear ODE, solved here by itself
    with small Runge-Kutta steps in time."""
    network = Spoken(VP)
    model = sde_gen.guide(sde_gen.ScoreModel(network, VP, "data"), strength)
    texts = ["red heart", "the Green owl", "red", "GREEN"]
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    times = torch.linspace(VP.t_max, 0.02, 401, dtype=torch.float64)
    laws = [network.laws[FIRST + WORDS.index(word)] for word in ("red", "green", "red", "green")]

    def slope(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = VP.marginal(t)
        eye = torch.eye(3, dtype=torch.float64)

        def score(law: GaussianData, rows: Tensor) -> Tensor:
            mean, covariance = law.moments()
            return -torch.linalg.solve(alpha**2 * covariance + sigma**2 * eye, (rows - alpha * mean).T).T

        null = score(network.null_law, x)
        told = torch.cat([score(law, x[k : k + 1]) for k, law in enumerate(laws)])
        return VP.drift(x, t) - 0.5 * VP.diffusion(t) ** 2 * (null + strength * (told - null))

    exact = z
    for t, s in zip(times[:-1:2], times[2::2], strict=True):
        h, middle = s - t, (s + t) / 2
        a = slope(exact, t)
        b = slope(exact + h / 2 * a, middle)
        c = slope(exact + h / 2 * b, middle)
        exact = exact + h / 6 * (a + 2 * b + 2 * c + slope(exact + h * c, s))
    common: dict[str, Any] = {"x_init": z, "t_start": VP.t_max, "t_end": 0.02, "final": "state", "progress": False}
    found = sde_gen.sample(model, (4, 3), "heun", steps=150, cond={"caption": texts}, **common).x
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-3)
    other = sde_gen.sample(model, (4, 3), "heun", steps=150, cond={"caption": texts[::-1]}, **common).x
    assert float((other - exact).abs().max()) > 0.1


def test_the_whole_text_joins_the_vector() -> None:
    torch.manual_seed(0)
    ports = ConditionEmbedding(24, {"caption": {"kind": "text", "words": WORDS, "width": 16}}, (8, 8)).eval()
    c, texts = torch.tensor([-1.0, 2.0]), text_tensor(["red heart", "owl"])
    (text,) = ports.encoders
    found = ports(c, {"caption": texts})
    torch.testing.assert_close(found.vector, ports.whole(ports.of_level(c) + text(texts)[2]))
    assert found.tokens is not None and float((found.vector - ports.whole(ports.of_level(c))).detach().abs().min(1).values.max()) > 0
