"""Orders documents by how well they fit a query.

It compares the vectors of query and documents, each made without sight of the other (a "bi-encoder"). That is cheap and
finds what is near in meaning; a model that reads query and document together (a "cross-encoder") orders better.
"""

from typing import Annotated

import msgspec
from minilm import MiniLM

from mosec import Server
from mosec.mixin import TypedMsgPackMixin


class Query(msgspec.Struct):
    query: str
    documents: Annotated[list[str], msgspec.Meta(min_length=1, max_length=1000)]
    # How many to answer with; all where absent.
    top: Annotated[int, msgspec.Meta(ge=1)] | None = None


class Match(msgspec.Struct):
    # The document's place in the request.
    index: int
    # Cosine of the angle between the vectors: 1 for the same text, near 0 for what has nothing to do with it.
    score: float


class Rerank(TypedMsgPackMixin):
    multi_examples = [[Query("warm up", ["one document", "another document"])]]

    def __init__(self) -> None:
        self.model = MiniLM()

    def forward(self, data: list[Query]) -> list[list[Match]]:
        vectors, _ = self.model.embed([text for query in data for text in (query.query, *query.documents)])
        answers, done = [], 0
        for query in data:
            first = done + 1
            done = first + len(query.documents)
            scores = vectors[first:done] @ vectors[first - 1]
            best = (-scores).argsort(kind="stable")[: query.top]
            answers.append([Match(int(index), float(scores[index])) for index in best])
        return answers


if __name__ == "__main__":
    server = Server()
    server.append_worker(Rerank, max_batch_size=8, max_wait_time=5, route="/rerank")
    server.run()
