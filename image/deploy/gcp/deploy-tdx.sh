#!/usr/bin/env bash
# Starts a machine: docs/deploy/gcp.md. Printed by
#     blindbox deploy --target gcp --hardware tdx --script
set -euo pipefail

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
MACHINE=${MACHINE:-c3-standard-4}  # Google's name of the machine type
SOURCE=${SOURCE:-0.0.0.0/0}  # whose calls reach port 80
DISK=${DISK:-dist/vm/disk.tar.gz}  # the machine's disk, as an archive
fits NAME "$NAME" '[a-z][a-z0-9-]{1,38}[a-z0-9]'
fits PROJECT "$PROJECT" '[a-z][a-z0-9-]{4,28}[a-z0-9]'
fits ZONE "$ZONE" '[a-z]+-[a-z]+[0-9]+-[a-z]'
fits BUCKET "$BUCKET" '[a-z0-9][a-z0-9_-]{1,61}[a-z0-9]'
fits MACHINE "$MACHINE" '[a-z0-9]+(-[a-z0-9]+)+'
fits SOURCE "$SOURCE" '[0-9]{1,3}(\.[0-9]{1,3}){3}/[0-9]{1,2}'
fits DISK "$DISK" '[A-Za-z0-9_./][A-Za-z0-9_./+@ -]{0,1023}'

# make a place for the disk
gcloud storage buckets create "gs://$BUCKET" --project "$PROJECT" --uniform-bucket-level-access \
    --public-access-prevention

# upload the disk
gcloud storage cp "$DISK" "gs://$BUCKET/$NAME.tar.gz" --project "$PROJECT"

# make the image
gcloud compute images create "$NAME" --project "$PROJECT" --source-uri "gs://$BUCKET/$NAME.tar.gz" \
    --architecture X86_64 --guest-os-features UEFI_COMPATIBLE,GVNIC,TDX_CAPABLE

# let calls to port 80 in
gcloud compute firewall-rules create "$NAME" --project "$PROJECT" --network default \
    --direction INGRESS --action ALLOW --rules tcp:80 --source-ranges "$SOURCE" --target-tags "$NAME"

# start the machine, without any right in the project
gcloud compute instances create "$NAME" --project "$PROJECT" --zone "$ZONE" --machine-type "$MACHINE" \
    --confidential-compute-type TDX --maintenance-policy TERMINATE --image "$NAME" \
    --image-project "$PROJECT" --shielded-vtpm --no-shielded-secure-boot --no-service-account \
    --no-scopes --network-interface network=default,nic-type=GVNIC --tags "$NAME"

# ask for its address
ADDRESS=$(gcloud compute instances describe "$NAME" --project "$PROJECT" --zone "$ZONE" \
    --format 'value(networkInterfaces[0].accessConfigs[0].natIP)')
fits ADDRESS "$ADDRESS" '[0-9]{1,3}(\.[0-9]{1,3}){3}'

echo "http://$ADDRESS:80"
