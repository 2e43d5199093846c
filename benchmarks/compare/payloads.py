"""What peers say to each other: session descriptions of about 2.5 KB and candidates of about 180 bytes."""

from __future__ import annotations

from functools import cache

import msgspec

CANDIDATES_PER_SDP = 10

# Kinds, and payloads as JSON.
Messages = list[tuple[str, bytes]]

_CODECS = (
    "a=rtpmap:{0} VP8/90000\r\na=rtcp-fb:{0} goog-remb\r\na=rtcp-fb:{0} transport-cc\r\na=rtcp-fb:{0} ccm fir\r\n"
    "a=rtcp-fb:{0} nack\r\na=rtcp-fb:{0} nack pli\r\n"
)
_MEDIA = (
    "a=mid:{mid}\r\nc=IN IP4 0.0.0.0\r\na=rtcp:9 IN IP4 0.0.0.0\r\na=ice-ufrag:u{number:03d}\r\n"
    "a=ice-pwd:by5GZGG1lw+040DWA6hXM5Bz\r\na=ice-options:trickle\r\na=fingerprint:sha-256 {fingerprint}\r\n"
    "a=setup:actpass\r\na=sendrecv\r\na=rtcp-mux\r\na=rtcp-rsize\r\n"
)
_FINGERPRINT = ":".join(f"{byte:02X}" for byte in range(7, 7 + 32 * 7, 7))


@cache
def sdp(kind: str, number: int) -> bytes:
    """Write the payload of an offer or an answer with audio, video and a data channel, as JSON."""
    media = [_MEDIA.format(mid=mid, number=number, fingerprint=_FINGERPRINT) for mid in range(3)]
    codecs = "".join(_CODECS.format(codec) for codec in range(96, 104))
    lines = (
        f"v=0\r\no=- 46117{number:06d} 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0 1 2\r\n"
        f"m=audio 9 UDP/TLS/RTP/SAVPF 111 63 9\r\n{media[0]}a=rtpmap:111 opus/48000/2\r\n"
        "a=fmtp:111 minptime=10;useinbandfec=1\r\n"
        f"m=video 9 UDP/TLS/RTP/SAVPF 96 97 102\r\n{media[1]}{codecs}"
        f"m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n{media[2]}a=sctp-port:5000\r\n"
        "a=max-message-size:262144\r\n"
    )
    return msgspec.json.encode({"type": kind, "sdp": lines})


@cache
def candidate(number: int) -> bytes:
    """Write the payload of a candidate, as JSON."""
    line = (
        f"candidate:{842163049 + number} 1 udp 1677729535 203.0.113.{number % 250} {40000 + number} typ srflx"
        " raddr 10.0.0.7 rport 46154 generation 0"
    )
    return msgspec.json.encode({"candidate": line, "sdpMid": "0", "sdpMLineIndex": 0, "usernameFragment": "u001"})


def mix(number: int) -> Messages:
    """List what one direction of a pair says over and over: one SDP, then its candidates, all of them different."""
    return [*descriptions(number), *candidates(number)]


def descriptions(number: int) -> Messages:
    """The same with the SDP alone."""
    kind = "answer" if number % 2 else "offer"
    return [(kind, sdp(kind, number))]


def candidates(number: int) -> Messages:
    """The same with the candidates alone."""
    first = number * CANDIDATES_PER_SDP
    return [("ice-candidate", candidate(first + index)) for index in range(CANDIDATES_PER_SDP)]
