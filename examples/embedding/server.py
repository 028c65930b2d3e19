"""Embeddings as OpenAI's interface has them, at `/v1/embeddings` and `/embeddings`: its clients work with this service.

Both routes share one stage, which embeds the texts of several requests together.
"""

import base64
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from minilm import NAME, MiniLM

from mosec import DecodingError, Runtime, Server, ValidationError, Worker


class Request(msgspec.Struct):
    """What of OpenAI's request matters here; the rest, as `user`, is let pass."""

    # Texts only: tokens mean nothing to a model other than the one that they were made for.
    input: str | Annotated[list[str], msgspec.Meta(min_length=1, max_length=2048)]
    model: str = NAME
    # OpenAI's own clients ask for base64, which is shorter than numbers in JSON.
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Literal[384] | None = None

    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class Embedding(Worker):
    multi_examples = [[Request("a text to warm up with")], [Request(["two of them", "in one request"])]]

    def __init__(self) -> None:
        self.model = MiniLM()
        self.decoder = msgspec.json.Decoder(Request)

    def deserialize(self, data: bytes) -> Request:
        try:
            request = self.decoder.decode(data)
        except msgspec.ValidationError as error:  # a DecodeError too, so it comes first
            raise ValidationError(error) from None
        except msgspec.DecodeError as error:
            raise DecodingError(error) from None
        if request.model != NAME:
            raise ValidationError(f"there is no model {request.model!r} here, only {NAME!r}")
        return request

    def forward(self, data: list[Request]) -> list[dict[str, Any]]:
        vectors, counts = self.model.embed([text for request in data for text in request.texts()])
        answers, done = [], 0
        for request in data:
            part = slice(done, done + len(request.texts()))
            answers.append(answer(request, vectors[part], sum(counts[part])))
            done = part.stop
        return answers


def answer(request: Request, vectors: np.ndarray, tokens: int) -> dict[str, Any]:
    encode = as_base64 if request.encoding_format == "base64" else np.ndarray.tolist
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": encode(vector)} for index, vector in enumerate(vectors)
        ],
        "model": NAME,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def as_base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


if __name__ == "__main__":
    embedding = Runtime(Embedding, max_batch_size=32, max_wait_time=5)
    server = Server()
    server.register_runtime({"/v1/embeddings": [embedding], "/embeddings": [embedding]})
    server.run()
