"""Asks for embeddings with OpenAI's own client, or with `--documents` for the order of documents."""

import argparse
import sys
import urllib.request
from collections.abc import Sequence

import msgpack
import openai


def embed(url: str, texts: Sequence[str], base: str = "/v1") -> list[list[float]]:
    """The texts' vectors. `url` is a running server.py."""
    client = openai.OpenAI(base_url=url + base, api_key="none is asked for", max_retries=0)
    found = client.embeddings.create(input=list(texts), model="all-MiniLM-L6-v2")
    return [one.embedding for one in found.data]


def rerank(url: str, query: str, documents: Sequence[str], top: int | None = None) -> list[tuple[str, float]]:
    """The documents with their scores, best first. `url` is a running rerank.py."""
    body = msgpack.packb({"query": query, "documents": list(documents), "top": top})
    with urllib.request.urlopen(f"{url}/rerank", body, timeout=60) as response:
        return [(documents[match["index"]], match["score"]) for match in msgpack.unpackb(response.read())]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="?", default="How do I cook rice?")
    parser.add_argument("--documents", nargs="+", help="documents to order; the service is rerank.py")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    values = parser.parse_args()
    if values.documents is None:
        (vector,) = embed(values.url, [values.text])
        print(f"{len(vector)} numbers: {', '.join(f'{value:.4f}' for value in vector[:4])}, ...")
    else:
        for document, score in rerank(values.url, values.text, values.documents):
            print(f"{score:.3f} {document}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
