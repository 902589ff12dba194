#!/usr/bin/env bash
# Removes what was made: docs/deploy/qemu-tdx.md. Printed by
#     blindbox deploy --target qemu-tdx --remove --script
set -uo pipefail

fits() {
    local LC_ALL=C
    [[ "$2" =~ ^($3)$ ]] || {
        printf '%s is %q, which it cannot be\n' "$1" "$2" >&2
        exit 2
    }
}

NAME=${NAME:-blindbox}  # what everything is called that is made
fits NAME "$NAME" '[a-z][a-z0-9-]{1,38}[a-z0-9]'
failed=0

# switch the machine off; nothing of it stays but the log of its console
pkill --exact --pidfile "$NAME.pid" qemu-system-x86 || failed=1

# remove that log
rm -f "$NAME.console.log" || failed=1

exit "$failed"
