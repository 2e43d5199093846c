"""Admission of connections: limits for the server and for each address, rates, origins, trusted proxies."""
