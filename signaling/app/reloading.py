"""Reads the options again in a running server, and changes what can change: all of it, or nothing.

Every new value, and every file that an option names, is read and checked before the first is set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import chdir
from dataclasses import dataclass, replace
from typing import Any, Protocol

from constantly import NamedConstant
from twisted.cred.portal import Portal
from twisted.internet.defer import inlineCallbacks
from twisted.python import usage

from signaling.admin.site import AdminFactory
from signaling.app.options import Options
from signaling.app.settings import Setting, encode_settings
from signaling.auth.cred import Access
from signaling.core.ice import IceServers
from signaling.core.topic_rules import TopicRules
from signaling.limits import LIMIT_OPTIONS, Limits
from signaling.log.events import Events
from signaling.server.endpoint_descriptions import explain
from signaling.server.endpoints import Certificates
from signaling.webhooks.delivery import Webhooks
from signaling.workers.supervisor import Supervisor
from signaling.workers.topic_router import share

_LIMITS = {option.name for option in LIMIT_OPTIONS.values()}
_ICE_SERVERS = {"ice-servers", "turn-uri", "turn-secret-file", "turn-ttl"}


class ReloadRefused(Exception):
    """Nothing was changed; the text says why."""


@dataclass(frozen=True)
class PreparedReload:
    """What was read and checked.

    Args:
        options: as they were read.
        changed: the names of those that are to change now.
        for_restart: the names of the others that have changed.
        certificates: what names a listener, and what gives its new certificate to new connections.
    """

    options: Options
    changed: Sequence[str]
    for_restart: Sequence[str]
    certificates: Sequence[tuple[str, Callable[[], None]]]


class ReloadableFactory(Protocol):
    """A server, or the listener in front of its workers.

    Attributes:
        access: None if tokens are not checked.
        events: the log of what changes.
    """

    access: Access | None
    events: Events

    def change(  # noqa: PLR0913 - one for each option that can change
        self,
        *,
        limits: Limits | None = None,
        allow_origins: Iterable[str] | None = None,
        trusted_proxies: Iterable[str] | None = None,
        portal: Portal | None = None,
        log_level: NamedConstant | None = None,
        ice_servers: IceServers | None = None,
        topic_rules: TopicRules | None = None,
    ) -> None:
        """Change all that is not None, or raise ``ValueError`` and change nothing."""


class Reloader:
    """Reloads the options of one process.

    Args:
        options: in force.
        factory: is changed.
        certificates: what names a listener, and its certificate.
        worker: the number of the worker whose share of the bound on connections is the process's; None means the whole.
        webhooks: deliver the events of this process; None if it has none.

    Attributes:
        log_levels: functions that set the level of the process's log; the factory's need not be among them.
        admin: the port of the admin API; None if this process has none.
        supervisor: of the workers that reload with this process; None if there are none.
    """

    def __init__(
        self,
        options: Options,
        factory: ReloadableFactory,
        certificates: Iterable[tuple[str, Certificates]] = (),
        worker: int | None = None,
        *,
        webhooks: Webhooks | None,
    ) -> None:
        self._options = options
        self._factory = factory
        self._certificates = list(certificates)
        self._worker = worker
        self.admin: AdminFactory | None = None
        self._webhooks = webhooks
        self.supervisor: Supervisor | None = None
        self.log_levels: list[Callable[[NamedConstant], None]] = [self._set_level_of_factory]
        # In force, while the options stay as they were at the start.
        self._settings = dict(options.settings)
        self._digests = options.file_digests()
        self._config_was_empty = options.config_is_empty
        self._limits = options.limits
        self._log_level = options.log_level
        self._is_running = self._is_wanted_again = False
        self._prepared: PreparedReload | None = None

    @inlineCallbacks
    def reload(self) -> Any:
        """Reload, and log what has changed; if this is going on, do it once more behind it."""
        self._is_wanted_again = True
        if self._is_running:
            return
        self._is_running = True
        try:
            while self._is_wanted_again:
                self._is_wanted_again = False
                yield self._reload_once()
        except Exception:
            self._factory.events.log.failure("an error while reloading")
        finally:
            self._is_running = False

    @inlineCallbacks
    def _reload_once(self) -> Any:
        try:
            prepared = self.prepare()
            self._refuse_emptied_file(prepared.options)
            if self.supervisor is not None:
                reasons = yield self.supervisor.prepare_reload(prepared.options.fingerprint())
                if reasons:
                    raise ReloadRefused("; ".join(reasons))
        except ReloadRefused as refused:
            self._factory.events.reload_failed(str(refused))
            return
        # What changes is logged by the level that shows more.
        lower, before = min(self._log_level, prepared.options.log_level), dict(self._settings)
        self._set_level(lower)
        self.apply(prepared)
        if self.supervisor is not None:
            self.supervisor.apply_reload(encode_settings(self._settings.values()))
        self._log(prepared, before)
        self._set_level(self._log_level)

    def _refuse_emptied_file(self, new: Options) -> None:
        # An editor that empties a file before it writes the new text, or a full disk, would open the server to all.
        if new.config_is_empty and not self._config_was_empty:
            reason = "empty; if all options are to be unset, write a comment into it"
            raise ReloadRefused(f"{new.settings['config'].value}: {reason}")

    def prepare(self) -> PreparedReload:
        """Read and check everything.

        Raises:
            ReloadRefused: something is wrong.
        """
        try:
            # A daemon has another working directory than the process at its start.
            with chdir(self._options.working_directory):
                new = self._options.read_again()
                certificates = [(text, self._prepare(text, each)) for text, each in self._certificates]
        except (usage.UsageError, OSError) as error:
            raise ReloadRefused(str(error)) from None
        digests = new.file_digests()
        different = [
            name
            for name, setting in new.settings.items()
            if (setting.in_force, digests.get(name)) != (self._settings[name].in_force, self._digests.get(name))
        ]
        changed = [name for name in different if self._reloads(name, new)]
        return PreparedReload(
            new,
            changed,
            [name for name in different if name not in changed],
            [(text, use) for text, use in certificates if use is not None],
        )

    def prepare_as_worker(self, fingerprint: str) -> str | None:
        """Read and check everything, to be set when the listener says so.

        Args:
            fingerprint: of what the listener has read.

        Returns:
            Why it cannot be set; None if it can.
        """
        self._prepared = None
        try:
            prepared = self.prepare()
        except ReloadRefused as refused:
            return str(refused)
        if prepared.options.fingerprint() != fingerprint:
            return "a file was changed meanwhile; send SIGHUP again"
        self._prepared = prepared
        return None

    def apply_as_worker(self) -> None:
        """Set what ``prepare_as_worker`` has read, without a line in the log: the listener writes it."""
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            self.apply(prepared)
            self._set_level(self._log_level)

    def _prepare(self, text: str, certificates: Certificates) -> Callable[[], None] | None:
        try:
            return certificates.prepare()
        except Exception as error:
            # OpenSSL's errors, or the file's.
            raise ReloadRefused(self._options.with_source(f"{text}: {explain('ssl', error)}")) from None

    def _reloads(self, name: str, new: Options) -> bool:
        if name == "auth" and (new.portal is None) != (self._factory.access is None):
            return False
        if name == "admin-token-file" and None in (new.admin_tokens, self._options.admin_tokens):
            # Whether a token is needed depends on where the port listens, which does not change.
            return False
        if name == "webhook-secret-file" and (new.webhook is None or not self._settings["webhook"].texts):
            return False
        return new.settings[name].option.reloads

    def apply(self, prepared: PreparedReload) -> None:
        """Set what was prepared."""
        new, changed = prepared.options, set(prepared.changed)
        for _, use in prepared.certificates:
            use()
        self._config_was_empty = new.config_is_empty
        self._limits = _limits_in_force(self._limits, new.limits)
        self._factory.change(**self._arguments(new, changed))
        if "webhook-secret-file" in changed and self._webhooks is not None and new.webhook is not None:
            self._webhooks.keys = new.webhook.keys
        if "admin-token-file" in changed and self.admin is not None:
            self.admin.tokens = new.admin_tokens
        if "log-level" in changed:
            self._log_level = new.log_level
        digests = new.file_digests()
        for name in changed:
            self._settings[name] = new.settings[name]
            if name in digests:
                self._digests[name] = digests[name]
            else:
                self._digests.pop(name, None)

    def _arguments(self, new: Options, changed: set[str]) -> dict[str, Any]:
        """Return what changes, as arguments of the factory's ``change``."""
        arguments: dict[str, Any] = {}
        if changed & _LIMITS:
            arguments["limits"] = limits_of(self._limits, self._options.workers, self._worker)
        if "allow-origin" in changed:
            arguments["allow_origins"] = new.allow_origins
        if "trusted-proxy" in changed:
            arguments["trusted_proxies"] = new.trusted_proxies
        if "auth" in changed:
            arguments["portal"] = new.portal
        if changed & _ICE_SERVERS:
            arguments["ice_servers"] = new.ice_servers
        if "topics" in changed:
            arguments["topic_rules"] = new.topic_rules
        return arguments

    # The log

    def _set_level(self, level: NamedConstant) -> None:
        for set_level in self.log_levels:
            set_level(level)

    def _set_level_of_factory(self, level: NamedConstant) -> None:
        self._factory.change(log_level=level)

    def _log(self, prepared: PreparedReload, before: dict[str, Setting]) -> None:
        events = self._factory.events
        for name in prepared.changed:
            old, new = before[name].shown, prepared.options.settings[name].shown
            if old == new:
                events.secret_changed(name)
            else:
                events.option_changed(name, old, new)
        for text, _ in prepared.certificates:
            events.certificate_reloaded(text)
        for name in prepared.for_restart:
            events.restart_needed(name)
        if not (prepared.changed or prepared.certificates or prepared.for_restart):
            events.nothing_changed()


def limits_of(limits: Limits, workers: int, worker: int | None) -> Limits:
    """Return the limits of one process.

    Args:
        limits: of the whole server.
        workers: how many processes share the bound on connections.
        worker: the number of the worker whose share is meant; None means the whole.
    """
    if worker is None or limits.max_connections is None:
        return limits
    return replace(limits, max_connections=share(limits.max_connections, workers, worker))


def _limits_in_force(old: Limits, new: Limits) -> Limits:
    """Return the new limits, but for those that need a restart."""
    values = {}
    for field, option in LIMIT_OPTIONS.items():
        # One without an option follows from others.
        values[field] = getattr(new if option.reloads or option.name is None else old, field)
    return Limits(**values)
