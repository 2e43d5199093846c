"""What the errors of a Redis server become."""

from __future__ import annotations

import pytest

from signaling.backplane.redis.connection import ServerError


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
    text = str(ServerError("join", message))
    assert text.startswith(shown)
    assert "topic" not in text
    assert "SECRET" not in text


def test_only_some_errors_may_not_occur_on_another_connection() -> None:
    assert ServerError("join", "READONLY x").wants_another_server
    assert ServerError("join", "LOADING Redis is loading the dataset in memory").wants_another_server
    assert not ServerError("join", "OOM x").wants_another_server
