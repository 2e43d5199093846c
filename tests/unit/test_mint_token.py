"""The command ``signaling-token``: what it mints is what the server takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from signaling.auth.cred import BearerToken
from signaling.auth.jwt_checker import checker
from signaling.core.grants import Grant
from signaling.tools.mint_token import main
from tests import issuer


@pytest.fixture
def mint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Mint a token with a key of a kind; returns what was printed."""

    def run(algorithm: str, *arguments: str) -> str:
        key = tmp_path / f"{algorithm}.key"
        key.write_bytes(issuer.SECRET if algorithm == "HS256" else issuer.private_pem(algorithm))
        main(["--key", str(key), *arguments])
        return capsys.readouterr().out.strip()

    return run


@pytest.mark.parametrize("algorithm", issuer.ALGORITHMS)
def test_the_printed_keys_verify_the_printed_token(mint: Any, tmp_path: Path, algorithm: str) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(mint(algorithm, "--kid", "k", "--jwks"))
    assert set(json.loads(keys.read_text())["keys"][0]) & {"d", "p", "q", "key_ops"} == set()
    text = mint(
        algorithm,
        *("--kid", "k", "--topic", "a", "--topic", "b", "--prefix", "c-", "--receive-only", "--subject", "Ada"),
        *("--metadata", '{"name":"Ada"}', "--audience", "us", "--issuer", "them", "--seconds", "60"),
        *("--max-peers", "2", "--message-rate", "0.5"),
    )
    grant = checker(f"{keys}:audience=us:issuer=them").requestAvatarId(BearerToken(text.encode()))
    expires = grant.expires
    assert grant == Grant(
        topics=frozenset({"a", "b"}),
        prefixes=("c-",),
        may_send=False,
        metadata={"name": "Ada"},
        expires=expires,
        subject="Ada",
        issuer="them",
        max_peers=2,
        message_rate=0.5,
    )


def test_by_default_a_token_allows_sending_and_keeps_the_metadata(mint: Any, tmp_path: Path) -> None:
    keys = tmp_path / "public.pem"
    keys.write_bytes(issuer.public_pem("EdDSA"))
    grant = checker(str(keys)).requestAvatarId(BearerToken(mint("EdDSA", "--topic", "a").encode()))
    assert (grant.may_send, grant.metadata, grant.subject) == (True, None, None)
    assert (grant.max_peers, grant.message_rate) == (None, None)


@pytest.mark.parametrize(
    ("content", "arguments", "line"),
    [
        (None, [], "No such file or directory"),
        (b"short", [], "signaling-token: the key: a secret needs at least 32 bytes, and this one has 5"),
        (lambda: issuer.public_pem("RS256"), [], "signaling-token: the key: not a PEM private key without a password"),
        (issuer.SECRET, ["--metadata", '{"x":NaN}'], "signaling-token: "),
        (issuer.SECRET, ["--max-peers", "0"], "signaling.maxPeers has to be a whole number from 1 up"),
        (issuer.SECRET, ["--message-rate", "0"], "signaling.messageRate has to be a number more than 0"),
    ],
)
def test_an_error_is_one_line(tmp_path: Path, content: Any, arguments: list[str], line: str) -> None:
    key = tmp_path / "key"
    if content is not None:
        key.write_bytes(content if isinstance(content, bytes) else content())
    with pytest.raises(SystemExit) as exit_:
        main(["--key", str(key), "--topic", "a", *arguments])
    assert line in str(exit_.value.code)
    assert "\n" not in str(exit_.value.code)


def test_a_token_that_allows_no_topic_causes_a_warning(
    mint: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_bytes(issuer.SECRET)
    main(["--key", str(key)])
    assert capsys.readouterr().err == "signaling-token: the token allows no topic; see --topic and --prefix\n"
