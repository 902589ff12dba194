#!/usr/bin/env bash
# Starts a machine: docs/deploy/aws.md. Printed by
#     blindbox deploy --target aws --script
set -euo pipefail

fits() {
    local LC_ALL=C
    [[ "$2" =~ ^($3)$ ]] || {
        printf '%s is %q, which it cannot be\n' "$1" "$2" >&2
        exit 2
    }
}

NAME=${NAME:-blindbox}  # what everything is called that is made
REGION=${REGION:-us-east-2}  # AWS's name of the region
TYPE=${TYPE:-m7i.xlarge}  # type of the instance, one with NitroTPM
SOURCE=${SOURCE:-0.0.0.0/0}  # whose calls reach port 80
DISK=${DISK:-dist/vm/disk.raw}  # the machine's disk
fits NAME "$NAME" '[a-z][a-z0-9-]{1,38}[a-z0-9]'
fits REGION "$REGION" '[a-z]{2}(-[a-z]+)+-[0-9]'
fits TYPE "$TYPE" '[a-z0-9-]+\.[a-z0-9-]+'
fits SOURCE "$SOURCE" '[0-9]{1,3}(\.[0-9]{1,3}){3}/[0-9]{1,2}'
fits DISK "$DISK" '[A-Za-z0-9_./][A-Za-z0-9_./+@ -]{0,1023}'

# upload the disk, as a snapshot
SNAPSHOT=$(coldsnap --region "$REGION" upload --wait --no-progress --tag "Key=blindbox-deploy,Value=$NAME" \
    "$DISK")
fits SNAPSHOT "$SNAPSHOT" 'snap-[0-9a-f]{8,32}'

# make the image: with a TPM
IMAGE=$(aws ec2 register-image --region "$REGION" --name "$NAME" --architecture x86_64 \
    --virtualization-type hvm --ena-support --boot-mode uefi --tpm-support v2.0 \
    --root-device-name /dev/xvda \
    --block-device-mappings "DeviceName=/dev/xvda,Ebs={SnapshotId=$SNAPSHOT,VolumeType=gp3,DeleteOnTermination=true}" \
    --query ImageId --output text)
fits IMAGE "$IMAGE" 'ami-[0-9a-f]{8,32}'

# make a firewall that lets nothing in
GROUP=$(aws ec2 create-security-group --region "$REGION" --group-name "$NAME" \
    --description 'calls to port 80' --query GroupId --output text)
fits GROUP "$GROUP" 'sg-[0-9a-f]{8,32}'

# but calls to port 80
aws ec2 authorize-security-group-ingress --region "$REGION" --group-id "$GROUP" --protocol tcp \
    --port 80 --cidr "$SOURCE" --query Return --output text

# start the machine, without any right in the account
INSTANCE=$(aws ec2 run-instances --region "$REGION" --image-id "$IMAGE" --instance-type "$TYPE" \
    --security-group-ids "$GROUP" --metadata-options HttpEndpoint=disabled \
    --tag-specifications "ResourceType=instance,Tags=[{Key=blindbox-deploy,Value=$NAME}]" \
    --query 'Instances[0].InstanceId' --output text)
fits INSTANCE "$INSTANCE" 'i-[0-9a-f]{8,32}'

# wait until it runs
aws ec2 wait instance-running --region "$REGION" --instance-ids "$INSTANCE"

# ask for its address
ADDRESS=$(aws ec2 describe-instances --region "$REGION" --instance-ids "$INSTANCE" \
    --query 'Reservations[0].Instances[0].PublicIpAddress' --output text)
fits ADDRESS "$ADDRESS" '[0-9]{1,3}(\.[0-9]{1,3}){3}'

echo "http://$ADDRESS:80"
