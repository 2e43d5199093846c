"""What carries bytes: the reactor, and what a WebSocket asks of any transport."""
