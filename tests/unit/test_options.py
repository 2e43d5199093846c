"""The command line, the environment, and what they become."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from twisted.logger import LogLevel
from twisted.python.usage import UsageError

from signaling import Limits, Options
from signaling.app.service import makeService
from signaling.errors import StartError


def parse(*arguments: str, **environ: str) -> Options:
    options = Options(environ)
    options.parseOptions(list(arguments))
    return options


def refusal(*arguments: str, **environ: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse(*arguments, **environ)
    return str(caught.value)


def test_nothing_given_means_the_defaults() -> None:
    options = parse()
    assert (options.port, options.listen, options.log_level) == (8081, [], LogLevel.info)
    assert options.limits == Limits()


def test_an_option_beats_the_environment_and_that_the_default() -> None:
    assert parse(PORT="9000", LOG_LEVEL="WARN").port == 9000
    assert parse(PORT="9000", LOG_LEVEL="WARN").log_level is LogLevel.warn
    both = parse("--port", "9001", "--log-level", "Debug", PORT="9000", LOG_LEVEL="warn")
    assert (both.port, both.log_level) == (9001, LogLevel.debug)
    assert parse("--port=9001", PORT="nonsense").port == 9001


def test_an_empty_variable_counts_as_unset() -> None:
    options = parse(PORT="", LOG_LEVEL="")
    assert (options.port, options.log_level) == (8081, LogLevel.info)


def test_the_backplane_is_a_url_of_the_command_line_or_the_environment() -> None:
    assert parse(BACKPLANE="").backplane is None
    assert str(parse(BACKPLANE="redis://:north@a").backplane) == "redis://a:6379/0"
    assert str(parse("--backplane=redis://b/1", BACKPLANE="nonsense").backplane) == "redis://b:6379/1"
    assert refusal(BACKPLANE="redis://:north@").startswith("BACKPLANE: there is no host in it")
    assert "north" not in refusal("--backplane=redis://:north@")


def test_listen_repeats_and_is_in_place_of_the_port() -> None:
    options = parse("--listen", "tcp:1", "--listen", "unix:/x", PORT="nonsense")
    assert options.listen == ["tcp:1", "unix:/x"]
    assert refusal("--listen", "tcp:1", "--port", "2") == "--listen is in place of --port: give one or the other"


def test_one_process_by_default_and_one_for_each_core_on_request() -> None:
    assert parse().workers == 1
    assert parse("--workers=3").workers == 3
    assert parse("--workers=0").workers == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("text", ["x", "-1", "1.5", "", "257", "²"])
def test_a_number_of_workers_that_is_none_is_named(text: str) -> None:
    right = "a whole number from 0 up, at most 256 (for example 2)"
    assert refusal("--workers", text) == f"--workers: {text!r} is not {right}"


def test_workers_are_told_what_was_given() -> None:
    assert parse("--workers=2", "--max-connections", "5").words == ["--workers=2", "--max-connections", "5"]


def test_an_application_is_one_process() -> None:
    with pytest.raises(StartError, match="--workers: only twistd starts workers"):
        makeService(parse("--workers=2", "--port=0"))


def test_every_bound_is_set_by_its_option() -> None:
    options = parse(
        "--ping-interval=1.5",
        "--ping-timeout=2.5",
        "--handshake-timeout=3",
        "--write-timeout=0.5",
        "--resume-window=30",
        "--shutdown-timeout=0",
        "--max-message-bytes=1000000",
        "--high-water-mark=4",
        "--max-connections=100",
        "--max-connections-per-address=0",
        "--max-connection-rate=0.5",
        "--connection-burst=5",
        "--max-peers-per-topic=50",
        "--max-message-rate=20",
        "--message-burst=40",
        "--max-topic-bytes=64",
        "--max-metadata-bytes=1024",
        "--max-header-bytes=8192",
        "--max-body-bytes=1",
    )
    assert options.limits == Limits(
        ping_interval_seconds=1.5,
        ping_timeout_seconds=2.5,
        handshake_timeout_seconds=3.0,
        write_timeout_seconds=0.5,
        resume_window_seconds=30.0,
        shutdown_timeout_seconds=0.0,
        max_message_bytes=1_000_000,
        high_water_bytes=2_000_000,
        high_water_messages=4,
        max_connections=100,
        max_connections_per_address=0,
        max_connections_per_address_per_second=0.5,
        connection_burst=5,
        max_peers_per_topic=50,
        max_messages_per_second=20.0,
        message_burst=40,
        max_topic_bytes=64,
        max_metadata_bytes=1024,
        max_header_bytes=8192,
        max_body_bytes=1,
    )


def test_origins_and_proxies_repeat() -> None:
    options = parse(
        "--allow-origin=https://a.example", "--allow-origin=null", "--trusted-proxy=::1", "--trusted-proxy=10.0.0.0/8"
    )
    assert options.allow_origins == ["https://a.example", "null"]
    assert options.trusted_proxies == ["::1", "10.0.0.0/8"]


def test_metrics_hosts_repeat() -> None:
    assert parse("--metrics-host=a.example", "--metrics-host=b").metrics_hosts == ["a.example", "b"]


def test_ice_servers_come_from_files_and_the_secret_from_the_environment_too(tmp_path: Path) -> None:
    servers, secret = tmp_path / "ice.json", tmp_path / "secret"
    servers.write_text('[{"urls": "stun:stun.example.com"}]')
    secret.write_text("north\n")
    uri = "turn:turn.example.com"
    by_file = parse(f"--ice-servers={servers}", f"--turn-secret-file={secret}", f"--turn-uri={uri}", "--turn-ttl=60")
    stun, turn = json.loads(by_file.ice_servers.text("x") or b"")
    assert (stun["urls"], turn["urls"]) == ("stun:stun.example.com", [uri])
    assert by_file.ice_servers.renewal_seconds == 30
    assert json.loads(parse(f"--turn-uri={uri}", TURN_SECRET="north").ice_servers.text("x") or b"")[0]["urls"] == [uri]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--ice-servers=/no/such/file"], "--ice-servers: /no/such/file: No such file or directory"),
        (["--ice-servers=/dev/null"], "--ice-servers: /dev/null: not JSON: Input data was truncated"),
        (["--turn-secret-file=/dev/null"], "--turn-secret-file: name the servers that know it, with --turn-uri"),
        (
            ["--turn-uri=turn:a"],
            "--turn-uri: a secret is needed, in a file (--turn-secret-file) or in TURN_SECRET",
        ),
        (
            ["--turn-uri=turn:a", "--turn-secret-file=/dev/null"],
            "--turn-uri: a secret is needed, in a file (--turn-secret-file) or in TURN_SECRET",
        ),
    ],
)
def test_what_is_wrong_with_ice_servers_is_said(arguments: list[str], text: str) -> None:
    assert refusal(*arguments) == text


def test_a_wrong_turn_uri_or_ttl_is_named() -> None:
    assert refusal("--turn-uri=a", TURN_SECRET="s").startswith("--turn-uri: 'a' is not a TURN URI (for example")
    right = "is not a whole number of seconds from 2 to 2678400 (for example 3600)"
    for text in ("1", "soon", "99999999999", "-5"):
        assert refusal("--turn-uri=turn:a", f"--turn-ttl={text}", TURN_SECRET="s") == f"--turn-ttl: {text!r} {right}"


@pytest.mark.parametrize("text", ["65536", "-1", "80a", "", "\uff18\uff10", "1e3", " 80"])
def test_a_bad_port_is_named_with_where_it_came_from(text: str) -> None:
    assert refusal(f"--port={text}").startswith(f"--port: {text!r} is not a port (a whole number from 0 to 65535")
    if text:
        assert refusal(PORT=text).startswith(f"PORT: {text!r} is not a port")


def test_a_bad_log_level_names_the_good_ones() -> None:
    assert refusal("--log-level", "loud") == "--log-level: 'loud' is not a log level (one of debug, info, warn, error)"
    assert refusal(LOG_LEVEL="loud").startswith("LOG_LEVEL: 'loud' is not a log level")


@pytest.mark.parametrize("option", ["ping-interval", "ping-timeout", "handshake-timeout", "write-timeout"])
@pytest.mark.parametrize("text", ["soon", "nan", "inf", "", "1s"])
def test_a_time_that_is_no_number_is_named(option: str, text: str) -> None:
    right = f"--{option}: {text!r} is not a number of seconds (for example 20 or 0.5)"
    assert refusal(f"--{option}={text}") == right


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("--ping-interval=-1", "--ping-interval: -1.0 is not from 0 to 86400 seconds"),
        ("--ping-timeout=0", "--ping-timeout: 0.0 is not more than 0 and at most 86400 seconds"),
        ("--write-timeout=1e9", "--write-timeout: 1000000000.0 is not more than 0 and at most 86400 seconds"),
        ("--max-message-bytes=0", "--max-message-bytes: 0 is not a whole number from 1 up"),
        ("--max-message-bytes=64k", "--max-message-bytes: '64k' is not a whole number from 1 up (for example 65536)"),
        ("--max-connections=0", "--max-connections: 0 is not a whole number from 1 up"),
        ("--max-connections=many", "--max-connections: 'many' is not a whole number from 1 up (for example 1000)"),
        (
            "--max-connections-per-address=-1",
            "--max-connections-per-address: '-1' is not a whole number from 0 up (for example 1000)",
        ),
        ("--max-message-rate=fast", "--max-message-rate: 'fast' is not a number a second (for example 10 or 0.5)"),
        ("--max-message-rate=-1", "--max-message-rate: -1.0 is not from 0 to 1000000 a second"),
        (
            "--allow-origin=example.com",
            "--allow-origin: 'example.com' is not an origin"
            " (right are for example https://example.com and https://*.example.com)",
        ),
        (
            "--metrics-host=https://a.example",
            "--metrics-host: 'https://a.example' is not a host name (for example metrics.example.com)",
        ),
        (
            "--trusted-proxy=proxy",
            "--trusted-proxy: 'proxy' is not an address or a network"
            " (right are for example 127.0.0.1, 10.0.0.0/8, fd00::/8 and unix)",
        ),
        ("--high-water-mark=1.5", "--high-water-mark: '1.5' is not a whole number from 1 up (for example 16)"),
    ],
)
def test_a_bound_out_of_range_is_named_with_its_range(argument: str, text: str) -> None:
    assert refusal(argument) == text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--prot", "1"], "--prot: there is no such option; did you mean --port?"),
        (["--ping-intervall=1"], "--ping-intervall: there is no such option; did you mean --ping-interval?"),
        (["--xyzzy"], "--xyzzy: there is no such option; twistd signaling --help lists the options"),
        (["-x"], "-x: there is no such option; twistd signaling --help lists the options"),
        (["8081"], "'8081': only options are taken, for example --port 8081"),
    ],
)
def test_what_is_no_option_is_named(arguments: list[str], text: str) -> None:
    assert refusal(*arguments) == text


def test_an_option_without_its_value_is_named() -> None:
    assert "--port" in refusal("--port")


def test_help_names_every_option_with_its_default() -> None:
    text = " ".join(str(Options({})).split())
    for words in ("--listen", "$PORT or 8081", "$LOG_LEVEL or info", "default: 20", "default: 65536", "default: 16"):
        assert words in text
