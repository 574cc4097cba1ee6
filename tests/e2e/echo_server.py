"""A server program of the tests (tests/e2e/*_echo_server.c): it says on its standard output which port it
has, what it sees, and at last that it has stopped."""

import os
import pathlib
import queue
import re
import signal
import subprocess
import threading

SOURCE = pathlib.Path(os.environ.get("GLMD_SOURCE_DIR", pathlib.Path(__file__).parents[2]))
BIN = pathlib.Path(os.environ.get("GLMD_BIN_DIR", SOURCE / "build/release/bin"))
DEADLINE_S = 60


class EchoServer:
    def __init__(self, program, *args, **env):
        self.process = subprocess.Popen([program, *map(str, args)], stdout=subprocess.PIPE, text=True,
                                        env={**os.environ, **env})
        self.terminated = False
        self.lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        line = self.line()
        assert line and re.fullmatch(r"port \d+", line), line
        self.port = int(line.split()[1])

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line.strip())
        self.lines.put(None)  # the end

    def line(self):
        return self.lines.get(timeout=DEADLINE_S)

    def terminate(self):
        self.terminated = True
        self.process.send_signal(signal.SIGTERM)

    def stop(self):
        if not self.terminated:
            self.terminate()
        code = self.process.wait(timeout=DEADLINE_S)
        rest = []
        while (line := self.line()) is not None:
            rest.append(line)
        assert code == 0 and rest[-1] == "stopped", f"ended with {code}: {rest[-5:]}"
