"""The scripts that run before the image does: read by shellcheck, and the lease script run for real."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from image.vm import command_line, cpio, initrd
from image.vm.container import Image
from image.vm.errors import UnusableImage
from image.vm.verity import Volume
from tests.kit.debian import need
from tests.kit.vm import pinned_tree

SCRIPTS = Path(initrd.__file__).parent
IMAGE = Image(
    "an-image", "sha256:" + "0" * 64, ("A=it's", "B=$(reboot)"), ("/bin/it", "a b", "$HOME"), "/opt"
)


@pytest.mark.parametrize("script", ["init", "lease"])
def test_shellcheck_finds_nothing(script: str) -> None:
    need("shellcheck")
    done = subprocess.run(
        ["shellcheck", "--shell=dash", SCRIPTS / script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_images_words_reach_its_command_as_they_are(tmp_path: Path) -> None:
    """The script that starts it, read by the shell that will: what follows `chroot` is printed one a line."""
    busybox = pinned_tree().file("usr/bin/busybox")
    script = initrd.application(IMAGE).replace("exec chroot /sysroot", "exec printf '%s\\n'")
    (tmp_path / "script").write_text(script)
    done = subprocess.run([busybox, "sh", tmp_path / "script"], capture_output=True, text=True, check=True)
    words = done.stdout.splitlines()
    assert words[:6] == ["/usr/bin/env", "-i", "-C", "/opt", "A=it's", "B=$(reboot)"]
    assert words[6 : 6 + len(initrd.UNPRIVILEGED)] == list(initrd.UNPRIVILEGED)
    assert words[6 + len(initrd.UNPRIVILEGED) :] == ["/bin/it", "a b", "$HOME"]


@pytest.mark.parametrize("variable", ["A", "1A=b", "A B=c", "=x", "A=\0"])
def test_an_environment_that_no_shell_can_set_is_refused(variable: str) -> None:
    with pytest.raises(UnusableImage, match="variable"):
        initrd.application(Image("an-image", "", (variable,), ("/bin/it",), "/"))


def test_the_command_line_names_both_volumes_once() -> None:
    root, models = Volume(Path("r"), "ab" * 32, "cd" * 32, 7), Volume(Path("m"), "ef" * 32, "01" * 32, 9)
    line = command_line.line(root, models)
    assert line.split()[-2:] == [
        f"blindbox.root={'ab' * 32},{'cd' * 32},7",
        f"blindbox.models={'ef' * 32},{'01' * 32},9",
    ]
    assert command_line.line(root) == line.rsplit(" ", 1)[0]
    assert line.isascii()
    assert len(line) < 2048  # of the kernel's COMMAND_LINE_SIZE on x86


# ── leases ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Lease:
    """What a call of `lease` did: to the network, to the name servers, and how it ended."""

    status: int
    addresses: str
    routes: str
    mtu: str
    servers: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The initrd's shell and script in a folder of their own."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a network and a root of its own take root and unshare")
    folder = tmp_path_factory.mktemp("initrd")
    for entry in initrd.entries(pinned_tree(), IMAGE):
        path = folder / entry.path
        if entry.mode & 0o170000 == 0o120000:
            path.symlink_to(entry.content.decode())
        elif entry.mode & 0o170000 == 0o040000:
            path.mkdir(exist_ok=True)
        elif not entry.path.startswith("modules/"):
            path.write_bytes(entry.content)
            path.chmod(entry.mode & 0o7777)
    (folder / "dev/console").touch()
    return folder


def lease(root: Path, event: str, **said: str) -> Lease:
    """Call the script as udhcpc does, in a network namespace with one end of a cable."""
    (root / "run/resolv.conf").unlink(missing_ok=True)
    script = (
        "ip link add eth0 type veth && ip link set veth0 up && ip link set eth0 up && /bin/lease "
        + event
        + "; echo $?;"
        "ip -4 addr show dev eth0 | grep inet; echo =; ip route; echo =; ip link show eth0"
    )
    done = subprocess.run(
        ["/usr/bin/unshare", "--net", "/usr/sbin/chroot", root, "/bin/busybox", "sh", "-c", script],
        env={"PATH": "/bin", "interface": "eth0", **said},
        capture_output=True,
        text=True,
        check=True,
    )
    (status, _, rest) = done.stdout.partition("\n")
    addresses, routes, link = rest.split("=\n")
    written = root / "run/resolv.conf"
    servers = written.read_text().splitlines() if written.exists() else []
    return Lease(int(status), addresses, routes, link, servers)


GOOD = {"ip": "10.0.2.15", "mask": "24", "router": "10.0.2.2", "dns": "10.0.2.3 8.8.4.4", "mtu": "1460"}


def test_a_lease_gives_address_route_servers_and_mtu(root: Path) -> None:
    found = lease(root, "bound", **GOOD)
    assert found.status == 0
    assert "inet 10.0.2.15/24 " in found.addresses
    assert "default via 10.0.2.2 dev eth0" in found.routes
    assert "mtu 1460 " in found.mtu
    assert found.servers == ["nameserver 10.0.2.3", "nameserver 8.8.4.4"]


def test_a_gateway_outside_the_subnet_is_reached_on_the_link(root: Path) -> None:
    """Google leases an address alone."""
    found = lease(root, "bound", **{**GOOD, "ip": "10.128.0.7", "mask": "32", "router": "10.128.0.1"})
    assert "default via 10.128.0.1 dev eth0" in found.routes


@pytest.mark.parametrize("event", ["deconfig", "leasefail", "nak", "", "--help"])
def test_events_without_a_lease_change_nothing(root: Path, event: str) -> None:
    found = lease(root, event, **GOOD)
    assert (found.addresses, found.routes, found.servers) == ("", "", [])


@pytest.mark.parametrize(
    "change",
    [
        {"ip": "10.0.2.256"},
        {"ip": "10.0.2"},
        {"ip": "10.0.2.15/8"},
        {"ip": "10.0.2.15\n10.0.2.16"},
        {"ip": "$(reboot)"},
        {"ip": ""},
        {"ip": "-help"},
        {"mask": "33"},
        {"mask": "0"},
        {"mask": "x"},
        {"mask": ""},
    ],
)
def test_a_lease_without_a_plain_address_is_none(root: Path, change: dict[str, str]) -> None:
    found = lease(root, "bound", **{**GOOD, **change})
    assert found.status == 1
    assert (found.addresses, found.routes, found.servers) == ("", "", [])


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"dns": "8.8.4.4;reboot 1.1.1.1"}, ["nameserver 1.1.1.1"]),
        ({"dns": "8.8.4.4\noptions debug"}, ["nameserver 8.8.4.4"]),
        ({"dns": "* ../../etc"}, []),
        ({"dns": "::1 300.1.1.1 1.2.3.4.5"}, []),
        ({}, ["nameserver 10.0.2.3", "nameserver 8.8.4.4"]),
    ],
)
def test_only_plain_addresses_become_name_servers(
    root: Path, change: dict[str, str], kept: list[str]
) -> None:
    found = lease(root, "renew", **{**GOOD, **change})
    assert found.status == 0
    assert found.servers == kept


@pytest.mark.parametrize("mtu", ["575", "9217", "1e3", "-1", "99999999999999999999", "1400;reboot"])
def test_an_mtu_out_of_all_measure_is_left_out(root: Path, mtu: str) -> None:
    found = lease(root, "bound", **{**GOOD, "mtu": mtu})
    assert found.status == 0
    assert "mtu 1500 " in found.mtu


def test_a_router_that_is_no_address_gives_no_route(root: Path) -> None:
    found = lease(root, "bound", **{**GOOD, "router": "10.0.2.2;x dev"})
    assert "default" not in found.routes


def test_other_words_of_a_lease_are_not_looked_at(root: Path) -> None:
    """domain and search would change what names mean; a boot file or a time server has no business here."""
    more = {"domain": "evil.example", "search": "evil.example", "boot_file": "x", "ntpsrv": "1.2.3.4"}
    assert lease(root, "bound", **GOOD, **more).servers == lease(root, "bound", **GOOD).servers


def test_the_initrd_is_the_same_bytes_twice() -> None:
    tree = pinned_tree()
    assert cpio.archive(initrd.entries(tree, IMAGE)) == cpio.archive(initrd.entries(tree, IMAGE))
