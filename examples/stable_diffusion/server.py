"""Draws pictures from prompts with Stable Diffusion, four at a time, as MOSEC's own introduction does.

Request: a prompt. Answer: a JPEG. Both are MessagePack. The model comes from the Hugging Face hub, or from the folder
that `STABLE_DIFFUSION_MODEL` names.
"""

import os
from io import BytesIO

import torch
from diffusers import StableDiffusionPipeline
from PIL.Image import Image

from mosec import Server, Worker, get_logger
from mosec.mixin import MsgpackMixin

logger = get_logger()

MODEL = os.environ.get("STABLE_DIFFUSION_MODEL", "sd-legacy/stable-diffusion-v1-5")
BATCH = 4


class StableDiffusion(MsgpackMixin, Worker):
    def __init__(self) -> None:
        has_gpu = torch.cuda.is_available()
        dtype = torch.float16 if has_gpu else torch.float32
        self.pipe = StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=dtype)
        if has_gpu:
            # Each part of the model is on the GPU only while it runs, so that a small GPU is enough.
            self.pipe.enable_model_cpu_offload()
        # Drawn before the stage takes requests: a full batch of four.
        self.example = ["a red bicycle on a beach"] * BATCH

    def forward(self, data: list[str]) -> list[memoryview]:
        logger.info("drawing %d prompts", len(data))
        return [as_jpeg(picture) for picture in self.pipe(data).images]


def as_jpeg(picture: Image) -> memoryview:
    file = BytesIO()
    picture.save(file, "JPEG")
    return file.getbuffer()


if __name__ == "__main__":
    server = Server()
    # `--timeout`, 3 s where it is not given, has to cover a batch: a slow GPU needs more, a CPU minutes.
    server.append_worker(StableDiffusion, max_batch_size=BATCH, max_wait_time=10)
    server.run()
