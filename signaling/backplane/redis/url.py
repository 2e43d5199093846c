"""The URL of a cluster's store: its address, its credentials, and the prefix of its keys.

No error quotes the URL: a password with a character that should have been escaped may be anywhere in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote

from signaling.files import read_file

DEFAULT_PREFIX = "signaling:"
PORT = 6379
SENTINEL_PORT = 26379

_SCHEMES = ("redis", "rediss", "redis+unix", "redis+sentinel", "rediss+sentinel")
_TLS_OPTIONS = ("ca", "cert", "key")
_SENTINEL_OPTIONS = ("sentinel-user", "sentinel-password", "sentinel-password-file")
_COMMON_OPTIONS = ("prefix", "password-file")
_ESCAPES = "in a user or a password, / is written %2F, ? %3F, # %23, @ %40 and % %25"
_MAX_DATABASES = 1_000_000


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and a password.

    Args:
        user: empty for the default user, with the password of ``requirepass``.
    """

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """A parsed URL. Its text has no passwords, and may be logged.

    Args:
        scheme: one of five.
        addresses: the server's, or those of its sentinels; empty if there is a ``socket``.
        socket: the path of a UNIX socket, or empty.
        service: what the sentinels call the server; empty if there are none.
        credentials: None to connect without.
        sentinel_credentials: those for the sentinels, which have users of their own.
        ca: a file with the certificates to trust; empty for the system's.
        cert: a file with our certificate, or empty.
        key: a file with its key.
    """

    scheme: str
    addresses: tuple[Address, ...] = ()
    socket: str = ""
    service: str = ""
    database: int = 0
    credentials: Credentials | None = None
    sentinel_credentials: Credentials | None = None
    prefix: str = DEFAULT_PREFIX
    ca: str = ""
    cert: str = ""
    key: str = ""

    @property
    def tls(self) -> bool:
        """Whether every connection is encrypted, including those to sentinels."""
        return self.scheme.startswith("rediss")

    def __str__(self) -> str:
        if self.socket:
            return f"{self.scheme}://{self.socket}?db={self.database}"
        service = f"/{self.service}" if self.service else ""
        return f"{self.scheme}://{','.join(map(str, self.addresses))}{service}/{self.database}"


def parse(text: str) -> StoreUrl:
    """Parse the URL of a store, and read its password from the file that it names.

    Raises:
        ValueError: says what is wrong, and what would be right.
    """
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise ValueError(f"it does not begin with one of {', '.join(f'{known}://' for known in _SCHEMES)}")
    if "#" in rest:
        raise ValueError(f"it has a #; {_ESCAPES}")
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    userinfo, _, hosts = authority.rpartition("@")
    options = _options(query, scheme)
    given = _credentials(userinfo, options)
    if scheme == "redis+unix":
        return _over_socket(scheme, hosts, path, given, options)
    if scheme.endswith("+sentinel"):
        return _behind_sentinels(scheme, hosts, path, given, options)
    return _over_tcp(scheme, hosts, path, given, options)


def _over_tcp(scheme: str, hosts: str, path: str, given: Credentials | None, options: dict[str, str]) -> StoreUrl:
    if "," in hosts:
        raise ValueError(f"only {scheme}+sentinel:// takes several hosts, and the name of the service behind them")
    addresses = (_address(hosts, PORT),)
    tls = {name: options.get(name, "") for name in _TLS_OPTIONS}
    return StoreUrl(scheme, addresses, "", "", _database(path), given, None, options["prefix"], **tls)


def _over_socket(scheme: str, hosts: str, path: str, given: Credentials | None, options: dict[str, str]) -> StoreUrl:
    if hosts or not path:
        raise ValueError("the path of the socket is missing, as in redis+unix:///run/redis/redis.sock")
    socket, database = "/" + _decoded(path), _database(options.get("db", ""))
    return StoreUrl(scheme, (), socket, "", database, given, None, options["prefix"])


def _behind_sentinels(
    scheme: str, hosts: str, path: str, given: Credentials | None, options: dict[str, str]
) -> StoreUrl:
    addresses = tuple(_address(host, SENTINEL_PORT) for host in hosts.split(","))
    service, _, database = path.partition("/")
    if not service:
        raise ValueError(f"the name of the service is missing, as in {scheme}://host1,host2,host3/mymaster")
    theirs = _credentials_from(
        options.get("sentinel-user", ""),
        options.get("sentinel-password"),
        options.get("sentinel-password-file"),
        "sentinel-",
    )
    tls = {name: options.get(name, "") for name in _TLS_OPTIONS}
    number = _database(database)
    return StoreUrl(scheme, addresses, "", _decoded(service), number, given, theirs, options["prefix"], **tls)


def _options(query: str, scheme: str) -> dict[str, str]:
    taken = list(_COMMON_OPTIONS)
    taken += _TLS_OPTIONS if scheme.startswith("rediss") else ()
    taken += _SENTINEL_OPTIONS if scheme.endswith("+sentinel") else ()
    taken += ("db",) if scheme == "redis+unix" else ()
    options = {"prefix": DEFAULT_PREFIX}
    for part in query.split("&") if query else ():
        name, separator, value = part.partition("=")
        if name not in taken or not separator:
            raise ValueError(f"{scheme}:// takes {', '.join(f'{known}=' for known in taken)} after its ?; {_ESCAPES}")
        options[name] = _decoded(value)
    if "key" in options and "cert" not in options:
        raise ValueError("key= is the key of a certificate: name it, with cert=")
    if "cert" in options:
        options.setdefault("key", options["cert"])
    return options


def _credentials(userinfo: str, options: dict[str, str]) -> Credentials | None:
    user, separator, password = userinfo.partition(":")
    return _credentials_from(
        _decoded(user), _decoded(password) if separator else None, options.get("password-file"), ""
    )


def _credentials_from(user: str, password: str | None, path: str | None, option: str) -> Credentials | None:
    if password and path is not None:
        raise ValueError(f"{option}password-file= is in place of a password: give one or the other")
    if path is not None:
        password = _read(path, f"{option}password-file=")
    if user and not password:
        raise ValueError(f"a user needs a password, as in user:password@, or in a file: {option}password-file=")
    return Credentials(user, password) if password else None


def _read(path: str, option: str) -> str:
    try:
        password = read_file(path).decode().strip()
    except UnicodeDecodeError:
        raise ValueError(f"{option}: {path}: it is not text in UTF-8") from None
    except OSError as error:
        raise ValueError(f"{option}: {path}: {error.strerror}") from None
    if not password:
        raise ValueError(f"{option}: {path}: there is no password in it")
    return password


def _address(text: str, default_port: int) -> Address:
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        complete = bool(bracket) and (not port or port.startswith(":"))
        port = port.removeprefix(":")
    else:
        host, _, port = text.partition(":")
        complete = ":" not in port
    if not host or not complete:
        raise ValueError(f"there is no host in it, as in redis://store.example.com:{PORT} or redis://[::1]; {_ESCAPES}")
    return Address(_decoded(host), _whole(port, 65_535) if port else default_port)


def _whole(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= most):
        raise ValueError(f"the port is not a whole number from 1 to {most}; {_ESCAPES}")
    return int(text)


def _database(text: str) -> int:
    if text and not (text.isascii() and text.isdigit() and int(text[:9]) < _MAX_DATABASES):
        raise ValueError(f"the database is not a whole number from 0 up; {_ESCAPES}")
    return int(text or 0)


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError(f"a % does not begin a character of UTF-8; {_ESCAPES}") from None
