"""Lets ``twistd`` find the lean reactor."""

from twisted.application.reactors import Reactor

lean_epoll = Reactor(
    "lean-epoll", "signaling.transport.lean_reactor", "epoll(4) based reactor without a log context for each event."
)
