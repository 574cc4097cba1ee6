"""proto/rpc against a stock gRPC client (grpcio): calls, limits, health, reflection, TLS, shutdown.

The server is tests/e2e/rpc_echo_server.c; it says on its standard output what it sees, so that both
ends of a call can be checked. A client that knows nothing but reflection makes a streaming call.
"""

import concurrent.futures
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from echo_server import BIN, DEADLINE_S, SOURCE, EchoServer

SERVER = BIN.parent / "tests" / "rpc_echo_server"
BIG = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Server(EchoServer):
    def __init__(self, address="127.0.0.1:0", *tls, **env):
        super().__init__(SERVER, address, *tls, **env)
        self.target = address if address.startswith("unix:") else f"127.0.0.1:{self.port}"

    def done(self, path):
        """The next finished call of this path: (status, messages received, messages sent)."""
        while True:
            line = self.line()
            assert line is not None, f"the server ended before {path} was done"
            parts = line.split()
            if parts[0] == path:
                return parts[1], int(parts[2]), int(parts[3])

    def channel(self, options=()):
        return grpc.insecure_channel(self.target, options=list(options))


@pytest.fixture
def server():
    s = Server()
    yield s
    s.stop()


def unary(channel, method):
    return channel.unary_unary(f"/test.Test/{method}")


def unary_stream(channel, method):
    return channel.unary_stream(f"/test.Test/{method}")


def code_of(call, *args, **kwargs):
    with pytest.raises(grpc.RpcError) as e:
        result = call(*args, **kwargs)
        list(result)
    return e.value.code(), e.value.details()


# ---- calls ----


def test_unary_and_sizes(server):
    with server.channel(BIG) as c:
        for size in (0, 1, 1000, 4 << 20):
            payload = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
            assert unary(c, "Echo")(payload, timeout=DEADLINE_S) == payload, size


def test_oversize(server):
    with server.channel(BIG) as c:
        code, details = code_of(unary(c, "Echo"), b"x" * ((4 << 20) + 1), timeout=DEADLINE_S)
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED, details
        assert "4194305 vs. 4194304" in details
        assert unary(c, "Echo")(b"still there") == b"still there"


def test_unix(tmp_path):
    s = Server(f"unix:{tmp_path}/socket")
    with s.channel() as c:
        assert unary(c, "Echo")(b"hello") == b"hello"
    s.stop()


def test_stream(server):
    with server.channel() as c:
        got = list(unary_stream(c, "Stream")(struct.pack("<QQ", 5000, 100), timeout=DEADLINE_S))
    assert [int.from_bytes(m[:8], "little") for m in got] == list(range(5000))
    assert server.done("/test.Test/Stream") == ("OK", 1, 5000)


def test_bidi(server):
    with server.channel() as c:
        call = c.stream_stream("/test.Test/Echo")
        got = list(call((b"%d" % i for i in range(500)), timeout=DEADLINE_S))
    assert got == [b"%d" % i for i in range(500)]
    assert server.done("/test.Test/Echo") == ("OK", 500, 500)


def test_many_at_once(server):
    with server.channel() as c, concurrent.futures.ThreadPoolExecutor(32) as pool:
        call = unary_stream(c, "Stream")
        request = struct.pack("<QQ", 50, 20)
        counts = pool.map(lambda _: len(list(call(request, timeout=DEADLINE_S))), range(200))
        assert list(counts) == [50] * 200


def test_unimplemented(server):
    with server.channel() as c:
        for path in ("/test.Test/Nothing", "/nothing.At/All", "/test.Test/Echo/"):
            code, details = code_of(c.unary_unary(path), b"")
            assert code == grpc.StatusCode.UNIMPLEMENTED, path
            assert path in details


def test_status_and_message(server):
    with server.channel() as c:
        for code in grpc.StatusCode:
            if code == grpc.StatusCode.OK:
                continue
            text = f"warum: 因为 {code.name} % \n"
            found = code_of(unary(c, "Fail"), bytes([code.value[0]]) + text.encode())
            assert found == (code, text)


def test_facts(server):
    with server.channel() as c:
        value, left_ms, peer, path = unary(c, "Facts")(
            b"", timeout=30, metadata=[("x-test", "value of 1"), ("x-other", "2")]
        ).decode().split("|")
        assert value == "value of 1"
        assert 0 < int(left_ms) <= 30500
        assert peer.startswith("ipv4:127.0.0.1:")
        assert path == "/test.Test/Facts"
        value, left_ms, _, _ = unary(c, "Facts")(b"").decode().split("|")
        assert (value, left_ms) == ("none", "-1")


def test_metadata_limit(server):
    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    with server.channel(own_connection) as c:
        code, _ = code_of(unary(c, "Facts"), b"", metadata=[("x-test", "m" * 9000)])
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    # gRPC 1.51 may give up that connection with the call; others are not concerned
    with server.channel(own_connection) as c:
        assert unary(c, "Echo")(b"x") == b"x"


def test_compressed_messages_are_refused(server):
    """gRPC would inflate them without a limit."""
    with server.channel() as c:
        for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            code, details = code_of(unary(c, "Echo"), b"\0" * 100000, compression=compression)
            assert code == grpc.StatusCode.UNIMPLEMENTED, details


# ---- ends of calls ----


def test_cancel(server):
    with server.channel() as c:
        call = unary_stream(c, "Stream")(struct.pack("<QQ", 10**9, 100))
        assert len(next(call)) == 100
        call.cancel()
        status, _, sent = server.done("/test.Test/Stream")
        assert status == "CANCELLED" and sent < 10**6


def test_deadline(server):
    with server.channel() as c:
        code, _ = code_of(unary(c, "Hold"), b"", timeout=0.3)
        assert code == grpc.StatusCode.DEADLINE_EXCEEDED
        assert server.done("/test.Test/Hold")[0] == "CANCELLED"


def test_a_call_without_a_message_ends():
    server, said = Server(RPC_FIRST_MS="200"), threading.Event()

    def nothing():
        said.wait(DEADLINE_S)
        yield b""

    with server.channel() as c:
        for path in ("/test.Test/Echo", "/grpc.health.v1.Health/Watch"):
            code, details = code_of(c.stream_stream(path), nothing(), timeout=DEADLINE_S)
            assert code == grpc.StatusCode.DEADLINE_EXCEEDED and "no message" in details, path
        call = unary_stream(c, "Stream")(struct.pack("<QQ", 10**9, 100))  # this one has
        start = time.monotonic()
        while time.monotonic() - start < 0.6:
            next(call)
        call.cancel()
    said.set()
    server.stop()


def test_client_killed(server):
    program = ("import grpc,os,sys;"
               "next(grpc.insecure_channel(sys.argv[1]).unary_stream('/test.Test/Stream')("
               "(10**9).to_bytes(8,'little')+(100).to_bytes(8,'little')));"
               "os.kill(os.getpid(),9)")
    ended = subprocess.run([sys.executable, "-c", program, server.target], timeout=DEADLINE_S)
    assert ended.returncode == -9
    assert server.done("/test.Test/Stream")[0] == "CANCELLED"


def test_reader_that_stalls(server):
    """What the server produces ahead of a client that does not read is bounded by the windows."""
    with server.channel() as c, server.channel([("grpc.use_local_subchannel_pool", 1)]) as other:
        call = unary_stream(c, "Stream")(struct.pack("<QQ", 10**7, 1000))
        for _ in range(10):
            next(call)
        for _ in range(300):  # time passes in round trips
            assert unary(other, "Echo")(b"x") == b"x"
        call.cancel()
        _, _, sent = server.done("/test.Test/Stream")
        assert sent < 20000, f"{sent} messages of 1 kB for a reader of 10"


def test_garbage_on_the_port(server):
    for noise in (b"", b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096),
                  b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64):
        with socket.create_connection(("127.0.0.1", server.port)) as s:
            s.sendall(noise)
            s.shutdown(socket.SHUT_WR)
    with server.channel() as c:
        assert unary(c, "Echo")(b"x") == b"x"


def test_port_in_use(server):
    second = subprocess.run([SERVER, server.target], capture_output=True, text=True,
                            timeout=DEADLINE_S)
    assert second.returncode == 1
    assert "another process listens on that port" in second.stderr


def test_shutdown(server):
    """Open calls may end within the grace; what is left is cancelled; new ones are refused."""
    with server.channel() as c:
        requests = queue.Queue()
        finishing = c.stream_stream("/test.Test/Echo")(iter(requests.get, None))
        requests.put(b"before")
        assert next(finishing) == b"before"
        held = unary(c, "Hold").future(b"")
        assert unary(c, "Echo")(b"x") == b"x"
        server.terminate()
        requests.put(b"after")
        assert next(finishing) == b"after"
        requests.put(None)
        assert list(finishing) == [] and finishing.code() == grpc.StatusCode.OK
        with pytest.raises(grpc.RpcError) as e:
            held.result(timeout=DEADLINE_S)
        assert e.value.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
        assert server.done("/test.Test/Hold")[0] == "CANCELLED"


# ---- standard services: modules made from our .proto files, under names that shadow nothing ----


@pytest.fixture(scope="module")
def standard(tmp_path_factory):
    """(health_pb2, {"v1": reflection_pb2, "v1alpha": reflection_pb2})"""
    flat, out = tmp_path_factory.mktemp("flat"), tmp_path_factory.mktemp("standard")
    files = {"glmd_health": "health/v1/health", "glmd_reflection_v1": "reflection/v1/reflection",
             "glmd_reflection_v1alpha": "reflection/v1alpha/reflection"}
    for name, path in files.items():
        (flat / f"{name}.proto").write_text((SOURCE / f"proto/grpc/{path}.proto").read_text())
    subprocess.run(["protoc", f"-I{flat}", f"--python_out={out}",
                    *[f"{name}.proto" for name in files]], check=True)
    sys.path.insert(0, str(out))
    import glmd_health_pb2
    import glmd_reflection_v1_pb2
    import glmd_reflection_v1alpha_pb2

    return glmd_health_pb2, {"v1": glmd_reflection_v1_pb2, "v1alpha": glmd_reflection_v1alpha_pb2}


def test_health(server, standard):
    health, _ = standard
    request, response = health.HealthCheckRequest, health.HealthCheckResponse
    with server.channel() as c:
        check = c.unary_unary("/grpc.health.v1.Health/Check", request.SerializeToString,
                              response.FromString)
        watch = c.unary_stream("/grpc.health.v1.Health/Watch", request.SerializeToString,
                               response.FromString)
        assert check(request()).status == response.SERVING
        assert code_of(check, request(service="x"))[0] == grpc.StatusCode.NOT_FOUND
        unknown = watch(request(service="x"))
        assert next(unknown).status == response.SERVICE_UNKNOWN
        watching = watch(request())
        assert next(watching).status == response.SERVING
        server.process.send_signal(signal.SIGUSR1)
        assert next(watching).status == response.NOT_SERVING
        server.process.send_signal(signal.SIGUSR1)
        assert next(watching).status == response.SERVING
        server.terminate()
        assert next(watching).status == response.NOT_SERVING
        with pytest.raises(grpc.RpcError) as e:
            next(watching)
        assert e.value.code() == grpc.StatusCode.UNAVAILABLE


class ReflectionClient:
    """Knows the reflection protocol and nothing else."""

    def __init__(self, channel, module, version):
        self.request = module.ServerReflectionRequest
        self.call = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            self.request.SerializeToString, module.ServerReflectionResponse.FromString)
        self.channel = channel

    def ask(self, *questions):
        requests = [self.request(**q) for q in questions]
        answers = list(self.call(iter(requests), timeout=DEADLINE_S))
        assert [a.original_request for a in answers] == requests
        return answers

    def services(self):
        [answer] = self.ask({"list_services": "*"})
        return [s.name for s in answer.list_services_response.service]

    def find_method(self, service, method):
        """(path, request class, response class, streams) from descriptors alone."""
        [answer] = self.ask({"file_containing_symbol": service})
        pool = descriptor_pool.DescriptorPool()
        files = [descriptor_pb2.FileDescriptorProto.FromString(b)
                 for b in answer.file_descriptor_response.file_descriptor_proto]
        for f in reversed(files):
            pool.Add(f)
        found = pool.FindServiceByName(service).methods_by_name[method]
        streams = {m.name: m.server_streaming for f in files for s in f.service for m in s.method}
        factory = message_factory.MessageFactory(pool)
        return (f"/{service}/{method}", factory.GetPrototype(found.input_type),
                factory.GetPrototype(found.output_type), streams[method])


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection(server, standard, version):
    with server.channel() as c:
        client = ReflectionClient(c, standard[1][version], version)
        assert sorted(client.services()) == [
            "glmd.v1.Inference", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection"]
        found = client.ask(
            {"file_containing_symbol": "glmd.v1.Cluster.Status"},
            {"file_by_filename": "glmd/v1/inference.proto"},
            {"file_containing_symbol": "glmd.v1.FinishReason"},
            {"file_containing_symbol": "glmd.v1.Nothing"},
            {"file_by_filename": "nothing.proto"},
            {"all_extension_numbers_of_type": "glmd.v1.Usage"},
            {"file_containing_extension": {"containing_type": "glmd.v1.Usage",
                                           "extension_number": 1}},
        )
        names = [[descriptor_pb2.FileDescriptorProto.FromString(b).name
                  for b in a.file_descriptor_response.file_descriptor_proto] for a in found[:3]]
        assert names == [["glmd/v1/cluster.proto", "glmd/v1/inference.proto"],
                         ["glmd/v1/inference.proto"], ["glmd/v1/inference.proto"]]
        assert [a.error_response.error_code for a in found[3:]] == [5] * 4  # NOT_FOUND


def test_streaming_call_from_reflection_alone(server, standard):
    with server.channel() as c:
        client = ReflectionClient(c, standard[1]["v1"], "v1")
        service = next(s for s in client.services() if s.endswith("Inference"))
        path, request, response, streams = client.find_method(service, "Generate")
        assert streams
        call = c.unary_stream(path, request.SerializeToString, response.FromString)
        got = list(call(request(text="hello", max_tokens=3), timeout=DEADLINE_S))
        assert [(m.choices[0].index, m.choices[0].text) for m in got] == [
            (1, "one"), (2, "two"), (3, "three")]


# ---- TLS ----


def test_mutual_tls(tmp_path):
    subprocess.run([SERVER, "--make-certs", tmp_path], check=True)
    read = lambda name: (tmp_path / name).read_bytes()  # noqa: E731
    s = Server("127.0.0.1:0", *(tmp_path / n for n in ("ca.crt", "server.crt", "server.key")))
    name = [("grpc.ssl_target_name_override", "glmd.test")]

    def attempt(credentials):
        with grpc.secure_channel(s.target, credentials, options=name) as c:
            return unary(c, "Echo")(b"hello")

    mutual = grpc.ssl_channel_credentials(read("ca.crt"), read("client.key"), read("client.crt"))
    assert attempt(mutual) == b"hello"
    with pytest.raises(grpc.RpcError) as e:  # without a certificate of its own
        attempt(grpc.ssl_channel_credentials(read("ca.crt")))
    assert e.value.code() == grpc.StatusCode.UNAVAILABLE
    with s.channel() as c:  # plaintext
        assert code_of(unary(c, "Echo"), b"x")[0] == grpc.StatusCode.UNAVAILABLE
    s.stop()


def test_a_new_certificate_needs_no_restart(tmp_path):
    """Handshakes use what the files hold now; a pair that does not fit leaves the old one in use."""
    cas = {}
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        subprocess.run([SERVER, "--make-certs", tmp_path / name], check=True)
        cas[name] = (tmp_path / name / "ca.crt").read_bytes()
    cert, key = tmp_path / "cert", tmp_path / "key"

    def install(name, *files):
        for target in files:
            new = target.with_suffix(".new")
            new.write_bytes((tmp_path / name / {cert: "server.crt", key: "server.key"}[target])
                            .read_bytes())
            os.replace(new, target)

    install("first", cert, key)
    s = Server("127.0.0.1:0", "-", cert, key)

    def works(name):
        options = [("grpc.ssl_target_name_override", "glmd.test"), ("grpc.enable_retries", 0)]
        with grpc.secure_channel(s.target, grpc.ssl_channel_credentials(cas[name]),
                                 options=options) as c:
            try:
                return unary(c, "Echo")(b"x", timeout=DEADLINE_S) == b"x"
            except grpc.RpcError as e:
                assert e.code() == grpc.StatusCode.UNAVAILABLE
                return False

    assert works("first") and not works("second")
    install("second", cert)  # half of a pair
    assert works("first") and not works("second")
    install("second", key)
    assert works("second") and not works("first")
    cert.unlink()
    assert works("second")
    install("first", cert, key)
    assert works("first") and not works("second")
    s.stop()


def test_bad_certificates_are_said_at_start(tmp_path):
    subprocess.run([SERVER, "--make-certs", tmp_path], check=True)
    ended = subprocess.run(
        [SERVER, "127.0.0.1:0", "-", tmp_path / "server.crt", tmp_path / "client.key"],
        capture_output=True, text=True, timeout=DEADLINE_S)
    assert ended.returncode == 1
    assert "does not belong to the first certificate" in ended.stderr
