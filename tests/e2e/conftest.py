"""Real processes for the end-to-end suites: converted models, a coordinator, its workers, a channel.

Everything is waited for by its event (a port file, a health state, a stream's end), never by time.
"""

import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import grpc
import pytest

SOURCE = pathlib.Path(os.environ.get("GLMD_SOURCE_DIR", pathlib.Path(__file__).parents[2]))
BIN = pathlib.Path(os.environ.get("GLMD_BIN_DIR", SOURCE / "build/release/bin"))
GOLDEN = SOURCE / "tests/golden/glm130b"
SANITIZED = any(name in str(BIN) for name in ("asan", "tsan"))
DEADLINE_S = 120 if SANITIZED else 60


def pytest_configure(config):
    config.addinivalue_line("markers", "long: heavy suite, only with tests/run --long")


@pytest.fixture(scope="session")
def manifest():
    return json.loads((GOLDEN / "manifest.json").read_text())


@pytest.fixture(scope="session")
def api(tmp_path_factory):
    """The API's Python modules, generated from the .proto files; one namespace with everything."""
    out = tmp_path_factory.mktemp("stubs")
    protos = sorted((SOURCE / "proto/glmd/v1").glob("*.proto"))
    subprocess.run(
        ["protoc", f"-I{SOURCE / 'proto'}", f"--python_out={out}", f"--grpc_python_out={out}",
         "--plugin=protoc-gen-grpc_python=/usr/bin/grpc_python_plugin", *map(str, protos)],
        check=True,
    )
    sys.path.insert(0, str(out))

    class Api:
        pass

    for name in ("inference", "cluster", "worker"):
        for suffix in ("pb2", "pb2_grpc"):
            module = importlib.import_module(f"glmd.v1.{name}_{suffix}")
            for key, value in vars(module).items():
                if not key.startswith("_"):
                    setattr(Api, key, value)
    return Api


def glmd(*args, check=True, **kwargs):
    """Runs the tool; returns the finished process with text output."""
    result = subprocess.run(
        [str(BIN / "glmd"), *map(str, args)], capture_output=True, text=True,
        timeout=kwargs.pop("timeout", 300), **kwargs,
    )
    if check:
        assert result.returncode == 0, f"glmd {args}: {result.returncode}\n{result.stderr}"
    return result


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """model("ckpt-fp16-tp1", "--weights", "fp16") -> converted directory, made once a session."""
    made = {}

    def convert(checkpoint, *options):
        key = (checkpoint, *options)
        if key not in made:
            out = tmp_path_factory.mktemp("models") / checkpoint
            glmd("convert", "--from", GOLDEN / checkpoint, "--out", out,
                 "--config", GOLDEN / "config.json", "--tokenizer", GOLDEN / "tokenizer.model",
                 *options)
            made[key] = out
        return made[key]

    return convert


class Cluster:
    """A coordinator and its ranks. `workers` = "spawn" or "external" (started here, one by one).
    With tp 0 no rank is started: groups come later. `within`: a command that runs the coordinator's."""

    def __init__(self, folder, api, model_dir, tp=1, workers="spawn", within=(), **settings):
        self.folder, self.api, self.tp, self.within = folder, api, tp, within
        self.model_dir, self.workers = model_dir, workers
        self.processes = {}
        self.port_file, self.http_port_file = folder / "port", folder / "http-port"
        values = {
            "model.dir": model_dir,
            "coordinator.listen": "127.0.0.1:0",
            "coordinator.http.listen": "127.0.0.1:0",
            "coordinator.state_dir": folder / "state",
            "group.tensor_parallel": max(tp, 1),
            "group.workers": workers,
            "worker.threads": 1,
            "worker.activations": "fp32",
            "worker.slots": 40,
            **{key.replace("__", "."): value for key, value in settings.items()},
        }
        (folder / "state").mkdir(exist_ok=True)
        self.sets = [part for k, v in values.items() for part in ("--set", f"{k}={v}")]
        self.start_coordinator()
        if workers == "external":
            for rank in range(tp):
                self.start_worker(rank)

    def spawn(self, name, *command):
        log = open(self.folder / f"{name}.log", "ab")
        process = subprocess.Popen([str(c) for c in command], stderr=log, stdout=log)
        log.close()
        self.processes[name] = process
        return process

    def start_coordinator(self):
        self.port_file.unlink(missing_ok=True)
        self.http_port_file.unlink(missing_ok=True)
        self.spawn("coordinator", *self.within, BIN / "glmd-coordinator", "--port-file", self.port_file,
                   "--http-port-file", self.http_port_file, *self.sets)
        self.wait(lambda: self.port_file.exists() and self.port_file.read_text().strip(),
                  "the coordinator's port file", "coordinator")
        self.target = f"127.0.0.1:{self.port_file.read_text().strip()}"
        self.http_port = (int(self.http_port_file.read_text())
                          if self.http_port_file.exists() else None)
        self.channel = grpc.insecure_channel(
            self.target, options=[("grpc.initial_reconnect_backoff_ms", 50),
                                  ("grpc.max_reconnect_backoff_ms", 200)])
        self.inference = self.api.InferenceStub(self.channel)
        self.cluster = self.api.ClusterStub(self.channel)

    def start_worker(self, rank, *extra, sets=(), name=None):
        return self.spawn(name or f"worker{rank}", BIN / "glmd-worker", "--rank", rank,
                          "--coordinator", self.target, *self.sets, *sets, *extra)

    def wait(self, condition, what, alive=None, deadline_s=DEADLINE_S):
        """Polls an observable state; fails with the logs when it does not come."""
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            value = condition()
            if value:
                return value
            if alive and self.processes[alive].poll() is not None:
                break
            time.sleep(0.02)
        pytest.fail(f"waited {deadline_s} s for {what}\n{self.logs()}")

    def status(self):
        try:
            return self.cluster.Status(self.api.StatusRequest(), timeout=5)
        except grpc.RpcError:
            return None

    def group_ready(self):
        status = self.status()
        return (status and len(status.groups) > 0
                and status.groups[0].state == self.api.GROUP_STATE_READY and status)

    def wait_ready(self):
        return self.wait(self.group_ready, "a ready group", "coordinator")

    def logs(self):
        return "\n".join(f"--- {p.name}\n{p.read_text(errors='replace')[-3000:]}"
                         for p in sorted(self.folder.glob("*.log")))

    def stop(self):
        """SIGTERM in order; every process must end by itself with 0."""
        self.channel.close()
        codes = {}
        for name in sorted(self.processes):  # the coordinator first: it drains
            process = self.processes[name]
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for name, process in self.processes.items():
            try:
                codes[name] = process.wait(timeout=DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                codes[name] = "hung"
        return codes


@pytest.fixture
def cluster(tmp_path_factory, api):
    """cluster(model_dir, tp=2, ...) -> a ready Cluster; stopped, and checked to stop cleanly, after."""
    made = []

    def start(model_dir, tp=1, ready=True, expect=None, **settings):
        c = Cluster(tmp_path_factory.mktemp("cluster"), api, model_dir, tp, **settings)
        c.expect = expect or {}
        made.append(c)
        if ready:
            c.wait_ready()
        return c

    yield start
    for c in made:
        codes = c.stop()
        for name, code in codes.items():
            assert code == c.expect.get(name, 0), f"{name} ended with {code}\n{c.logs()}"


@pytest.fixture(scope="module")
def module_cluster(tmp_path_factory, api):
    """Like `cluster`, but lives as long as the test module."""
    made = {}

    def start(key, model_dir, tp=1, **settings):
        if key not in made:
            made[key] = Cluster(tmp_path_factory.mktemp("cluster"), api, model_dir, tp, **settings)
            made[key].wait_ready()
        return made[key]

    yield start
    for c in made.values():
        codes = c.stop()
        assert all(code == 0 for code in codes.values()), f"{codes}\n{c.logs()}"
