"""The command line: ``twistd signaling`` options, and the environment behind them, become ``Limits`` and listeners."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from constantly import NamedConstant
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.portal import Portal
from twisted.cred.strcred import (
    AuthOptionMixin,
    InvalidAuthArgumentString,
    InvalidAuthType,
    UnsupportedInterfaces,
    findCheckerFactories,
    makeChecker,
)
from twisted.logger import LogLevel
from twisted.python import usage

from signaling.admission.client_address import TrustedProxies
from signaling.admission.origins import Hosts, Origins
from signaling.auth.cred import GrantRealm, IBearerToken
from signaling.backplane.redis.url import StoreUrl
from signaling.backplane.redis.url import parse as parse_store_url
from signaling.core.ice import DEFAULT_TTL_SECONDS, IceServer, IceServers, Turn, parse_ice_servers
from signaling.limits import MAY_BE_ZERO, RATES, Limits, check
from signaling.log.json_format import log_as_json

DEFAULT_PORT = 8081

LOG_LEVELS: dict[str, NamedConstant] = {
    "debug": LogLevel.debug,
    "info": LogLevel.info,
    "warn": LogLevel.warn,
    "error": LogLevel.error,
}

_DEFAULTS = Limits()
_LONGEST_TTL_SECONDS = 31 * 86_400
_MOST_WORKERS = 256

# Each option of a number, and the bound that it sets.
_BOUNDS = {
    "max-connections": "max_connections",
    "max-connections-per-address": "max_connections_per_address",
    "max-connection-rate": "max_connections_per_address_per_second",
    "connection-burst": "connection_burst",
    "max-peers-per-topic": "max_peers_per_topic",
    "max-message-rate": "max_messages_per_second",
    "message-burst": "message_burst",
    "max-topic-bytes": "max_topic_bytes",
    "max-metadata-bytes": "max_metadata_bytes",
    "max-header-bytes": "max_header_bytes",
    "max-body-bytes": "max_body_bytes",
    "ping-interval": "ping_interval_seconds",
    "ping-timeout": "ping_timeout_seconds",
    "handshake-timeout": "handshake_timeout_seconds",
    "write-timeout": "write_timeout_seconds",
    "resume-window": "resume_window_seconds",
    "drain-delay": "drain_delay_seconds",
    "drain-spread": "drain_spread_seconds",
    "shutdown-timeout": "shutdown_timeout_seconds",
    "max-message-bytes": "max_message_bytes",
    "high-water-mark": "high_water_messages",
}

_HELP = {
    "max-connections": "Peers' connections in all; beyond them 503.",
    "max-connections-per-address": "Connections from one address or IPv6 /64; beyond them 429. 0 means no bound.",
    "max-connection-rate": "New connections a second from one address; beyond them 429. 0 means no bound.",
    "connection-burst": "New connections of one address at once, before that rate counts.",
    "max-peers-per-topic": "Peers in one topic; the next one's connection is closed with 1013.",
    "max-message-rate": "Messages a second from one connection; beyond them rate_limited. 0 means no bound.",
    "message-burst": "Messages at once, before that rate counts; as many refused in a row, and it is close 1008.",
    "max-topic-bytes": "Bytes of a topic's name, decoded.",
    "max-metadata-bytes": "Bytes of a peer's metadata, decoded.",
    "max-header-bytes": "Bytes of a request line and its headers.",
    "max-body-bytes": "Bytes of an HTTP request's body.",
    "ping-interval": "Seconds between two pings of one connection; 0 sends none.",
    "ping-timeout": "Seconds from a ping to its pong; then the peer is cut off.",
    "handshake-timeout": "Seconds from a connection's first byte to its complete request.",
    "write-timeout": "Seconds that a connection may take nothing of what waits for it; then the peer is cut off.",
    "resume-window": "Seconds that a peer whose connection was lost may take to come back; 0: it is gone at once.",
    "drain-delay": "Seconds that a stopping server still lets newcomers in, while /readyz says 503.",
    "drain-spread": "Seconds within which it then closes its peers one by one, with 1012; 0: all at once, with 1001.",
    "shutdown-timeout": "Seconds that a stopping server waits for its peers; 0 does not wait.",
    "max-message-bytes": "Bytes of one message, all its fragments together; beyond it, close 1009.",
    "high-water-mark": "Messages that wait for a connection which takes nothing; the next relay is dropped.",
}


def _default_text(option: str) -> str:
    value = getattr(_DEFAULTS, _BOUNDS[option])
    if value is None:
        return "what the limit on open files leaves room for"
    return str(int(value) if value == int(value) else value)


class Options(usage.Options, AuthOptionMixin):
    """Options of ``twistd signaling``. An option beats the environment, the environment beats the default.

    Args:
        environ: where ``PORT``, ``LOG_LEVEL``, ``BACKPLANE`` and ``TURN_SECRET`` are looked up; None means the
            process's environment.

    Attributes:
        limits: the bounds that were asked for.
        log_level: a ``twisted.logger.LogLevel``.
        allow_origins: as for ``Origins``.
        metrics_hosts: as for ``Hosts``.
        trusted_proxies: as for ``TrustedProxies``.
        ice_servers: what peers are told of STUN and TURN servers.
        listen: endpoint descriptions; empty where the port counts.
        port: the port on all interfaces.
        portal: who may do what; None means that everybody may do everything.
        backplane: the store that nodes share topics through; None means that this node is alone.
        workers: how many processes share the topics; 1 means this one alone.
        words: what was parsed, for workers to parse again.
    """

    supportedInterfaces = (IBearerToken, IUsernamePassword)

    synopsis = "[options]"
    longdesc = (
        "A WebRTC signaling server: peers join a topic at /ws/{topic} and exchange offers, answers and ICE candidates."
    )
    optParameters: list[list[Any]] = [  # noqa: RUF012
        ["port", "p", None, f"Port on all interfaces, IPv6 and IPv4. [default: $PORT or {DEFAULT_PORT}]"],
        ["workers", None, None, "Processes that share the topics; 0 means one for each core. [default: 1]"],
        ["log-format", None, "text", "text, or json: one object a line."],
        ["log-level", None, None, "debug, info, warn or error. [default: $LOG_LEVEL or info]"],
        ["metrics-listen", None, None, "Twisted endpoint that serves /metrics in place of the port."],
        ["backplane", None, None, "Redis for several nodes; needs the extra [cluster]. [default: $BACKPLANE]"],
        ["ice-servers", None, None, "File with a JSON array of RTCIceServer dictionaries for every peer."],
        ["turn-secret-file", None, None, "File with the TURN servers' shared secret. [default: $TURN_SECRET]"],
        ["turn-ttl", None, str(DEFAULT_TTL_SECONDS), "Seconds that a TURN credential is good; renewed at half of it."],
        *([name, None, None, f"{_HELP[name]} [default: {_default_text(name)}]"] for name in _BOUNDS),
    ]

    optFlags: list[list[Any]] = [  # noqa: RUF012
        ["metrics", None, "Serve /metrics for Prometheus (needs the extra metrics)."],
        ["serve-client", None, "Serve /signaling.js, the client for browsers."],
        ["demo", None, "Serve a demo at /, and /signaling.js."],
    ]

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._environ = os.environ if environ is None else environ
        self.listen: list[str] = []
        self.allow_origins: list[str] = []
        self.metrics_hosts: list[str] = []
        self.trusted_proxies: list[str] = []
        self.turn_uris: list[str] = []
        self.ice_servers = IceServers()
        self.port = DEFAULT_PORT
        self.workers = 1
        self.words: list[str] = []
        self.portal: Portal | None = None
        self.backplane: StoreUrl | None = None
        self.limits = _DEFAULTS
        self.log_level = LogLevel.info

    @property
    def run_by_twistd(self) -> bool:
        """Whether ``twistd`` made these options; then the process is ours, and its errors are too."""
        return self.parent is not None

    def opt_listen(self, description: str) -> None:
        """Twisted endpoint in place of --port, for example tcp:8081:interface=127.0.0.1; repeatable."""
        self.listen.append(description)

    def opt_allow_origin(self, origin: str) -> None:
        """Origin that may connect, https://example.com or https://*.example.com; repeatable. By default any may."""
        _check("allow-origin", Origins, origin)
        self.allow_origins.append(origin)

    def opt_metrics_host(self, name: str) -> None:
        """Host name by which --metrics-listen may be asked, for example metrics.example.com; repeatable."""
        _check("metrics-host", Hosts, name)
        self.metrics_hosts.append(name)

    def opt_trusted_proxy(self, network: str) -> None:
        """Address or network whose X-Forwarded-For counts, for example 10.0.0.0/8, or unix; repeatable."""
        _check("trusted-proxy", TrustedProxies, network)
        self.trusted_proxies.append(network)

    def opt_turn_uri(self, uri: str) -> None:
        """TURN server that knows the secret, for example turn:turn.example.com:3478?transport=udp; repeatable."""
        self.turn_uris.append(uri)

    def opt_auth(self, description: str) -> None:
        """Who may join: jwt:FILE, or another of --help-auth; repeatable. By default everybody may."""
        # What follows the first colon may be a password.
        name, _, argument = description.partition(":")
        if name == "file":
            # Its checker would find out at the first login.
            _read("auth file", argument)
        try:
            self._add_checker(makeChecker(description))
        except InvalidAuthType:
            known = ", ".join(sorted(factory.authType for factory in findCheckerFactories()))
            raise usage.UsageError(f"--auth: {name!r} is no kind of check; there are {known}") from None
        except UnsupportedInterfaces:
            raise usage.UsageError(f"--auth {name}: it checks neither tokens nor passwords") from None
        except InvalidAuthArgumentString as error:
            raise usage.UsageError(f"--auth {name}: {error}") from None
        except Exception as error:
            raise usage.UsageError(f"--auth {name}: it cannot be used ({type(error).__name__})") from None

    def _add_checker(self, checker: Any) -> None:
        interfaces = [interface for interface in checker.credentialInterfaces if self.supportsInterface(interface)]
        if not interfaces:
            raise UnsupportedInterfaces(checker.credentialInterfaces)
        self.portal = self.portal or Portal(GrantRealm())
        if set(interfaces) & set(self.portal.listCredentialsInterfaces()):
            raise InvalidAuthArgumentString("there is another --auth that checks the same")
        self.portal.registerChecker(checker, *interfaces)

    def opt_version(self) -> NoReturn:
        """Print the version and exit."""
        print(f"twisted-signaling {version('twisted-signaling')}")
        raise SystemExit(0)

    def parseOptions(self, options: list[str] | None = None) -> None:
        """Parse ``options``.

        Raises:
            usage.UsageError: one line that says what was wrong and what would be right.
            SystemExit: the same, where ``twistd`` asks; it would print the whole help in front of the line.
        """
        self.words = list(sys.argv[1:] if options is None else options)
        try:
            self._parse(self.words)
        except usage.UsageError as error:
            if self.run_by_twistd:
                raise SystemExit(f"signaling: {error}") from None
            raise

    def _parse(self, options: list[str]) -> None:
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            raise usage.UsageError(self._explain(str(error))) from None

    def _explain(self, text: str) -> str:
        unknown = text.removesuffix(" not recognized").removeprefix("option ")
        if unknown == text:
            return text
        known = [f"--{name}" for name in self.longOpt]
        near = get_close_matches(unknown, [name.rstrip("=") for name in known], n=1)
        hint = f"did you mean {near[0]}?" if near else "twistd signaling --help lists the options"
        return f"{unknown}: there is no such option; {hint}"

    def parseArgs(self, *args: str) -> None:
        """Refuse what is no option."""
        if args:
            raise usage.UsageError(f"{args[0]!r}: only options are taken, for example --port {DEFAULT_PORT}")

    def postOptions(self) -> None:
        """Check all values together."""
        if self.run_by_twistd:
            self._do_without_pid_file()
        if self.listen and self["port"] is not None:
            raise usage.UsageError("--listen is in place of --port: give one or the other")
        if not self.listen:
            self.port = _port(*self._value("port", "PORT", str(DEFAULT_PORT)))
        self.workers = _workers(self["workers"])
        if self["log-format"] not in ("text", "json"):
            raise usage.UsageError(f"--log-format: {self['log-format']!r} is not a format (text or json)")
        if self["log-format"] == "json" and self.run_by_twistd:
            try:
                log_as_json(self.parent)
            except ValueError as error:
                raise usage.UsageError(f"--log-format json: {error}") from None
        self.log_level = _log_level(*self._value("log-level", "LOG_LEVEL", "info"))
        self.backplane = _store_url(*self._value("backplane", "BACKPLANE", ""))
        self.ice_servers = IceServers(self._fixed_ice_servers(), self._turn())
        self.limits = _limits({name: self[name] for name in _BOUNDS if self[name] is not None})

    def _do_without_pid_file(self) -> None:
        # In the foreground nobody needs the file, and one that a killed server left behind would stop the next one.
        config: Any = self.parent
        if config["nodaemon"] and config["pidfile"] == "twistd.pid":
            config["pidfile"] = ""

    def _fixed_ice_servers(self) -> list[IceServer]:
        path = self["ice-servers"]
        if path is None:
            return []
        try:
            return parse_ice_servers(_read("ice-servers", path))
        except ValueError as error:
            raise usage.UsageError(f"--ice-servers: {path}: {error}") from None

    def _turn(self) -> Turn | None:
        path, secret = self["turn-secret-file"], self._environ.get("TURN_SECRET", "").encode()
        ttl = _seconds_of_life(self["turn-ttl"])
        if not self.turn_uris:
            if path is not None:
                raise usage.UsageError("--turn-secret-file: name the servers that know it, with --turn-uri")
            return None
        if path is not None:
            secret = _read("turn-secret-file", path).strip()
        if not secret:
            raise usage.UsageError("--turn-uri: a secret is needed, in a file (--turn-secret-file) or in TURN_SECRET")
        try:
            return Turn(tuple(self.turn_uris), secret, ttl)
        except ValueError as error:
            raise usage.UsageError(f"--turn-uri: {error}") from None

    def _value(self, option: str, variable: str, default: str) -> tuple[str, str]:
        """Return where a value was given, and the value. An empty variable counts as unset, as in a shell."""
        if self[option] is not None:
            return f"--{option}", self[option]
        return variable, self._environ.get(variable) or default


def _check(option: str, kind: Callable[[list[str]], object], text: str) -> None:
    try:
        kind([text])
    except ValueError as error:
        raise usage.UsageError(f"--{option}: {error}") from None


def _read(option: str, path: str) -> bytes:
    if not path:
        raise usage.UsageError(f"--{option}: name a file")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise usage.UsageError(f"--{option}: {path}: {error.strerror}") from None


def _seconds_of_life(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 2 <= int(text[:9]) <= _LONGEST_TTL_SECONDS):
        right = f"a whole number of seconds from 2 to {_LONGEST_TTL_SECONDS} (for example 3600)"
        raise usage.UsageError(f"--turn-ttl: {text!r} is not {right}")
    return int(text)


def _port(source: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:6]) <= 65_535):
        raise usage.UsageError(f"{source}: {text!r} is not a port (a whole number from 0 to 65535, for example 8081)")
    return int(text)


def _workers(text: str | None) -> int:
    if text is None:
        return 1
    if not (text.isascii() and text.isdigit() and int(text[:6]) <= _MOST_WORKERS):
        raise usage.UsageError(
            f"--workers: {text!r} is not a whole number from 0 up, at most {_MOST_WORKERS} (for example 2)"
        )
    return int(text) or len(os.sched_getaffinity(0))


def _log_level(source: str, text: str) -> NamedConstant:
    level = LOG_LEVELS.get(text.lower())
    if level is None:
        raise usage.UsageError(f"{source}: {text!r} is not a log level (one of {', '.join(LOG_LEVELS)})")
    return level


def _store_url(source: str, text: str) -> StoreUrl | None:
    try:
        return parse_store_url(text) if text else None
    except ValueError as error:
        raise usage.UsageError(f"{source}: {error}") from None


def _limits(given: dict[str, str]) -> Limits:
    values: dict[str, Any] = {_BOUNDS[option]: _number(option, text) for option, text in given.items()}
    if "max_message_bytes" in values:
        values["high_water_bytes"] = max(_DEFAULTS.high_water_bytes, 2 * values["max_message_bytes"])
    return Limits(**values)


def _number(option: str, text: str) -> float:
    field = _BOUNDS[option]
    if field in RATES:
        value = _real(option, text, "number a second (for example 10 or 0.5)")
    elif field.endswith("_seconds"):
        value = _real(option, text, "number of seconds (for example 20 or 0.5)")
    else:
        value = _whole(option, text)
    try:
        check(field, value)
    except ValueError as error:
        reason = str(error).removeprefix(f"{field}: ")
        raise usage.UsageError(f"--{option}: {reason}") from None
    return value


def _real(option: str, text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise usage.UsageError(f"--{option}: {text!r} is not a {what}")
    return value


def _whole(option: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        least = 0 if _BOUNDS[option] in MAY_BE_ZERO else 1
        example = getattr(_DEFAULTS, _BOUNDS[option]) or 1000
        raise usage.UsageError(f"--{option}: {text!r} is not a whole number from {least} up (for example {example})")
    return int(text)
