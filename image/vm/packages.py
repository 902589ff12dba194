"""
The Debian packages that a machine is made of and with: named, pinned, fetched and unpacked, never installed.

`packages.lock` pins each by version and by the SHA-256 of its file. apt fetches them, with a state of its
own, from wherever this machine's apt fetches Debian: its sources are read for the place and stay as they are.
`python -m image.vm lock` writes the lock anew, which is how a kernel with a security fix comes in; that gives
a new measurement.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from . import programs
from .errors import BadPackage, FailedProgram

LOCK: Final = Path(__file__).with_name("packages.lock")
SUITE: Final = "trixie"  # its kernel is the first of Debian's with SEV-SNP and TDX reports for guests
RELEASE: Final = "debian-13"
KERNEL: Final = "linux-image-cloud-amd64"  # a name for whichever is the newest

INSIDE: Final[Mapping[str, str]] = {
    KERNEL: "one kernel for QEMU, Azure, Google and AWS; it verifies its own modules",
    "busybox-static": "the shell of `init` and what it calls",
    "dmsetup": "opens the volumes that dm-verity and dm-crypt guard",
    "e2fsprogs": "makes the file system of the encrypted data disk",
    "libblkid1": "for mke2fs",
    "libc6": "for dmsetup and mke2fs",
    "libcap2": "for libudev1",
    "libcom-err2": "for mke2fs",
    "libdevmapper1.02.1": "for dmsetup",
    "libext2fs2t64": "for mke2fs",
    "libpcre2-8-0": "for libselinux1",
    "libselinux1": "for libdevmapper1.02.1",
    "libudev1": "for libdevmapper1.02.1",
    "libuuid1": "for mke2fs",
    "systemd-boot-efi": "the EFI stub that starts the kernel and measures what it starts",
}
"""What (in part) becomes part of the machine, and why."""

OUTSIDE: Final[Mapping[str, str]] = {
    "gzip": "the archive for Google",
    "liblz4-1": "for mksquashfs",
    "liblzma5": "for mksquashfs",
    "liblzo2-2": "for mksquashfs",
    "libxxhash0": "for liblz4-1",
    "libzstd1": "for mksquashfs",
    "ovmf": "firmware to boot it with where there is no other",
    "python3-pefile": "for ukify",
    "squashfs-tools": "mksquashfs",
    "systemd-ukify": "kernel, initrd and command line → one EFI program",
    "zlib1g": "for mksquashfs",
    "zstd": "the initrd's compression",
}
"""What only builds or starts it, and why."""

_LINE = re.compile(r"(?P<name>[a-z0-9][a-z0-9.+-]+) (?P<version>[0-9A-Za-z.:+~-]+) (?P<sha256>[0-9a-f]{64})")
_KERNEL_NAME = re.compile(r"linux-image-[0-9][a-z0-9.+~-]*-cloud-amd64")
_KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_HEADER = f"""\
# The Debian packages of the virtual machine, from {SUITE}: name, version, SHA-256 of the .deb file.
# packages.py tells what each is for. Written by `python -m image.vm lock`. A change is a new measurement.
"""


@dataclass(frozen=True, slots=True)
class Package:
    """One package, pinned."""

    name: str
    version: str
    sha256: str

    @property
    def purl(self) -> str:
        """Its package URL: github.com/package-url/purl-spec, type deb."""
        name, version = quote(self.name, safe=""), quote(self.version, safe="")
        return f"pkg:deb/debian/{name}@{version}?arch=amd64&distro={RELEASE}"

    @property
    def inside(self) -> bool:
        """Does something of it become part of the machine?"""
        return self.name in INSIDE or is_kernel(self.name)


@dataclass(frozen=True, slots=True)
class Tree:
    """All pinned packages, unpacked over one another."""

    root: Path
    packages: tuple[Package, ...]

    def file(self, path: str) -> Path:
        """A file of theirs, by its path below /. Raises `BadPackage`."""
        found = self.root / path
        if not found.exists():
            raise BadPackage(f"no pinned package has a file {path}: does packages.lock fit packages.py?")
        return found

    def program(self, path: str) -> list[str | Path]:
        """How to run a program of theirs with their libraries."""
        loader = self.file("usr/lib64/ld-linux-x86-64.so.2")
        return [loader, "--library-path", self.root / "usr/lib/x86_64-linux-gnu", self.file(path)]

    def package(self, name: str) -> Package:
        """The pinned package of this name; for `KERNEL` the kernel that is pinned."""
        for package in self.packages:
            if package.name == name or (name == KERNEL and is_kernel(package.name)):
                return package
        raise BadPackage(f"packages.lock does not name {name}; write it anew: python -m image.vm lock")

    @property
    def kernel(self) -> str:
        """The kernel's release, as `uname -r` prints it in the machine."""
        return self.package(KERNEL).name.removeprefix("linux-image-")


def is_kernel(name: str) -> bool:
    """Is this the name of a kernel of the kind we take?"""
    return _KERNEL_NAME.fullmatch(name) is not None


def cache() -> Path:
    """Where downloads and what was made of them are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "blindbox" / "vm"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def read(lock: Path = LOCK) -> tuple[Package, ...]:
    """The pinned packages. Raises `BadPackage` for a lock that is not one."""
    try:
        lines = lock.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadPackage(f"{lock} cannot be read: {error}") from error
    found: dict[str, Package] = {}
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise BadPackage(f"{lock}, line {number}: {line[:80]!r} is not NAME VERSION SHA256")
        package = Package(**match.groupdict())
        if found.setdefault(package.name, package) is not package:
            raise BadPackage(f"{lock}, line {number}: {package.name} was pinned before")
    return tuple(found.values())


def unpacked(lock: Path = LOCK) -> Tree:
    """
    The packages of the lock, unpacked in the cache.

    1. is there a tree of exactly these packages?          named by what the lock pins
    2. which of their files are in the cache and right?    by SHA-256
    3. fetch the others with apt, and look at their bytes
    4. unpack all beside the final name, then rename
    """
    packages = read(lock)
    pins = "".join(f"{one.name} {one.sha256}\n" for one in packages)
    tree = cache() / "trees" / hashlib.sha256(pins.encode()).hexdigest()[:24]
    if not tree.is_dir():  # 1
        files = cache() / "debs"
        files.mkdir(exist_ok=True)
        wanted = [one for one in packages if not _is_right(files / f"{one.sha256}.deb", one)]  # 2
        if wanted:
            with Apt() as apt:
                apt.fetch(wanted, files)  # 3
        tree.parent.mkdir(exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f"{tree.name}.", dir=tree.parent))  # 4
        try:
            for one in packages:
                programs.ours("dpkg-deb", "-x", files / f"{one.sha256}.deb", beside)
            beside.chmod(0o755)
            try:
                beside.rename(tree)
            except OSError:
                if not tree.is_dir():  # another build may have been faster
                    raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return Tree(tree, packages)


def write_lock(lock: Path = LOCK) -> tuple[Package, ...]:
    """Pin the newest version of every package, and give what is pinned now."""
    with Apt() as apt:
        kernel = apt.newest_kernel()
        packages = apt.newest([kernel if name == KERNEL else name for name in (*INSIDE, *OUTSIDE)])
    lines = [f"{one.name} {one.version} {one.sha256}\n" for one in sorted(packages, key=lambda one: one.name)]
    beside = lock.with_name(f"{lock.name}.part")
    beside.write_text(_HEADER + "".join(lines), "utf-8")
    beside.replace(lock)
    return read(lock)


class Apt:
    """
    apt with a state of its own that knows one suite and is gone afterwards.

    Debian is looked for where this machine's apt looks for its own release: the same archives, another suite.
    `DEBIAN_ARCHIVE=URL` names another archive, for a machine that is not Debian, or one of an earlier day
    that still has what the lock pins; apt checks its signature all the same.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="apt.", dir=cache()))

    def __enter__(self) -> Apt:
        try:
            for name in ("state/lists/partial", "cache/archives/partial"):
                (self._folder / name).mkdir(parents=True)
            (self._folder / "status").touch()
            (self._folder / "sources.list").write_text("".join(_sources()))
            self._run("apt-get", "update")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def newest_kernel(self) -> str:
        """The package that `KERNEL` stands for today."""
        depends = self._stanzas([KERNEL])[KERNEL].get("Depends", "")
        for name in re.split(r"[\s,|]+", depends):
            if is_kernel(name):
                return name
        raise BadPackage(f"{KERNEL} of {SUITE} depends on no kernel but on {depends!r}")

    def newest(self, names: Sequence[str]) -> list[Package]:
        """The newest version of each package."""
        stanzas = self._stanzas(names)
        return [Package(name, stanzas[name]["Version"], stanzas[name]["SHA256"]) for name in names]

    def fetch(self, packages: Iterable[Package], into: Path) -> None:
        """Download the packages as `SHA256.deb`. Raises `BadPackage`."""
        wanted = list(packages)
        beside = Path(tempfile.mkdtemp(prefix="fetched.", dir=into))
        try:
            self._run("apt-get", "download", *(f"{one.name}={one.version}" for one in wanted), folder=beside)
            for one in wanted:
                file = beside / f"{one.name}_{one.version.replace(':', '%3a')}_amd64.deb"
                if not file.exists():
                    file = beside / f"{one.name}_{one.version.replace(':', '%3a')}_all.deb"
                if not _is_right(file, one):
                    raise BadPackage(
                        f"{one.name} {one.version} was fetched and is not the file that packages.lock pins: "
                        f"it has SHA-256 {_sha256(file)}, pinned is {one.sha256}"
                    )
                file.replace(into / f"{one.sha256}.deb")
        except FailedProgram as failure:
            raise BadPackage(
                f"{failure}\nIs a pinned version gone? `python -m image.vm lock` pins the newest (a new "
                "measurement); DEBIAN_ARCHIVE=URL names an archive that still has the old one."
            ) from failure
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def _stanzas(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        """What the archive says of the newest version of each package."""
        shown = self._run("apt-cache", "show", "--no-all-versions", *names)
        found: dict[str, dict[str, str]] = {}
        for stanza in shown.split("\n\n"):
            fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", stanza, re.MULTILINE))
            if "Package" in fields:
                found[fields["Package"]] = fields
        missing = [name for name in names if not {"Version", "SHA256"} <= found.get(name, {}).keys()]
        if missing:
            raise BadPackage(f"{SUITE} has no {', '.join(missing)}")
        return found

    def _run(self, program: str, *arguments: str, folder: Path | None = None) -> str:
        options = {
            "Dir::State": self._folder / "state",
            "Dir::State::status": self._folder / "status",
            "Dir::Cache": self._folder / "cache",
            "Dir::Etc::sourcelist": self._folder / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "APT::Sandbox::User": "root",
            "APT::Default-Release": SUITE,
            "APT::Update::Error-Mode": "any",
            "Acquire::Languages": "none",
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return programs.ours(program, "-q", *words, *arguments, folder=folder)


def _sources() -> Iterable[str]:
    """The lines of a sources.list for our suite."""
    given = os.environ.get("DEBIAN_ARCHIVE")
    if given:
        return [_line(given, SUITE)]
    release = _codename()
    listed = programs.ours(
        *(
            "apt-get",
            "indextargets",
            "--format",
            "$(REPO_URI) $(RELEASE)",
            "Created-By: Packages",
        )
    )
    found = []
    for line in dict.fromkeys(listed.splitlines()):
        url, _, suite = line.rpartition(" ")
        if release is not None and suite in (release, f"{release}-updates", f"{release}-security"):
            found.append(_line(url, suite.replace(release, SUITE)))
    if not found:
        raise BadPackage(
            "apt on this machine does not know where Debian is to be had; DEBIAN_ARCHIVE=URL says it "
            "(the keys come with the package debian-archive-keyring)"
        )
    return found


def _codename() -> str | None:
    """The release of Debian that runs here; None where another system does."""
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        return None
    said = {name: value.strip('"') for name, _, value in (line.partition("=") for line in lines)}
    return said.get("VERSION_CODENAME") if said.get("ID") == "debian" else None


def _line(url: str, suite: str) -> str:
    if not re.fullmatch(r"(?:https?|file|copy|mirror(?:\+[a-z]+)?):/[!-Z^-~]+", url):
        raise BadPackage(f"{url[:80]!r} is not the URL of an archive")
    # Where the keyring has another place, apt's own keys are asked.
    keys = f"[signed-by={_KEYRING}] " if _KEYRING.is_file() else ""
    return f"deb {keys}{url} {suite} main\n"


def _is_right(file: Path, package: Package) -> bool:
    return file.is_file() and _sha256(file) == package.sha256


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as data:
            return hashlib.file_digest(data, "sha256").hexdigest()
    except OSError:
        return "none: there is no such file"
