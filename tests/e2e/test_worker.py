"""glmd-worker alone, against a coordinator made of Python: the stream as worker.proto describes it,
read and written by another implementation of protobuf and gRPC."""

import os
import queue
import re
import signal
import socket
import subprocess
import threading
from concurrent import futures

import grpc
import pytest

from conftest import BIN, DEADLINE_S

PROMPT = [5, 6, 7, 8, 9]


class Stream:
    """One Session, seen from the coordinator."""

    def __init__(self):
        self.to_worker, self.bodies, self.beats = queue.Queue(), queue.Queue(), queue.Queue()
        self.hello = None

    def get(self, kind, epoch=0):
        """The next body, which must be of this kind. Failures of older epochs may come late."""
        while True:
            found, body = self.bodies.get(timeout=DEADLINE_S)
            if found == "failed" and body.epoch < epoch:
                continue
            assert found == kind, f"expected {kind}, found {found}: {body}"
            return body


class FakeCoordinator:
    def __init__(self, api, port=0):
        self.api = api
        self.streams = queue.Queue()
        self.server = grpc.server(futures.ThreadPoolExecutor(16))
        api.add_WorkerServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        self.server.start()

    def Session(self, messages, context):
        s = Stream()

        def read():
            try:
                for m in messages:
                    kind = m.WhichOneof("body")
                    if kind == "hello":
                        s.hello = m.hello
                        self.streams.put(s)
                    elif kind == "heartbeat":
                        s.beats.put(m.heartbeat)
                    else:
                        s.bodies.put((kind, getattr(m, kind)))
            except grpc.RpcError:
                pass
            s.bodies.put(("end", None))
            s.to_worker.put(None)

        threading.Thread(target=read, daemon=True).start()
        yield from iter(s.to_worker.get, None)

    def stream(self):
        return self.streams.get(timeout=DEADLINE_S)

    def ranks(self, n):
        """The streams of n ranks that have loaded, by rank."""
        streams = sorted((self.stream() for _ in range(n)), key=lambda s: s.hello.rank)
        for s in streams:
            s.get("loaded")
        return streams

    def send(self, stream, **body):
        stream.to_worker.put(self.api.CoordinatorMessage(**body))

    def grant(self, streams, epoch, comm, lease_ms=60000, pp=1, link_comm=0):
        for rank, s in enumerate(streams):
            self.send(s, grant=self.api.Grant(
                group="0", epoch=epoch, protocol=3, rank=rank, comm=comm,
                tp_size=len(streams) // pp, pp_size=pp, link_comm=link_comm,
                comm_name=f"glmd-test-{self.port}-{epoch}", token=bytes([epoch]) * 16,
                comm_timeout_ms=20000, lease_ms=lease_ms, heartbeat_ms=50,
                peers=[p.hello.listen_addresses[0] for p in streams]))
        return {s.get("ready", epoch).known_answer for s in streams}

    def step(self, stream, epoch, number, start, tokens):
        end = start + len(tokens)
        item = self.api.StepItem(
            slot_gen=epoch, start=start, prefix_len=len(PROMPT), tokens=tokens,
            positions=range(start, end), blocks=range((end + 15) // 16),
            output=self.api.STEP_OUTPUT_SAMPLE,
            sampling=self.api.StepSampling(temperature=1, top_k=1))
        self.send(stream, step=self.api.Step(epoch=epoch, step=number, items=[item]))

    def generate_staged(self, streams, epoch, tp, n=12):
        """n greedy tokens of a pipeline: only the last stage knows them, and one rank tells."""
        tokens, feed, start = [], PROMPT, 0
        for number in range(1, n + 1):
            for s in streams:
                self.step(s, epoch, number, start, feed)
            start += len(feed)
            done = [s.get("step_done") for s in streams]
            assert {d.step for d in done} == {number}
            stages = [done[i:i + tp] for i in range(0, len(done), tp)]
            assert all(len({d.state_hash for d in stage}) == 1 for stage in stages)
            told = stages[-1][0]
            assert not any(d.items for d in done if d is not told)  # the hash says it
            tokens.append(told.items[0].token)
            feed = tokens[-1:]
        return tokens

    def generate(self, streams, epoch, n=12):
        """n greedy tokens, the next step always queued before the last one is back."""
        tokens = []
        for number in range(1, n + 2):
            if number <= n:
                start = 0 if number == 1 else len(PROMPT) + number - 2
                for s in streams:
                    self.step(s, epoch, number, start, PROMPT if number == 1 else [-1])
            if number > 1:
                done = [s.get("step_done") for s in streams]
                assert {d.step for d in done} == {number - 1}
                assert len({d.state_hash for d in done}) == 1
                assert not any(d.items for d in done[1:])  # the hash says it
                tokens.append(done[0].items[0].token)
        return tokens


@pytest.fixture
def weights(model):
    return model("ckpt-fp16-tp1", "--weights", "int4")


@pytest.fixture
def coordinator(api):
    c = FakeCoordinator(api)
    yield c
    c.server.stop(None)


@pytest.fixture
def worker(weights, coordinator, tmp_path):
    """worker(rank, tp, flags...) -> process; its log is process.log."""
    started = []

    def start(rank, tp, *flags, env=None):
        log = tmp_path / f"worker{len(started)}.log"
        with open(log, "wb") as out:
            p = subprocess.Popen(
                [BIN / "glmd-worker", "--model", weights, "--rank", str(rank), "--tp", str(tp),
                 "--threads", "1", "--coordinator", f"127.0.0.1:{coordinator.port}", *flags],
                stderr=out, env=env)
        p.log = log
        started.append(p)
        return p

    yield start
    for p in started:
        if p.poll() is None:
            p.kill()
            p.wait()


def ends_with(process, code):
    assert process.wait(timeout=DEADLINE_S) == code, process.log.read_text()


def test_ranks_agree_over_every_comm_and_for_every_degree(coordinator, worker, api):
    one = worker(0, 1)
    streams = coordinator.ranks(1)
    answer = coordinator.grant(streams, 3, api.COMM_KIND_SELF)
    expected = coordinator.generate(streams, 3)
    one.terminate()
    ends_with(one, 0)

    two = [worker(rank, 2) for rank in range(2)]
    streams = coordinator.ranks(2)
    assert streams[0].hello.shm_domain == streams[1].hello.shm_domain != ""
    assert streams[0].hello.instance_id != streams[1].hello.instance_id
    for epoch, comm in ((4, api.COMM_KIND_SHM), (5, api.COMM_KIND_TCP)):
        assert coordinator.grant(streams, epoch, comm) == answer
        assert coordinator.generate(streams, epoch) == expected
    for p in two:
        p.terminate()
    for p in two:
        ends_with(p, 0)


def test_stages_agree_over_every_link(coordinator, worker, api):
    one = worker(0, 1)
    streams = coordinator.ranks(1)
    answer = coordinator.grant(streams, 1, api.COMM_KIND_SELF)
    expected = coordinator.generate(streams, 1)
    one.terminate()
    ends_with(one, 0)

    four = [worker(rank, 2, "--pp", "2") for rank in range(4)]
    streams = coordinator.ranks(4)
    assert [(s.hello.pp_size, s.hello.layer_begin, s.hello.layer_end) for s in streams] == [
        (2, 0, 2), (2, 0, 2), (2, 2, 3), (2, 2, 3)]
    shm, tcp = api.COMM_KIND_SHM, api.COMM_KIND_TCP
    for epoch, (comm, link) in enumerate([(shm, shm), (shm, tcp), (tcp, shm), (tcp, tcp)], 2):
        assert coordinator.grant(streams, epoch, comm, pp=2, link_comm=link) == answer
        assert coordinator.generate_staged(streams, epoch, tp=2) == expected
    for p in four:
        p.terminate()
    for p in four:
        ends_with(p, 0)


def test_a_rank_survives_the_death_of_its_peer(coordinator, worker, api):
    worker(0, 2)
    peer = worker(1, 2)
    streams = coordinator.ranks(2)
    coordinator.grant(streams, 1, api.COMM_KIND_TCP)
    expected = coordinator.generate(streams, 1)
    peer.kill()
    streams[1].get("end")
    coordinator.step(streams[0], 1, 13, len(PROMPT) + 11, [-1])
    assert streams[0].get("failed").code == api.FAILURE_CODE_PEER
    worker(1, 2)
    streams[1:] = coordinator.ranks(1)
    coordinator.grant(streams, 2, api.COMM_KIND_SHM)
    assert coordinator.generate(streams, 2) == expected


def test_an_abort_ends_a_step_that_waits_for_its_peer(coordinator, worker, api):
    worker(0, 2)
    peer = worker(1, 2)
    streams = coordinator.ranks(2)
    coordinator.grant(streams, 1, api.COMM_KIND_SHM)
    expected = coordinator.generate(streams, 1)
    peer.send_signal(signal.SIGSTOP)
    coordinator.step(streams[0], 1, 13, len(PROMPT) + 11, [-1])
    while not streams[0].beats.get(timeout=DEADLINE_S).busy_ns:
        pass  # it is in the step, and waits
    coordinator.send(streams[0], abort=api.Abort(epoch=1, reason="the peer hangs"))
    peer.send_signal(signal.SIGCONT)
    coordinator.grant(streams, 2, api.COMM_KIND_SHM)  # comes back at once, not after 20 s
    assert coordinator.generate(streams, 2) == expected


def test_fencing(coordinator, worker, api):
    worker(0, 1)
    (s,) = coordinator.ranks(1)
    coordinator.grant([s], 5, api.COMM_KIND_SELF)
    coordinator.step(s, 4, 1, 0, PROMPT)  # older: dropped and counted
    coordinator.generate([s], 5)
    while not (beat := s.beats.get(timeout=DEADLINE_S)).fenced_messages:
        pass
    assert beat.fenced_messages == 1
    coordinator.step(s, 6, 1, 0, PROMPT)  # newer, without a grant
    assert s.get("failed").code == api.FAILURE_CODE_PROTOCOL
    coordinator.grant([s], 7, api.COMM_KIND_SELF)
    coordinator.step(s, 7, 1, 300, PROMPT)  # beyond the context length
    failed = s.get("failed")
    assert failed.code == api.FAILURE_CODE_BAD_PLAN and "start + tokens" in failed.message
    coordinator.grant([s], 8, api.COMM_KIND_SELF)
    coordinator.generate([s], 8)


def test_the_weights_stay_when_the_coordinator_goes(coordinator, worker, api):
    p = worker(0, 1)
    (s,) = coordinator.ranks(1)
    coordinator.grant([s], 3, api.COMM_KIND_SELF)
    coordinator.server.stop(None).wait()
    coordinator.__init__(api, coordinator.port)
    (again,) = coordinator.ranks(1)
    assert again.hello.instance_id == s.hello.instance_id
    assert again.hello.last_epoch == 3
    coordinator.grant([again], 4, api.COMM_KIND_SELF, lease_ms=200)
    again.get("end")  # nobody renews the lease
    (third,) = coordinator.ranks(1)
    refuse = api.Refuse(code=api.REFUSE_CODE_FENCED, reason="another process has this rank")
    coordinator.send(third, refuse=refuse)
    ends_with(p, 77)
    assert "another process has this rank" in p.log.read_text()


def test_health_and_service_manager_see_progress_not_life(coordinator, worker, api, tmp_path):
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    path = str(tmp_path / "notify")
    manager.bind(path)
    manager.settimeout(DEADLINE_S)

    def wait_for(line):
        while line not in manager.recv(4096).decode().split("\n"):
            pass

    p = worker(0, 1, env={**os.environ, "NOTIFY_SOCKET": path, "WATCHDOG_USEC": "200000"})
    (s,) = coordinator.ranks(1)
    address = re.search(r"health service on (\S+)", p.log.read_text()).group(1)
    with grpc.insecure_channel(address) as channel:
        # grpc.health.v1: an empty request; the answer's field 1 is the status
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
        serving, not_serving = b"\x08\x01", b"\x08\x02"
        assert check(b"", timeout=DEADLINE_S) == not_serving == next(watch)
        coordinator.send(s, lease=api.Lease())
        wait_for("READY=1")
        wait_for("WATCHDOG=1")
        coordinator.grant([s], 1, api.COMM_KIND_SELF)
        assert next(watch) == serving
        coordinator.send(s, abort=api.Abort(epoch=1, reason="test"))
        assert next(watch) == not_serving
        p.terminate()
        wait_for("STOPPING=1")
        with pytest.raises(grpc.RpcError):
            next(watch)
    ends_with(p, 0)


def test_sigterm_finishes_what_runs_and_a_second_one_does_not_wait(coordinator, worker, api):
    first = worker(0, 2)
    peer = worker(1, 2)
    streams = coordinator.ranks(2)
    coordinator.grant(streams, 1, api.COMM_KIND_SHM)
    peer.send_signal(signal.SIGSTOP)
    coordinator.step(streams[0], 1, 1, 0, PROMPT)
    while True:  # joining keeps a rank busy as well: only a busy READY is the step
        beat = streams[0].beats.get(timeout=DEADLINE_S)
        if beat.state == api.WORKER_STATE_READY and beat.busy_ns:
            break
    first.terminate()
    while streams[0].beats.get(timeout=DEADLINE_S).state != api.WORKER_STATE_DRAINING:
        pass
    assert first.poll() is None  # its step still waits for the peer
    first.terminate()
    ends_with(first, 143)


@pytest.mark.parametrize(
    "flags, code, message",
    [
        (["--rank", "2"], 64, "expected below"),
        (["--tp", "3"], 64, "3"),
        (["--model", "/nowhere"], 65, "/nowhere"),
        (["--device", "tpu"], 71, "tpu"),
        (["--kv-bytes", "1"], 64, "KV cache"),
        (["--listen", "192.0.2.1:0"], 69, "192.0.2.1"),
        (["--listen", "nonsense"], 64, "HOST:PORT"),
        (["--health-listen", "192.0.2.1:0"], 69, "192.0.2.1"),
        (["--set", "worker.cpus=1-"], 64, "worker.cpus"),
        (["--set", "worker.cpus=4095"], 64, "CPUs 4095: expected some that this process may use"),
    ],
)
def test_exit_codes(worker, flags, code, message):
    p = worker(0, 1, *flags)
    ends_with(p, code)
    assert message in p.log.read_text()


def test_a_rank_computes_where_it_was_told_to(coordinator, worker, api):
    last = max(os.sched_getaffinity(0))
    p = worker(0, 1, "--set", f"worker.cpus={last}", "--threads", "4")
    streams = coordinator.ranks(1)
    coordinator.grant(streams, 1, api.COMM_KIND_SELF)
    coordinator.generate(streams, 1)
    where = {}
    for task in os.scandir(f"/proc/{p.pid}/task"):
        with open(f"{task.path}/comm", encoding="utf-8") as name:
            where.setdefault(name.read().strip(), set()).update(os.sched_getaffinity(int(task.name)))
    assert where["engine"] == {last}
    assert where.get("kernels", {last}) == {last}
    assert where["glmd-worker"] == os.sched_getaffinity(0)  # its loop goes where there is room
