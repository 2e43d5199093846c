"""Reading frames: nearly all of them on a fast path, the rest with Autobahn, and a few at a time.

What nearly every frame is, a whole text message or a control frame, is read here; fragments, binary messages and all
that is not as it should be are left to Autobahn, as is what control frames mean. If ``SIGNALING_FAST_PATH=off`` is set,
or if the installed Autobahn is not as expected, all frames are left to it.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

from signaling.transport.private_api import FITS, AutobahnProtocol
from signaling.websocket.frames import INCOMPLETE, TEXT, masked_frame_at, text_at
from signaling.websocket.read_pause import ReadPause

_FRAMES_PER_TURN = 16
# Autobahn takes two steps for a frame, its head and its payload.
_STEPS_PER_TURN = 2 * _FRAMES_PER_TURN
_PIECE_BYTES = 4_096
# Looking up a member of an enum takes six times as long.
_TURN = ReadPause.TURN


class FrameReader(AutobahnProtocol):
    """Reads frames while there is no reason to pause.

    Attributes:
        fast: whether the fast path is taken.
    """

    fast: ClassVar[bool] = FITS["frames"] and os.environ.get("SIGNALING_FAST_PATH", "on") != "off"
    factory: Any
    transport: Any
    _read_pauses = 0
    # Whether it is open, reads, and has handled all that was read: nearly always.
    _reads_directly = False
    state: int

    def pause_reading(self, reason: ReadPause) -> None:
        """Stop reading until ``resume_reading`` was called for ``reason``, and for every other one.

        No-op once the connection is closing: it would not notice that the other end closes, too.
        """
        if self.state not in (self.STATE_CONNECTING, self.STATE_OPEN):
            return
        if not self._read_pauses:
            self.transport.pauseProducing()
        self._read_pauses |= reason
        self._reads_directly = False

    def resume_reading(self, reason: ReadPause) -> None:
        """Remove a reason not to read; after the last one, handle what was read before, in turn, and read on."""
        if not self._read_pauses or not self._read_pauses & reason:
            return
        self._read_pauses &= ~reason
        if self._read_pauses:
            return
        if self.data and self.state == self.STATE_OPEN:
            self._read_pauses = ReadPause.TURN
            self.factory.scheduler.add(self)
        else:
            # Before it resumes: a transport may have something to deliver at once.
            if self.state == self.STATE_OPEN:
                self.read_directly()
            self.transport.resumeProducing()

    def read_until_closed(self) -> None:
        """Remove every reason not to read, and forget what was read, because the connection is closing."""
        self.data = b""
        if self._read_pauses:
            self._read_pauses = 0
            self.transport.resumeProducing()

    def take_read_turn(self) -> None:
        """Handle the next few frames of those that were read before."""
        if self._read_pauses == ReadPause.TURN:
            self.consumeData()
        else:
            self._read_pauses &= ~ReadPause.TURN

    def read_directly(self) -> None:
        """Handle what is read from now on at once, if it is one whole message: nothing waits, and nothing is begun."""
        self._reads_directly = self.fast and self.current_frame is None and not self.inside_message

    def consumeData(self) -> None:
        """Handle what was read, for one turn, or until there is a reason to pause."""
        more: bool | None = None
        self._reads_directly = False
        if self.fast and self.current_frame is None and not self.inside_message:
            more = self._read_whole_frames()
        if more is None:
            more = self._read_with_autobahn()
        if self.state != self.STATE_OPEN:
            self.data = b""
        elif self._read_pauses > _TURN:
            self._read_pauses &= ~ReadPause.TURN
        elif more:
            self.pause_reading(ReadPause.TURN)
            self.factory.scheduler.add(self)
        else:
            if not self.data:
                self.read_directly()
            if self._read_pauses:
                self._read_pauses = 0
                self.transport.resumeProducing()

    def _read_whole_frames(self) -> bool | None:
        """Handle the whole text messages and control frames at the start of what was read.

        Returns:
            Whether there is more to do in another turn; None if Autobahn has to continue.
        """
        data, end, longest = self.data, 0, self.maxMessagePayloadSize
        self.data = b""
        holds = self.factory.hold_writes()
        try:
            for _ in range(_FRAMES_PER_TURN):
                text = text_at(data, end, longest)
                if text is not None:
                    message, end = text
                    self.onMessage(message, False)
                else:
                    found = masked_frame_at(data, end, longest)
                    if found is None or found is INCOMPLETE:
                        self.data = data[end:]
                        return None if self.data else False
                    opcode, payload, end = found
                    self._handle_frame(opcode, payload)
                if self.state != self.STATE_OPEN:
                    return False
                if self._read_pauses > _TURN:
                    break
            self.data = data[end:]
            return bool(self.data)
        finally:
            if holds:
                self.factory.flush_writes()

    def _handle_frame(self, opcode: int, payload: bytes) -> None:
        if opcode == TEXT:
            self.onMessage(payload, False)
        else:
            self.handle_control_frame(opcode, payload)

    def _read_with_autobahn(self) -> bool:
        """Let Autobahn handle what was read; returns whether there is more to do in another turn."""
        # Autobahn copies all that it has with each step.
        data, at = self.data, _PIECE_BYTES
        self.data = data[:at]
        for _ in range(_STEPS_PER_TURN):
            if self.state != self.STATE_OPEN or self._read_pauses > _TURN:
                break
            if not self.processData():
                if at >= len(data):
                    return False
                self.data += data[at : at + _PIECE_BYTES]
                at += _PIECE_BYTES
        self.data += data[at:]
        return True
