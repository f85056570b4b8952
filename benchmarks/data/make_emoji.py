"""The pictures and captions of the data set `emoji`, rebuilt from the packages of the projects that drew and described them.

    python benchmarks/data/make_emoji.py                                the files that the package ships, the same to the byte
    python benchmarks/data/make_emoji.py --folder DIR --size 64         PNGs and a captions.csv of your own, for --data DIR --captions
    python benchmarks/data/make_emoji.py --folder DIR --styles noto,fluent,twemoji --skin-tones

It needs `npm` (its ordinary client fetches the packages into --packages) and `pip install resvg_py==0.5.0`. Two styles are shipped: Noto
(Google, Apache-2.0) and Fluent (Microsoft, MIT), with captions of emojibase (MIT). Twemoji (CC BY 4.0) and the skin tones go into folders
of your own alone. Drawings are 32x32 or --size, RGB on white.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SHIPPED = Path(__file__).resolve().parents[2] / "sde_gen" / "data" / "emoji"
STYLES = {
    "noto": ("@iconify-json/noto", "1.2.9"),
    "fluent": ("@iconify-json/fluent-emoji-flat", "1.2.6"),
    "twemoji": ("@iconify-json/twemoji", "1.2.5"),
}
CAPTIONS = ("emojibase-data", "17.0.0")
SIZE, COLUMNS = 32, 40


def fetch(package: str, version: str, folder: Path) -> Path:
    """The package's archive, by npm where it is not there."""
    file = folder / f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", f"{package}@{version}"], cwd=folder, check=True)
    return file


def read(archive: Path, name: str) -> Any:
    """A JSON file of a package."""
    with tarfile.open(archive) as files:
        member = files.extractfile(f"package/{name}")
        assert member is not None, f"{archive.name} has no {name}"
        return json.load(member)


def key(hexcode: str) -> str:
    """The code points of an emoji as the packages of drawings write them: lower case, without the variation selector."""
    return hexcode.lower().replace("-fe0f", "")


class Drawings:
    """The drawings of one style by code points, as SVG."""

    def __init__(self, archive: Path) -> None:
        self.names, self.icons = read(archive, "chars.json"), read(archive, "icons.json")

    def __contains__(self, hexcode: str) -> bool:
        return key(hexcode) in self.names

    def svg(self, hexcode: str, size: int) -> str:
        """A drawing that fills the middle of a square of so many pixels, not stretched."""
        name, flip = self.names[key(hexcode)], False
        while name not in self.icons["icons"]:
            alias = self.icons["aliases"][name]
            assert set(alias) <= {"parent", "hFlip"}, f"{name}: {alias}"
            name, flip = alias["parent"], flip != alias.get("hFlip", False)
        icon = self.icons["icons"][name]
        width, height = (icon.get(side, self.icons.get(side)) for side in ("width", "height"))
        left, top = icon.get("left", 0), icon.get("top", 0)
        body = icon["body"] if not flip else f'<g transform="translate({width + 2 * left} 0) scale(-1 1)">{icon["body"]}</g>'
        frame = f'width="{size}" height="{size}" viewBox="{left} {top} {width} {height}"'
        return f'<svg xmlns="http://www.w3.org/2000/svg" {frame}>{body}</svg>'


def render(svg: str) -> np.ndarray:
    """A drawing as (size, size, 3) bytes, on white."""
    import resvg_py

    content = resvg_py.svg_to_bytes(svg_string=svg, background="#ffffff", skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(bytes(content))).convert("RGB"))


def concepts(captions: Path, skin_tones: bool) -> Iterator[dict[str, Any]]:
    """What emojibase says of each emoji, in its order: hexcode, label, tags, group; those of `skin_tones` come after their base."""
    groups = read(captions, "meta/groups.json")["groups"]
    for entry in sorted((entry for entry in read(captions, "en/data.json") if "group" in entry), key=lambda entry: entry["order"]):
        base = {"tags": entry.get("tags", []), "group": groups[str(entry["group"])]}
        yield base | {"hexcode": entry["hexcode"], "label": entry["label"]}
        for skin in entry.get("skins", []) if skin_tones else []:
            yield base | {"hexcode": skin["hexcode"], "label": skin["label"]}


def ship(packages: Path) -> None:
    """Write a sheet for each of the two styles, lossless, and the table beside them."""
    drawn = {name: Drawings(fetch(*STYLES[name], packages)) for name in ("noto", "fluent")}
    both = [entry for entry in concepts(fetch(*CAPTIONS, packages), False) if all(entry["hexcode"] in each for each in drawn.values())]
    SHIPPED.mkdir(exist_ok=True)
    with (SHIPPED / "concepts.tsv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(("hexcode", "group", "label", "tags"))
        table.writerows((entry["hexcode"], entry["group"], entry["label"], ", ".join(entry["tags"])) for entry in both)
    for name, drawings in drawn.items():
        sheet = np.full((-(-len(both) // COLUMNS) * SIZE, COLUMNS * SIZE, 3), 255, np.uint8)
        for place, entry in enumerate(both):
            row, column = (SIZE * number for number in divmod(place, COLUMNS))
            sheet[row : row + SIZE, column : column + SIZE] = render(drawings.svg(entry["hexcode"], SIZE))
        Image.fromarray(sheet).save(SHIPPED / f"{name}.webp", lossless=True, quality=100, method=6)
    sizes = {file.name: file.stat().st_size for file in sorted(SHIPPED.iterdir()) if file.is_file()}
    print(f"{len(both):,} concepts in {len(drawn)} styles: {sizes}, {sum(sizes.values()) / 1e6:.2f} MB in all")


def write_folder(folder: Path, packages: Path, styles: list[str], size: int, skin_tones: bool) -> None:
    """Write every drawing of the styles as a PNG, and a captions.csv."""
    folder.mkdir(parents=True)
    rows = []
    entries = list(concepts(fetch(*CAPTIONS, packages), skin_tones))
    for style in styles:
        drawings = Drawings(fetch(*STYLES[style], packages))
        (folder / style).mkdir()
        there = [entry for entry in entries if entry["hexcode"] in drawings]

        def draw(entry: dict[str, Any], style: str = style, drawings: Drawings = drawings) -> None:
            Image.fromarray(render(drawings.svg(entry["hexcode"], size))).save(folder / style / f"{key(entry['hexcode'])}.png")

        with ThreadPoolExecutor() as pool:
            list(pool.map(draw, there))
        told = [", ".join((entry["label"], *entry["tags"], f"in the style of {style}")) for entry in there]
        rows += [(f"{style}/{key(entry['hexcode'])}.png", caption) for entry, caption in zip(there, told, strict=True)]
    with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("file", "caption"), *rows])
    print(f"{len(rows):,} drawings of {size} x {size} in {folder}: sde-gen run --data {folder} --captions {folder / 'captions.csv'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, default=Path("emoji-packages"), help="folder of the npm packages (%(default)s)")
    parser.add_argument("--folder", type=Path, help="write PNGs and a captions.csv to this new folder instead")
    parser.add_argument("--size", type=int, default=SIZE, help="edge of the PNGs (%(default)s)")
    parser.add_argument("--styles", default="noto,fluent", help=f"of the folder, of {', '.join(STYLES)} (%(default)s)")
    parser.add_argument("--skin-tones", action="store_true", help="of the folder: the five skin tones too")
    arguments = parser.parse_args()
    styles = arguments.styles.split(",")
    if not set(styles) <= set(STYLES) or arguments.size < 1:
        parser.error(f"--styles of {', '.join(STYLES)} and a positive --size are needed, got {arguments.styles} and {arguments.size}")
    if arguments.folder is None:
        ship(arguments.packages)
    elif arguments.folder.exists():
        parser.error(f"--folder {arguments.folder} is there already; a new one is needed")
    else:
        write_folder(arguments.folder, arguments.packages, styles, arguments.size, arguments.skin_tones)


if __name__ == "__main__":
    main()
