"""Observers in front of a log, which show of clients' addresses only what ``--log-addresses`` says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.logger import ILogObserver, formatEvent
from zope.interface import implementer

from signaling.admission.logged_addresses import NOT_SHOWN, LoggedAddresses
from signaling.log.forwarding import ForwardedFailure

# Of what a client, an application or an operator names: no address, though it may look like one.
_NAMES = frozenset({"event", "topic", "subject", "peer", "to", "node", "url", "listener"})
# About this server and those that it asks, whose addresses an operator has given.
_ABOUT_SERVERS = frozenset(
    {
        *("listening", "listen_failed", "option_changed", "reload_failed"),
        *("backplane_connected", "backplane_disconnected", "backplane_error", "node_unregistered"),
        *("ice_servers_not_fetched", "webhook_failed"),
    }
)
# Kept of an event of others, whose text and traceback are written anew.
_KEPT = ("log_time", "log_level", "log_namespace", "time", "isError", "worker")
_SYSTEMS = ("log_system", "system")


def is_own(event: Mapping[str, Any]) -> bool:
    """Return whether an event is one of ``Events``, with fields."""
    return event.get("log_namespace") == "signaling" and "event" in event


@implementer(ILogObserver)
class OwnAddressMask:
    """Masks the addresses in the fields of this server's own events.

    Args:
        observer: receives the events.
        addresses: decides what is shown.
    """

    def __init__(self, observer: Callable[[Any], object], addresses: LoggedAddresses) -> None:
        self._observer = observer
        self._addresses = addresses

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Pass on an event of ``Events``."""
        if not is_own(event):
            # A failure: its text may quote anything.
            event = masked_text(event, self._addresses)
        elif event["event"] not in _ABOUT_SERVERS:
            event = {name: self._masked(name, value) for name, value in event.items()}
        self._observer(event)

    def _masked(self, name: str, value: Any) -> Any:
        if name == "address":
            return self._addresses.shown(value) or NOT_SHOWN
        if not isinstance(value, str) or name in _NAMES or name.startswith("log_"):
            return value
        return self._addresses.in_text(value)


@implementer(ILogObserver)
class AddressMask:
    """Masks the addresses in the lines of Twisted and other libraries; our own events come masked.

    Args:
        observer: receives the events.
        addresses: decides what is shown.
    """

    def __init__(self, observer: Callable[[Any], object], addresses: LoggedAddresses) -> None:
        self._observer = observer
        self._addresses = addresses

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Pass on an event of whatever library."""
        self._observer(event if is_own(event) else masked_text(event, self._addresses))


def masked_text(event: Mapping[str, Any], addresses: LoggedAddresses) -> dict[str, Any]:
    """Return an event with the text and the traceback of another one, and the addresses in them masked."""
    masked: dict[str, Any] = {name: event[name] for name in _KEPT if name in event}
    masked |= {name: addresses.in_text(str(event[name])) for name in _SYSTEMS if event.get(name) is not None}
    masked |= {"log_format": "{log_text}", "log_text": addresses.in_text(formatEvent(dict(event)))}
    failure = event.get("log_failure")
    if failure is not None:
        masked["log_failure"] = ForwardedFailure(addresses.in_text(failure.getTraceback()))
    return masked
