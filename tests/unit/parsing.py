"""Options of ``twistd signaling``, as the tests of options parse them."""

from __future__ import annotations

import pytest
from twisted.python.usage import UsageError

from signaling.app.options import Options


def parse(*arguments: str, **environ: str) -> Options:
    options = Options(environ)
    options.parseOptions(list(arguments))
    return options


def refusal(*arguments: str, **environ: str) -> str:
    """Return what the command line says is wrong."""
    with pytest.raises(UsageError) as caught:
        parse(*arguments, **environ)
    return str(caught.value)
