#!/bin/sh
# Takes tickets from the gateway's stream by hand:    CONSUMER=desk-1 sh consumer.sh COMMAND…
# COMMAND gets a ticket's JSON on its standard input. The ticket is acknowledged when it exits with 0; else it comes again.
set -eu
name=${CONSUMER:-desk-1}

redis() { redis-cli -u "${REDIS_URL:-redis://127.0.0.1:6390}" "$@"; }

handle() { # handle REPLY COMMAND…    (the entry's id is the reply's second line)
    entry=$(printf '%s\n' "$1" | sed -n 2p)
    event=$(printf '%s\n' "$1" | grep '^{"specversion"' || true)
    shift
    if [ -n "$event" ] && printf '%s\n' "$event" | "$@"; then
        redis XACK tickets helpdesk "$entry" >/dev/null
    fi
}

while :; do
    redis XGROUP CREATE tickets helpdesk 0 MKSTREAM >/dev/null 2>&1 || true # there may be one
    new=$(redis XREADGROUP GROUP helpdesk "$name" COUNT 1 BLOCK 2000 STREAMS tickets '>')
    handle "$new" "$@"
    left=$(redis XAUTOCLAIM tickets helpdesk "$name" "${STALE_MS:-60000}" 0 COUNT 1) # what others did not finish
    handle "$left" "$@"
done
