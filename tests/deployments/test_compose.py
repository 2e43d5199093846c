"""compose.yaml: valid, hardened, and its services find each other."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import yaml

from tests.deployments.compose_stack import COMPOSE, NAMED_VOLUMES, PROGRAMS, SERVICES, TREE, Stack, stack
from tests.harness.server import launch, wait_until
from tests.programs import free_port, need

ALERTS = yaml.safe_load((TREE / "deploy" / "alerts.yml").read_text())
MAKE_SECRETS = TREE / "deploy" / "compose" / "make_secrets.sh"
PINNED = re.compile(r"[\w/-]+:v?\d+\.\d+\.\d+[\w-]*@sha256:[0-9a-f]{64}")
TURNSERVER = TREE / "deploy" / "turnserver.conf"


def test_the_file_follows_the_compose_specification(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text((TREE / "compose.yaml").read_text().replace("read_only: true", "read_only_root: true"))
    command = [need("npx"), "--yes", "dclint@3.1.0", "--config", Path(__file__).with_name("dclint.yaml")]
    command += ["--formatter", "json", TREE / "compose.yaml", wrong]
    checked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    found = {file["filePath"]: [message["rule"] for message in file["messages"]] for file in json.loads(checked.stdout)}
    assert "invalid-schema" in found.pop(str(wrong))
    assert not any(found.values()), checked.stdout


def test_a_linter_finds_nothing_dangerous() -> None:
    command = [PROGRAMS / "compose-lint", TREE / "compose.yaml"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_is_hardened(service: str) -> None:
    said = SERVICES[service]
    assert said["read_only"] is True
    assert said["cap_drop"] == ["ALL"]
    assert said["security_opt"] == ["no-new-privileges:true"]
    assert "healthcheck" in said


def test_images_of_others_are_pinned() -> None:
    images = [said["image"] for said in SERVICES.values() if "image" in said]
    assert len(images) == 4
    for image in images:
        assert PINNED.fullmatch(image)


def test_every_mounted_file_and_volume_exists() -> None:
    sources = {volume.split(":")[0] for said in SERVICES.values() for volume in said.get("volumes", ())}
    files = {source for source in sources if source.startswith("./")}
    assert sources - files == NAMED_VOLUMES
    assert [name for name in files if not (TREE / name).is_file()] == []


def test_only_what_clients_need_is_open_to_other_machines() -> None:
    published = {port for said in SERVICES.values() for port in said.get("ports", ())}
    assert {port for port in published if not port.startswith("127.0.0.1:")} == {
        *("8081:8081", "3478:3478/udp", "3478:3478/tcp", "49160-49199:49160-49199/udp"),
    }
    assert COMPOSE["networks"]["backplane"] == {"internal": True}
    assert SERVICES["redis"]["networks"] == ["backplane"]


def test_a_secret_is_seen_by_those_who_need_it() -> None:
    seen = {
        name: {volume.split(":")[0] for volume in said.get("volumes", ()) if "-secret:" in volume}
        for name, said in SERVICES.items()
        if name != "secrets"
    }
    assert seen == {
        "signaling": {"redis-secret", "turn-secret"},
        "redis": {"redis-secret"},
        "coturn": {"turn-secret"},
        "prometheus": set(),
        "grafana": {"grafana-secret"},
    }


def make_secrets(folder: Path) -> dict[str, str]:
    for name in ("redis", "turn", "grafana"):
        (folder / name).mkdir(exist_ok=True)
    subprocess.run(["sh", MAKE_SECRETS, folder, TURNSERVER], check=True, timeout=60)
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_secrets_are_made_once(tmp_path: Path) -> None:
    made = make_secrets(tmp_path)
    for name in ("redis/password", "turn/secret", "grafana/password"):
        assert re.fullmatch("[0-9a-f]{64}", made[name])
    assert len(set(made.values())) == len(made) == 5
    assert make_secrets(tmp_path) == made
    shutil.rmtree(tmp_path / "turn")
    assert make_secrets(tmp_path)["turn/secret"] != made["turn/secret"]


def test_coturn_reads_what_is_shipped_and_the_secret_of_the_server(tmp_path: Path) -> None:
    made = make_secrets(tmp_path)
    assert made["turn/turnserver.conf"] == f"{TURNSERVER.read_text()}static-auth-secret={made['turn/secret']}\n"


def test_redis_grants_the_rights_that_the_documents_name(tmp_path: Path) -> None:
    page = (TREE / "docs" / "redis.md").read_text()
    [named] = re.findall(r"^user signaling on >PASSWORD (.*)$", page, re.MULTILINE)
    [granted] = re.findall(r"^user signaling on #[0-9a-f]{64} (.*)$", make_secrets(tmp_path)["redis/users.acl"], re.M)
    assert granted == named


def test_promtool_accepts_the_configuration(tmp_path: Path) -> None:
    for source in ("compose/prometheus.yml", "alerts.yml"):
        shutil.copy(TREE / "deploy" / source, tmp_path)
    command = [need("promtool"), "check", "config", tmp_path / "prometheus.yml"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_grafana_finds_its_data_source_and_its_dashboard() -> None:
    [source] = yaml.safe_load((TREE / "deploy" / "compose" / "grafana-datasource.yml").read_text())["datasources"]
    [provider] = yaml.safe_load((TREE / "deploy" / "compose" / "grafana-dashboards.yml").read_text())["providers"]
    mounted = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert mounted["./deploy/grafana.json"] == home
    assert provider["options"]["path"] == str(Path(home).parent)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("compose")) as made:
        yield made


def test_two_peers_meet_and_the_backplane_is_up(running: Stack) -> None:
    assert running.run([str(PROGRAMS / "signaling-probe"), "ws://localhost:8081"]).startswith("ok")
    assert json.loads(running.get("http://localhost:8081/readyz")) == {"ready": True}
    assert "<title>" in running.get("http://localhost:8081/")


# A relay is asked for, with the credential of a welcome, and given back.
RELAY = """
import asyncio, json, websockets
from aioice.turn import create_turn_endpoint

async def main():
    async with websockets.connect("ws://localhost:8081/ws/room") as peer:
        [server] = json.loads(await peer.recv())["iceServers"]
    for url in server["urls"]:
        scheme, host, port, transport = url.replace("?transport=", ":").split(":")
        relay, _ = await create_turn_endpoint(
            asyncio.DatagramProtocol, server_addr=("127.0.0.1", int(port)), username=server["username"],
            password=server["credential"], transport=transport,
        )
        print(host, transport, relay.get_extra_info("sockname")[1])
        relay.close()

asyncio.run(main())
"""


def test_coturn_takes_the_credentials_of_the_server(running: Stack) -> None:
    lines = running.run([sys.executable, "-c", RELAY]).splitlines()
    relays = [line.split() for line in lines]
    assert [relay[:2] for relay in relays] == [["localhost", "udp"], ["localhost", "tcp"]]
    # Those that compose.yaml publishes.
    assert all(49160 <= int(relay[2]) <= 49199 for relay in relays)


# Two peers that both relay send to each other until both have received: a first datagram may come before a permission.
RELAY_TO_RELAY = """
import asyncio, json, websockets
from aioice.turn import create_turn_endpoint

class Peer(asyncio.DatagramProtocol):
    def __init__(self):
        self.received = asyncio.Event()

    def datagram_received(self, data, addr):
        self.received.set()

async def main():
    async with websockets.connect("ws://localhost:8081/ws/room") as peer:
        [server] = json.loads(await peer.recv())["iceServers"]
    relays = [
        await create_turn_endpoint(
            Peer, server_addr=("127.0.0.1", 3478), username=server["username"], password=server["credential"]
        )
        for _ in range(2)
    ]
    async with asyncio.timeout(30):
        for (one, _), (other, receiver) in (relays, relays[::-1]):
            while not receiver.received.is_set():
                for sender, target in ((one, other), (other, one)):
                    sender.sendto(b"hello", target.get_extra_info("sockname"))
                await asyncio.wait([asyncio.ensure_future(receiver.received.wait())], timeout=0.5)
    for relay, _ in relays:
        relay.close()
    print("received")

asyncio.run(main())
"""


def test_two_peers_that_both_relay_reach_each_other(running: Stack) -> None:
    assert running.run([sys.executable, "-c", RELAY_TO_RELAY]) == "received\n"


def test_redis_serves_the_server_alone(running: Stack) -> None:
    healthy = SERVICES["redis"]["healthcheck"]["test"]
    running.run(["sh", "-c", re.sub(r"(?<= )/run", f"{running.root('redis')}/run", healthy.replace("$$", "$"))])
    assert "NOAUTH" in running.run(["redis-cli", "get", "anything"])


@pytest.mark.parametrize("service", ["signaling", "coturn"])
def test_the_health_check_finds_a_healthy_service(running: Stack, service: str) -> None:
    [kind, *command] = SERVICES[service]["healthcheck"]["test"]
    assert kind == "CMD"
    running.run(command)


def test_prometheus_scrapes_the_server_and_has_the_alerts(running: Stack) -> None:
    def healthy() -> dict[str, str]:
        answer = json.loads(running.get("http://prometheus:9090/api/v1/targets"))
        targets = answer["data"]["activeTargets"]
        return {target["labels"]["instance"]: target["labels"]["job"] for target in targets if target["health"] == "up"}

    wait_until(lambda: healthy() == {"signaling:9091": "signaling", "localhost:9090": "prometheus"}, state=healthy)
    [group] = json.loads(running.get("http://prometheus:9090/api/v1/rules"))["data"]["groups"]
    assert [rule["name"] for rule in group["rules"]] == [rule["alert"] for rule in ALERTS["groups"][0]["rules"]]


def test_https_adds_a_proxy_that_the_server_trusts_alone() -> None:
    page = (TREE / "docs" / "docker.md").read_text()
    [named] = re.findall(r"^COMPOSE_FILE=compose\.yaml:(\S+)$", page, re.MULTILINE)
    added = yaml.safe_load((TREE / named).read_text().replace("!override ", ""))
    proxy, server = added["services"]["caddy"], added["services"]["signaling"]
    address = proxy["networks"]["default"]["ipv4_address"]
    [subnet] = [ip_network(pool["subnet"]) for pool in added["networks"]["default"]["ipam"]["config"]]
    assert ip_address(address) in subnet
    # Docker gives addresses of this range to the other services.
    [others] = [ip_network(pool["ip_range"]) for pool in added["networks"]["default"]["ipam"]["config"]]
    assert others.subnet_of(subnet)
    assert ip_address(address) not in others
    assert PINNED.fullmatch(proxy["image"])
    assert server["environment"] == {"SIGNALING_TRUSTED_PROXY": address}
    assert server["ports"] == ["127.0.0.1:8081:8081"]
    hardening = {"read_only", "cap_drop", "security_opt", "init", "restart", "logging"}
    assert {name: proxy[name] for name in hardening} == {name: SERVICES["signaling"][name] for name in hardening}


def test_caddy_accepts_the_configuration_for_https() -> None:
    path = TREE / "deploy" / "compose" / "Caddyfile"
    command = [need("caddy"), "adapt", "--validate", "--adapter", "caddyfile", "--config", str(path)]
    environment = {**os.environ, "PUBLIC_HOST": "signaling.example.com"}
    checked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert checked.returncode == 0, checked.stderr
    assert '"dial":"signaling:8081"' in checked.stdout


def test_no_log_of_caddy_tells_a_secret(tmp_path: Path) -> None:
    port = free_port()
    text = (TREE / "deploy" / "compose" / "Caddyfile").read_text()
    path = tmp_path / "Caddyfile"
    # Without its own ports, and with a server that is down.
    path.write_text(text.replace("\n{\n", "\n{\n\tadmin off\n").replace("signaling:8081", f"127.0.0.1:{free_port()}"))
    command = [need("caddy"), "run", "--adapter", "caddyfile", "--config", str(path)]
    places = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "PUBLIC_HOST": f"http://localhost:{port}"}
    caddy = launch(command, env=places, port=port)
    try:
        caddy.wait_until_accepting()
        headers = {
            "Sec-WebSocket-Protocol": "signaling, signaling.bearer.the-secret",
            "Referer": "http://a/?the-secret",
        }
        request = Request(f"http://localhost:{port}/ws/room?token=the-secret", headers=headers)
        with pytest.raises(HTTPError, match="502"):
            urlopen(request, timeout=60)
        caddy.wait_for('"/ws/room"')
    finally:
        caddy.end()
    assert "the-secret" not in caddy.log


def test_the_page_names_every_service_and_variable() -> None:
    page = (TREE / "docs" / "docker.md").read_text()
    [table] = re.findall(r"^\| service .*?\n\n", page, re.MULTILINE | re.DOTALL)
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == sorted(SERVICES)
    used = set(re.findall(r"\$\{(\w+)", (TREE / "compose.yaml").read_text()))
    assert used == {"PUBLIC_HOST", "PUBLIC_IP"}
    assert used == set(re.findall(r"^([A-Z_]+)=", page, re.MULTILINE)) - {"COMPOSE_FILE"}
    for path in re.findall(r"/run/secrets/(\S+)", page):
        assert f"$secrets/{path}" in MAKE_SECRETS.read_text()
