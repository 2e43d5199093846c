"""The manifest for Kubernetes, as far as it can be tried without a cluster."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from signaling import Limits, Options

MANIFEST = Path(__file__).parents[2] / "deploy" / "kubernetes.yaml"


def documents() -> dict[str, Any]:
    return {document["kind"]: document for document in yaml.safe_load_all(MANIFEST.read_text())}


def container() -> dict[str, Any]:
    (only,) = documents()["Deployment"]["spec"]["template"]["spec"]["containers"]
    return only


def limits() -> Limits:
    arguments = container()["args"]
    options = Options({})
    options.parseOptions(arguments[arguments.index("signaling") + 1 :])
    return options.limits


@pytest.mark.parametrize("version", ["1.29", "newest"])
def test_the_manifest_is_valid_to_the_letter(version: str) -> None:
    program = [str(Path(sys.executable).parent / "kubernetes-validate"), "--strict"]
    chosen = [] if version == "newest" else ["-k", version]
    done = subprocess.run([*program, *chosen, str(MANIFEST)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall("passed for resource", done.stdout + done.stderr)) == 4


def test_the_grace_period_is_longer_than_a_drain_may_take() -> None:
    bounds = limits()
    longest = bounds.drain_delay_seconds + bounds.drain_spread_seconds + bounds.shutdown_timeout_seconds
    assert documents()["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > longest


def test_the_drain_delay_outlasts_the_readiness_probe() -> None:
    probe = container()["readinessProbe"]
    assert probe["httpGet"]["path"] == "/readyz?exclude=backplane&exclude=workers"
    assert limits().drain_delay_seconds > probe["periodSeconds"] * probe["failureThreshold"]


def test_the_ingress_waits_longer_than_our_pings() -> None:
    annotations = documents()["Ingress"]["metadata"]["annotations"]
    for way in ("read", "send"):
        seconds = float(annotations[f"nginx.ingress.kubernetes.io/proxy-{way}-timeout"])
        assert seconds > limits().ping_interval_seconds + limits().ping_timeout_seconds


def test_everything_means_the_same_pods() -> None:
    found = documents()
    pods = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == pods
    assert found["Service"]["spec"]["selector"] == pods
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == pods
    (port,) = container()["ports"]
    assert port["containerPort"] == limits_port()
    assert found["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]


def limits_port() -> int:
    return Options({}).port
