"""
The platforms that can prove themselves, by the name they have in a document (SPEC §2).

Each has a package of its own with the same words in it: `authenticate` (is it genuine? steps 3 to 7),
`judge` (is it acceptable? steps 9 to 13), claims and a policy. What is said here is which package that
is, which key of a policy speaks about it, and who has to be trusted if its proof is to mean anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, Protocol

from . import azure, gcp, nitro, snp, tdx, vtpm
from .binding import Bound
from .evidence import AZURE_SNP, AZURE_TDX, CONFIDENTIAL_SPACE, NITRO, SEV_SNP, SIMULATED, TDX, TPM


class Claims(Protocol):
    """
    What genuine evidence says. Each platform has a type of its own; these three things are in all of
    them.
    """

    @property
    def measurement(self) -> bytes:
        """The one value that names the program that was launched."""
        ...

    def speaks_for(self, bound: Bound) -> bool:
        """Whether the evidence was made for this key and this question; compared in constant time."""
        ...

    def carries(self, value: bytes) -> bool:
        """Whether the evidence was made for exactly this value (for evidence outside a document)."""
        ...


@dataclass(frozen=True, slots=True)
class Platform:
    """One way for a machine to prove itself."""

    name: str  # in a document
    key: str  # in a policy
    title: str  # for people
    trusts: tuple[str, ...]  # who has to be honest besides the program itself
    tee: bool  # whether the host is kept out by hardware
    authenticate: Callable[..., Any]  # (evidence, endorsements, policy, *, now, walk) -> Claims
    judge: Callable[..., None]  # (claims, policy, *, walk)
    endorsements: frozenset[str]  # what may come with the evidence, or be fetched for it


_ALL: Final = (
    Platform(
        name=SEV_SNP,
        key="snp",
        title="AMD SEV-SNP",
        trusts=("AMD",),
        tee=True,
        authenticate=snp.authenticate,
        judge=snp.judge,
        endorsements=frozenset({"vcek", "vlek", "ask", "asvk", "ark", "crl"}),
    ),
    Platform(
        name=TDX,
        key="tdx",
        title="Intel TDX",
        trusts=("Intel",),
        tee=True,
        authenticate=tdx.authenticate,
        judge=tdx.judge,
        endorsements=frozenset({"collateral", "event_log"}),
    ),
    Platform(
        name=AZURE_SNP,
        key="azure_snp",
        title="Azure confidential VM on AMD SEV-SNP",
        trusts=("AMD", "Microsoft, for the paravisor and its TPM"),
        tee=True,
        authenticate=azure.authenticate_snp,
        judge=azure.judge_snp,
        endorsements=frozenset({"vcek", "ask", "ark", "crl", "event_log", "ak_chain"}),
    ),
    Platform(
        name=AZURE_TDX,
        key="azure_tdx",
        title="Azure confidential VM on Intel TDX",
        trusts=("Intel", "Microsoft, for the paravisor and its TPM"),
        tee=True,
        authenticate=azure.authenticate_tdx,
        judge=azure.judge_tdx,
        endorsements=frozenset({"collateral", "event_log", "ak_chain"}),
    ),
    Platform(
        name=CONFIDENTIAL_SPACE,
        key="gcp",
        title="Google Confidential Space: Google's verdict, not the hardware's evidence",
        trusts=("Google",),
        tee=True,
        authenticate=gcp.authenticate,
        judge=gcp.judge,
        endorsements=frozenset(),
    ),
    Platform(
        name=NITRO,
        key="nitro",
        title="AWS Nitro Enclaves",
        trusts=("AWS",),
        tee=True,
        authenticate=nitro.authenticate,
        judge=nitro.judge,
        endorsements=frozenset(),
    ),
    Platform(
        name=TPM,
        key="tpm",
        title="the TPM of an ordinary machine: the host can look inside",
        trusts=("the hypervisor and its operator", "whoever vouches for the TPM's key"),
        tee=False,
        authenticate=vtpm.authenticate,
        judge=vtpm.judge,
        endorsements=frozenset({"ak_chain", "event_log"}),
    ),
)

PLATFORMS: Final[Mapping[str, Platform]] = MappingProxyType({one.name: one for one in _ALL})
"""Name in a document → platform."""

KEYS: Final[Mapping[str, Platform]] = MappingProxyType({one.key: one for one in _ALL})
"""Key of a policy → platform."""

SIMULATION: Final = replace(
    PLATFORMS[SEV_SNP],
    name=SIMULATED,
    key="",
    title="simulated: proves nothing",
    trusts=("anybody",),
    tee=False,
)
"""
SEV-SNP evidence under a public key (SPEC §4.2). In neither table: no document and no policy leads here by
name.
"""
