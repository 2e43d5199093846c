"""Where the value of an option comes from: the command line, the environment, the configuration file, its default."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from signaling.app.option_table import CONFIGURABLE
from signaling.app.settings import Source, describe, variable_of
from signaling.limits import LIMIT_OPTIONS, Option, Unit
from tests.unit.parsing import parse, refusal

TREE = Path(__file__).parents[2]
KEY = "01234567890123456789012345678901"
# Two values of each option that is not a limit, as on the command line.
EXAMPLES: dict[str, tuple[list[str], list[str]]] = {
    "port": (["9000"], ["9001"]),
    "listen": (["tcp:9000", "tcp:9001"], ["tcp:9002"]),
    "path-prefix": (["/a"], ["/b"]),
    "workers": (["2"], ["3"]),
    "log-level": (["debug"], ["warn"]),
    "log-format": (["json"], ["text"]),
    "log-addresses": (["off"], ["network"]),
    "allow-origin": (["https://a.example", "https://b.example"], ["https://c.example"]),
    "metrics": (["true"], ["false"]),
    "metrics-listen": (["tcp:9000"], ["tcp:9001"]),
    "metrics-host": (["a.example", "b.example"], ["c.example"]),
    "admin-listen": (["unix:/run/a"], ["unix:/run/b"]),
    "admin-token-file": (["{folder}/keys"], ["{folder}/more-keys"]),
    "auth": (["memory:a:b"], ["jwt:{folder}/keys:alg=HS256"]),
    "metadata-updates": (["true"], ["false"]),
    "backplane": (["redis://a"], ["redis://b"]),
    "serve-client": (["true"], ["false"]),
    "demo": (["true"], ["false"]),
    "ice-servers": (["{folder}/ice.json"], ["{folder}/more.json"]),
    "turn-uri": (["turn:a", "turn:b"], ["turn:c"]),
    "turn-secret-file": (["{folder}/secret"], ["{folder}/more-secret"]),
    "turn-ttl": (["60"], ["70"]),
    "webhook": (["https://a.example/"], ["https://b.example/"]),
    "webhook-secret-file": (["{folder}/webhook"], ["{folder}/more-webhook"]),
    "webhook-queue": (["7"], ["8"]),
    "ice-source": (["https://a.example"], ["https://b.example"]),
    "ice-source-token-file": (["{folder}/secret"], ["{folder}/more-secret"]),
    "ice-source-ttl": (["600"], ["700"]),
    "trusted-proxy": (["::1", "10.0.0.0/8"], ["unix"]),
    "proxy-header": (["Forwarded"], ["X-Forwarded-For"]),
}
# An option that others need, or that an option needs.
WITH = {
    "admin-token-file": ("--admin-listen=tcp:9000",),
    "turn-secret-file": ("--turn-uri=turn:a",),
    "turn-uri": ("--turn-secret-file={folder}/secret",),
    "webhook": ("--webhook-secret-file={folder}/webhook",),
    "webhook-secret-file": ("--webhook=https://a.example/",),
    "ice-source-token-file": ("--ice-source=https://a.example",),
}
OPTIONS = {name: option for name, option in CONFIGURABLE.items() if name != "config"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("keys", "more-keys"):
        (tmp_path / name).write_text(KEY)
    for name in ("ice.json", "more.json"):
        (tmp_path / name).write_text("[]")
    for name in ("secret", "more-secret"):
        (tmp_path / name).write_text(name)
    for name in ("webhook", "more-webhook"):
        (tmp_path / name).write_text("whsec_" + KEY)
    return tmp_path


def written(folder: Path, text: str) -> str:
    (folder / "signaling.toml").write_text(text)
    return f"--config={folder}/signaling.toml"


def examples(option: Option, folder: Path) -> tuple[list[str], list[str]]:
    one, other = EXAMPLES.get(str(option.name), (["7"], ["8"]))
    return [text.format(folder=folder) for text in one], [text.format(folder=folder) for text in other]


def by_arguments(option: Option, texts: list[str]) -> list[str]:
    if option.unit is Unit.FLAG:
        return [f"--{option.name}"] if texts == ["true"] else []
    return [f"--{option.name}={text}" for text in texts]


def by_file(option: Option, texts: list[str]) -> str:
    if option.repeats:
        return f"{option.name} = {json.dumps(texts)}"
    return f"{option.name} = {texts[0] if option.unit in NOT_QUOTED else json.dumps(texts[0])}"


NOT_QUOTED = (Unit.FLAG, Unit.COUNT, Unit.BYTES, Unit.SECONDS, Unit.PER_SECOND)


def test_each_option_has_an_example() -> None:
    assert OPTIONS.keys() == EXAMPLES.keys() | {option.name for option in LIMIT_OPTIONS.values() if option.name}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_value_is_the_same_by_option_by_environment_and_by_file_and_these_take_precedence_in_this_order(
    name: str, folder: Path
) -> None:
    option = OPTIONS[name]
    one, other = examples(option, folder)
    more = [text.format(folder=folder) for text in WITH.get(name, ())]
    value: Any = one if option.repeats else True if option.unit is Unit.FLAG else one[0]
    variable = {variable_of(option): ",".join(one)}
    others = {variable_of(option): ",".join(other)}
    in_file, other_in_file = by_file(option, one), by_file(option, other)

    def found(*arguments: str, **environ: str) -> tuple[Any, str, Any]:
        options = parse(*more, *arguments, **environ)
        assert options[name] == options.settings[name].value
        return options[name], options.settings[name].origin, options.limits

    line = f"{folder}/signaling.toml: line 1"
    limits = found(*by_arguments(option, one))[2]
    assert found(*by_arguments(option, one)) == (value, "command line", limits)
    assert found(**variable) == (value, variable_of(option), limits)
    assert found(written(folder, in_file)) == (value, line, limits)
    assert found(written(folder, other_in_file), **variable) == (value, variable_of(option), limits)
    command_line = by_arguments(option, one)
    assert found(written(folder, other_in_file), *command_line, **others) == (value, "command line", limits)


def test_without_any_of_them_the_defaults_are_in_force() -> None:
    assert {setting.source for setting in parse().settings.values()} == {Source.DEFAULT}


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.variable])
def test_the_variable_with_the_prefix_takes_precedence_over_the_one_without(name: str, folder: Path) -> None:
    option = OPTIONS[name]
    [one], [other] = examples(option, folder)
    more = [text.format(folder=folder) for text in WITH.get(name, ())]
    assert option.variable is not None
    both = {option.variable: other, variable_of(option): one}
    assert parse(*more, **both)[name] == one
    in_file = written(folder, by_file(option, [one]))
    assert parse(*more, in_file, **{option.variable: other}).settings[name].origin == option.variable


def test_the_file_is_an_option_or_a_variable(folder: Path) -> None:
    written(folder, "workers = 3")
    assert parse(SIGNALING_CONFIG=f"{folder}/signaling.toml").workers == 3
    assert refusal(SIGNALING_CONFIG="/no/such") == "SIGNALING_CONFIG: /no/such: No such file or directory"
    assert refusal("--config=/no/such") == "--config: /no/such: No such file or directory"


def test_listen_and_port_replace_each_other_by_precedence(folder: Path) -> None:
    in_file = written(folder, 'listen = "tcp:1"')
    assert parse(in_file).listen == ["tcp:1"]
    for options in (parse(in_file, "--port=2"), parse(in_file, PORT="2"), parse(in_file, SIGNALING_PORT="2")):
        assert (options.listen, options.port) == ([], 2)
        assert options.settings["listen"].source is Source.DEFAULT
    assert parse(SIGNALING_LISTEN="tcp:1", PORT="x").listen == ["tcp:1"]
    assert refusal(SIGNALING_LISTEN="tcp:1", SIGNALING_PORT="2").startswith("SIGNALING_LISTEN: it is in place of --por")
    assert "line 1: listen: it is in place of" in refusal(written(folder, 'listen = "tcp:1"\nport = 2'))


def test_an_empty_variable_counts_as_unset_and_an_empty_array_does_not(folder: Path) -> None:
    assert parse(SIGNALING_WORKERS="", SIGNALING_DEMO="", SIGNALING_ALLOW_ORIGIN="").workers == 1
    options = parse(written(folder, "allow-origin = []"))
    assert (options.allow_origins, options.settings["allow-origin"].source) == ([], Source.FILE)


@pytest.mark.parametrize(("text", "is_on"), [("true", True), ("1", True), ("YES", True), ("0", False), ("no", False)])
def test_a_flag_in_the_environment_is_a_word(text: str, is_on: bool) -> None:
    assert parse(SIGNALING_DEMO=text)["demo"] is is_on


def test_a_variable_of_the_wrong_form_is_named() -> None:
    assert refusal(SIGNALING_DEMO="on") == "SIGNALING_DEMO: 'on' is not true or false (also 1, 0, yes, no)"
    assert refusal(SIGNALING_ALLOW_ORIGIN="null,").startswith("SIGNALING_ALLOW_ORIGIN: there is nothing between")
    assert parse(SIGNALING_ALLOW_ORIGIN="null , https://a.example").allow_origins == ["null", "https://a.example"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "\nping-interval = 'soon'",
            "line 2: ping-interval: 'soon' is not a number of seconds (for example 20 or 0.5)",
        ),
        ("ping-interval = true", "line 1: ping-interval: a wrong type of value; right is a number of seconds"),
        ("ping-interval = [1]", "line 1: ping-interval: an array, and it takes one value: a number of seconds"),
        ("workers = 1.5", "line 1: workers: '1.5' is not a whole number from 0 up, at most 256 (for example 2)"),
        ("workers = {a = 1}", "line 1: workers: a wrong type of value; right is a whole number"),
        ("demo = 'yes'", "line 1: demo: a wrong type of value; right is true or false, without quotes"),
        ("log-level = true", "line 1: log-level: a wrong type of value; right is a text in quotes"),
        ("log-level = 2020-01-01", "line 1: log-level: a wrong type of value; right is a text in quotes"),
        (
            "turn-uri = ['turn:a', ['turn:b']]",
            "line 1: turn-uri: a wrong type of value; right is an array, as in turn-uri = [...], of texts in quotes",
        ),
        ("\n\nallow-origin = 'x'", "line 3: allow-origin: 'x' is not an origin"),
        ("turn-uri = ['a']", "line 1: turn-uri: a secret is needed"),
        ("auth = 'jwt:'", "line 1: auth jwt: a file with keys is needed"),
        ("backplane = 'redis://:north@'", "line 1: backplane: there is no host in it"),
        ("a = 1\nb = ", "line 2: not TOML: Invalid value"),
        ("pingInterval = 1", "line 1: pingInterval: there is no such option; did you mean ping-interval?"),
        ("\n[limits]\nping-interval = 1", "line 2: limits: there is no such table"),
        ("config = 'a'", "line 1: config: there is no such option"),
        ('"a\\nb\\u001b" = 1', r"line 1: a\nb\x1b: there is no such option"),
        ("\nice-servers = 'a\\u0000'".replace("'", '"'), "line 2: ice-servers: a null character in a text"),
        (
            f"max-connections = 0x{'f' * 9000}",
            "line 1: max-connections: a wrong type of value; right is a whole number",
        ),
        (f"[[topics]]\nmatch = 'a'\nmax-peers = 0x{'f' * 9000}", "line 3: [[topics]] 1: max-peers: not a whole number"),
        ("check-config = true", "line 1: check-config: there is no such option"),
    ],
)
def test_an_error_names_the_file_the_line_and_what_is_right(folder: Path, text: str, error: str) -> None:
    assert refusal(written(folder, text)).startswith(f"{folder}/signaling.toml: {error}")


def test_an_unknown_variable_is_named_with_the_nearest_one() -> None:
    error = "SIGNALING_PING_INTERVALL: there is no such option; did you mean SIGNALING_PING_INTERVAL?"
    assert refusal(SIGNALING_PING_INTERVALL="1") == error
    assert "did you mean SIGNALING_TURN_SECRET_FILE?" in refusal(SIGNALING_TURN_SECRET="north")
    assert refusal(SIGNALING_NAME="/a") == "SIGNALING_NAME: there is no such option"
    assert refusal(SIGNALING_TOPICS="[]") == "SIGNALING_TOPICS: [[topics]] stands in the configuration file only"
    parse(SIGNALING_FAST_PATH="off", SIGNALING_TOKEN="x", SIGNALINGS="x")


def test_what_kubernetes_says_about_a_service_of_that_name_is_no_option() -> None:
    variables = {
        "SIGNALING_PORT": "tcp://10.0.0.1:8081",
        "SIGNALING_PORT_8081_TCP": "tcp://10.0.0.1:8081",
        "SIGNALING_PORT_8081_TCP_ADDR": "10.0.0.1",
        "SIGNALING_SERVICE_HOST": "10.0.0.1",
        "SIGNALING_SERVICE_PORT": "8081",
        "SIGNALING_SERVICE_PORT_HTTP": "8081",
        "SIGNALING_REDIS_SERVICE_HOST": "10.0.0.2",
        "SIGNALING_REDIS_PORT": "tcp://10.0.0.2:6379",
    }
    assert parse(**variables).port == 8081
    assert parse(**variables, PORT="9000").port == 9000


@pytest.mark.parametrize(
    ("name", "text", "absolute"),
    [
        ("auth", "jwt:keys:alg=HS256", "jwt:{folder}/keys:alg=HS256"),
        ("auth", "memory:a:b", "memory:a:b"),
        ("ice-servers", "ice.json", "{folder}/ice.json"),
        ("listen", "unix:run/socket:mode=660", "unix:{folder}/run/socket:mode=660"),
        ("listen", "haproxy:unix:socket", "haproxy:unix:{folder}/socket"),
        ("listen", "unix:address=a", "unix:address={folder}/a"),
        ("listen", "unix:/a", "unix:/a"),
        ("listen", "ssl:1:privateKey=a:certKey=/b", "ssl:1:privateKey={folder}/a:certKey=/b"),
        ("listen", "tcp:1:interface=unix", "tcp:1:interface=unix"),
        ("metrics-listen", "unix:a", "unix:{folder}/a"),
    ],
)
def test_a_path_in_the_file_starts_at_the_file(folder: Path, name: str, text: str, absolute: str) -> None:
    options = parse(written(folder, f"{name} = {json.dumps(text)}"))
    expected = absolute.format(folder=folder)
    assert options[name] == ([expected] if OPTIONS[name].repeats else expected)


def test_a_path_in_the_url_of_a_store_starts_at_the_file(folder: Path) -> None:
    options = parse(written(folder, 'backplane = "redis://a?password-file=secret&prefix=p"'))
    assert options["backplane"].replace("%2F", "/") == f"redis://a?password-file={folder}/secret&prefix=p"
    absolute = f"redis://a?password-file={folder}/secret"
    assert parse(written(folder, f'backplane = "{absolute}"'))["backplane"] == absolute


def test_what_is_in_force_is_shown_with_where_it_comes_from(folder: Path) -> None:
    in_file = written(folder, 'auth = "jwt:keys:alg=HS256"\nping-interval = 5\nmetrics-host = []\nturn-uri = "turn:a"')
    environ = {"SIGNALING_ALLOW_ORIGIN": "null", "PORT": "1", "TURN_SECRET": "north"}
    options = parse(in_file, "--demo", '--metrics-listen=unix:/tmp/ä"', **environ)
    lines = describe(options.settings.values()).splitlines()
    file = f"{folder}/signaling.toml"
    assert [line for line in lines if not line.startswith("#")] == [
        f'config = "{file}"  # command line',
        "port = 1  # PORT",
        'allow-origin = ["null"]  # SIGNALING_ALLOW_ORIGIN',
        r'metrics-listen = "unix:/tmp/\U000000e4\""  # command line',
        f"metrics-host = []  # {file}: line 3",
        f'auth = ["jwt:{folder}/keys:alg=HS256"]  # {file}: line 1',
        "demo = true  # command line",
        f'turn-uri = ["turn:a"]  # {file}: line 4',
        'turn-secret-file = "***"  # TURN_SECRET',
        f"ping-interval = 5  # {file}: line 2",
    ]
    assert "# max-topic-bytes: 256 bytes (default)" in lines
    assert "# listen: not set (default)" in lines
    assert "# serve-client: off (default)" in lines
    assert len(lines) == len(CONFIGURABLE) + 1


TOPICS = """
max-peers-per-topic = 10
[[topics]]
match = "call-*"
max-peers = 2

[[topics]]
max-peers = 3
match = "a\\"b"
"""


def test_bounds_of_topics_come_from_the_file(folder: Path) -> None:
    options = parse(written(folder, TOPICS))
    assert [options.topic_rules.max_peers(name) for name in ("call-1", 'a"b', "c")] == [2, 3, None]
    shown = 'topics = [{match = "call-*", max-peers = 2}, {max-peers = 3, match = "a\\"b"}]'
    assert describe(options.settings.values()).endswith(f"{shown}  # {folder}/signaling.toml: line 3")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("topics = 1", "line 1: topics: has to be an array of tables"),
        ("[topics]\nmatch = 'a'", "line 1: topics: has to be an array of tables"),
        ("[[topics]]\nmatch = 'a'", "line 1: [[topics]] 1: max-peers is missing"),
        (f"{TOPICS}[[topics]]\nmatch = 'a'\nmax-peers = 'b'", "line 12: [[topics]] 3: max-peers: not a whole number"),
        (f"{TOPICS}match-peers = 1", "line 10: [[topics]] 2: there is no key 'match-peers'; did you mean"),
    ],
)
def test_a_wrong_table_is_named_with_its_line(folder: Path, text: str, error: str) -> None:
    assert refusal(written(folder, text)).startswith(f"{folder}/signaling.toml: {error}")


def test_an_option_behind_a_table_is_told_where_it_belongs(folder: Path) -> None:
    error = refusal(written(folder, f"{TOPICS}workers = 2"))
    assert "line 10: [[topics]] 2: there is no key 'workers'" in error
    assert error.endswith("(an option stands above the first [[topics]])")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--auth=memory:a:north"], 'auth = ["memory:***"]'),
        (["--ice-source=https://a/b?apiKey=north"], 'ice-source = "https://a/***"'),
        (["--ice-source=https://a:1/north"], 'ice-source = "https://a:1/***"'),
        (["--ice-source=HTTPS://a/north"], 'ice-source = "HTTPS://a/***"'),
        (["--backplane=redis://u:north@a/1?prefix=p"], 'backplane = "redis://***@a/1?prefix=p"'),
        (
            ["--backplane=redis+sentinel://:north@a/m?sentinel-password=north"],
            'backplane = "redis+sentinel://***@a/m?sentinel-password=***"',
        ),
    ],
)
def test_secrets_are_not_shown(arguments: list[str], line: str) -> None:
    text = describe(parse(*arguments).settings.values())
    assert f"{line}  # command line" in text.splitlines()
    assert "north" not in text


@pytest.mark.parametrize("text", ["5", "0.5", ".5", "5.", "1e1", " 5", "1_0", "+5"])
def test_what_is_shown_is_toml_however_a_number_was_written(folder: Path, text: str) -> None:
    options = parse(f"--ping-interval={text}")
    shown = tomllib.loads(describe(options.settings.values()))
    assert parse(written(folder, f"ping-interval = {json.dumps(shown['ping-interval'])}")).limits == options.limits


DEPLOYED = [TREE / "Dockerfile", TREE / "deploy" / "signaling.service"]


@pytest.mark.parametrize("path", DEPLOYED, ids=lambda path: path.name)
def test_what_is_deployed_leaves_every_option_to_a_configuration_file(path: Path) -> None:
    # A variable would take precedence over the file.
    variables = {variable_of(option) for option in OPTIONS.values()} | {option.variable for option in OPTIONS.values()}
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert not variables & set(re.findall(r"(\w+)=", "\n".join(lines)))
