"""What deploy/ and docs/operations.md say is what the binary does.

    check.py BINARY

Metrics are compared with two running servers, one on the embedded store behind TLS and one on Redis,
so that every metric there is shows.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

import yaml
from kubernetes_validate import utils as kubernetes

from processes import ROOT, dyndata_server, fetch, redis_server

DEPLOY = ROOT / "deploy"
# The oldest that has all the fields, and the newest that the validator knows.
KUBERNETES = ("1.30", kubernetes.latest_version())
METRIC = re.compile(r"\b(?:dyndata|grpc_server)_[a-z_]+\b(?=[\[{ )]|$)")


def main():
    binary = sys.argv[1]
    page = (ROOT / "docs/operations.md").read_text()
    documented = documented_metrics(page)
    results = [
        report("metrics are documented", metrics_differ(documented, served_metrics(binary))),
        report("queries use metrics that exist", unknown_metrics(documented)),
        report("every alert has a section and a test", alerts_differ(page)),
        report("the scrape configuration finds what is deployed", scrape_differs()),
        report("settings exist, with these defaults", settings_differ(binary)),
        report("manifests fit Kubernetes' schemas", invalid_manifests()),
        report("a shutdown has the time that it may take", short_grace_periods(binary)),
    ]
    print(f"{results.count(True)} passed, {results.count(False)} failed")
    sys.exit(0 if all(results) else 1)


def report(what, faults):
    faults = list(faults)
    print(f"{'FAILED' if faults else 'ok    '} {what}")
    for fault in faults:
        print(f"       {fault}")
    return not faults


def documented_metrics(page):
    """{name: (type, labels)} of the table under "Metrics"."""
    section = page.split("\n## Metrics\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*)\|", section, re.MULTILINE)
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def served_metrics(binary):
    """{name: (type, labels or None if it has no sample yet)} of all that two servers have."""
    with tempfile.TemporaryDirectory() as directory, redis_server(directory) as port:
        tls = certificate(directory)
        with (
            dyndata_server(binary, **tls) as (_, with_tls),
            dyndata_server(binary, REDIS_URL=f"redis://127.0.0.1:{port}") as (_, on_redis),
        ):
            return parse(fetch(f"{with_tls}/metrics")) | parse(fetch(f"{on_redis}/metrics"))


def certificate(directory):
    key, cert = pathlib.Path(directory) / "key.pem", pathlib.Path(directory) / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30"
    command += f" -subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout {key} -out {cert}"
    subprocess.run(command.split(), check=True, capture_output=True, timeout=20)
    return {"DYNDATA_TLS_CERT": str(cert), "DYNDATA_TLS_KEY": str(key)}


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
    for title, query in queries:
        used = set(METRIC.findall(query)) - {"grpc_service", "grpc_method", "grpc_code"}
        for name in sorted(used - known):
            yield f"{title} asks for {name}, which is not documented"


def alerts():
    groups = yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts_differ(page):
    section = page.split("\n## Alerts\n")[1].split("\n## ")[0]
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
        command = [ROOT / ".tools/bin/promtool", "check", "config", file.name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    if done.returncode != 0:
        yield f"promtool check config: {done.stdout}{done.stderr}"


def settings_differ(binary):
    help_text = subprocess.run(
        [binary, "serve", "--help"], capture_output=True, text=True, check=True, timeout=20
    ).stdout
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


def short_grace_periods(binary):
    """Whoever sends SIGTERM waits longer than the delay, the drain and a second together."""
    periods = {
        "systemd/dyndata.service": r"^TimeoutStopSec=(\d+)s$",
        "compose.yaml": r"^ +stop_grace_period: (\d+)s$",
        "kubernetes/deployment.yaml": r"^ +terminationGracePeriodSeconds: (\d+)$",
    }
    help_text = subprocess.run([binary, "serve", "--help"], capture_output=True, text=True, check=True).stdout
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


if __name__ == "__main__":
    main()
