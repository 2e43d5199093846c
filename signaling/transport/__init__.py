"""Transports of bytes: plain TCP without the reactor's cost for each event, and any other through an adapter."""
