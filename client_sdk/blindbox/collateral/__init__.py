"""
What vendors publish about a machine, fetched ahead of verification: the only calls to third parties.

A machine sends with its evidence what its vendor has published about it, or as much of it as it has.
`complete` looks at what is missing and fetches that; what was sent is preferred, and both are verified
alike. A request goes to the vendor's own address, or to one that the user has given, and never to one that
came from the machine: of what that sends, only validated numbers become part of an address. What cannot be
had in time is missing, and `verify` says what that means. Where things are published: `amd_kds.py`,
`intel_pcs.py`; how they are kept: `cache.py`.

    requests.Session(policy)                                          # AMD and Intel are asked
    requests.Session(policy, collateral=Collateral(intel="https://pccs.example:8081"))
    requests.Session(policy, collateral=None)                         # nobody is asked, ever
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import urlsplit

from blindbox_attestation.azure import hcl
from blindbox_attestation.azure.evidence import AzureEvidence
from blindbox_attestation.errors import AttestationError
from blindbox_attestation.evidence import (
    AZURE_SNP,
    AZURE_TDX,
    COLLATERAL,
    SEV_SNP,
    TDX,
    AttestationDocument,
)
from blindbox_attestation.platforms import PLATFORMS
from blindbox_attestation.policy import AllOf, AnyOf, Policy
from blindbox_attestation.roots import AMD_ROOTS, INTEL_ROOTS
from blindbox_attestation.simulated import UnsafeSimulatedPolicy
from blindbox_attestation.snp.policy import SnpPolicy
from blindbox_attestation.snp.report import KEY_NAMES, Report
from blindbox_attestation.snp.tcb import FAMILIES
from blindbox_attestation.tdx.claims import TdxClaims
from blindbox_attestation.tdx.policy import TdxPolicy
from blindbox_attestation.tdx.quote import Quote
from blindbox_attestation.verify import AnyPolicy, Verified, verify
from blindbox_attestation.x509 import Certificate

from .. import places
from ..errors import CollateralUnavailable
from . import amd_kds
from .cache import Cache, Published, WrongContent
from .download import Answer, Unavailable
from .floors import Floors

T = TypeVar("T")

DEADLINE: Final = 10.0
"""Seconds that everything which is missing for one proof may take together."""

_MISSING: Final = frozenset({"missing-endorsement", "crl-missing"})
_INTERMEDIATE: Final = {"vcek": "ask", "vlek": "asvk"}


Watch: TypeAlias = Callable[[AnyPolicy, Mapping[str, bytes]], None]
"""Is told by which policy, and with what beside it, a document is to be judged."""


class Fetched(dict[str, bytes]):
    """
    What was missing and could be had, by the names of SPEC §2; `failures` tells, for people, what could
    not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[str] = []


class Collateral:
    """
    Asks AMD and Intel what they have published about a machine. Safe in many threads; one is enough for a
    process.

    `amd` and `intel` are addresses of mirrors of the user's own (of Intel's service usually a PCCS). What a
    mirror says is verified like everything else, so it can be old, or silent, but it cannot lie. A policy
    that has roots of its own has no vendor to ask: only a mirror that was given is asked for it. `tls` is
    what `verify=` is in `requests`, for these calls alone. Kept files are in `collateral/` beside the
    user's policies, or in a `folder` that is given.
    """

    def __init__(
        self,
        *,
        amd: str | None = None,
        intel: str | None = None,
        deadline: float = DEADLINE,
        tls: bool | str = True,
        folder: Path | None = None,
    ) -> None:
        if not deadline > 0:
            raise ValueError(f"a deadline of {deadline} seconds leaves no time to ask anybody")
        self._amd = None if amd is None else _address(amd)
        self._intel = None if intel is None else _address(intel)
        self._deadline = deadline
        home: Callable[[], Path] = places.home if folder is None else lambda: folder
        self._cache = Cache(lambda: home() / "collateral", tls=tls)
        self._floors = Floors(lambda: home() / "floors.json")

    def __repr__(self) -> str:
        given = [f"{name}={value!r}" for name, value in (("amd", self._amd), ("intel", self._intel)) if value]
        return f"Collateral({', '.join(given)})"

    def verify(
        self,
        document: bytes,
        policy: AnyPolicy,
        *,
        nonce: bytes,
        now: datetime,
        watch: Watch = lambda policy, fetched: None,
    ) -> tuple[Verified, Mapping[str, bytes]]:
        """
        `verify`, with what is missing fetched, and with Intel's evaluation data number never going down.

        1. verify what was sent                                                     SPEC §4
        2. if that is refused, fetch what is missing, and verify with it
        3. if an earlier proof has shown a newer evaluation than this, ask for that    `floors.py`
        4. remember what this proof has shown

        Returns what was proved, and what had been fetched for it. Raises `AttestationError`; as
        `CollateralUnavailable` if something could not be fetched and is missed. Most machines send
        everything, so fetching comes second: nothing is read twice, and nobody is asked, if there is no
        need. `watch` is told each time that the document is to be judged by something else than `policy`
        and what was sent.
        """
        fetched = Fetched()
        try:
            verified = verify(document, policy, nonce=nonce, now=now)  # 1
        except AttestationError as refusal:
            fetched = self.complete(document, policy, now=now)  # 2
            if not fetched:
                _explain(refusal, fetched.failures)
                raise
            watch(policy, fetched)
            try:
                verified = verify(document, policy, nonce=nonce, now=now, collateral=fetched)
            except AttestationError as still:
                _explain(still, fetched.failures)
                raise
        shown = _shown(verified)
        if shown is not None:
            platform, number = shown
            floor = self._floors.of(platform)
            if number < floor and not isinstance(policy, UnsafeSimulatedPolicy):
                stricter = policy.with_tcb_evaluation_floor(floor)
                watch(stricter, fetched)
                verified = verify(document, stricter, nonce=nonce, now=now, collateral=fetched)  # 3
            else:
                self._floors.lift(platform, number)  # 4
        return verified, fetched

    def complete(self, document: bytes, policy: AnyPolicy, *, now: datetime) -> Fetched:
        """
        What is missing beside the evidence in `document`, for `verify(…, collateral=…)`: kept, or fetched
        by now.

        Empty if nothing is missing, or if nobody has published what is. Never raises for anything that a
        machine or a server sends.
        """
        fetched = Fetched()
        if isinstance(policy, UnsafeSimulatedPolicy):
            return fetched
        try:
            claimed = AttestationDocument.parse(document)
            complete = _COMPLETE.get(claimed.platform)
            platform = PLATFORMS.get(claimed.platform)
            wishes = list(_wishes(policy, platform.key)) if platform is not None else []
            if complete is not None and wishes:
                complete(_Search(self, claimed, wishes, now, fetched))
        except AttestationError:
            pass  # it cannot be read: `verify` tells what is wrong with it
        except WrongContent as why:
            fetched.failures.append(f"nobody could be asked for it: {why}")
        return fetched


class _Search:
    """One proof's missing pieces: what is asked of whom, until when."""

    def __init__(
        self,
        collateral: Collateral,
        claimed: AttestationDocument,
        wishes: Sequence[Any],
        now: datetime,
        fetched: Fetched,
    ) -> None:
        self.claimed, self.wishes, self.now, self.fetched = claimed, wishes, now, fetched
        self.amd, self.intel = collateral._amd, collateral._intel
        self._cache = collateral._cache
        self._until = time.monotonic() + collateral._deadline

    def sent_or_fetched(self, name: str) -> bytes | None:
        return self.claimed.endorsements.get(name) or self.fetched.get(name)

    def ask(self, item: Published) -> Answer | None:
        try:
            return self._cache.get(item, now=self.now, until=self._until)
        except Unavailable as why:
            self.fetched.failures.append(f"{item.what} could not be had from {_host(item.url)}: {why}")
            return None


# ── AMD ───────────────────────────────────────────────────────────────────────────────────────────────────


def _complete_amd(search: _Search) -> None:
    wishes = _all_held(search.wishes, SnpPolicy)
    if not search.amd:
        wishes = [one for one in wishes if one.roots.items() <= AMD_ROOTS.items()]
    if not wishes:
        return
    sent = search.claimed.endorsements
    report = Report.parse(_snp_report(search.claimed))
    leaf = KEY_NAMES.get(report.signing_key, "")
    wanted = {leaf, _INTERMEDIATE.get(leaf, ""), "ark"}
    if any(one.revocation == "required" for one in wishes):
        wanted.add("crl")
    missing = wanted - set(sent)
    if not leaf or not missing:
        return
    roots = {fingerprint: family for one in wishes for fingerprint, family in one.roots.items()}
    family = _family(report, sent, wishes)
    address = search.amd or amd_kds.ADDRESS
    if missing & {"ark", _INTERMEDIATE[leaf]}:
        answer = search.ask(amd_kds.issuers(address, leaf, family, roots))
        if answer is None:
            return  # without them, nothing else could be told from what is not genuine
        intermediate, root = amd_kds.read_issuers(answer, leaf)
        for name, certificate in ((_INTERMEDIATE[leaf], intermediate), ("ark", root)):
            if name in missing:
                search.fetched[name] = certificate.der
    issuers = {name: search.sent_or_fetched(name) or b"" for name in (_INTERMEDIATE[leaf], "ark")}
    root = Certificate.parse(issuers["ark"], "ark")
    if not amd_kds.is_pinned(root, family, roots):
        return
    if "vcek" in missing:
        answer = search.ask(amd_kds.chip_certificate(address, family, report, issuers, roots))
        if answer is not None:
            search.fetched["vcek"] = answer.body
    elif "vlek" in missing:
        search.fetched.failures.append(
            "AMD publishes no VLEK certificates: the cloud provider hands them to the machine"
        )
    if "crl" in missing:
        answer = search.ask(amd_kds.revocation_list(address, leaf, family, root))
        if answer is not None:
            search.fetched["crl"] = answer.body


def _snp_report(claimed: AttestationDocument) -> bytes:
    if claimed.platform == SEV_SNP:
        return claimed.evidence
    return AzureEvidence.parse(claimed.evidence, hcl.SNP).hcl.report


def _family(report: Report, sent: Mapping[str, bytes], wishes: Sequence[SnpPolicy]) -> str:
    """The processor family, out of the fixed list: what the report says, or the only one that is accepted."""
    if report.family is not None:
        if report.family not in FAMILIES:
            raise WrongContent(f"no certificates are published for {report.family!a}")
        return report.family
    # A version 2 report does not say; then its certificates do.
    for name, prefix in (("ark", "ARK-"), ("ask", "SEV-"), ("asvk", "SEV-VLEK-")):
        if name in sent:
            family = Certificate.parse(sent[name], name).common_name.removeprefix(prefix)
            if family in FAMILIES:
                return family
    accepted = {family for one in wishes for family in one.minimum_tcb} & set(FAMILIES)
    if len(accepted) != 1:
        raise WrongContent("neither the report nor what came with it names the processor family")
    return accepted.pop()


# ── Intel ─────────────────────────────────────────────────────────────────────────────────────────────────


def _complete_intel(search: _Search) -> None:
    from . import intel_pcs

    if COLLATERAL in search.claimed.endorsements:
        return
    wishes = _all_held(search.wishes, TdxPolicy)
    if not search.intel:
        wishes = [one for one in wishes if one.roots.items() <= INTEL_ROOTS.items()]
    if not wishes:
        return
    roots = {fingerprint for one in wishes for fingerprint in one.roots}
    fmspc, authority = intel_platform(search.claimed)
    address = search.intel or intel_pcs.ADDRESS
    tcb = search.ask(intel_pcs.tcb_info(address, fmspc, roots))
    qe = search.ask(intel_pcs.qe_identity(address, roots)) if tcb else None
    pck = search.ask(intel_pcs.pck_list(address, authority, roots)) if qe else None
    root = search.ask(intel_pcs.root_list(address, pck)) if pck else None
    if tcb and qe and pck and root:
        search.fetched[COLLATERAL] = intel_pcs.collateral(tcb=tcb, qe=qe, pck=pck, root=root)


def intel_platform(claimed: AttestationDocument) -> tuple[str, str]:
    """
    FMSPC and PCK authority of the platform that the quote says it is from. Raises `AttestationError` or
    `WrongContent`.
    """
    from . import intel_pcs

    return intel_pcs.platform_of(Quote.parse(_tdx_quote(claimed)).pck_chain)


def _tdx_quote(claimed: AttestationDocument) -> bytes:
    if claimed.platform == TDX:
        return claimed.evidence
    return AzureEvidence.parse(claimed.evidence, hcl.TDX).td_quote


_COMPLETE: Final[Mapping[str, Callable[[_Search], None]]] = {
    SEV_SNP: _complete_amd,
    AZURE_SNP: _complete_amd,
    TDX: _complete_intel,
    AZURE_TDX: _complete_intel,
}


# ── policies, documents, words ────────────────────────────────────────────────────────────────────────────


def _wishes(policy: AnyPolicy, key: str) -> Iterator[Any]:
    """What the policies in a policy ask of this platform."""
    if isinstance(policy, Policy):
        if (part := policy.part(key)) is not None:
            yield part
    elif isinstance(policy, AnyOf | AllOf):
        for one in policy.policies:
            yield from _wishes(one, key)


def _held(value: Any, kind: type[T]) -> T | None:
    """A processor's policy or claims: the value itself, or what Azure's has of it beside the TPM's."""
    if isinstance(value, kind):
        return value
    held = (getattr(value, field.name) for field in fields(value))
    return next((one for one in held if isinstance(one, kind)), None)


def _all_held(values: Sequence[Any], kind: type[T]) -> list[T]:
    return [held for value in values if (held := _held(value, kind)) is not None]


def _shown(verified: Verified) -> tuple[str, int] | None:
    """The evaluation of Intel's that a proof relies on: FMSPC and number."""
    if verified.platform not in (TDX, AZURE_TDX):
        return None
    claims = _held(verified.claims, TdxClaims)
    return None if claims is None else (claims.fmspc.hex().upper(), claims.tcb_evaluation)


def _explain(refusal: AttestationError, failures: Sequence[str]) -> None:
    """Say what could not be had: as the reason, if something is missing, or else in a note beside it."""
    if not failures:
        return
    tried = "; ".join(failures)
    if refusal.code not in _MISSING:
        refusal.add_note(f"Besides: {tried}.")
        return
    error = CollateralUnavailable(
        f"{refusal}, and {tried}. Let the machine send it, name a mirror (blindbox.Collateral), "
        "or try again later",
        code=refusal.code,
    )
    error.steps = refusal.steps
    raise error from refusal


def _address(url: str) -> str:
    """A mirror's address, as a prefix of what is asked there."""
    parts = urlsplit(url)
    odd = parts.query or parts.fragment or parts.username is not None or parts.password is not None
    if parts.scheme not in ("http", "https") or not parts.hostname or odd:
        raise ValueError(f"a mirror is given as https://HOST[:PORT][/PATH], not {url!a}")
    return url.rstrip("/")


def _host(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


class _Nobody(Collateral):
    """Asks nobody. What earlier proofs have shown counts all the same."""

    def complete(self, document: bytes, policy: AnyPolicy, *, now: datetime) -> Fetched:
        return Fetched()


SHARED: Final = Collateral()
"""For everybody who does not bring one: AMD's and Intel's own services."""

NOBODY: Final = _Nobody()
"""For `collateral=None`."""
