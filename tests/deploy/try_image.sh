#!/bin/sh
# try_image.sh IMAGE: the image's daemon, run by buildah, takes a message by HTTP and puts it into its stream, as a user
# without rights. Ports 8080 and 9090 of the current network are used.
set -eu
work=$(mktemp -d)
container=$(buildah from "$1")
running=""

inside() { buildah run --isolation chroot "$container" -- "$@"; }
say() { printf '== %s\n' "$*"; }

# With chroot isolation the daemon's process id is the machine's, and a signal to `buildah run` would not reach it.
stop() {
    kill -TERM "$(inside cat /var/lib/huiru/lock)"
    wait "$running"
    running=""
}

clean_up() {
    status=$?
    [ -z "$running" ] || stop || true
    [ "$status" = 0 ] || [ ! -f "$work/daemon.log" ] || cat "$work/daemon.log" >&2
    buildah rm "$container" >/dev/null
    rm -rf "$work"
}
trap clean_up EXIT

until_true() { # until_true SECONDS COMMAND…
    left=$(($1 * 10)); shift
    until "$@" >/dev/null 2>&1; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || { echo "gave up waiting for: $*" >&2; return 1; }
        sleep 0.1
    done
}

say "content"
[ "$(inside id -u)" = 10001 ] || { echo "it runs as root" >&2; exit 1; }
inside sh -c 'for tool in pip pip3 gcc make; do ! command -v $tool || exit 1; done'
inside python -c 'import importlib.util as i; raise SystemExit(any(map(i.find_spec, ("pip", "setuptools", "hatchling"))))'
inside huiru check

say "daemon"
inside huiru run >"$work/daemon.log" 2>&1 &
running=$!
until_true 60 curl --silent --fail http://127.0.0.1:8080/c/support
buildah inspect --type image "$1" >"$work/image.json"
health=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["Docker"]["config"]["Healthcheck"]["Test"][3])' \
    <"$work/image.json")
inside python -c "$health"
inside huiru status

say "a ticket"
curl --silent --show-error --fail-with-body http://127.0.0.1:8080/c/support \
    --header 'Content-Type: application/json' --header 'Accept: application/json' \
    --data '{"subject": "from the image", "text": "你好"}'
echo
inside huiru tail --from 0 --count 1 --json | grep '"from the image"'

say "stop"
stop
! inside python -c "$health" 2>/dev/null || { echo "the health check does not see that it is gone" >&2; exit 1; }
say "well"
