"""Runs one target under libFuzzer: ``python -m tests.fuzz.libfuzzer TARGET [libFuzzer's options]``.

libFuzzer ends the process that it runs in; ``tests.fuzz`` starts one for each target.
"""

from __future__ import annotations

import sys
import zlib
from inspect import isclass, isfunction
from typing import Any

import atheris
from autobahn.websocket.protocol import WebSocketProtocol
from twisted.logger import globalLogBeginner
from twisted.web import http

from signaling.admission import client_address, origins
from signaling.core import messages
from signaling.server import protocol
from signaling.web import join_parsing, resources, site
from signaling.websocket import frames, handshake
from signaling.websocket import protocol as websocket_protocol
from tests.fuzz import model
from tests.fuzz.mutate import mutate_frames
from tests.fuzz.targets import TARGETS

# Coverage costs time at each branch: only that of the code which looks at the input guides. msgspec is compiled and
# shows none; the model beside it walks the same grammar.
_GUIDES = (
    *(messages, model, join_parsing, handshake, frames, protocol.SignalingProtocol, resources, site, http.HTTPChannel),
    *(
        http._ChunkedTransferDecoder,
        websocket_protocol.WebSocketConnection,
        WebSocketProtocol,
        client_address,
        origins,
    ),
)
_NO_GUIDES = {"connectionMade", "_connectionMade", "connectionLost", "_connectionLost"}

# A careful look costs ten times a quick one. What is careful follows from the input, so that a find is found again.
_CAREFUL_EVERY = 64


def main() -> None:
    """Fuzz one target until libFuzzer ends the process."""
    name = sys.argv[1]
    target = TARGETS[name]

    def run(data: bytes) -> None:
        target(data, zlib.crc32(data) % _CAREFUL_EVERY == 0)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        return mutate_frames(data, max_size, seed, atheris.Mutate)

    # Until someone says where to log, Twisted keeps what is logged.
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False)
    for guide in _GUIDES:
        _instrument(guide)
    atheris.Setup([sys.argv[0], *sys.argv[2:]], run, custom_mutator=mutate if name == "frames" else None)
    atheris.Fuzz()


def _instrument(owner: Any) -> None:
    """Count the branches of every function of a class, or of a module and its classes."""
    for name, value in list(vars(owner).items()):
        if isclass(value) and value.__module__ == getattr(owner, "__name__", None):
            _instrument(value)
        elif isfunction(value) and name not in _NO_GUIDES:
            atheris.instrument_func(value)


if __name__ == "__main__":
    main()
