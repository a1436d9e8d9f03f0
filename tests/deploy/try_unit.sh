#!/bin/sh
# try_unit.sh [IMAGE]: runs deploy/huiru.service under a real systemd, as the first process of namespaces of its own
# (mounts, processes, network, cgroups), in the file system of the image that build_image.sh made.
#
#   apt-get install buildah curl iproute2
#
# Needs root, a kernel with cgroup v2, and Debian's mirror for systemd. Half a minute.
set -eu
cd "$(dirname "$0")/../.."
image=${1:-localhost/huiru-test}
cgroup=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)/huiru-test
container=$(buildah from "$image")
systemd=""

say() { printf '== %s\n' "$*"; }
fail() { echo "$*" >&2; exit 1; }
inside() { nsenter --target "$systemd" --mount --pid --net --uts --ipc --cgroup "$@"; }
state() { inside systemctl show huiru --property "$1" --value; }
was_restarted() { [ "$(state NRestarts)" = 1 ]; }

clean_up() {
    status=$?
    if [ -n "$systemd" ]; then
        [ "$status" = 0 ] || inside journalctl --unit huiru --no-pager --output cat >&2 || true
        kill -KILL "$systemd"
        wait 2>/dev/null || true
    fi
    buildah rm "$container" >/dev/null
    [ ! -d "$cgroup" ] || find "$cgroup" -depth -type d -exec rmdir {} +
}
trap clean_up EXIT

until_true() { # until_true SECONDS COMMAND…
    left=$(($1 * 10)); shift
    until "$@" >/dev/null 2>&1; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || fail "gave up waiting for: $*"
        sleep 0.1
    done
}

install_unit() { # as deploy/README.md says, with a secret by LoadCredential
    buildah run --isolation chroot --user 0 "$container" -- sh -c '
        apt-get -qq update
        DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends systemd procps >/dev/null
        userdel huiru'
    root=$(buildah mount "$container")
    rm -r "$root/var/lib/huiru"
    cp deploy/huiru.service "$root/etc/systemd/system/"
    mkdir -p "$root/etc/huiru/credentials" "$root/etc/systemd/system/huiru.service.d"
    head -c 32 /dev/urandom | sha256sum | cut -d ' ' -f 1 >"$root/etc/huiru/credentials/secret"
    chmod -R go= "$root/etc/huiru/credentials"
    printf '[Service]\nLoadCredential=secret:/etc/huiru/credentials/secret\n' \
        >"$root/etc/systemd/system/huiru.service.d/credentials.conf"
    # shellcheck disable=SC2016 # the gateway fills it in
    echo 'secret: ${file:/run/credentials/huiru.service/secret}' >>"$root/etc/huiru/gateway.yaml"
}

boot() { # the file system's systemd, with what it expects of a machine
    mkdir "$cgroup"
    # shellcheck disable=SC2016
    CGROUP=$cgroup ROOT=$root setsid sh -c '
        echo $$ >"$CGROUP/cgroup.procs"
        exec unshare --mount --pid --fork --net --uts --ipc --cgroup sh -eu -c "
            mount --make-rprivate /
            mount --bind \$ROOT \$ROOT
            cd \$ROOT
            mount -t proc proc proc
            mount -t sysfs sysfs sys
            mount -t cgroup2 cgroup2 sys/fs/cgroup
            mount -t tmpfs -o mode=755 tmpfs run
            mount -t tmpfs -o mode=755 tmpfs dev
            mkdir dev/pts dev/shm
            for node in null zero full random urandom tty; do touch dev/\$node; mount --bind /dev/\$node dev/\$node; done
            mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
            ln -s pts/ptmx dev/ptmx
            ln -s /proc/self/fd dev/fd
            ip link set lo up
            pivot_root . mnt
            umount -l mnt
            mount --make-rshared /
            exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
                /lib/systemd/systemd --system --unit=huiru.service --log-target=journal"' &
    until_true 10 find_systemd
    systemd=$(find_systemd)
    until_true 30 inside systemctl is-system-running
}

find_systemd() { # the process that is number one in there
    for pid in $(cat "$cgroup/cgroup.procs" "$cgroup/init.scope/cgroup.procs" 2>/dev/null); do
        grep -q "^NSpid:.*[[:space:]]1\$" "/proc/$pid/status" && grep -qx systemd "/proc/$pid/comm" && echo "$pid" && return
    done
    return 1
}

say "start"
install_unit
boot
until_true 30 inside systemctl is-active huiru
inside ps -o user= -p "$(state MainPID)" | grep -qv root || fail "it runs as root"
inside systemctl status huiru --no-pager --lines 0

say "a ticket"
nsenter --target "$systemd" --net curl --silent --show-error --fail-with-body http://127.0.0.1:8080/c/support \
    --header 'Content-Type: application/json' --header 'Accept: application/json' \
    --data '{"subject": "from the unit", "text": "你好"}'
echo
inside /opt/huiru/bin/huiru tail --from 0 --count 1 | grep 'from the unit'

say "reload"
inside systemctl reload huiru
cp "$root/etc/huiru/gateway.yaml" "$root/etc/huiru/right.yaml"
echo 'nonsense: 1' >>"$root/etc/huiru/gateway.yaml"
inside systemctl reload huiru
inside journalctl --unit huiru --no-pager --output cat --grep reload_refused
cp "$root/etc/huiru/right.yaml" "$root/etc/huiru/gateway.yaml"
inside systemctl is-active huiru

say "a crash"
inside systemctl kill --signal KILL --kill-whom main huiru
until_true 30 was_restarted
until_true 30 inside systemctl is-active huiru
inside /opt/huiru/bin/huiru tail --from 0 --count 1 | grep 'from the unit'

say "stop"
inside systemctl stop huiru
[ "$(state Result)" = success ] || fail "the result is $(state Result)"
say "well"
