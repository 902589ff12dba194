#!/bin/sh
# Makes enclave.txt and dev.txt out of the *.in files: every package pinned and hashed.
#
#   sh requirements/lock.sh            # keeps the versions that are locked, unless a *.in file asks otherwise
#   sh requirements/lock.sh --upgrade  # the newest that the *.in files allow
#
# What is locked is installed without dependencies (pip install --no-deps): the lists are complete, but for
# - torchvision and what it alone brings: optimum-intel names and never imports it, and its build on the public
#   index is CUDA's and breaks the CPU build of torch;
# - openvino-telemetry: openvino names it and does without; in an enclave nothing reports to anybody.
#
# Run it with the Python of the image (3.11).  Where packages come from is pip's own configuration;
# nothing of it is written down.  torch is the one exception to "all files of the version": only the
# wheels named in torch.sha256 are allowed (CPU builds), so that no index can hand out the CUDA build.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/tools"
"$work/tools/bin/python" -m pip install --quiet 'pip-tools==7.6.2'

cp "$here"/*.in "$work"
for name in enclave dev; do
    [ ! -f "$here/$name.txt" ] || cp "$here/$name.txt" "$work"
done

compile() {  # NAME UNWANTED [OPTION…] → NAME.txt
    name=$1
    unwanted=$2
    shift 2
    (cd "$work" && tools/bin/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras \
        --no-emit-options --no-header --no-annotate "$@" --output-file "$name.txt" "$name.in")
    {
        printf '# Made by requirements/lock.sh from %s.in; change that file, not this one.\n' "$name"
        awk -v allowed="$here/torch.sha256" -v unwanted="^($unwanted)==" '
            $0 ~ unwanted { inside = 1; next }
            /^torch==/ {
                sub(/\+cpu/, "", $1)
                printf "%s", $1
                version = substr($1, 8)
                while ((getline line < allowed) > 0) {
                    split(line, part, " ")
                    if (index(part[2], "torch-" version "-") == 1 || index(part[2], "torch-" version "+cpu-") == 1)
                        printf " \\\n    --hash=sha256:%s", part[1]
                }
                printf "\n"
                inside = 1
                next
            }
            inside && /^ / { next }
            { inside = 0; print }
        ' "$work/$name.txt"
    } >"$here/$name.txt"
    cp "$here/$name.txt" "$work/$name.txt"
}

compile enclave 'torchvision|pillow|triton|nvidia-.*|openvino-telemetry' "$@"
compile dev 'torchvision|triton|nvidia-.*|openvino-telemetry' "$@"
