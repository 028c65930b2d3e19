"""The stages of both services, which find the loudest tone in a sound; how arrays go between them is left to these."""

from typing import Any

import numpy as np

from mosec import ValidationError, Worker

RATE = 16_000
# A spectrum is made of this many samples; shorter sounds are filled up with silence.
SAMPLES = 16_384


class Read(Worker):
    """The body: samples of a sound, 16000 a second, as 32-bit floats in little endian."""

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> np.ndarray:
        if len(data) % 4:
            raise ValidationError(f"expected 32-bit floats, found {len(data)} bytes")
        samples = np.frombuffer(data, "<f4")[:SAMPLES]
        return np.pad(samples, (0, SAMPLES - len(samples)))


class Spectrum(Worker):
    """Works on several sounds at once. Arrays come in and go out."""

    def forward(self, data: list[np.ndarray]) -> list[np.ndarray]:
        windows = np.stack(data) * np.hanning(SAMPLES)
        return list(np.abs(np.fft.rfft(windows)).astype(np.float32))


class Peak(Worker):
    def forward(self, data: np.ndarray) -> dict[str, Any]:
        return {"hertz": round(float(data.argmax()) * RATE / SAMPLES, 1)}
