"""The emoji that the package ships: what they are, which are held out, and that pictures and words belong together."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sde_gen
from sde_gen.data.captions import texts_of
from sde_gen.data.emoji import CELL, CONCEPT, STYLES, TRAINING, EmojiPictures, emoji_pictures

ROOT = Path(__file__).parents[2]
FOLDER = Path(sde_gen.__file__).parent / "data" / "emoji"


@pytest.fixture(scope="module")
def pictures() -> EmojiPictures:
    return emoji_pictures()


def test_concepts_and_styles_are_held_out_as_said(pictures: EmojiPictures) -> None:
    part = pictures.part.reshape(-1, 2)
    assert len(pictures.labels) == len(set(pictures.labels)) == 1594 and pictures.images.shape == (3188, 3, 32, 32)
    assert torch.bincount(pictures.part).tolist() == [2688, 300, 200]
    assert bool(((part == CONCEPT).sum(1) % 2 == 0).all())  # both styles
    cells = (part == CELL).any(1)
    assert bool(((part[cells] == TRAINING).sum(1) == 1).all())  # and of these the other style is trained on
    assert (pictures.part == CELL).reshape(-1, 2).sum(0).tolist() == [150, 150]
    for name in (CELL, CONCEPT):  # not a head or a tail of the list
        rows = torch.nonzero((part == name).any(1))[:, 0].double()
        assert abs(float(rows.mean()) / 1594 - 0.5) < 0.15
    assert pictures.rows(CELL).tolist() == emoji_pictures().rows(CELL).tolist()


def test_pictures_are_those_of_their_captions(pictures: EmojiPictures) -> None:
    """Hearts and circles of a colour have that colour, in both styles, and pictures lie on white."""
    strongest = {"red": 0, "green": 1, "blue": 2}
    for shape in ("heart", "circle", "square"):
        for colour, channel in strongest.items():
            concept = pictures.labels.index(f"{colour} {shape}")
            for style in range(2):
                middle = pictures.images[2 * concept + style, :, 12:20, 12:20].float().mean((1, 2))
                assert int(middle.argmax()) == channel, (colour, shape, STYLES[style])
    for style, name in enumerate(STYLES):  # and each sheet is its style's
        with Image.open(FOLDER / f"{name}.webp") as sheet:
            across = sheet.width // 32
            for concept in (0, across + 3, 1593):
                left, top = 32 * (concept % across), 32 * (concept // across)
                cell = np.asarray(sheet.convert("RGB").crop((left, top, left + 32, top + 32))).transpose(2, 0, 1)
                assert np.array_equal(pictures.images[2 * concept + style].numpy(), cell) and f"of {name}" in pictures.caption(
                    2 * concept + style
                )
    corners = pictures.images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].float()
    assert float((corners == 255).all(1).float().mean()) > 0.8
    smiles = [pictures.labels.index(f"{name} face") for name in ("grinning", "winking", "confused")]
    assert all(pictures.groups[k] == "smileys-emotion" and "face" in pictures.tags[k] for k in smiles)


def test_captions_have_label_tags_and_style(pictures: EmojiPictures) -> None:
    row = 2 * pictures.labels.index("green heart") + 1
    assert pictures.caption(row) == "green heart, 143, emotion, green, heart, ily, love, romantic, in the style of fluent"
    assert pictures.caption(row, tags=False) == "green heart, in the style of fluent" and pictures.hexcodes[row // 2] == "1F49A"
    assert not any("skin tone" in label for label in pictures.labels)


def test_the_data_set_is_these_pictures() -> None:
    pictures, data = emoji_pictures(), sde_gen.load_dataset("emoji")
    assert data.train.shape == (2688, 3, 32, 32) and data.test is not None and data.test.shape == (500, 3, 32, 32)
    assert data.levels == 256 and data.classes == 9 and data.label_names is not None and data.label_names[0] == "smileys-emotion"
    captions = {pictures.caption(row): row for row in range(3188)}
    assert len(captions) == 3188
    for images, texts, labels in (
        (data.train, data.cond, data.train_labels),
        (data.test, data.test_cond, data.test_labels),
    ):
        rows = [captions[text] for text in texts_of(texts["caption"])]
        assert torch.equal(images, pictures.images[rows].float()) and labels is not None
        assert [data.label_names[k] for k in labels] == [pictures.groups[row // 2] for row in rows]
    held = texts_of(data.test_cond["caption"])
    assert [int(pictures.part[captions[text]]) for text in held] == [CELL] * 300 + [CONCEPT] * 200
    assert torch.equal(sde_gen.load_dataset("emoji", seed=3).train, data.train)
    few = sde_gen.load_dataset("emoji", limit=40)
    assert [captions[text] for text in texts_of(few.cond["caption"])] and few.train.shape[0] == 40
    with pytest.raises(ValueError, match="'emoji' takes no captions: for the user's own files"):
        sde_gen.load_dataset("emoji", captions="c.csv")


def test_what_is_shipped_is_small_and_says_whose_it_is() -> None:
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir() if path.is_file() and path.suffix != ".py"}
    assert sum(files.values()) <= 2_000_000
    for style in STYLES:
        assert files[f"{style}.webp"] > 100_000
    texts = {name: (FOLDER / f"LICENSE.{name}.txt").read_text(encoding="utf-8") for name in ("noto", "fluent", "emojibase")}
    assert "Apache License" in texts["noto"] and "END OF TERMS AND CONDITIONS" in texts["noto"] and "Google" in texts["noto"]
    assert "MIT License" in texts["fluent"] and "Microsoft" in texts["fluent"] and "Miles Johnson" in texts["emojibase"]
    package = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    for pattern in ("data/emoji/*.webp", "data/emoji/*.tsv", "data/emoji/*.txt"):
        assert pattern in package
    readme = (ROOT / "README.md").read_text(encoding="utf-8") + (ROOT / "docs" / "text.md").read_text(encoding="utf-8")
    assert all(word in readme for word in ("Noto", "Apache-2.0", "Fluent", "emojibase"))


def test_the_script_that_makes_them_reads_the_packages_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """An alias is drawn as its parent, mirrored where it says so, and never stretched."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "data"))
    monkeypatch.delitem(sys.modules, "make_emoji", raising=False)
    import make_emoji

    drawings = object.__new__(make_emoji.Drawings)
    drawings.names = {"1f449": "right", "1f448": "left"}
    icons = {"left": {"body": "<path/>", "height": 33}}
    drawings.icons = {"icons": icons, "aliases": {"right": {"parent": "left", "hFlip": True}}, "width": 32, "height": 32}
    assert "1F449-FE0F" in drawings and "1F44A" not in drawings
    assert 'viewBox="0 0 32 33"><path/>' in drawings.svg("1F448", 16) and 'width="16" height="16"' in drawings.svg("1F448", 16)
    assert '<g transform="translate(32 0) scale(-1 1)"><path/></g>' in drawings.svg("1F449-FE0F", 16)
