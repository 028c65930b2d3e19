"""Two stages: one passes its data on, the other answers with a stream of events and notes what becomes of it."""

import time

from mosec import Server, SSEWorker, Worker


class Prepare(Worker):
    def forward(self, data):
        return data


class Talk(SSEWorker):
    def forward(self, data, ctx):
        with open(data["notes"], "a", buffering=1) as notes:
            notes.write("began\n")
            for count in range(data["count"]):
                if ctx.cancelled():
                    notes.write("told\n")
                    return None
                self.send_stream_event(str(count))
                time.sleep(data["pause"])
            notes.write("ended\n")
        return None


if __name__ == "__main__":
    server = Server()
    server.append_worker(Prepare)
    server.append_worker(Talk, timeout=60)
    server.run()
