"""Parses the options of ``twistd signaling``: of the command line, the environment or a file, and checks them."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from difflib import get_close_matches
from hashlib import sha256
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NoReturn

from constantly import NamedConstant
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
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

from signaling.admin.tokens import AdminTokens
from signaling.admission.client_address import ProxyHeader, TrustedProxies
from signaling.admission.logged_addresses import AddressDetail
from signaling.admission.origins import Hosts, Origins
from signaling.app.option_table import (
    ALL_OPTIONS,
    CONFIGURABLE,
    DEFAULT_PORT,
    DEFAULT_WEBHOOK_QUEUE,
    HELP_ON_AUTH,
    TOPICS,
    help_text,
)
from signaling.app.settings import Setting, Source, decode_settings, find, find_tables, in_tables, refuse_unknown
from signaling.auth.cred import GrantRealm, IBearerToken
from signaling.backplane.redis.url import StoreUrl
from signaling.backplane.redis.url import parse as parse_store_url
from signaling.core.ice import IceServer, IceServers, Turn, parse_ice_servers
from signaling.core.topic_rules import TopicRules, parse_topic_rules
from signaling.files import read_file, read_regular_file, reading_pipes
from signaling.ice_source import provider as ice_provider
from signaling.ice_source.provider import SourceSettings
from signaling.limits import LIMIT_OPTIONS, Limits, Option, Unit, check
from signaling.log.json_format import log_as_json
from signaling.server.endpoint_descriptions import is_private
from signaling.standard_output import print_line
from signaling.web.path_prefix import check_path_prefix
from signaling.webhooks.delivery import WebhookSettings
from signaling.webhooks.signature import parse_secrets
from signaling.webhooks.target import parse_webhook_url

if TYPE_CHECKING:
    from signaling.app.config_file import ConfigFile

LOG_LEVELS: dict[str, NamedConstant] = {
    "debug": LogLevel.debug,
    "info": LogLevel.info,
    "warn": LogLevel.warn,
    "error": LogLevel.error,
}

_DEFAULTS = Limits()
_MAX_TTL_SECONDS = 31 * 86_400
_MAX_WORKERS = 256
_MAX_WEBHOOK_QUEUE = 1_000_000
# The configuration file is read before all others.
_READ_WHEN_USED = ("config", "ice-source-token-file")
_JWT_OPTION = re.compile(r":(?=[a-z]+=)")
_NO_OPTION = re.compile(r"option (-.+) not (?:recognized|a unique prefix)", re.DOTALL)
_OPTION_AT_START = re.compile(r"--([a-z][a-z-]*)(?=[: ])")
_LIMIT_FIELDS = {option.name: field for field, option in LIMIT_OPTIONS.items() if option.name is not None}


class Options(usage.Options, AuthOptionMixin):
    """The options of ``twistd signaling``: of the command line, else of the environment, else of ``--config``.

    Args:
        environ: the environment variables; None means the process's own.
        in_force: settings as ``encode_settings`` returns them, in place of all that would be found; a worker has those
            of its listener, which may have been found before the file was changed.
        is_read_again: whether a running server reads its files anew, and so must not wait for a pipe; as a worker does.

    Attributes:
        settings: the value of each option, with where it comes from; ``options[name]`` is the value alone.
        config_is_empty: whether there is a configuration file with nothing in it, not even a comment.
        given_values: of repeatable options, as the command line has them.
        working_directory: where relative paths start, unless they stand in the file.
        limits: the limits.
        log_level: a ``twisted.logger.LogLevel``.
        log_addresses: how much of the addresses of clients is logged.
        allow_origins: as for ``Origins``.
        metrics_hosts: as for ``Hosts``.
        trusted_proxies: as for ``TrustedProxies``.
        proxy_header: in which header those name their clients.
        path_prefix: as for ``check_path_prefix``.
        ice_servers: the STUN and TURN servers for peers.
        ice_source: a provider of further ones; None means that there is none.
        topic_rules: bounds of topics by their names.
        listen: endpoint descriptions; if empty, the server listens on ``port``.
        port: the port on all interfaces.
        portal: authenticates clients; None means that everybody may join any topic.
        backplane: the store through which nodes share topics; None means a single node.
        admin_tokens: what the admin API accepts; None if it needs none, or is off.
        webhook: where presence events are delivered; None means nowhere.
        workers: how many processes share the topics.
        arguments: the parsed arguments, which workers parse again.
    """

    supportedInterfaces = (IBearerToken, IUsernamePassword)

    synopsis = "[options]"
    longdesc = (
        "A WebRTC signaling server: peers join a topic at /ws/{topic} and exchange offers, answers and ICE candidates."
    )
    optParameters: list[list[Any]] = [  # noqa: RUF012
        [option.name, option.short, None, help_text(option)]
        for option in ALL_OPTIONS.values()
        if option.unit is not Unit.FLAG and not option.repeats and option.name not in HELP_ON_AUTH
    ]
    optFlags: list[list[Any]] = [  # noqa: RUF012
        [option.name, option.short, help_text(option)]
        for option in ALL_OPTIONS.values()
        if option.unit is Unit.FLAG and option.name not in HELP_ON_AUTH
    ]

    def __init__(
        self, environ: Mapping[str, str] | None = None, in_force: bytes | None = None, *, is_read_again: bool = False
    ) -> None:
        super().__init__()
        self.docs.update({name: help_text(ALL_OPTIONS[name]) for name in HELP_ON_AUTH})
        self._environ = os.environ if environ is None else environ
        self.given_values: dict[str, list[str]] = {}
        self.working_directory = os.getcwd()
        self.settings: dict[str, Setting] = {}
        self._in_force = in_force
        # A worker reads files that its listener has read before.
        self._is_read_again = is_read_again or in_force is not None
        self._files: dict[str, bytes] = {}
        self.config_is_empty = False
        self.listen: list[str] = []
        self.allow_origins: list[str] = []
        self.metrics_hosts: list[str] = []
        self.trusted_proxies: list[str] = []
        self.ice_servers = IceServers()
        self.ice_source: SourceSettings | None = None
        self.topic_rules = TopicRules()
        self.port = DEFAULT_PORT
        self.proxy_header = ProxyHeader.X_FORWARDED_FOR
        self.path_prefix = ""
        self.workers = 1
        self.arguments: list[str] = []
        self.portal: Portal | None = None
        self.backplane: StoreUrl | None = None
        self.admin_tokens: AdminTokens | None = None
        self.limits = _DEFAULTS
        self.log_level = LogLevel.info
        self.webhook: WebhookSettings | None = None
        self.log_addresses = AddressDetail.FULL

    @property
    def run_by_twistd(self) -> bool:
        """Whether ``twistd`` parses these options; if so, errors and logging of the process are ours to handle."""
        return self.parent is not None

    def _add_check(self, description: str) -> None:
        """Add a check of credentials."""
        # Errors must not show what follows the colon: it may be a password.
        name, _, argument = description.partition(":")
        if name == "file":
            # The checker itself reads the file only at the first login.
            self._note_file("auth", _read("auth file", argument, read_regular_file))
        try:
            self._add_checker(makeChecker(description))
            if name == "jwt":
                # A pipe has been read by the checker, and is empty.
                with suppress(OSError):
                    self._note_file("auth", read_file(_JWT_OPTION.split(argument)[0]))
        except InvalidAuthType:
            raise usage.UsageError(f"--auth: {name!r} {_no_check()}") from None
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
        if isinstance(checker, InMemoryUsernamePasswordDatabaseDontUse):
            # Twisted puts text there, and compares it with the bytes of a request.
            checker.users = {os.fsencode(name): os.fsencode(password) for name, password in checker.users.items()}
        self.portal = self.portal or Portal(GrantRealm())
        if set(interfaces) & set(self.portal.listCredentialsInterfaces()):
            raise InvalidAuthArgumentString("there is another --auth that checks the same")
        self.portal.registerChecker(checker, *interfaces)

    def opt_help_auth_type(self, authType: str) -> None:
        """Describe a check, as ``twistd`` does."""
        try:
            super().opt_help_auth_type(authType)
        except usage.UsageError:
            raise usage.UsageError(f"--help-auth-type: {authType!r} {_no_check()}") from None

    def opt_version(self) -> NoReturn:
        """Print the version and exit."""
        print_line(f"twisted-signaling {version('twisted-signaling')}")
        raise SystemExit(0)

    def parseOptions(self, options: list[str] | None = None) -> None:
        """Parse ``options``.

        Raises:
            usage.UsageError: one line that says what is wrong and what would be right.
            SystemExit: the same under ``twistd``, which would print the whole help before the line.
        """
        self.arguments = list(sys.argv[1:] if options is None else options)
        try:
            with nullcontext() if self._is_read_again else reading_pipes():
                super().parseOptions(self.arguments)
        except usage.UsageError as error:
            text = self.with_source(self._explain(str(error)))
            if self.run_by_twistd:
                raise SystemExit(f"signaling: {text}") from None
            raise usage.UsageError(text) from None

    def _explain(self, text: str) -> str:
        found = _NO_OPTION.fullmatch(text)
        if found is None:
            return text
        unknown = found[1]
        names = sorted(name.rstrip("=") for name in self.longOpt)
        near = [f"--{name}" for name in names if f"--{name}".startswith(unknown)]
        if not near:
            # Without the dashes, which all options have in common: --redis is not close to --workers.
            near = [f"--{name}" for name in get_close_matches(unknown.lstrip("-"), names, n=1)]
        hint = f"did you mean {' or '.join(near)}?" if near else "signaling --help lists the options"
        return f"{unknown}: there is no such option; {hint}"

    def parseArgs(self, *args: str) -> None:
        """Refuse arguments that are not options."""
        if args:
            raise usage.UsageError(f"{args[0]!r}: only options are taken, for example --port {DEFAULT_PORT}")

    def with_source(self, text: str) -> str:
        """Return an error that begins with an option, with the variable or the line of the file in its place."""
        name = _OPTION_AT_START.match(text)
        setting = self.settings.get(name[1]) if name is not None else None
        return text if name is None or setting is None else setting.label + text[name.end() :]

    def _find_settings(self) -> None:
        """Find the value of each option."""
        if self._in_force is None:
            self._find_anew()
        else:
            self.settings = decode_settings(self._in_force, {**CONFIGURABLE, "topics": TOPICS})
            self.topic_rules = parse_topic_rules(self.settings["topics"].value)
        for name in CONFIGURABLE:
            self[name] = self.settings[name].value

    def _find_anew(self) -> None:
        given = {name: self._given(name) for name in CONFIGURABLE}
        self.settings["config"] = find(ALL_OPTIONS["config"], given["config"], self._environ, None)
        path = self.settings["config"].value
        try:
            file = _config_file(path) if path is not None else None
            self.config_is_empty = file is not None and file.is_empty
            refuse_unknown(CONFIGURABLE.values(), self._environ, file, [str(TOPICS.name)])
            for name, option in CONFIGURABLE.items():
                self.settings[name] = find(option, given[name], self._environ, file)
            if file is not None and "topics" in file.values:
                self.topic_rules = _topic_rules(file)
            self.settings["topics"] = find_tables(TOPICS, file)
        except ValueError as error:
            raise usage.UsageError(str(error)) from None

    def _note_file(self, name: str, data: bytes) -> None:
        self._files[name] = self._files.get(name, b"") + data

    def _read_files(self) -> None:
        """Read each file that an option names, so that a reload sees whether it has changed."""
        for name, setting in self.settings.items():
            names_file = setting.option.unit is Unit.FILE and setting.source is not Source.PLATFORM
            if names_file and setting.value is not None and name not in _READ_WHEN_USED:
                self._note_file(name, _read(name, setting.value))

    def file_digests(self) -> dict[str, bytes]:
        """Return a digest of the content of the files of each option."""
        return {name: sha256(data).digest() for name, data in self._files.items()}

    def fingerprint(self) -> str:
        """Return a text that differs if an option or a file differs."""
        values = [(name, setting.texts, self._files.get(name)) for name, setting in self.settings.items()]
        return sha256(repr(values).encode()).hexdigest()

    def read_again(self) -> Options:
        """Parse the same arguments anew, with the files of now.

        Raises:
            usage.UsageError: something is wrong.
        """
        options = Options(self._environ, is_read_again=True)
        options.parseOptions(self.arguments)
        return options

    def _given(self, name: str) -> Sequence[str]:
        option = ALL_OPTIONS[name]
        if option.repeats:
            return self.given_values.get(name, ())
        value = self[name]
        if option.unit is Unit.FLAG:
            return ("true",) if value else ()
        return () if value is None else (value,)

    def postOptions(self) -> None:
        """Check all values and set the attributes."""
        if self.run_by_twistd:
            self._omit_pid_file()
        self._find_settings()
        self._read_files()
        self._choose_port_or_listen()
        self.listen, self.port = self["listen"], _port(self._text("port"))
        self.proxy_header = _proxy_header(self._text("proxy-header"))
        with _errors_of("path-prefix"):
            self.path_prefix = check_path_prefix(self._text("path-prefix"))
        self.workers = _workers(self._text("workers"))
        log_format = self._text("log-format")
        if log_format not in ("text", "json"):
            raise usage.UsageError(f"--log-format: {log_format!r} is not a format (text or json)")
        if log_format == "json" and self.run_by_twistd:
            with _errors_of("log-format json"):
                log_as_json(self.parent)
        self.log_level = _log_level(self._text("log-level"))
        self.log_addresses = _address_detail(self._text("log-addresses"))
        self.allow_origins = _checked("allow-origin", Origins, self["allow-origin"])
        self.metrics_hosts = _checked("metrics-host", Hosts, self["metrics-host"])
        self.trusted_proxies = _checked("trusted-proxy", TrustedProxies, self["trusted-proxy"])
        for description in self["auth"]:
            self._add_check(description)
        with _errors_of("backplane"):
            self.backplane = parse_store_url(self["backplane"]) if self["backplane"] is not None else None
        self.admin_tokens = self._admin_tokens()
        self.ice_servers = IceServers(self._fixed_ice_servers(), self._turn())
        self.webhook = self._webhook()
        self.ice_source = self._ice_source()
        self.limits = _limits({name: self[name] for name in _LIMIT_FIELDS if self[name] is not None})

    def _text(self, name: str) -> str:
        """Return the value of an option, or its default."""
        return ALL_OPTIONS[name].default if self[name] is None else self[name]

    def _choose_port_or_listen(self) -> None:
        """Let ``--listen`` replace ``--port``, or the other way round: the one that takes precedence counts."""
        port, listen = self.settings["port"], self.settings["listen"]
        if listen.texts and port.source is listen.source:
            raise usage.UsageError("--listen: it is in place of --port: give one or the other")
        ignored = "listen" if port.source > listen.source else "port"
        self.settings[ignored] = Setting(ALL_OPTIONS[ignored])
        self[ignored] = self.settings[ignored].value

    def _omit_pid_file(self) -> None:
        # In the foreground the file has no use, and one left by a killed server would prevent the next start.
        config: Any = self.parent
        if config["nodaemon"] and config["pidfile"] == "twistd.pid":
            config["pidfile"] = ""

    def _admin_tokens(self) -> AdminTokens | None:
        path, description = self["admin-token-file"], self["admin-listen"]
        if path is None:
            if description is not None and not is_private(description):
                raise usage.UsageError(
                    f"--admin-listen {description}: others can connect; name a file with tokens (--admin-token-file),"
                    " or listen on a UNIX socket of this user and group (unix:/run/signaling-admin.sock)"
                )
            return None
        if description is None:
            raise usage.UsageError("--admin-token-file: say where the admin API listens, with --admin-listen")
        with _errors_of(f"admin-token-file: {path}"):
            return AdminTokens(self._files["admin-token-file"])

    def _fixed_ice_servers(self) -> list[IceServer]:
        path = self["ice-servers"]
        if path is None:
            return []
        with _errors_of(f"ice-servers: {path}"):
            return parse_ice_servers(self._files["ice-servers"])

    def _ice_source(self) -> SourceSettings | None:
        url, path = self["ice-source"], self["ice-source-token-file"]
        ttl = _ttl("ice-source-ttl", self._text("ice-source-ttl"), ice_provider.MIN_TTL_SECONDS)
        if url is None:
            if path is not None:
                raise usage.UsageError("--ice-source-token-file: name the provider that takes it, with --ice-source")
            return None
        if path is None and ice_provider.TOKEN_IN_URL in url:
            reason = f"{ice_provider.TOKEN_IN_URL} stands for the token: give its file, with --ice-source-token-file"
            raise usage.UsageError(f"--ice-source: {reason}")
        if path == "":
            raise usage.UsageError("--ice-source-token-file: name a file")
        settings = SourceSettings(url, path, ttl)
        with _errors_of("ice-source"):
            ice_provider.Provider(url)
        with _errors_of("ice-source-token-file"):
            settings.read_token()
        return settings

    def _turn(self) -> Turn | None:
        setting = self.settings["turn-secret-file"]
        ttl = _ttl("turn-ttl", self._text("turn-ttl"), 2)
        if not self["turn-uri"]:
            if setting.source not in (Source.DEFAULT, Source.PLATFORM):
                raise usage.UsageError("--turn-secret-file: name the servers that know it, with --turn-uri")
            return None
        if setting.source is Source.PLATFORM:
            # The variable has the secret itself.
            secret = os.fsencode(setting.value)
        else:
            secret = self._files.get("turn-secret-file", b"").strip()
            if not secret and setting.value is not None:
                raise usage.UsageError(f"--turn-secret-file: {setting.value}: there is no secret in it")
        if not secret:
            raise usage.UsageError("--turn-uri: a secret is needed, in a file (--turn-secret-file) or in TURN_SECRET")
        with _errors_of("turn-uri"):
            return Turn(tuple(self["turn-uri"]), secret, ttl)

    def _webhook(self) -> WebhookSettings | None:
        text, path = self["webhook"], self["webhook-secret-file"]
        size = _queue_size(self._text("webhook-queue"))
        if text is None:
            if path is not None:
                raise usage.UsageError("--webhook-secret-file: name the receiver, with --webhook")
            return None
        with _errors_of("webhook"):
            url = parse_webhook_url(text)
        if path is None:
            raise usage.UsageError("--webhook: a secret is needed, in a file (--webhook-secret-file)")
        with _errors_of(f"webhook-secret-file: {path}"):
            keys = parse_secrets(self._files["webhook-secret-file"].decode("latin-1"))
        return WebhookSettings(url, keys, size)


def _collector(option: Option) -> Callable[[Options, str], None]:
    """Return the method with which ``usage.Options`` reports each value of a repeatable option."""

    def collect(options: Options, value: str) -> None:
        options.given_values.setdefault(str(option.name), []).append(value)

    collect.__doc__ = help_text(option)
    return collect


for _option in ALL_OPTIONS.values():
    if _option.repeats:
        setattr(Options, f"opt_{str(_option.name).replace('-', '_')}", _collector(_option))


def _no_check() -> str:
    known = ", ".join(sorted(factory.authType for factory in findCheckerFactories()))
    return f"is no kind of check; there are {known}"


def _config_file(path: str) -> ConfigFile:
    # A start without a file is faster without it.
    from signaling.app.config_file import ConfigFile  # noqa: PLC0415

    return ConfigFile(path)


def _topic_rules(file: ConfigFile) -> TopicRules:
    try:
        return parse_topic_rules(file.values["topics"])
    except ValueError as error:
        raise ValueError(in_tables(str(error), "topics", file, CONFIGURABLE)) from None


@contextmanager
def _errors_of(option: str) -> Iterator[None]:
    """Turn a ``ValueError`` into the error of an option."""
    try:
        yield
    except ValueError as error:
        raise usage.UsageError(f"--{option}: {error}") from None


def _checked(option: str, kind: Callable[[list[str]], object], texts: list[str]) -> list[str]:
    with _errors_of(option):
        kind(texts)
    return texts


def _read(option: str, path: str, read: Callable[[str], bytes] = read_file) -> bytes:
    if not path:
        raise usage.UsageError(f"--{option}: name a file")
    try:
        return read(path)
    except OSError as error:
        raise usage.UsageError(f"--{option}: {path}: {error.strerror}") from None


def _ttl(option: str, text: str, least: int) -> int:
    if not _is_whole(text, least, _MAX_TTL_SECONDS):
        right = f"a whole number of seconds from {least} to {_MAX_TTL_SECONDS} (for example 3600)"
        raise usage.UsageError(f"--{option}: {text!r} is not {right}")
    return int(text)


def _port(text: str) -> int:
    if not _is_whole(text, 0, 65_535):
        raise usage.UsageError(f"--port: {text!r} is not a port (a whole number from 0 to 65535, for example 8081)")
    return int(text)


def _proxy_header(text: str) -> ProxyHeader:
    try:
        return ProxyHeader(text)
    except ValueError:
        known = " or ".join(ProxyHeader)
        raise usage.UsageError(f"--proxy-header: {text!r} is not a header that names clients ({known})") from None


def _workers(text: str) -> int:
    if not _is_whole(text, 0, _MAX_WORKERS):
        raise usage.UsageError(
            f"--workers: {text!r} is not a whole number from 0 up, at most {_MAX_WORKERS} (for example 2)"
        )
    return int(text) or len(os.sched_getaffinity(0))


def _queue_size(text: str) -> int:
    if not _is_whole(text, 1, _MAX_WEBHOOK_QUEUE):
        right = f"a whole number from 1 to {_MAX_WEBHOOK_QUEUE} (for example {DEFAULT_WEBHOOK_QUEUE})"
        raise usage.UsageError(f"--webhook-queue: {text!r} is not {right}")
    return int(text)


def _log_level(text: str) -> NamedConstant:
    level = LOG_LEVELS.get(text.lower())
    if level is None:
        raise usage.UsageError(f"--log-level: {text!r} is not a log level (one of {', '.join(LOG_LEVELS)})")
    return level


def _address_detail(text: str) -> AddressDetail:
    try:
        return AddressDetail(text)
    except ValueError:
        known = ", ".join(AddressDetail)
        raise usage.UsageError(f"--log-addresses: {text!r} is not a detail of addresses (one of {known})") from None


def _limits(given: dict[str, str]) -> Limits:
    values: dict[str, Any] = {_LIMIT_FIELDS[name]: _number(name, text) for name, text in given.items()}
    if "max_message_bytes" in values:
        values["high_water_bytes"] = max(_DEFAULTS.high_water_bytes, 2 * values["max_message_bytes"])
    return Limits(**values)


def _number(name: str, text: str) -> float:
    field, option = _LIMIT_FIELDS[name], ALL_OPTIONS[name]
    try:
        value = float(text) if option.unit in (Unit.SECONDS, Unit.PER_SECOND) else _whole(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        least, example = 0 if option.zero is not None else 1, getattr(_DEFAULTS, field) or 1000
        right = {
            Unit.SECONDS: "number of seconds (for example 20 or 0.5)",
            Unit.PER_SECOND: "number a second (for example 10 or 0.5)",
        }.get(option.unit, f"whole number from {least} up (for example {example})")
        raise usage.UsageError(f"--{name}: {text!r} is not a {right}")
    try:
        check(field, value)
    except ValueError as error:
        raise usage.UsageError(f"--{name}: {str(error).removeprefix(f'{field}: ')}") from None
    return value


def _whole(text: str) -> int:
    if not _is_whole(text, 0, 999_999_999):
        raise ValueError
    return int(text)


def _is_whole(text: str, least: int, most: int) -> bool:
    # int refuses texts of thousands of digits by another error.
    return text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most
