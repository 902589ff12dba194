#!/usr/bin/env bash
# Starts a machine: docs/deploy/qemu-snp.md. Printed by
#     blindbox deploy --target qemu-snp --script
set -euo pipefail

fits() {
    local LC_ALL=C
    [[ "$2" =~ ^($3)$ ]] || {
        printf '%s is %q, which it cannot be\n' "$1" "$2" >&2
        exit 2
    }
}

NAME=${NAME:-blindbox}  # what everything is called that is made
PROCESSOR=${PROCESSOR:-Genoa}  # family of the host's EPYC
CPUS=${CPUS:-4}  # number of virtual processors
MEMORY=${MEMORY:-16G}  # memory of the machine
FIRMWARE=${FIRMWARE:-dist/firmware/amdsev.fd}  # OVMF, built as AmdSev
KERNEL=${KERNEL:-dist/vm/blindbox.efi}  # kernel, initrd and command line in one file
DISK=${DISK:-dist/vm/disk.raw}  # the machine's disk
ADDRESS=${ADDRESS:-127.0.0.1}  # address of this host to listen on
PORT=${PORT:-8080}  # port of this host that leads to the machine's port 80
fits NAME "$NAME" '[a-z][a-z0-9-]{1,38}[a-z0-9]'
fits PROCESSOR "$PROCESSOR" 'Milan|Genoa|Turin'
fits CPUS "$CPUS" '[1-9]|[1-5][0-9]|6[0-4]'
fits MEMORY "$MEMORY" '[1-9][0-9]{0,5}[MG]'
fits FIRMWARE "$FIRMWARE" '[A-Za-z0-9_./][A-Za-z0-9_./+@ -]{0,1023}'
fits KERNEL "$KERNEL" '[A-Za-z0-9_./][A-Za-z0-9_./+@ -]{0,1023}'
fits DISK "$DISK" '[A-Za-z0-9_./][A-Za-z0-9_./+@ -]{0,1023}'
fits ADDRESS "$ADDRESS" '[0-9]{1,3}(\.[0-9]{1,3}){3}'
fits PORT "$PORT" '[1-9][0-9]{0,4}'

# start the machine; what it says at its start is in $NAME.console.log
qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot -daemonize \
    -pidfile "$NAME.pid" -serial "file:$NAME.console.log" -accel kvm -smp "$CPUS" -m "$MEMORY" \
    -cpu "EPYC-$PROCESSOR" -machine q35,confidential-guest-support=sev0,memory-backend=ram1 \
    -object "memory-backend-memfd,id=ram1,size=$MEMORY,share=true" \
    -object sev-snp-guest,id=sev0,cbitpos=51,reduced-phys-bits=1,policy=0x30000,kernel-hashes=on \
    -bios "$FIRMWARE" -kernel "$KERNEL" -drive "if=none,id=system,format=raw,readonly=on,file=$DISK" \
    -device virtio-blk-pci,drive=system,disable-legacy=on,iommu_platform=on \
    -netdev "user,id=net,restrict=on,hostfwd=tcp:$ADDRESS:$PORT-:80" \
    -device virtio-net-pci,netdev=net,romfile=,disable-legacy=on,iommu_platform=on \
    -device virtio-rng-pci,disable-legacy=on,iommu_platform=on
