#!/bin/sh
# Install the programs that the tests run beside Python, or name those that are missing: test_programs.sh [PACKAGE ...]
# installs those packages only. INSTALL=no installs nothing.
set -eu

# Where Debian keeps servers, which an ordinary user's PATH leaves out.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
packages=""
wanted=" $* "
need() { # need PACKAGE PROGRAM: the package is missing if the program is
    case "$wanted" in "  " | *" $1 "*) command -v "$2" >/dev/null || packages="$packages $1" ;; esac
}
need chromium chromium
need chromium-driver chromedriver
need firefox-esr firefox-esr
need webkit2gtk-driver WebKitWebDriver
need xvfb Xvfb
need nodejs node
need npm npx
need coturn turnserver
need caddy caddy
need haproxy haproxy
need nginx-light nginx
need systemd systemd-socket-activate
need util-linux setpriv
need prometheus promtool
need redis-server redis-server

[ -z "$packages" ] && exit 0
if [ "${INSTALL:-yes}" != no ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing these Debian packages as root (INSTALL=no installs none):$packages" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # shellcheck disable=SC2086 # one word for each package
    apt-get install -y -qq --no-install-recommends $packages >/dev/null
else
    echo "these Debian packages are missing, and what needs them is skipped or fails:$packages" >&2
fi
