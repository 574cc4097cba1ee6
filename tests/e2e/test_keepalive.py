"""Peers that fall silent are given up within seconds; idle ones that ping are left in peace.

Time itself is tested here: a few of these take some seconds. The pings are HTTP/2 frames of our own,
because stock clients ping no faster than every ten seconds."""

import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time

import grpc
import pytest

from conftest import BIN, DEADLINE_S
from test_rpc import Server, server  # noqa: F401 (a fixture)

PING, GOAWAY, SETTINGS, ACK = 6, 7, 4, 1


class Http2:
    """A connection without calls that can ping."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.buffer = b""
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + self.frame(SETTINGS, 0))

    @staticmethod
    def frame(kind, flags, payload=b""):
        return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, 0) + payload

    def next_frame(self, timeout_s):
        """(kind, flags, payload), None when nothing comes in time, "end" when the peer has closed."""
        end = time.monotonic() + timeout_s
        while True:
            if len(self.buffer) >= 9:
                size = int.from_bytes(self.buffer[:3], "big")
                if len(self.buffer) >= 9 + size:
                    kind, flags = self.buffer[3], self.buffer[4]
                    payload = self.buffer[9:9 + size]
                    self.buffer = self.buffer[9 + size:]
                    return kind, flags, payload
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.socket], [], [], left)[0]:
                return None
            data = self.socket.recv(65536)
            if not data:
                return "end"
            self.buffer += data

    def ping(self, number):
        self.socket.sendall(self.frame(PING, 0, struct.pack(">Q", number)))

    def listen(self, seconds):
        """Answers the peer's pings for so long; returns what else came."""
        end, seen = time.monotonic() + seconds, []
        while (left := end - time.monotonic()) > 0:
            frame = self.next_frame(left)
            if frame == "end":
                seen.append(frame)
                break
            if frame is None:
                break
            kind, flags, payload = frame
            if kind == PING and not flags & ACK:
                self.socket.sendall(self.frame(PING, ACK, payload))
            elif kind == SETTINGS and not flags & ACK:
                self.socket.sendall(self.frame(SETTINGS, ACK))
            else:
                seen.append(frame)
        return seen


def test_limits_are_announced(server):
    """Streams of a connection and the size of headers: stock clients keep to them."""
    c = Http2(server.port)
    kind, _, payload = c.next_frame(DEADLINE_S)
    assert kind == SETTINGS
    settings = dict(struct.iter_unpack(">HI", payload))
    max_concurrent_streams, max_header_list_size = 3, 6
    assert settings[max_concurrent_streams] == 1000 + 128, "calls, and room for the standard services"
    assert settings[max_header_list_size] == 8192
    c.socket.close()


def ping_through(server, n, every_s):
    """Pings an idle connection; returns the frames that came beside the answers."""
    c, others = Http2(server.port), []
    c.listen(0.2)
    for i in range(n):
        if others and (others[-1] == "end" or others[-1][0] == GOAWAY):
            break
        c.ping(i)
        for frame in c.listen(every_s):
            if frame == "end" or frame[0] != PING:
                others.append(frame)
            else:
                assert struct.unpack(">Q", frame[2]) == (i,), "the answer to this ping"
    c.socket.close()
    return others


def test_idle_pings_are_not_punished(server):
    others = ping_through(server, 6, 1.1)
    assert not [f for f in others if f == "end" or f[0] == GOAWAY], others


@pytest.mark.long
def test_an_idle_minute_with_a_ping_every_ten_seconds(server):
    others = ping_through(server, 7, 10)
    assert not [f for f in others if f == "end" or f[0] == GOAWAY], others


def test_a_flood_of_pings_is_stopped(server):
    others = ping_through(server, 30, 0.05)
    [goaway] = [f for f in others if f != "end" and f[0] == GOAWAY][:1]
    code = struct.unpack(">I", goaway[2][4:8])[0]
    assert code == 11, "ENHANCE_YOUR_CALM"
    with server.channel() as c:
        assert c.unary_unary("/test.Test/Echo")(b"x") == b"x"


CLIENT = """
import grpc, sys
call = grpc.insecure_channel(sys.argv[1]).unary_stream('/test.Test/Stream')(
    (10**9).to_bytes(8, 'little') + (100).to_bytes(8, 'little'))
next(call)
print('open', flush=True)
sys.stdin.read()
"""


def test_a_frozen_client_is_given_up_within_seconds(server):
    """Its kernel still answers for it, but nobody answers pings."""
    client = subprocess.Popen([sys.executable, "-c", CLIENT, server.target], stdout=subprocess.PIPE,
                              stdin=subprocess.PIPE, text=True)
    try:
        assert client.stdout.readline() == "open\n"
        client.send_signal(signal.SIGSTOP)
        start = time.monotonic()
        assert server.done("/test.Test/Stream")[0] == "CANCELLED"
        seconds = time.monotonic() - start
        print(f"given up after {seconds:.1f} s")
        assert seconds < 15
    finally:
        client.kill()
        client.communicate()


def test_an_idle_client_that_answers_pings_is_kept(server):
    """A stock client without keepalive of its own, idle for longer than the server waits."""
    with server.channel([("grpc.use_local_subchannel_pool", 1)]) as c:
        facts = c.unary_unary("/test.Test/Facts")
        first = facts(b"", timeout=DEADLINE_S).decode().split("|")[2]
        waiting = c.unary_unary("/test.Test/Hold").future(b"", timeout=14)  # nothing is sent
        with pytest.raises(grpc.RpcError) as e:
            waiting.result(timeout=DEADLINE_S)
        assert e.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert facts(b"", timeout=DEADLINE_S).decode().split("|")[2] == first, "the same connection"


def test_a_frozen_server_is_given_up_within_seconds():
    """By our own clients: the tool stands for all of them."""
    s = Server()
    s.process.send_signal(signal.SIGSTOP)
    try:
        start = time.monotonic()
        tool = subprocess.run([BIN / "glmd", "generate", "--coordinator", s.target, "The river"],
                              capture_output=True, text=True, timeout=DEADLINE_S, env=os.environ)
        seconds = time.monotonic() - start
        print(f"given up after {seconds:.1f} s: {tool.stderr.strip()}")
        assert tool.returncode != 0 and seconds < 15
    finally:
        s.process.send_signal(signal.SIGCONT)
        s.stop()
