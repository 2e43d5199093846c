"""The command line: options, the service, and what only twistd does."""
