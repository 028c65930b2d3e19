"""Adds a folder to Python's search path where no other process does it again: under the guard."""

import sys
from pathlib import Path

from mosec import Server

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parent / "elsewhere"))
    from beside import Beside

    server = Server()
    server.append_worker(Beside)
    server.run()
