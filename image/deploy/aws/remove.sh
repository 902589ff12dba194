#!/usr/bin/env bash
# Removes what was made: docs/deploy/aws.md. Printed by
#     blindbox deploy --target aws --remove --script
set -uo pipefail

fits() {
    local LC_ALL=C
    [[ "$2" =~ ^($3)$ ]] || {
        printf '%s is %q, which it cannot be\n' "$1" "$2" >&2
        exit 2
    }
}

NAME=${NAME:-blindbox}  # what everything is called that is made
REGION=${REGION:-us-east-2}  # AWS's name of the region
fits NAME "$NAME" '[a-z][a-z0-9-]{1,38}[a-z0-9]'
fits REGION "$REGION" '[a-z]{2}(-[a-z]+)+-[0-9]'
failed=0

# find the machine, by what it was marked with
INSTANCE=$(aws ec2 describe-instances --region "$REGION" --filters "Name=tag:blindbox-deploy,Values=$NAME" \
    Name=instance-state-name,Values=pending,running,stopping,stopped \
    --query 'Reservations[].Instances[].InstanceId' --output text) || failed=1

# remove it and its disk
aws ec2 terminate-instances --region "$REGION" --instance-ids "$INSTANCE" \
    --query 'TerminatingInstances[0].CurrentState.Name' --output text || failed=1

# wait until it is gone
aws ec2 wait instance-terminated --region "$REGION" --instance-ids "$INSTANCE" || failed=1

# find the image
IMAGE=$(aws ec2 describe-images --region "$REGION" --owners self --filters "Name=name,Values=$NAME" \
    --query 'Images[].ImageId' --output text) || failed=1

# remove it
aws ec2 deregister-image --region "$REGION" --image-id "$IMAGE" || failed=1

# find the snapshot
SNAPSHOT=$(aws ec2 describe-snapshots --region "$REGION" --owner-ids self \
    --filters "Name=tag:blindbox-deploy,Values=$NAME" --query 'Snapshots[].SnapshotId' --output text) || failed=1

# remove it
aws ec2 delete-snapshot --region "$REGION" --snapshot-id "$SNAPSHOT" || failed=1

# and the firewall
aws ec2 delete-security-group --region "$REGION" --group-name "$NAME" || failed=1

exit "$failed"
