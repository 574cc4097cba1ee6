"""TLS between the daemons: workers and coordinator show each other certificates, clients come with
keys or certificates, and new certificates are taken while everything runs."""

import hashlib
import http.client
import os
import re
import signal
import socket
import ssl
import subprocess
import time

import grpc
import pytest

from conftest import BIN

CERTS = BIN.parent / "tests/rpc_echo_server"


def make_certs(folder):
    folder.mkdir()
    subprocess.run([CERTS, "--make-certs", folder], check=True)
    return folder


def settings(certs, **more):
    values = {"coordinator__tls__ca": certs / "ca.crt",
              "coordinator__tls__cert": certs / "server.crt",
              "coordinator__tls__key": certs / "server.key",
              "worker__tls__ca": certs / "ca.crt",
              "worker__tls__cert": certs / "client.crt",
              "worker__tls__key": certs / "client.key"}
    return {**values, **more}


def ready(c):
    c.wait(lambda: "ready: " in c.logs(), "a ready group", "coordinator")


def secure(target, certs, own=True):
    read = lambda name: (certs / name).read_bytes()  # noqa: E731
    pair = (read("client.key"), read("client.crt")) if own else (None, None)
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(read("ca.crt"), *pair))


def attempt(api, channel):
    try:
        answer = api.InferenceStub(channel).Tokenize(api.TokenizeRequest(text="a"), timeout=20)
        return len(answer.ids)
    except grpc.RpcError as e:
        return e.code()


def https(c, certs, path, own=True, key=None):
    """(status, body); raises ssl.SSLError where the server is not whom certs' authority knows."""
    context = ssl.create_default_context(cafile=str(certs / "ca.crt"))
    context.check_hostname = False
    if own:
        context.load_cert_chain(certs / "client.crt", certs / "client.key")
    connection = http.client.HTTPSConnection("127.0.0.1", c.http_port, timeout=60, context=context)
    connection.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


@pytest.fixture
def certs(tmp_path):
    return make_certs(tmp_path / "certs")


def test_workers_and_clients_show_certificates(cluster, model, api, certs, tmp_path):
    c = cluster(model("ckpt-fp16-tp1"), 2, workers="external", ready=False, **settings(certs))
    ready(c)
    with secure(c.target, certs) as channel:
        assert attempt(api, channel) > 0
        responses = api.InferenceStub(channel).Generate(
            api.GenerateRequest(text="a river", max_tokens=4), timeout=60)
        assert len(list(responses)) > 0
    with secure(c.target, certs, own=False) as channel:
        assert attempt(api, channel) == grpc.StatusCode.UNAVAILABLE
    assert attempt(api, c.channel) == grpc.StatusCode.UNAVAILABLE  # plaintext
    assert https(c, certs, "/v1/models")[0] == 200
    assert https(c, certs, "/v1/models", own=False)[0] == 403
    with pytest.raises((http.client.HTTPException, OSError)):
        plain = http.client.HTTPConnection("127.0.0.1", c.http_port, timeout=60)
        plain.request("GET", "/v1/models")
        plain.getresponse()
    # a worker with a certificate of somebody else is not let in
    stranger = make_certs(tmp_path / "stranger")
    name = c.start_worker(0, name="stranger", sets=(
        "--set", f"worker.tls.cert={stranger / 'client.crt'}",
        "--set", f"worker.tls.key={stranger / 'client.key'}"))
    log = c.folder / "stranger.log"
    c.wait(lambda: "coordinator" in log.read_text() and "warn" in log.read_text(),
           "the stranger's failure")
    assert name.poll() is None  # it keeps trying
    assert "rank 0" not in (c.folder / "coordinator.log").read_text().split("ready: ")[-1]


def test_clients_with_keys_instead(cluster, model, api, certs, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"user sha256:{hashlib.sha256(b'secret').hexdigest()}\n")
    keys.chmod(0o640)
    c = cluster(model("ckpt-fp16-tp1"), 1, ready=False, **settings(
        certs, coordinator__keys=keys, coordinator__worker_listen="127.0.0.1:0",
        coordinator__tls__clients="nothing"))
    ready(c)
    with secure(c.target, certs, own=False) as channel:
        assert attempt(api, channel) == grpc.StatusCode.UNAUTHENTICATED
        stub = api.InferenceStub(channel)
        ids = stub.Tokenize(api.TokenizeRequest(text="a"), timeout=20,
                            metadata=[("authorization", "Bearer secret")]).ids
        assert len(ids) > 0
    assert https(c, certs, "/health", own=False)[0] == 200
    assert https(c, certs, "/v1/models", own=False)[0] == 401
    assert https(c, certs, "/v1/models", own=False, key="secret")[0] == 200
    text = https(c, certs, "/metrics", own=False, key="secret")[1].decode()
    left = dict(re.findall(r'^glmd_tls_certificate_expiry_seconds\{listener="(\w+)"\} (\S+)$', text,
                           re.M))
    assert set(left) == {"grpc", "workers", "http"}, left
    end = ssl.cert_time_to_seconds(ssl._ssl._test_decode_cert(str(certs / "server.crt"))["notAfter"])
    assert all(abs(float(s) - (end - time.time())) < 5 for s in left.values()), (left, end)


def agreed(port, certs, version):
    """The version that both agree on when the client wants this one; None: they do not."""
    context = ssl.create_default_context(cafile=str(certs / "ca.crt"))
    context.check_hostname = False
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # else this side would refuse the old ones
    context.minimum_version = context.maximum_version = version
    context.load_cert_chain(certs / "client.crt", certs / "client.key")
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as plain:
            with context.wrap_socket(plain) as tls:
                return tls.version()
    except (ssl.SSLError, ConnectionError):
        return None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_versions_of_tls_are_refused(cluster, model, certs):
    c = cluster(model("ckpt-fp16-tp1"), 1, ready=False, **settings(certs))
    ready(c)
    ports = {"gRPC": int(c.target.rpartition(":")[2]), "HTTP": c.http_port}
    for name, port in ports.items():
        found = {v: agreed(port, certs, v) for v in (
            ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)}
        assert list(found.values()) == [None, None, "TLSv1.2", "TLSv1.3"], f"{name}: {found}"


def test_new_certificates_while_it_runs(cluster, model, api, certs, tmp_path):
    """Every file is replaced by one of a new authority; a rank that has to dial again uses them."""
    c = cluster(model("ckpt-fp16-tp1"), 1, workers="external", ready=False,
                expect={"worker0": -signal.SIGKILL}, **settings(certs))
    ready(c)
    old = make_certs(tmp_path / "old")
    for file in certs.iterdir():
        (old / file.name).write_bytes(file.read_bytes())
    new = make_certs(tmp_path / "new")
    for file in sorted(certs.iterdir()):
        fresh = file.with_suffix(".fresh")
        fresh.write_bytes((new / file.name).read_bytes())
        os.replace(fresh, file)
    with secure(c.target, new) as channel:
        c.wait(lambda: attempt(api, channel) != grpc.StatusCode.UNAVAILABLE, "new certificates")
    assert https(c, new, "/v1/models")[0] == 200
    with pytest.raises(ssl.SSLError):
        https(c, old, "/v1/models")
    assert https(c, new, "/v1/models", own=False)[0] == 403
    with secure(c.target, old) as channel:
        assert attempt(api, channel) == grpc.StatusCode.UNAVAILABLE
    (old / "ca.crt").write_bytes((new / "ca.crt").read_bytes())
    assert https(c, old, "/v1/models")[0] == 403, "a client of the old authority"
    c.processes["worker0"].kill()
    c.start_worker(0, name="worker0-again")
    c.wait(lambda: c.logs().count("ready: ") >= 2, "the group with its new rank", "coordinator")
    with secure(c.target, new) as channel:
        responses = api.InferenceStub(channel).Generate(
            api.GenerateRequest(text="a river", max_tokens=4), timeout=60)
        assert len(list(responses)) > 0
