#!/bin/sh
# Builds the container image with buildah: no daemon, no cgroups, the same bytes for the same inputs.
#
#   image/build.sh [--tag NAME] [--base NAME@sha256:…] [--out FOLDER] [buildah's own options]
#
#   --tag NAME   what to call it (localhost/blindbox:latest)
#   --base NAME  another base than the pinned Debian packages of image/base.lock, best by digest; also BASE=NAME
#   --out FOLDER write image.json and sbom.cdx.json there: what was made, and of what
#   --build-arg DEMO=1 and such: the Dockerfile tells
#
#   TORCH_INDEX=URL      an index of CPU wheels of PyTorch, where pip's default one has none
#   PYTHON=PROGRAM       the interpreter that the build's own steps run on (3.11 or later)
#   BLINDBOX_INSTALL=1   install what is missing (root, Debian); CI=true says the same
set -eu
umask 022

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
python=${PYTHON:-python3}
tag=localhost/blindbox:latest
BASE=${BASE:-}
out=
SOURCE_DATE_EPOCH=1767225600  # 1 January 2026: every file's time in the image
export SOURCE_DATE_EPOCH

while [ $# -gt 0 ]; do
    case $1 in
    --tag | --base | --out)
        [ $# -gt 1 ] || { echo "$1 wants a value" >&2; exit 64; }
        case $1 in
        --tag) tag=$2 ;;
        --base) BASE=$2 ;;
        --out) out=$2 ;;
        esac
        shift 2 ;;
    *) break ;;
    esac
done

missing=
command -v buildah >/dev/null || missing="buildah netavark"  # which it looks for before it builds
[ -n "$BASE" ] || command -v mmdebstrap >/dev/null || missing="$missing mmdebstrap"
missing=${missing# }
if [ -n "$missing" ]; then
    install="apt-get install --no-install-recommends $missing"
    if [ "${CI:-}" != true ] && [ "${BLINDBOX_INSTALL:-}" != 1 ]; then
        echo "not installed: $missing. Type: $install" >&2
        exit 69
    fi
    # apt refuses a second one of its kind: builds and tests side by side take turns at this file.
    (
        flock 9
        apt-get update -qq
        # shellcheck disable=SC2086  # words
        DEBIAN_FRONTEND=noninteractive $install -y -qq -o DPkg::Lock::Timeout=300 >/dev/null
    ) 9>"${TMPDIR:-/tmp}/blindbox-tests-apt.lock" </dev/null || {
        echo "cannot be installed: $missing. Type: $install" >&2
        exit 69
    }
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

# Our own steps, found in this checkout wherever the build is started from.
ours() {
    PYTHONPATH=$root PYTHONDONTWRITEBYTECODE=1 "$python" -P -m "$@"
}

if [ -z "$BASE" ]; then
    BASE=$(ours image.base name)
    set -- --pull-never "$@"
fi

# What pip is told of places of its own on this machine holds in the build too.
"$python" "$root/image/pip_here.py" "$work" >"$work/mounts"
[ -z "${TORCH_INDEX:-}" ] || set -- --build-arg "TORCH_INDEX=$TORCH_INDEX" "$@"
while IFS= read -r mount; do
    set -- "$mount" "$@"
done <"$work/mounts"

# --force-rm: without it a container of the base is left behind (buildah 1.28).
buildah bud --isolation chroot --layers --force-rm --timestamp "$SOURCE_DATE_EPOCH" --build-arg "BASE=$BASE" \
    --tag "$tag" "$@" --file "$root/Dockerfile" "$root"

[ -z "$out" ] || ours image.listing "$tag" --base "$BASE" --out "$out"
