"""``signaling-probe``: joins a topic with two peers and relays once each way, for cron jobs and monitors.

It prints the time of each step and exits with 0. If a step fails, it says what failed and what to do, and exits with 1.
If its arguments are wrong, it exits with 2.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import math
import os
import re
import ssl
import sys
import time
import uuid
from collections.abc import Awaitable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus, WebSocketException

from signaling.standard_output import print_line
from signaling.web.path_prefix import check_path_prefix

R = TypeVar("R")

TOPIC_PREFIX = "probe-"
"""How the names of its topics start: a token has to cover them."""

_MAX_TEXT_CHARACTERS = 500
_PROG = "signaling-probe"
_TOKEN_VARIABLE = "SIGNALING_TOKEN"
_SCHEMES = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}
_UNIX = "unix:"
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_B64TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_FULL_TOKEN = f'a JSON Web Token with "exp" and "signaling": {{"prefixes": ["{TOPIC_PREFIX}"]}}'
_GIVE_TOKEN = f"Put it into a file (--token-file FILE) or into {_TOKEN_VARIABLE}"
_MINT = f"for a trial, signaling-token --key KEY --prefix {TOPIC_PREFIX} mints one"
_GIVE_PASSWORD = "write NAME:PASSWORD into a file (--password-file FILE)"
# OpenSSL's numbers: the certificate is for another host, or for another address.
_FOR_ANOTHER_NAME = (62, 64)
_EXPIRED = 10

_STEPS = {"connect": "connecting", "join": "joining", "relay": "relaying", "relayBack": "relaying back"}
_DESCRIPTION = """\
Join a topic with two peers, relay one message each way, and print how long that took.
Exit status: 0 if all went well, 1 if a step failed, 2 if the arguments are wrong."""
_EXAMPLES = f"""\
examples:
  {_PROG} wss://signaling.example.com
  {_PROG} wss://example.com/signal                  # with --path-prefix /signal
  {_PROG} unix:/run/signaling.sock
  {_PROG} wss://10.0.0.7:8443 --server-name signaling.example.com --ca-file ca.pem
  {_PROG} wss://signaling.example.com --token-file token
  {_PROG} ws://localhost:8081 --json

With access control, the token has to cover topics that start with "{TOPIC_PREFIX}":
  signaling-token --key private.pem --prefix {TOPIC_PREFIX} > token
"""


class ProbeError(Exception):
    """The probe failed; the text says how, and what to do.

    Args:
        code: the kind of failure, for programs.
        text: for people; parts of it may come from the server.
        numbers: ``status`` of an HTTP answer, or ``closeCode``.
    """

    def __init__(self, code: str, text: str, **numbers: int) -> None:
        super().__init__(text)
        self.code = code
        self.numbers = numbers


@dataclass(frozen=True)
class Target:
    """Where a server is.

    Args:
        url: of a new topic there.
        how: arguments of ``connect`` that say how to reach it.
    """

    url: str
    how: Mapping[str, Any]


def target(text: str, server_name: str | None = None, path_prefix: str = "") -> Target:
    """Return where a server is.

    Args:
        text: the URL of the server, or of its ``/ws/``; or ``unix:`` and the path of a socket.
        server_name: the host that is asked for, and that the certificate has to name, if it is not that of the URL.
        path_prefix: of a server on a UNIX socket.

    Raises:
        ValueError: something is wrong; the text says what is right.
    """
    if server_name is not None and _NAME.fullmatch(server_name) is None:
        raise ValueError(
            f"--server-name: {server_name!r} is not the name of a host (for example signaling.example.com)"
        )
    topic = f"{TOPIC_PREFIX}{uuid.uuid4().hex}"
    if text.startswith(_UNIX):
        path = re.sub("^//(?=/)", "", text.removeprefix(_UNIX))
        if not path or "\0" in path:
            raise ValueError(f"{text!r} names no socket (for example unix:/run/signaling.sock)")
        prefix = check_path_prefix(path_prefix)
        return Target(f"ws://{server_name or 'localhost'}{prefix}/ws/{topic}", {"unix": True, "path": path})
    if path_prefix:
        raise ValueError("--path-prefix is for a UNIX socket: write the path into the URL (wss://example.com/signal)")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in _SCHEMES or not parts.hostname:
        right = "for example wss://signaling.example.com or unix:/run/signaling.sock"
        raise ValueError(f"{text!r} is not the address of a server ({right})")
    if parts.username is not None:
        raise ValueError(f"a URL has no name and password here, which others could read: {_GIVE_PASSWORD}")
    scheme, place, how = _SCHEMES[parts.scheme], parts.netloc, {}
    if server_name is not None:
        port = port or (443 if scheme == "wss" else 80)
        place, how = f"{server_name}:{port}", {"host": parts.hostname, "port": port}
    base = parts.path.rstrip("/")
    path = base if base.endswith("/ws") else f"{base}/ws"
    return Target(urlunsplit((scheme, place, f"{path}/{topic}", "", "")), how)


class Probe:
    """One probe of a server.

    Args:
        place: where the server is.
        timeout_seconds: the timeout of each step.
        authorization: the header; None if the server needs none.
        context: for a server with TLS.

    Attributes:
        milliseconds: the time of each step that is over.
        step: the step that runs now, or that failed.
    """

    def __init__(
        self, place: Target, timeout_seconds: float, authorization: str | None, context: ssl.SSLContext | None
    ) -> None:
        self._place = place
        self._timeout = timeout_seconds
        self._headers = {"Authorization": authorization} if authorization else None
        self._ssl = context
        self.milliseconds: dict[str, float] = {}
        self.step = "connect"

    async def run(self) -> None:
        """Join with two peers, and relay once each way.

        Raises:
            ProbeError: a step failed.
        """
        async with AsyncExitStack() as connections:
            first = await self._timed("connect", self._connect(connections))
            second, ids = await self._timed("join", self._join(first, connections))
            await self._timed("relay", self._relay(first, second, *ids))
            await self._timed("relayBack", self._relay(second, first, *reversed(ids)))

    async def _timed(self, step: str, act: Awaitable[R]) -> R:
        self.step = step
        start = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout):
                result = await act
        except InvalidStatus as error:
            raise _refusal(error, presented=self._headers is not None) from None
        except ConnectionClosed as error:
            raise _closing(error) from None
        except TimeoutError:
            raise ProbeError("timeout", "no answer in time") from None
        except ssl.SSLError as error:
            raise _tls_failure(error) from None
        except InvalidMessage:
            hint = "" if self._ssl is not None else "; if its port has TLS, use wss://"
            raise ProbeError("no_http", f"the server does not answer in HTTP{hint}") from None
        except OSError as error:
            raise ProbeError("connection_failed", f"{type(error).__name__}: {error}") from None
        except (InvalidHandshake, WebSocketException, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ProbeError("invalid_answer", f"{type(error).__name__}: {error}") from None
        self.milliseconds[step] = round(1000 * (time.perf_counter() - start), 1)
        return result

    async def _connect(self, connections: AsyncExitStack) -> ClientConnection:
        connection = await _Connect(
            self._place.url,
            additional_headers=self._headers,
            ssl=self._ssl,
            open_timeout=None,
            close_timeout=self._timeout,
            proxy=None,
            **self._place.how,
        )
        return await connections.enter_async_context(connection)

    async def _join(
        self, first: ClientConnection, connections: AsyncExitStack
    ) -> tuple[ClientConnection, tuple[str, str]]:
        first_id = (await self._expect(first, "welcome"))["selfId"]
        await self._expect(first, "peer-list")
        second = await self._connect(connections)
        second_id = (await self._expect(second, "welcome"))["selfId"]
        peers = (await self._expect(second, "peer-list"))["peers"]
        if [peer["id"] for peer in peers] != [first_id]:
            raise ProbeError("topic_split", "the two peers do not see each other; is a topic kept on one node?")
        await self._expect(first, "peer-joined")
        return second, (first_id, second_id)

    async def _relay(self, sender: ClientConnection, receiver: ClientConnection, sender_id: str, to: str) -> None:
        payload = uuid.uuid4().hex
        await sender.send(json.dumps({"type": "offer", "to": to, "payload": payload}))
        arriving = asyncio.create_task(self._expect(receiver, "offer"))
        # An error is the answer to the sender; nothing else comes to it.
        refused = asyncio.create_task(self._expect(sender, "offer"))
        try:
            done, _ = await asyncio.wait((arriving, refused), return_when=asyncio.FIRST_COMPLETED)
            offer = (arriving if arriving in done else refused).result()
        finally:
            for task in (arriving, refused):
                task.cancel()
            await asyncio.gather(arriving, refused, return_exceptions=True)
        if (offer["from"], offer["payload"]) != (sender_id, payload):
            raise ProbeError("altered", "a message arrived altered")

    async def _expect(self, connection: ClientConnection, kind: str) -> dict[str, Any]:
        # An operator may speak to every topic.
        while (message := json.loads(await connection.recv()))["type"] == "notice":
            pass
        if message["type"] == "error":
            raise _answered_error(message)
        if message["type"] != kind:
            raise ProbeError("unexpected_answer", f"expected {kind}, not {message['type']}")
        answer: dict[str, Any] = message
        return answer


class _Connect(connect):
    """Follows no redirect: another server gets neither the token nor a good report."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


def _refusal(error: InvalidStatus, *, presented: bool) -> ProbeError:
    """Return what an HTTP answer means."""
    status = error.response.status_code
    body = bytes(error.response.body or b"").decode("utf-8", "replace").strip()[:200]
    challenges = " ".join(error.response.headers.get_all("WWW-Authenticate"))
    if status == 401:
        return _unauthorized(body, challenges, presented=presented)
    if status == 403 and "insufficient_scope" in challenges:
        covered = f'put "prefixes": ["{TOPIC_PREFIX}"] into its claim "signaling"'
        text = f'the token does not cover topics that start with "{TOPIC_PREFIX}": {covered} ({_MINT})'
        return ProbeError("topic_not_covered", text, status=status)
    if 300 <= status < 400:
        text = f"the server answered {status}: redirects are not followed; probe the address that it names"
        return ProbeError("redirected", text, status=status)
    return ProbeError("refused", f"the server answered {status}: {body}", status=status)


def _unauthorized(body: str, challenges: str, *, presented: bool) -> ProbeError:
    tokens, passwords = "Bearer" in challenges, "Basic" in challenges
    if not presented:
        if passwords and not tokens:
            text = f"the server takes only clients with a name and a password: {_GIVE_PASSWORD}"
            return ProbeError("password_needed", text, status=401)
        also = f"; or {_GIVE_PASSWORD}" if passwords else ""
        text = f"the server takes only clients with a token: {_FULL_TOKEN}. {_GIVE_TOKEN}; {_MINT}{also}"
        return ProbeError("token_needed", text, status=401)
    if passwords and not tokens:
        return ProbeError("password_refused", f"the server refuses the name and the password: {body}", status=401)
    return ProbeError("token_refused", f"the server refuses the token: {body}. It needs {_FULL_TOKEN}", status=401)


def _answered_error(message: dict[str, Any]) -> ProbeError:
    """Return what an ``error`` of the server means."""
    code = message.get("code")
    if code == "forbidden":
        text = 'the token allows no sending: leave "send": false out of its claim "signaling"'
        return ProbeError("sending_forbidden", text)
    if code == "topic_full":
        return ProbeError("topic_full", "the server, or the token, allows fewer than two peers in a topic")
    return ProbeError("error_answered", f"the server answered the error {code}: {message.get('message')}")


def _closing(error: ConnectionClosed) -> ProbeError:
    if error.rcvd is None:
        return ProbeError("connection_lost", "the connection was lost without a close frame")
    reason = f": {error.rcvd.reason}" if error.rcvd.reason else ""
    text = f"the server closed the connection with {error.rcvd.code}{reason}"
    return ProbeError("closed", text, closeCode=error.rcvd.code)


def _tls_failure(error: ssl.SSLError) -> ProbeError:
    if not isinstance(error, ssl.SSLCertVerificationError):
        reason = error.reason or str(error)
        hint = "; the port has no TLS: use ws://" if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE") else ""
        return ProbeError("tls_failed", f"TLS: {reason}{hint}")
    if error.verify_code in _FOR_ANOTHER_NAME:
        text = f"the certificate is for another host: {error.verify_message}; if that is right, use --server-name NAME"
        return ProbeError("certificate_for_another_host", text)
    if error.verify_code == _EXPIRED:
        return ProbeError("certificate_expired", "the certificate has expired")
    text = f"the certificate is not trusted: {error.verify_message}; name its authority with --ca-file FILE"
    return ProbeError("certificate_not_trusted", text)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{_PROG}: {_one_line(message)}; see {_PROG} --help\n")


class _NoTokenHere(argparse.Action):
    """Refuses ``--token TOKEN`` without repeating it."""

    def __call__(self, parser: argparse.ArgumentParser, *given: object) -> NoReturn:
        where = f"put it into a file (--token-file FILE) or into {_TOKEN_VARIABLE}"
        parser.error(f"--token: other users of this machine can read arguments: {where}")


def _parser() -> _Parser:
    parser = _Parser(
        prog=_PROG,
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("url", metavar="URL", help="ws://, wss://, http:// or https:// and a host; or unix:PATH")
    parser.add_argument("--timeout", type=_seconds, default=5.0, help="seconds for each step [default: 5]")
    parser.add_argument("--json", action="store_true", help="print one JSON object, also if a step failed")
    secret = parser.add_mutually_exclusive_group()
    secret.add_argument(
        "--token-file", type=Path, metavar="FILE", help=f"file with an access token [default: ${_TOKEN_VARIABLE}]"
    )
    secret.add_argument("--password-file", type=Path, metavar="FILE", help="file with NAME:PASSWORD")
    secret.add_argument("--token", action=_NoTokenHere, help=argparse.SUPPRESS)
    parser.add_argument(
        "--ca-file", "--ca", type=Path, metavar="FILE", help="PEM file of authorities [default: the system's]"
    )
    parser.add_argument(
        "--server-name", metavar="NAME", help="host that the certificate has to name [default: that of the URL]"
    )
    parser.add_argument("--path-prefix", default="", metavar="PATH", help="--path-prefix of a server on a UNIX socket")
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds (for example 5 or 0.5)")
    return seconds


def _authorization(options: argparse.Namespace) -> str | None:
    """Return the header for the token or the password that was given.

    Raises:
        ValueError: there is none in the file; the text does not repeat it.
    """
    if options.password_file is not None:
        text = options.password_file.read_bytes().strip()
        if not text.partition(b":")[1] or b"\n" in text:
            raise ValueError(f"--password-file: {options.password_file}: it needs one line, NAME:PASSWORD")
        return f"Basic {base64.b64encode(text).decode()}"
    if options.token_file is not None:
        token, source = options.token_file.read_text("latin-1").strip(), f"--token-file: {options.token_file}"
    else:
        token, source = os.environ.get(_TOKEN_VARIABLE, "").strip(), _TOKEN_VARIABLE
        if not token:
            return None
    if _B64TOKEN.fullmatch(token) is None:
        raise ValueError(f"{source}: it needs one token, of the characters A-Z a-z 0-9 . _ ~ + / -")
    return f"Bearer {token}"


def _probe(parser: _Parser, options: argparse.Namespace) -> Probe:
    """Return the probe that the options ask for; exits if they are wrong."""
    try:
        place = target(options.url, options.server_name, options.path_prefix)
        context = ssl.create_default_context(cafile=options.ca_file) if place.url.startswith("wss:") else None
        return Probe(place, options.timeout, _authorization(options), context)
    except ssl.SSLError:
        parser.error(f"--ca-file: {options.ca_file}: it needs certificates in PEM")
    except OSError as error:
        parser.error(f"{error.filename or options.ca_file}: {error.strerror}")
    except ValueError as error:
        parser.error(str(error))


def _one_line(text: str) -> str:
    """Return a text, parts of which may come from the server, as one line without control characters."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text[:_MAX_TEXT_CHARACTERS])
    return " ".join(printable.split())


def main(arguments: list[str] | None = None) -> int:
    """Run the probe.

    Returns:
        The exit status.

    Raises:
        SystemExit: the arguments are wrong.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    probe = _probe(parser, options)
    failure = None
    try:
        asyncio.run(probe.run())
    except ProbeError as error:
        failure = error
    if options.json:
        print_line(json.dumps(_report(probe, failure)))
    elif failure is not None:
        print(_one_line(f"failed: {_STEPS[probe.step]}: {failure}"), file=sys.stderr)
    else:
        times = "connect {connect:.1f} ms, join {join:.1f} ms, relay {relay:.1f} ms there, {relayBack:.1f} ms back"
        print_line(f"ok: {times.format(**probe.milliseconds)}")
    return 0 if failure is None else 1


def _report(probe: Probe, failure: ProbeError | None) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    report = {"ok": failure is None, "milliseconds": probe.milliseconds}
    if failure is not None:
        report["step"] = probe.step
        report["error"] = {"code": failure.code, "text": _one_line(str(failure)), **failure.numbers}
    return report


if __name__ == "__main__":
    sys.exit(main())
