"""The URL of a cluster's store: its parts, and the errors for one that is wrong."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signaling.backplane.redis.url import Address, Credentials, StoreUrl, parse
from signaling.files import reading_pipes

SENTINELS = "redis+sentinel://a,b:1,[::1]/main"


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("redis://host", StoreUrl("redis", (Address("host", 6379),))),
        ("redis://host:1/", StoreUrl("redis", (Address("host", 1),))),
        ("redis://host:1/15", StoreUrl("redis", (Address("host", 1),), database=15)),
        ("redis://[2001:db8::1]:1", StoreUrl("redis", (Address("2001:db8::1", 1),))),
        ("redis://host?prefix=a%3A", StoreUrl("redis", (Address("host", 6379),), prefix="a:")),
        ("redis://:@host", StoreUrl("redis", (Address("host", 6379),))),
        (
            "redis://:a%40%2F%3f%23%25@host",
            StoreUrl("redis", (Address("host", 6379),), credentials=Credentials("", "a@/?#%")),
        ),
        ("redis://a:b:c+d@host", StoreUrl("redis", (Address("host", 6379),), credentials=Credentials("a", "b:c+d"))),
        ("redis://a:b@c@host", StoreUrl("redis", (Address("host", 6379),), credentials=Credentials("a", "b@c"))),
        ("rediss://host?ca=/a%20b", StoreUrl("rediss", (Address("host", 6379),), ca="/a b")),
        ("rediss://host?cert=/c", StoreUrl("rediss", (Address("host", 6379),), cert="/c", key="/c")),
        ("rediss://host?cert=/c&key=/k", StoreUrl("rediss", (Address("host", 6379),), cert="/c", key="/k")),
        ("redis+unix:///run/redis.sock", StoreUrl("redis+unix", socket="/run/redis.sock")),
        (
            "redis+unix://a:b@/run/redis.sock?db=2",
            StoreUrl("redis+unix", socket="/run/redis.sock", database=2, credentials=Credentials("a", "b")),
        ),
        (
            SENTINELS,
            StoreUrl("redis+sentinel", (Address("a", 26379), Address("b", 1), Address("::1", 26379)), service="main"),
        ),
        (
            "rediss+sentinel://:x@a/main/4?sentinel-user=u&sentinel-password=p%26q&ca=/c",
            StoreUrl(
                "rediss+sentinel",
                (Address("a", 26379),),
                service="main",
                database=4,
                credentials=Credentials("", "x"),
                sentinel_credentials=Credentials("u", "p&q"),
                ca="/c",
            ),
        ),
    ],
)
def test_it_has_an_address_credentials_and_options(text: str, parsed: StoreUrl) -> None:
    assert parse(text) == parsed


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://ada:north@host/3?prefix=x", "redis://host:6379/3"),
        ("rediss://:north@[::1]", "rediss://[::1]:6379/0"),
        ("redis+unix://:north@/run/redis.sock?db=1", "redis+unix:///run/redis.sock?db=1"),
        (SENTINELS + "?sentinel-password=north", "redis+sentinel://a:26379,b:1,[::1]:26379/main/0"),
    ],
)
def test_its_text_may_be_logged(text: str, shown: str) -> None:
    url = parse(text)
    assert str(url) == shown
    assert "north" not in str(url) + repr(url)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it does not begin with one of redis://, rediss://, redis+unix://, redis+sentinel://, rediss+sentinel://"),
        ("host:6379", "it does not begin with one of"),
        ("http://:north@host", "it does not begin with one of"),
        ("redis://", "there is no host in it, as in redis://store.example.com:6379"),
        ("redis://:north@", "there is no host in it"),
        ("redis://host:0", "the port is not a whole number from 1 to 65535"),
        ("redis://host:65536", "the port is not a whole number from 1 to 65535"),
        ("redis://:north/2@host", "there is no host in it"),
        ("redis://ada:north/2@host", "the port is not a whole number from 1 to 65535; in a user or a password, / is"),
        ("redis://::1", "there is no host in it"),
        ("redis://[::1", "there is no host in it"),
        ("redis://[::1]6379", "there is no host in it"),
        ("redis://host/one", "the database is not a whole number from 0 up"),
        ("redis://host/-1", "the database is not a whole number from 0 up"),
        ("redis://a,b", "only redis+sentinel:// takes several hosts"),
        ("redis://ada@host", "a user needs a password, as in user:password@, or in a file: password-file="),
        ("redis://:nor#th@host", "it has a #"),
        ("redis://:nor?th@host", "redis:// takes prefix=, password-file= after its"),
        ("redis://host?ca=/c", "redis:// takes prefix=, password-file= after its"),
        ("rediss://host?north", "rediss:// takes prefix=, password-file=, ca=, cert=, key= after its"),
        ("rediss://host?key=/k", "key= is the key of a certificate: name it, with cert="),
        ("redis://:%ff@host", "a % does not begin a character of UTF-8"),
        ("redis+unix://host/path", "the path of the socket is missing, as in redis"),
        ("redis+unix://", "the path of the socket is missing"),
        ("redis+sentinel://a,b", "the name of the service is missing, as in redis+sentinel://host1,host2,host3/my"),
        ("redis+sentinel://a,/main", "there is no host in it"),
        ("redis+sentinel://a/main?sentinel-user=u", "or in a file: sentinel-password-file="),
        ("redis://host?password-file=/no/such", "password-file=: /no/such: No such file or directory"),
        ("redis://host?password-file=/dev/null", "password-file=: /dev/null: there is no password in it"),
        ("redis://:north@host?password-file=/dev/null", "password-file= is in place of a password"),
    ],
)
def test_an_error_says_what_is_wrong_without_the_password(text: str, reason: str) -> None:
    # /dev/null is an empty file at the start.
    with reading_pipes(), pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is looked at here
        parse(text)
    assert reason in str(caught.value)
    assert "north" not in str(caught.value)


@given(before=st.text(max_size=8), after=st.text(max_size=8), scheme=st.sampled_from(["redis", "redis+sentinel", "x"]))
def test_however_a_password_is_written_no_error_shows_it(before: str, after: str, scheme: str) -> None:
    said = ""
    try:
        parse(f"{scheme}://ada:{before}north{after}@host:1/2")
    except ValueError as error:
        said = str(error)
    assert "north" not in said


@given(text=st.text(), scheme=st.sampled_from(["redis", "rediss", "redis+unix", "redis+sentinel"]))
def test_any_text_is_a_url_or_an_error(text: str, scheme: str) -> None:
    with suppress(ValueError):
        assert parse(f"{scheme}://{text}").scheme == scheme


def test_a_password_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("north ß\n", encoding="utf-8")
    assert parse(f"redis://host?password-file={file}").credentials == Credentials("", "north ß")
    assert parse(f"redis://ada@host?password-file={file}").credentials == Credentials("ada", "north ß")
    sentinels = parse(f"redis+sentinel://a/b?sentinel-password-file={file}")
    assert sentinels.sentinel_credentials == Credentials("", "north ß")
    file.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="it is not text in UTF-8"):
        parse(f"redis://host?password-file={file}")
