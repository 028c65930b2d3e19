"""A service whose worker cannot start."""

from bad_workers import FailsToStart

from mosec import Server

if __name__ == "__main__":
    server = Server()
    server.append_worker(FailsToStart)
    server.run()
