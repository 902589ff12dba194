"""
What is typed to have a machine of ours somewhere, by target; the pages of docs/deploy have it too.

Sources: QEMU's docs/system/i386 (amd-memory-encryption, tdx); Microsoft's "Create a custom image for Azure
confidential VMs" and the reference of `az`; Google's "Create a Confidential VM instance" and the reference of
`gcloud`; AWS's "Attestable AMIs", the reference of `aws ec2`, and coldsnap's README.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .deploy_steps import Plan, Step, Value

_PATH: Final = "[A-Za-z0-9_./][A-Za-z0-9_./+@ -]{0,1023}"  # no first character means anything to a program
_IPV4: Final = r"[0-9]{1,3}(\.[0-9]{1,3}){3}"
_HEX48: Final = "[0-9a-f]{96}"


def _file(name: str, default: str | None, about: str) -> Value:
    return Value(
        name,
        default,
        about,
        _PATH,
        "a path of letters, digits, spaces and _./+@-, beginning with one of the first or with _./",
        file=True,
    )


_NAME: Final = Value(
    *("NAME", "blindbox", "what everything is called that is made"),
    *("[a-z][a-z0-9-]{1,38}[a-z0-9]", "3 to 40 lower-case letters, digits and -"),
)
_MEASUREMENTS: Final = _file("MEASUREMENTS", "dist/measurements.json", "what the build predicted")
_SOURCE: Final = Value(
    *("SOURCE", "0.0.0.0/0", "whose calls reach port 80"),
    *(f"{_IPV4}/[0-9]{{1,2}}", "addresses as in 198.51.100.0/24"),
)
_CPUS: Final = Value("CPUS", "4", "number of virtual processors", "[1-9]|[1-5][0-9]|6[0-4]", "1 to 64")
_MEMORY: Final = Value("MEMORY", "16G", "memory of the machine", "[1-9][0-9]{0,5}[MG]", "a number and M or G")
_ADDRESS: Final = Value("ADDRESS", "127.0.0.1", "address of this host to listen on", _IPV4, "an IPv4 address")
_PORT: Final = Value(
    *("PORT", "8080", "port of this host that leads to the machine's port 80"),
    *("[1-9][0-9]{0,4}", "a number"),
)
_TCB_EVALUATION: Final = Value(
    *("TCB_EVALUATION", None, "the oldest of Intel's TCB evaluations to judge by"),
    *("[1-9][0-9]{0,5}", "a number, as Intel publishes it"),
)
_PARAVISOR: Final = Value(
    *("PARAVISOR", None, "measurement of Microsoft's firmware"),
    *(_HEX48, "96 hex digits"),
)

_TRUST: Final = "store the policy: from now on every call to this address is judged by it"


def _policy(*options: str) -> Step:
    """What a client pins."""
    return Step(
        "the policy, from what the build predicted",
        ("blindbox", "policy", "from-measurements", "$MEASUREMENTS", *options),
        into="policy.json",
    )


def _judged(port: str) -> tuple[Step, ...]:
    origin = f"http://$ADDRESS:{port}"
    return (
        Step("have the machine prove itself", ("blindbox", "verify", origin, "--policy", "policy.json")),
        Step(_TRUST, ("blindbox", "trust", origin, "--policy", "policy.json")),
    )


# ── QEMU on a host of one's own ──────────────────────────────────────────────────────────────────────

_FOR_SNP: Final = (
    _NAME,
    Value("PROCESSOR", "Genoa", "family of the host's EPYC", "Milan|Genoa|Turin", "Milan, Genoa or Turin"),
    _CPUS,
    _MEMORY,
    _file("FIRMWARE", "dist/firmware/amdsev.fd", "OVMF, built as AmdSev"),
    _file("KERNEL", "dist/vm/blindbox.efi", "kernel, initrd and command line in one file"),
    _file("DISK", "dist/vm/disk.raw", "the machine's disk"),
    _ADDRESS,
    _PORT,
    _MEASUREMENTS,
)


def _started(*of_the_technology: str, first: str) -> Step:
    return Step(
        "start the machine; what it says at its start is in $NAME.console.log",
        (
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-daemonize", "-pidfile", "$NAME.pid", "-serial", "file:$NAME.console.log"),
            *("-accel", "kvm", "-smp", "$CPUS", "-m", "$MEMORY"),
            *of_the_technology,
            *("-drive", "if=none,id=system,format=raw,readonly=on,file=$DISK"),
            *("-device", f"virtio-blk-pci,drive=system{first},disable-legacy=on,iommu_platform=on"),
            *("-netdev", "user,id=net,restrict=on,hostfwd=tcp:$ADDRESS:$PORT-:80"),
            *("-device", "virtio-net-pci,netdev=net,romfile=,disable-legacy=on,iommu_platform=on"),
            *("-device", "virtio-rng-pci,disable-legacy=on,iommu_platform=on"),
        ),
    )


_STOPPED: Final = (
    Step(
        "switch the machine off; nothing of it stays but the log of its console",
        ("pkill", "--exact", "--pidfile", "$NAME.pid", "qemu-system-x86"),
    ),
    Step("remove that log", ("rm", "-f", "$NAME.console.log")),
)
"""Linux tells 15 characters of a program's name."""

QEMU_SNP: Final = Plan(
    values=_FOR_SNP,
    deploy=(
        _started(
            *("-cpu", "EPYC-$PROCESSOR"),
            *("-machine", "q35,confidential-guest-support=sev0,memory-backend=ram1"),
            *("-object", "memory-backend-memfd,id=ram1,size=$MEMORY,share=true"),
            "-object",
            "sev-snp-guest,id=sev0,cbitpos=51,reduced-phys-bits=1,policy=0x30000,kernel-hashes=on",
            *("-bios", "$FIRMWARE", "-kernel", "$KERNEL"),
            first="",  # that is the kernel, and QEMU takes no second one
        ),
    ),
    check=(
        _policy("--platform", "snp", "--processor", "$PROCESSOR", "--vcpus", "$CPUS"),
        *_judged("$PORT"),
    ),
    remove=_STOPPED,
)

QEMU_TDX: Final = Plan(
    values=(
        _NAME,
        _CPUS,
        _MEMORY,
        _file("FIRMWARE", "dist/firmware/tdx.fd", "OVMF, built as IntelTdx"),
        _file("DISK", "dist/vm/disk.raw", "the machine's disk"),
        _ADDRESS,
        _PORT,
        Value("QUOTES", "4050", "vsock port of the host's quote service", "[1-9][0-9]{0,4}", "a number"),
        _MEASUREMENTS,
        _TCB_EVALUATION,
    ),
    deploy=(
        _started(
            *("-cpu", "host"),
            *("-machine", "q35,kernel-irqchip=split,confidential-guest-support=tdx0"),
            "-object",
            '{"qom-type":"tdx-guest","id":"tdx0",'
            '"quote-generation-socket":{"type":"vsock","cid":"2","port":"$QUOTES"}}',
            *("-bios", "$FIRMWARE"),
            first=",bootindex=0",
        ),
    ),
    check=(_policy("--platform", "tdx", "--tcb-evaluation", "$TCB_EVALUATION"), *_judged("$PORT")),
    remove=_STOPPED,
)

# ── Azure ────────────────────────────────────────────────────────────────────────────────────────────

_GROUP: Final = ("--resource-group", "$RESOURCE_GROUP")
_STORAGE: Final = ("--account-name", "$STORAGE", "--auth-mode", "key")
_IMAGE: Final = ("--gallery-name", "blindbox", "--gallery-image-definition", "$NAME")
_QUIET: Final = ("--output", "none")
_FIELD: Final = ("--output", "tsv")


def _azure(size: str, *judged_by: str, platform: str) -> Plan:
    return Plan(
        values=(
            _NAME,
            Value("REGION", "westeurope", "Azure's name of the region", "[a-z0-9]{3,40}", "letters, digits"),
            Value(
                *("RESOURCE_GROUP", "blindbox", "a resource group of its own, which is made"),
                *("[A-Za-z0-9_][A-Za-z0-9_-]{0,63}", "1 to 64 letters, digits, _ and -"),
            ),
            Value(
                *("STORAGE", "blindboxdisks", "a storage account, made; no other in all Azure has its name"),
                *("[a-z0-9]{3,24}", "3 to 24 lower-case letters and digits"),
            ),
            Value("SIZE", size, "Azure's name of the size", "Standard_[A-Za-z0-9_]{2,40}", "Standard_…"),
            _SOURCE,
            _file("DISK", "dist/vm/disk.vhd", "the machine's disk, as a fixed VHD"),
            _MEASUREMENTS,
            *((_TCB_EVALUATION,) if "$TCB_EVALUATION" in judged_by else ()),
            _PARAVISOR,
        ),
        deploy=(
            Step(
                "see that the resource group is not there yet: removing will remove all that is in it",
                ("az", "group", "exists", "--name", "$RESOURCE_GROUP", *_FIELD),
                prints="false",
                or_else="the resource group $RESOURCE_GROUP is there already: name another one",
            ),
            Step(
                "make it, and mark it as made here",
                (
                    *("az", "group", "create", "--name", "$RESOURCE_GROUP", "--location", "$REGION"),
                    *("--tags", "blindbox=deployed", *_QUIET),
                ),
            ),
            Step(
                "make a place for the disk",
                (
                    *("az", "storage", "account", "create", *_GROUP, "--name", "$STORAGE"),
                    *("--location", "$REGION", "--sku", "Standard_LRS", "--kind", "StorageV2"),
                    *("--allow-blob-public-access", "false", "--min-tls-version", "TLS1_2", *_QUIET),
                ),
            ),
            Step(
                "and a folder in it",
                ("az", "storage", "container", "create", *_STORAGE, "--name", "disks", *_QUIET),
            ),
            Step(
                "upload the disk",
                (
                    *("az", "storage", "blob", "upload", *_STORAGE, "--container-name", "disks"),
                    *("--name", "$NAME.vhd", "--file", "$DISK", "--type", "page", *_QUIET),
                ),
            ),
            Step(
                "ask for the storage account's id",
                ("az", "storage", "account", "show", *_GROUP, "--name", "$STORAGE", "--query", "id", *_FIELD),
                keeps="STORAGE_ID",
                prints="/[A-Za-z0-9_./-]{1,300}",
            ),
            Step(
                "make a gallery of images",
                (
                    "az",
                    "sig",
                    "create",
                    *_GROUP,
                    "--gallery-name",
                    "blindbox",
                    "--location",
                    "$REGION",
                    *_QUIET,
                ),
            ),
            Step(
                "say in it what kind of image this is; specialized: nothing in it waits for Azure's agent",
                (
                    *("az", "sig", "image-definition", "create", *_GROUP, *_IMAGE, "--location", "$REGION"),
                    *(
                        "--publisher",
                        "blindbox",
                        "--offer",
                        "blindbox",
                        "--sku",
                        "$NAME",
                        "--architecture",
                        "x64",
                    ),
                    *("--os-type", "Linux", "--os-state", "Specialized", "--hyper-v-generation", "V2"),
                    *("--features", "SecurityType=ConfidentialVmSupported", *_QUIET),
                ),
            ),
            Step(
                "make the image",
                (
                    *("az", "sig", "image-version", "create", *_GROUP, *_IMAGE),
                    *("--gallery-image-version", "1.0.0", "--location", "$REGION", "--replica-count", "1"),
                    *("--os-vhd-storage-account", "$STORAGE_ID"),
                    *("--os-vhd-uri", "https://$STORAGE.blob.core.windows.net/disks/$NAME.vhd"),
                    *("--query", "id", *_FIELD),
                ),
                keeps="IMAGE",
                prints="/[A-Za-z0-9_./-]{1,400}",
            ),
            Step(
                "make a firewall that lets nothing in",
                (
                    "az",
                    "network",
                    "nsg",
                    "create",
                    *_GROUP,
                    "--name",
                    "$NAME",
                    "--location",
                    "$REGION",
                    *_QUIET,
                ),
            ),
            Step(
                "but calls to port 80",
                (
                    *(
                        "az",
                        "network",
                        "nsg",
                        "rule",
                        "create",
                        *_GROUP,
                        "--nsg-name",
                        "$NAME",
                        "--name",
                        "calls",
                    ),
                    *(
                        "--priority",
                        "100",
                        "--direction",
                        "Inbound",
                        "--access",
                        "Allow",
                        "--protocol",
                        "Tcp",
                    ),
                    *("--source-address-prefixes", "$SOURCE", "--destination-port-ranges", "80", *_QUIET),
                ),
            ),
            Step(
                "start the machine; secure boot is off, since register 4 pins the program itself",
                (
                    *(
                        "az",
                        "vm",
                        "create",
                        *_GROUP,
                        "--name",
                        "$NAME",
                        "--location",
                        "$REGION",
                        "--size",
                        "$SIZE",
                    ),
                    *("--image", "$IMAGE", "--specialized", "--security-type", "ConfidentialVM"),
                    *("--os-disk-security-encryption-type", "VMGuestStateOnly", "--enable-vtpm", "true"),
                    *(
                        "--enable-secure-boot",
                        "false",
                        "--nsg",
                        "$NAME",
                        "--public-ip-sku",
                        "Standard",
                        *_QUIET,
                    ),
                ),
            ),
            Step(
                "ask for its address",
                (
                    *("az", "vm", "show", "--show-details", *_GROUP, "--name", "$NAME"),
                    *("--query", "publicIps", *_FIELD),
                ),
                keeps="ADDRESS",
                prints=_IPV4,
            ),
        ),
        check=(
            _policy("--platform", platform, *judged_by, "--paravisor", "$PARAVISOR"),
            *_judged("80"),
        ),
        remove=(
            Step(
                "see that the resource group was made here",
                ("az", "group", "show", "--name", "$RESOURCE_GROUP", "--query", "tags.blindbox", *_FIELD),
                prints="deployed",
                or_else="the resource group $RESOURCE_GROUP was not made here: see yourself what is in it",
            ),
            Step(
                "remove the resource group, and with it all that was made",
                ("az", "group", "delete", "--name", "$RESOURCE_GROUP", "--yes"),
            ),
        ),
    )


# ── Google ───────────────────────────────────────────────────────────────────────────────────────────

_PROJECT: Final = Value(
    *("PROJECT", None, "id of the project"),
    *("[a-z][a-z0-9-]{4,28}[a-z0-9]", "6 to 30 lower-case letters, digits and -"),
)
_IN_PROJECT: Final = ("--project", "$PROJECT")


def _gcp(
    machine: str, technology: str, *further: str, more: tuple[Value, ...], check: tuple[Step, ...]
) -> Plan:
    return Plan(
        values=(
            _NAME,
            _PROJECT,
            Value(
                "ZONE", "us-central1-a", "Google's name of the zone", "[a-z]+-[a-z]+[0-9]+-[a-z]", "a zone"
            ),
            Value(
                *("BUCKET", "blindbox-disks", "a bucket, which is made; no other of Google's has its name"),
                *("[a-z0-9][a-z0-9_-]{1,61}[a-z0-9]", "3 to 63 lower-case letters, digits, _ and -"),
            ),
            Value(
                "MACHINE", machine, "Google's name of the machine type", "[a-z0-9]+(-[a-z0-9]+)+", "a type"
            ),
            _SOURCE,
            _file("DISK", "dist/vm/disk.tar.gz", "the machine's disk, as an archive"),
            _MEASUREMENTS,
            *more,
        ),
        deploy=(
            Step(
                "make a place for the disk",
                (
                    *("gcloud", "storage", "buckets", "create", "gs://$BUCKET", *_IN_PROJECT),
                    *("--uniform-bucket-level-access", "--public-access-prevention"),
                ),
            ),
            Step(
                "upload the disk",
                ("gcloud", "storage", "cp", "$DISK", "gs://$BUCKET/$NAME.tar.gz", *_IN_PROJECT),
            ),
            Step(
                "make the image",
                (
                    *("gcloud", "compute", "images", "create", "$NAME", *_IN_PROJECT),
                    *("--source-uri", "gs://$BUCKET/$NAME.tar.gz", "--architecture", "X86_64"),
                    "--guest-os-features",
                    f"UEFI_COMPATIBLE,GVNIC,{technology}_CAPABLE",
                ),
            ),
            Step(
                "let calls to port 80 in",
                (
                    *("gcloud", "compute", "firewall-rules", "create", "$NAME", *_IN_PROJECT),
                    *(
                        "--network",
                        "default",
                        "--direction",
                        "INGRESS",
                        "--action",
                        "ALLOW",
                        "--rules",
                        "tcp:80",
                    ),
                    *("--source-ranges", "$SOURCE", "--target-tags", "$NAME"),
                ),
            ),
            Step(
                "start the machine, without any right in the project",
                (
                    *("gcloud", "compute", "instances", "create", "$NAME", *_IN_PROJECT, "--zone", "$ZONE"),
                    *("--machine-type", "$MACHINE", "--confidential-compute-type", technology, *further),
                    *("--maintenance-policy", "TERMINATE", "--image", "$NAME", "--image-project", "$PROJECT"),
                    *("--shielded-vtpm", "--no-shielded-secure-boot", "--no-service-account", "--no-scopes"),
                    *("--network-interface", "network=default,nic-type=GVNIC", "--tags", "$NAME"),
                ),
            ),
            Step(
                "ask for its address",
                (
                    *("gcloud", "compute", "instances", "describe", "$NAME", *_IN_PROJECT, "--zone", "$ZONE"),
                    *("--format", "value(networkInterfaces[0].accessConfigs[0].natIP)"),
                ),
                keeps="ADDRESS",
                prints=_IPV4,
            ),
        ),
        check=(*check, *_judged("80")),
        remove=(
            Step(
                "remove the machine and its disk",
                (
                    *("gcloud", "compute", "instances", "delete", "$NAME", *_IN_PROJECT, "--zone", "$ZONE"),
                    *("--delete-disks", "all", "--quiet"),
                ),
            ),
            Step("the image", ("gcloud", "compute", "images", "delete", "$NAME", *_IN_PROJECT, "--quiet")),
            Step(
                "the rule of the firewall",
                ("gcloud", "compute", "firewall-rules", "delete", "$NAME", *_IN_PROJECT, "--quiet"),
            ),
            Step(
                "and the bucket, with all that is in it",
                ("gcloud", "storage", "rm", "--recursive", "gs://$BUCKET", *_IN_PROJECT, "--quiet"),
            ),
        ),
    )


GCP_TDX: Final = _gcp(
    *("c3-standard-4", "TDX"),
    more=(
        Value("MRTD", None, "measurement of Google's firmware", _HEX48, "96 hex digits"),
        _TCB_EVALUATION,
    ),
    check=(_policy("--platform", "tdx", "--tcb-evaluation", "$TCB_EVALUATION", "--mrtd", "$MRTD"),),
)
GCP_SNP: Final = _gcp(
    *("n2d-standard-4", "SEV_SNP", "--min-cpu-platform", "AMD Milan"),
    more=(),
    check=(_policy("--platform", "tpm", "--project", "$PROJECT"),),
)

# ── AWS ──────────────────────────────────────────────────────────────────────────────────────────────

_IN_REGION: Final = ("--region", "$REGION")
_TEXT: Final = ("--output", "text")
_MARKED: Final = "Name=tag:blindbox-deploy,Values=$NAME"

AWS: Final = Plan(
    values=(
        _NAME,
        Value("REGION", "us-east-2", "AWS's name of the region", "[a-z]{2}(-[a-z]+)+-[0-9]", "a region"),
        Value(
            "TYPE",
            "m7i.xlarge",
            "type of the instance, one with NitroTPM",
            r"[a-z0-9-]+\.[a-z0-9-]+",
            "a type",
        ),
        _SOURCE,
        _file("DISK", "dist/vm/disk.raw", "the machine's disk"),
        _MEASUREMENTS,
        Value("AK_KEY", None, "SHA-256 of the TPM's attestation key", "[0-9a-f]{64}", "64 hex digits"),
    ),
    deploy=(
        Step(
            "upload the disk, as a snapshot",
            (
                *("coldsnap", *_IN_REGION, "upload", "--wait", "--no-progress"),
                *("--tag", "Key=blindbox-deploy,Value=$NAME", "$DISK"),
            ),
            keeps="SNAPSHOT",
            prints="snap-[0-9a-f]{8,32}",
        ),
        Step(
            "make the image: with a TPM",
            (
                *("aws", "ec2", "register-image", *_IN_REGION, "--name", "$NAME", "--architecture", "x86_64"),
                *(
                    "--virtualization-type",
                    "hvm",
                    "--ena-support",
                    "--boot-mode",
                    "uefi",
                    "--tpm-support",
                    "v2.0",
                ),
                *("--root-device-name", "/dev/xvda", "--block-device-mappings"),
                "DeviceName=/dev/xvda,Ebs={SnapshotId=$SNAPSHOT,VolumeType=gp3,DeleteOnTermination=true}",
                *("--query", "ImageId", *_TEXT),
            ),
            keeps="IMAGE",
            prints="ami-[0-9a-f]{8,32}",
        ),
        Step(
            "make a firewall that lets nothing in",
            (
                *("aws", "ec2", "create-security-group", *_IN_REGION, "--group-name", "$NAME"),
                *("--description", "calls to port 80", "--query", "GroupId", *_TEXT),
            ),
            keeps="GROUP",
            prints="sg-[0-9a-f]{8,32}",
        ),
        Step(
            "but calls to port 80",
            (
                *("aws", "ec2", "authorize-security-group-ingress", *_IN_REGION, "--group-id", "$GROUP"),
                *("--protocol", "tcp", "--port", "80", "--cidr", "$SOURCE", "--query", "Return", *_TEXT),
            ),
        ),
        Step(
            "start the machine, without any right in the account",
            (
                *(
                    "aws",
                    "ec2",
                    "run-instances",
                    *_IN_REGION,
                    "--image-id",
                    "$IMAGE",
                    "--instance-type",
                    "$TYPE",
                ),
                *("--security-group-ids", "$GROUP", "--metadata-options", "HttpEndpoint=disabled"),
                "--tag-specifications",
                "ResourceType=instance,Tags=[{Key=blindbox-deploy,Value=$NAME}]",
                *("--query", "Instances[0].InstanceId", *_TEXT),
            ),
            keeps="INSTANCE",
            prints="i-[0-9a-f]{8,32}",
        ),
        Step(
            "wait until it runs",
            ("aws", "ec2", "wait", "instance-running", *_IN_REGION, "--instance-ids", "$INSTANCE"),
        ),
        Step(
            "ask for its address",
            (
                *("aws", "ec2", "describe-instances", *_IN_REGION, "--instance-ids", "$INSTANCE"),
                *("--query", "Reservations[0].Instances[0].PublicIpAddress", *_TEXT),
            ),
            keeps="ADDRESS",
            prints=_IPV4,
        ),
    ),
    check=(_policy("--platform", "tpm", "--ak-key", "$AK_KEY"), *_judged("80")),
    remove=(
        Step(
            "find the machine, by what it was marked with",
            (
                *("aws", "ec2", "describe-instances", *_IN_REGION, "--filters", _MARKED),
                "Name=instance-state-name,Values=pending,running,stopping,stopped",
                *("--query", "Reservations[].Instances[].InstanceId", *_TEXT),
            ),
            keeps="INSTANCE",
            prints="i-[0-9a-f]{8,32}",
        ),
        Step(
            "remove it and its disk",
            (
                *("aws", "ec2", "terminate-instances", *_IN_REGION, "--instance-ids", "$INSTANCE"),
                *("--query", "TerminatingInstances[0].CurrentState.Name", *_TEXT),
            ),
        ),
        Step(
            "wait until it is gone",
            ("aws", "ec2", "wait", "instance-terminated", *_IN_REGION, "--instance-ids", "$INSTANCE"),
        ),
        Step(
            "find the image",
            (
                *("aws", "ec2", "describe-images", *_IN_REGION, "--owners", "self"),
                *("--filters", "Name=name,Values=$NAME", "--query", "Images[].ImageId", *_TEXT),
            ),
            keeps="IMAGE",
            prints="ami-[0-9a-f]{8,32}",
        ),
        Step("remove it", ("aws", "ec2", "deregister-image", *_IN_REGION, "--image-id", "$IMAGE")),
        Step(
            "find the snapshot",
            (
                *(
                    "aws",
                    "ec2",
                    "describe-snapshots",
                    *_IN_REGION,
                    "--owner-ids",
                    "self",
                    "--filters",
                    _MARKED,
                ),
                *("--query", "Snapshots[].SnapshotId", *_TEXT),
            ),
            keeps="SNAPSHOT",
            prints="snap-[0-9a-f]{8,32}",
        ),
        Step("remove it", ("aws", "ec2", "delete-snapshot", *_IN_REGION, "--snapshot-id", "$SNAPSHOT")),
        Step(
            "and the firewall",
            ("aws", "ec2", "delete-security-group", *_IN_REGION, "--group-name", "$NAME"),
        ),
    ),
)

# ── all of them ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Target:
    """A place to run, and in it the processors' technologies; the first is the one unless another is said."""

    about: str
    plans: Mapping[str, Plan]
    page: str  # in docs/deploy


TARGETS: Final[Mapping[str, Target]] = {
    "qemu-snp": Target("a host of your own with AMD SEV-SNP", {"snp": QEMU_SNP}, "qemu-snp.md"),
    "qemu-tdx": Target("a host of your own with Intel TDX", {"tdx": QEMU_TDX}, "qemu-tdx.md"),
    "azure": Target(
        "Azure, in a confidential VM",
        {
            "snp": _azure("Standard_DC4as_v6", platform="azure_snp"),
            "tdx": _azure("Standard_DC4es_v6", "--tcb-evaluation", "$TCB_EVALUATION", platform="azure_tdx"),
        },
        "azure.md",
    ),
    "gcp": Target("Google Cloud, in a Confidential VM", {"tdx": GCP_TDX, "snp": GCP_SNP}, "gcp.md"),
    "aws": Target("AWS, on an instance with NitroTPM; not a confidential VM", {"": AWS}, "aws.md"),
}
