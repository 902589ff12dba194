"""
The Debian packages that a machine is made of and with: named, pinned, fetched and unpacked, never installed.

`packages.lock` pins each by version and by the SHA-256 of its file. apt fetches them, with a state of its
own, from wherever this machine's apt fetches Debian: its sources are read for the place and stay as they are.
`python -m image.vm lock` writes the lock anew, which is how a kernel with a security fix comes in; that gives
a new measurement.

`image/firmware` builds from a lock of its own in the same way: it says so with `part`, which names the folder
in the cache and the command that writes the lock.
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
from .errors import BadPackage, FailedProgram, UnusableOutput

LOCK: Final = Path(__file__).with_name("packages.lock")
SUITE: Final = "trixie"  # its kernel is the first of Debian's with SEV-SNP and TDX reports for guests
RELEASE: Final = "debian-13"
PART: Final = "vm"  # whose packages these are, if nobody says
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
class SourceFile:
    """One file of a source package, pinned."""

    package: str
    version: str
    name: str
    sha256: str


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


def cache(part: str = PART) -> Path:
    """Where downloads and what was made of them are kept. Raises `UnusableOutput`."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "blindbox" / part
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnusableOutput(
            f"the cache {folder} cannot be made: {error.strerror}; XDG_CACHE_HOME=FOLDER names another place"
        ) from error
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
    2. which of their files are in the cache and right?    by SHA-256; apt fetches the others
    3. unpack all beside the final name, then rename
    """
    packages = read(lock)
    pins = "".join(f"{one.name} {one.sha256}\n" for one in packages)
    tree = cache() / "trees" / hashlib.sha256(pins.encode()).hexdigest()[:24]
    if not tree.is_dir():  # 1
        files = fetched(packages)  # 2
        tree.parent.mkdir(exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f"{tree.name}.", dir=tree.parent))  # 3
        try:
            unpack(packages, files, beside)
            beside.chmod(0o755)
            try:
                beside.rename(tree)
            except OSError:
                if not tree.is_dir():  # another build may have been faster
                    raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return Tree(tree, packages)


def fetched(packages: Iterable[Package], part: str = PART, *, suite: str = SUITE) -> Path:
    """The folder of the cache where each package lies as `SHA256.deb`: fetched, if it is not there yet."""
    files = cache(part) / "debs"
    files.mkdir(exist_ok=True)
    wanted = [one for one in packages if not is_right(files / f"{one.sha256}.deb", one.sha256)]
    if wanted:
        with Apt(part, suite=suite) as apt:
            apt.fetch(wanted, files)
    return files


def unpack(packages: Iterable[Package], files: Path, into: Path) -> None:
    """Unpack the packages over one another, in their order. None of their scripts is run."""
    for one in packages:
        programs.ours("dpkg-deb", "-x", files / f"{one.sha256}.deb", into)


def write_lock(lock: Path = LOCK) -> tuple[Package, ...]:
    """Pin the newest version of every package, and give what is pinned now."""
    with Apt() as apt:
        kernel = apt.newest_kernel()
        packages = apt.newest([kernel if name == KERNEL else name for name in (*INSIDE, *OUTSIDE)])
    write(lock, _HEADER, packages)
    return read(lock)


def write(lock: Path, header: str, packages: Iterable[Package]) -> None:
    """Write a lock that `read` reads."""
    lines = [f"{one.name} {one.version} {one.sha256}\n" for one in sorted(packages, key=lambda one: one.name)]
    beside = lock.with_name(f"{lock.name}.part")
    beside.write_text(header + "".join(lines), "utf-8")
    beside.replace(lock)


class Apt:
    """
    apt with a state of its own that knows one suite and is gone afterwards.

    Debian is looked for where this machine's apt looks for its own release: the same archives, another suite.
    `DEBIAN_ARCHIVE=URL` names another archive, for a machine that is not Debian, or one of an earlier day
    that still has what the lock pins; apt checks its signature all the same.
    """

    def __init__(self, part: str = PART, *, suite: str = SUITE, sources: bool = False) -> None:
        self._part = part
        self._suite = suite
        self._sources = sources  # know source packages, too
        self._folder = Path(tempfile.mkdtemp(prefix="apt.", dir=cache(part)))

    def __enter__(self) -> Apt:
        try:
            for name in ("state/lists/partial", "cache/archives/partial"):
                (self._folder / name).mkdir(parents=True)
            (self._folder / "status").touch()
            lines = list(_sources(self._suite))
            if self._sources:
                lines += [f"deb-src {line.removeprefix('deb ')}" for line in lines]
            (self._folder / "sources.list").write_text("".join(lines))
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
        raise BadPackage(f"{KERNEL} of {self._suite} depends on no kernel but on {depends!r}")

    def newest(self, names: Sequence[str]) -> list[Package]:
        """The newest version of each package."""
        stanzas = self._stanzas(names)
        return [Package(name, stanzas[name]["Version"], stanzas[name]["SHA256"]) for name in names]

    def with_what_they_need(self, names: Sequence[str]) -> list[str]:
        """The packages and all that they depend on, as apt would install them on an empty machine."""
        told = self._run("apt-get", "--simulate", "install", "--no-install-recommends", *names)
        return re.findall(r"^Inst ([^\s:]+)", told, re.MULTILINE)

    def newest_source(self, package: str) -> list[SourceFile]:
        """The tarballs of the newest version of a source package."""
        told = self._run("apt-get", "source", "--print-uris", package)
        version = re.search(r"^Selected version '([^']+)'", told, re.MULTILINE)
        files = re.findall(r"^'[^']+' (\S+\.tar\.\S+) [0-9]+ SHA256:([0-9a-f]{64})$", told, re.MULTILINE)
        if version is None or not files:
            raise BadPackage(f"{self._suite} has no source of {package}")
        return [SourceFile(package, version[1], name, sha256) for name, sha256 in files]

    def fetch_source(self, files: Sequence[SourceFile], into: Path) -> None:
        """Download the files of a source package as `SHA256`. Raises `BadPackage`."""
        beside = Path(tempfile.mkdtemp(prefix="fetched.", dir=into))
        try:
            for one in files:
                # One by one: the .dsc, which comes with both, tells nothing that the lock does not.
                kind = "--diff-only" if ".debian.tar." in one.name else "--tar-only"
                pinned = f"{one.package}={one.version}"
                self._run("apt-get", "source", "--download-only", kind, pinned, folder=beside)
            for one in files:
                if not is_right(beside / one.name, one.sha256):
                    raise BadPackage(
                        f"{one.name} was fetched and is not the file that the lock pins: it has SHA-256 "
                        f"{_sha256(beside / one.name)}, pinned is {one.sha256}"
                    )
                (beside / one.name).replace(into / one.sha256)
        except FailedProgram as failure:
            raise BadPackage(self._gone(failure)) from failure
        finally:
            shutil.rmtree(beside, ignore_errors=True)

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
                if not is_right(file, one.sha256):
                    raise BadPackage(
                        f"{one.name} {one.version} was fetched and is not the file that packages.lock pins: "
                        f"it has SHA-256 {_sha256(file)}, pinned is {one.sha256}"
                    )
                file.replace(into / f"{one.sha256}.deb")
        except FailedProgram as failure:
            raise BadPackage(self._gone(failure)) from failure
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def _gone(self, failure: FailedProgram) -> str:
        return (
            f"{failure}\nIs a pinned version gone? `python -m image.{self._part} lock` pins the newest (a "
            "new measurement); DEBIAN_ARCHIVE=URL names an archive that still has the old one."
        )

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
            raise BadPackage(f"{self._suite} has no {', '.join(missing)}")
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
            "APT::Default-Release": self._suite,
            "APT::Update::Error-Mode": "any",
            "Acquire::Languages": "none",
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return programs.ours(program, "-q", *words, *arguments, folder=folder)


def _sources(wanted: str) -> Iterable[str]:
    """The lines of a sources.list for a suite."""
    given = os.environ.get("DEBIAN_ARCHIVE")
    if given:
        return [_line(given, wanted)]
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
            found.append(_line(url, suite.replace(release, wanted)))
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


def is_right(file: Path, sha256: str) -> bool:
    """Is it there, with the bytes that are pinned?"""
    return file.is_file() and _sha256(file) == sha256


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as data:
            return hashlib.file_digest(data, "sha256").hexdigest()
    except OSError:
        return "none: there is no such file"
