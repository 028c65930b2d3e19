"""Sends arrays from stage to stage in numbin's format, which is shorter and faster to read than pickle's.

The mixin belongs on both neighbours: one writes what the other reads.
"""

import stages

from mosec import Server
from mosec.mixin import NumBinIPCMixin


class Read(NumBinIPCMixin, stages.Read):
    pass


class Spectrum(NumBinIPCMixin, stages.Spectrum):
    pass


class Peak(NumBinIPCMixin, stages.Peak):
    pass


if __name__ == "__main__":
    server = Server()
    server.append_worker(Read)
    server.append_worker(Spectrum, max_batch_size=16, max_wait_time=5)
    server.append_worker(Peak)
    server.run()
