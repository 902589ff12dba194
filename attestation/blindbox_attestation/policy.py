"""
What a caller accepts, of every platform: a policy says yes to what it names.

This module holds the policy and its JSON form; the checks are beside each platform (`snp/policy.py`). There
is no default policy, no field accepts by being left out, and nothing in JSON can name a root or accept
simulated evidence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Final

from . import strict_json
from .development_chain import DEVELOPMENT_ROOT
from .errors import InvalidPolicy
from .roots import AMD_ROOTS
from .snp.policy import SnpPolicy
from .snp.tcb import LAYOUTS, Tcb

VERSION: Final = 1
MAX_POLICY: Final = 1024 * 1024

LONGEST_AGE: Final = timedelta(hours=24)  # a key does not live longer: SPEC §3
LONGEST_SKEW: Final = timedelta(hours=1)

_POLICY_LABEL: Final = b"blindbox/policy/v1\x00"

_SNP_SETS: Final = {
    "chip_ids": (64, 8),
    "id_key_digests": (48,),
    "author_key_digests": (48,),
}
_SNP_OPTIONAL: Final = (
    "vmpl",
    "signing_keys",
    *_SNP_SETS,
    "host_data",
    "minimum_guest_svn",
    "allow_smt",
    "allow_masked_chip_id",
    "platform_info_required",
    "platform_info_forbidden",
    "revocation",
)


@dataclass(frozen=True, slots=True)
class Policy:
    """
    Which machines may hold a key that is used.

    A platform that is not named is not accepted. `max_age` is how long a proof may be relied on before asking
    again; `accept_cached` also takes evidence without a nonce of one's own (SPEC §2.1, form 2).
    """

    snp: SnpPolicy | None
    accept_cached: bool = False
    max_age: timedelta = timedelta(minutes=10)
    clock_skew: timedelta = timedelta(minutes=5)
    digest: bytes = field(
        init=False, repr=False, compare=False
    )  # 32 bytes: equal policies and no others share it

    def __post_init__(self) -> None:
        if not isinstance(self.snp, SnpPolicy):
            raise InvalidPolicy(
                "the policy names no platform, so it would accept nobody; give snp=SnpPolicy(…)"
            )
        if DEVELOPMENT_ROOT in self.snp.roots:
            raise InvalidPolicy("the development root proves nothing; only UnsafeSimulatedPolicy may name it")
        check_times(self.accept_cached, self.max_age, self.clock_skew)
        object.__setattr__(self, "digest", digest_of(_POLICY_LABEL, self._to_object(roots=True)))

    def __hash__(self) -> int:
        return hash(self.digest)

    def with_host_data(self, host_data: bytes) -> Policy:
        """The same policy, and besides: launched with exactly this HOST_DATA (32 bytes)."""
        assert self.snp is not None
        return replace(self, snp=replace(self.snp, host_data=host_data))

    @classmethod
    def from_json(cls, text: str | bytes) -> Policy:
        """Read a policy. An unknown key is an error: it is most likely a misspelt wish."""
        try:
            data = text.encode("utf-8") if isinstance(text, str) else text
        except UnicodeEncodeError as error:
            raise InvalidPolicy("the policy is not UTF-8") from error
        if len(data) > MAX_POLICY:
            raise InvalidPolicy(f"the policy is {len(data)} bytes, at most {MAX_POLICY} are read")
        try:
            return cls._read(strict_json.parse(data))
        except strict_json.JsonRefused as error:
            raise InvalidPolicy(f"the policy: {error}") from error

    @classmethod
    def _read(cls, value: strict_json.Object) -> Policy:
        told = strict_json.fields(
            value,
            "the policy",
            ("version", "snp"),
            ("accept_cached", "max_age_seconds", "clock_skew_seconds"),
        )
        strict_json.integer(told["version"], "version", VERSION, VERSION)
        times: dict[str, Any] = {}
        if "accept_cached" in told:
            times["accept_cached"] = strict_json.boolean(told["accept_cached"], "accept_cached")
        for name, key, most in (
            ("max_age", "max_age_seconds", LONGEST_AGE),
            ("clock_skew", "clock_skew_seconds", LONGEST_SKEW),
        ):
            if key in told:
                seconds = strict_json.integer(told[key], key, 0, int(most.total_seconds()))
                times[name] = timedelta(seconds=seconds)
        return cls(snp=_read_snp(told["snp"]), **times)

    def to_json(self) -> str:
        """The policy as text; `from_json` reads the same policy back."""
        assert self.snp is not None
        if self.snp.roots != AMD_ROOTS:
            raise InvalidPolicy("a policy with roots of its own has no JSON form")
        if self.max_age.microseconds or self.clock_skew.microseconds:
            raise InvalidPolicy("a policy in JSON counts whole seconds")
        return strict_json.dump(self._to_object(roots=False)).decode("ascii")

    def _to_object(self, *, roots: bool) -> strict_json.Object:
        assert self.snp is not None
        value = {"version": VERSION, "snp": snp_object(self.snp, roots=roots), **times_object(self)}
        if not roots:
            value["max_age_seconds"] = int(self.max_age.total_seconds())
            value["clock_skew_seconds"] = int(self.clock_skew.total_seconds())
            del value["max_age_microseconds"], value["clock_skew_microseconds"]
        return value


def check_times(accept_cached: object, max_age: object, clock_skew: object) -> None:
    """What every kind of policy asks of these three."""
    if not isinstance(accept_cached, bool):
        raise InvalidPolicy("accept_cached is neither True nor False")
    for name, value, most in (("max_age", max_age, LONGEST_AGE), ("clock_skew", clock_skew, LONGEST_SKEW)):
        if not isinstance(value, timedelta) or not timedelta(0) <= value <= most:
            raise InvalidPolicy(f"{name} is {value!r}, expected a timedelta of 0 to {most}")


def times_object(policy: Any) -> strict_json.Object:
    return {
        "accept_cached": policy.accept_cached,
        "max_age_microseconds": policy.max_age // timedelta(microseconds=1),
        "clock_skew_microseconds": policy.clock_skew // timedelta(microseconds=1),
    }


def digest_of(label: bytes, value: strict_json.Object) -> bytes:
    return hashlib.sha256(label + strict_json.dump(value)).digest()


def snp_object(snp: SnpPolicy, *, roots: bool) -> strict_json.Object:
    """An SNP policy as JSON values in one fixed order; with its roots only for a digest."""
    value: strict_json.Object = {
        "measurements": _sorted_hex(snp.measurements),
        "minimum_tcb": {
            family: {part: getattr(floor, part) for part in LAYOUTS[family]}
            for family, floor in sorted(snp.minimum_tcb.items())
        },
        "vmpl": snp.vmpl,
        "signing_keys": sorted(snp.signing_keys),
    }
    for name in _SNP_SETS:
        if (values := getattr(snp, name)) is not None:
            value[name] = _sorted_hex(values)
    if snp.host_data is not None:
        value["host_data"] = snp.host_data.hex()
    for name in (
        "minimum_guest_svn",
        "allow_smt",
        "allow_masked_chip_id",
        "platform_info_required",
        "platform_info_forbidden",
        "revocation",
    ):
        value[name] = getattr(snp, name)
    if roots:
        value["roots"] = {fingerprint.hex(): family for fingerprint, family in sorted(snp.roots.items())}
    return value


def _sorted_hex(values: Any) -> list[str]:
    return sorted(value.hex() for value in values)


def _read_snp(value: object) -> SnpPolicy:
    told = strict_json.fields(value, "snp", ("measurements", "minimum_tcb"), _SNP_OPTIONAL)
    readers: Mapping[str, Callable[[object, str], Any]] = {
        "vmpl": lambda found, where: strict_json.integer(found, where, 0, 3),
        "signing_keys": _read_names,
        **{name: _hex_set(sizes) for name, sizes in _SNP_SETS.items()},
        "host_data": lambda found, where: strict_json.from_hex(found, where, (32,)),
        "minimum_guest_svn": lambda found, where: strict_json.integer(found, where, 0, (1 << 32) - 1),
        "allow_smt": strict_json.boolean,
        "allow_masked_chip_id": strict_json.boolean,
        "platform_info_required": lambda found, where: strict_json.integer(found, where, 0, (1 << 63) - 1),
        "platform_info_forbidden": lambda found, where: strict_json.integer(found, where, 0, (1 << 63) - 1),
        "revocation": strict_json.text,
    }
    wishes: dict[str, Any] = {name: readers[name](told[name], name) for name in _SNP_OPTIONAL if name in told}
    return SnpPolicy(
        measurements=_hex_set((48,))(told["measurements"], "measurements"),
        minimum_tcb=_read_floors(told["minimum_tcb"]),
        **wishes,
    )


def _read_names(value: object, where: str) -> frozenset[str]:
    return frozenset(strict_json.text(name, where) for name in strict_json.items(value, where))


def _hex_set(sizes: tuple[int, ...]) -> Callable[[object, str], frozenset[bytes]]:
    def read(value: object, where: str) -> frozenset[bytes]:
        return frozenset(strict_json.from_hex(one, where, sizes) for one in strict_json.items(value, where))

    return read


def _read_floors(value: object) -> dict[str, Tcb]:
    floors: dict[str, Tcb] = {}
    for family, floor in strict_json.fields(value, "minimum_tcb", (), tuple(LAYOUTS)).items():
        where = f"minimum_tcb of {family}"
        parts = strict_json.fields(floor, where, tuple(LAYOUTS[family]))
        floors[family] = Tcb(
            **{part: strict_json.integer(found, where, 0, 255) for part, found in parts.items()}
        )
    return floors
