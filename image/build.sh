#!/bin/sh
# Builds the image with buildah: no daemon, no cgroups, the same bytes for the same inputs.
#
#   image/build.sh [--install] [--stand-in] [--tag NAME] [buildah's own options, e.g. --build-arg DEMO=1]
#
#   --install    apt-get installs buildah and podman first (root, Debian)
#   --stand-in   a base made of Debian packages (image/base.sh) instead of the Dockerfile's, which a
#                registry has to serve.  Kept in ${XDG_CACHE_HOME:-~/.cache}/blindbox.
#   BASE=NAME    another base, best by digest
#   TORCH_INDEX=URL  an index of CPU wheels of PyTorch, where pip's default one has none
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
tag=localhost/blindbox:latest
stand_in=
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1767225600}  # 1 January 2026: every file's time in the image
export SOURCE_DATE_EPOCH

while [ $# -gt 0 ]; do
    case $1 in
    --install)
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends \
            buildah podman runc netavark aardvark-dns iptables mmdebstrap >/dev/null
        shift ;;
    --stand-in) stand_in=1; shift ;;
    --tag) tag=$2; shift 2 ;;
    *) break ;;
    esac
done

command -v buildah >/dev/null || {
    echo "buildah is not installed (image/build.sh --install installs it on Debian)" >&2
    exit 69
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ -n "$stand_in" ]; then
    recipe=$(cksum <"$root/image/base.sh" | cut -d' ' -f1)
    BASE=localhost/blindbox-base:$recipe
    if ! buildah inspect --type image "$BASE" >/dev/null 2>&1; then
        cache=${XDG_CACHE_HOME:-$HOME/.cache}/blindbox
        tar=$cache/base-$recipe.tar
        mkdir -p "$cache"
        [ -f "$tar" ] || { sh "$root/image/base.sh" "$tar.part" && mv "$tar.part" "$tar"; }
        # Added and committed, not imported: an import writes the present time into the image's history.
        container=$(buildah from scratch)
        buildah add -q "$container" "$tar" / >/dev/null
        buildah commit -q --rm --timestamp "$SOURCE_DATE_EPOCH" "$container" "$BASE" >/dev/null
    fi
    set -- --pull-never "$@"
fi

# What pip is told of places of its own on this machine holds in the build too.
python3 "$root/image/pip_here.py" "$work" >"$work/mounts"
[ -z "${TORCH_INDEX:-}" ] || set -- --build-arg "TORCH_INDEX=$TORCH_INDEX" "$@"
while IFS= read -r mount; do
    set -- "$mount" "$@"
done <"$work/mounts"

buildah bud --isolation chroot --layers --timestamp "$SOURCE_DATE_EPOCH" \
    ${BASE:+--build-arg "BASE=$BASE"} --tag "$tag" "$@" --file "$root/Dockerfile" "$root"
