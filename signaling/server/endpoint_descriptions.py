"""The descriptions of Twisted's endpoints: what they say, what is wrong with one, and why listening there failed."""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Mapping
from typing import NamedTuple

from twisted.internet.error import CannotListenError

from signaling.errors import StartError
from signaling.files import read_file


class Description(NamedTuple):
    """The description of an endpoint in its parts.

    Args:
        kind: what it begins with; ``haproxy:tcp:8081`` is of the kind ``tcp``.
        arguments: what follows, unescaped.
    """

    kind: str
    arguments: list[str]

    @property
    def named(self) -> dict[str, str]:
        """The arguments with a name."""
        return dict(argument.split("=", 1) for argument in self.arguments if "=" in argument)

    @property
    def mode(self) -> str | None:
        """The mode of a UNIX socket; None if it has none."""
        unnamed = [argument for argument in self.arguments if "=" not in argument]
        return self.named.get("mode", unnamed[1] if len(unnamed) > 1 else None)

    @property
    def unix_path(self) -> str:
        """The path of a UNIX socket; empty if it has none."""
        return self.named.get("address", self._first)

    @property
    def files(self) -> dict[str, str]:
        """The files of an ``ssl:`` endpoint, by their parameters."""
        # Twisted's own default of privateKey=.
        return {name: path for name, path in {"privateKey": "server.pem", **self.named}.items() if name in _FILES}

    @property
    def problem(self) -> str | None:
        """What is wrong with it that Twisted's parsers refuse without a reason, or too late; None if nothing is."""
        if self.kind == "stdio":
            return f"standard input is no place to listen; {_example(self.kind)}"
        if self.kind == "unix" and not self.unix_path:
            return f"the path is missing; {_example(self.kind)}"
        if self.kind in ("tcp", "tcp6", "ssl"):
            port = self.named.get("port", self._first)
            if not port:
                return f"the port is missing; {_example(self.kind)}"
            if not (port.isascii() and port.isdigit() and int(port[:6]) <= 65_535):
                return f"{port!r} is not a port (a whole number from 0 to 65535); {_example(self.kind)}"
        return _unreadable_file(self.files) if self.kind == "ssl" else None

    @property
    def _first(self) -> str:
        return self.arguments[0] if self.arguments and "=" not in self.arguments[0] else ""


def parse_description(text: str) -> Description:
    """Split a description into its parts."""
    kind, *arguments = [re.sub(r"\\(.)", r"\1", part) for part in re.split(r"(?<!\\):", text)]
    while kind == "haproxy":
        kind, *arguments = arguments or [""]
    return Description(kind, arguments)


def is_of_systemd(text: str) -> bool:
    """Return whether a description means a socket that systemd hands over."""
    return parse_description(text).kind == "systemd"


def is_private(text: str) -> bool:
    """Return whether only this user and group can connect to what ``private_endpoint`` makes of a description."""
    description = parse_description(text)
    mode = description.mode or "660"
    return description.kind == "unix" and re.fullmatch(r"[0-7]*0", mode) is not None


def _unreadable_file(files: Mapping[str, str]) -> str | None:
    for name, path in files.items():
        try:
            read_file(path)
        except OSError as error:
            return f"{name}={path}: {error.strerror}; name a PEM file that this user can read"
    return None


_FILES = ("privateKey", "certKey", "extraCertChain", "dhParameters")
_EXAMPLES = {
    "tcp": "tcp:8081:interface=127.0.0.1",
    "tcp6": r"tcp6:8081:interface=\:\:1",
    "ssl": "ssl:8443:privateKey=key.pem:certKey=cert.pem",
    "unix": "unix:/run/signaling.sock:mode=660",
    "systemd": "systemd:domain=INET6:index=0",
}
_PEM = "privateKey= has to hold a private key without a password, and certKey= its certificate, in PEM"
# What the parsers raise, and what is wrong with the description then; the first match counts.
_EXPLANATIONS = (
    (r"Unknown endpoint type: (.*)", r"there is no kind of endpoint \1"),
    (r"unexpected keyword argument '(\w+)'", r"there is no \1="),
    (r"multiple values for argument '(\w+)'", r"\1= is given twice; a colon inside of a value is written \\:"),
    (r"missing .* argument: '(\w+)'", r"\1= is missing"),
    (r"positional argument", "there are too many parts; a colon inside of a value is written \\\\:"),
    (r"invalid literal for int\(\) with base 8: (.*)", r"\1 is not an octal number"),
    (r"invalid literal for int\(\) with base 10: (.*)", r"\1 is not a whole number"),
    (r"no attribute '(\w+)'$", r"there is no \1 in the installed packages"),
    (r"IndexError|KeyError", "systemd handed no such socket over"),
)


def _example(kind: str) -> str:
    return f"for example {_EXAMPLES.get(kind) or ', '.join((_EXAMPLES['tcp'], _EXAMPLES['unix'], _EXAMPLES['ssl']))}"


def explain(kind: str, error: Exception) -> str:
    """Return, for a person, why a description or its files cannot be used.

    Args:
        kind: of the endpoint.
    """
    if isinstance(error, ImportError | NotImplementedError):
        return f"needs a package that is not installed (for TLS: pip install 'twisted-signaling[tls]'): {error}"
    text = f"{type(error).__name__}: {error}".replace("\n", " ")
    for pattern, meaning in _EXPLANATIONS:
        match = re.search(pattern, text)
        if match is not None:
            return f"{match.expand(meaning)}; {_example(kind)}"
    if "keys do not match" in text:
        return "the key of privateKey= and the certificate of certKey= do not belong together"
    return f"{_PEM} ({text})" if kind == "ssl" else f"{text}; {_example(kind)}"


def start_error(text: str, error: BaseException | None) -> StartError:
    """Return one line that says why listening failed, and what would help.

    Args:
        text: the option that asked for it.
    """
    cause = error.socketError if isinstance(error, CannotListenError) else error
    # For Twisted's lock beside a socket, only the text says that another server has it.
    number = errno.EADDRINUSE if "acquire lock" in str(cause) else getattr(cause, "errno", None)
    if re.match(r"--\S+ (haproxy:)*unix:", text) and number in _UNIX_REASONS:
        return StartError(f"{text}: {_UNIX_REASONS[number]}")
    if number == errno.EADDRINUSE:
        return StartError(f"{text}: the address is in use; stop the other server or choose another port")
    if "interface=" in text and (number in _NO_ADDRESS or isinstance(cause, socket.gaierror)):
        return StartError(f"{text}: interface= is not an address of this machine")
    if number == errno.EACCES:
        return StartError(
            f"{text}: this user may not listen there; choose a port from 1024 up, or let systemd hand the socket over"
        )
    return StartError(f"{text}: cannot listen: {cause}".replace("\n", " "))


# A link-local address without its zone is an invalid argument.
_NO_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL)
_NO_SOCKET = "no socket can be made there: its folder has to exist, and this user to be allowed to write to it"
_UNIX_REASONS = {
    errno.EADDRINUSE: "the path is in use; stop the other server, remove the file and its .lock, or choose another",
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS), _NO_SOCKET),
}
