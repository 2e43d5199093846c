"""What is said to a Redis server, and what its errors become."""

from __future__ import annotations

import hiredis
import pytest

from signaling.backplane.redis.resp import Refusal, command, publication, scripts
from signaling.backplane.redis.scripts import NAMES


def test_commands_are_written_as_redis_reads_them() -> None:
    for words in ((b"PING",), (b"A", b"", b"\r\n\x00", b"x" * 100)):
        assert command(*words) == hiredis.pack_command(words)
    assert publication(b"channel", b"\r\n") == hiredis.pack_command((b"PUBLISH", b"channel", b"\r\n"))


def test_every_script_can_be_loaded_and_run() -> None:
    known = scripts()
    assert tuple(known) == NAMES
    beat = known["beat"]
    name = beat.run([b"k"], [b"a"], b"7").split(b"\r\n")[4]
    assert beat.run([b"k"], [b"a"], b"7") == hiredis.pack_command((b"EVALSHA", name, b"1", b"k", b"a", b"7"))
    body = beat.load[2]
    assert beat.bring_and_run([b"k"], [b"a"], b"7") == hiredis.pack_command((b"EVAL", body, b"1", b"k", b"a", b"7"))


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", "join: OOM, its memory is full (maxmemory)"),
        (
            "READONLY You can't write against a read only replica. script: f, on @user_script:9.",
            "join: READONLY, it is",
        ),
        ("ERR Error running script: @user_script: 12: attempt to index 'topic'", "join: ERR, in line 12"),
        ("ERR unknown command 'SECRET', with args beginning with: 'topic' ", "join: ERR"),
        ("ERR max number of clients reached", "join: ERR, it has as many clients as it takes (maxclients)"),
        ("DENIED Redis is running in protected mode because topic", "join: DENIED, it is in protected mode"),
        ("topic is not a code", "join: ERR"),
        ("NEWCODE topic", "join: NEWCODE"),
    ],
)
def test_an_error_is_its_code_and_what_it_means(message: str, shown: str) -> None:
    text = str(Refusal("join", message))
    assert text.startswith(shown)
    assert "topic" not in text
    assert "SECRET" not in text


def test_only_some_errors_may_be_none_on_another_connection() -> None:
    assert Refusal("join", "READONLY x").is_outdated
    assert Refusal("join", "LOADING Redis is loading the dataset in memory").is_outdated
    assert not Refusal("join", "OOM x").is_outdated
