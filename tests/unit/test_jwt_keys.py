"""The keys that verify tokens: which files are taken, and what happens when they change."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from twisted.cred.strcred import InvalidAuthArgumentString

from signaling import TokenRefused
from signaling.auth.cred import BearerToken
from signaling.auth.jwt_checker import JwtChecker, checker
from signaling.auth.jwt_keys import KeyFile, KeyProblem, read_keys
from tests import issuer


def pem(key: Any) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def altered(entry: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {name: value for name, value in {**entry, **values}.items() if value is not None}


@pytest.mark.parametrize("algorithm", issuer.ALGORITHMS[1:])
def test_a_pem_public_key_has_the_algorithm_of_its_kind(algorithm: str) -> None:
    key = read_keys(issuer.public_pem(algorithm)).find("any id")
    assert key is not None
    assert key.algorithm == algorithm
    assert read_keys(issuer.public_pem(algorithm), algorithm).find(None) is not None


def test_a_secret_needs_to_be_asked_for() -> None:
    with pytest.raises(KeyProblem, match="a secret needs alg=HS256"):
        read_keys(issuer.SECRET)
    key = read_keys(b" " + issuer.SECRET + b"\r\n", "HS256").find(None)
    assert key is not None
    assert key.material == issuer.SECRET
    assert issuer.SECRET.decode() not in repr(key)


def test_a_set_holds_keys_of_every_kind() -> None:
    keys = read_keys(issuer.key_set())
    assert [found.algorithm for kid in issuer.ALGORITHMS if (found := keys.find(kid))] == list(issuer.ALGORITHMS)
    assert keys.find(None) is keys.find("2019") is None


def coded(number: int, size: int) -> str:
    return issuer.segment(number.to_bytes(size, "big"))


def curve_jwk(name: str, curve: ec.EllipticCurve) -> dict[str, Any]:
    numbers = ec.generate_private_key(curve).public_key().public_numbers()
    size = (curve.key_size + 7) // 8
    return {"kty": "EC", "crv": name, "kid": name, "x": coded(numbers.x, size), "y": coded(numbers.y, size)}


def weak_jwk() -> dict[str, Any]:
    numbers = rsa.generate_private_key(65537, 1024).public_key().public_numbers()
    return {"kty": "RSA", "kid": "weak", "n": coded(numbers.n, 128), "e": "AQAB"}


def octets_jwk(name: str, public: bytes) -> dict[str, Any]:
    return {"kty": "OKP", "crv": name, "kid": name, "x": issuer.segment(public)}


UNUSABLE: list[tuple[str, Any, str]] = [
    ("P-384", curve_jwk("P-384", ec.SECP384R1()), "neither RSA"),
    ("P-521", curve_jwk("P-521", ec.SECP521R1()), "neither RSA"),
    ("secp256k1", curve_jwk("secp256k1", ec.SECP256K1()), "neither RSA"),
    (
        "Ed448",
        octets_jwk("Ed448", ed448.Ed448PrivateKey.generate().public_key().public_bytes_raw()),
        "neither RSA|brok",
    ),
    ("X25519", octets_jwk("X25519", x25519.X25519PrivateKey.generate().public_key().public_bytes_raw()), "broken"),
    ("RSA of 1024 bits", weak_jwk(), "at least 2048 bits"),
    ("for encryption", altered(issuer.jwk("RS256", "enc"), use="enc"), "its use is not sig"),
    ("for wrapping", altered(issuer.jwk("RS256", "wrap"), use=None, key_ops=["wrapKey"]), "key_ops do not have verify"),
    (
        "operations that are no list",
        altered(issuer.jwk("RS256", "ops"), key_ops="verify"),
        "key_ops do not have verify",
    ),
    ("another algorithm", altered(issuer.jwk("RS256", "ps"), alg="PS512"), "its alg says something else"),
    ("the algorithm of another kind", altered(issuer.jwk("RS256", "hs"), alg="HS256"), "its alg says something else"),
    ("an unknown kind", {"kty": "AKP", "kid": "pq", "alg": "ML-DSA-44"}, "its kind"),
    ("no kind", {"kid": "none"}, "its kind"),
    ("a kind that is no text", {"kty": ["RSA"], "kid": "list"}, "its kind"),
    ("a broken point", {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "broken"}, "it is broken"),
    ("a part missing", altered(issuer.jwk("RS256", "half"), n=None), "it is broken"),
    ("a part of another type", altered(issuer.jwk("EdDSA", "half"), x=7), "it is broken"),
    ("a short secret", {"kty": "oct", "k": "c2hvcnQ", "kid": "short"}, "at least 32 bytes"),
    (
        "a private key",
        {**json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(issuer.material("EdDSA"))), "kid": "p"},
        "private",
    ),
    ("an id that is a number", altered(issuer.jwk("EdDSA"), kid=7), "is not a string"),
    ("no id beside others", issuer.jwk("ES256"), "each needs an id"),
    ("no object", "RSA", "not an object"),
]


@pytest.mark.parametrize(("entry", "reason"), [row[1:] for row in UNUSABLE], ids=[row[0] for row in UNUSABLE])
def test_one_key_that_cannot_be_used_leaves_the_others_of_a_set(entry: Any, reason: str) -> None:
    keys = read_keys(issuer.key_set(issuer.jwk("EdDSA", "ours"), entry, issuer.jwk("HS256", "also ours")))
    assert (len(keys), keys.find("ours") is not None, keys.find("also ours") is not None) == (2, True, True)
    [left_out] = keys.left_out
    assert re.match(f"key 2: .*({reason})", left_out)


def test_an_id_that_two_keys_have_means_neither() -> None:
    keys = read_keys(issuer.key_set(issuer.jwk("EdDSA", "a"), issuer.jwk("RS256", "b"), issuer.jwk("EdDSA", "a", 1)))
    assert (keys.find("a"), len(keys)) == (None, 1)
    assert keys.left_out == tuple(f"key {number}: two keys have the same id (kid) 'a'" for number in (1, 3))


def test_an_id_is_free_for_the_key_that_can_be_used() -> None:
    keys = read_keys(issuer.key_set(altered(issuer.jwk("RS256", "a"), use="enc"), issuer.jwk("EdDSA", "a")))
    found = keys.find("a")
    assert found is not None
    assert found.algorithm == "EdDSA"


def test_of_a_set_only_the_keys_of_the_wanted_algorithm_count() -> None:
    keys = read_keys(issuer.key_set(), "ES256")
    assert len(keys) == 1
    assert "key 1: a key for HS256, not for ES256" in keys.left_out


@pytest.mark.parametrize(
    ("content", "algorithm", "problem"),
    [
        (b"", None, "neither a PEM public key nor a JWKS"),
        (b"short", "HS256", "at least 32 bytes, and this one has 5"),
        (b"x" * 31 + b"\n", "HS256", "at least 32 bytes, and this one has 31"),
        (lambda: issuer.public_pem("RS256"), "HS256", "a key for RS256, not for HS256"),
        (
            lambda: issuer.material("RS256").public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            "HS256",
            "looks like a key of another kind",
        ),
        (lambda: issuer.private_pem("EdDSA"), None, "private key"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", None, "not a PEM public key"),
        (lambda: pem(rsa.generate_private_key(65537, 1024)), None, "at least 2048 bits"),
        (lambda: pem(ec.generate_private_key(ec.SECP384R1())), None, "neither RSA"),
        (lambda: pem(ed448.Ed448PrivateKey.generate()), None, "neither RSA"),
        (b"{}", None, "not a JWKS"),
        (b"{", None, "not a JWKS"),
        (b'{"keys": {}}', None, "array of objects"),
        (b'{"keys": [1]}', None, "key 1: not an object"),
        (b'{"keys": []}', None, "there is no key for"),
        (lambda: issuer.key_set({"kty": "oct"}), None, "key 1: it is broken"),
        (lambda: issuer.key_set({"kty": "oct", "k": "c2hvcnQ"}), None, "at least 32 bytes"),
        (lambda: issuer.key_set({"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}), None, "broken"),
        (lambda: issuer.key_set(altered(issuer.jwk("RS256"), alg="HS256")), None, "alg says something else"),
        (lambda: issuer.key_set(altered(issuer.jwk("HS256"), alg="EdDSA")), None, "alg says something else"),
        (lambda: issuer.key_set(issuer.jwk("RS256", "a")), "EdDSA", "key 1: a key for RS256, not for EdDSA"),
        (
            lambda: issuer.key_set(issuer.jwk("EdDSA", "a"), issuer.jwk("EdDSA", "a", 1)),
            None,
            "two keys have the same id",
        ),
        (lambda: issuer.key_set(issuer.jwk("EdDSA", "a"), issuer.jwk("HS256", "a")), None, "two keys have the same id"),
        (lambda: issuer.key_set(issuer.jwk("EdDSA"), issuer.jwk("HS256")), None, "each needs an id"),
        (
            lambda: issuer.key_set(*(bad for name, bad, _ in UNUSABLE if name != "no id beside others")),
            None,
            r"key 1: .*; key 2: .*; key 3: ",
        ),
        (lambda: issuer.key_set(altered(issuer.jwk("EdDSA"), kid=7)), None, "is not a string"),
    ],
)
def test_what_cannot_be_used_is_said(content: Any, algorithm: str | None, problem: str) -> None:
    with pytest.raises(KeyProblem, match=problem):
        read_keys(content if isinstance(content, bytes) else content(), algorithm)


@given(st.binary(max_size=80), st.sampled_from([None, *issuer.ALGORITHMS]))
def test_no_file_is_anything_but_keys_or_a_problem(data: bytes, algorithm: str | None) -> None:
    for content in (data, b"{" + data, b'{"keys":[{"kty":"RSA","n":"%b"}]}' % data, b"-----BEGIN " + data):
        try:
            assert len(read_keys(content, algorithm))
        except KeyProblem:
            continue


class Watched:
    """A file with keys, and a clock."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "keys.json"
        self.now = 0.0
        self.told: list[str] = []
        self.write("a")
        self.file = KeyFile(str(self.path), None, self.told.append, self.told.append, lambda: self.now)

    def write(self, *kids: str) -> None:
        """Replace the file, as it ought to be done."""
        self.replace(issuer.key_set(*(issuer.jwk("EdDSA", kid) for kid in kids)))

    def replace(self, content: bytes) -> None:
        new = self.path.with_suffix(".new")
        new.write_bytes(content)
        os.replace(new, self.path)

    def knows(self, kid: str) -> bool:
        return self.file.keys.find(kid) is not None


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_a_changed_file_is_noticed_after_a_second_and_not_before(watched: Watched) -> None:
    watched.write("b", "c")
    watched.now = 0.9
    assert watched.knows("a")
    watched.now = 1.0
    assert not watched.knows("a")
    assert watched.knows("c")
    assert watched.told == ["keys.json: read again; keys: 2"]


def test_a_broken_file_keeps_the_old_keys_and_is_told_once(watched: Watched) -> None:
    watched.replace(b'{"keys": [')
    for watched.now in (1.0, 2.0, 3.0):
        assert watched.knows("a")
    assert watched.told == ['keys.json: it is not a JWKS: {"keys": [...]}; the keys from before stay']
    watched.path.unlink()
    for watched.now in (4.0, 5.0):
        assert watched.knows("a")
    assert watched.told[1:] == ["keys.json: No such file or directory; the keys from before stay"]
    watched.write("b")
    watched.now = 6.0
    assert watched.knows("b")
    assert watched.told[2:] == ["keys.json: read again; keys: 1"]


def test_a_pipe_in_place_of_the_file_blocks_nothing(watched: Watched) -> None:
    watched.path.unlink()
    os.mkfifo(watched.path)
    # Stays open, so reading it would not return.
    writer = os.open(watched.path, os.O_RDWR)
    watched.now = 1.0
    assert watched.knows("a")
    reason = "not a regular file; a pipe can be read once, when the server starts"
    assert watched.told == [f"keys.json: {reason}; the keys from before stay"]
    os.close(writer)


def test_keys_that_are_left_out_are_reported_at_the_start_and_at_each_rotation(watched: Watched) -> None:
    watched.replace(issuer.key_set(issuer.jwk("EdDSA", "b"), {"kty": "AKP"}))
    for watched.now in (1.0, 2.0, 3.0):
        assert watched.knows("b")
    report = "keys.json: left out: key 2: its kind (kty) is none of RSA, EC, OKP, oct"
    assert watched.told == ["keys.json: read again; keys: 1", report]
    watched.told.clear()
    KeyFile(str(watched.path), None, watched.told.append, watched.told.append, lambda: watched.now)
    assert watched.told == [report]


def test_a_file_that_was_half_written_is_tried_again_although_its_times_say_nothing(watched: Watched) -> None:
    good = watched.path.read_bytes()
    watched.replace(b" " * len(good))
    times = watched.path.stat()
    watched.now = 1.0
    assert watched.knows("a")
    watched.path.write_bytes(good)
    os.utime(watched.path, ns=(times.st_atime_ns, times.st_mtime_ns))
    watched.now = 2.0
    assert watched.knows("a")
    assert watched.told[-1] == "keys.json: read again; keys: 1"


def test_a_relative_path_stays_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    watched = Watched(Path())
    monkeypatch.chdir("/")
    watched.now = 1.0
    assert watched.knows("a")
    assert watched.told == []


# The argument of --auth jwt:


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("", "a file with keys is needed"),
        (":alg=HS256", "a file with keys is needed"),
        ("{path}:alg=none", "alg=none: choose one of HS256, RS256, ES256, EdDSA"),
        ("{path}:algorithm=HS256", "algorithm= is none of alg, audience, issuer, leeway"),
        ("{path}:audience=", "audience= is none of"),
        ("{path}:alg=EdDSA:alg=EdDSA", "given twice"),
        ("{path}:leeway=soon", "leeway: not a whole number of seconds from 0 to 300"),
        ("{path}:leeway=301", "leeway: not a whole number"),
        ("{path}.gone", "keys.json.gone: No such file or directory"),
        ("{path}.pem:alg=HS256", "a key for EdDSA, not for HS256"),
    ],
)
def test_a_wrong_argument_is_said(tmp_path: Path, argument: str, problem: str) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(issuer.key_set())
    path.with_suffix(".json.pem").write_bytes(issuer.public_pem("EdDSA"))
    with pytest.raises(InvalidAuthArgumentString) as error:
        checker(argument.replace("{path}", str(path)))
    assert problem in str(error.value)


def ask(folder: Path, options: str, text: str) -> Any:
    # A colon begins an option only in front of a name and an equals sign.
    path = folder / "keys:1.json"
    path.write_bytes(issuer.key_set(issuer.jwk("EdDSA")))
    return checker(f"{path}{options}").requestAvatarId(BearerToken(text.encode()))


def test_audience_and_issuer_have_to_fit(tmp_path: Path) -> None:
    options = ":audience=urn:x:y:issuer=https://id.example:8443/a"
    good = {"aud": ["z", "urn:x:y"], "iss": "https://id.example:8443/a"}
    assert ask(tmp_path, options, issuer.token(**good)).covers("room")
    for name, wrong, reason in (
        ("aud", "urn:x", "another audience"),
        ("aud", None, "the token has no aud"),
        ("iss", "https://id.example:8443/", "another issuer"),
        ("iss", None, "the token has no iss"),
    ):
        with pytest.raises(TokenRefused, match=reason):
            ask(tmp_path, options, issuer.token(**{**good, name: wrong}))


def test_leeway_is_for_both_ends_and_for_the_connection(tmp_path: Path) -> None:
    now = int(time.time())
    text = issuer.token(exp=now - 30, nbf=now + 90)
    with pytest.raises(TokenRefused):
        ask(tmp_path, "", text)
    assert ask(tmp_path, ":leeway=100", text).expires == now + 70


NOW = 1_800_000_000


def judge(**claims: Any) -> Any:
    """Check a token at ``NOW``; returns its grant."""
    keys: Any = SimpleNamespace(keys=read_keys(issuer.key_set()))
    minted = {"exp": NOW + 60, **claims}
    return JwtChecker(keys, wall_clock=lambda: NOW).requestAvatarId(BearerToken(issuer.token(**minted).encode()))


@pytest.mark.parametrize("claim", ["nbf", "iat"])
def test_a_clock_that_is_a_minute_ahead_mints_good_tokens(claim: str) -> None:
    assert judge(**{claim: NOW + 60}).covers("room")
    with pytest.raises(TokenRefused, match=r"^the token is not valid yet$"):
        judge(**{claim: NOW + 61})


def test_no_token_is_good_after_its_end_by_any_skew() -> None:
    assert judge(exp=NOW + 0.5).expires == NOW + 0.5
    with pytest.raises(TokenRefused, match=r"^the token has expired$"):
        judge(exp=NOW)


@pytest.mark.parametrize(
    "value", [True, "1800000060", "soon", [], {}, float("inf"), float("-inf"), float("nan"), 10**400, -(10**400)]
)
@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
def test_a_moment_that_is_no_number_is_named(claim: str, value: Any) -> None:
    with pytest.raises(TokenRefused, match=f"^the token: {claim} has to be a number of seconds$"):
        judge(**{claim: value})


@pytest.mark.parametrize("value", [7, True, ["Ada"], {}, "\ud800", "Ada\udfff"])
@pytest.mark.parametrize("claim", ["sub", "jti"])
def test_a_name_that_is_no_text_is_named(claim: str, value: Any) -> None:
    with pytest.raises(TokenRefused, match=f"^the token: {claim} has to be a string, in Unicode$"):
        judge(**{claim: value})


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": 1e300, "nbf": -1e300, "iat": -5},
        {"sub": "\0", "jti": "\n\x1b[0m"},
        {"sub": "x" * 10_000},
        {"sub": ""},
        {"iss": "", "typ": 7},
    ],
)
def test_what_is_odd_but_well_formed_is_taken(claims: dict[str, Any]) -> None:
    assert judge(**claims).covers("room")


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> JwtChecker:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    path.write_bytes(issuer.key_set())
    return checker(str(path))


@given(one=st.binary(max_size=60), two=st.binary(max_size=60))
def test_no_garbage_is_anything_but_refused(subject: JwtChecker, one: bytes, two: bytes) -> None:
    head, claims, signature = (part.encode() for part in issuer.token().split("."))
    coded = issuer.segment(one).encode()
    for parts in ([one], [one, two], [one, two, one], [coded, claims, signature], [head, coded, signature]):
        with pytest.raises(TokenRefused):
            subject.requestAvatarId(BearerToken(b".".join(parts)))


@given(
    st.dictionaries(
        st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk", "jku", "x5c"]),
        st.none() | st.booleans() | st.text() | st.sampled_from(issuer.ALGORITHMS) | st.lists(st.text()),
    )
)
def test_no_header_talks_the_checker_into_anything(subject: JwtChecker, header: dict[str, Any]) -> None:
    _, claims, signature = issuer.token().split(".")
    with pytest.raises(TokenRefused):
        subject.requestAvatarId(BearerToken(f"{issuer.segment(header)}.{claims}.{signature}".encode()))
