#!/bin/sh
# Make a virtual environment: make_venv.sh PYTHON FOLDER
set -eu
python=$1
folder=$2

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "Python 3.11 or later is needed, and $python is not: name one, for example make PYTHON=python3.12 run" >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    if [ "${INSTALL:-yes}" != no ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing this Debian package as root (INSTALL=no installs none): python3-venv" >&2
        apt-get update -qq
        apt-get install -y -qq python3-venv
    else
        echo "$python has no venv module: install it (on Debian: apt-get install python3-venv)" >&2
        exit 1
    fi
fi
"$python" -m venv "$folder"
# 25.1 is the first that knows dependency groups.
"$folder/bin/pip" install --quiet --upgrade 'pip >= 25.1'
