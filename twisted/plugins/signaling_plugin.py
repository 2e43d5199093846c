"""Lets ``twistd`` find the server."""

from twisted.application.service import ServiceMaker

signaling = ServiceMaker(
    "WebRTC signaling server",
    "signaling",
    "A WebRTC signaling server: peers meet in topics and exchange offers, answers and ICE candidates.",
    "signaling",
)
