"""Time as the server sees it: a clock, timeouts that share a timer, wall-clock timers, and a fair scheduler."""
