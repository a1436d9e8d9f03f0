#!/bin/sh
# What the project needs of the operating system: installed by apt where that is possible, else named.
#   system-packages.sh venv FOLDER    a virtual environment made with $PYTHON (3.11 to 3.13)
#   system-packages.sh run PYTHON     a Redis server, unless the environment carries one
#   system-packages.sh test | bench   the servers and clients the tests and the benchmarks use
set -eu

install() { # install PACKAGE…
    if ! command -v apt-get >/dev/null; then
        echo "missing: $* (Debian's names). Install them and try again." >&2
        exit 1
    fi
    if [ "$(id -u)" = 0 ]; then as_root=""
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then as_root="sudo"
    else
        echo "missing: $*. As root: apt-get install $*" >&2
        exit 1
    fi
    echo "installing $*"
    $as_root apt-get -qq update
    # RUNLEVEL=1: the packages' own services stay off; the gateway and the tests start what they need themselves.
    $as_root env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" >/dev/null
}

need() { # need COMMAND:PACKAGE…
    missing=""
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair#*:}"
    done
    # shellcheck disable=SC2086 # a list of names
    [ -z "$missing" ] || install $missing
}

case "$1" in
venv)
    "$PYTHON" - <<'END' || exit 1
import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit(f"huiru runs on Python 3.11 to 3.13, this is {sys.version.split()[0]}; name another one: make PYTHON=…")
END
    if ! "$PYTHON" -m venv "$2" 2>/dev/null; then
        rm -rf "$2"
        install "$("$PYTHON" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
        "$PYTHON" -m venv "$2"
    fi
    ;;
run)
    "$2" -c 'import sys; from gateway.redis_server import find_server; sys.exit(find_server() is None)' \
        || need redis-server:redis-server
    ;;
test)
    PATH="$PATH:/usr/sbin" # where servers are
    need redis-server:redis-server openssl:openssl chromium:chromium node:nodejs npm:npm systemd-analyze:systemd \
        dovecot:dovecot-imapd
    ;;
bench) need redis-server:redis-server wrk:wrk ;;
*)
    echo "usage: $0 venv FOLDER | run PYTHON | test | bench" >&2
    exit 2
    ;;
esac
