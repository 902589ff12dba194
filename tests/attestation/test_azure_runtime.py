"""The paravisor's JSON: one attestation key, in one spelling."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blindbox_attestation.azure.hcl import Hcl
from blindbox_attestation.azure.runtime import Runtime
from blindbox_attestation.errors import MalformedEvidence
from tests.kit.azure import from_foreign
from tests.kit.verdict import verdict

MODULUS = b"\xc1" + bytes(range(1, 255)) + b"\x01"


def base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def ak(**changes: Any) -> dict[str, Any]:
    return {
        "kid": "HCLAkPub",
        "key_ops": ["sign"],
        "kty": "RSA",
        "e": "AQAB",
        "n": base64url(MODULUS),
        **changes,
    }


EK = ak(kid="HCLEkPub", key_ops=["encrypt"])
VM = {"console-enabled": True, "secure-boot": True, "tpm-enabled": True, "vmUniqueId": "02FE12EC-5B74"}


def runtime(*, keys: Any = None, vm: Any = VM, **changes: Any) -> bytes:
    told = {"keys": [ak(), EK] if keys is None else keys, "vm-configuration": vm, "user-data": "00" * 64}
    told |= {name.replace("_", "-"): value for name, value in changes.items()}
    return json.dumps({name: value for name, value in told.items() if value is not ...}).encode()


def code_of(data: bytes) -> str:
    return verdict(lambda: Runtime.parse(data))


@pytest.mark.parametrize(
    ("name", "unique_id", "user_data"),
    [
        ("snp_milan_evidence", "02fe12ec-5b74-4a1b-b261-8ea46fe9af36", bytes(64)),
        ("snp_milan_v0_evidence", "26f8bc30-774e-4290-8e7a-535f3b672aee", bytes(64)),
        (
            "tdx_evidence",
            "69047f12-7ad4-4970-9b31-1157dc14de07",
            b"attestation-test-fixture".ljust(64, b"\x00"),
        ),
        ("tdx_ak_chain_2026-06", "3c18c97a-0d2a-4565-969d-166cdcef26a3", bytes(64)),
    ],
)
def test_what_real_paravisors_say_is_read(vectors: Path, name: str, unique_id: str, user_data: bytes) -> None:
    read = Runtime.parse(Hcl.parse(from_foreign(vectors / "azure" / f"{name}.json").hcl).runtime)
    assert read.ak.key_size == 2048
    assert (read.vm.secure_boot, read.vm.tpm_enabled, read.vm.console_enabled) == (True, True, True)
    assert read.vm.unique_id == unique_id
    assert read.user_data == user_data


def test_a_boolean_that_became_null_is_refused(vectors: Path) -> None:
    """C-17."""
    hcl = Hcl.parse(from_foreign(vectors / "azure" / "snp_milan_bad_runtime.json").hcl)
    with pytest.raises(MalformedEvidence) as refused:
        Runtime.parse(hcl.runtime)
    assert refused.value.code == "malformed-hcl"


def test_the_key_is_the_one_named_for_attestation_wherever_it_stands() -> None:
    read = Runtime.parse(runtime(keys=[EK, ak()]))
    assert read.ak.public_numbers().n == int.from_bytes(MODULUS, "big")
    assert read.ak.public_numbers().e == 65537


def test_keys_of_2048_and_of_4096_bits_are_read() -> None:
    for modulus in (MODULUS, MODULUS * 2):
        assert Runtime.parse(runtime(keys=[ak(n=base64url(modulus))])).ak.key_size == 8 * len(modulus)


def test_what_a_newer_paravisor_adds_about_the_machine_is_passed_over() -> None:
    vm = {**VM, "hardware-sealing-policy": "none", "vmgs-provisioner": {"id": 1}, "current-time": 1}
    assert code_of(runtime(vm=vm)) == "accepted"


def test_what_was_not_said_is_not_made_up() -> None:
    vm = Runtime.parse(runtime(vm={})).vm
    assert (vm.secure_boot, vm.tpm_enabled, vm.console_enabled, vm.unique_id) == (None, None, None, None)
    assert Runtime.parse(runtime(user_data=...)).user_data == b""


@pytest.mark.parametrize(
    ("what", "data", "code"),
    [
        ("no key", runtime(keys=[]), "missing-ak"),
        ("another key only", runtime(keys=[EK]), "missing-ak"),
        ("the key twice", runtime(keys=[ak(), ak()]), "missing-ak"),
        ("two different ones", runtime(keys=[ak(), ak(n=base64url(b"\xd1" + MODULUS[1:]))]), "missing-ak"),
        ("another case", runtime(keys=[ak(kid="hclakpub")]), "missing-ak"),
        ("not objects", runtime(keys=["HCLAkPub", None, 1]), "missing-ak"),
        ("elliptic", runtime(keys=[ak(kty="EC")]), "ak-attributes"),
        ("for encryption", runtime(keys=[ak(key_ops=["encrypt"])]), "ak-attributes"),
        ("for both", runtime(keys=[ak(key_ops=["sign", "encrypt"])]), "ak-attributes"),
        ("for nothing", runtime(keys=[ak(key_ops="sign")]), "ak-attributes"),
        ("exponent 3", runtime(keys=[ak(e="Aw")]), "ak-attributes"),
        ("exponent with zeros in front", runtime(keys=[ak(e="AAEAAQ")]), "ak-attributes"),
        ("1024 bits", runtime(keys=[ak(n=base64url(MODULUS[:127] + b"\x01"))]), "ak-attributes"),
        ("2047 bits", runtime(keys=[ak(n=base64url(b"\x71" + MODULUS[1:]))]), "ak-attributes"),
        ("even", runtime(keys=[ak(n=base64url(MODULUS[:-1] + b"\x02"))]), "ak-attributes"),
        ("8192 bits", runtime(keys=[ak(n=base64url(MODULUS * 4))]), "malformed-hcl"),
        ("padded", runtime(keys=[ak(n=base64url(MODULUS) + "==")]), "malformed-hcl"),
        ("standard alphabet", runtime(keys=[ak(n="+/" + base64url(MODULUS)[2:])]), "malformed-hcl"),
        ("unused bits", runtime(keys=[ak(n=base64url(MODULUS)[:-1] + "R")]), "malformed-hcl"),
        ("zero in front", runtime(keys=[ak(n=base64url(b"\x00" + MODULUS))]), "malformed-hcl"),
        ("line break", runtime(keys=[ak(n=base64url(MODULUS) + "\n")]), "malformed-hcl"),
        ("empty", runtime(keys=[ak(n="")]), "malformed-hcl"),
        ("a number", runtime(keys=[ak(n=3)]), "malformed-hcl"),
        ("not ASCII", runtime(keys=[ak(n="é" * 344)]), "malformed-hcl"),
        ("an unknown field of the key", runtime(keys=[ak(alg="none")]), "malformed-hcl"),
        ("an x5c in the key", runtime(keys=[ak(x5c=["MII="])]), "malformed-hcl"),
        ("a field of the key missing", runtime(keys=[{"kid": "HCLAkPub"}]), "malformed-hcl"),
        ("keys no list", runtime(keys={"kid": "HCLAkPub"}), "malformed-hcl"),
        ("an unknown field", runtime(more=1), "malformed-hcl"),
        ("no configuration", runtime(vm=...), "malformed-hcl"),
        ("configuration no object", runtime(vm=[]), "malformed-hcl"),
        ("secure boot as text", runtime(vm={**VM, "secure-boot": "true"}), "malformed-hcl"),
        ("secure boot as number", runtime(vm={**VM, "secure-boot": 1}), "malformed-hcl"),
        ("an id that is no text", runtime(vm={**VM, "vmUniqueId": 5}), "malformed-hcl"),
        ("short user data", runtime(user_data="00" * 63), "malformed-hcl"),
        ("user data no hex", runtime(user_data="zz" * 64), "malformed-hcl"),
        ("user data no text", runtime(user_data=None), "malformed-hcl"),
        ("a key twice in an object", runtime()[:-1] + b',"keys":[]}', "malformed-hcl"),
        ("bytes after it", runtime() + b"{}", "malformed-hcl"),
        ("a zero byte after it", runtime() + b"\x00", "malformed-hcl"),
        ("a fraction", runtime(vm={**VM, "current-time": 1.5}), "malformed-hcl"),
        ("deep", runtime(vm={"a": [[[[[[[[]]]]]]]]}), "malformed-hcl"),
        ("not UTF-8", b'{"keys":"\xff"}', "malformed-hcl"),
        ("a list", b"[]", "malformed-hcl"),
        ("nothing", b"", "malformed-hcl"),
    ],
)
def test_a_key_that_cannot_be_meant_is_refused(what: str, data: bytes, code: str) -> None:
    """C-17: duplicates, second spellings and keys for other purposes."""
    assert code_of(data) == code, what


def test_every_truncation_is_refused() -> None:
    """C-19."""
    data = runtime()
    assert {code_of(data[:size]) for size in range(len(data))} == {"malformed-hcl"}


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=300) | st.text(max_size=300).map(str.encode),
    st.integers(0, 1200),
    st.binary(max_size=4),
)
def test_any_bytes_are_read_or_refused_with_our_error(data: bytes, at: int, patch: bytes) -> None:
    codes = {"accepted", "malformed-hcl", "missing-ak", "ak-attributes"}
    assert code_of(data) in codes
    good = runtime()
    assert code_of(good[:at] + patch + good[at + len(patch) :]) in codes


@pytest.mark.parametrize(
    ("size", "code"),
    [
        (255, "ak-attributes"),
        (256, "accepted"),
        (257, "accepted"),
        (258, "accepted"),
        (259, "accepted"),
        (262, "accepted"),
        (512, "accepted"),
        (513, "ak-attributes"),
        (768, "ak-attributes"),
        (769, "malformed-hcl"),  # longer than anybody looks
        (0, "malformed-hcl"),
    ],
)
def test_a_modulus_is_of_2048_to_4096_bits_in_whatever_number_of_letters(size: int, code: str) -> None:
    """C-14, C-18."""
    modulus = b"\xc1" + bytes(range(1, 255)) * 4
    text = base64url(modulus[: size - 1] + b"\x01") if size else ""
    assert code_of(runtime(keys=[ak(n=text)])) == code
