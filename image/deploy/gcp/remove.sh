#!/usr/bin/env bash
# Removes what was made: docs/deploy/gcp.md. Printed by
#     blindbox deploy --target gcp --remove --script
set -uo pipefail

fits() {
    local LC_ALL=C
    [[ "$2" =~ ^($3)$ ]] || {
        printf '%s is %q, which it cannot be\n' "$1" "$2" >&2
        exit 2
    }
}

NAME=${NAME:-blindbox}  # what everything is called that is made
PROJECT=${PROJECT:?say which}  # id of the project
ZONE=${ZONE:-us-central1-a}  # Google's name of the zone
BUCKET=${BUCKET:-blindbox-disks}  # a bucket, which is made; no other of Google's has its name
fits NAME "$NAME" '[a-z][a-z0-9-]{1,38}[a-z0-9]'
fits PROJECT "$PROJECT" '[a-z][a-z0-9-]{4,28}[a-z0-9]'
fits ZONE "$ZONE" '[a-z]+-[a-z]+[0-9]+-[a-z]'
fits BUCKET "$BUCKET" '[a-z0-9][a-z0-9_-]{1,61}[a-z0-9]'
failed=0

# remove the machine and its disk
gcloud compute instances delete "$NAME" --project "$PROJECT" --zone "$ZONE" --delete-disks all \
    --quiet || failed=1

# the image
gcloud compute images delete "$NAME" --project "$PROJECT" --quiet || failed=1

# the rule of the firewall
gcloud compute firewall-rules delete "$NAME" --project "$PROJECT" --quiet || failed=1

# and the bucket, with all that is in it
gcloud storage rm --recursive "gs://$BUCKET" --project "$PROJECT" --quiet || failed=1

exit "$failed"
