"""Reads the text in pictures: a PNG or JPEG in, its lines with their places out.

Three stages. Decode makes pixels of the body; Find looks for lines of text and cuts them out; Recognise reads the lines
of several requests together. The models come with the package rapidocr-onnxruntime, so nothing is downloaded.
"""

import io
import math
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import rapidocr_onnxruntime
from PIL import Image, ImageOps
from rapidocr_onnxruntime.ch_ppocr_cls import TextClassifier
from rapidocr_onnxruntime.ch_ppocr_det import TextDetector
from rapidocr_onnxruntime.ch_ppocr_rec import TextRecognizer
from rapidocr_onnxruntime.utils import read_yaml, update_model_path

from mosec import Server, ValidationError, Worker

MAX_PIXELS = 50_000_000
# Longest side that text is looked for in; larger pictures are scaled down, which a page's text stands.
MAX_SIDE = 2000
# The detector scales up what is smaller, until it takes the words of a line for lines of their own; ground added around
# the picture keeps it from that, and gives a line that fills the picture the margin without which it is not found.
LEAST_SIDE = 736
# How far the detector widens a line beyond its ink (its "unclip ratio"); with the package's 1.6 more spaces are lost.
MARGIN = 1.9
# Lines read with less confidence are mostly no text.
MIN_CONFIDENCE = 0.5


class Line(NamedTuple):
    """One line of text as found: its corners, clockwise from the top left, and its pixels (BGR), lying."""

    box: np.ndarray
    pixels: np.ndarray
    # Standing lines are laid down by a quarter turn, so that their top comes to the left.
    was_standing: bool


def settings(part: str) -> dict[str, Any]:
    """The package's settings of one model, for one thread: the stages share the machine's cores as processes."""
    folder = Path(rapidocr_onnxruntime.__file__).parent
    found = update_model_path(read_yaml(folder / "config.yaml"))[part]
    return found | {"intra_op_num_threads": 1, "inter_op_num_threads": 1, "unclip_ratio": MARGIN}


class Decode(Worker):
    """Makes an RGB array of a picture."""

    def __init__(self) -> None:
        Image.MAX_IMAGE_PIXELS = None  # `forward` has a limit of its own, and refuses before a pixel is decoded

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> np.ndarray:
        try:
            picture = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise ValidationError(f"the picture has {width}x{height} pixels, more than {MAX_PIXELS}")
            return np.asarray(ImageOps.exif_transpose(on_white(picture)).convert("RGB"))
        except ValidationError:
            raise
        except Image.UnidentifiedImageError:
            raise ValidationError(f"the body is not a PNG or JPEG picture ({len(data)} bytes)") from None
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for a broken picture
            raise ValidationError(f"the picture is broken: {error}") from None


def on_white(picture: Image.Image) -> Image.Image:
    """The picture without transparency: what is transparent is paper, not ink."""
    if not picture.has_transparency_data:
        return picture
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)


class Find(Worker):
    """Cuts the lines of text out of a picture."""

    multi_examples = [np.full((64, 256, 3), 255, np.uint8)]

    def __init__(self) -> None:
        cv2.setNumThreads(1)
        self.detector = TextDetector(settings("Det"))

    def forward(self, data: np.ndarray) -> list[Line]:
        pixels = np.ascontiguousarray(data[:, :, ::-1])  # the models were trained on BGR
        scale = min(1.0, MAX_SIDE / max(pixels.shape[:2]))
        if scale < 1:
            pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        pixels, left, top = with_ground(pixels)
        boxes, _ = self.detector(pixels)
        offset = np.array([left, top], np.float32)
        return [cut(pixels, box, (box - offset) / scale) for box in (boxes if boxes is not None else [])]


def with_ground(pixels: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Adds ground around a small picture, in the colour of its edge. Tells how much, on the left and on the top."""
    height, width = pixels.shape[:2]
    top = max(0, math.ceil((LEAST_SIDE - height) / 2))
    left = max(0, math.ceil((LEAST_SIDE - width) / 2))
    if top == 0 and left == 0:
        return pixels, 0, 0
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colour = np.median(edge, axis=0).tolist()
    return cv2.copyMakeBorder(pixels, top, top, left, left, cv2.BORDER_CONSTANT, value=colour), left, top


def cut(pixels: np.ndarray, box: np.ndarray, place: np.ndarray) -> Line:
    """Straightens what is inside of `box`. `place`: the box in the picture as it came."""
    width = max(1, round(max(np.linalg.norm(box[0] - box[1]), np.linalg.norm(box[3] - box[2]))))
    height = max(1, round(max(np.linalg.norm(box[0] - box[3]), np.linalg.norm(box[1] - box[2]))))
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    matrix = cv2.getPerspectiveTransform(box.astype(np.float32), target)
    line = cv2.warpPerspective(pixels, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    was_standing = height >= 1.5 * width
    return Line(place, np.ascontiguousarray(np.rot90(line)) if was_standing else line, was_standing)


class Recognise(Worker):
    """Reads lines, those of several requests together."""

    multi_examples = [[[Line(np.zeros((4, 2), np.float32), np.full((48, 320, 3), 255, np.uint8), False)]]]

    def __init__(self) -> None:
        cv2.setNumThreads(1)
        self.classifier = TextClassifier(settings("Cls"))
        self.recogniser = TextRecognizer(settings("Rec"))

    def forward(self, data: list[list[Line]]) -> list[dict[str, Any]]:
        pixels = [line.pixels for lines in data for line in lines]
        if not pixels:
            return [{"lines": []} for _ in data]
        upright, angles, _ = self.classifier(pixels)
        readings, _ = self.recogniser(upright)
        flips = [label == "180" and score > self.classifier.cls_thresh for label, score in angles]
        answers, done = [], 0
        for lines in data:
            part = slice(done, done + len(lines))
            answers.append(answer(lines, flips[part], readings[part]))
            done += len(lines)
        return answers


def answer(lines: list[Line], flips: list[bool], readings: list[Any]) -> dict[str, Any]:
    """The answer to one request: its lines in reading order."""
    kept = [at for at, (_, confidence, *_) in enumerate(readings) if confidence >= MIN_CONFIDENCE]
    order = reading_order([lines[at] for at in kept], [flips[at] for at in kept])
    return {
        "lines": [
            {
                "text": readings[at][0].strip(),
                "confidence": round(float(readings[at][1]), 4),
                "box": [[round(float(x), 1), round(float(y), 1)] for x, y in lines[at].box],
            }
            for at in (kept[place] for place in order)
        ]
    }


def reading_order(lines: list[Line], flips: list[bool]) -> list[int]:
    """Places of the lines, first read first: row by row along the direction that most of the text runs in."""
    if not lines:
        return []
    along = sum(direction(line, flip) for line, flip in zip(lines, flips, strict=True))
    along = along / (np.linalg.norm(along) or 1.0)
    down = np.array([-along[1], along[0]])
    centres = np.array([line.box.mean(axis=0) for line in lines])
    depth, distance = centres @ down, centres @ along
    heights = [line.pixels.shape[0] for line in lines]
    rows: list[list[int]] = []
    for at in np.argsort(depth, kind="stable").tolist():
        if rows and depth[at] - depth[rows[-1][0]] < 0.5 * heights[rows[-1][0]]:
            rows[-1].append(at)
        else:
            rows.append([at])
    return [at for row in rows for at in sorted(row, key=lambda at: distance[at])]


def direction(line: Line, is_flipped: bool) -> np.ndarray:
    """Where the line's text runs to, as long as the line: long lines say more about the picture."""
    top_left, top_right, _, bottom_left = line.box
    towards = bottom_left - top_left if line.was_standing else top_right - top_left
    return -towards if is_flipped else towards


if __name__ == "__main__":
    server = Server()
    server.append_worker(Decode, timeout=30, route="/ocr")
    server.append_worker(Find, timeout=30, route="/ocr")
    server.append_worker(Recognise, max_batch_size=8, max_wait_time=10, timeout=30, route="/ocr")
    server.run()
