"""Stock clients against the API over HTTP: curl, the README's examples, OpenAI's own, and its recorded
requests where it is not installed."""

import json
import re
import shlex
import subprocess
import sys

import pytest

from conftest import SOURCE
from http_client import PROMPT, post

DEMO = SOURCE / "deploy/demo/model"


@pytest.fixture(scope="module")
def server(module_cluster):
    return module_cluster("http-clients", DEMO, tp=2)


def test_curl(server):
    command = (f"curl -sSN http://127.0.0.1:{server.http_port}/v1/completions "
               "-H 'Content-Type: application/json' "
               "-d '{\"prompt\": \"And it came to pass\", \"max_tokens\": 4, \"stream\": true}'")
    out = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True).stdout
    assert out.startswith("data: {") and out.endswith("data: [DONE]\n\n")


def readme_examples(language):
    text = (SOURCE / "README.md").read_text()
    section = text[text.index("### Over HTTP"):]
    section = section[:section.index("\n#", 5) if "\n#" in section[5:] else None]
    return re.findall(rf"```{language}\n(.*?)```", section, re.S)


def test_readme_examples(server, tmp_path):
    sh, = readme_examples("sh")
    script = sh.replace("127.0.0.1:8000", f"127.0.0.1:{server.http_port}")
    r = subprocess.run(["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True,
                       cwd=tmp_path, timeout=120)
    assert r.returncode == 0, r.stderr
    assert '"object":"text_completion"' in r.stdout and '"blanks":[' in r.stdout
    assert r.stdout.rstrip().endswith("data: [DONE]")


def test_readme_example_of_the_official_client(server, tmp_path):
    pytest.importorskip("openai")
    python, = readme_examples("python")
    script = python.replace("127.0.0.1:8000", f"127.0.0.1:{server.http_port}")
    r = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                       cwd=tmp_path, timeout=120)
    assert r.returncode == 0 and r.stdout.strip(), r.stderr


def test_official_client(server):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.http_port}/v1", api_key="any",
                           max_retries=0)
    assert [m.id for m in client.models.list()] == ["glm-demo"]
    assert client.models.retrieve("glm-demo").id == "glm-demo"
    fields = dict(model="glm-demo", prompt=PROMPT, max_tokens=12, seed=3)
    whole = client.completions.create(**fields)
    streamed = client.completions.create(**fields, stream=True)
    assert "".join(c.choices[0].text for c in streamed) == whole.choices[0].text
    chat = client.chat.completions.create(
        model="glm-demo", messages=[{"role": "user", "content": "Who was Moses?"}], max_tokens=8,
        logprobs=True, top_logprobs=2)
    assert len(chat.choices[0].logprobs.content) == chat.usage.completion_tokens
    with client.chat.completions.create(model="glm-demo", stream=True, max_tokens=8, messages=[
            {"role": "user", "content": "Who?"}], stream_options={"include_usage": True}) as s:
        chunks = list(s)
    assert chunks[-1].usage.completion_tokens > 0
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt-4", prompt="a")
    with pytest.raises(openai.BadRequestError) as e:
        client.completions.create(model="glm-demo", prompt="a", temperature=-1)
    assert e.value.param == "temperature"


def recorded():
    calls = json.loads((SOURCE / "tests/unit/coordinator/openai_python.json").read_text())["calls"]
    return [(c["path"], c["body"]) for c in calls]


@pytest.mark.parametrize("path, body", recorded(), ids=range(len(recorded())))
def test_recorded_requests_of_the_official_client(server, path, body):
    """As the client sent them, but for the model's name, the lengths, and a token of this model."""
    fields = json.loads(body)
    if "model" in fields:
        fields["model"] = "glm-demo"
    if "stop_token_ids" in fields:
        fields["stop_token_ids"] = post(server.http_port, "/tokenize",
                                        {"prompt": "river"}).json["tokens"][-1:]
    for name in ("max_tokens", "max_completion_tokens"):
        if fields.get(name):
            fields[name] = min(fields[name], 6)
    answer = post(server.http_port, path, fields)
    refused = [name for name in ("tools", "guided_json") if name in fields]
    if "image_url" in body:
        refused.append("messages")
    if fields.get("response_format", {}).get("type") == "json_schema":
        refused.append("response_format")
    assert answer.status == (400 if refused else 200), answer.body
    if refused:
        assert answer.error["param"].split(".")[0] in refused, "a field that is refused is named"
