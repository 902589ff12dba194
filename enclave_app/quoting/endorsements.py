"""
What travels with evidence: the operator's files, the firmware's log, and how much of it there is room for.

Everything here is verified by the client or unused (SPEC §2); nothing is judged.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from blindbox_attestation.evidence import AK_CHAIN, CERTIFICATES, COLLATERAL, EVENT_LOG, MAX_ENDORSEMENTS

from . import QuoteUnavailable

FILES: Final[Mapping[str, str]] = {
    **{name: f"{name}.der" for name in (*CERTIFICATES, AK_CHAIN)},
    COLLATERAL: "collateral.json",
}
MAX_FILE: Final = 64 * 1024
MAX_EVENT_LOG: Final = 96 * 1024

_PADDING: Final = b"\xff"
_END_OF_LOG: Final = 16  # bytes of padding that stay: the log's last event may end in such bytes itself
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,32})-----([A-Za-z0-9+/=\s]*)-----END \1-----")


def read_endorsements(folder: Path | None) -> dict[str, bytes]:
    """
    What the operator laid ready: `<name>.der` for each name of SPEC §2 that is there, and `collateral.json`.

    Read at each quote, so that a list or a collateral can be renewed without a restart.
    """
    if folder is None:
        return {}
    found: dict[str, bytes] = {}
    for name, file in FILES.items():
        path = folder / file
        if path.is_file():
            if path.stat().st_size > MAX_FILE:
                raise QuoteUnavailable(f"{path} is larger than {MAX_FILE} bytes")
            found[name] = path.read_bytes() if name == COLLATERAL else der(path.read_bytes())
    return found


def read_event_log(path: Path) -> dict[str, bytes]:
    """
    The log of this boot, if the machine keeps one that can be read and carried.

    It is left out otherwise: whether it is needed is for the client's policy to say. ACPI keeps the log of a
    confidential guest in an area filled up with FF bytes, of which a few are kept as its end.
    """
    try:
        with path.open("rb") as file:
            log = file.read(1 << 20)
    except OSError:
        return {}
    end = len(log.rstrip(_PADDING))
    log = log[: end + _END_OF_LOG]
    return {EVENT_LOG: log} if end and len(log) <= MAX_EVENT_LOG else {}


def together(*parts: Mapping[str, bytes]) -> dict[str, bytes]:
    """All parts, the later ones over the earlier; more than a document holds is refused here."""
    found: dict[str, bytes] = {}
    for part in parts:
        found |= part
    size = sum(map(len, found.values()))
    if size > MAX_ENDORSEMENTS:
        sizes = ", ".join(f"{name} {len(value)}" for name, value in found.items())
        raise QuoteUnavailable(
            f"the endorsements are {size} bytes, a document holds {MAX_ENDORSEMENTS}: {sizes}"
        )
    return found


def der(certificate: bytes) -> bytes:
    """Some hosts and operators provision PEM; the document carries DER."""
    if not certificate.lstrip().startswith(b"-----BEGIN "):
        return certificate
    return b"".join(from_pem(certificate))


def from_pem(text: bytes) -> list[bytes]:
    """The DER of each certificate or list in a PEM text, in its order."""
    found = [_decoded(match[2]) for match in _PEM.finditer(text)]
    if not found:
        raise QuoteUnavailable("a certificate in PEM cannot be read")
    return found


def _decoded(body: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(body.split()), validate=True)
    except ValueError as error:
        raise QuoteUnavailable("a certificate in PEM cannot be read") from error
