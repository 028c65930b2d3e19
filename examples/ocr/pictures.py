"""Draws pictures with known text into a folder, and what they say into its truth.json.

Fonts: Roboto (Apache-2.0), Source Sans Pro and Source Serif Pro (SIL OFL 1.1), from the packages in
requirements-pictures.txt.
The same seed draws the same pictures.
"""

import argparse
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import font_roboto
import font_source_sans_pro
import font_source_serif_pro
from PIL import Image, ImageDraw, ImageFont

FONTS = {
    "Roboto": font_roboto.Roboto,
    "Roboto Bold": font_roboto.RobotoBold,
    "Roboto Italic": font_roboto.RobotoItalic,
    "Source Sans": font_source_sans_pro.SourceSansPro,
    "Source Sans Bold": font_source_sans_pro.SourceSansProBold,
    "Source Serif": font_source_serif_pro.SourceSerifPro,
    "Source Serif Semibold": font_source_serif_pro.SourceSerifProSemibold,
}
SIZES = (20, 28, 40, 56)
# Ink and paper.
COLOURS = (
    ("#000000", "#ffffff"),
    ("#ffffff", "#202020"),
    ("#1a3d8f", "#f5f0e0"),
    ("#b00020", "#ffffff"),
    ("#f5e663", "#2b4b3c"),
    ("#606060", "#e8e8e8"),
)
TURNS = (0, 0, 0, 0, 90, 180, 270, -8, 5, 3)
TEXTS = (
    "Invoice No. 2024-0117",
    "Total amount due: 1,284.50 EUR",
    "Please pay within 30 days",
    "Gate B42 closes at 18:35",
    "The quick brown fox",
    "jumps over the lazy dog",
    "Serial number X7-49KQ-22",
    "Keep refrigerated at 4 to 8 C",
    "Best before 12/03/2027",
    "www.example.org/help",
    "contact@example.com",
    "Platform 9, coach 14, seat 61",
    "Dr. Helen Marsh",
    "221 Baker Street",
    "London NW1 6XE",
    "CAUTION: HOT SURFACE",
    "Made in Portugal",
    "Net weight 750 g",
    "Order #58213 has shipped",
    "Room 304, second floor",
    "Wind 15 km/h, humidity 62%",
    "Version 3.11.7 (stable)",
    "Do not bend or fold",
    "Thank you for your visit!",
)


@dataclass
class Picture:
    """How one picture is drawn. `turn`: degrees clockwise."""

    lines: list[str]
    font: str
    size: int
    ink: str
    paper: str
    turn: int

    def draw(self) -> Image.Image:
        font = ImageFont.truetype(FONTS[self.font], self.size)
        step, margin = round(self.size * 1.6), self.size
        width = max(round(font.getlength(line)) for line in self.lines) + 2 * margin
        picture = Image.new("RGB", (width, step * len(self.lines) + 2 * margin), self.paper)
        pen = ImageDraw.Draw(picture)
        for at, line in enumerate(self.lines):
            pen.text((margin, margin + at * step), line, font=font, fill=self.ink)
        return picture.rotate(-self.turn, expand=True, fillcolor=self.paper, resample=Image.Resampling.BICUBIC)


def plan(count: int, seed: int) -> list[Picture]:
    """All fonts, sizes, colours and turns come up equally often, in combinations drawn by chance."""
    chance = random.Random(seed)
    rounds = [list(FONTS), list(SIZES), list(COLOURS), list(TURNS)]
    for choices in rounds:
        chance.shuffle(choices)
    pictures = []
    for at in range(count):
        font, size, (ink, paper), turn = (choices[at % len(choices)] for choices in rounds)
        lines = chance.sample(TEXTS, chance.randint(1, 6))
        pictures.append(Picture(lines, font, size, ink, paper, turn))
    return pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    values = parser.parse_args()
    values.folder.mkdir(parents=True, exist_ok=True)
    truth = {}
    for number, picture in enumerate(plan(values.count, values.seed), start=1):
        name = f"{number:03}.png"
        picture.draw().save(values.folder / name)
        truth[name] = asdict(picture)
    (values.folder / "truth.json").write_text(json.dumps(truth, indent=2) + "\n")
    print(f"{len(truth)} pictures in {values.folder}")


if __name__ == "__main__":
    main()
