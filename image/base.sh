#!/bin/sh
# Makes a stand-in for the Dockerfile's base (python:3.11-slim-bookworm) out of Debian packages alone, for
# machines that reach a Debian mirror and no container registry.  Same packages in, same bytes out.
#
#   image/base.sh OUT.tar
#
# Packages come from where this machine's apt takes them: its sources and keyrings are read, not written down.
set -eu

out=$1
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1767225600}  # 1 January 2026
export SOURCE_DATE_EPOCH

# The upstream image has `python` and `pip` on the PATH and lets pip install beside the system: so has this one.
mmdebstrap --quiet --variant=minbase --mode=root --format=tar \
    --include=python3,python3-pip,python3-venv,ca-certificates \
    --customize-hook='ln -s python3 "$1/usr/bin/python"' \
    --customize-hook='rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED' \
    --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/var/log/* "$1"/usr/share/doc/* "$1"/usr/share/man/*' \
    --customize-hook='rm -f "$1/etc/resolv.conf" "$1/etc/hostname" "$1/var/cache/ldconfig/aux-cache"' \
    --customize-hook='find "$1/usr" -name __pycache__ -prune -exec rm -rf {} +' \
    bookworm "$out"
