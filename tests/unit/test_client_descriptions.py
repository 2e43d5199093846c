"""What Python clients hand to aiortc of the descriptions and candidates that other peers write."""

from __future__ import annotations

import gc
import time
from typing import Any

import pytest
from aiortc import RTCIceCandidate, RTCSessionDescription

from signaling.client.aiortc import (
    MAX_CANDIDATES,
    MAX_SDP_LINES,
    MAX_SDP_SECTIONS,
    MAX_SECTION_LINES,
    from_payload,
)
from signaling.client.messages import Answer, IceCandidate, Offer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SECTION = "m=audio 9 UDP/TLS/RTP/SAVPF 96\r\n"
CANDIDATE = "a=candidate:1 1 udp 1 192.0.2.1 9 typ host\r\n"


@pytest.mark.parametrize(
    ("sdp", "is_taken"),
    [
        ("v=0\r\n" * MAX_SECTION_LINES, True),
        ("v=0\r\n" * (MAX_SECTION_LINES + 1), False),
        (SECTION * (MAX_SDP_SECTIONS - 1), True),
        (SECTION * MAX_SDP_SECTIONS, False),
        ((SECTION + "a=x\r\n" * 250) * (MAX_SDP_LINES // 251), True),
        ((SECTION + "a=x\r\n" * 250) * (MAX_SDP_LINES // 251 + 1), False),
        (SECTION + CANDIDATE * MAX_CANDIDATES, True),
        (SECTION + CANDIDATE * MAX_CANDIDATES + SECTION + CANDIDATE, False),
        (SECTION + "a=rtpmap:96 x/1\r\n" + "a=rtcp-fb:* x\r\n" * 20, True),
        (SECTION + "a=rtpmap:96 x/1\r\n" + "a=rtcp-fb:* x\r\n" * 30, False),
    ],
)
def test_a_description_has_bounds(sdp: str, is_taken: bool) -> None:
    expected = RTCSessionDescription(sdp=sdp, type="offer") if is_taken else None
    assert from_payload(Offer("a", {"type": "offer", "sdp": sdp})) == expected


REPEATED = [
    "a=fingerprint: ",
    "a=fingerprint:a b\r\n",
    "a=ssrc:1 a:\r\n",
    "a=ssrc-group:FID 1 2\r\n",
    "a=rtpmap:96 x/1\r\n",
    "a=rtpmap:96 x/1\r\na=fmtp:96 a\r\n",
    "a=rtpmap:96 x/1\r\na=rtcp-fb:* x\r\n",
    "a=rtpmap:96 x/1\r\na=rtcp-fb:97 x\r\n",
    "a=group:BUNDLE 0\r\n",
    CANDIDATE,
    SECTION,
    "m=",
    "a=",
    "\r\n",
    "\u2028",
    " ",
    ";",
    "9",
]


@pytest.mark.unmeasured
@pytest.mark.parametrize("pattern", REPEATED)
def test_reading_a_description_takes_time_that_is_linear_in_it(pattern: str) -> None:
    short, long = ((SECTION + pattern * (size // len(pattern))) for size in (64_000, 256_000))
    # Four times the text: quadratic would be sixteen times the time.
    assert min(cpu(long) for _ in range(3)) < 10 * min(cpu(short) for _ in range(3)) + 0.005


def cpu(sdp: str) -> float:
    # A collection looks at all objects of the test run.
    gc.disable()
    started = time.process_time()
    from_payload(Offer("a", {"type": "offer", "sdp": sdp}))
    spent = time.process_time() - started
    gc.enable()
    return spent


@pytest.mark.parametrize(
    "message",
    [
        Offer("a"),
        Offer("a", {"type": "answer", "sdp": "v=0\r\n"}),
        Answer("a", {"type": "offer", "sdp": "v=0\r\n"}),
        Answer("a", {"type": "pranswer", "sdp": "v=0\r\n"}),
        Offer("a", {"type": "offer", "sdp": ["v=0"]}),
        Offer("a", {"type": "offer", "sdp": "a=fingerprint\r\n"}),
        IceCandidate("a", {"candidate": "", "sdpMid": "0"}),
        IceCandidate("a", {"candidate": "candidate:1 1 udp 1 192.0.2.1 9 typ host"}),
        IceCandidate("a", {"candidate": "candidate:1 1 udp 1 192.0.2.1 -1 typ host", "sdpMid": "0"}),
        IceCandidate("a", {"candidate": "candidate:" + "1 " * 10_000, "sdpMid": "0"}),
        IceCandidate("a", {"candidate": "candidate:1 1 udp 1 192.0.2.1 9 typ host", "sdpMid": [0]}),
    ],
    ids=lambda message: str(message)[:60],
)
def test_what_aiortc_cannot_take_is_none(message: Any) -> None:
    assert from_payload(message) is None


def test_a_browsers_candidate_is_read() -> None:
    payload = {"candidate": CANDIDATE[2:].strip(), "sdpMid": None, "sdpMLineIndex": 0, "usernameFragment": "x"}
    candidate = from_payload(IceCandidate("a", payload))
    assert isinstance(candidate, RTCIceCandidate)
    assert (candidate.ip, candidate.port, candidate.sdpMLineIndex) == ("192.0.2.1", 9, 0)
