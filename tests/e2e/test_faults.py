"""What must not go unnoticed: killed and hung ranks, mixed and corrupt weights, a lost coordinator."""

import os
import shutil
import signal
import threading

import grpc
import pytest

from conftest import DEADLINE_S


def endless(api, **sampling):
    return api.GenerateRequest(text="The river", max_tokens=230,
                               sampling=api.SamplingParameters(ignore_end=True, seed=1, **sampling))


GREEDY = {"top_k": 1}
SEEDED = {"temperature": 0.9, "top_p": 0.8, "frequency_penalty": 0.3}


@pytest.fixture
def weights(model):
    return model("ckpt-fp16-tp1", "--weights", "int4")


def wait_seen(c, api, rank):
    """A process can be asked to end politely once it runs its own code: here, once it said hello."""
    c.wait(lambda: (s := c.status()) and s.groups and s.groups[0].ranks[rank].state
           not in (api.RANK_STATE_UNSPECIFIED, api.RANK_STATE_ABSENT), f"rank {rank} to connect")


def text_of(messages):
    return "".join(choice.text for m in messages for choice in m.choices)


def run_through(c, request, fault):
    """The same generation without and with a fault in its middle: the stream stops, and goes on with
    the same text. Tries again when it was over before the fault had hit it."""
    expected = list(c.inference.Generate(request, timeout=DEADLINE_S))
    before = c.status().requests.resumed
    while True:
        messages = []
        for message in c.inference.Generate(request, timeout=DEADLINE_S):
            messages.append(message)
            if len(messages) == 3 and fault:
                fault()
                fault = None
        assert text_of(messages) == text_of(expected)
        assert messages[-1].usage.completion_tokens == expected[-1].usage.completion_tokens
        if c.status().requests.resumed > before:
            return
        if fault is None:  # it hit, but the stream was over on our side already
            c.wait_ready()


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_a_stream_outlives_a_killed_worker(weights, cluster, api, sampling):
    c = cluster(weights, 2, workers="external", expect={"worker1": -signal.SIGKILL},
                deadlines__step="2s")
    epoch = c.status().groups[0].epoch

    def kill():
        c.processes["worker1"].kill()
        c.processes["worker1"].wait()
        c.start_worker(1, name="worker1b")

    run_through(c, endless(api, **sampling), kill)
    status = c.group_ready()
    assert status.groups[0].epoch > epoch
    assert status.groups[0].running == 0
    assert status.groups[0].kv_blocks_free == status.groups[0].kv_blocks_total
    assert status.requests.failed == 0


def test_a_spawned_worker_is_started_again(weights, cluster, api):
    c = cluster(weights, 2, deadlines__step="2s")
    before = c.status().groups[0]
    pid = before.ranks[1].pid
    run_through(c, endless(api, **SEEDED), lambda: os.kill(pid, signal.SIGKILL))
    after = c.group_ready().groups[0]
    assert after.epoch > before.epoch
    assert after.ranks[1].pid != pid


def test_a_hung_worker_misses_the_step_deadline(weights, cluster, api):
    c = cluster(weights, 2, workers="external", deadlines__step="1s", deadlines__heartbeat="200ms")
    worker = c.processes["worker1"]
    epoch = c.status().groups[0].epoch

    def hang():
        worker.send_signal(signal.SIGSTOP)
        c.wait(lambda: (s := c.status()) and s.groups[0].state != api.GROUP_STATE_READY,
               "the group to go down")
        worker.send_signal(signal.SIGCONT)  # is fenced, and joins the new epoch

    run_through(c, endless(api, **GREEDY), hang)
    assert c.group_ready().groups[0].epoch > epoch


def test_a_process_that_its_standby_has_replaced_is_fenced(weights, cluster, api):
    """It was stopped for longer than its lease: whatever it wakes up with is of the past."""
    c = cluster(weights, 2, workers="external", expect={"worker1": 77}, deadlines__step="1s",
                deadlines__heartbeat="200ms", deadlines__lease="2s")
    stale, epoch = c.processes["worker1"], c.status().groups[0].epoch
    standby = c.start_worker(1, name="standby")

    def hang():
        stale.send_signal(signal.SIGSTOP)
        c.wait(lambda: (s := c.status()) and s.groups[0].state == api.GROUP_STATE_READY
               and s.groups[0].ranks[1].pid == standby.pid, "the standby to serve")
        stale.send_signal(signal.SIGCONT)
        assert stale.wait(timeout=DEADLINE_S) == 77, c.logs()

    run_through(c, endless(api, **GREEDY), hang)
    group = c.status().groups[0]
    assert group.epoch > epoch and group.ranks[1].pid == standby.pid
    assert "fenced: pid" in c.logs()


def test_a_stream_waits_for_a_group_no_longer_than_its_deadline(weights, cluster, api):
    c = cluster(weights, 2, workers="external", expect={"worker1": -signal.SIGKILL},
                deadlines__step="2s")
    with pytest.raises(grpc.RpcError) as e:
        for i, _ in enumerate(c.inference.Generate(endless(api), timeout=4)):
            if i == 2:
                c.processes["worker1"].kill()
                c.processes["worker1"].wait()
    assert e.value.code() in (grpc.StatusCode.ABORTED, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert c.wait(lambda: (s := c.status()) and s.requests.failed == 1, "the request to end")


def test_a_query_of_death_ends(weights, cluster, api):
    """Who was in the last step of two groups that were lost is not tried a third time."""
    c = cluster(weights, 2, workers="external",
                expect={"worker1": -signal.SIGKILL, "worker1b": -signal.SIGKILL})
    names = ["worker1", "worker1b", "worker1c"]

    def kill(k):
        c.processes[names[k]].kill()
        c.processes[names[k]].wait()
        c.start_worker(1, name=names[k + 1])

    def run():
        for i, _ in enumerate(c.inference.Generate(endless(api), timeout=DEADLINE_S)):
            if i == 2:
                kill(0)
            if i == 40:
                kill(1)

    with pytest.raises(grpc.RpcError) as e:
        run()
    assert e.value.code() == grpc.StatusCode.INTERNAL, e.value
    assert "lost 2 times" in e.value.details(), e.value.details()
    trailers = {m.key: m.value for m in e.value.trailing_metadata()}
    assert b"POISON" in trailers["grpc-status-details-bin"], "its ErrorInfo"
    c.wait_ready()


def test_no_workers_is_unavailable_not_a_hang(weights, cluster, api):
    c = cluster(weights, 2, ready=False, workers="external")
    for rank in range(2):
        wait_seen(c, api, rank)
        c.processes[f"worker{rank}"].terminate()
        c.processes[f"worker{rank}"].wait()
    with pytest.raises(grpc.RpcError) as e:
        list(c.inference.Generate(endless(api), timeout=2))
    assert e.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def test_mixed_models_are_refused_with_the_reason(weights, model, cluster, api):
    other = model("ckpt-int4-tp2")
    c = cluster(weights, 2, ready=False, workers="external", expect={"odd": 65, "worker1": 0})
    wait_seen(c, api, 1)
    c.processes["worker1"].terminate()
    assert c.processes["worker1"].wait(timeout=DEADLINE_S) == 0
    odd = c.start_worker(1, sets=("--set", f"model.dir={other}"), name="odd")
    assert odd.wait(timeout=DEADLINE_S) == 65
    log = (c.folder / "odd.log").read_text()
    assert "digest" in log, log
    c.start_worker(1, name="worker1b")
    c.wait_ready()


def test_a_kv_cache_of_another_type_is_refused_and_int8_holds_more(weights, cluster, api):
    """All ranks in INT8 serve, with more blocks in the same bytes; one in FP16 among them may not."""
    blocks = {}
    for kind in ("auto", "int8"):
        c = cluster(weights, 2, ready=kind == "auto", workers="external", worker__kv_cache=kind,
                    worker__activations="fp16", worker__kv_bytes="1MiB",
                    expect={"odd": 65, "worker1": 0} if kind == "int8" else {})
        if kind == "int8":
            wait_seen(c, api, 1)
            c.processes["worker1"].terminate()
            assert c.processes["worker1"].wait(timeout=DEADLINE_S) == 0
            odd = c.start_worker(1, sets=("--set", "worker.kv_cache=fp16"), name="odd")
            assert odd.wait(timeout=DEADLINE_S) == 65
            log = (c.folder / "odd.log").read_text()
            assert "expected fp16+kv8" in log and "found fp16" in log, log
            c.start_worker(1, name="worker1b")
            c.wait_ready()
        group = c.status().groups[0]
        blocks[kind] = group.kv_blocks_total
        cache = "fp16" if kind == "auto" else "int8"
        assert all(f"KV cache in {cache}" in r.description for r in group.ranks), group
        assert list(c.inference.Generate(endless(api), timeout=DEADLINE_S))
    # 16 tokens, 3 layers, 2 heads of 16, key and value: 16 values and, in INT8, an FP16 scale
    tokens = 16 * 3 * 2 * 2
    assert blocks == {"auto": 2**20 // (tokens * 32), "int8": 2**20 // (tokens * 18)}


def test_corrupt_weights_are_refused(weights, cluster, api, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(weights, broken)
    file = sorted(broken.glob("*.safetensors"))[0]
    data = bytearray(file.read_bytes())
    data[-1000] ^= 4
    file.write_bytes(data)
    c = cluster(weights, 1, ready=False, workers="external", expect={"odd": 65})
    c.wait_ready()
    odd = c.start_worker(0, sets=("--set", f"model.dir={broken}"), name="odd")
    assert odd.wait(timeout=DEADLINE_S) == 65
    log = (c.folder / "odd.log").read_text()
    assert "checksum" in log and file.name in log, log


def test_workers_outlive_the_coordinator_and_keep_their_weights(weights, cluster, api):
    c = cluster(weights, 2, workers="external", expect={"first": -signal.SIGKILL})
    epoch = c.status().groups[0].epoch
    port = c.target.rsplit(":", 1)[1]
    pids = [r.pid for r in c.status().groups[0].ranks]
    c.processes["first"] = c.processes.pop("coordinator")
    c.processes["first"].kill()
    c.processes["first"].wait()
    c.channel.close()
    c.sets += ["--set", f"coordinator.listen=127.0.0.1:{port}"]
    c.start_coordinator()
    status = c.wait_ready()
    assert status.groups[0].epoch > epoch, "an epoch is never used twice"
    assert [r.pid for r in status.groups[0].ranks] == pids


def test_drain_finishes_what_runs(weights, cluster, api):
    c = cluster(weights, 2)
    tokens = []

    def run():
        for r in c.inference.Generate(endless(api), timeout=DEADLINE_S):
            tokens.append(r)

    thread = threading.Thread(target=run)
    thread.start()
    c.wait(lambda: tokens, "the first token")
    c.processes["coordinator"].send_signal(signal.SIGTERM)
    thread.join()
    assert tokens[-1].usage.completion_tokens == 230
    assert c.processes["coordinator"].wait(timeout=DEADLINE_S) == 0
