"""Three stages in a row: checks a request, works on batches of them, and dresses the answer."""

from typing import Any

from mosec import Server, ValidationError, Worker


class Check(Worker):
    """Takes {"text": ...} apart. What it refuses is answered with 422 and never reaches the next stage."""

    # Run before the stage takes requests, as are the next one's. `--dry-run` sends it through all stages.
    example = {"text": "warm up"}

    def forward(self, data: Any) -> str:
        text = data.get("text") if isinstance(data, dict) else None
        if not isinstance(text, str):
            raise ValidationError('expected {"text": "..."}')
        return text


class Shout(Worker):
    """Stands for a model: works on up to 16 requests at once."""

    multi_examples = [["warm", "up"]]

    def forward(self, data: list[str]) -> list[str]:
        return [text.upper() for text in data]


class Answer(Worker):
    def forward(self, data: str) -> dict[str, Any]:
        return {"text": data, "length": len(data)}


if __name__ == "__main__":
    server = Server()
    server.append_worker(Check)
    server.append_worker(Shout, max_batch_size=16, max_wait_time=5)
    server.append_worker(Answer)
    server.run()
