"""The Helm chart, rendered by Helm itself, as far as it can be tried without a cluster."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import kubernetes_validate
import pytest
import yaml

from signaling import Options
from signaling._version import VERSION
from signaling.web.static_files import pages
from tests import issuer
from tests.harness.redis import RedisServer
from tests.harness.server import Server, launch
from tests.programs import missing, need

TREE = Path(__file__).parents[2]
CHART = TREE / "deploy" / "helm"
MODELS = Path(__file__).parent / "custom_resources"
BIN = Path(sys.executable).parent
# Helm, YAML and TOML each have their own way to write some of these.
ISSUER = 'https://issuer.example/"<&>é\\'
MOUNT = "/etc/signaling"
SECONDS = 280
WHSEC = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
GATEWAY = "gateway.networking.k8s.io/v1"
OPERATOR = "monitoring.coreos.com/v1"
SECRETS = ("a-turn-secret", "an-admin-token-of-operators", "a-provider-token", WHSEC, "redis-password-in-a-url")

VALUES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "cluster": {
        "replicaCount": 3,
        "backplane": {"url": "redis://redis:6379/0?prefix=room:", "passwordSecret": {"name": "redis"}},
    },
    "everything": {
        "replicaCount": 3,
        "image": {"digest": "sha256:" + "0" * 64},
        "imagePullSecrets": [{"name": "registry"}],
        "config": {
            "trusted-proxy": ["10.0.0.0/8"],
            "allow-origin": "https://example.com",
            "path-prefix": "/signal",
            "resume-window": 30,
            "metadata-rate": 0.5,
            "max-message-bytes": 1_048_576,
            "metadata-updates": True,
            "drain-spread": 20,
            "shutdown-timeout": 7.5,
            "topics": [{"match": "call-*", "max-peers": 2}, {"match": "*", "max-peers": 50}],
        },
        "backplane": {"url": "redis://:redis-password-in-a-url@redis:6379"},
        "auth": {"keys": "KEYS", "algorithm": "EdDSA", "issuer": ISSUER, "leeway": 5},
        "turn": {"uris": ["turn:turn.example.com:3478?transport=udp"], "secret": "a-turn-secret"},
        "iceServers": [{"urls": "stun:stun.example.com"}],
        "iceSource": {"url": "https://provider.example/{token}", "token": "a-provider-token"},
        "webhook": {"url": "https://app.example/presence", "secrets": [WHSEC]},
        "admin": {"enabled": True, "tokens": ["an-admin-token-of-operators"]},
        "metrics": {
            "serviceMonitor": {"enabled": True, "interval": "15s", "labels": {"release": "prometheus"}},
            "prometheusRule": {"enabled": True},
            "dashboard": {"enabled": True, "annotations": {"folder": "WebRTC"}},
        },
        "service": {"type": "LoadBalancer", "annotations": {"a": "b"}, "externalTrafficPolicy": "Local"},
        "ingress": {
            "enabled": True,
            "className": "nginx",
            "hosts": ["signaling.example.com"],
            "tls": [{"secretName": "tls", "hosts": ["signaling.example.com"]}],
        },
        "httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}], "hostnames": ["signaling.example.com"]},
        "networkPolicy": {
            "enabled": True,
            "from": [{"namespaceSelector": {"matchLabels": {"name": "ingress"}}}],
            "adminFrom": [{"podSelector": {"matchLabels": {"app": "back-end"}}}],
            "egress": [{"ports": [{"port": 53, "protocol": "UDP"}]}],
        },
        "serviceAccount": {"annotations": {"a": "b"}},
        "podAnnotations": {"a": "b"},
        "podLabels": {"team": "calls"},
        "priorityClassName": "high",
        "nodeSelector": {"kubernetes.io/arch": "arm64"},
        "tolerations": [{"key": "calls", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "extraArgs": ["--log-level=debug"],
        "extraEnv": [{"name": "TZ", "value": "UTC"}],
        "extraVolumes": [{"name": "scratch", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
        "test": {"tokenSecret": {"name": "probe-token"}},
    },
    "ingress": {
        "replicaCount": 2,
        "topicsByProxy": True,
        "config": {"demo": True},
        "ingress": {"enabled": True, "className": "nginx", "hosts": ["a.example", "b.example"]},
    },
    "httproute": {
        "config": {"serve-client": True, "path-prefix": "/signal"},
        "httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway", "sectionName": "https"}]},
    },
    "existing secrets": {
        "backplane": {"existingSecret": {"name": "mine", "key": "url"}},
        "auth": {"existingSecret": {"name": "mine", "key": "keys"}},
        "turn": {"uris": ["turn:turn.example.com"], "existingSecret": {"name": "mine", "key": "turn"}},
        "webhook": {"url": "https://app.example", "existingSecret": {"name": "mine", "key": "webhook"}},
        "admin": {"enabled": True, "existingSecret": {"name": "mine", "key": "admin"}},
    },
    "autoscaling": {
        "fullnameOverride": "calls",
        "listenOnIPv6": True,
        "backplane": {"url": "redis://redis"},
        "autoscaling": {
            "enabled": True,
            "metrics": [
                {
                    "type": "Pods",
                    "pods": {
                        "metric": {"name": "signaling_peers"},
                        "target": {"type": "AverageValue", "averageValue": "5000"},
                    },
                }
            ],
        },
    },
    "least": {
        "metrics": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
        "serviceAccount": {"create": False},
        "service": {"type": "NodePort", "nodePort": 30080},
        "terminationGracePeriodSeconds": 60,
        "strategy": {"type": "Recreate"},
    },
}
# What the Secrets of others hold; the keys and the token come from the fixture.
EXISTING = {
    "redis": {"redis-password": "p@ss/word?"},
    "mine": {"turn": "t\n", "webhook": WHSEC, "admin": "an-admin-token-of-operators", "url": "redis://redis"},
}
every_set = pytest.mark.parametrize("name", VALUES)


@cache
def helm() -> str:
    found = BIN / "helm"
    path = str(found) if found.exists() else shutil.which("helm")
    if path is None:
        raise missing("helm")
    return path


def run(*command: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    home = {} if folder is None else {"HOME": str(folder)}
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        env={**os.environ, **home},
    )


def render(values: dict[str, Any], chart: Path = CHART, release: str = "signaling") -> subprocess.CompletedProcess[str]:
    command = [helm(), "template", release, str(chart), "--namespace", "calls", "--values", "-"]
    return subprocess.run(
        command, input=json.dumps(values), capture_output=True, text=True, check=False, timeout=SECONDS
    )


@cache
def documents(name: str) -> list[dict[str, Any]]:
    """Render one set of values."""
    done = render(VALUES[name])
    assert (done.returncode, done.stderr) == (0, "")
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def only(name: str, kind: str, suffix: str = "") -> dict[str, Any]:
    """Return the one object of a kind whose name ends so, the release's own name by default."""
    full = VALUES[name].get("fullnameOverride", "signaling") + suffix
    [found] = [each for each in documents(name) if (each["kind"], each["metadata"]["name"]) == (kind, full)]
    return found


def pod(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = only(name, "Deployment")["spec"]["template"]["spec"]
    return spec


def container(name: str) -> dict[str, Any]:
    [found] = pod(name)["containers"]
    return dict(found)


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


# Rendering


@every_set
def test_the_linter_accepts_the_chart_with_each_set_of_values(name: str, tmp_path: Path) -> None:
    (tmp_path / "values.yaml").write_text(json.dumps(VALUES[name]))
    done = run(helm(), "lint", "--strict", "--quiet", "--values", tmp_path / "values.yaml", CHART)
    assert (done.returncode, done.stdout) == (0, "")


@every_set
@pytest.mark.parametrize("version", ["1.29", kubernetes_validate.latest_version()])
def test_kubernetes_accepts_every_object_to_the_letter(name: str, version: str) -> None:
    for document in documents(name):
        if document["apiVersion"] not in (GATEWAY, OPERATOR):
            kubernetes_validate.validate(document, version, strict=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which TypeScript and Node know the custom resources."""
    npm = need("npm")
    if not (MODELS / "node_modules" / ".package-lock.json").exists():  # npm writes it last.
        done = run(npm, "ci", "--ignore-scripts", "--prefix", MODELS)
        assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path_factory.mktemp("models")
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "node_modules").symlink_to(MODELS / "node_modules")
    return folder


def judge(folder: Path, custom: list[dict[str, Any]]) -> str:
    """Return what the compiler (no unknown key) and the schemas (no wrong value) say of custom resources."""
    imports, checks = [], []
    for number, document in enumerate(custom):
        package = "gateway-api" if document["apiVersion"] == GATEWAY else "prometheus-operator"
        module = f"@kubernetes-models/{package}/{document['apiVersion']}/{document['kind']}"
        imports.append(f'import {{ {document["kind"]} as Kind{number} }} from "{module}";')
        # The class adds both itself.
        literal = {key: value for key, value in document.items() if key not in ("apiVersion", "kind")}
        checks.append(f"new Kind{number}({json.dumps(literal)}).validate();")
    (folder / "check.ts").write_text("\n".join([*imports, *checks]))
    options = "--strict --skipLibCheck --target es2022 --module nodenext --moduleResolution nodenext"
    compiled = run(folder / "node_modules/.bin/tsc", *options.split(), "--outDir", folder, folder / "check.ts")
    if compiled.returncode:
        return compiled.stdout
    return run(need("node"), folder / "check.js").stderr


def test_the_custom_resources_are_valid_to_the_letter(models: Path) -> None:
    custom = [
        document for name in VALUES for document in documents(name) if document["apiVersion"] in (GATEWAY, OPERATOR)
    ]
    assert {each["kind"] for each in custom} == {"HTTPRoute", "ServiceMonitor", "PrometheusRule"}
    assert judge(models, custom) == ""


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"hostname": ["a.example"]}, '"hostname"\' does not exist'),
        ({"hostnames": ["*.*"]}, "must match pattern"),
        ({"rules": [{"timeouts": {"request": "soon"}}]}, "must match pattern"),
    ],
)
def test_a_wrong_custom_resource_would_be_noticed(models: Path, change: dict[str, Any], complaint: str) -> None:
    route = only("httproute", "HTTPRoute")
    assert complaint in judge(models, [{**route, "spec": {**route["spec"], **change}}])


def test_names_that_look_like_numbers_stay_names() -> None:
    values = {
        "turn": {"uris": ["turn:a"], "existingSecret": {"name": "1", "key": "2"}},
        "backplane": {"existingSecret": {"name": "3", "key": "4"}},
        "iceServers": [{"urls": "stun:a"}],
        "test": {"tokenSecret": {"name": "5", "key": "6"}},
        "nameOverride": "7",
        "fullnameOverride": "a",
        "ingress": {"enabled": True, "className": "8"},
        "service": {"type": "LoadBalancer", "loadBalancerClass": "9"},
        "serviceAccount": {"name": "10"},
        "priorityClassName": "11",
    }
    done = render(values, release="12")
    assert done.returncode == 0, done.stderr
    for document in yaml.safe_load_all(done.stdout):
        if document:
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_a_package_renders_the_same(tmp_path: Path) -> None:
    done = run(helm(), "package", CHART, "--destination", tmp_path)
    assert done.returncode == 0, done.stderr
    packed = render(VALUES["everything"], tmp_path / f"signaling-{VERSION}.tgz")
    assert packed.stdout == render(VALUES["everything"]).stdout


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"replicas": 2}, "Additional property replicas is not allowed"),
        ({"replicaCount": "two"}, "replicaCount: Invalid type. Expected: integer, given: string"),
        ({"config": {"ping-intervall": 20}}, "config: Additional property ping-intervall is not allowed"),
        ({"config": {"ping-interval": "soon"}}, "config.ping-interval: Invalid type. Expected: number, given: string"),
        ({"config": {"metadata-updates": "yes"}}, "config.metadata-updates: Invalid type. Expected: boolean"),
        ({"config": {"listen": "tcp:80"}}, "config: Additional property listen is not allowed"),
        ({"config": {"topics": [{"match": "*"}]}}, "max-peers is required"),
        ({"image": {"digest": "latest"}}, "image.digest: Does not match pattern"),
        ({"auth": {"keys": "k", "algorithm": "none"}}, "auth.algorithm must be one of the following"),
        ({"service": {"type": "External"}}, "service.type must be one of the following"),
        (
            {"replicaCount": 2},
            "2 pods without a backplane: peers of a topic on different pods would not see each other",
        ),
        ({"autoscaling": {"enabled": True}}, "10 pods without a backplane"),
        ({"turn": {"uris": ["turn:a"]}}, "turn.uris: a secret is needed, in turn.secret or turn.existingSecret"),
        ({"turn": {"secret": "x"}}, "turn.secret or turn.existingSecret: it has no use without turn.uris"),
        ({"webhook": {"url": "https://a"}}, "webhook.url: a secret is needed"),
        ({"admin": {"enabled": True}}, "admin.enabled: a secret is needed, in admin.tokens or admin.existingSecret"),
        ({"backplane": {"passwordSecret": {"name": "x"}}}, "backplane.passwordSecret: set backplane.url"),
        ({"httpRoute": {"enabled": True}}, "httpRoute.enabled: name the Gateway in httpRoute.parentRefs"),
        ({"auth": {"keys": "k"}, "config": {"auth": "unix"}}, "config.auth: the chart sets this option itself"),
        ({"config": {"metrics-listen": "tcp:1"}}, "config.metrics-listen: the chart sets this option itself"),
        (
            {"backplane": {"url": "redis://a"}, "config": {"backplane": "redis://b"}},
            "config.backplane: the chart sets this option itself",
        ),
        (
            {
                "backplane": {"url": "redis://a"},
                "autoscaling": {"enabled": True, "targetCPUUtilizationPercentage": 0},
            },
            "autoscaling.enabled: it needs targetCPUUtilizationPercentage or metrics",
        ),
        (
            {"backplane": {"url": "redis://a"}, "autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 2}},
            "autoscaling.minReplicas: more than autoscaling.maxReplicas",
        ),
        (
            {"backplane": {"url": "redis://user:password@a", "passwordSecret": {"name": "x"}}},
            "backplane.url: it has a password, and would be in a ConfigMap",
        ),
        ({"config": {"backplane": "redis://:p@a"}}, "config.backplane: it has a password, and would be in a ConfigMap"),
        ({"auth": {"issuer": "https://a"}}, "auth: without auth.keys or auth.existingSecret everybody may join"),
        ({"admin": {"enabled": True, "tokens": ["short"]}}, "admin.tokens.0: String length must be greater"),
        ({"metrics": {"port": 8081}}, "metrics.port: 8081 is the port of the clients; choose another"),
        (
            {"admin": {"enabled": True, "port": 9090, "existingSecret": {"name": "x"}}},
            "admin.port: 9090 is the port of the metrics; choose another",
        ),
        (
            {"metrics": {"enabled": False, "serviceMonitor": {"enabled": True}}},
            "metrics.serviceMonitor.enabled: it has no use without metrics.enabled",
        ),
        ({"service": {"nodePort": 30080}}, "service.nodePort: it needs service.type NodePort or LoadBalancer"),
        (
            {"service": {"type": "NodePort", "loadBalancerClass": "a"}},
            "service.loadBalancerClass: it needs service.type LoadBalancer",
        ),
        ({"podLabels": {"app.kubernetes.io/name": "a"}}, "podLabels: the chart sets app.kubernetes.io/name itself"),
        ({"nameOverride": "My Name"}, "nameOverride: Does not match pattern"),
        ({"fullnameOverride": "1"}, "fullnameOverride: Does not match pattern"),
        ({"extraEnv": [{"name": "TZ", "value": 5}]}, "extraEnv.0.value: Invalid type. Expected: string"),
        # A key of a group that has only comments below it.
        ({"ingress": None}, "ingress is required"),
        ({"metrics": {"dashboard": None}}, "dashboard is required"),
        ({"startupProbe": None}, "startupProbe is required"),
    ],
)
def test_wrong_values_are_refused_with_what_is_right(values: dict[str, Any], complaint: str) -> None:
    done = render(values)
    assert done.returncode != 0
    assert complaint in done.stderr


@pytest.mark.parametrize("release", ["8", "calls.example"])
def test_a_release_whose_name_is_none_for_a_service_is_refused(release: str) -> None:
    assert f'the name "{release}-signaling" is none for a Service' in render({}, release=release).stderr
    assert render({"fullnameOverride": "calls"}, release=release).returncode == 0


# The page about it

PAGE = (TREE / "docs" / "kubernetes.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_the_values_of_the_page_are_right(block: str) -> None:
    done = render(yaml.safe_load(block))
    assert (done.returncode, done.stderr) == (0, "")


def test_the_commands_of_the_page_name_what_the_chart_makes() -> None:
    block = {"admin": {"enabled": True, "existingSecret": {"name": "x"}}}
    made = [each for each in yaml.safe_load_all(render(block).stdout) if each]
    names = {f"{each['kind'].lower()}/{each['metadata']['name']}" for each in made}
    assert set(re.findall(r"\b(?:deployment|service)/[\w-]+", PAGE)) <= names
    [created] = re.findall(r"secret generic signaling-secrets .*\n +(.*)", PAGE)
    keys = set(re.findall(r"--from-file=([\w-]+)", created))
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert keys == {values[name]["existingSecret"]["key"] for name in ("turn", "auth", "admin")}
    assert values["test"]["tokenSecret"]["key"] == "token"


# What the objects mean


@every_set
def test_the_services_reach_the_pods_of_the_server_and_no_other(name: str) -> None:
    template = only(name, "Deployment")["spec"]["template"]
    labels, ports = template["metadata"]["labels"], {port["name"] for port in container(name)["ports"]}
    assert selects(only(name, "Deployment")["spec"]["selector"]["matchLabels"], labels)
    probe = only(name, "Pod", "-probe")["metadata"]["labels"]
    for service in (each for each in documents(name) if each["kind"] == "Service"):
        assert selects(service["spec"]["selector"], labels)
        assert not selects(service["spec"]["selector"], probe)
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for budget in (each for each in documents(name) if each["kind"] == "PodDisruptionBudget"):
        assert selects(budget["spec"]["selector"]["matchLabels"], labels)
    for constraint in pod(name)["topologySpreadConstraints"]:
        assert selects(constraint["labelSelector"]["matchLabels"], labels)


@every_set
def test_no_secret_is_anywhere_but_in_a_secret(name: str) -> None:
    others = json.dumps([document for document in documents(name) if document["kind"] != "Secret"])
    assert not [secret for secret in SECRETS if secret in others]


@every_set
def test_a_pod_has_no_rights_and_no_token(name: str) -> None:
    for spec in (pod(name), only(name, "Pod", "-probe")["spec"]):
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        [only_container] = spec["containers"]
        assert only_container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize("name", ["defaults", "everything", "existing secrets"])
def test_the_grace_period_is_longer_than_a_drain_may_take(name: str, tmp_path: Path) -> None:
    limits = options(name, tmp_path).limits
    longest = limits.drain_delay_seconds + limits.drain_spread_seconds + limits.shutdown_timeout_seconds
    of_webhooks = 5
    assert pod(name)["terminationGracePeriodSeconds"] > longest + of_webhooks


def test_the_drain_delay_outlasts_the_readiness_probe(tmp_path: Path) -> None:
    probe = container("defaults")["readinessProbe"]
    assert probe["httpGet"] == {"path": "/readyz?exclude=backplane&exclude=workers", "port": "http"}
    delay = options("defaults", tmp_path).limits.drain_delay_seconds
    assert delay > probe["periodSeconds"] * probe["failureThreshold"]


def test_all_new_pods_start_first_if_a_proxy_hashes_topics() -> None:
    def surge(name: str) -> Any:
        return only(name, "Deployment")["spec"]["strategy"]["rollingUpdate"]

    assert surge("ingress") == {"maxSurge": "100%", "maxUnavailable": 0}
    assert surge("cluster") == {"maxSurge": "25%", "maxUnavailable": 0}
    hashes = "nginx.ingress.kubernetes.io/upstream-hash-by"
    assert only("ingress", "Ingress")["metadata"]["annotations"][hashes] == "$uri"
    assert hashes not in only("everything", "Ingress")["metadata"]["annotations"]


def test_both_peers_of_the_probe_reach_one_pod_if_pods_do_not_share_topics() -> None:
    assert only("ingress", "Service")["spec"]["sessionAffinity"] == "ClientIP"
    assert "sessionAffinity" not in only("cluster", "Service")["spec"]


def test_only_what_clients_need_is_public() -> None:
    client, demo = {"/" + path for path in pages(client=True, demo=False)}, pages(client=True, demo=True)
    for rule in only("ingress", "Ingress")["spec"]["rules"]:
        paths = {(path["path"], path["pathType"]) for path in rule["http"]["paths"]}
        assert paths == {("/ws/", "Prefix"), *(("/" + path, "Exact") for path in demo)}
    [rule] = only("httproute", "HTTPRoute")["spec"]["rules"]
    found = {(match["path"]["value"], match["path"]["type"]) for match in rule["matches"]}
    assert found == {("/signal/ws/", "PathPrefix"), *((f"/signal{path}", "Exact") for path in client)}
    [backend] = rule["backendRefs"]
    assert backend == {"name": "signaling", "port": only("httproute", "Service")["spec"]["ports"][0]["port"]}


def test_the_ingress_waits_longer_than_our_pings(tmp_path: Path) -> None:
    limits = options("ingress", tmp_path).limits
    annotations = only("ingress", "Ingress")["metadata"]["annotations"]
    for way in ("read", "send"):
        seconds = float(annotations[f"nginx.ingress.kubernetes.io/proxy-{way}-timeout"])
        assert seconds > limits.ping_interval_seconds + limits.ping_timeout_seconds


def test_prometheus_scrapes_the_metrics_alone_as_the_job_of_the_alerts() -> None:
    monitor = only("everything", "ServiceMonitor")["spec"]
    selected = [
        service["metadata"]["name"]
        for service in documents("everything")
        if service["kind"] == "Service" and selects(monitor["selector"]["matchLabels"], service["metadata"]["labels"])
    ]
    assert selected == ["signaling-metrics"]
    [endpoint] = monitor["endpoints"]
    assert endpoint["port"] in {port["name"] for port in only("everything", "Service", "-metrics")["spec"]["ports"]}
    assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": "signaling"}]
    alerts = (TREE / "deploy" / "alerts.yml").read_text()
    assert 'job="signaling"' in alerts
    assert only("everything", "PrometheusRule")["spec"] == yaml.safe_load(alerts)
    dashboard = only("everything", "ConfigMap", "-dashboard")
    assert json.loads(dashboard["data"]["signaling.json"]) == json.loads((TREE / "deploy/grafana.json").read_text())


def test_the_network_policy_lets_the_probe_in_but_only_named_pods_to_the_admin_api() -> None:
    policy = only("everything", "NetworkPolicy")["spec"]
    probe = only("everything", "Pod", "-probe")["metadata"]["labels"]
    allowed = {rule["ports"][0]["port"]: rule.get("from") for rule in policy["ingress"]}
    assert list(allowed) == ["http", "metrics", "admin"]
    assert any(selects(peer["podSelector"]["matchLabels"], probe) for peer in allowed["http"] if "podSelector" in peer)
    assert allowed["metrics"] is None
    assert allowed["admin"] == VALUES["everything"]["networkPolicy"]["adminFrom"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]


def test_the_autoscaler_has_the_number_of_pods_to_itself() -> None:
    assert "replicas" not in only("autoscaling", "Deployment")["spec"]
    scaler = only("autoscaling", "HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "calls"}
    assert [metric["type"] for metric in scaler["metrics"]] == ["Resource", "Pods"]


def test_a_change_of_options_or_secrets_restarts_the_pods() -> None:
    def annotations(values: dict[str, Any]) -> dict[str, str]:
        found = [each for each in yaml.safe_load_all(render(values).stdout) if each and each["kind"] == "Deployment"]
        checksums: dict[str, str] = found[0]["spec"]["template"]["metadata"]["annotations"]
        return checksums

    turn = {"uris": ["turn:a"], "secret": "one"}
    first = annotations({"turn": turn})
    assert annotations({"turn": turn}) == first
    assert annotations({"turn": {**turn, "secret": "two"}}) != first
    assert annotations({"turn": turn, "config": {"log-level": "warn"}}) != first


def test_the_image_is_the_one_of_this_version() -> None:
    assert container("defaults")["image"].endswith(f":{VERSION}")
    assert container("everything")["image"].endswith("twisted-signaling@sha256:" + "0" * 64)


# What the container does, as a process here


def mounted(name: str, folder: Path) -> dict[str, str]:
    """Write the volume of the container into a folder; returns its environment."""
    secrets = {key: dict(values) for key, values in EXISTING.items()}
    secrets["mine"]["keys"] = issuer.public_pem("EdDSA").decode()
    for document in documents(name):
        if document["kind"] == "Secret":
            data = {key: base64.b64decode(value).decode() for key, value in document["data"].items()}
            secrets[document["metadata"]["name"]] = data
    # As the kubelet does: files are links into a folder that is itself a link, which it replaces to change them all.
    hidden = folder / "..2026_11_28"
    hidden.mkdir()
    (folder / "..data").symlink_to(hidden.name)
    [volume] = [each for each in pod(name)["volumes"] if each["name"] == "config"]
    for source in volume["projected"]["sources"]:
        [(kind, reference)] = source.items()
        held = only(name, "ConfigMap")["data"] if kind == "configMap" else secrets[reference["name"]]
        for item in reference["items"]:
            text = held[item["key"]]
            (hidden / item["path"]).write_text(issuer.public_pem("EdDSA").decode() if text == "KEYS" else text)
            (folder / item["path"]).symlink_to(f"..data/{item['path']}")
    environment = {}
    for variable in container(name).get("env", []):
        reference = variable.get("valueFrom", {}).get("secretKeyRef")
        value = variable["value"] if reference is None else secrets[reference["name"]][reference["key"]]
        environment[variable["name"]] = value
    return environment


def arguments(name: str, folder: Path) -> list[str]:
    """Return the container's command line, with its volume elsewhere."""
    [mount] = [each for each in container(name)["volumeMounts"] if each["name"] == "config"]
    assert mount["mountPath"] == MOUNT
    command, *rest = [*container(name)["command"], *container(name)["args"]]
    return [str(BIN / command), *(part.replace(MOUNT, str(folder)) for part in rest)]


def options(name: str, folder: Path) -> Options:
    """Parse the container's arguments as the server does."""
    found = Options(mounted(name, folder))
    found.parseOptions(arguments(name, folder)[1:])
    return found


@every_set
def test_the_server_takes_its_options_and_files(name: str, tmp_path: Path) -> None:
    found = options(name, tmp_path)
    given = {key: value for key, value in VALUES[name].get("config", {}).items() if key != "topics"}
    for key, value in given.items():
        text = {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else value
        assert found.settings[key].texts == tuple(map(str, text if isinstance(text, list) else [text]))
    assert found.port == container(name)["ports"][0]["containerPort"]
    assert found.settings["topics"].value == VALUES[name].get("config", {}).get("topics", [])
    assert (found["backplane"] is not None) == ("backplane" in VALUES[name])
    assert bool(found["auth"]) == ("auth" in VALUES[name])


def test_metrics_and_the_admin_api_listen_on_the_ports_of_their_services(tmp_path: Path) -> None:
    found = options("existing secrets", tmp_path)
    assert (found["metrics-listen"], found["admin-listen"]) == ("tcp:9090", "tcp:8082")
    for suffix, port in (("-metrics", 9090), ("-admin", 8082)):
        [service] = only("existing secrets", "Service", suffix)["spec"]["ports"]
        assert {"name": service["targetPort"], "containerPort": port} in container("existing secrets")["ports"]
    (tmp_path / "other").mkdir()
    assert options("autoscaling", tmp_path / "other")["metrics-listen"] == "tcp6:9090"


def start(name: str, folder: Path, *more: str, env: dict[str, str] | None = None, redis: str = "") -> Server:
    """Start what the container runs, on ports that are free.

    Args:
        redis: the address of the Redis that has the name ``redis:6379`` in the cluster.
    """
    folder.mkdir()
    environment = mounted(name, folder) | (env or {})
    if redis:
        file = folder / "signaling.toml"
        file.write_text(file.read_text().replace("redis:6379", redis))
    free = ["--port=0", "--metrics-listen=tcp:0:interface=127.0.0.1", "--drain-delay=0"]
    return launch([*arguments(name, folder), *free, *more], env=environment)


def serving(server: Server) -> int:
    """Wait until the log, in JSON, says that the server listens; returns its port."""
    server.port = int(server.wait_for(r'"event": "listening", "address": ".*:(\d+)"')[1])
    return server.port


def probed(name: str, port: int, token: str = "") -> None:
    """Run what the pod of ``helm test`` runs."""
    [probe] = only(name, "Pod", "-probe")["spec"]["containers"]
    [url] = probe["args"]
    service = only(name, "Service")
    host = f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert host in url
    done = subprocess.run(
        [BIN / probe["command"][0], url.replace(host, f"127.0.0.1:{port}")],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        env={**os.environ, **({"SIGNALING_TOKEN": token} if "env" in probe else {})},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ok: ")


def test_a_server_of_the_defaults_starts_serves_and_stops(tmp_path: Path) -> None:
    server = start("defaults", tmp_path / "pod")
    try:
        serving(server)
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert server.get(container("defaults")[kind]["httpGet"]["path"])[0] == 200
        probed("defaults", server.port)
        assert json.loads(server.lines[-1])["event"]
        assert server.stop() == 0
        server.assert_no_problem()
    finally:
        server.end()


def test_a_server_with_everything_on_serves_those_with_a_token(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    redis = RedisServer(tmp_path / "redis", password="redis-password-in-a-url")
    admin = [
        "--admin-listen=tcp:0:interface=127.0.0.1",
        "--webhook=http://127.0.0.1:9/",
        "--ice-source=http://127.0.0.1:9/",
    ]
    url = f"redis://:redis-password-in-a-url@127.0.0.1:{redis.port}"
    server = start("everything", tmp_path / "pod", *admin, env={"SIGNALING_BACKPLANE": url})
    try:
        serving(server)
        server.wait_until_ready()
        probed("everything", server.port, issuer.token({"prefixes": ["probe-"]}, iss=ISSUER))
        assert server.stop() == 0
    finally:
        server.end()
        redis.end()


def test_pods_of_a_cluster_share_topics_through_a_redis_with_a_password(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    redis = RedisServer(tmp_path / "redis", password=EXISTING["redis"]["redis-password"])
    address = f"127.0.0.1:{redis.port}"
    servers = [start("cluster", tmp_path / f"pod{number}", redis=address) for number in range(2)]
    try:
        for server in servers:
            serving(server)
            server.wait_until_ready()
            probed("cluster", server.port)
        for server in servers:
            assert server.stop() == 0
    finally:
        for server in servers:
            server.end()
        redis.end()


# What Helm says after an installation


class Cluster(BaseHTTPRequestHandler):
    """As much of the Kubernetes API as a dry run asks for: which kinds there are, and that no object exists."""

    kinds: ClassVar = {
        "v1": ("ConfigMap", "Secret", "Service", "ServiceAccount"),
        "apps/v1": ("Deployment",),
        "policy/v1": ("PodDisruptionBudget",),
        "networking.k8s.io/v1": ("Ingress",),
    }

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        answer: dict[str, Any] | None = None
        if path == "/version":
            answer = {"major": "1", "minor": "32", "gitVersion": "v1.32.0"}
        elif path == "/api":
            answer = {"kind": "APIVersions", "versions": ["v1"]}
        elif path == "/apis":
            versions = [{"groupVersion": name, "version": "v1"} for name in self.kinds if "/" in name]
            groups = [
                {"name": each["groupVersion"].partition("/")[0], "versions": [each], "preferredVersion": each}
                for each in versions
            ]
            answer = {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        elif (name := path.removeprefix("/apis/").removeprefix("/api/")) in self.kinds:
            resources = [
                {"name": f"{kind.lower()}s", "singularName": "", "namespaced": True, "kind": kind, "verbs": ["get"]}
                for kind in self.kinds[name]
            ]
            answer = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": resources}
        missing_object = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        body = json.dumps(answer or missing_object).encode()
        self.send_response(200 if answer else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Cluster) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def notes(cluster: str, folder: Path, values: dict[str, Any]) -> str:
    (folder / "values.yaml").write_text(json.dumps(values))
    done = run(
        *(helm(), "install", "signaling", CHART, "--dry-run=client", "--disable-openapi-validation"),
        *("--kube-apiserver", cluster, "--namespace", "calls", "--values", folder / "values.yaml"),
        folder=folder,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("NOTES:\n")[2]


def test_the_notes_say_how_to_try_it_and_what_is_missing(cluster: str, tmp_path: Path) -> None:
    plain = notes(cluster, tmp_path, {})
    assert "signaling.calls:80, topics at /ws/{topic}" in plain
    assert "helm test signaling --namespace calls --logs" in plain
    assert "kubectl port-forward --namespace calls service/signaling 8081:80" in plain
    assert "WARNING" not in plain
    careless = notes(
        cluster,
        tmp_path,
        {
            "ingress": {"enabled": True},
            "auth": {"keys": "k"},
            "config": {"drain-delay": 1},
            "terminationGracePeriodSeconds": 5,
        },
    )
    assert "WARNING: config.trusted-proxy is not set" in careless
    assert "WARNING: config.drain-delay is not longer" in careless
    assert "WARNING: terminationGracePeriodSeconds is shorter than the 31 s" in careless
    assert "name its Secret in test.tokenSecret" in careless
    assert "port-forward" not in careless
