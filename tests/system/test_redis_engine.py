"""The engine of a cluster on a real Redis: what it promises, and what it does when the server or the way fails."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.protocols import portforward
from twisted.trial.unittest import TestCase

from signaling.backplane.engines import make_engine
from signaling.backplane.redis.engine import RedisEngine
from signaling.backplane.redis.url import parse
from signaling.backplane.store import Keys
from signaling.errors import StartError
from signaling.log.events import Events
from signaling.log.json_format import format_json
from tests.harness.certificates import self_signed
from tests.harness.fault_proxy import fault_proxy
from tests.harness.redis import redis_running, sentinel_running

KEYS = Keys("signaling:")
NODE, OTHER = "n" * 16, "o" * 16
CHANNEL = KEYS.channel(NODE.encode())
SECRET = "p@ss/word?#%"
# What the documents say that a user needs.
ACL = re.search(r">PASSWORD (~signaling:.*)", (Path(__file__).parents[2] / "docs" / "redis.md").read_text())[1]


class Recorder:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []
        self._waiting: list[tuple[Callable[[], bool], Deferred[None]]] = []

    def connected(self) -> None:
        self._hear("connected", None)

    def disconnected(self, reason: str) -> None:
        self._hear("disconnected", reason)

    def received(self, data: bytes) -> None:
        self._hear("received", data)

    def answered(self, reply: Any) -> None:
        self._hear("answered", reply)

    def _hear(self, what: str, value: Any) -> None:
        self.heard.append((what, value))
        for waiting in list(self._waiting):
            if waiting[0]():
                self._waiting.remove(waiting)
                waiting[1].callback(None)

    def all(self, what: str) -> list[Any]:
        return [value for each, value in self.heard if each == what]

    async def until(self, what: str, count: int = 1) -> list[Any]:
        """Wait until it has heard so many of a kind; returns their values."""
        if len(self.all(what)) < count:
            fired: Deferred[None] = Deferred()
            self._waiting.append((lambda: len(self.all(what)) >= count, fired))
            await fired
        return self.all(what)


class EngineCase(TestCase):
    """Engines that are disconnected at the end; trial fails where a timer or a connection is left."""

    timeout = 240

    def setUp(self) -> None:
        self.logged: list[Any] = []
        globalLogPublisher.addObserver(self.logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged.append)

    def server(self, **options: Any) -> Any:
        return self.enter(redis_running(**options))

    def enter(self, context: Any) -> Any:
        entered = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        return entered

    def engine(self, url: str, channel: bytes = CHANNEL, **options: Any) -> tuple[RedisEngine, Recorder]:
        listener = Recorder()
        engine = RedisEngine(parse(url), reactor, Events(LogLevel.debug, reactor.seconds), **options)
        self.addCleanup(engine.disconnect)
        engine.connect(channel, listener)
        return engine, listener

    async def connected(self, url: str, **options: Any) -> tuple[RedisEngine, Recorder]:
        engine, listener = self.engine(url, **options)
        await listener.until("connected")
        return engine, listener

    async def call(self, engine: RedisEngine, script: str, keys: Sequence[bytes], *arguments: str) -> Any:
        answered: Deferred[Any] = Deferred()
        engine.call(script, keys, [argument.encode() for argument in arguments], answered.callback)
        return await answered

    async def join(self, engine: RedisEngine, topic: str, peer: str, node: str = NODE) -> Any:
        keys = [*KEYS.topic(topic.encode()), KEYS.index(node.encode())]
        return await self.call(engine, "join", keys, "signaling:", topic, "60", node, peer, "", "10", "10000")

    async def heartbeat(self, engine: RedisEngine) -> Any:
        node = NODE.encode()
        keys = [KEYS.nodes, KEYS.tombstone(node), KEYS.index(node)]
        return await self.call(engine, "heartbeat", keys, "60", NODE, "1", "1", "signaling:")

    async def publish(self, engine: RedisEngine, data: bytes, channel: bytes = CHANNEL) -> int | None:
        answered: Deferred[int | None] = Deferred()
        engine.publish(channel, data, answered.callback)
        return await answered

    def events(self, name: str) -> list[Any]:
        return [event for event in self.logged if event.get("event") == name]

    async def logs(self, name: str) -> Any:
        """Wait for the next event of a name."""
        fired: Deferred[Any] = Deferred()

        def observe(event: Any) -> None:
            if event.get("event") == name and not fired.called:
                fired.callback(event)

        globalLogPublisher.addObserver(observe)
        try:
            return await fired
        finally:
            globalLogPublisher.removeObserver(observe)

    @property
    def text(self) -> str:
        """All that was logged, in both formats."""
        return "".join(format_json(event) + (formatEvent(event) or "") for event in self.logged)

    async def talk(self, url: str) -> RedisEngine:
        """Use everything that an engine can do."""
        engine, listener = await self.connected(url)
        assert (await self.heartbeat(engine))[:2] == [b"alive", b""]
        status, gen, seq, members = await self.join(engine, "room", "1")
        assert (status, seq, members) == (b"joined", b"1", [b"1", NODE.encode()])
        other = await self.join(engine, "room", "2", OTHER)
        assert other[:3] == [b"joined", gen, b"2"]
        assert (await self.join(engine, "room", "2"))[0] == b"behind"
        assert await self.publish(engine, b"\x00\r\n\xff") == 1
        assert await self.publish(engine, b"", KEYS.channel(OTHER.encode())) == 0
        heard = await listener.until("received", 4)
        assert heard == [
            b"heartbeat 1 0",
            b"joined %b 1 1 4\nroom%b" % (gen, NODE.encode()),
            b"joined %b 2 2 4\nroom%b" % (gen, OTHER.encode()),
            b"\x00\r\n\xff",
        ]
        return engine


class WaysInTests(EngineCase):
    """Every kind of URL leads to the same."""

    async def test_tcp(self) -> None:
        server = self.server()
        await self.talk(server.url)
        assert f"redis://127.0.0.1:{server.port}/0" in self.text

    async def test_a_password(self) -> None:
        await self.talk(self.server(password="p@ss/word").url)
        assert "p@ss" not in self.text

    async def test_a_password_from_a_file(self) -> None:
        server = self.server(password="north")
        with tempfile.NamedTemporaryFile("w") as file:
            file.write("north\n")
            file.flush()
            await self.talk(f"redis://127.0.0.1:{server.port}?password-file={file.name}")

    async def test_a_certificate_of_our_own(self) -> None:
        server = self.server(tls=True, lines=["tls-auth-clients yes"])
        self.engine(server.tls_url)
        await self.logs("backplane_disconnected")
        await self.talk(f"{server.tls_url}&cert={server.ca}")

    async def test_sentinels_with_tls_and_a_password(self) -> None:
        server = self.server(pem=self_signed(names=("localhost", "127.0.0.1")))
        lines = ["requirepass south"]
        sentinel = self.enter(sentinel_running(server.tls_port, pem=server.ca, lines=lines))
        url = sentinel.url.replace("redis+", "rediss+")
        await self.talk(f"{url}?sentinel-password=south&ca={server.ca}")
        assert "south" not in self.text

    async def test_a_user_that_may_no_more_than_it_has_to(self) -> None:
        server = self.server(users=[f"ada on >north {ACL}"])
        engine = await self.talk(f"redis://ada:north@127.0.0.1:{server.port}")
        node = NODE.encode()
        members = [*KEYS.topic(b"room"), KEYS.index(node)]
        assert (await self.call(engine, "leave", members, "signaling:", "room", NODE, "1"))[0] == b"left"
        synced = await self.call(engine, "sync", members, "signaling:", "room", "60", NODE, NODE, "3", "+x")
        assert synced[0] == b"synced"
        old = KEYS.index(OTHER.encode())
        moved = await self.call(engine, "move", [*members, old], "signaling:", "room", "60", NODE, OTHER, "2")
        assert moved[0] == b"moved"
        own = [KEYS.nodes, KEYS.index(node)]
        assert await self.call(engine, "deregister", own, NODE, "signaling:") == [b"deregistered"]
        evicted = [KEYS.nodes, KEYS.tombstone(node), KEYS.index(node)]
        assert (await self.call(engine, "evict", evicted, "signaling:", "60", NODE, "1", "9")) == [b"evicted", 0, []]
        server.command("SCRIPT", "FLUSH")
        assert (await self.heartbeat(engine))[0] == b"evicted"
        assert await self.call(engine, "deregister", [b"other", b"keys"], NODE, "signaling:") is None
        assert "deregister: NOPERM, the user may not" in self.text

    async def test_a_user_that_may_do_all_but_one_thing_is_refused_at_the_first_heartbeat(self) -> None:
        server = self.server(users=[f"ada on >north {ACL} -hincrby"])
        engine, _ = await self.connected(f"redis://ada:north@127.0.0.1:{server.port}")
        assert await self.heartbeat(engine) is None
        assert "heartbeat: ERR, the user may not" in self.text

    async def test_a_unix_socket(self) -> None:
        await self.talk(self.server(unix=True).unix_url)

    async def test_tls(self) -> None:
        await self.talk(self.server(tls=True, password="north").tls_url)

    async def test_a_database(self) -> None:
        server = self.server()
        await self.talk(server.url + "/3")
        assert b"db3:" in server.command("INFO", "keyspace")
        assert b"db0:" not in server.command("INFO", "keyspace")

    async def test_sentinels_of_which_one_does_not_answer(self) -> None:
        server = self.server()
        sentinel = self.enter(sentinel_running(server.port))
        deaf = self.enter(socket.create_server(("127.0.0.1", 0)))
        await self.talk(f"redis+sentinel://127.0.0.1:{deaf.getsockname()[1]},127.0.0.1:{sentinel.port}/mymaster/1")

    async def test_make_engine(self) -> None:
        server, listener = self.server(tls=True), Recorder()
        engine = make_engine(parse(server.tls_url), reactor, Events(LogLevel.debug, reactor.seconds))
        self.addCleanup(engine.disconnect)
        engine.connect(CHANNEL, listener)
        await listener.until("connected")


class OrderTests(EngineCase):
    """What is sent in an order happens in that order."""

    async def test_calls_and_publications_keep_their_order(self) -> None:
        engine, listener = await self.connected(self.server().url)
        node = [NODE.encode()]
        heartbeat = [KEYS.nodes, KEYS.tombstone(node[0]), KEYS.index(node[0])]
        for number in range(500):
            arguments = [b"60", *node, b"%d" % number, b"0", b"other:"]
            engine.call("heartbeat", heartbeat, arguments, lambda reply: listener.answered(int(reply[1] or -1)))
            engine.publish(CHANNEL, b"%d" % number, lambda count: listener.answered(-(count or 0)))
        replies = await listener.until("answered", 1000)
        # Each is told the number of the one before.
        assert replies[::2] == list(range(-1, 499))
        assert set(replies[1::2]) == {-1}
        assert await listener.until("received", 500) == [b"%d" % number for number in range(500)]

    async def test_large_publications_arrive_whole(self) -> None:
        engine, listener = await self.connected(self.server().url)
        texts = [bytes([number]) * 700_000 for number in range(8)]
        for text in texts:
            engine.publish(CHANNEL, text, listener.answered)
        assert await listener.until("received", 8) == texts

    async def test_flushed_scripts_are_brought_again(self) -> None:
        server = self.server()
        engine, listener = await self.connected(server.url)
        for _ in range(2):
            server.command("SCRIPT", "FLUSH")
            assert (await self.heartbeat(engine))[0] == b"alive"
            assert (await self.join(engine, "room", "1"))[0] in (b"joined", b"behind")
        assert listener.all("disconnected") == []

    async def test_where_scripts_are_flushed_under_calls_nothing_overtakes(self) -> None:
        server = self.server()
        engine, listener = await self.connected(server.url)
        server.command("SCRIPT", "FLUSH")
        heartbeat = [KEYS.nodes, KEYS.tombstone(NODE.encode()), KEYS.index(NODE.encode())]
        for _ in range(10):
            engine.call("heartbeat", heartbeat, [b"60", NODE.encode(), b"1", b"0", b"other:"], listener.answered)
        await listener.until("connected", 2)
        assert listener.all("answered") == [None] * 10
        assert [what for what, _ in listener.heard][-2:] == ["disconnected", "connected"]
        assert (await self.heartbeat(engine))[:2] == [b"alive", b""]


class _LossyClient(portforward.ProxyClient):
    def dataReceived(self, data: bytes) -> None:
        lossy = self.peer.factory
        if lossy.losing:
            lossy.losing -= 1
        else:
            super().dataReceived(data)


class _LossyClientFactory(portforward.ProxyClientFactory):
    protocol = _LossyClient
    noisy = False


class _LossyServer(portforward.ProxyServer):
    clientProtocolFactory = _LossyClientFactory


class Lossy(portforward.ProxyFactory):
    """Carries bytes to a port and back, and loses some of what comes back without an end of the connection."""

    protocol = _LossyServer
    noisy = False
    losing = 0


class OutageTests(EngineCase):
    """The server goes away, or stands still, or the way there loses something."""

    async def test_a_reply_that_is_lost_without_a_sign_is_not_taken_for_that_of_the_next_call(self) -> None:
        lossy = Lossy("127.0.0.1", self.server().port)
        port = reactor.listenTCP(0, lossy, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        engine, listener = await self.connected(f"redis://127.0.0.1:{port.getHost().port}")
        lossy.losing = 1
        keys = [*KEYS.topic(b"room"), KEYS.index(NODE.encode())]
        lost = ensureDeferred(self.call(engine, "leave", keys, "signaling:", "room", NODE, "1"))
        while lossy.losing:
            await deferLater(reactor, 0.01)
        assert await self.heartbeat(engine) is None
        assert await lost is None
        await listener.until("connected", 2)
        assert listener.all("disconnected") == ["a reply was lost on its way"]
        assert (await self.heartbeat(engine))[0] == b"alive"

    async def test_it_comes_back_to_a_server_that_was_killed(self) -> None:
        server = self.server()
        engine, listener = await self.connected(server.url)
        server.pause()
        engine.publish(CHANNEL, b"lost", listener.answered)
        engine.call("deregister", [b"a", b"b"], [b"c"], listener.answered)
        server.restart()
        await listener.until("connected", 2)
        whats = [what for what, _ in listener.heard]
        assert whats == ["connected", "answered", "answered", "disconnected", "connected"]
        assert listener.all("answered") == [None, None]
        assert (await self.heartbeat(engine))[0] == b"alive"
        assert await self.publish(engine, b"again") == 1
        assert await listener.until("received", 2) == [b"heartbeat 1 0", b"again"]

    async def test_without_a_connection_there_is_no_reply(self) -> None:
        server = self.server()
        engine, listener = await self.connected(server.url)
        server.kill()
        await listener.until("disconnected")
        assert await self.heartbeat(engine) is None
        assert await self.publish(engine, b"x") is None

    async def test_an_outage_is_two_lines_however_long_it_takes(self) -> None:
        server = self.server()
        _, listener = await self.connected(server.url)
        server.kill()
        await listener.until("disconnected")
        refused = await self.logs("backplane_disconnected")
        assert "refused" in refused["reason"]
        await self.pause(0.5)
        server.start()
        await listener.until("connected", 2)
        assert len(self.events("backplane_disconnected")) == 2
        assert len(self.events("backplane_connected")) == 2
        assert "factory" not in self.text

    async def pause(self, seconds: float) -> None:
        """Wait for what must not happen."""
        fired: Deferred[None] = Deferred()
        reactor.callLater(seconds, fired.callback, None)
        await fired

    async def test_the_loss_of_one_connection_is_that_of_both(self) -> None:
        server = self.server()
        for kind in ("pubsub", "normal"):
            _, listener = await self.connected(server.url)
            server.command("CLIENT", "KILL", "TYPE", kind)
            await listener.until("connected", 2)
            assert [what for what, _ in listener.heard] == ["connected", "disconnected", "connected"]

    async def test_connecting_anew_leaves_a_silent_server_and_the_old_channel(self) -> None:
        server = self.server()
        engine, listener = await self.connected(server.url)
        server.pause()
        engine.publish(CHANNEL, b"lost", listener.answered)
        fresh = Recorder()
        engine.connect(b"signaling:node:new", fresh)
        assert listener.heard == [("connected", None), ("answered", None)]
        server.resume()
        await fresh.until("connected")
        assert await self.publish(engine, b"new", b"signaling:node:new") == 1
        assert await fresh.until("received") == [b"new"]
        assert listener.heard == [("connected", None), ("answered", None)]

    async def test_an_attempt_that_is_not_answered_is_given_up(self) -> None:
        server = self.server()
        server.pause()
        _, listener = self.engine(server.url, connect_seconds=0.2)
        lost = await self.logs("backplane_disconnected")
        assert lost["reason"] == "no answer within 0.2 s"
        server.resume()
        await listener.until("connected")

    async def test_a_server_that_says_nothing_is_noticed(self) -> None:
        server = self.server()
        engine, listener = await self.connected(server.url, check_seconds=0.5)
        server.pause()
        engine.call("deregister", [b"a", b"b"], [b"c"], listener.answered)
        assert await listener.until("disconnected") == ["it does not answer"]
        assert listener.all("answered") == [None]
        server.resume()
        await listener.until("connected", 2)

    async def test_a_network_that_swallows_everything_is_noticed(self) -> None:
        server = self.server()
        proxy = self.enter(fault_proxy(server.port))
        engine, listener = await self.connected(f"redis://127.0.0.1:{proxy.port}", check_seconds=0.5)
        proxy.freeze()
        await listener.until("connected", 2)
        assert listener.all("disconnected") == ["it does not answer"]
        # The server does not know yet that nobody hears the old connection.
        assert await self.publish(engine, b"x") == 2
        assert await listener.until("received") == [b"x"]

    async def test_idle_connections_stay(self) -> None:
        _, listener = await self.connected(self.server().url, check_seconds=0.5)
        await self.pause(2.5)
        assert listener.heard == [("connected", None)]

    async def test_an_answer_may_connect_anew(self) -> None:
        server = self.server()
        engine, listener = await self.connected(server.url)
        fresh = Recorder()
        server.pause()
        engine.publish(CHANNEL, b"lost", lambda _: engine.connect(b"signaling:node:new", fresh))
        server.restart()
        await fresh.until("connected")
        assert listener.heard == [("connected", None)]
        assert fresh.heard == [("connected", None)]

    async def test_whoever_fails_to_hear_of_an_outage_does_not_make_it_longer(self) -> None:
        server = self.server()
        engine, listener = await self.connected(server.url)

        def fail(_: object) -> None:
            raise RuntimeError("on purpose")

        listener.disconnected = fail  # type: ignore[method-assign]
        server.pause()
        engine.publish(CHANNEL, b"lost", fail)
        engine.publish(CHANNEL, b"lost", listener.answered)
        server.restart()
        await listener.until("connected", 2)
        assert listener.all("answered") == [None]
        assert len(self.flushLoggedErrors(RuntimeError)) == 2

    async def test_nothing_is_called_after_disconnect(self) -> None:
        server = self.server()
        engine, listener = await self.connected(server.url)
        engine.publish(CHANNEL, b"x", listener.answered)
        engine.disconnect()
        assert listener.heard == [("connected", None), ("answered", None)]
        server.kill()
        await self.pause(0.3)
        assert len(listener.heard) == 2
        # Whatever is left, while it connects or waits, trial would find.
        for seconds in (0.0, 0.02):
            engine.connect(CHANNEL, listener)
            await self.pause(seconds)
            engine.disconnect()
        assert len(listener.heard) == 2


class FailoverTests(EngineCase):
    """Another server takes over."""

    async def test_the_new_master_is_found(self) -> None:
        master = self.server()
        replica = self.server(lines=[f"replicaof 127.0.0.1 {master.port}"])
        sentinel = self.enter(sentinel_running(master.port))
        await deferToThread(sentinel.wait_for, r"\+slave slave")
        engine, listener = await self.connected(sentinel.url)
        master.kill()
        await listener.until("connected", 2)
        assert listener.all("disconnected") == ["the server closed the connection"]
        assert (await self.heartbeat(engine))[0] == b"alive"
        assert CHANNEL in replica.command("PUBSUB", "CHANNELS")

    async def test_a_server_that_becomes_a_replica_is_left(self) -> None:
        server, master = self.server(), self.server()
        engine, listener = await self.connected(server.url)
        server.command("REPLICAOF", "127.0.0.1", str(master.port))
        assert await self.heartbeat(engine) is None
        assert await listener.until("disconnected") == ["heartbeat: READONLY, it is a replica"]
        server.command("REPLICAOF", "NO", "ONE")
        await listener.until("connected", 2)
        assert (await self.heartbeat(engine))[0] == b"alive"

    async def test_sentinels_that_know_nothing_are_asked_again(self) -> None:
        server = self.server()
        sentinel = self.enter(sentinel_running(server.port))
        self.engine(sentinel.url.replace("mymaster", "other"))
        lost = await self.logs("backplane_disconnected")
        assert lost["reason"].endswith(f"(127.0.0.1:{sentinel.port}: it knows no such service)")


class RefusalTests(EngineCase):
    """The server does not want to."""

    async def refusal(self, url: str) -> str:
        """Connect in vain; returns why."""
        self.engine(url)
        return (await self.logs("backplane_disconnected"))["reason"]

    async def test_a_wrong_password_is_tried_again_and_told_without_it(self) -> None:
        server = self.server(password="north")
        _, listener = self.engine(f"redis://:south@127.0.0.1:{server.port}")
        lost = await self.logs("backplane_disconnected")
        assert lost["reason"] == "AUTH: WRONGPASS, the user or the password is wrong"
        server.command("CONFIG", "SET", "requirepass", "south")
        await listener.until("connected")
        assert "south" not in self.text

    async def test_a_password_that_is_missing_is_told(self) -> None:
        server = self.server(password="north")
        reason = await self.refusal(f"redis://127.0.0.1:{server.port}")
        assert reason == "SCRIPT: NOAUTH, it asks for a password"

    async def test_a_database_that_is_missing_is_told(self) -> None:
        assert await self.refusal(self.server().url + "/16") == "SELECT: ERR, it has no such database"

    async def test_a_server_that_has_too_many_clients_is_told(self) -> None:
        server = self.server(lines=["maxclients 1"])
        with socket.create_connection(("127.0.0.1", server.port)):
            reason = await self.refusal(server.url)
        assert reason == "SCRIPT: ERR, it has as many clients as it takes (maxclients)"

    async def test_full_memory_costs_the_call_and_says_so_without_its_topic(self) -> None:
        server = self.server()
        engine, listener = await self.connected(server.url)
        server.command("CONFIG", "SET", "maxmemory", "1")
        for _ in range(20):
            assert await self.join(engine, "private-topic", "1") is None
        server.command("CONFIG", "SET", "maxmemory", "0")
        assert (await self.join(engine, "private-topic", "1"))[0] == b"joined"
        assert listener.all("disconnected") == []
        (error,) = self.events("backplane_error")
        assert error["code"] == "OOM"
        assert "private-topic" not in self.text

    async def test_keys_of_somebody_else_are_not_quoted(self) -> None:
        server = self.server()
        engine, _ = await self.connected(server.url)
        server.command("SET", "signaling:members:private-topic", "x")
        assert await self.join(engine, "private-topic", "1") is None
        (error,) = self.events("backplane_error")
        assert error["code"] == "WRONGTYPE"
        assert "private-topic" not in self.text

    async def test_a_server_of_another_kind_is_told(self) -> None:
        from twisted.internet.protocol import Factory, Protocol

        class Web(Protocol):
            def connectionMade(self) -> None:
                self.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                self.transport.loseConnection()

        port = reactor.listenTCP(0, Factory.forProtocol(Web), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        assert await self.refusal(f"redis://127.0.0.1:{port.getHost().port}") == "it does not speak as Redis does"

    async def test_a_certificate_of_an_authority_that_is_not_trusted_is_refused(self) -> None:
        server = self.server(tls=True)
        server.ca.write_bytes(self_signed())
        assert await self.refusal(server.tls_url) == "TLS: certificate verify failed"
        url = f"rediss://localhost:{server.tls_port}"
        assert await self.refusal(url) == "TLS: certificate verify failed"

    async def test_a_certificate_of_another_host_is_refused(self) -> None:
        server = self.server(tls=True)
        reason = await self.refusal(server.tls_url.replace("localhost", "127.0.0.1"))
        assert reason == "its certificate is not for 127.0.0.1, by any subjectAltName"

    async def test_a_certificate_without_a_subject_alternative_name_is_refused(self) -> None:
        server = self.server(pem=self_signed(names=()))
        assert await self.refusal(server.tls_url) == "its certificate is not for localhost, by any subjectAltName"


def test_files_that_a_url_names_are_read_before_the_start(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    events = Events(LogLevel.debug, reactor.seconds)
    with pytest.raises(StartError, match=r"--backplane: ca=: /no/such: No such file or directory"):
        make_engine(parse("rediss://localhost?ca=/no/such"), reactor, events)
    with pytest.raises(StartError, match=r"--backplane: ca=: .*empty: there are no certificates in PEM in it"):
        make_engine(parse(f"rediss://localhost?ca={empty}"), reactor, events)
    with pytest.raises(StartError, match=r"--backplane: cert=: .*empty: it is no certificate in PEM"):
        make_engine(parse(f"rediss://localhost?cert={empty}"), reactor, events)


@pytest.mark.parametrize("package", ["hiredis", "service_identity"])
def test_without_the_extra_one_line_says_what_to_install(package: str) -> None:
    code = """if True:
        import sys
        sys.modules[sys.argv[1]] = None
        from signaling.backplane.engines import make_engine
        from signaling.backplane.redis.url import parse
        from signaling.errors import StartError
        try:
            make_engine(parse("redis://localhost"), None, None)
        except StartError as error:
            print(error)
    """
    printed = subprocess.run(
        [sys.executable, "-c", code, package], check=False, capture_output=True, text=True, timeout=60
    )
    assert printed.stdout.startswith(
        "--backplane: needs the extra cluster (pip install 'twisted-signaling[cluster]')"
    ), printed.stderr
