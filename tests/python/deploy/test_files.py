"""What deploy/ and docs/operations.md say is what the binary does.

Metrics are compared with two running servers, one on the embedded store behind TLS and one on
Redis, so that every metric there is shows.
"""

import json
import re
import tempfile

import pytest
import yaml
from kubernetes_validate import utils as kubernetes

from support.credentials import tls_settings, write_certificates
from support.processes import ROOT, TOOLS, Dyndata, output, run

DEPLOY = ROOT / "deploy"
PAGE = (ROOT / "docs/operations.md").read_text()
# The oldest version with all these fields, and the newest that the validator knows.
KUBERNETES = ("1.30", kubernetes.latest_version())
METRIC = re.compile(r"\b(?:dyndata|grpc_server)_[a-z_]+\b(?=[\[{ )]|$)")


@pytest.fixture(scope="module")
def help_text(release_binary):
    return output([release_binary, "serve", "--help"]).decode()


def test_metrics_are_documented(release_binary, tmp_path, redis_port):
    served = served_metrics(release_binary, tmp_path, redis_port)
    assert list(metrics_differ(documented_metrics(), served)) == []


def test_queries_use_metrics_that_exist():
    assert list(unknown_metrics(documented_metrics())) == []


def test_every_alert_has_a_section_and_a_test():
    assert list(alerts_differ()) == []


@pytest.mark.parametrize(
    "command", (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]), ids=" ".join
)
def test_promtool_accepts_the_alerts(command):
    *words, file = command
    output([TOOLS / "promtool", *words, DEPLOY / "prometheus" / file])


def test_the_scrape_configuration_finds_what_is_deployed():
    assert list(scrape_differs()) == []


def test_settings_exist_with_these_defaults(help_text):
    assert list(settings_differ(help_text)) == []


def test_manifests_fit_the_schemas_of_kubernetes():
    assert list(invalid_manifests()) == []


def test_a_shutdown_has_the_time_that_it_may_take(help_text):
    assert list(short_grace_periods(help_text)) == []


def documented_metrics():
    """{name: (type, labels)} of the table under "Metrics"."""
    section = PAGE.split("\n## Metrics\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*)\|", section, re.MULTILINE)
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def served_metrics(binary, directory, redis_port):
    """{name: (type, labels or None if it has no sample yet)} of all that two servers have."""
    write_certificates(directory)
    serve = [binary, "serve"]
    indexed = "--indexed-namespaces=online"
    with (
        Dyndata(serve, indexed, *tls_settings(directory)) as with_tls,
        Dyndata(serve, indexed, f"--redis-url=redis://127.0.0.1:{redis_port}") as on_redis,
    ):
        # The embedded store counts the ids of namespaces at once, Redis only after a while.
        return parse(on_redis.metrics()) | parse(with_tls.metrics())


def parse(text):
    """The families of an exposition, in the text format or as OpenMetrics, by their samples' names."""
    metrics = {}
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        suffix = {"counter": "_total", "info": "_info"}.get(kind, "")
        sample = name if name.endswith(suffix) else name + suffix
        metrics[sample] = ("gauge" if kind == "info" else kind, labels(text, sample, kind))
    return metrics


def labels(text, name, kind):
    suffix = "_count" if kind == "histogram" else ""
    samples = re.findall(rf"^{name}{suffix}(?:{{(.*)}})? ", text, re.MULTILINE)
    return set(re.findall(r'(\w+)="', samples[0])) if samples else None


def metrics_differ(documented, served):
    for name in sorted(documented.keys() - served.keys()):
        yield f"docs/operations.md has {name}, the binary does not"
    for name in sorted(served.keys() - documented.keys()):
        yield f"the binary has {name}, docs/operations.md does not"
    for name in sorted(served.keys() & documented.keys()):
        (kind, names), (said_kind, said_names) = served[name], documented[name]
        if kind != said_kind:
            yield f"{name} is a {kind}, documented as {said_kind}"
        if names is not None and names != said_names:
            yield f"{name} has labels {sorted(names)}, documented {sorted(said_names)}"


def unknown_metrics(documented):
    known = set(documented)
    known |= {name + suffix for name in documented for suffix in ("_bucket", "_count", "_sum")}
    panels = json.loads((DEPLOY / "grafana/dyndata.json").read_text())["panels"]
    queries = [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", [])]
    queries += [(rule["alert"], rule["expr"]) for rule in alerts()]
    page = (ROOT / "src/admin/status.html").read_text()
    queries += [("the status page", name) for name in re.findall(r'"((?:dyndata|grpc_server)_\w+)"', page)]
    for title, query in queries:
        used = set(METRIC.findall(query)) - {"grpc_service", "grpc_method", "grpc_code"}
        for name in sorted(used - known):
            yield f"{title} asks for {name}, which is not documented"


def alerts():
    groups = yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts_differ():
    section = PAGE.split("\n## Alerts\n")[1].split("\n## ")[0]
    sections = set(re.findall(r"^### (\w+)$", section, re.MULTILINE))
    names = {rule["alert"] for rule in alerts()}
    for name in sorted(names ^ sections):
        yield f"{name} is only in {'alerts.yaml' if name in names else 'docs/operations.md'}"
    for rule in alerts():
        runbook = f"docs/operations.md#{rule['alert'].lower()}"
        if rule["annotations"].get("runbook_url") != runbook:
            yield f"the runbook_url of {rule['alert']} is not {runbook}"
    tests = yaml.safe_load((DEPLOY / "prometheus/alerts_test.yaml").read_text())["tests"]
    fired = {check["alertname"] for test in tests for check in test["alert_rule_test"] if check["exp_alerts"]}
    for name in sorted(names - fired):
        yield f"no test has {name} fire"


def scrape_differs():
    config = yaml.safe_load((DEPLOY / "prometheus/scrape.yaml").read_text())
    hosts, pods = config["scrape_configs"]
    if hosts["job_name"] != "dyndata" or hosts["static_configs"] != [{"targets": ["127.0.0.1:9464"]}]:
        yield "the first job is not dyndata on its default admin port"
    template = yaml.safe_load((DEPLOY / "kubernetes/deployment.yaml").read_text())["spec"]["template"]
    name = template["metadata"]["labels"]["app.kubernetes.io/name"]
    ports = [port["name"] for port in template["spec"]["containers"][0]["ports"]]
    kept = [rule["regex"] for rule in pods["relabel_configs"] if rule.get("action") == "keep"]
    if kept not in [[f"{name};{port}"] for port in ports]:
        yield f"the job for pods keeps {kept}, the Deployment has {name} with the ports {ports}"
    # Debian's promtool is built without discovery in Kubernetes, so it is asked about the rest.
    if pods.pop("kubernetes_sd_configs") != [{"role": "pod"}]:
        yield "the job for pods does not look for pods"
    config["rule_files"] = [str(DEPLOY / "prometheus" / path) for path in config["rule_files"]]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(config, file)
        file.flush()
        done = run([TOOLS / "promtool", "check", "config", file.name])
    if done.returncode != 0:
        yield f"promtool check config: {done.stdout.decode()}{done.stderr.decode()}"


def settings_differ(help_text):
    # Each setting's [env: NAME=...], and the [default: value] before the next one, if there is any.
    known = {}
    for part in re.split(r"\[env: ", help_text)[1:]:
        name = re.match(r"\w+", part).group()
        default = re.match(r"[^\n]*\n\s+\[default: ([^\]]*)\]", part)
        known[name] = default and default.group(1)
    # For the client commands in the container, and tracing's own.
    others = {"RUST_LOG"}
    file = DEPLOY / "systemd/dyndata.env"
    for name, value in re.findall(r"^#?([A-Z_]+)=(.*)$", file.read_text(), re.MULTILINE):
        if name not in known.keys() | others:
            yield f"{file.name} has {name}, which does not exist"
        elif known.get(name) and value != known[name]:
            yield f"{file.name} has {name}={value}, the default is {known[name]}"
    for file in [*DEPLOY.glob("kubernetes/*.yaml"), DEPLOY / "compose.yaml", DEPLOY / "Containerfile"]:
        for name in sorted(set(re.findall(r"\b(?:DYNDATA_[A-Z_]+|REDIS_URL)\b", file.read_text()))):
            if name not in known.keys() | {"DYNDATA_ADDR"}:
                yield f"{file.name} has {name}, which does not exist"


def short_grace_periods(help_text):
    """Supervisors must wait longer after SIGTERM than the delay, the drain and a second together."""
    periods = {
        "systemd/dyndata.service": r"^TimeoutStopSec=(\d+)s$",
        "compose.yaml": r"^ +stop_grace_period: (\d+)s$",
        "kubernetes/deployment.yaml": r"^ +terminationGracePeriodSeconds: (\d+)$",
    }
    for name, period in periods.items():
        text = (DEPLOY / name).read_text()
        takes = 1
        for variable in ("DYNDATA_SHUTDOWN_DELAY", "DYNDATA_DRAIN_TIMEOUT"):
            default = re.search(rf"\[env: {variable}=[^]]*\]\s+\[default: (\d+)s\]", help_text)
            said = re.search(rf"{variable}\W+(?:value: )?\W*(\d+)s\b", re.sub("#.*", "", text))
            takes += int((said or default).group(1))
        given = int(re.search(period, text, re.MULTILINE).group(1))
        if given <= takes:
            yield f"{name} gives {given} s, a shutdown may take {takes} s"


def invalid_manifests():
    yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    kustomization = yaml.safe_load((DEPLOY / "kubernetes/kustomization.yaml").read_text())
    files = {path.name for path in DEPLOY.glob("kubernetes/*.yaml")} - {"kustomization.yaml"}
    for name in sorted(files ^ set(kustomization["resources"])):
        yield f"{name} is only in {'the folder' if name in files else 'kustomization.yaml'}"
    for name in sorted(files):
        for manifest in yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text()):
            for version in KUBERNETES:
                try:
                    kubernetes.validate(manifest, version, strict=True)
                except Exception as invalid:  # its errors have no common base
                    yield f"{name}, Kubernetes {version}: {invalid}"
