#!/usr/bin/env bash
# Starts a machine: docs/deploy/azure.md. Printed by
#     blindbox deploy --target azure --hardware snp --script
set -euo pipefail

fits() {
    local LC_ALL=C
    [[ "$2" =~ ^($3)$ ]] || {
        printf '%s is %q, which it cannot be\n' "$1" "$2" >&2
        exit 2
    }
}

NAME=${NAME:-blindbox}  # what everything is called that is made
REGION=${REGION:-westeurope}  # Azure's name of the region
RESOURCE_GROUP=${RESOURCE_GROUP:-blindbox}  # a resource group of its own, which is made
STORAGE=${STORAGE:-blindboxdisks}  # a storage account, made; no other in all Azure has its name
SIZE=${SIZE:-Standard_DC4as_v6}  # Azure's name of the size
SOURCE=${SOURCE:-0.0.0.0/0}  # whose calls reach port 80
DISK=${DISK:-dist/vm/disk.vhd}  # the machine's disk, as a fixed VHD
fits NAME "$NAME" '[a-z][a-z0-9-]{1,38}[a-z0-9]'
fits REGION "$REGION" '[a-z0-9]{3,40}'
fits RESOURCE_GROUP "$RESOURCE_GROUP" '[A-Za-z0-9_][A-Za-z0-9_-]{0,63}'
fits STORAGE "$STORAGE" '[a-z0-9]{3,24}'
fits SIZE "$SIZE" 'Standard_[A-Za-z0-9_]{2,40}'
fits SOURCE "$SOURCE" '[0-9]{1,3}(\.[0-9]{1,3}){3}/[0-9]{1,2}'
fits DISK "$DISK" '[A-Za-z0-9_./][A-Za-z0-9_./+@ -]{0,1023}'

# see that the resource group is not there yet: removing will remove all that is in it
printed=$(az group exists --name "$RESOURCE_GROUP" --output tsv)
[ "$printed" = false ] || { echo "the resource group $RESOURCE_GROUP is there already: name another one" >&2; exit 1; }

# make it, and mark it as made here
az group create --name "$RESOURCE_GROUP" --location "$REGION" --tags blindbox=deployed --output none

# make a place for the disk
az storage account create --resource-group "$RESOURCE_GROUP" --name "$STORAGE" --location "$REGION" \
    --sku Standard_LRS --kind StorageV2 --allow-blob-public-access false --min-tls-version TLS1_2 \
    --output none

# and a folder in it
az storage container create --account-name "$STORAGE" --auth-mode key --name disks --output none

# upload the disk
az storage blob upload --account-name "$STORAGE" --auth-mode key --container-name disks \
    --name "$NAME.vhd" --file "$DISK" --type page --output none

# ask for the storage account's id
STORAGE_ID=$(az storage account show --resource-group "$RESOURCE_GROUP" --name "$STORAGE" --query id --output tsv)
fits STORAGE_ID "$STORAGE_ID" '/[A-Za-z0-9_./-]{1,300}'

# make a gallery of images
az sig create --resource-group "$RESOURCE_GROUP" --gallery-name blindbox --location "$REGION" \
    --output none

# say in it what kind of image this is; specialized: nothing in it waits for Azure's agent
az sig image-definition create --resource-group "$RESOURCE_GROUP" --gallery-name blindbox \
    --gallery-image-definition "$NAME" --location "$REGION" --publisher blindbox --offer blindbox \
    --sku "$NAME" --architecture x64 --os-type Linux --os-state Specialized --hyper-v-generation V2 \
    --features SecurityType=ConfidentialVmSupported --output none

# make the image
IMAGE=$(az sig image-version create --resource-group "$RESOURCE_GROUP" --gallery-name blindbox \
    --gallery-image-definition "$NAME" --gallery-image-version 1.0.0 --location "$REGION" \
    --replica-count 1 --os-vhd-storage-account "$STORAGE_ID" \
    --os-vhd-uri "https://$STORAGE.blob.core.windows.net/disks/$NAME.vhd" --query id --output tsv)
fits IMAGE "$IMAGE" '/[A-Za-z0-9_./-]{1,400}'

# make a firewall that lets nothing in
az network nsg create --resource-group "$RESOURCE_GROUP" --name "$NAME" --location "$REGION" \
    --output none

# but calls to port 80
az network nsg rule create --resource-group "$RESOURCE_GROUP" --nsg-name "$NAME" --name calls \
    --priority 100 --direction Inbound --access Allow --protocol Tcp \
    --source-address-prefixes "$SOURCE" --destination-port-ranges 80 --output none

# start the machine; secure boot is off, since register 4 pins the program itself
az vm create --resource-group "$RESOURCE_GROUP" --name "$NAME" --location "$REGION" --size "$SIZE" \
    --image "$IMAGE" --specialized --security-type ConfidentialVM \
    --os-disk-security-encryption-type VMGuestStateOnly --enable-vtpm true --enable-secure-boot false \
    --nsg "$NAME" --public-ip-sku Standard --output none

# ask for its address
ADDRESS=$(az vm show --show-details --resource-group "$RESOURCE_GROUP" --name "$NAME" --query publicIps \
    --output tsv)
fits ADDRESS "$ADDRESS" '[0-9]{1,3}(\.[0-9]{1,3}){3}'

echo "http://$ADDRESS:80"
