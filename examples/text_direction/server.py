"""Classifies pictures: is a line of text upright, or does it stand on its head?

Three stages: Decode makes the model's input of a picture, Classify runs the model on up to 32 of them, Answer names
what it found. Requests and answers are MessagePack, so that the picture travels as it is. The model comes with the
package rapidocr-onnxruntime, so nothing is downloaded.
"""

import importlib.util
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from mosec import Server, ValidationError, Worker
from mosec.mixin import MsgpackMixin

# What the model was trained on: lines of 48 pixels height, cut or filled up to 192 pixels width.
HEIGHT, WIDTH = 48, 192
DEGREES = (0, 180)
MAX_PIXELS = 20_000_000


def model_path() -> Path:
    """The model's file. Found without importing its package, which would load much that is not needed here."""
    package = importlib.util.find_spec("rapidocr_onnxruntime")
    if package is None or package.origin is None:
        raise RuntimeError("the package rapidocr-onnxruntime is not installed")
    return Path(package.origin).parent / "models" / "ch_ppocr_mobile_v2.0_cls_infer.onnx"


class Decode(MsgpackMixin, Worker):
    """{"image": bytes of a PNG or JPEG}."""

    def forward(self, data: Any) -> np.ndarray:
        if not isinstance(data, dict) or not isinstance(data.get("image"), bytes):
            raise ValidationError('expected {"image": bytes}')
        try:
            picture = Image.open(io.BytesIO(data["image"]), formats=("PNG", "JPEG"))
            if picture.width * picture.height > MAX_PIXELS:
                raise ValidationError(f"the picture is larger than {MAX_PIXELS} pixels")
            return as_input(picture.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's, for a broken one
            raise ValidationError(f"not a picture: {error}") from None


def as_input(picture: Image.Image) -> np.ndarray:
    """The line scaled to the model's height, its pixels in -1 to 1, blue first; filled up with zeros on the right."""
    width = min(WIDTH, math.ceil(HEIGHT * picture.width / picture.height))
    pixels = np.asarray(picture.resize((width, HEIGHT), Image.Resampling.BILINEAR), np.float32)
    line = np.zeros((3, HEIGHT, WIDTH), np.float32)
    line[:, :, :width] = pixels[:, :, ::-1].transpose(2, 0, 1) / 127.5 - 1
    return line


class Classify(Worker):
    multi_examples = [[np.zeros((3, HEIGHT, WIDTH), np.float32)] * 32]

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # cores are shared by processes
        self.model = onnxruntime.InferenceSession(model_path(), options, providers=["CPUExecutionProvider"])
        self.input = self.model.get_inputs()[0].name

    def forward(self, data: list[np.ndarray]) -> list[np.ndarray]:
        (probabilities,) = self.model.run(None, {self.input: np.stack(data)})
        return list(probabilities)


class Answer(MsgpackMixin, Worker):
    def forward(self, data: np.ndarray) -> dict[str, Any]:
        best = int(data.argmax())
        return {"degrees": DEGREES[best], "confidence": float(data[best])}


if __name__ == "__main__":
    server = Server()
    server.append_worker(Decode, num=2)
    server.append_worker(Classify, max_batch_size=32, max_wait_time=10)
    server.append_worker(Answer)
    server.run()
