"""Every event of the log, with its name, level, fields and text.

docs/log.md lists them for operators. No payload, metadata, token or secret is ever a field.
"""

from __future__ import annotations

import traceback
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from constantly import NamedConstant
from twisted.logger import FilteringLogObserver, Logger, LogLevel, LogLevelFilterPredicate, globalLogPublisher

from signaling.admission.logged_addresses import LoggedAddresses
from signaling.admission.rate_limit import TokenBucket
from signaling.core.messages import ClientMessage, MetadataUpdate
from signaling.errors import Rejected
from signaling.log.address_mask import OwnAddressMask

# The subject of a token may be as long as a request.
_MAX_SUBJECT_CHARACTERS = 256
# A line has about 150 bytes: a flood of refused requests writes at most 130 MB a day.
_REFUSALS_PER_SECOND = 10.0
_REFUSAL_BURST = 100
_ERRORS_PER_SECOND = 1.0


class _Repeated:
    """Counts events of a kind of which at most one a second is logged.

    Args:
        seconds: a monotonic clock.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._bucket = TokenBucket(_ERRORS_PER_SECOND, 1)
        self._suppressed = 0

    def count(self) -> int:
        """Count one more; returns how many a line that is written now stands for, or 0 if none is."""
        self._suppressed += 1
        if self._bucket.available(self._seconds()) < 1:
            return 0
        self._bucket.take(self._seconds())
        count, self._suppressed = self._suppressed, 0
        return count


def _shortened(subject: str) -> str:
    if len(subject) <= _MAX_SUBJECT_CHARACTERS:
        return subject
    return f"{subject[: _MAX_SUBJECT_CHARACTERS - 1]}\u2026"


class Events:
    """The log of one server.

    Args:
        level: events below it are not logged.
        seconds: a monotonic clock.
        addresses: decides what is shown of the addresses of clients; None means everything.

    Attributes:
        debug: whether events of level debug are logged; callers check it first, as an event costs more than a relay.
        info: the same for level info.
    """

    def __init__(
        self, level: NamedConstant, seconds: Callable[[], float], addresses: LoggedAddresses | None = None
    ) -> None:
        self._predicate = LogLevelFilterPredicate()
        publish: Any = globalLogPublisher
        if addresses is not None and not addresses.in_full:
            publish = OwnAddressMask(publish, addresses)
        self.log = Logger(namespace="signaling", observer=FilteringLogObserver(publish, [self._predicate]))
        self.set_level(level)
        self._seconds = seconds
        self._refusals = TokenBucket(_REFUSALS_PER_SECOND, _REFUSAL_BURST)
        self._suppressed_refusals = 0
        self._store_errors = _Repeated(seconds)
        self._login_errors = _Repeated(seconds)
        self._admin_refusals = _Repeated(seconds)
        self._observer_errors = _Repeated(seconds)
        # By reason, of which there are two.
        self._evictions = defaultdict[str, _Repeated](lambda: _Repeated(seconds))

    def set_level(self, level: NamedConstant) -> None:
        """Log no event below ``level`` from now on."""
        self._predicate.setLogLevelForNamespace("", level)
        self.debug = level <= LogLevel.debug
        self.info = level <= LogLevel.info

    # Peers. Each of their events has the subject: the owner of the peer's token, or None.

    def joined(self, peer: str, topic: str, address: str | None, subject: str | None = None) -> None:
        """A peer joined."""
        self._peer("joined", "{peer} joined {topic!r} from {address}", peer, topic, subject, address=address)

    def resumed(self, peer: str, topic: str, address: str | None, subject: str | None = None) -> None:
        """A peer resumed its session on another connection."""
        self._peer("resumed", "{peer} resumed in {topic!r} from {address}", peer, topic, subject, address=address)

    def handed_off(self, peer: str, topic: str, subject: str | None = None) -> None:
        """A peer's session was handed off to another node, where the peer resumed it."""
        self._peer("handed_off", "{peer} in {topic!r} was handed off to another node", peer, topic, subject)

    def rejected(self, topic: str, address: str | None, reason: str, subject: str | None = None) -> None:
        """A client could not join, because the topic was full or the client is blocked."""
        if self.info:
            text = "{address} was rejected from {topic!r}: {reason}"
            self._log(LogLevel.info, text, subject, event="rejected", topic=topic, address=address, reason=reason)

    def detached(self, peer: str, topic: str, reason: str, subject: str | None = None) -> None:
        """A peer lost its connection and may resume."""
        self._peer("detached", "{peer} in {topic!r} was detached: {reason}", peer, topic, subject, reason=reason)

    def left(self, peer: str, topic: str, reason: str, since: float, subject: str | None = None) -> None:
        """A peer left its topic.

        Args:
            since: when the peer joined, by the clock ``seconds``.
        """
        if self.info:
            text = "{peer} left {topic!r}: {reason}"
            duration = round(self._seconds() - since, 3)
            self._peer("left", text, peer, topic, subject, reason=reason, duration=duration)

    def _peer(self, event: str, text: str, peer: str, topic: str, subject: str | None, **fields: Any) -> None:
        if self.info:
            self._log(LogLevel.info, text, subject, event=event, peer=peer, topic=topic, **fields)

    def _log(self, level: NamedConstant, text: str, subject: str | None, **fields: Any) -> None:
        """Log an event of a client, with its subject if it has one."""
        if subject is None:
            self.log.emit(level, text, **fields)
        else:
            # Whoever signs tokens chooses it: it is quoted, as the name of a topic is.
            self.log.emit(level, text + " (subject {subject!r})", subject=_shortened(subject), **fields)

    # Messages

    def message(
        self, peer: str, outcome: ClientMessage | MetadataUpdate | Rejected, subject: str | None = None
    ) -> None:
        """A peer's message was relayed or taken, or the peer was sent an error."""
        if not self.debug:
            return
        if isinstance(outcome, Rejected):
            text, code = "{peer} was sent the error {code}: {reason}", str(outcome.code)
            self._log(LogLevel.debug, text, subject, event="error_sent", peer=peer, code=code, reason=outcome.text)
        elif isinstance(outcome, MetadataUpdate):
            text, size = "{peer} sent new metadata of {size} bytes", len(outcome.metadata)
            self._log(LogLevel.debug, text, subject, event="metadata_update", peer=peer, size=size)
        else:
            text, size = "{peer} relayed {type} of {size} bytes to {to}", len(outcome.payload or b"")
            self._log(
                LogLevel.debug, text, subject, event="relayed", peer=peer, type=outcome.type, size=size, to=outcome.to
            )

    def token_renewed(self, peer: str, subject: str | None = None) -> None:
        """A peer presented a new token in place of its old one."""
        if self.debug:
            self._log(LogLevel.debug, "{peer} renewed its token", subject, event="token_renewed", peer=peer)

    # Requests

    def refused(self, address: str, status: int | None, reason: str, subject: str | None = None) -> None:
        """An HTTP request was refused; at most 10 a second are logged.

        Args:
            status: the HTTP status of the answer, or None if the connection was closed without one.
            subject: the owner of its token, if a token was checked before.
        """
        shown = reason if status is None else f"{status} {reason}"
        fields = {"address": address, "status": status, "reason": reason, "shown": shown}
        self._refused("refused a request from {address}: {shown}", subject, event="refused", **fields)

    def check_refused(self, address: str, status: int, reason: str) -> None:
        """A check was answered that the client could not join; ``refused`` has the same 10 a second."""
        text = "answered a check from {address}: {status} {reason}"
        self._refused(text, None, event="check_refused", address=address, status=status, reason=reason)

    def _refused(self, text: str, subject: str | None, **fields: Any) -> None:
        if self._refusals.available(self._seconds()) < 1:
            self._suppressed_refusals += 1
            return
        self._refusals.take(self._seconds())
        if self._suppressed_refusals:
            count, self._suppressed_refusals = self._suppressed_refusals, 0
            suppressed = "{count} more requests were refused and not logged"
            self.log.info(suppressed, event="refusals_suppressed", count=count)
        self._log(LogLevel.info, text, subject, **fields)

    def connection_evicted(self, reason: str) -> None:
        """A connection that had not joined was closed for a newer one; at most one line a second for each reason."""
        count = self._evictions[reason].count()
        if count:
            text = "closed the oldest connection that had not joined, for a newer one: {reason} ({count} times)"
            self.log.info(text, event="connections_evicted", reason=reason, count=count)

    def login_failed(self, reason: str) -> None:
        """The portal failed; at most one line a second is logged, for a client may cause one by each message.

        Args:
            reason: the kind and the place of the exception; its text may quote the credential.
        """
        count = self._login_errors.count()
        if count:
            text = "a login failed: {reason} ({count} times)"
            self.log.error(text, event="login_failed", reason=reason, count=count)

    # Operators

    def admin_refused(self, address: str) -> None:
        """A request of the admin API had no token, or a wrong one; at most one line a second is logged."""
        count = self._admin_refusals.count()
        if count:
            text = "a request of the admin API from {address} had no right token ({count} times)"
            self.log.warn(text, event="admin_refused", address=address, count=count)

    def peer_removed(self, address: str, topic: str, peer: str, block_seconds: float) -> None:
        """An operator removed a peer.

        Args:
            address: the operator's.
            block_seconds: how long the owner of its token is kept out of the topic; 0 means not at all.
        """
        text = "{address} removed {peer} from {topic!r}"
        if block_seconds:
            text += ", and blocked the owner of its token for {seconds} s"
        self.log.info(text, event="peer_removed", address=address, topic=topic, peer=peer, seconds=block_seconds)

    def topic_closed(self, address: str, topic: str, peers: int) -> None:
        """An operator closed a topic."""
        text = "{address} closed {topic!r}, with {peers} peers"
        self.log.info(text, event="topic_closed", address=address, topic=topic, peers=peers)

    def notice_sent(self, address: str, topic: str, to: str | None, peers: int) -> None:
        """An operator sent a notice; its data is not logged.

        Args:
            to: the only peer that it is for; None means all.
            peers: how many received it.
        """
        text = "{address} sent a notice to {to} in {topic!r}, {peers} received it"
        self.log.info(text, event="notice_sent", address=address, topic=topic, to=to or "all peers", peers=peers)

    # The backplane

    def node_registered(self, node: str) -> None:
        """The store serves this node, at first or again."""
        self.log.info("node {node} serves its cluster", event="node_registered", node=node)

    def node_unregistered(self, reason: str) -> None:
        """The store does not serve this node."""
        text = "the cluster is out of reach, peers here go on among themselves: {reason}"
        self.log.warn(text, event="node_unregistered", reason=reason)

    def node_evicted(self, node: str) -> None:
        """Another node had sent no heartbeat for too long, and its peers leave."""
        self.log.warn(
            "node {node} sends no heartbeats and is evicted; its peers leave", event="node_evicted", node=node
        )

    def this_node_evicted(self, node: str) -> None:
        """The other nodes had evicted this node."""
        text = "the other nodes have evicted node {node}, this one; it goes on under a new id"
        self.log.warn(text, event="this_node_evicted", node=node)

    def clocks_differ(self, seconds: float) -> None:
        """The store's wall clock is ahead of this node's by so many seconds, or behind if they are negative."""
        text = "the wall clocks of this node and of its store differ by {seconds} s: set the one that is wrong"
        self.log.warn(text, event="clocks_differ", seconds=seconds)

    def backplane_connected(self, url: str) -> None:
        """The node connected to the store, for the first time or again."""
        self.log.info("the backplane {url} is connected", event="backplane_connected", url=url)

    def backplane_disconnected(self, url: str, reason: str) -> None:
        """The node cannot reach the store; it keeps trying."""
        text = "the backplane {url} is not connected: {reason}"
        self.log.warn(text, event="backplane_disconnected", url=url, reason=reason)

    def backplane_error(self, url: str, code: str, reason: str) -> None:
        """The store answered with an error; at most one a second is logged."""
        count = self._store_errors.count()
        if not count:
            return
        text = "the backplane {url} answered with an error ({count} times): {reason}"
        self.log.error(text, event="backplane_error", url=url, code=code, reason=reason, count=count)

    # Observers

    def observer_failed(self, error: BaseException | None) -> None:
        """An observer raised an exception; at most one line a second is logged, without its text.

        It may quote metadata.
        """
        count = self._observer_errors.count()
        if not count:
            return
        frames = traceback.extract_tb(error.__traceback__ if error is not None else None)
        where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "nowhere"
        reason = f"{type(error).__name__} at {where}"
        self.log.error(
            "an observer failed: {reason} ({count} times)", event="observer_failed", reason=reason, count=count
        )

    # Webhooks

    def webhook_unprotected(self, url: str) -> None:
        """The events of webhooks cross a network without encryption."""
        text = "--webhook {url}: who is where crosses the network without encryption; use https"
        self.log.warn(text, event="webhook_unprotected", url=url)

    def webhook_failed(self, reason: str) -> None:
        """A delivery failed, the first one after one that did not; it is retried."""
        text = "a webhook was not delivered, and is retried until it is: {reason}"
        self.log.warn(text, event="webhook_failed", reason=reason)

    def webhook_recovered(self, attempts: int, waiting: int) -> None:
        """A delivery succeeded after others failed.

        Args:
            attempts: how many failed.
            waiting: events that are still in the queue.
        """
        text = "webhooks are delivered again, after {count} attempts; {missing} events wait"
        self.log.info(text, event="webhook_recovered", count=attempts, missing=waiting)

    def webhook_gone(self, count: int) -> None:
        """The receiver answered 410: nothing is delivered any more."""
        text = "the webhook's receiver answered 410: deliveries end, and {count} events are lost"
        self.log.error(text, event="webhook_gone", count=count)

    def webhook_events_left(self, count: int) -> None:
        """The server stopped before the webhook's receiver had accepted all events."""
        text = "{count} events were not delivered to the webhook before the server stopped"
        self.log.warn(text, event="webhook_events_left", count=count)

    # ICE servers of a provider

    def ice_servers_fetched(self, url: str, count: int, seconds: int, reason: str) -> None:
        """A provider answered, first or after a failure, or leaves out others than before.

        Args:
            count: of the servers.
            seconds: for which they are valid.
            reason: why some of its servers are left out; empty if none are.
        """
        text = "{url} has {count} ICE servers, valid for {seconds} s"
        if reason:
            text += "; others are left out: {reason}"
        self.log.info(text, event="ice_servers_fetched", url=url, count=count, seconds=seconds, reason=reason or None)

    def ice_servers_not_fetched(self, url: str, count: int, reason: str) -> None:
        """A provider did not answer, for the ``count``-th time since its last answer."""
        text = "{url} has no new ICE servers ({count} times): {reason}"
        self.log.warn(text, event="ice_servers_not_fetched", url=url, count=count, reason=reason)

    def ice_servers_expired(self, url: str) -> None:
        """The latest ICE servers of a provider have expired, and peers still get them."""
        text = "the ICE servers of {url} have expired: peers may get no relay until it answers"
        self.log.error(text, event="ice_servers_expired", url=url)

    # The server

    def listening(self, address: str) -> None:
        """The server listens on an address."""
        self.log.info("listening on {address}", event="listening", address=address)

    def listen_failed(self, reason: str) -> None:
        """The server cannot listen on an endpoint, after it has started."""
        self.log.critical("{reason}", event="listen_failed", reason=reason)

    def max_connections_lowered(self, allowed: int, missing: int) -> None:
        """The limit on open files allows fewer connections than ``max_connections``."""
        text = (
            "--max-connections: the limit on open files allows {allowed} connections, {missing} fewer; raise it"
            " (ulimit -n, or LimitNOFILE= in systemd)"
        )
        self.log.warn(text, event="max_connections_lowered", allowed=allowed, missing=missing)

    def certificate_reloaded(self, listener: str) -> None:
        """New connections get the certificate that is in the files now."""
        self.log.info("{listener}: the certificate was reloaded", event="certificate_reloaded", listener=listener)

    def option_changed(self, option: str, old: str, new: str) -> None:
        """SIGHUP was received, and an option has another value."""
        text = "SIGHUP: {option}: {old} -> {new}"
        self.log.info(text, event="option_changed", option=option, old=old, new=new)

    def secret_changed(self, option: str) -> None:
        """SIGHUP was received, and an option has another value that is secret, or its file another content."""
        self.log.info("SIGHUP: {option}: its content has changed", event="secret_changed", option=option)

    def restart_needed(self, option: str) -> None:
        """SIGHUP was received, and an option has another value that only a restart changes."""
        self.log.warn("SIGHUP: {option}: a change needs a restart", event="restart_needed", option=option)

    def nothing_changed(self) -> None:
        """SIGHUP was received, and everything is as before."""
        self.log.info("SIGHUP: nothing changed", event="nothing_changed")

    def reload_failed(self, reason: str) -> None:
        """SIGHUP was received, and what was read is wrong: all stays as it is."""
        self.log.error("SIGHUP: all stays as it is: {reason}", event="reload_failed", reason=reason)

    # Workers

    def worker_started(self, worker: int, pid: int) -> None:
        """A worker is ready for connections."""
        self.log.info("worker {worker} is ready, as process {pid}", event="worker_started", worker=worker, pid=pid)

    def worker_died(self, worker: int, reason: str, seconds: float) -> None:
        """A worker exited without being asked to.

        Args:
            seconds: until it is restarted.
        """
        text = "worker {worker} died: {reason}; it is restarted {when}"
        when = f"in {seconds:g} s" if seconds else "now"
        self.log.error(text, event="worker_died", worker=worker, reason=reason, seconds=seconds, when=when)

    def worker_killed(self, worker: int, reason: str) -> None:
        """The supervisor killed a worker that did not answer, or did not stop in time."""
        self.log.error("worker {worker} was killed: {reason}", event="worker_killed", worker=worker, reason=reason)

    def worker_output(self, worker: int, line: str) -> None:
        """A worker wrote a line to its standard output or error: an early error, or one of the interpreter."""
        self.log.warn("worker {worker}: {line}", event="worker_output", worker=worker, line=line)

    def log_lines_lost(self, count: int) -> None:
        """Lines of a worker's log did not reach the listener."""
        self.log.warn("{count} log lines were lost", event="log_lines_lost", count=count)

    # The process

    def signal(self, name: str, *, again: bool) -> None:
        """The process received a signal to stop.

        Args:
            again: it is the second one, so the server stops without waiting.
        """
        text = "{signal} again: not waiting any longer" if again else "{signal}: stopping"
        self.log.info(text, event="signal", signal=name)

    def stopping(self, peers: int) -> None:
        """The server closes its peers' connections."""
        self.log.info("stopping: closing {peers} peers", event="stopping", peers=peers)


FIELDS = (
    *("peer", "topic", "subject", "address", "duration", "reason", "status", "code", "type", "to", "size"),
    *("node", "url", "listener", "signal", "peers", "count", "allowed", "missing"),
    *("worker", "pid", "seconds", "line", "option", "old", "new"),
)
"""The fields an event may have besides its time, level and name."""
