"""The log: its events, their format as JSON, and how workers forward them."""
