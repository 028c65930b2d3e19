"""Tells the type of a file from its bytes: the body in, its type, MIME type and confidence out.

One stage that runs the model on up to 64 files at once. The model comes with the package magika: nothing is downloaded.
"""

import io
from pathlib import Path
from typing import Any

import onnxruntime
from magika import Magika
from magika.types import MagikaResult
from magika.types.seekable import Seekable

from mosec import Server, Worker


class Batched(Magika):
    """The package's classifier with two changes: bytes are taken in batches, and the model runs on one thread.

    The package takes batches of paths only, so this goes through its inner parts; requirements.txt pins its version.
    """

    def identify_all(self, files: list[bytes]) -> list[MagikaResult]:
        results: dict[str, MagikaResult] = {}
        features = []
        for number, content in enumerate(files):
            name = Path(str(number))
            # Very short files are told by rules; the model sees the others.
            result, feature = self._get_result_or_features_from_seekable(Seekable(io.BytesIO(content)), name)
            if result is not None:
                results[str(name)] = result
            else:
                features.append((name, feature))
        results |= self._get_results_from_features(features)
        return [results[str(number)] for number in range(len(files))]

    def _init_onnx_session(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        return onnxruntime.InferenceSession(self._model_path, options, providers=["CPUExecutionProvider"])


class FileType(Worker):
    multi_examples = [[b"#!/bin/sh\necho warm up\n"]]

    def __init__(self) -> None:
        self.model = Batched()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[dict[str, Any]]:
        return [
            {
                "type": str(result.output.label),
                "mime": result.output.mime_type,
                "group": result.output.group,
                "description": result.output.description,
                "confidence": round(result.score, 4),
            }
            for result in self.model.identify_all(data)
        ]


if __name__ == "__main__":
    server = Server()
    server.append_worker(FileType, max_batch_size=64, max_wait_time=5, route="/file-type")
    server.run()
