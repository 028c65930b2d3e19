"""Posts pictures of single lines of text and prints how each is turned. Without any, it draws two."""

import argparse
import io
import sys
import urllib.request
from pathlib import Path
from typing import Any

import msgpack
from PIL import Image, ImageDraw, ImageFont


def ask(url: str, image: bytes) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/inference", msgpack.packb({"image": image}), timeout=60) as response:
        return msgpack.unpackb(response.read())


def draw(text: str, degrees: int, size: int = 32) -> bytes:
    """A PNG of a line of text, turned."""
    font = ImageFont.load_default(size)
    left, top, right, bottom = (round(edge) for edge in font.getbbox(text))
    picture = Image.new("RGB", (right - left + 16, bottom - top + 16), "white")
    ImageDraw.Draw(picture).text((8 - left, 8 - top), text, "black", font)
    file = io.BytesIO()
    picture.rotate(degrees).save(file, "PNG")
    return file.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    values = parser.parse_args()
    pictures = {str(path): path.read_bytes() for path in values.files}
    for name, picture in (pictures or {"upright": draw("Hello", 0), "on its head": draw("Hello", 180)}).items():
        answer = ask(values.url, picture)
        print(f"{name}: {answer['degrees']} degrees, {answer['confidence']:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
