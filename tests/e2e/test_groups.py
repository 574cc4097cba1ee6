"""Several groups of several shapes under one coordinator: they join and leave while it serves, are
drained, lost and found again, and no stream notices."""

import json
import os
import signal
import subprocess
import threading

import grpc
import pytest

from conftest import DEADLINE_S, glmd
from test_golden import sampling, strip_end

FAKE = "fake:step_us=4000"


@pytest.fixture
def weights(model):
    return model("ckpt-fp16-tp1", "--weights", "int4")


def start_group(c, name, tp=1, pp=1, sets=(), ranks=None, life=""):
    """Ranks of a group, as if on another host: its own shape and name, the rest as configured."""
    shape = {"group.name": name, "group.tensor_parallel": tp, "group.pipeline_parallel": pp}
    flags = [part for k, v in shape.items() for part in ("--set", f"{k}={v}")]
    return [c.start_worker(rank, sets=(*flags, *sets), name=f"{name}.{rank}{life}")
            for rank in (range(tp * pp) if ranks is None else ranks)]


def groups(c):
    status = c.status()
    return {g.id: g for g in status.groups} if status else {}


def wait_state(c, name, state):
    return c.wait(lambda: (g := groups(c).get(name)) and g.state == state and g,
                  f"group {name} in state {state}")


def health(c, service):
    check = c.channel.unary_unary("/grpc.health.v1.Health/Check")
    try:
        return {b"\x08\x01": "SERVING", b"\x08\x02": "NOT_SERVING"}[
            check(b"\x0a" + bytes([len(service)]) + service.encode(), timeout=DEADLINE_S)]
    except grpc.RpcError as e:
        return e.code().name


class Stream(threading.Thread):
    """One generation, on a thread."""

    def __init__(self, c, api, text, max_tokens=200, request_id="", **sampling):
        super().__init__(daemon=True)
        self.c, self.error, self.tokens, self.id = c, None, [], None
        self.request = api.GenerateRequest(
            text=text, max_tokens=max_tokens, return_token_ids=True, request_id=request_id,
            sampling=api.SamplingParameters(ignore_end=True, **{"top_k": 1, **sampling}))
        self.began = threading.Event()
        self.start()

    def run(self):
        try:
            for response in self.c.inference.Generate(self.request, timeout=DEADLINE_S):
                self.id = self.id or response.request_id
                self.tokens += [t for d in response.choices for t in d.tokens]
                if self.tokens:
                    self.began.set()
        except grpc.RpcError as e:
            self.error = e
        self.began.set()

    def result(self):
        self.join()
        assert self.error is None, self.error
        return self.tokens


def test_two_groups_share_the_work_and_one_is_lost(weights, cluster, api):
    expect = {"b.1": -signal.SIGKILL}
    c = cluster(weights, 0, ready=False, workers="external", expect=expect,
                group__devices=FAKE, deadlines__step="2s")
    b = start_group(c, "b", tp=2)
    start_group(c, "a")
    for name in "ab":
        wait_state(c, name, api.GROUP_STATE_READY)
    assert [groups(c)[name].tp_size for name in "ab"] == [1, 2]
    streams = [Stream(c, api, f"river {i}") for i in range(8)]
    for s in streams:
        s.began.wait()
    running = {name: g.running for name, g in groups(c).items()}
    assert running["a"] and running["b"], running
    b[1].kill()  # the streams of b go on in a
    results = [s.result() for s in streams]
    assert [len(r) for r in results] == [200] * 8
    assert groups(c)["b"].state == api.GROUP_STATE_DEGRADED
    assert c.status().requests.resumed > 0 and c.status().requests.failed == 0
    assert health(c, "glmd.v1.Inference") == health(c, "group/a") == "SERVING"
    assert health(c, "group/b") == "NOT_SERVING"
    # the same tokens as without a loss, and b takes its part again
    start_group(c, "b", tp=2, ranks=[1], life="+")
    wait_state(c, "b", api.GROUP_STATE_READY)
    for i in (0, 7):
        assert Stream(c, api, f"river {i}").result() == results[i]
    assert groups(c)["b"].steps > 0


def test_a_group_joins_while_others_serve(weights, cluster, api):
    c = cluster(weights, 0, ready=False, workers="external", worker__slots=4,
                group__devices="fake:step_us=10000")
    with pytest.raises(grpc.RpcError) as e:  # nobody comes before its deadline
        list(c.inference.Generate(api.GenerateRequest(text="The river"), timeout=0.5))
    assert e.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert glmd("status", "-c", c.target, check=False).returncode == 3
    start_group(c, "a")
    wait_state(c, "a", api.GROUP_STATE_READY)
    streams = [Stream(c, api, f"river {i}") for i in range(8)]  # as many as two groups have slots
    c.wait(lambda: groups(c)["a"].waiting == 4, "the other half to wait")
    start_group(c, "b")
    wait_state(c, "b", api.GROUP_STATE_READY)
    for s in streams:
        assert len(s.result()) == 200
    assert groups(c)["b"].steps > 0


def test_drain_and_abort(weights, cluster, api):
    c = cluster(weights, 0, ready=False, workers="external", group__devices="fake:step_us=15000")
    b = start_group(c, "b", tp=2)
    wait_state(c, "b", api.GROUP_STATE_READY)
    mine = Stream(c, api, "The river", request_id="mine")
    unnamed = Stream(c, api, "The train")
    for s in (mine, unnamed):
        s.began.wait()
    assert mine.id == "mine" and unnamed.id
    for s, name in ((mine, "mine"), (unnamed, f"chatcmpl-{unnamed.id}")):  # as a chat's answer has it
        assert "aborted 1 request" in glmd("abort", name, "-c", c.target).stdout
        s.join()
        assert s.error.code() == grpc.StatusCode.CANCELLED, s.error
    assert "operator" in mine.error.details()
    assert c.status().requests.aborted == 2
    again = glmd("abort", "mine", "-c", c.target, check=False)
    assert again.returncode == 1 and "no request has this id" in again.stderr

    kept = Stream(c, api, "The city")
    kept.began.wait()
    start_group(c, "a")
    wait_state(c, "a", api.GROUP_STATE_READY)
    out = glmd("drain", "b", "-c", c.target).stdout  # returns when its ranks have left
    assert "1 requests to finish" in out and "have left" in out
    assert len(kept.result()) == 200
    assert [p.wait(timeout=DEADLINE_S) for p in b] == [0, 0]
    assert groups(c)["b"].state == api.GROUP_STATE_GONE
    assert health(c, "glmd.v1.Inference") == "SERVING" and health(c, "group/b") == "NOT_SERVING"
    status = glmd("status", "-c", c.target)
    assert "1 of 2 serves, 0 requests wait; not: b (gone)" in status.stdout, status.stdout
    assert [g["id"] for g in json.loads(glmd("status", "--json", "-c", c.target).stdout)["groups"]
            if g["state"] == "ready"] == ["a"]
    assert c.status().requests.failed == 0
    # a new life
    start_group(c, "b", tp=2, life="+")
    wait_state(c, "b", api.GROUP_STATE_READY)
    assert glmd("drain", "c", "-c", c.target, check=False).returncode == 1


def test_requests_move_when_a_drain_has_no_more_time(weights, cluster, api):
    c = cluster(weights, 0, ready=False, workers="external", group__devices=FAKE)
    start_group(c, "b")
    wait_state(c, "b", api.GROUP_STATE_READY)
    stream = Stream(c, api, "The river")
    stream.began.wait()
    start_group(c, "a")
    wait_state(c, "a", api.GROUP_STATE_READY)
    glmd("drain", "b", "--grace", "0.05", "-c", c.target)
    tokens = stream.result()
    assert len(tokens) == 200 and c.status().requests.resumed == 1
    assert Stream(c, api, "The river").result() == tokens


def test_replicas_are_spawned(weights, cluster, api):
    c = cluster(weights, 1, group__replicas=2, group__devices=FAKE)
    for name in "01":
        wait_state(c, name, api.GROUP_STATE_READY)
    streams = [Stream(c, api, f"river {i}") for i in range(6)]
    for s in streams:
        s.began.wait()
    before = groups(c)["1"]
    os.kill(before.ranks[0].pid, signal.SIGKILL)
    for s in streams:
        assert len(s.result()) == 200
    after = c.wait(lambda: (g := groups(c).get("1")) and g.state == api.GROUP_STATE_READY
                   and g.ranks[0].pid != before.ranks[0].pid and g, "replica 1 to be back")
    assert after.epoch > before.epoch
    glmd("drain", "1", "-c", c.target)  # stays away, though it was spawned
    assert groups(c)["1"].state == api.GROUP_STATE_GONE
    assert len(Stream(c, api, "The river").result()) == 200


def test_shapes_that_do_not_fit_are_refused(weights, cluster, api):
    c = cluster(weights, 0, ready=False, workers="external",
                expect={f"odd{i}": 64 for i in range(3)})
    start_group(c, "g", tp=2, ranks=[0])
    c.wait(lambda: "g" in groups(c), "rank 0")
    cases = [
        (["group.name=g", "group.tensor_parallel=1"], "2 x 1 ranks"),
        (["group.name=g", "group.tensor_parallel=2", "group.pipeline_parallel=3",
          "group.stage_layers=1,2,1"], "expected the model's 3 layers, found 4"),
        (["group.name=h", "group.pipeline_parallel=4"], "at most the model's 3 layers"),
    ]
    for i, (sets, words) in enumerate(cases):
        odd = c.start_worker(0, sets=[p for s in sets for p in ("--set", s)], name=f"odd{i}")
        assert odd.wait(timeout=DEADLINE_S) == 64, c.logs()
        log = (c.folder / f"odd{i}.log").read_text()
        assert words in log, log
    assert len(groups(c)) == 1


def test_stages_on_a_layout_of_their_own(model, cluster, api, manifest):
    """Two stages of a model with three layers, as ranks say it: the original's tokens."""
    c = cluster(model("ckpt-fp16-tp1", "--weights", "fp16"), 0, ready=False, workers="external")
    start_group(c, "p", pp=2, sets=("--set", "group.stage_layers=1,2"))
    g = wait_state(c, "p", api.GROUP_STATE_READY)
    assert g.pp_size == 2 and list(g.stage_layers) == [1, 2]
    assert [r.stage for r in g.ranks] == [0, 1]
    assert g.ranks[0].weights_bytes < g.ranks[1].weights_bytes  # one layer, and two
    assert "TP 1 x PP 2, layers 1+2" in glmd("status", "-c", c.target).stdout
    cases = [x for x in manifest["generation"]
             if x["weights"] == "fp16" and "prompt" in x and x["strategy"] == "greedy"]
    streams = [c.inference.Generate(api.GenerateRequest(
        tokens=api.TokenIds(ids=case["prompt"]), max_tokens=case["max_new_tokens"],
        return_token_ids=True, sampling=sampling(api, case)), timeout=DEADLINE_S) for case in cases]
    assert len(streams) > 1
    for case, stream in zip(cases, streams):
        tokens = [t for r in stream for d in r.choices for t in d.tokens]
        assert tokens == strip_end(case["generated"][0]), case["name"]


def test_a_lost_stage_ends_its_epoch_and_no_stream(weights, cluster, api):
    c = cluster(weights, 0, ready=False, workers="external", deadlines__step="2s",
                expect={"p.1": -signal.SIGKILL})
    stages = start_group(c, "p", pp=3)
    before = wait_state(c, "p", api.GROUP_STATE_READY)
    streams = [Stream(c, api, f"river {i}", max_tokens=100) for i in range(4)]
    for s in streams:
        s.began.wait()
    stages[1].kill()
    start_group(c, "p", pp=3, ranks=[1], life="+")
    results = [s.result() for s in streams]
    after = wait_state(c, "p", api.GROUP_STATE_READY)
    assert after.epoch > before.epoch
    assert c.status().requests.resumed >= 4 and c.status().requests.failed == 0
    for i, tokens in enumerate(results):
        assert len(tokens) == 100
        assert Stream(c, api, f"river {i}", max_tokens=100).result() == tokens


def test_spawned_ranks_compute_near_their_memory(weights, cluster, api, tmp_path):
    """On a machine whose kernel tells of two NUMA nodes; here a folder stands in for its files."""
    cpus = sorted(os.sched_getaffinity(0))
    over_nodes = ["unshare", "-m", "sh", "-c",
                  'mount --bind "$0" /sys/devices/system/node && exec "$@"', tmp_path]
    if len(cpus) < 2 or subprocess.run([*over_nodes, "true"], capture_output=True).returncode:
        pytest.skip("expected two CPUs and the right to mount")
    halves = [set(cpus[:len(cpus) // 2]), set(cpus[len(cpus) // 2:])]
    (tmp_path / "online").write_text("0-1\n")
    for i, half in enumerate(halves):
        (tmp_path / f"node{i}").mkdir()
        (tmp_path / f"node{i}/cpulist").write_text(",".join(map(str, sorted(half))) + "\n")
    c = cluster(weights, tp=2, within=over_nodes)
    engines = {}
    for rank in c.status().groups[0].ranks:
        for task in os.scandir(f"/proc/{rank.pid}/task"):
            with open(f"{task.path}/comm", encoding="utf-8") as name:
                if name.read().strip() == "engine":
                    engines[rank.rank] = os.sched_getaffinity(int(task.name))
    assert engines == dict(enumerate(halves))
