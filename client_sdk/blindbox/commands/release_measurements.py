"""
From what a build printed (`measurements.json`) to a policy for the platforms one names.

A build can say which program it made. It cannot say how old firmware may be, whose cloud is trusted or whom a
token is made out to: those are asked for by name, and nothing is filled in that would accept more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from blindbox_attestation.errors import InvalidPolicy
from blindbox_attestation.policy import CONFIG_DIGESTS, PARTS, Policy
from blindbox_attestation.snp import minimum_tcb
from blindbox_attestation.snp.tcb import LAYOUTS, family_named
from blindbox_attestation.strict_json import JsonRefused

MAX_FILE: Final = 4 * 1024 * 1024

VERSION: Final = 1
_ONLY_IN_POLICIES: Final = frozenset({"snp", "azure_snp", "azure_tdx", "gcp", "tpm", "any_of", "all_of"})

DEFAULT_PROCESSORS: Final = ("Genoa", "Turin")
"""Milan's attestation keys have been extracted in software; it has to be asked for."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a build cannot know. Each is needed by some platforms only."""

    processors: tuple[str, ...] = DEFAULT_PROCESSORS
    vcpus: int | None = None
    tcb_evaluation: int | None = None
    audience: str | None = None
    hardware: tuple[str, ...] = ()
    paravisors: tuple[str, ...] = ()
    mrtds: tuple[str, ...] = ()  # of a cloud's firmware, in place of the build's own
    ak_keys: tuple[str, ...] = ()
    projects: tuple[str, ...] = ()
    secure_boot: str = "unchecked"
    config_digests: tuple[str, ...] = ()


class Measurements:
    """The file, read; it is asked for one value at a time, and says which one is missing."""

    def __init__(self, data: bytes) -> None:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            if data.count(b"{") > data.count(b"}"):
                raise InvalidPolicy(f"the measurements are cut short, after {len(data)} bytes") from error
            raise InvalidPolicy("the measurements are not JSON; the build prints them") from error
        if not isinstance(value, dict):
            raise InvalidPolicy("the measurements are not a JSON object")
        if _ONLY_IN_POLICIES & set(value):
            raise InvalidPolicy("this is a policy already, and no measurements; `blindbox trust` takes it")
        version = value.get("version", VERSION)  # what people put together themselves has none
        if version != VERSION or isinstance(version, bool):
            raise InvalidPolicy(
                f"the measurements are of version {str(version)[:32]!a}, and version {VERSION} is read here: "
                "take the client of the release that printed them"
            )
        self._value: dict[str, Any] = value

    def table(self, path: str, why: str) -> dict[str, str]:
        """The strings under a path, as in "pcr.sha256"."""
        found = self._at(path)
        if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
            raise _missing(path, why)
        return found

    def text(self, path: str, why: str) -> str:
        found = self._at(path)
        if not isinstance(found, str):
            raise _missing(path, why)
        return found

    def _at(self, path: str) -> Any:
        found: Any = self._value
        for name in path.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        return found


def policy_for(platforms: tuple[str, ...], told: Measurements, wishes: Wishes) -> Policy:
    """A policy that accepts this build on these platforms (by their keys in a policy), and no other."""
    parts: dict[str, Any] = {}
    for key in platforms:
        value = _PARTS[key](told, wishes)
        try:
            parts[key] = PARTS[key].read(value, key)
        except JsonRefused as error:
            raise InvalidPolicy(f"measurements and options make no policy: {error}") from error
    return Policy(**parts, config_digests=_settings(told, wishes))


def _settings(told: Measurements, wishes: Wishes) -> frozenset[bytes] | None:
    """The settings that are named; `default` stands for those that the image has if nobody gives any."""
    if not wishes.config_digests:
        return None
    why = "--config-digest default stands for the image's own settings"
    named = {
        told.text("settings.config_digest", why) if one == "default" else one for one in wishes.config_digests
    }
    try:
        found: frozenset[bytes] = CONFIG_DIGESTS.read(sorted(named), "--config-digest")
    except JsonRefused as error:
        raise InvalidPolicy(str(error)) from error
    return found


def _snp(told: Measurements, wishes: Wishes) -> dict[str, Any]:
    path = "snp_launch_digest.by_vcpus"
    digests = told.table(path, "SEV-SNP measures the firmware, the kernel, its command line and the vCPUs")
    chosen = set()
    for name, digest in digests.items():
        shape = re.fullmatch(r"EPYC-(\w+) x([0-9]+)", name)
        if shape is None:
            raise InvalidPolicy(f"the measurements: {path} has {name!a}, expected names as 'EPYC-Genoa x4'")
        if shape[1] in wishes.processors and wishes.vcpus in (None, int(shape[2])):
            chosen.add(digest)
    if not chosen:
        wanted = " or ".join(wishes.processors) + (f" with {wishes.vcpus} vCPUs" if wishes.vcpus else "")
        raise InvalidPolicy(f"the measurements: {path} has nothing for {wanted}; it has {', '.join(digests)}")
    return {"measurements": sorted(chosen), "minimum_tcb": _collected_floors(wishes.processors)}


def _azure_snp(told: Measurements, wishes: Wishes) -> dict[str, Any]:
    processor = {
        "measurements": _paravisors("azure_snp", wishes),
        "minimum_tcb": _collected_floors(wishes.processors),
    }
    return {"snp": processor, "secure_boot": wishes.secure_boot, "boot": _boot(told, wishes)}


def _azure_tdx(told: Measurements, wishes: Wishes) -> dict[str, Any]:
    processor = {
        "mrtd": _paravisors("azure_tdx", wishes),
        "minimum_tcb_evaluation": _evaluation("azure_tdx", wishes),
    }
    return {"tdx": processor, "secure_boot": wishes.secure_boot, "boot": _boot(told, wishes)}


def _tpm(told: Measurements, wishes: Wishes) -> dict[str, Any]:
    if not wishes.ak_keys and not wishes.projects:
        raise InvalidPolicy(
            "tpm needs --ak-key (SHA-256 of a TPM's attestation key) or --project (of Google's): "
            "without one, any machine of that cloud passes"
        )
    part: dict[str, Any] = {"boot": _boot(told, wishes)}
    if wishes.ak_keys:
        part["ak_keys"] = sorted(set(wishes.ak_keys))
    if wishes.projects:
        part["projects"] = sorted(set(wishes.projects))
    return part


def _boot(told: Measurements, wishes: Wishes) -> dict[str, Any]:
    """
    Registers by their values. Secure Boot is asked about only on demand: the program is not signed, and PCR4
    names it by its hash, whoever might have signed another.
    """
    why = "PCR4 measures the kernel image that was started"
    pcrs = told.table("pcr.sha256", why)
    if "4" not in pcrs:
        raise _missing("pcr.sha256.4", why)
    return {
        "pcrs": {register: [value] for register, value in pcrs.items()},
        "secure_boot": wishes.secure_boot,
    }


def _paravisors(key: str, wishes: Wishes) -> list[str]:
    if not wishes.paravisors:
        raise InvalidPolicy(
            f"{key} needs --paravisor: the measurement (MRTD on TDX) of Microsoft's firmware, "
            "which is launched first"
        )
    return sorted(set(wishes.paravisors))


def _evaluation(key: str, wishes: Wishes) -> int:
    if wishes.tcb_evaluation is None:
        raise InvalidPolicy(
            f"{key} needs --tcb-evaluation: the oldest of Intel's TCB evaluations (tcbEvaluationDataNumber) "
            "by which a machine may be called up to date"
        )
    return wishes.tcb_evaluation


def _collected_floors(processors: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """The floor of each stepping that is known: for the others nobody has told a microcode number."""
    return {
        name: {part: getattr(floor, part) for part in LAYOUTS[str(family_named(name))]}
        for name, floor in minimum_tcb.floors().items()
        if name not in LAYOUTS and family_named(name) in processors
    }


_WITHOUT_FIRMWARE: Final = "MRTD measures the firmware; --mrtd names that of a cloud"


def _tdx(told: Measurements, wishes: Wishes) -> dict[str, Any]:
    rtmrs = told.table(
        "tdx.rtmr", "RTMR1 and RTMR2 measure the kernel and its command line; MRTD only firmware"
    )
    if not {"1", "2"} <= set(rtmrs):
        raise _missing("tdx.rtmr.1 and .2", "without them any kernel passes")
    return {
        "mrtd": sorted(set(wishes.mrtds)) or [told.text("tdx.mrtd", _WITHOUT_FIRMWARE)],
        "minimum_tcb_evaluation": _evaluation("tdx", wishes),
        "rtmrs": {number: [value] for number, value in rtmrs.items()},
    }


def _gcp(told: Measurements, wishes: Wishes) -> dict[str, Any]:
    if wishes.audience is None or not wishes.hardware:
        raise InvalidPolicy(
            "gcp needs --audience (whom Google's tokens are made out to) "
            "and --hardware (such as GCP_INTEL_TDX)"
        )
    return {
        "audiences": [wishes.audience],
        "image_digests": [told.text("image_digest", "Confidential Space measures the container image")],
        "hardware": sorted(set(wishes.hardware)),
    }


def _nitro(told: Measurements, wishes: Wishes) -> dict[str, Any]:
    pcrs = told.table("nitro.pcr", "PCR0 measures the enclave image")
    if "0" not in pcrs:
        raise _missing("nitro.pcr.0", "PCR0 measures the enclave image")
    return {"pcrs": {number: [value] for number, value in pcrs.items()}}


def _missing(path: str, why: str) -> InvalidPolicy:
    return InvalidPolicy(f"the measurements have no {path}, which is needed here: {why}")


_PARTS: Final[Mapping[str, Callable[[Measurements, Wishes], dict[str, Any]]]] = {
    "snp": _snp,
    "tdx": _tdx,
    "azure_snp": _azure_snp,
    "azure_tdx": _azure_tdx,
    "gcp": _gcp,
    "nitro": _nitro,
    "tpm": _tpm,
}

PLATFORMS: Final = tuple(_PARTS)
"""What a policy can be made for, by its key in a policy."""
