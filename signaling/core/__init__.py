"""What the server is about, without I/O: topics, peers, relays, joins and sessions."""
