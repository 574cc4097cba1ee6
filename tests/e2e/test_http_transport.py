"""coordinator/http.h against plain sockets: what clients may send, what is refused, who is told when.

The server is tests/e2e/http_echo_server.c; it says on its standard output what it sees, so that both
ends of a call can be checked.
"""

import http.client
import os
import re
import socket
import ssl
import struct
import subprocess
import time

import pytest

from echo_server import BIN, DEADLINE_S, EchoServer

SERVER = BIN.parent / "tests" / "http_echo_server"


class Server(EchoServer):
    def __init__(self, *args, address="127.0.0.1:0", **env):
        super().__init__(SERVER, address, *args, **env)

    def seen(self, start):
        """The next line that starts with this."""
        while True:
            line = self.line()
            assert line is not None, f"the server ended before it said {start}"
            if line.startswith(start):
                return line

    def connect(self):
        s = socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return s

    def http(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)

    def raw(self, data):
        """Sends bytes, returns everything until the server closes."""
        with self.connect() as s:
            s.sendall(data)
            return read_all(s)


def read_all(s):
    data = b""
    try:
        while piece := s.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return data


def read_until(s, end):
    data = b""
    while not data.endswith(end):
        piece = s.recv(1)
        assert piece, f"closed after {data!r}"
        data += piece
    return data


def status(data):
    return int(data.split(b" ", 2)[1]) if data.startswith(b"HTTP/1.") else None


def get(path, *fields, method="GET", version="HTTP/1.1"):
    lines = [f"{method} {path} {version}", "Host: test", *fields, "", ""]
    return "\r\n".join(lines).encode()


def post(path, body=b"", *fields, length=None):
    n = len(body) if length is None else length
    return get(path, f"Content-Length: {n}", *fields, method="POST") + body


@pytest.fixture(scope="module")
def server():
    s = Server()
    yield s
    s.stop()


# ---- requests that are served ----


def test_echo_keeps_alive(server):
    c = server.http()
    for size in (0, 1, 5000, 100000):
        body = os.urandom(size)
        c.request("POST", "/echo", body)
        r = c.getresponse()
        assert (r.status, r.read()) == (200, body)
    c.close()


def test_head_is_told(server):
    c = server.http()
    c.request("GET", "/in%66o?q=a%20b", headers={"X-Test": "one; two"})
    r = c.getresponse()
    assert r.read() == b"GET|/info|a b|one; two|127.0.0.1"
    assert r.headers["X-Echo"] == "one; two"


@pytest.mark.parametrize("target, path", [
    ("http://test/info", "/info"), ("HTTP://127.0.0.1:8000/info?q=1", "/info"),
    ("https://test/info", "/info"), ("http://test", "/"), ("http://test/", "/"),
    ("ftp://test/info", "ftp://test/info"), ("http:/info", "http:/info"),
])
def test_absolute_target(server, target, path):
    """As proxies send it; servers must take it (RFC 9112, 3.2.2)."""
    data = server.raw(get(target, "Connection: close"))
    assert f"GET|{path}|".encode() in data, data


def test_chunked_body(server):
    data = server.raw(get("/echo", "Transfer-Encoding: chunked", "Connection: close", method="POST")
                      + b"5\r\nhello\r\n7;x=y\r\n, world\r\n0\r\nTrailer: x\r\n\r\n")
    assert status(data) == 200 and data.endswith(b"hello, world"), data


def test_pipelined_requests_are_answered_once_and_in_order(server):
    data = server.raw(post("/echo", b"one") + post("/echo", b"two") + get("/info")
                      + post("/echo", b"three", "Connection: close") + post("/echo", b"never"))
    assert re.findall(rb"HTTP/1.1 (\d+)", data) == [b"200"] * 4, data
    assert data.index(b"one") < data.index(b"two") < data.index(b"GET|/info") < data.index(b"three")
    assert b"never" not in data


def test_pipelined_behind_a_running_request(server):
    with server.connect() as s:
        s.sendall(post("/wait", b"x") + post("/echo", b"behind", "Connection: close"))
        server.seen("request POST /wait")
        server.raw(get("/answer", "Connection: close"))
        data = read_all(s)
    assert re.findall(rb"HTTP/1.1 (\d+)", data) == [b"200"] * 2, data
    assert data.index(b"at last") < data.index(b"behind")


def test_expect_continue(server):
    with server.connect() as s:
        s.sendall(get("/echo", "Content-Length: 5", "Expect: 100-continue", "Connection: close",
                      method="POST"))
        assert read_until(s, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        s.sendall(b"hello")
        data = read_all(s)
    assert status(data) == 200 and data.endswith(b"hello")


def test_expect_continue_of_a_refused_request(server):
    data = server.raw(get("/early", "Content-Length: 5", "Expect: 100-continue", method="POST"))
    assert status(data) == 401, data


def test_a_byte_at_a_time(server):
    with server.connect() as s:
        for byte in post("/echo", b"slowly", "Connection: close"):
            s.sendall(bytes([byte]))
        data = read_all(s)
    assert status(data) == 200 and data.endswith(b"slowly")


def test_http_1_0(server):
    data = server.raw(get("/tick?n=3", version="HTTP/1.0"))
    head, _, body = data.partition(b"\r\n\r\n")
    assert status(head) == 200 and b"chunked" not in head.lower()
    assert body == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"


def test_head_method_has_no_body(server):
    data = server.raw(get("/info", "Connection: close", method="HEAD"))
    assert status(data) == 200 and data.endswith(b"\r\n\r\n"), data


def test_a_fresh_connection_for_each(server):
    for _ in range(200):
        assert server.raw(get("/info", "Connection: close")).endswith(b"127.0.0.1")


# ---- requests that are refused ----


@pytest.mark.parametrize("head, expected", [
    # where the body ends must not be a matter of opinion
    (b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
     b"0\r\n\r\n", 400),
    (b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n"
     b"0\r\n\r\n", 400),
    (b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde", 400),
    (b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 5\r\n\r\nabcde", 400),
    (b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nabcd", 400),
    (b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
    (b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 0x4\r\n\r\nabcd", 400),
    (b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", 400),
    (b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n", 413),
    (b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
    (b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    (b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n"
     b"0\r\n\r\n", 400),
    (b"POST /echo HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
    (b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length : 4\r\n\r\nabcd", 400),
    (b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n\r\n", 400),
    (b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n", 400),
    (b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n", 400),
    (b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
     b"ffffffffffffffffff\r\n", 413),
    # and the rest of the head must be one
    (b"GET /info HTTP/1.1\r\n\r\n", 400),
    (b"GET /info HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    (b"GET /info HTTP/1.1\r\nHost: a\r\nNo colon\r\n\r\n", 400),
    (b"GET /info HTTP/1.1\r\nHost: a\r\nX-\x01: b\r\n\r\n", 400),
    (b"GET /info HTTP/1.1\r\nHost: a\r\nX-Test: a\x01b\r\n\r\n", 400),
    (b"GET /info HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(120))
     + b"\r\n", 431),
    (b"GET /info HTTP/1.1\r\nHost: a\r\nX-Test: " + b"a" * 17000 + b"\r\n\r\n", 431),
    (b"GET /info HTTP/1.1\r\nHost: a\r\nX-Test: " + b"a" * 100000 + b"\r\n\r\n", 431),
    (b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
])
def test_refused(server, head, expected):
    data = server.raw(head)
    assert status(data) == expected, data[:300]
    # The library says the head of its own refusals twice where a Content-Length is no number; the
    # connection closes all the same.
    assert len(set(re.findall(rb"HTTP/1.1 \d+", data))) == 1, data
    assert b"200 OK" not in data


@pytest.mark.parametrize("bytes_", [
    b"\r\n\r\n\r\n\r\n", b"\0" * 1000, b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", b"GET\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /info HTTP/9.9\r\nHost: a\r\n\r\n",
    b"GET /info\r\n\r\n", os.urandom(5000),
])
def test_nonsense_is_not_served(server, bytes_):
    with server.connect() as s:
        s.sendall(bytes_)
        s.shutdown(socket.SHUT_WR)
        data = read_all(s)
    assert status(data) in (None, 400, 414, 431, 505), data[:300]
    assert server.raw(get("/info", "Connection: close")).endswith(b"127.0.0.1")


def test_a_hidden_end_of_the_path(server):
    data = server.raw(get("/info%00x", "Connection: close"))
    assert b"GET|/info%00x|" in data, data


def test_body_too_long_is_not_read(server):
    data = server.raw(get("/echo", "Content-Length: 1000000000", method="POST"))
    assert status(data) == 413, data


def test_body_too_long_for_its_path(server):
    assert status(server.raw(post("/small", b"0123456789", "Connection: close"))) == 200
    assert status(server.raw(post("/small", b"01234567890", "Connection: close"))) == 413


def test_chunked_body_too_long(server):
    chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
    data = server.raw(get("/echo", "Transfer-Encoding: chunked", "Connection: close", method="POST")
                      + chunk * 30 + b"0\r\n\r\n")
    assert status(data) == 413, data[:200]


def test_chunked_body_without_an_end(server):
    with server.connect() as s:
        s.sendall(get("/echo", "Transfer-Encoding: chunked", method="POST"))
        with pytest.raises(OSError):
            while True:
                s.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")


def test_answered_before_its_body(server):
    data = server.raw(post("/early", b"x" * 50000))
    assert status(data) == 401, data[:200]
    assert "connection: close" in data.decode().lower()


# ---- who is told when ----


def reset(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


@pytest.mark.parametrize("path", ["/wait", "/idle", "/tick?n=100000", "/stream?n=100000&size=1000"])
@pytest.mark.parametrize("leave", [socket.socket.close, reset], ids=["close", "reset"])
def test_client_leaves(server, path, leave):
    s = server.connect()
    s.sendall(post(path, b"x"))
    plain = path.partition("?")[0]
    server.seen(f"request POST {plain}")
    leave(s)
    assert server.seen("done").startswith(f"done {plain} 0")


def test_client_leaves_with_another_request_in_the_pipe(server):
    s = server.connect()
    s.sendall(post("/wait", b"x") + post("/echo", b"y"))
    server.seen("request POST /wait")
    s.close()
    assert server.seen("done").startswith("done /wait 0")


def test_client_leaves_at_once(server):
    """Within a few milliseconds, while nothing is written."""
    took = []
    for _ in range(20):
        s = server.connect()
        s.sendall(post("/wait", b"x"))
        server.seen("request POST /wait")
        left = time.monotonic()
        s.close()
        server.seen("done /wait 0")
        took.append(time.monotonic() - left)
    assert sorted(took)[len(took) // 2] < 0.05, took


def test_client_leaves_in_the_body(server):
    s = server.connect()
    s.sendall(post("/echo", b"half", length=100))
    s.close()
    server.seen("done /echo 0")


def test_half_closed_client_gets_what_is_there_at_once(server):
    with server.connect() as s:
        s.sendall(get("/info"))
        s.shutdown(socket.SHUT_WR)
        assert read_all(s).endswith(b"127.0.0.1")


def test_break_can_be_told(server):
    with server.connect() as s:
        s.sendall(get("/break?n=3"))
        data = read_all(s)
    assert data.count(b"data:") >= 1 and not data.endswith(b"0\r\n\r\n"), data
    server.seen("done /break 0")


def test_stream_ends(server):
    c = server.http()
    c.request("GET", "/tick?n=5")
    r = c.getresponse()
    assert r.read() == b"".join(b"data: %d\n\n" % i for i in range(5))
    c.request("POST", "/echo", b"the connection goes on")
    assert c.getresponse().read() == b"the connection goes on"
    server.seen("done /tick 1")


def test_a_connection_that_ends_behind_its_stream(server):
    with server.connect() as s:
        s.sendall(get("/last?n=3"))
        data = read_all(s)
    assert data.count(b"data:") == 3 and data.endswith(b"0\r\n\r\n"), data
    server.seen("done /last 1")


def test_events_are_not_held_back(server):
    """Each within a moment of being sent: no delay by Nagle's algorithm or by buffers."""
    with server.connect() as s:
        s.sendall(get("/tick?n=20"))
        read_until(s, b"\r\n\r\n")
        times = []
        for i in range(20):
            read_until(s, b"data: %d\n\n" % i)
            times.append(time.monotonic())
    gaps = sorted(b - a for a, b in zip(times, times[1:]))
    assert gaps[len(gaps) // 2] < 0.03, gaps


def test_slow_reader_waits_and_others_do_not(server):
    n, size = 2000, 20000
    with server.connect() as s:
        s.sendall(get(f"/stream?n={n}&size={size}", "Connection: close"))
        read_until(s, b"\r\n\r\n")
        for _ in range(50):  # others are served while it does not read
            assert server.raw(post("/echo", b"x", "Connection: close")).endswith(b"x")
        received = 0
        while piece := s.recv(1 << 20):
            received += len(piece)
    assert received > n * size
    done = server.seen("done /stream")
    assert done.startswith("done /stream 1"), done
    queued = int(done.split()[3])
    assert queued <= 64 * 1024 + size, f"{queued} bytes were queued at once"


def test_heartbeat():
    server = Server(HTTP_SHORT="200")
    with server.connect() as s:
        s.sendall(get("/idle"))
        read_until(s, b"\r\n\r\n")
        for _ in range(3):
            read_until(s, b": still here\n\n")
    server.stop()


@pytest.mark.parametrize("start", [b"", b"\r\n\r\n", b"GET /info HT", get("/info") + b"GET"])
def test_heads_do_not_take_forever(start):
    server = Server(HTTP_SHORT="1000")
    with server.connect() as s:
        s.sendall(start)
        try:
            while True:  # a drop now and then does not help
                s.settimeout(0.2)
                try:
                    if not s.recv(65536):
                        break
                except socket.timeout:
                    s.sendall(b"/" if start else b"G")
        except (BrokenPipeError, ConnectionResetError):
            pass
    server.stop()


def test_bodies_do_not_take_forever():
    server = Server(HTTP_SHORT="1000")
    with server.connect() as s:
        s.sendall(post("/echo", b"", length=50000))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while True:
                s.sendall(b"x")
                time.sleep(0.02)
    server.seen("done /echo 0")
    server.stop()


def test_too_many_connections():
    server = Server(HTTP_FEW="1")  # four
    waiting = [server.connect() for _ in range(4)]
    for s in waiting:
        s.sendall(post("/wait", b"x"))
        server.seen("request POST /wait")
    assert status(server.raw(get("/info"))) == 503
    waiting[0].close()
    server.seen("done /wait 0")
    deadline = time.monotonic() + DEADLINE_S
    while status(server.raw(get("/info", "Connection: close"))) != 200:
        assert time.monotonic() < deadline
    for s in waiting:
        s.close()
    server.stop()


# ---- stop ----


def test_stop_lets_calls_end():
    server = Server()
    idle = server.connect()
    idle.sendall(post("/echo", b"x"))
    read_until(idle, b"\r\n\r\nx")
    with server.connect() as s:
        s.sendall(get("/tick?n=30"))
        server.seen("request GET /tick")
        server.terminate()
        data = read_all(s)
    assert data.endswith(b"data: 29\n\n\r\n0\r\n\r\n"), data[-100:]
    assert idle.recv(1) == b""
    server.stop()


def test_stop_cuts_what_does_not_end():
    server = Server()
    held = [server.connect() for _ in range(30)]
    for i, s in enumerate(held):
        path = ("/wait", "/idle", "/stream?n=100000&size=10000")[i % 3]
        s.sendall(post(path, b"x"))
        server.seen("request POST")
    half = server.connect()
    half.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Le")
    server.terminate()
    server.seen("done /wait 0")
    server.stop()
    for s in held:
        read_all(s)
        s.close()


def test_stop_without_connections():
    Server().stop()


def test_taken_address():
    server = Server()
    r = subprocess.run([SERVER, f"127.0.0.1:{server.port}"], capture_output=True, text=True,
                       timeout=DEADLINE_S)
    assert r.returncode == 1 and "cannot listen on" in r.stderr, r.stderr
    server.stop()


@pytest.mark.parametrize("address", ["", "127.0.0.1", "127.0.0.1:", "127.0.0.1:99999", "::1:80",
                                     "[::1:80", "unix:", "unix:" + "x" * 200, "127.0.0.1:8o"])
def test_bad_address(address):
    r = subprocess.run([SERVER, address], capture_output=True, text=True, timeout=DEADLINE_S)
    assert r.returncode == 1 and "expected HOST:PORT" in r.stderr, r.stderr


def test_unix_socket(tmp_path):
    path = tmp_path / "http.sock"
    server = Server(address=f"unix:{path}")
    s = socket.socket(socket.AF_UNIX)
    s.connect(str(path))
    s.sendall(get("/info", "Connection: close"))
    assert read_all(s).endswith(b"GET|/info|-|-|unix")
    server.stop()
    assert not path.exists()


# ---- TLS ----


def make_certs(folder):
    subprocess.run([SERVER.parent / "rpc_echo_server", "--make-certs", folder], check=True)


def tls_context(folder, client=False):
    context = ssl.create_default_context(cafile=folder / "ca.crt")
    context.check_hostname = False
    if client:
        context.load_cert_chain(folder / "client.crt", folder / "client.key")
    return context


def served_certificate(server, context):
    with context.wrap_socket(server.connect()) as s:
        s.sendall(get("/info", "Connection: close"))
        assert read_all(s).endswith(b"127.0.0.1")
        return s.getpeercert(binary_form=True)


def test_tls(tmp_path):
    make_certs(tmp_path)
    server = Server(tmp_path / "server.crt", tmp_path / "server.key")
    context = tls_context(tmp_path)
    c = http.client.HTTPSConnection("127.0.0.1", server.port, context=context, timeout=DEADLINE_S)
    body = os.urandom(90000)
    c.request("POST", "/echo", body)
    assert c.getresponse().read() == body
    c.request("GET", "/tick?n=5")
    assert c.getresponse().read() == b"".join(b"data: %d\n\n" % i for i in range(5))
    with context.wrap_socket(server.connect()) as s:
        s.sendall(post("/wait", b"x"))
        server.seen("request POST /wait")
    server.seen("done /wait 0")
    assert status(server.raw(get("/info"))) is None, "plaintext is not answered"
    server.stop()


def test_tls_certificate_changes_without_a_restart(tmp_path):
    make_certs(tmp_path)
    server = Server(tmp_path / "server.crt", tmp_path / "server.key")
    first = served_certificate(server, tls_context(tmp_path))
    with tls_context(tmp_path).wrap_socket(server.connect()) as old:
        make_certs(tmp_path)  # all new, the authority too
        assert served_certificate(server, tls_context(tmp_path)) != first
        old.sendall(get("/info", "Connection: close"))  # whoever is connected stays so
        assert read_all(old).endswith(b"127.0.0.1")
    good = (tmp_path / "server.crt").read_bytes()
    second = served_certificate(server, tls_context(tmp_path))
    (tmp_path / "server.crt").write_bytes(good[:100])  # half written: the one from before
    assert served_certificate(server, tls_context(tmp_path)) == second
    server.stop()


def test_mutual_tls(tmp_path):
    make_certs(tmp_path)
    server = Server(tmp_path / "server.crt", tmp_path / "server.key", tmp_path / "ca.crt")
    served_certificate(server, tls_context(tmp_path, client=True))
    with tls_context(tmp_path).wrap_socket(server.connect()) as s:
        s.sendall(get("/info"))
        assert status(read_all(s)) == 403
    server.stop()


def test_tls_files_that_are_none(tmp_path):
    make_certs(tmp_path)
    (tmp_path / "empty").touch()
    for cert, key in (("empty", "server.key"), ("server.crt", "empty"), ("server.crt", "client.key"),
                      ("missing", "server.key")):
        r = subprocess.run([SERVER, "127.0.0.1:0", tmp_path / cert, tmp_path / key],
                           capture_output=True, text=True, timeout=DEADLINE_S)
        assert r.returncode == 1 and str(tmp_path) in r.stderr, r.stderr
