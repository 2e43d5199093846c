"""The signaling logic, without I/O: topics, peers, relays, joins and sessions."""
