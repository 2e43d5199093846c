#!/bin/sh
# The image's entry point: options alone are the server's, and anything else is a command of its own.
set -eu
if [ $# = 0 ] || [ "${1#-}" != "$1" ]; then
    set -- signaling "$@"
fi
# The shell is replaced, so that the command receives the signals.
exec "$@"
