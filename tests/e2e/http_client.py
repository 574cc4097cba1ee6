"""A plain HTTP client for the end-to-end suites: JSON, events, raw sockets; and what they ask a cluster that
serves the demo model."""

import http.client
import json
import socket

DEADLINE_S = 60
PROMPT = "And it came to pass"


class Answer:
    def __init__(self, response):
        self.status, self.headers = response.status, response.headers
        self.body = response.read()

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json["error"]


def call(port, method, path, body=None, headers=None):
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"Content-Type": "application/json"} if data is not None else {}
    c.request(method, path, data, {**fields, **(headers or {})})
    answer = Answer(c.getresponse())
    c.close()
    return answer


def get(port, path, headers=None):
    return call(port, "GET", path, headers=headers)


def post(port, path, body, headers=None):
    return call(port, "POST", path, body, headers)


def open_stream(port, path, body, headers=()):
    """A socket whose request is sent, and whose answer is not read; a stream unless body says no."""
    data = json.dumps({"stream": True, **body}).encode()
    s = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
    lines = [f"POST {path} HTTP/1.1", "Host: test", "Content-Type: application/json",
             f"Content-Length: {len(data)}", *headers, "", ""]
    s.sendall("\r\n".join(lines).encode() + data)
    return s


def events(port, path, body, headers=None):
    """(status, the events of a stream as texts, in order; comments left out)."""
    answer = post(port, path, {**body, "stream": True}, headers)
    if answer.status != 200:
        return answer.status, [answer.body.decode()]
    assert answer.headers["Content-Type"] == "text/event-stream"
    blocks = answer.body.decode().split("\n\n")
    assert blocks.pop() == "", "an event ends with an empty line"
    return 200, [b.removeprefix("data: ") for b in blocks if not b.startswith(":")]


# ---- a cluster ----


def complete(server, prompt=PROMPT, **fields):
    body = {"prompt": prompt, "max_tokens": 12, "seed": 3, **fields}
    answer = post(server.http_port, "/v1/completions", body)
    assert answer.status == 200, answer.body
    return answer.json


def running(c):
    return sum(g.running for g in c.status().groups) + c.status().waiting


def counted(c, sample):
    [line] = [line for line in get(c.http_port, "/metrics").body.decode().splitlines()
              if line.startswith(sample + " ")]
    return float(line.split()[-1])


def wait_idle(c):
    c.wait(lambda: running(c) == 0, "no requests")
