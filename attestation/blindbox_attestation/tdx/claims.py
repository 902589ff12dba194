"""
What an authentic TDX quote says, in words: the values that `policy.py` judges and that a caller may look at.

Claims are made only from a quote that our own checks and `dcap-qvl` have both found genuine.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..binding import Bound, report_data, same
from ..event_log import EventLog
from .chain import Machine
from .collateral import QeIdentity, TcbInfo
from .dcap import Level
from .quote import Quote


@dataclass(frozen=True, slots=True)
class TdxClaims:
    """What the TDX module says about the guest and itself, and Intel about the machine."""

    quote_version: int
    mrtd: bytes  # 48 bytes, SHA-384 of what was there when the machine was made: its firmware
    rtmrs: tuple[bytes, bytes, bytes, bytes]  # 48 bytes each, extended since: firmware's settings, kernel, …
    report_data: bytes  # 64 bytes, chosen by the guest
    td_attributes: int
    xfam: int
    mrconfigid: bytes  # 48 bytes each, chosen by the host
    mrowner: bytes
    mrownerconfig: bytes
    mrservicetd: bytes | None  # 48 bytes; None in a quote that cannot say
    mrseam: bytes  # 48 bytes, the TDX module
    mrsignerseam: bytes  # 48 bytes, zero: signed by Intel
    seam_attributes: int
    tee_tcb_svn: bytes  # 16 bytes; the first two are the module's security and major version
    status: str  # of the machine's firmware, in Intel's word
    advisories: frozenset[str]  # of Intel's that apply to it
    tcb_evaluation: int  # the older of the two numbers of the collateral
    fmspc: bytes  # 6 bytes, the kind of machine
    ppid: bytes  # 16 bytes, the processor
    platform_instance_id: bytes | None  # 16 bytes; only a multi-processor platform has one
    event_log: EventLog | None  # the CCEL, not verified: what is relied on is replayed (`rtmr.py`)

    @classmethod
    def of(
        cls,
        quote: Quote,
        machine: Machine,
        level: Level,
        tcb_info: TcbInfo,
        identity: QeIdentity,
        event_log: EventLog | None,
    ) -> TdxClaims:
        """The claims of a quote that was found authentic."""
        return cls(
            quote_version=quote.version,
            mrtd=quote.mrtd,
            rtmrs=quote.rtmrs,
            report_data=quote.report_data,
            td_attributes=quote.td_attributes,
            xfam=quote.xfam,
            mrconfigid=quote.mrconfigid,
            mrowner=quote.mrowner,
            mrownerconfig=quote.mrownerconfig,
            mrservicetd=quote.mrservicetd,
            mrseam=quote.mrseam,
            mrsignerseam=quote.mrsignerseam,
            seam_attributes=quote.seam_attributes,
            tee_tcb_svn=quote.tee_tcb_svn,
            status=level.status,
            advisories=level.advisories,
            tcb_evaluation=min(tcb_info.statement.evaluation, identity.statement.evaluation),
            fmspc=machine.fmspc,
            ppid=machine.ppid,
            platform_instance_id=machine.instance,
            event_log=event_log,
        )

    @property
    def measurement(self) -> bytes:
        """MRTD: what was there when the machine was made."""
        return self.mrtd

    def speaks_for(self, bound: Bound) -> bool:
        """Whether REPORTDATA is the binding, and zeros after it."""
        return same(self.report_data, report_data(bound.digest))

    def carries(self, value: bytes) -> bool:
        """Whether REPORTDATA is this value, and zeros after it."""
        return same(self.report_data, value.ljust(len(self.report_data), b"\x00"))
