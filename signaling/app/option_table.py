"""Every option: its name, unit, default and documentation.

To add an option: if it is a limit, add a field to ``Limits``; otherwise add a row to ``OPTIONS`` and handle it in
``Options.postOptions``. Then run ``tools/options_page.py``.
"""

from __future__ import annotations

from signaling.admission.client_address import ProxyHeader
from signaling.core import ice
from signaling.ice_source import provider
from signaling.limits import LIMIT_OPTIONS, Option, Unit

DEFAULT_PORT = 8081
DEFAULT_WEBHOOK_QUEUE = 10_000

OPTIONS = (
    Option(
        name="config",
        unit=Unit.FILE,
        help="File in TOML with other options.",
        details="See [configuration.md](configuration.md).",
    ),
    Option(
        name="check-config",
        unit=Unit.FLAG,
        help="Check all options and the files that they name, print what is in force, and exit.",
    ),
    Option(
        name="port",
        short="p",
        unit=Unit.COUNT,
        variable="PORT",
        default=str(DEFAULT_PORT),
        help="Port on all interfaces, IPv6 and IPv4.",
    ),
    Option(
        name="listen",
        unit=Unit.ENDPOINT,
        repeats=True,
        help="Twisted endpoint instead of `--port`, for example `tcp:8081:interface=127.0.0.1`; repeatable.",
        details="See [listen.md](listen.md).",
    ),
    Option(
        name="path-prefix",
        help="Path below which everything is, for example `/signal`: topics are at `/signal/ws/{topic}`.",
        details="`/healthz` and `/readyz` are at the root as well. See [proxies.md](proxies.md#below-a-path).",
    ),
    Option(
        name="workers",
        unit=Unit.COUNT,
        default="1",
        help="Processes that share the topics.",
        zero="one for each core",
        details="See [workers.md](workers.md).",
    ),
    Option(
        name="log-level",
        variable="LOG_LEVEL",
        reloads=True,
        default="info",
        help="`debug`, `info`, `warn` or `error`.",
    ),
    Option(
        name="log-format",
        default="text",
        help="`text`, or `json`: one object a line.",
        details="See [log.md](log.md).",
    ),
    Option(
        name="log-addresses",
        default="full",
        help="How much of clients' addresses the log shows: `off`, `network` (IPv4 /24, IPv6 /48) or `full`.",
        details="See [privacy.md](privacy.md).",
    ),
    Option(
        name="allow-origin",
        repeats=True,
        reloads=True,
        default="any",
        help=(
            "Origin that may connect: `https://example.com`, `https://*.example.com` for its subdomains,"
            " `http://localhost:*` for any port, or that of an app, for example `capacitor://localhost`; repeatable."
        ),
        details="See [origins.md](origins.md).",
    ),
    Option(
        name="metrics",
        unit=Unit.FLAG,
        help="Serve `/metrics` for Prometheus on the same port; needs the extra `metrics`.",
        details="See [monitoring.md](monitoring.md).",
    ),
    Option(
        name="metrics-listen",
        unit=Unit.ENDPOINT,
        help="Twisted endpoint that serves `/metrics`, for example `tcp:9090:interface=127.0.0.1`.",
        details="See [monitoring.md](monitoring.md).",
    ),
    Option(
        name="metrics-host",
        repeats=True,
        default="addresses, `localhost` and names without a dot",
        help="Another host name for requests to `--metrics-listen`, for example `metrics.example.com`; repeatable.",
    ),
    Option(
        name="admin-listen",
        unit=Unit.ENDPOINT,
        help="Twisted endpoint that serves the admin API, for example `tcp:8082:interface=127.0.0.1` or `unix:/run/a`.",
        details="See [admin.md](admin.md).",
    ),
    Option(
        name="admin-token-file",
        unit=Unit.FILE,
        reloads=True,
        help="File with the tokens for `--admin-listen`, one on each line; optional if that is a UNIX socket.",
    ),
    Option(
        name="auth",
        repeats=True,
        reloads=True,
        default="everybody may join",
        help="Who may join: `jwt:FILE`, or another check of `--help-auth`; repeatable.",
        details="See [access.md](access.md).",
    ),
    Option(name="help-auth", unit=Unit.FLAG, help="List the checks for `--auth`."),
    Option(name="help-auth-type", help="Describe one check of `--help-auth`, for example `jwt`."),
    Option(
        name="metadata-updates",
        unit=Unit.FLAG,
        help="Let peers replace their metadata after they have joined.",
        details="See [protocol-features.md](protocol-features.md#metadata).",
    ),
    Option(
        name="backplane",
        variable="BACKPLANE",
        help="URL of a Redis server through which nodes share topics; needs the extra `cluster`.",
        details="See [redis.md](redis.md).",
    ),
    Option(name="serve-client", unit=Unit.FLAG, help="Serve the client for browsers: `/signaling.js`, `/sealing.js`."),
    Option(name="demo", unit=Unit.FLAG, help="Serve a demo at `/`, and the client for browsers."),
    Option(
        name="ice-servers",
        unit=Unit.FILE,
        reloads=True,
        help="File with a JSON array of `RTCIceServer` dictionaries that every peer receives.",
    ),
    Option(
        name="turn-uri",
        repeats=True,
        reloads=True,
        help=(
            "TURN server with time-limited credentials, for example `turn:turn.example.com:3478?transport=udp`;"
            " repeatable."
        ),
    ),
    Option(
        name="turn-secret-file",
        unit=Unit.FILE,
        reloads=True,
        variable="TURN_SECRET",
        help="File with the shared secret of the TURN servers.",
        details="The variable has the secret itself.",
    ),
    Option(
        name="turn-ttl",
        unit=Unit.SECONDS,
        reloads=True,
        default=str(ice.DEFAULT_TTL_SECONDS),
        help="Lifetime of a TURN credential; peers receive a new one at half of it.",
    ),
    Option(
        name="ice-source",
        help=(
            "URL of a provider of ICE servers, asked at the start and at half of their life, for example"
            " `https://example.com/credentials`; needs the extra `tls`."
        ),
        details="See [turn.md](turn.md#a-provider).",
    ),
    Option(
        name="ice-source-token-file",
        unit=Unit.FILE,
        help="File with the token for `--ice-source`, or NAME:PASSWORD.",
        details="Read again for each request.",
    ),
    Option(
        name="ice-source-ttl",
        unit=Unit.SECONDS,
        default=str(provider.DEFAULT_TTL_SECONDS),
        help="Lifetime to ask a provider for, and to expect if its answer does not say.",
    ),
    Option(
        name="webhook",
        help="URL that gets an event for each peer that joins or leaves, for example `https://example.com/presence`.",
        details="See [webhooks.md](webhooks.md).",
    ),
    Option(
        name="webhook-secret-file",
        unit=Unit.FILE,
        reloads=True,
        help="File with the secrets that sign webhooks, `whsec_...`, one a line.",
    ),
    Option(
        name="webhook-queue",
        unit=Unit.COUNT,
        default=str(DEFAULT_WEBHOOK_QUEUE),
        help="Events that wait for the webhook's receiver; beyond it the oldest are dropped.",
    ),
    Option(
        name="trusted-proxy",
        repeats=True,
        reloads=True,
        help=(
            "Address or network of a proxy whose header names its clients' addresses, or `unix` for all that connect to"
            " a UNIX socket; repeatable."
        ),
    ),
    Option(
        name="proxy-header",
        default=ProxyHeader.X_FORWARDED_FOR,
        help="Header in which a `--trusted-proxy` names its client: `X-Forwarded-For` or `Forwarded` (RFC 7239).",
        details="The other one is never read. See [proxies.md](proxies.md#common-mistakes).",
    ),
)
"""Every option that is not a limit; the limits have theirs in ``LIMIT_OPTIONS``."""

# They print something and exit: there is nothing to configure. The methods of the first two are inherited.
HELP_ON_AUTH = ("help-auth", "help-auth-type")
_ACTIONS = (*HELP_ON_AUTH, "check-config")
ALL_OPTIONS = {option.name: option for option in (*OPTIONS, *LIMIT_OPTIONS.values()) if option.name is not None}
TOPICS = Option(name="topics", unit=Unit.TABLES, reloads=True, help="Bounds of topics by their names.")
"""The ``[[topics]]`` of the configuration file."""
CONFIGURABLE = {name: option for name, option in ALL_OPTIONS.items() if name not in _ACTIONS}
"""The options that have a variable of the environment; all but ``config`` are keys of its file."""


def help_text(option: Option) -> str:
    """Return what ``--help`` says about an option."""
    text = option.help.replace("`", "")
    if option.zero is not None:
        text += f" 0: {option.zero}."
    if option.exceeded:
        text += f" Beyond it: {option.exceeded.replace('`', '')}."
    default = " or ".join(filter(None, (option.variable and f"${option.variable}", option.default_text)))
    return f"{text} [default: {default.replace('`', '')}]" if default else text
