"""The documentation, dashboard and alert rules name metrics that exist, all of them, rightly."""

import json
import re
import shutil
import subprocess

import pytest

from conftest import SOURCE

PROMTOOL = shutil.which("promtool") or shutil.which(
    "promtool", path=str(SOURCE / "build/tools/prometheus/usr/bin"))
needs_promtool = pytest.mark.skipif(
    not PROMTOOL, reason="promtool is not here (deploy/install-packages unpack)")
RULES = SOURCE / "deploy/alerts/glmd.rules.yml"
DASHBOARD = SOURCE / "deploy/grafana/glmd.json"


@pytest.fixture(scope="module")
def text(api, model, module_cluster):
    server = module_cluster("monitoring", model("ckpt-fp16-tp1", "--weights", "int4"), 1)
    return server.cluster.Metrics(api.MetricsRequest(), timeout=10).text


@pytest.fixture(scope="module")
def types(text):
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))


def series_of(types):
    names = set(types)
    for name, kind in types.items():
        if kind == "histogram":
            names |= {name + suffix for suffix in ("_bucket", "_sum", "_count")}
    return names


def names_in(expression):
    """What looks like a metric of ours in PromQL."""
    without_labels = re.sub(r"\{[^}]*\}", "", expression)
    return set(re.findall(r"\b(?:glmd|process)_\w+", without_labels))


def test_the_documentation_has_every_metric(text, types):
    rows = re.findall(r"^\| `([^`]+)` \| (\w+) \| (.*) \|$",
                      (SOURCE / "docs/observability.md").read_text(), re.M)
    documented = {name: kind for name, kind, _ in rows}
    assert len(rows) == len(documented), "a metric stands twice"
    assert documented == types
    for name, _, rest in rows:
        if name.startswith("vllm:"):
            continue
        labels, meaning = rest.split(" | ", 1) if " | " in rest else ("", rest)
        said = {x.strip() for x in labels.strip("| ").split(",") if x.strip()}
        found = re.search(rf"^{re.escape(name)}(?:_count)?(?:{{(.*)}})? ", text, re.M)
        if found:
            have = set(re.findall(r'(\w+)="', found[1] or ""))
            assert said == have, f"{name}: documented labels {said}, found {have}"
        assert len(meaning) > 10


def test_alerts_and_dashboard_use_what_exists(types):
    exists = series_of(types)
    rules = RULES.read_text()
    expressions = re.findall(r"expr: (?:>\n)?(.*?)(?=\n +(?:for|labels):)", rules, re.S)
    assert len(expressions) == rules.count("- alert:") > 10
    for expression in expressions:
        assert names_in(expression) <= exists, names_in(expression) - exists
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    ids = [p["id"] for p in panels]
    assert len(ids) == len(set(ids))
    used = set()
    for p in panels:
        assert p["gridPos"]["x"] + p["gridPos"]["w"] <= 24
        for target in p.get("targets", []):
            used |= names_in(target["expr"])
    assert used and used <= exists, used - exists
    assert len([p for p in panels if p["type"] != "row"]) > 20


@needs_promtool
def test_the_alerts_fire_when_they_should():
    for command in (["check", "rules", RULES.name], ["test", "rules", "glmd.rules.test.yml"]):
        result = subprocess.run([PROMTOOL, *command], cwd=RULES.parent, capture_output=True,
                                text=True, timeout=120)
        assert result.returncode == 0, result.stdout + result.stderr
    tested = (RULES.parent / "glmd.rules.test.yml").read_text()
    for alert in re.findall(r"- alert: (\w+)", RULES.read_text()):
        assert f"alertname: {alert}\n" in tested, f"{alert} is not tested to fire"


@needs_promtool
def test_the_dashboards_queries_are_promql(tmp_path):
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [t["expr"] for p in dashboard["panels"] for t in p.get("targets", [])]
    queries += [a["expr"] for a in dashboard["annotations"]["list"]]
    rules = [{"record": f"q{i}", "expr": q.replace("$__rate_interval", "5m")
              .replace("$instance", ".*").replace("$group", ".*")} for i, q in enumerate(queries)]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    result = subprocess.run([PROMTOOL, "check", "rules", file], capture_output=True, text=True,
                            timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(queries)} rules found" in result.stdout
