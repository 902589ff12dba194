#!/bin/bash
# The build, step by step; runs in the folder of the pinned tools, as its root (build.py).
#
#   inside.sh source         the tarballs → /build/edk2, with Debian's patches and then ours
#   inside.sh tools          the build's own tools
#   inside.sh snp | tdx      one firmware, to /build/snp.fd or /build/tdx.fd
#
# One place, one environment, one set of tools: nothing else can get into the bytes.
set -euo pipefail

SOURCE=/build/edk2

apply() {
    # As dpkg-source does it: what does not fit exactly is an error.
    patch --batch --fuzz=0 --forward --strip=1 --unified --version-control=never --remove-empty-files \
        --silent --directory="$SOURCE" --input="$1" || { echo "the patch $1 does not apply" >&2; exit 1; }
}

# edksetup.sh and what it calls look at names that are not there, and at no errors.
enter() {
    cd "$SOURCE"
    set +eu
    . ./edksetup.sh >/dev/null
    set -eu
}

# firmware PLATFORM FOLDER NAME [WORD…]
firmware() {
    enter
    build -q -n "$(nproc)" -a X64 -t GCC5 -b RELEASE -p "$1" "${@:4}"
    mv "Build/$2/RELEASE_GCC5/FV/OVMF.fd" "/build/$3"
}

case "$1" in
source)
    mkdir "$SOURCE"
    tar --extract --file /build/orig.tar --strip-components=1 --no-same-owner --directory "$SOURCE"
    tar --extract --file /build/debian.tar --no-same-owner --directory /build
    while read -r name; do
        case "$name" in '' | '#'*) ;; *) apply "/build/debian/patches/$name" ;; esac
    done </build/debian/patches/series
    for name in /build/patches/*.patch; do
        apply "$name"
    done
    ;;
tools)
    enter
    make --silent -C BaseTools -j "$(nproc)"
    ;;
snp)
    firmware OvmfPkg/AmdSev/AmdSevX64.dsc AmdSev snp.fd
    ;;
tdx)
    # Without the shell: it can be started without leaving a trace in RTMR1 and RTMR2, and changes memory.
    firmware OvmfPkg/IntelTdx/IntelTdxX64.dsc IntelTdx tdx.fd -D BUILD_SHELL=FALSE
    ;;
esac
