"""The load generator's connections that do nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from benchmarks.compare.generator import Link, LoadGenerator, WrongAnswerError

PING = b"\x89\x04ping"
MESSAGE = b"\x81\x02{}"
SECONDS = 10


@pytest.fixture
def port() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(SECONDS)
        yield listening


@pytest.fixture
def generator(port: socket.socket) -> Iterator[LoadGenerator]:
    with LoadGenerator([port.getsockname()]) as opened:
        yield opened


@pytest.fixture
def server(port: socket.socket, generator: LoadGenerator) -> Iterator[socket.socket]:
    link = generator.connect()
    generator.start(link.stay())
    accepted, _ = port.accept()
    with accepted:
        accepted.settimeout(SECONDS)
        yield accepted


def resume(generator: LoadGenerator) -> list[Link]:
    links = generator.poll(SECONDS)
    for link in links:
        assert link.task is not None
        generator.start(link.task)
    return links


def test_a_peer_that_does_nothing_answers_pings(generator: LoadGenerator, server: socket.socket) -> None:
    for _ in range(2):
        server.sendall(PING)
        assert len(resume(generator)) == 1
        pong = server.recv(100)
        assert (pong[0], len(pong)) == (0x8A, 10)


def test_a_peer_that_does_nothing_expects_no_message(generator: LoadGenerator, server: socket.socket) -> None:
    server.sendall(MESSAGE)
    with pytest.raises(WrongAnswerError, match="unexpected message"):
        resume(generator)


def test_a_peer_that_does_nothing_is_not_cut_off(generator: LoadGenerator, server: socket.socket) -> None:
    server.close()
    with pytest.raises(WrongAnswerError, match="ended the connection"):
        resume(generator)
