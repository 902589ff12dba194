"""
What a caller accepts, of every platform: a policy says yes to what it names.

This module holds the policy, its two compositions and their JSON; what is asked of one platform, and the
checks, are beside that platform (`snp/policy.py`, `snp/policy_json.py`). There is no default policy, no field
accepts by being left out, and nothing in JSON can name a root or accept simulated evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from datetime import timedelta
from typing import Any, Final, Self, TypeAlias

from . import policy_form, policy_values, strict_json
from .azure import policy_json as azure_json
from .azure.policy import AzureSnpPolicy, AzureTdxPolicy
from .development_chain import DEVELOPMENT_ROOT
from .errors import InvalidPolicy
from .evidence import CONFIG_DIGEST_SIZE
from .gcp import policy_json as gcp_json
from .gcp.policy import GcpPolicy
from .nitro import policy_json as nitro_json
from .nitro.policy import NitroPolicy
from .platforms import KEYS
from .policy_digest import digest_of, spelled
from .policy_form import Form
from .snp import policy_json as snp_json
from .snp.policy import SnpPolicy
from .tdx import policy_json as tdx_json
from .tdx.policy import TdxPolicy
from .vtpm import policy_json as vtpm_json
from .vtpm.policy import TpmPolicy

VERSION: Final = 1
MAX_POLICY: Final = 1024 * 1024
MAX_DEPTH: Final = 12  # of the JSON
DEEPEST: Final = 2
"""An `AnyOf` of `AllOf`s of policies, or the other way round, and no deeper."""

MOST: Final = 64
"""Policies within an `AnyOf` or `AllOf`, all together: a machine is judged by each of them anew."""

LONGEST_AGE: Final = timedelta(hours=24)  # a key does not live longer: SPEC §3
LONGEST_SKEW: Final = timedelta(hours=1)

_LABEL: Final = b"blindbox/policy/v2\x00"


@dataclass(frozen=True, slots=True)
class Part:
    """What a policy may say about one platform: the object, and its JSON."""

    kind: type
    forms: Mapping[str, Form]
    schema: strict_json.Object
    read: Callable[[object, str], Any]
    write: Callable[[Any], strict_json.Object]


PARTS: Final[Mapping[str, Part]] = {
    "snp": Part(SnpPolicy, snp_json.FORMS, snp_json.SCHEMA, snp_json.read, snp_json.write),
    "tdx": Part(TdxPolicy, tdx_json.FORMS, tdx_json.SCHEMA, tdx_json.read, tdx_json.write),
    "azure_snp": Part(
        AzureSnpPolicy,
        azure_json.SNP_FORMS,
        azure_json.SNP_SCHEMA,
        azure_json.read_snp,
        azure_json.write_snp,
    ),
    "azure_tdx": Part(
        AzureTdxPolicy,
        azure_json.TDX_FORMS,
        azure_json.TDX_SCHEMA,
        azure_json.read_tdx,
        azure_json.write_tdx,
    ),
    "gcp": Part(GcpPolicy, gcp_json.FORMS, gcp_json.SCHEMA, gcp_json.read, gcp_json.write),
    "nitro": Part(NitroPolicy, nitro_json.FORMS, nitro_json.SCHEMA, nitro_json.read, nitro_json.write),
    "tpm": Part(TpmPolicy, vtpm_json.FORMS, vtpm_json.SCHEMA, vtpm_json.read, vtpm_json.write),
}
"""Key of a policy → what stands there. The keys are those of `platforms.KEYS`."""


@dataclass(frozen=True, slots=True)
class Policy:
    """
    Which machines may hold a key that is used.

    A platform that is not named is not accepted. `max_age` is how long a proof may be relied on before asking
    again; `accept_cached` also takes evidence without a nonce of one's own (SPEC §2.1, form 2).
    `config_digests` are the run-time settings that are accepted, by their SHA-384 (SPEC §2); without it, any.
    """

    snp: SnpPolicy | None = None
    tdx: TdxPolicy | None = None
    azure_snp: AzureSnpPolicy | None = None
    azure_tdx: AzureTdxPolicy | None = None
    gcp: GcpPolicy | None = None
    nitro: NitroPolicy | None = None
    tpm: TpmPolicy | None = None
    accept_cached: bool = False
    max_age: timedelta = timedelta(minutes=10)
    clock_skew: timedelta = timedelta(minutes=5)
    config_digests: Set[bytes] | None = None  # 48 bytes each
    digest: bytes = field(init=False, repr=False, compare=False)  # equal policies and no others share it

    def __post_init__(self) -> None:
        for key, known in PARTS.items():
            part = getattr(self, key)
            if part is not None and not isinstance(part, known.kind):
                raise InvalidPolicy(f"{key} is a {type(part).__name__}, expected {known.kind.__name__}(…)")
        if not self.keys:
            raise InvalidPolicy(
                f"the policy names no platform, so it would accept nobody; give one of {', '.join(PARTS)}"
            )
        check_times(self.accept_cached, self.max_age, self.clock_skew)
        object.__setattr__(self, "config_digests", checked_settings(self.config_digests))
        if DEVELOPMENT_ROOT.hex() in spelled(self):
            raise InvalidPolicy("the development root proves nothing; only UnsafeSimulatedPolicy may name it")
        object.__setattr__(self, "digest", digest_of(_LABEL, self))

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def keys(self) -> tuple[str, ...]:
        """The platforms that are named, by their keys in a policy."""
        return tuple(key for key in PARTS if getattr(self, key) is not None)

    @property
    def platforms(self) -> tuple[str, ...]:
        """The platforms that are named, as a document calls them."""
        return tuple(KEYS[key].name for key in self.keys)

    def part(self, key: str) -> Any | None:
        """What is asked of the platform with this key; None if the policy does not name it."""
        return getattr(self, key) if key in PARTS else None

    def with_host_data(self, host_data: bytes) -> Policy:
        """
        The same policy, and besides: launched with exactly this HOST_DATA (32 bytes).

        A platform that cannot promise that is named no more.
        """
        changed: dict[str, Any] = dict.fromkeys(self.keys)
        for key in self.keys:
            if hasattr(PARTS[key].kind, "with_host_data"):
                changed[key] = getattr(self, key).with_host_data(host_data)
        if not any(changed.values()):
            raise _no_host_data(self)
        return replace(self, **changed)

    def with_tcb_evaluation_floor(self, number: int) -> Policy:
        """The same policy, with Intel's collateral no older than this evaluation data number."""
        changed: dict[str, Any] = {
            key: getattr(self, key).with_tcb_evaluation_floor(number)
            for key in self.keys
            if hasattr(PARTS[key].kind, "with_tcb_evaluation_floor")
        }
        return replace(self, **changed) if changed else self

    @classmethod
    def from_json(cls, text: str | bytes) -> Policy:
        """Read a policy. An unknown key is an error: it is most likely a misspelt wish."""
        policy = read(text)
        if not isinstance(policy, Policy):
            raise InvalidPolicy("these are several policies in one; read them with policy.read")
        return policy

    def to_json(self) -> str:
        """The policy as text; `from_json` reads the same policy back."""
        return _to_json(self)


@dataclass(frozen=True, slots=True)
class _Several:
    """What `AnyOf` and `AllOf` have in common. Of their policies' times, the strictest counts for all."""

    policies: Sequence[AnyKind]
    digest: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not isinstance(self.policies, list | tuple) or not self.policies:
            raise InvalidPolicy(f"{name} takes a list of policies, one at least")
        for one in self.policies:
            if not isinstance(one, Policy | AnyOf | AllOf):
                raise InvalidPolicy(f"{name} takes policies, not a {type(one).__name__}")
        object.__setattr__(self, "policies", tuple(self.policies))
        if _depth(self) > DEEPEST:
            raise InvalidPolicy(f"policies within policies, more than {DEEPEST} deep")
        if _count(self) > MOST:
            raise InvalidPolicy(f"{name} holds {_count(self)} policies, at most {MOST} are judged")
        if not self.platforms:
            raise InvalidPolicy("no platform is named by all of the policies, so they would accept nobody")
        object.__setattr__(self, "digest", digest_of(_LABEL, self))

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def platforms(self) -> tuple[str, ...]:
        """The platforms that may be accepted, as a document calls them."""
        raise NotImplementedError

    @property
    def accept_cached(self) -> bool:
        return all(one.accept_cached for one in self.policies)

    @property
    def max_age(self) -> timedelta:
        return min(one.max_age for one in self.policies)

    @property
    def clock_skew(self) -> timedelta:
        return min(one.clock_skew for one in self.policies)

    def with_tcb_evaluation_floor(self, number: int) -> Self:
        """The same policies, with Intel's collateral no older than this evaluation data number."""
        return replace(self, policies=[one.with_tcb_evaluation_floor(number) for one in self.policies])

    def to_json(self) -> str:
        """The policies as text; `read` reads the same back."""
        return _to_json(self)


class AnyOf(_Several):
    """A machine is accepted if one of these policies accepts it."""

    __slots__ = ()

    @property
    def platforms(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for one in self.policies for name in one.platforms))

    def with_host_data(self, host_data: bytes) -> AnyOf:
        """Those of the policies that can ask for exactly this HOST_DATA (32 bytes), and do."""
        able = [one.with_host_data(host_data) for one in self.policies if _has_host_data(one)]
        if not able:
            raise _no_host_data(self)
        return AnyOf(able)


class AllOf(_Several):
    """A machine is accepted if every one of these policies accepts it."""

    __slots__ = ()

    @property
    def platforms(self) -> tuple[str, ...]:
        first, *others = (one.platforms for one in self.policies)
        return tuple(name for name in first if all(name in other for other in others))

    def with_host_data(self, host_data: bytes) -> AllOf:
        """The same policies, and besides: launched with exactly this HOST_DATA (32 bytes)."""
        return AllOf([one.with_host_data(host_data) for one in self.policies])


AnyKind: TypeAlias = Policy | AnyOf | AllOf
"""What a policy file may hold."""

_WORDS: Final[Mapping[str, type[AnyOf | AllOf]]] = {"any_of": AnyOf, "all_of": AllOf}


def _depth(policy: object) -> int:
    return 1 + max(map(_depth, policy.policies)) if isinstance(policy, _Several) else 0


def _count(policy: object) -> int:
    return sum(map(_count, policy.policies)) if isinstance(policy, _Several) else 1


def _has_host_data(policy: AnyKind) -> bool:
    if isinstance(policy, Policy):
        return any(hasattr(PARTS[key].kind, "with_host_data") for key in policy.keys)
    return (any if isinstance(policy, AnyOf) else all)(map(_has_host_data, policy.policies))


def _no_host_data(policy: AnyKind) -> InvalidPolicy:
    named = ", ".join(policy.platforms)
    return InvalidPolicy(f"the policy names {named}, and none of these has host data; SEV-SNP has")


# --- JSON ---------------------------------------------------------------------------------------------------


CONFIG_DIGESTS: Final = policy_form.hex_set(
    CONFIG_DIGEST_SIZE, about="The run-time settings that are accepted, by their SHA-384; without it, any."
)

_SECONDS: Final = {
    "max_age_seconds": ("max_age", LONGEST_AGE),
    "clock_skew_seconds": ("clock_skew", LONGEST_SKEW),
}


def read(text: str | bytes) -> AnyKind:
    """The policy in a text, of any kind. An unknown key is an error: it is most likely a misspelt wish."""
    try:
        data = text.encode("utf-8") if isinstance(text, str) else text
    except UnicodeEncodeError as error:
        raise InvalidPolicy("the policy is not UTF-8") from error
    if len(data) > MAX_POLICY:
        raise InvalidPolicy(f"the policy is {len(data)} bytes, at most {MAX_POLICY} are read")
    try:
        told = strict_json.parse(data, deepest=MAX_DEPTH)
        if "version" not in told:
            raise InvalidPolicy(f"the policy has no 'version'; this verifier reads version {VERSION}")
        strict_json.integer(told.pop("version"), "version", VERSION, VERSION)
        return _read(told, "the policy")
    except strict_json.JsonRefused as error:
        message = str(error)
        raise InvalidPolicy(
            message if message.startswith("the policy") else f"the policy: {message}"
        ) from error


def _read(value: object, where: str) -> AnyKind:
    for word, kind in _WORDS.items():
        if isinstance(value, dict) and word in value:
            several = strict_json.items(strict_json.fields(value, where, (word,))[word], f"{where}: {word}")
            if len(several) > MOST:  # before all of them are made
                raise InvalidPolicy(
                    f"{where}: {word} holds {len(several)} policies, at most {MOST} are judged"
                )
            return kind([_read(one, f"{where}: {word}[{number}]") for number, one in enumerate(several)])
    told = strict_json.fields(value, where, (), (*PARTS, "accept_cached", *_SECONDS, "config_digests"))
    wishes: dict[str, Any] = {
        key: part.read(told[key], f"{where}: {key}") for key, part in PARTS.items() if key in told
    }
    if "accept_cached" in told:
        wishes["accept_cached"] = strict_json.boolean(told["accept_cached"], f"{where}: accept_cached")
    for key, (name, most) in _SECONDS.items():
        if key in told:
            seconds = strict_json.integer(told[key], f"{where}: {key}", 0, int(most.total_seconds()))
            wishes[name] = timedelta(seconds=seconds)
    if "config_digests" in told:
        wishes["config_digests"] = CONFIG_DIGESTS.read(told["config_digests"], f"{where}: config_digests")
    return Policy(**wishes)


def _to_json(policy: Policy | _Several) -> str:
    return strict_json.dump({"version": VERSION, **_written(policy)}).decode("ascii")


def _written(policy: Policy | _Several) -> strict_json.Object:
    for word, kind in _WORDS.items():
        if isinstance(policy, kind):
            return {word: [_written(one) for one in policy.policies]}
    assert isinstance(policy, Policy)
    if policy.max_age.microseconds or policy.clock_skew.microseconds:
        raise InvalidPolicy("a policy in JSON counts whole seconds")
    value: strict_json.Object = {}
    for key in policy.keys:
        part = getattr(policy, key)
        if _has_own_roots(part):
            raise InvalidPolicy("a policy with roots of its own has no JSON form")
        value[key] = PARTS[key].write(part)
    value["accept_cached"] = policy.accept_cached
    for key, (name, _) in _SECONDS.items():
        value[key] = int(getattr(policy, name).total_seconds())
    if policy.config_digests is not None:
        value["config_digests"] = CONFIG_DIGESTS.write(policy.config_digests)
    return value


def _has_own_roots(part: Any) -> bool:
    """Whether it, or a part within it, trusts other roots than the pinned ones."""
    for one in fields(part):
        value = getattr(part, one.name)
        if one.name == "roots" and one.default_factory is not MISSING and value != one.default_factory():
            return True
        if is_dataclass(value) and _has_own_roots(value):
            return True
    return False


def check_times(accept_cached: object, max_age: object, clock_skew: object) -> None:
    """What every kind of policy asks of these three."""
    if not isinstance(accept_cached, bool):
        raise InvalidPolicy("accept_cached is neither True nor False")
    for name, value, most in (("max_age", max_age, LONGEST_AGE), ("clock_skew", clock_skew, LONGEST_SKEW)):
        if not isinstance(value, timedelta) or not timedelta(0) <= value <= most:
            raise InvalidPolicy(f"{name} is {value!r}, expected a timedelta of 0 to {most}")


def checked_settings(config_digests: object) -> frozenset[bytes] | None:
    """What every kind of policy asks of the settings that it names."""
    if config_digests is None:
        return None
    return policy_values.digests("config_digests", config_digests, CONFIG_DIGEST_SIZE)
