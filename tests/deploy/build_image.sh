#!/bin/sh
# Builds deploy/Dockerfile without a container engine, and tries the image (try_image.sh): the base is made by
# debootstrap from the mirror that apt uses here, and buildah builds with chroot isolation.
#
#   apt-get install buildah debootstrap curl iproute2
#   tests/deploy/build_image.sh [FOLDER]      FOLDER keeps the base for the next time; default: a temporary one
#
# Needs root, Debian, its mirror and a package index. pip's configuration on this machine goes in as a secret, and the
# certificates it names as a volume; $BUILD_OPTIONS are further options for `buildah build`.
set -eu
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
base_folder=${1:-$work}

say() { printf '== %s\n' "$*"; }

make_base() { # the smallest Debian of this machine's release, without Python
    # shellcheck source=/dev/null
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' \
        "Codename: $codename" 'Component: main' 'Origin: Debian' | head -n 1)
    debootstrap --variant=minbase "$codename" "$base_folder/root" "$mirror" >"$work/debootstrap.log" 2>&1 \
        || { tail -n 20 "$work/debootstrap.log" >&2; return 1; }
    tar -C "$base_folder/root" -cf "$base_folder/base.tar" .
    rm -rf "$base_folder/root"
}

import_base() {
    made=$(buildah from scratch)
    buildah add --quiet "$made" "$base_folder/base.tar" / >/dev/null
    buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$made"
    buildah commit --quiet --rm "$made" localhost/huiru-test-base >/dev/null
}

pip_of_this_machine() { # its configuration files as one, with the certificates where the build finds them
    python3 - "$work" <<'END'
import configparser, pathlib, re, shutil, subprocess, sys

work = pathlib.Path(sys.argv[1])
shown = subprocess.run([sys.executable, "-m", "pip", "config", "debug"], capture_output=True, text=True, check=True)
settings = configparser.RawConfigParser()
settings.read(re.findall(r"^ *(\S.*), exists: True$", shown.stdout, re.MULTILINE))
if settings.has_option("global", "cert"):
    shutil.copy(settings.get("global", "cert"), work / "ca.crt")
    settings.set("global", "cert", "/etc/pip-ca.crt")
with (work / "pip.conf").open("w") as file:
    settings.write(file)
END
    [ ! -f "$work/ca.crt" ] || BUILD_OPTIONS="${BUILD_OPTIONS:-} --volume $work/ca.crt:/etc/pip-ca.crt:ro"
}

build() {
    # shellcheck disable=SC2086 # options are words
    buildah build --isolation chroot --format docker --build-arg BASE=localhost/huiru-test-base \
        --secret "id=pip,src=$work/pip.conf" ${BUILD_OPTIONS:-} \
        --file deploy/Dockerfile --tag localhost/huiru-test .
}

say "base"
[ -f "$base_folder/base.tar" ] || make_base
import_base
say "image"
pip_of_this_machine
build
buildah images --format '{{.Name}} {{.Size}}' | grep huiru-test
# A network of its own: nothing but loopback, and no port is taken.
unshare --net sh -c 'ip link set lo up && exec sh tests/deploy/try_image.sh localhost/huiru-test'
