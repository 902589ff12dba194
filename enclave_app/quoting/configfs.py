"""
AMD SEV-SNP reports and Intel TDX quotes through the kernel's configfs-tsm interface.

Sources: Linux Documentation/ABI/testing/configfs-tsm-report (kernel 6.7 or later); the certificate table of
the extended guest request, AMD 56421 "SEV-ES Guest-Hypervisor Communication Block Standardization" §4.1.8.1.
The host fills that table as it likes and need not fill it at all; an operator's folder of certificates
completes it. A TDX quote is made by the host's quoting service and may take seconds.
"""

from __future__ import annotations

import errno
import secrets
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import UUID

from blindbox_attestation.binding import Bound, report_data

from . import Quote, QuoteUnavailable
from .endorsements import der, read_endorsements, read_event_log, together

LAID_READY: Final = "blindbox"
"""An entry that root made before this process began, and whose inputs belong to this process's user: what is
in an entry belongs to root, whoever made it. Without this one entries are made, which takes root's rights."""

TSM_REPORTS: Final = Path("/sys/kernel/config/tsm/report")
CCEL: Final = Path("/sys/firmware/acpi/tables/data/CCEL")
PLATFORMS: Final[Mapping[str, str]] = {"sev_guest": "sev-snp", "tdx_guest": "tdx"}
"""What the kernel calls the provider → the platform's name in a document."""

ATTEMPTS: Final = 5
PATIENCE: Final = 60.0  # seconds after which a busy interface is no longer asked again
PAUSE: Final = 0.1  # before it is asked again the first time; doubled each time

CERTIFICATES: Final = {
    UUID("63da758d-e664-4564-adc5-f4b93be8accd"): "vcek",
    UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1"): "vlek",
    UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782"): "ask",
    UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae"): "ark",
    UUID("92f81bc3-5811-4d3d-97ff-d19f88dc67ea"): "crl",
}
_ENTRY = struct.Struct("<16sII")
_RACED = frozenset({errno.EBUSY, errno.EWOULDBLOCK, errno.EAGAIN, errno.EINTR})
_NEEDED: Final = {
    "sev-snp": "an SEV-SNP guest with Linux 6.7 or later is needed, with configfs mounted and the sev-guest "
    "module loaded",
    "tdx": "a TDX guest with Linux 6.7 or later is needed, with configfs mounted and the tdx-guest module "
    "loaded",
}


class Tree:
    """The five things done to configfs, so that a test can stand in for the kernel behind real files."""

    def make(self, entry: Path) -> None:
        entry.mkdir()

    def remove(self, entry: Path) -> None:
        entry.rmdir()

    def names(self, entry: Path) -> set[str]:
        return {path.name for path in entry.iterdir()}

    def read(self, attribute: Path) -> bytes:
        return attribute.read_bytes()

    def write(self, attribute: Path, value: bytes) -> None:
        # One write(2): the kernel takes each as a whole value.
        with attribute.open("wb", buffering=0) as file:
            file.write(value)


def provider(root: Path = TSM_REPORTS, tree: Tree | None = None) -> str | None:
    """Which technology answers under `root`: "sev_guest", "tdx_guest", …; None where nothing does."""
    tree = tree or Tree()
    try:
        # ENXIO where the interface exists and no hardware stands behind it
        with _entry(root, tree) as entry:
            return tree.read(entry / "provider").decode("ascii", "replace").strip()
    except OSError:
        return None


_one_at_a_time = threading.Lock()


@contextmanager
def _entry(root: Path, tree: Tree) -> Iterator[Path]:
    """The entry that was laid ready, for one asker at a time, or else one of our own that goes afterwards."""
    if LAID_READY in tree.names(root):
        with _one_at_a_time:
            yield root / LAID_READY
        return
    entry = root / f"blindbox-{secrets.token_hex(8)}"
    tree.make(entry)
    try:
        yield entry
    finally:
        tree.remove(entry)


class ConfigfsQuoter:
    """
    One report a call, each in an entry of its own.

    `privlevel` is the VMPL to ask for (None: the kernel's choice, which is the one it runs at).
    A file in `endorsements_dir` wins over the host's table; `event_log` is where a TDX guest finds its CCEL.
    The kernel bounds each wait for an answer by itself (TDX 30 s, SEV-SNP 60 s); `patience` bounds how long
    a busy interface is asked again.
    """

    def __init__(
        self,
        root: Path = TSM_REPORTS,
        endorsements_dir: Path | None = None,
        *,
        platform: str = "sev-snp",
        privlevel: int | None = None,
        tree: Tree | None = None,
        event_log: Path = CCEL,
        patience: float = PATIENCE,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.platform = platform
        self._root = root
        self._endorsements_dir = endorsements_dir
        self._privlevel = privlevel
        self._tree = tree or Tree()
        self._event_log = event_log
        self._patience = patience
        self._sleep = sleep

    def check(self) -> None:
        """Raise now, with a reason, if this machine cannot answer."""
        found = provider(self._root, self._tree)
        if found is None:
            raise QuoteUnavailable(f"no attestation provider under {self._root}: {_NEEDED[self.platform]}")
        self._refuse_unless_ours(found)

    def quote(self, bound: Bound) -> Quote:
        """
        Ask for a report over B (SPEC §2.1).

        1. make an entry, or take the one laid ready       a kernel object of ours alone
        2. see that the right hardware answers             `provider`
        3. note `generation`, write the options, read      `privlevel`, `inblob` → `outblob`, `auxblob`
        4. see that `generation` moved by our writes only  else another writer raced: again, at most 5 times
        5. remove the entry we made, whatever happened
        """
        data, pause = report_data(bound.digest), PAUSE
        deadline = time.monotonic() + self._patience
        try:
            for _ in range(ATTEMPTS):
                answer = self._ask(data)
                if answer is not None:
                    report, table = answer
                    return Quote(report, self._endorsements(table))
                if time.monotonic() + pause > deadline:
                    break
                self._sleep(pause)
                pause *= 2
        except OSError as error:
            raise QuoteUnavailable(
                f"asking {self._root} for a report failed: {error.strerror}"
                + (". Does the host's quoting service run?" if error.errno == errno.ETIMEDOUT else "")
            ) from error
        raise QuoteUnavailable(
            f"{self._root} was busy, or written to by another process, in each of {ATTEMPTS} attempts"
        )

    def _ask(self, data: bytes) -> tuple[bytes, bytes] | None:
        with _entry(self._root, self._tree) as entry:  # 1, 5
            try:
                return self._ask_at(entry, data)
            except OSError as error:
                if error.errno in _RACED:
                    return None
                raise

    def _ask_at(self, entry: Path, data: bytes) -> tuple[bytes, bytes] | None:
        tree = self._tree
        self._refuse_unless_ours(tree.read(entry / "provider").decode("ascii", "replace").strip())  # 2
        before = int(tree.read(entry / "generation"))  # 3
        writes = 1
        if self._privlevel is not None:
            tree.write(entry / "privlevel", str(self._privlevel).encode())
            writes += 1
        tree.write(entry / "inblob", data)
        report = tree.read(entry / "outblob")
        table = tree.read(entry / "auxblob") if "auxblob" in tree.names(entry) else b""
        if int(tree.read(entry / "generation")) != before + writes:  # 4
            return None
        return report, table

    def _refuse_unless_ours(self, found: str) -> None:
        if PLATFORMS.get(found) != self.platform:
            (wanted,) = (name for name, platform in PLATFORMS.items() if platform == self.platform)
            raise QuoteUnavailable(
                f"{self._root} is answered by {found!r}, and not by {wanted!r} as {self.platform} needs"
            )

    def _endorsements(self, table: bytes) -> Mapping[str, bytes]:
        laid_ready = read_endorsements(self._endorsements_dir)
        if self.platform == "tdx":  # the table is AMD's
            return together(read_event_log(self._event_log), laid_ready)
        found = read_certificate_table(table)
        # Hosts that lease keys file the VLEK's issuer under the GUID of the ASK: there is none for the ASVK.
        if "vlek" in found and "ask" in found:
            found.setdefault("asvk", found["ask"])
        return together(found, laid_ready)


def read_certificate_table(table: bytes) -> dict[str, bytes]:
    """
    The certificates of `auxblob`, in DER, by our names for them. Unknown GUIDs are passed over.

    The table is the host's word: an entry that points outside it is refused, everything else is verified by
    the client. GUIDs are met in both byte orders, for AMD's tools and the hypervisors spell them differently.
    """
    found: dict[str, bytes] = {}
    for at in range(0, len(table) - _ENTRY.size + 1, _ENTRY.size):
        guid, offset, length = _ENTRY.unpack_from(table, at)
        if guid == bytes(16):
            return found
        if offset + length > len(table):
            raise QuoteUnavailable(
                f"the host's certificate table points to {offset}+{length} of {len(table)} bytes"
            )
        name = CERTIFICATES.get(UUID(bytes=guid)) or CERTIFICATES.get(UUID(bytes_le=guid))
        if name is not None and length:
            found[name] = der(table[offset : offset + length])
    if any(table):
        raise QuoteUnavailable("the host's certificate table has no end")
    return found
