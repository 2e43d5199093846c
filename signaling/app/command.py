"""The command ``signaling``: ``twistd -n --pidfile= signaling``, in the same process and with the same exit status."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from twisted.scripts import twistd

from signaling.standard_output import print_line

_SYNOPSIS = "Usage: signaling [options] [-- options of twistd]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the server, and end the process with it.

    Args:
        arguments: the options of the server; those behind ``--`` are ``twistd``'s own. None means the process's.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index("--") if "--" in given else len(given)
    if "--help" in given[:end]:
        _print_help()
    sys.argv = ["twistd", "-n", "--pidfile=", *given[end + 1 :], "signaling", *given[:end]]
    twistd.run()


def _print_help() -> None:
    # Not before it is needed: importing the server is most of a start.
    from signaling.app.options import Options  # noqa: PLC0415

    options = Options({})
    options.synopsis = _SYNOPSIS
    print_line(options)
    raise SystemExit(0)
