"""Servers in this process that cannot start."""

from __future__ import annotations

from twisted.python.usage import UsageError

from signaling import Options, StartError, makeService


def problem_of(*options: str) -> str:
    """Return what a server says that cannot start with these options."""
    parsed = Options({})
    try:
        parsed.parseOptions(["--port", "0", *options] if "--listen" not in options else list(options))
        makeService(parsed).privilegedStartService()
    except (UsageError, StartError) as problem:
        return str(problem)
    finally:
        close_ports()
    raise AssertionError(f"it starts with {options}")


def close_ports() -> None:
    """Let the reactor close the ports that were stopped, so that no test after this one finds them open."""
    from twisted.internet import reactor

    reactor.iterate()  # type: ignore[attr-defined]
