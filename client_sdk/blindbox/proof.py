"""
What `response.blindbox` and `session.proof` tell: which machine answered, what it had proved, and from what.

A `Proof` is of a machine that was accepted. It keeps the evidence it was made from, so that it can be saved
and judged again by somebody else; the file and its reading are in `report/`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blindbox_attestation.steps import Check, Step
    from blindbox_attestation.verify import AnyPolicy, Verified

    from .report import Report, SavedProof
    from .session_key import ProvenKey


@dataclass(frozen=True, repr=False)
class Proof:
    """Who answered. Every response that `blindbox` returns carries one as `response.blindbox`."""

    origin: str
    verified: Verified  # all that was proved
    policy: AnyPolicy  # what had been asked
    nonce: bytes  # our question; none in the cached form
    document: bytes  # the machine's answer, exactly as it came
    collateral: Mapping[str, bytes]  # what was fetched from vendors beside it
    not_after: datetime  # until when it is relied on

    @classmethod
    def of(cls, key: ProvenKey) -> Proof:
        return cls(
            key.origin, key.verified, key.policy, key.nonce, key.document, key.collateral, key.usable_until
        )

    @property
    def platform(self) -> str:
        """As a document calls it (SPEC §2); `title` is for people."""
        return self.verified.platform

    @property
    def title(self) -> str:
        return self.verified.title

    @property
    def trusts(self) -> tuple[str, ...]:
        """Who has to be honest, besides the program itself, for this to mean anything."""
        return self.verified.trusts

    @property
    def measurement(self) -> str:
        """The one value that names the program, in hexadecimal."""
        return self.verified.measurement.hex()

    @property
    def evidence_id(self) -> str:
        """In hexadecimal, SPEC §2.1."""
        return self.verified.evidence_id.hex()

    @property
    def boot_id(self) -> str:
        """In hexadecimal; also the authority inside the seal."""
        return self.verified.boot_id.hex()

    @property
    def verified_at(self) -> datetime:
        return self.verified.verified_at

    @property
    def simulated(self) -> bool:
        """True: nothing was proved."""
        return self.verified.simulated

    @property
    def steps(self) -> tuple[Step, ...]:
        """SPEC §4: what was checked, what did not apply, and what the policy did not ask."""
        return self.verified.steps

    @property
    def checks(self) -> tuple[Check, ...]:
        """Every single comparison of every step."""
        return tuple(check for step in self.steps for check in step.checks)

    @property
    def report(self) -> Report:
        from .report import Report

        return Report.of(self)

    def to_json(self) -> str:
        """The proof as a file that anybody can judge again: `blindbox verify --offline FILE`."""
        return self.report.to_json()

    def to_html(self) -> str:
        """The proof as one page for people."""
        from .report.page import page

        return page(self.report)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_json()` to a file, or `to_html()` if its name ends in .html."""
        text = self.to_html() if os.fspath(path).lower().endswith((".html", ".htm")) else self.to_json()
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> SavedProof:
        """A proof that somebody saved. It is only a claim: call its `verify`."""
        from .report import SavedProof

        return SavedProof.load(path)

    def __hash__(self) -> int:
        return hash((self.origin, self.verified.evidence_id))

    def __repr__(self) -> str:
        nothing = "SIMULATED (proves nothing), " if self.simulated else ""
        return (
            f"<Proof {nothing}platform={self.platform}, measurement={self.measurement}, "
            f"evidence_id={self.evidence_id[:16]}…, verified_at={self.verified_at.isoformat()}, "
            f"not_after={self.not_after.isoformat()}, simulated={self.simulated}>"
        )
