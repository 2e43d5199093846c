"""Which connections are let in: limits for the server and for each address, rates, origins, trusted proxies."""
