"""Webhooks: presence events, delivered to a URL as signed requests (docs/webhooks.md)."""
