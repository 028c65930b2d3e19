"""Streams an answer word by word, as a language model does, by server-sent events."""

from typing import Any

from mosec import Server, SSEWorker, ValidationError, Worker


class Check(Worker):
    def forward(self, data: Any) -> str:
        text = data.get("text") if isinstance(data, dict) else None
        if not isinstance(text, str) or not text:
            raise ValidationError("text is required")
        return text


class Speak(SSEWorker):
    """Sends each word when it has it; what `forward` returns is not sent. Must be the last stage."""

    def forward(self, data: list[str]) -> list[str]:
        # Stands for a model that makes the next word of every text in the batch.
        words = [text.split(" ") for text in data]
        for step in range(max(map(len, words))):
            for index, found in enumerate(words):
                if step < len(found):
                    self.send_stream_event(found[step], index=index)
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Check)
    server.append_worker(Speak, max_batch_size=4, max_wait_time=5)
    server.run()
