"""What the server logs, as events with fields, and how they are written and forwarded."""
