"""The paravisor's blob: one spelling for each, and nothing in it that is not read."""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blindbox_attestation.azure.hcl import HASHES, NV_SIZE, SNP, TDX, Hcl
from blindbox_attestation.azure.tdreport import TdReport, quoted_body
from blindbox_attestation.errors import MalformedEvidence
from blindbox_attestation.tdx.quote import Quote
from tests.kit.azure import from_foreign
from tests.kit.specimens import specimen
from tests.kit.verdict import verdict

REAL = ["snp_milan_evidence", "snp_milan_v0_evidence", "tdx_evidence", "tdx_ak_chain_2026-06"]
BLOB = Hcl(
    version=2, kind=SNP, report=bytes(range(256)) * 4 + bytes(160), hash_type=1, runtime=b"{}"
).encode()

FLIPPED_UNSEEN = range(32, 1216)  # the processor's report: another reader's
JSON_AT = 1236


def code_of(data: bytes) -> str:
    return verdict(lambda: Hcl.parse(data))


@pytest.mark.parametrize("name", REAL)
def test_a_real_blob_is_read_and_written_the_same(vectors: Path, name: str) -> None:
    hcl = from_foreign(vectors / "azure" / f"{name}.json").hcl
    read = Hcl.parse(hcl)
    assert read.encode() == hcl
    assert read.kind == (TDX if name.startswith("tdx") else SNP)
    assert read.runtime.startswith(b'{"keys":[{"kid":"HCLAkPub"')


@pytest.mark.parametrize("name", REAL)
def test_the_report_in_a_real_blob_carries_the_hash_of_its_json(vectors: Path, name: str) -> None:
    read = Hcl.parse(from_foreign(vectors / "azure" / f"{name}.json").hcl)
    at = 128 if read.kind == TDX else 0x50
    assert read.report[at : at + 64] == read.runtime_hash()


@pytest.mark.parametrize("hash_type", HASHES)
def test_the_hash_is_padded_with_zeros_to_64_bytes(hash_type: int) -> None:
    """C-5: a shorter hash is compared with all 64 bytes, not as a prefix."""
    digest = replace(Hcl.parse(BLOB), hash_type=hash_type).runtime_hash()
    assert len(digest) == 64
    assert digest.rstrip(b"\x00") != digest or hash_type == 3


def changed(at: int, value: int, size: int = 4) -> bytes:
    return BLOB[:at] + value.to_bytes(size, "little") + BLOB[at + size :]


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("magic", b"HCLB" + BLOB[4:]),
        ("version 0", changed(4, 0)),
        ("version 3", changed(4, 3)),
        ("size of the whole", changed(8, JSON_AT + 3)),
        ("request type", changed(12, 3)),
        ("status", changed(16, 1)),
        ("reserved", changed(20, 1)),
        ("last reserved byte", changed(31, 1, 1)),
        ("data size", changed(1216, 23)),
        ("data version", changed(1220, 2)),
        ("report type 3", changed(1224, 3)),
        ("report type 0", changed(1224, 0)),
        ("hash type 0", changed(1228, 0)),
        ("hash type 4", changed(1228, 4)),
        ("no JSON", changed(1232, 0)),
        ("JSON beyond the end", changed(1232, NV_SIZE)),
        ("huge JSON", changed(1232, 0xFFFFFFFF)),
        ("a byte after the JSON", changed(JSON_AT + 2, 0x20, 1)),
        ("a byte at the very end", changed(NV_SIZE - 1, 1, 1)),
        ("one byte too many", BLOB + b"\x00"),
        ("empty", b""),
    ],
)
def test_a_second_spelling_of_the_header_is_refused(what: str, data: bytes) -> None:
    """C-15, C-17: the header is signed by nobody, so it must have one form."""
    assert code_of(data) == "malformed-hcl", what


def test_a_json_that_fills_the_blob_is_read_and_one_byte_more_is_not() -> None:
    runtime = b" " * (NV_SIZE - JSON_AT)
    full = replace(Hcl.parse(BLOB), runtime=runtime)
    assert Hcl.parse(full.encode()).runtime == runtime
    assert code_of(replace(full, runtime=runtime + b" ").encode()) == "malformed-hcl"
    over = full.encode()
    told = len(runtime) + 1
    for at, value in ((8, JSON_AT + told), (1216, 20 + told), (1232, told)):
        over = over[:at] + value.to_bytes(4, "little") + over[at + 4 :]
    assert code_of(over) == "malformed-hcl"


def test_the_shortest_json_is_of_one_letter() -> None:
    """C-17."""
    shortest = replace(Hcl.parse(BLOB), runtime=b"1")
    assert Hcl.parse(shortest.encode()) == shortest
    assert code_of(replace(shortest, runtime=b"").encode()) == "malformed-hcl"


def test_every_flipped_bit_outside_of_what_is_hashed_is_refused() -> None:
    """C-15: what survives is the processor's report, the JSON, or the choice of a hash: those are signed."""
    survived = set()
    for bit in range(8 * NV_SIZE):
        at = bit // 8
        if at in FLIPPED_UNSEEN:
            continue
        flipped = bytearray(BLOB)
        flipped[at] ^= 1 << bit % 8
        if code_of(bytes(flipped)) == "accepted":
            survived.add(at)
    assert survived == {1228, JSON_AT, JSON_AT + 1}


def test_every_truncation_is_refused() -> None:
    """C-19."""
    assert {code_of(BLOB[:size]) for size in range(NV_SIZE)} == {"malformed-hcl"}


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=NV_SIZE + 1))
def test_any_bytes_are_read_or_refused_with_our_error(data: bytes) -> None:
    for candidate in (
        data,
        data.ljust(NV_SIZE, b"\x00")[:NV_SIZE],
        BLOB[:1216] + data[:1384].ljust(1384, b"\0"),
    ):
        assert code_of(candidate) in ("accepted", "malformed-hcl")


# --- the TDREPORT in it -------------------------------------------------------------------------------------


@pytest.fixture
def td_report(vectors: Path) -> bytes:
    return Hcl.parse(from_foreign(vectors / "azure" / "tdx_evidence.json").hcl).report


def test_a_real_tdreport_says_what_its_quote_says(vectors: Path, td_report: bytes) -> None:
    quote = from_foreign(vectors / "azure" / "tdx_evidence.json").td_quote
    assert quote is not None
    read = Quote.parse(quote)
    assert TdReport.parse(td_report).body_of(read.body) == quoted_body(read) == quote[48 : 48 + 584]


def test_a_tdreport_has_bits_without_meaning_in_two_fields_only(td_report: bytes) -> None:
    """C-15: CPUSVN and MAC are in no quote; any other flip is refused, or changes what is compared."""
    honest = TdReport.parse(td_report)
    unseen, codes = set(), set()
    for bit in range(8 * len(td_report)):
        flipped = bytearray(td_report)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            if TdReport.parse(bytes(flipped)) == honest:
                unseen.add(bit // 8)
        except MalformedEvidence as error:
            codes.add(error.code)
    assert codes == {"malformed-hcl", "reserved-bits"}
    assert unseen == {*range(16, 32), *range(224, 256)}


def test_a_cut_tdreport_is_refused(td_report: bytes) -> None:
    """C-19."""
    for size in (0, 3, 1023):
        with pytest.raises(MalformedEvidence) as refused:
            TdReport.parse(td_report[:size])
        assert refused.value.code == "malformed-hcl"


def test_behind_a_tdreport_there_is_nothing() -> None:
    """C-17: it is shorter than the room for a report, and the rest of the room is zero."""
    hcl = b64decode(json.loads(specimen("az-tdx").files["evidence"])["hcl"])
    assert Hcl.parse(hcl)
    for at in (32 + 1024, 1215):
        with pytest.raises(MalformedEvidence) as refused:
            Hcl.parse(hcl[:at] + b"\x01" + hcl[at + 1 :])
        assert refused.value.code == "malformed-hcl"
