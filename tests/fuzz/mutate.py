"""A mutator that keeps frames whole: a byte more in a payload is a byte more in its length.

Without it nearly every mutation of a conversation is a framing error, and what stands behind it is never read.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.harness.frames import masked

Mutate = Callable[[bytes, int], bytes]
_Frame = tuple[int, bytes]

_FIRST_BYTES = (0x81, 0x82, 0x01, 0x00, 0x80, 0x88, 0x89, 0x8A)


def mutate_frames(data: bytes, max_size: int, seed: int, mutate: Mutate) -> bytes:
    """Mutate a conversation: every other time as bytes, else one of its frames.

    Args:
        max_size: of the result, in bytes.
        mutate: libFuzzer's own mutation of bytes.
    """
    chance = random.Random(seed)
    frames, rest = split_frames(data)
    if not frames or chance.random() < 0.5:
        return mutate(data, max_size)
    at = chance.randrange(len(frames))
    first, payload = frames[at]
    change = chance.randrange(5)
    if change == 0:
        frames[at] = (chance.choice(_FIRST_BYTES), payload)
    elif change == 1:
        frames.insert(chance.randrange(len(frames) + 1), frames[at])
    elif change == 2:
        cut = chance.randrange(len(payload) + 1)
        frames[at : at + 1] = [(first & 0x7F, payload[:cut]), (0x80, payload[cut:])]
    else:
        frames[at] = (first, mutate(payload, max(1, len(payload) + 16)))
    return (b"".join(masked(*frame) for frame in frames) + rest)[:max_size]


def split_frames(data: bytes) -> tuple[list[_Frame], bytes]:
    """Split what a client said into frames, unmasked, and what is none."""
    frames: list[_Frame] = []
    while len(data) >= 6 and data[1] & 0x80:
        size, head = data[1] & 0x7F, 6
        if size == 126:
            size, head = int.from_bytes(data[2:4], "big"), 8
        elif size == 127:
            size, head = int.from_bytes(data[2:10], "big"), 14
        if len(data) < head + size:
            break
        mask = data[head - 4 : head]
        payload = data[head : head + size]
        if any(mask):
            payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        frames.append((data[0], payload))
        data = data[head + size :]
    return frames, data
