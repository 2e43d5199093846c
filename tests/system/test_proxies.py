"""The configurations of ``deploy/`` in real proxies, with two servers behind them (docs/proxies.md)."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from http.client import HTTPSConnection
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from signaling import Limits
from tests.harness.server import Node, wait_until
from tests.system.reverse_proxies import (
    DEPLOY,
    QUERY,
    SECRET,
    ActivatedNode,
    ReverseProxy,
    reconnecting_peers,
    topics_at,
    two_nodes,
)

PROXIES = ("haproxy", "nginx", "caddy")
NOWHERE = ("127.0.0.1:1", "127.0.0.1:2")
TOPICS = [f"room-{n}" for n in range(8)]
# A token of a browser is in a header.
SUBPROTOCOLS = [Subprotocol("signaling"), Subprotocol(f"signaling.bearer.{SECRET}")]


def homes(nodes: tuple[Node, Node], topics: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return which of ``topics`` are on which node."""

    def found() -> list[list[str]]:
        return [sorted(topics_at(node) & set(topics)) for node in nodes]

    wait_until(lambda: {*found()[0], *found()[1]} == set(topics), state=found)
    first, second = found()
    assert not set(first) & set(second)
    return first, second


def wait_for_line(nodes: tuple[Node, Node], line: str) -> None:
    def logs() -> list[str]:
        return [node.server.log for node in nodes]

    wait_until(lambda: any(line in log for log in logs()), state=logs)


def addresses(nodes: tuple[Node, Node]) -> list[str]:
    return [node.address for node in nodes]


def others_of(peer: ClientConnection) -> set[str]:
    """Return the peers that a new one meets."""
    assert json.loads(peer.recv(60))["type"] == "welcome"
    return {other["id"] for other in json.loads(peer.recv(60))["peers"]}


# Without a restart: the same nodes serve all tests


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Node, Node]]:
    with two_nodes() as both:
        yield both


@pytest.fixture(scope="module", params=PROXIES)
def proxy(
    request: pytest.FixtureRequest, nodes: tuple[Node, Node], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ReverseProxy]:
    with ReverseProxy(request.param, tmp_path_factory.mktemp(request.param), addresses(nodes)) as running:
        yield running


@pytest.mark.parametrize("name", PROXIES)
def test_the_program_takes_its_configuration(name: str, tmp_path: Path) -> None:
    status, output = ReverseProxy(name, tmp_path, NOWHERE).check()
    assert status == 0, output
    # Caddy warns of what is right for this machine alone.
    assert not re.search(r"\[(warn|emerg|WARNING|ALERT)\]|level\":\"error", output), output


def test_a_topic_is_on_one_node_and_topics_are_on_both(proxy: ReverseProxy, nodes: tuple[Node, Node]) -> None:
    with ExitStack() as stack:
        for n in range(16):
            url = proxy.url(f"/ws/{proxy.name}-{n}")
            first = stack.enter_context(connect(url, ssl=proxy.context()))
            # Another query must not make another node of it.
            second = stack.enter_context(connect(f"{url}?metadata=%7B%22n%22%3A{n}%7D", ssl=proxy.context()))
            assert len(others_of(first)) == 0
            assert len(others_of(second)) == 1
        assert all(homes(nodes, [f"{proxy.name}-{n}" for n in range(16)]))


@pytest.mark.parametrize(
    "spellings",
    [("a{}", "%61{}"), ("a%2Fb{}", "a%2fb{}", "%61%2F%62{}"), ("%C3%A9{}", "%c3%a9{}"), ("a+b{}", "a%2Bb{}")],
)
def test_every_spelling_of_a_topic_reaches_the_same_node(proxy: ReverseProxy, spellings: tuple[str, ...]) -> None:
    # With several topics, as two spellings that are hashed apart may still meet on one of two nodes.
    for n in range(8):
        with ExitStack() as stack:
            for others, spelling in enumerate(spellings):
                url = proxy.url(f"/ws/{proxy.name}-{spelling.format(n)}")
                assert len(others_of(stack.enter_context(connect(url, ssl=proxy.context())))) == others


def test_the_nodes_learn_the_clients_real_address(proxy: ReverseProxy, nodes: tuple[Node, Node]) -> None:
    topic = f"{proxy.name}-address"
    claim = {"X-Forwarded-For": "198.51.100.7"}
    with connect(
        proxy.url(f"/ws/{topic}"), ssl=proxy.context(), additional_headers=claim, source_address=("127.0.0.2", 0)
    ) as peer:
        others_of(peer)
        wait_for_line(nodes, f"joined {topic!r} from 127.0.0.2")


def test_no_log_tells_a_secret(proxy: ReverseProxy) -> None:
    url = proxy.url(f"/ws/{proxy.name}-log{QUERY}")
    with connect(url, ssl=proxy.context(), subprotocols=SUBPROTOCOLS) as peer:
        others_of(peer)
    wait_until(lambda: f"/ws/{proxy.name}-log" in proxy.log(), state=proxy.log)
    assert SECRET not in proxy.log()


def test_what_nodes_tell_of_themselves_stays_inside(proxy: ReverseProxy) -> None:
    for path in ("/readyz", "/metrics", "/", "/ws"):
        with pytest.raises(InvalidStatus) as refused, connect(proxy.url(path), ssl=proxy.context()):
            pass
        assert refused.value.response.status_code == 404
        assert b"/ws/{topic}" not in (refused.value.response.body or b"")


def test_an_answer_of_the_node_comes_through(proxy: ReverseProxy) -> None:
    with pytest.raises(InvalidStatus) as refused, connect(proxy.url("/ws/" + 257 * "x"), ssl=proxy.context()):
        pass
    assert refused.value.response.status_code == 400


@pytest.mark.parametrize(("topic", "status"), [("room", 200), (257 * "x", 400)])
def test_a_check_comes_through(proxy: ReverseProxy, topic: str, status: int) -> None:
    with closing(HTTPSConnection("localhost", proxy.port, context=proxy.context(), timeout=60)) as connection:
        connection.request("GET", f"/ws/{topic}?check", headers={"Origin": "https://page.example"})
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["status"]) == (status, status)
        assert answer.headers["Access-Control-Allow-Origin"] == "https://page.example"


@pytest.mark.parametrize("name", PROXIES)
def test_no_log_tells_a_secret_even_where_all_nodes_are_gone(name: str, tmp_path: Path) -> None:
    with ReverseProxy(name, tmp_path, NOWHERE) as proxy:
        url = proxy.url(f"/ws/room{QUERY}")
        with (
            pytest.raises(InvalidStatus) as refused,
            connect(url, ssl=proxy.context(), subprotocols=SUBPROTOCOLS),
        ):
            pass
        assert refused.value.response.status_code in (502, 503)
        wait_until(lambda: "/ws/room" in proxy.log(), state=proxy.log)
    assert SECRET not in proxy.log()


def test_the_proxy_protocol_tells_the_clients_address_as_well(tmp_path: Path) -> None:
    changes = {
        "default-server check": "default-server send-proxy-v2 check-send-proxy check",
        "    http-request set-header X-Forwarded-For %[src]\n": "",
    }
    with two_nodes(endpoint="haproxy:tcp:{port}:interface=127.0.0.1") as nodes:
        with ReverseProxy("haproxy", tmp_path, addresses(nodes), changes) as proxy:
            with connect(proxy.url("/ws/room"), ssl=proxy.context(), source_address=("127.0.0.2", 0)) as peer:
                others_of(peer)
                wait_for_line(nodes, "joined 'room' from 127.0.0.2")
            # Nothing but checks that speak the protocol too finds a node that was away.
            nodes[0].stop()
            proxy.wait_for("Server nodes/a is DOWN")
            nodes[0].start()
            proxy.wait_for("Server nodes/a is UP")


def test_the_forwarded_header_tells_the_clients_address_as_well(tmp_path: Path) -> None:
    # As "option forwarded" of later versions: behind what the client sends itself.
    changes = {"set-header X-Forwarded-For %[src]": "add-header Forwarded for=%[src];proto=https"}
    claims = {"X-Forwarded-For": "198.51.100.7", "Forwarded": 'for="198.51.100.8'}
    with (
        two_nodes("--proxy-header", "Forwarded") as nodes,
        ReverseProxy("haproxy", tmp_path, addresses(nodes), changes) as proxy,
        connect(
            proxy.url("/ws/room"), ssl=proxy.context(), additional_headers=claims, source_address=("127.0.0.2", 0)
        ) as peer,
    ):
        others_of(peer)
        wait_for_line(nodes, "joined 'room' from 127.0.0.2")


def test_no_timeout_cuts_a_quiet_peer() -> None:
    limits = Limits()
    quiet = limits.ping_interval_seconds + limits.ping_timeout_seconds
    haproxy, nginx = (DEPLOY / "haproxy.cfg").read_text(), (DEPLOY / "nginx.conf").read_text()
    patience = re.findall(r"timeout tunnel (\d+)s", haproxy) + re.findall(r"proxy_(?:read|send)_timeout (\d+)s", nginx)
    assert len(patience) == 3
    assert all(float(seconds) > quiet for seconds in patience)


# Restarts


def test_haproxy_keeps_topics_whole_while_both_nodes_are_restarted(tmp_path: Path) -> None:
    with (
        two_nodes("--drain-delay=60") as nodes,
        ReverseProxy("haproxy", tmp_path, addresses(nodes)) as proxy,
    ):

        async def scenario() -> None:
            async with reconnecting_peers(proxy, TOPICS) as peers:
                for name, node, at_home in zip("ab", nodes, homes(nodes, TOPICS), strict=True):
                    # They leave a node that still runs, all together, as soon as HAProxy sees that it stops.
                    await peers.move(at_home, lambda node=node: node.server.process.send_signal(signal.SIGTERM))
                    assert node.server.process.poll() is None
                    await peers.check_new_peers()
                    await asyncio.to_thread(node.restart)
                    await asyncio.to_thread(proxy.wait_for, f"Server nodes/{name} is UP")
                    # It is back, and the topics that left it do not come apart.
                    await peers.check_new_peers()
                assert not any(peer.refused for peer in peers.all)

        asyncio.run(scenario())
        wait_until(lambda: "/ws/room-0" in proxy.log(), state=proxy.log)
        assert SECRET not in proxy.log()


@pytest.mark.parametrize(
    ("name", "changes", "noticed"),
    [
        ("haproxy", {" on-marked-down shutdown-sessions": ""}, "Server nodes/. is DOWN"),
        ("caddy", {}, "status code out of tolerances"),
    ],
)
def test_a_topic_is_in_two_parts_while_its_node_drains_where_the_proxy_cuts_nobody(
    name: str, changes: dict[str, str], noticed: str, tmp_path: Path
) -> None:
    with (
        two_nodes("--drain-delay=8", "--drain-spread=0.1") as nodes,
        ReverseProxy(name, tmp_path, addresses(nodes), changes) as proxy,
    ):

        async def scenario() -> None:
            async with reconnecting_peers(proxy, TOPICS[:1]) as peers:
                draining = nodes[0 if homes(nodes, TOPICS[:1])[0] else 1].server.process
                draining.send_signal(signal.SIGTERM)
                await asyncio.to_thread(proxy.wait_for, noticed)
                # The old peers are where they were, and a new peer is alone elsewhere.
                assert await peers.new_peer(TOPICS[0]) == set()
                assert not peers.split()
                await peers.move(TOPICS[:1], draining.wait)
                await peers.check_new_peers()
                assert {code for peer in peers.all for code in peer.closed} == {1012}

        asyncio.run(scenario())


def test_nginx_fails_over_and_a_reload_brings_topics_home(tmp_path: Path) -> None:
    with two_nodes() as nodes, ReverseProxy("nginx", tmp_path, addresses(nodes)) as proxy:

        async def scenario() -> None:
            async with reconnecting_peers(proxy, TOPICS) as peers:
                for node, at_home in zip(nodes, homes(nodes, TOPICS), strict=True):
                    await peers.move(at_home, node.stop)
                    await peers.check_new_peers()
                    await asyncio.to_thread(node.start)
                    await peers.move(TOPICS, proxy.reload)
                    await peers.check_new_peers()
                    wait_until(lambda node=node, at_home=at_home: topics_at(node) == set(at_home))
                assert not any(peer.refused for peer in peers.all)

        asyncio.run(scenario())
        wait_until(lambda: "/ws/room-0" in proxy.log(), state=proxy.log)
        assert SECRET not in proxy.log()


def test_a_restart_behind_an_activated_socket_moves_no_topic(tmp_path: Path) -> None:
    with (
        two_nodes(kind=ActivatedNode) as nodes,
        ReverseProxy("nginx", tmp_path, addresses(nodes)) as proxy,
    ):

        async def scenario() -> None:
            async with reconnecting_peers(proxy, TOPICS) as peers:
                at_home = homes(nodes, TOPICS)
                for node, topics in zip(nodes, at_home, strict=True):
                    await peers.move(topics, node.restart)
                    await peers.check_new_peers()
                assert homes(nodes, TOPICS) == at_home
                assert not any(peer.refused for peer in peers.all)

        asyncio.run(scenario())
