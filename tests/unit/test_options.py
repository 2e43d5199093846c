"""The command line and the environment, and what they are parsed to."""

from __future__ import annotations

import json
import os
import runpy
import sys
from dataclasses import Field, fields
from pathlib import Path

import pytest
from twisted.logger import LogLevel
from twisted.python.failure import Failure

from signaling import Limits, Options
from signaling.app.option_table import OPTIONS, help_text
from signaling.app.service import makeService
from signaling.auth.cred import Access
from signaling.core.grants import Password
from signaling.errors import StartError
from signaling.ice_source.provider import SourceSettings
from signaling.limits import LIMIT_OPTIONS, Unit
from tests.unit.parsing import parse, refusal

TREE = Path(__file__).parents[2]
LIMITS = {option.name: option for option in LIMIT_OPTIONS.values() if option.name}


def test_the_defaults() -> None:
    options = parse()
    assert (options.port, options.listen, options.log_level) == (8081, [], LogLevel.info)
    assert options.limits == Limits()


def test_an_option_has_precedence_over_its_variable() -> None:
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
    # As of a shell's variable that is not set: the node would be alone.
    assert refusal("--backplane=").startswith("--backplane: it does not begin with one of redis://")


ADMIN = "--admin-listen"


@pytest.mark.parametrize("listen", ["unix:/run/a", "unix:/run/a:mode=600", "unix:/run/a:770", "unix:address=/run/a"])
def test_the_admin_api_needs_no_token_on_a_socket_of_this_user_and_group(listen: str) -> None:
    assert parse(ADMIN, listen).admin_tokens is None


@pytest.mark.parametrize(
    "listen",
    ["tcp:1:interface=127.0.0.1", "unix:/run/a:mode=666", "unix:/run/a:661", "systemd:domain=UNIX:index=0", "x"],
)
def test_the_admin_api_needs_a_token_elsewhere(listen: str, tmp_path: Path) -> None:
    assert refusal(ADMIN, listen).startswith(f"--admin-listen {listen}: others can connect")
    (tmp_path / "tokens").write_text("0123456789abcdef")
    tokens = parse(ADMIN, listen, "--admin-token-file", str(tmp_path / "tokens")).admin_tokens
    assert tokens is not None
    assert tokens.accept([b"Bearer 0123456789abcdef"])


def test_tokens_of_the_admin_api_are_checked(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("too short")
    file = ("--admin-token-file", str(tmp_path / "tokens"))
    assert refusal(*file) == "--admin-token-file: say where the admin API listens, with --admin-listen"
    assert refusal(ADMIN, "tcp:1", *file).startswith(
        f"--admin-token-file: {tmp_path}/tokens: line 1: a token has at least 16"
    )


def test_listen_repeats_and_replaces_the_port() -> None:
    options = parse("--listen", "tcp:1", "--listen", "unix:/x", PORT="nonsense")
    assert options.listen == ["tcp:1", "unix:/x"]
    assert refusal("--listen", "tcp:1", "--port", "2") == "--listen: it is in place of --port: give one or the other"


def test_workers_are_1_by_default_and_0_means_one_for_each_core() -> None:
    assert parse().workers == 1
    assert parse("--workers=3").workers == 3
    assert parse("--workers=0").workers == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("text", ["x", "-1", "1.5", "", "257", "000000999", "²"])
def test_an_invalid_number_of_workers_is_named(text: str) -> None:
    right = "a whole number from 0 up, at most 256 (for example 2)"
    assert refusal("--workers", text) == f"--workers: {text!r} is not {right}"


def test_the_arguments_are_kept_for_workers() -> None:
    assert parse("--workers=2", "--max-connections", "5").arguments == ["--workers=2", "--max-connections", "5"]


def test_an_application_is_one_process() -> None:
    with pytest.raises(StartError, match="--workers: only twistd starts workers"):
        makeService(parse("--workers=2", "--port=0"))


def test_several_limits_together() -> None:
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
            "--turn-secret-file: /dev/null: there is no secret in it",
        ),
    ],
)
def test_an_error_in_ice_servers_is_named(arguments: list[str], text: str) -> None:
    assert refusal(*arguments) == text


def test_a_provider_of_ice_servers_has_a_url_a_token_and_a_time(tmp_path: Path) -> None:
    assert parse().ice_source is None
    path = tmp_path / "token"
    path.write_text("north\n")
    settings = parse("--ice-source=https://a", f"--ice-source-token-file={path}", "--ice-source-ttl=600").ice_source
    assert settings == SourceSettings("https://a", str(path), 600)
    assert settings is not None
    assert settings.read_token() == "north"
    assert parse("--ice-source=https://a").ice_source == SourceSettings("https://a", None, 86_400)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--ice-source=http://a/secret"], "--ice-source: it has to begin with https://, as others could read"),
        (["--ice-source=https://u:secret@a"], "--ice-source: it may have no user name and password"),
        (["--ice-source=https://a?k={token}"], "--ice-source: {token} stands for the token: give its file, with"),
        (["--ice-source-token-file=/dev/null"], "--ice-source-token-file: name the provider that takes it, with"),
        (["--ice-source=https://a", "--ice-source-token-file=/none"], "--ice-source-token-file: /none: No such file"),
        (["--ice-source=https://a", "--ice-source-token-file=/dev/null"], "--ice-source-token-file: /dev/null: not a"),
        (["--ice-source-ttl=59"], "--ice-source-ttl: '59' is not a whole number of seconds from 60 to 2678400"),
    ],
)
def test_an_error_in_the_provider_of_ice_servers_is_named(arguments: list[str], text: str) -> None:
    found = refusal(*arguments)
    assert found.startswith(text)
    assert "secret" not in found


def test_a_provider_of_ice_servers_needs_the_extra_for_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "signaling.ice_source.source", None)
    with pytest.raises(
        StartError, match=r"^--ice-source: needs the extra tls \(pip install 'twisted-signaling\[tls\]'\): "
    ):
        makeService(parse("--port=0", "--ice-source=https://a"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_webhook_needs_a_host_that_can_have_a_certificate(tmp_path: Path, workers: int) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"whsec_{'A' * 32}")
    arguments = (f"--workers={workers}", "--webhook=https://my_host/hidden", f"--webhook-secret-file={secret}")
    with pytest.raises(StartError, match=r"^--webhook: no certificate can be for this host: .*my_host"):
        makeService(parse("--port=0", *arguments))


@pytest.mark.parametrize("option", ["--ice-source=https://a", "--backplane=redis://a"])
def test_what_workers_lack_is_named_before_they_start(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    monkeypatch.setitem(sys.modules, "signaling.ice_source.source", None)
    monkeypatch.setitem(sys.modules, "signaling.backplane.redis.engine", None)
    with pytest.raises(StartError, match=f"^{option.partition('=')[0]}: needs "):
        makeService(parse("--port=0", "--workers=2", option))


def test_a_turn_secret_may_have_any_bytes() -> None:
    # As os.environ has a byte that is not UTF-8.
    assert parse("--turn-uri=turn:a", TURN_SECRET="\udcff").ice_servers.text("x")


def test_an_invalid_turn_uri_or_ttl_is_named() -> None:
    assert refusal("--turn-uri=a", TURN_SECRET="s").startswith("--turn-uri: 'a' is not a TURN URI (for example")
    right = "is not a whole number of seconds from 2 to 2678400 (for example 3600)"
    for text in ("1", "soon", "99999999999", "-5"):
        assert refusal("--turn-uri=turn:a", f"--turn-ttl={text}", TURN_SECRET="s") == f"--turn-ttl: {text!r} {right}"


@pytest.mark.parametrize("text", ["65536", "000000070000", "-1", "80a", "", "\uff18\uff10", "1e3", " 80"])
def test_an_invalid_port_is_named_with_its_source(text: str) -> None:
    assert refusal(f"--port={text}").startswith(f"--port: {text!r} is not a port (a whole number from 0 to 65535")
    if text:
        assert refusal(PORT=text).startswith(f"PORT: {text!r} is not a port")


def test_an_invalid_log_level_is_named_with_the_valid_ones() -> None:
    assert refusal("--log-level", "loud") == "--log-level: 'loud' is not a log level (one of debug, info, warn, error)"
    assert refusal(LOG_LEVEL="loud").startswith("LOG_LEVEL: 'loud' is not a log level")


@pytest.mark.parametrize("option", ["ping-interval", "ping-timeout", "handshake-timeout", "write-timeout"])
@pytest.mark.parametrize("text", ["soon", "nan", "inf", "", "1s"])
def test_a_time_that_is_not_a_number_is_named(option: str, text: str) -> None:
    right = f"--{option}: {text!r} is not a number of seconds (for example 20 or 0.5)"
    assert refusal(f"--{option}={text}") == right


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("--ping-interval=-1", "--ping-interval: -1 is not from 0 to 86400 seconds"),
        ("--ping-timeout=0", "--ping-timeout: 0 is not more than 0 and at most 86400 seconds"),
        ("--write-timeout=1e9", "--write-timeout: 1000000000 is not more than 0 and at most 86400 seconds"),
        ("--max-message-bytes=0", "--max-message-bytes: 0 is not a whole number from 1 up"),
        ("--max-message-bytes=64k", "--max-message-bytes: '64k' is not a whole number from 1 up (for example 65536)"),
        ("--max-connections=0", "--max-connections: 0 is not a whole number from 1 up"),
        ("--max-connections=many", "--max-connections: 'many' is not a whole number from 1 up (for example 1000)"),
        (
            "--max-connections-per-address=-1",
            "--max-connections-per-address: '-1' is not a whole number from 0 up (for example 1000)",
        ),
        ("--max-message-rate=fast", "--max-message-rate: 'fast' is not a number a second (for example 10 or 0.5)"),
        ("--max-message-rate=-1", "--max-message-rate: -1 is not from 0 to 1000000 a second"),
        (
            "--allow-origin=example.com",
            "--allow-origin: 'example.com' is not an origin: it begins with a scheme, for example https://example.com",
        ),
        (
            "--metrics-host=https://a.example",
            "--metrics-host: 'https://a.example' is not a host name (for example metrics.example.com)",
        ),
        (
            "--trusted-proxy=proxy",
            "--trusted-proxy: 'proxy' is not an address or a network"
            " (for example 127.0.0.1, 10.0.0.0/8, fd00::/8 or unix)",
        ),
        (
            "--trusted-proxy=10.0.0.1/8",
            "--trusted-proxy: '10.0.0.1/8' is not an address or a network (the network of this address is 10.0.0.0/8)",
        ),
        (
            "--help-auth-type=jwks",
            "--help-auth-type: 'jwks' is no kind of check; there are anonymous, file, jwt, memory, unix",
        ),
        ("--log-addresses=some", "--log-addresses: 'some' is not a detail of addresses (one of off, network, full)"),
        (
            "--proxy-header=Via",
            "--proxy-header: 'Via' is not a header that names clients (X-Forwarded-For or Forwarded)",
        ),
        (
            "--path-prefix=signal",
            "--path-prefix: 'signal' is not a path prefix: it begins with one slash and does not end with one;"
            " write /signal",
        ),
        ("--high-water-mark=1.5", "--high-water-mark: '1.5' is not a whole number from 1 up (for example 16)"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_range(argument: str, text: str) -> None:
    assert refusal(argument) == text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--prot", "1"], "--prot: there is no such option; did you mean --port?"),
        (["--ping-intervall=1"], "--ping-intervall: there is no such option; did you mean --ping-interval?"),
        (["--xyzzy"], "--xyzzy: there is no such option; signaling --help lists the options"),
        (["--redis=x"], "--redis: there is no such option; signaling --help lists the options"),
        (["-x"], "-x: there is no such option; signaling --help lists the options"),
        (["--admin=[::1]:9"], "--admin: there is no such option; did you mean --admin-listen or --admin-token-file?"),
        (["--log-"], "--log-: there is no such option; did you mean --log-addresses or --log-format or --log-level?"),
        (["8081"], "'8081': only options are taken, for example --port 8081"),
    ],
)
def test_an_unknown_option_is_named(arguments: list[str], text: str) -> None:
    assert refusal(*arguments) == text


def test_an_option_without_its_value_is_named() -> None:
    assert refusal("--port") == "option --port requires argument"


def test_a_flag_with_a_value_is_named() -> None:
    assert refusal("--demo=true") == "option --demo must not have an argument"


# The options of `--help`, docs/options.md, the environment and `Limits` are the same


def test_every_option_of_the_command_line_is_in_one_table() -> None:
    accepted = {name.rstrip("=") for name in Options({}).longOpt} - {"help", "version"}
    assert accepted == {option.name for option in OPTIONS} | set(LIMITS)
    assert not {option.name for option in OPTIONS} & set(LIMITS)


def test_help_shows_the_text_and_the_default_of_every_option() -> None:
    text = " ".join(str(Options({})).split())
    for option in (*OPTIONS, *LIMITS.values()):
        assert help_text(option) in text
        assert f"{option.default_text}]".replace("`", "") in text


def test_the_page_of_options_is_up_to_date() -> None:
    page = runpy.run_path(str(TREE / "tools" / "options_page.py"))
    page["main"](["--check"])


@pytest.mark.parametrize("name", LIMITS)
def test_the_option_of_a_limit_sets_its_field_and_no_other(name: str) -> None:
    [field] = [field for field, option in LIMIT_OPTIONS.items() if option.name == name]
    assert parse(f"--{name}=7").limits == Limits(**{field: 7})


@pytest.mark.parametrize("name", LIMITS)
def test_0_is_accepted_if_the_option_says_what_it_means(name: str) -> None:
    if LIMITS[name].zero is not None:
        parse(f"--{name}=0")
    else:
        assert refusal(f"--{name}=0").startswith(f"--{name}: 0")


@pytest.mark.parametrize("field", fields(Limits), ids=lambda field: field.name)
def test_a_limit_has_the_unit_of_its_name_and_shows_its_default(field: Field[object]) -> None:
    option = LIMIT_OPTIONS[field.name]
    ends = {Unit.BYTES: "_bytes", Unit.SECONDS: "_seconds", Unit.PER_SECOND: "_per_second"}
    assert [unit for unit, end in ends.items() if field.name.endswith(end)][-1:] == (
        [] if option.unit is Unit.COUNT else [option.unit]
    )
    assert option.default
    if field.default is not None:
        assert float(option.default) == field.default


@pytest.mark.parametrize(("name", "password"), [("alice", "secret"), ("Zoë", "schön"), ("\udcff", "\udcfe")])
def test_a_password_in_memory_is_compared_with_the_bytes_of_a_request(name: str, password: str) -> None:
    portal = parse(f"--auth=memory:bob:other:{name}:{password}").portal
    assert portal is not None
    access, username = Access(portal, str), os.fsencode(name)
    grants = []
    access.login(Password(username, os.fsencode(password))).addCallback(lambda login: grants.append(login[1]))
    assert [grant.covers("room") for grant in grants] == [True]
    refusals: list[Failure] = []
    access.login(Password(username, b"other")).addErrback(refusals.append)
    assert [refused.value.args for refused in refusals] == [("this name, password or token is not right",)]


def test_webhooks_need_a_url_and_a_secret(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("whsec_" + "A" * 32 + "\n")
    settings = parse("--webhook=https://example.com/x", f"--webhook-secret-file={secret}", "--webhook-queue=7").webhook
    assert settings is not None
    assert (str(settings.url), settings.keys, settings.max_events) == ("https://example.com:443", [bytes(24)], 7)
    assert parse().webhook is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--webhook=https://example.com/"], "--webhook: a secret is needed, in a file (--webhook-secret-file)"),
        (["--webhook-secret-file=/dev/null"], "--webhook-secret-file: name the receiver, with --webhook"),
        (
            ["--webhook=gopher://example.com/"],
            "--webhook: it has to begin with https:// or http:// (for example https://example.com/presence)",
        ),
        (
            ["--webhook=https://example.com/", "--webhook-secret-file=/dev/null"],
            "--webhook-secret-file: /dev/null: there is no secret (whsec_ and the base64 of 24 to 64 bytes)",
        ),
        (
            ["--webhook-queue=0"],
            "--webhook-queue: '0' is not a whole number from 1 to 1000000 (for example 10000)",
        ),
    ],
)
def test_what_is_wrong_with_a_webhook_is_named(arguments: list[str], expected: str) -> None:
    assert refusal(*arguments) == expected
