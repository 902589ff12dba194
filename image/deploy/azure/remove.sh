#!/usr/bin/env bash
# Removes what was made: docs/deploy/azure.md. Printed by
#     blindbox deploy --target azure --remove --script
set -uo pipefail

fits() {
    local LC_ALL=C
    [[ "$2" =~ ^($3)$ ]] || {
        printf '%s is %q, which it cannot be\n' "$1" "$2" >&2
        exit 2
    }
}

RESOURCE_GROUP=${RESOURCE_GROUP:-blindbox}  # a resource group of its own, which is made
fits RESOURCE_GROUP "$RESOURCE_GROUP" '[A-Za-z0-9_][A-Za-z0-9_-]{0,63}'
failed=0

# see that the resource group was made here
printed=$(az group show --name "$RESOURCE_GROUP" --query tags.blindbox --output tsv)
[ "$printed" = deployed ] || { echo "the resource group $RESOURCE_GROUP was not made here: see yourself what is in it" >&2; exit 1; }

# remove the resource group, and with it all that was made
az group delete --name "$RESOURCE_GROUP" --yes || failed=1

exit "$failed"
