"""The attestation document: what is written is read back, and there is one way to write it."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blindbox_attestation.errors import MalformedEvidence
from blindbox_attestation.evidence import (
    ENDORSEMENTS,
    MAX_DOCUMENT,
    MAX_ENDORSEMENTS,
    MAX_KEY_CONFIG,
    AttestationDocument,
    Transcript,
)

transcripts = st.builds(
    lambda nonce, **told: Transcript(nonce=nonce, form=1 if nonce else 2, **told),
    key_config=st.binary(min_size=1, max_size=200),
    nonce=st.just(b"") | st.binary(min_size=32, max_size=32),
    not_before=st.integers(0, 253402300799),
    not_after=st.integers(0, 253402300799),
    boot_id=st.binary(min_size=16, max_size=16),
    config_digest=st.binary(min_size=48, max_size=48),
    profile=st.just("blindbox/1"),
    tls_spki_sha256=st.just(b"") | st.binary(min_size=32, max_size=32),
    receipt_key=st.just(b"") | st.binary(min_size=32, max_size=32),
)
documents = st.builds(
    AttestationDocument,
    platform=st.sampled_from(["sev-snp", "simulated", "tdx", ""]),
    transcript=transcripts,
    evidence=st.binary(max_size=1200),
    endorsements=st.dictionaries(st.sampled_from(ENDORSEMENTS), st.binary(max_size=100)),
)

GOOD = AttestationDocument(
    platform="sev-snp",
    transcript=Transcript(
        key_config=b"\x00\x01k",
        nonce=bytes(range(32)),
        form=1,
        not_before=1_780_000_000,
        not_after=1_780_003_600,
        boot_id=bytes(16),
        config_digest=bytes(48),
        profile="blindbox/1",
        tls_spki_sha256=b"",
    ),
    evidence=b"evidence",
    endorsements={"ark": b"ark", "vcek": b"vcek"},
)


def refused_as(data: bytes) -> str:
    with pytest.raises(MalformedEvidence) as refused:
        AttestationDocument.parse(data)
    return refused.value.code


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(GOOD.encode())
    change(document)
    return json.dumps(document).encode()


@given(documents)
@settings(max_examples=200, deadline=None)
def test_what_is_encoded_is_parsed_back(document: AttestationDocument) -> None:
    data = document.encode()
    assert AttestationDocument.parse(data) == document
    assert AttestationDocument.parse(data).encode() == data


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)


@given(st.binary(max_size=300) | json_values.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=400, deadline=None)
def test_any_bytes_are_a_document_or_a_typed_error(data: bytes) -> None:
    """C-17: whatever a hostile machine sends."""
    refused_as(data)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_document_with_any_value_put_anywhere_is_read_or_refused_with_a_typed_error(
    data: st.DataObject,
) -> None:
    """C-17: the right shape with one value of the wrong kind."""
    document = json.loads(GOOD.encode())
    place = data.draw(st.sampled_from([document, document["transcript"], document["endorsements"]]))
    key = data.draw(st.sampled_from(sorted(place)))
    place[key] = data.draw(json_values)
    encoded = json.dumps(document).encode()
    code = "read"
    try:
        parsed = AttestationDocument.parse(encoded)
    except MalformedEvidence as error:
        code = error.code
    else:
        assert AttestationDocument.parse(parsed.encode()) == parsed
    assert code in {
        "read",
        "malformed-json",
        "unknown-key",
        "missing-key",
        "wrong-type",
        "unsupported-version",
    }


MALFORMED: list[tuple[bytes, str]] = [
    (b"", "malformed-json"),
    (b" ", "malformed-json"),
    (b"null", "wrong-type"),
    (b"[]", "wrong-type"),
    (b'"x"', "wrong-type"),
    (b"{}", "missing-key"),
    (GOOD.encode() + b"{}", "malformed-json"),
    (GOOD.encode() + b"\x00", "malformed-json"),
    (b"\xef\xbb\xbf" + GOOD.encode(), "malformed-json"),
    (GOOD.encode().decode().encode("utf-16"), "malformed-json"),
    (GOOD.encode().replace(b'"platform"', b'"pl\xff"'), "malformed-json"),
    (GOOD.encode().replace(b'"platform":', b'"platform":"sev-snp","platform":'), "malformed-json"),
    (GOOD.encode().replace(b'"ark":', b'"ark":"","ark":'), "malformed-json"),
    (GOOD.encode().replace(b'"nonce":', b'"nonce":"","n\\u006fnce":'), "malformed-json"),
    (GOOD.encode().replace(b'"version":1', b'"version":NaN'), "malformed-json"),
    (GOOD.encode().replace(b'"version":1', b'"version":Infinity'), "malformed-json"),
    (GOOD.encode().replace(b'"version":1', b'"version":-Infinity'), "malformed-json"),
    (GOOD.encode().replace(b'"version":1', b'"version":1.0'), "wrong-type"),
    (GOOD.encode().replace(b'"version":1', b'"version":1e0'), "wrong-type"),
    (GOOD.encode().replace(b'"version":1', b'"version":1e400'), "wrong-type"),
    (GOOD.encode().replace(b'"version":1', b'"version":01'), "malformed-json"),
    (GOOD.encode().replace(b'"version":1', b'"version":' + b"9" * 20), "malformed-json"),
    (GOOD.encode().replace(b'"version":1', b'"version":' + b"9" * 5000), "malformed-json"),
    (GOOD.encode().replace(b'"version":1', b'"version":-0'), "malformed-json"),
    (GOOD.encode().replace(b'"version":1', b'"version":"1"'), "wrong-type"),
    (GOOD.encode().replace(b'"version":1', b'"version":true'), "wrong-type"),
    (GOOD.encode().replace(b'"version":1', b'"version":null'), "wrong-type"),
    (GOOD.encode().replace(b'"version":1', b'"version":0'), "unsupported-version"),
    (GOOD.encode().replace(b'"version":1', b'"version":2'), "unsupported-version"),
    (GOOD.encode().replace(b"}}", b"},}"), "malformed-json"),
    (GOOD.encode().replace(b'"', b"'"), "malformed-json"),
    (b"/* */" + GOOD.encode(), "malformed-json"),
    (b'{"a":' * 9 + b"1" + b"}" * 9, "malformed-json"),
    (b'{"a":' + b"[" * 8, "malformed-json"),
    (b'{"a":' + b"[" * 100_000, "malformed-json"),
]


@pytest.mark.parametrize(("data", "code"), MALFORMED)
def test_a_document_has_one_spelling(data: bytes, code: str) -> None:
    """C-17: second spellings, trailing bytes, doubled keys, numbers that are not integers, depth."""
    assert refused_as(data) == code


WRONG: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    *[(lambda d, key=key: d.pop(key), "missing-key") for key in json.loads(GOOD.encode())],
    *[
        (lambda d, key=key: d["transcript"].pop(key), "missing-key")
        for key in json.loads(GOOD.encode())["transcript"]
    ],
    (lambda d: d.update(extra=1), "unknown-key"),
    (lambda d: d.update(simulated=True), "unknown-key"),
    (lambda d: d["transcript"].update(key="x"), "unknown-key"),
    (lambda d: d["endorsements"].update(root="AA=="), "unknown-key"),
    (lambda d: d["endorsements"].update({"\ud800": "AA=="}), "unknown-key"),
    (lambda d: d.update(platform=1), "wrong-type"),
    (lambda d: d.update(platform="x" * 65), "wrong-type"),
    (lambda d: d.update(platform="sev\u2010snp"), "wrong-type"),
    (lambda d: d.update(platform="\ud800"), "wrong-type"),
    (lambda d: d.update(platform="sev-snp\n"), "wrong-type"),
    (lambda d: d.update(transcript=[]), "wrong-type"),
    (lambda d: d.update(endorsements=None), "wrong-type"),
    (lambda d: d.update(evidence=None), "wrong-type"),
    (lambda d: d.update(evidence=[1, 2]), "wrong-type"),
    (lambda d: d["transcript"].update(form=0), "wrong-type"),
    (lambda d: d["transcript"].update(form=3), "wrong-type"),
    (lambda d: d["transcript"].update(form=True), "wrong-type"),
    (lambda d: d["transcript"].update(form=2), "wrong-type"),
    (lambda d: d["transcript"].update(nonce=""), "wrong-type"),
    (lambda d: d["transcript"].update(nonce=b64encode(bytes(31)).decode()), "wrong-type"),
    (lambda d: d["transcript"].update(key_config=""), "wrong-type"),
    (lambda d: d["transcript"].update(boot_id=b64encode(bytes(15)).decode()), "wrong-type"),
    (lambda d: d["transcript"].update(config_digest=b64encode(bytes(32)).decode()), "wrong-type"),
    (lambda d: d["transcript"].update(tls_spki_sha256=b64encode(bytes(31)).decode()), "wrong-type"),
    (lambda d: d["transcript"].update(receipt_key=""), "wrong-type"),
    (lambda d: d["transcript"].update(receipt_key=None), "wrong-type"),
    (lambda d: d["transcript"].update(receipt_key=b64encode(bytes(31)).decode()), "wrong-type"),
    (lambda d: d["transcript"].update(receipt_key=b64encode(bytes(33)).decode()), "wrong-type"),
    (lambda d: d["transcript"].update(not_before=-1), "wrong-type"),
    (lambda d: d["transcript"].update(not_after=253402300800), "wrong-type"),
    (lambda d: d["transcript"].update(not_after="1780003600"), "wrong-type"),
    (lambda d: d["transcript"].update(profile="blindbox/2"), "unsupported-version"),
    (lambda d: d["transcript"].update(profile=""), "unsupported-version"),
    (lambda d: d["transcript"].update(profile=1), "wrong-type"),
    # base64
    (lambda d: d.update(evidence="ZXZpZGVuY2U"), "wrong-type"),  # no padding
    (lambda d: d.update(evidence="ZXZpZGVuY2V="), "wrong-type"),  # unused bits are set
    (lambda d: d.update(evidence="ZXZp\nZGVuY2U="), "wrong-type"),
    (lambda d: d.update(evidence=" ZXZpZGVuY2U="), "wrong-type"),
    (lambda d: d.update(evidence="ZXZpZGVuY2U=="), "wrong-type"),
    (lambda d: d.update(evidence="-_-_"), "wrong-type"),  # the other alphabet
    (lambda d: d.update(evidence="ZXZpZGVuY2U\u003d\u00e9"), "wrong-type"),
    (lambda d: d.update(evidence="===="), "wrong-type"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "code"), WRONG)
def test_what_is_missing_unknown_or_of_another_type_is_refused(
    change: Callable[[dict[str, Any]], object], code: str
) -> None:
    """C-17, C-20: one change to a document that is otherwise good."""
    assert refused_as(changed(change)) == code


def test_a_document_that_is_too_large_is_refused_before_it_is_read() -> None:
    """C-18: 256 KiB, whatever is in them."""
    good = GOOD.encode()
    AttestationDocument.parse(good + b" " * (MAX_DOCUMENT - len(good)))
    assert refused_as(good + b" " * (MAX_DOCUMENT - len(good) + 1)) == "document-too-large"
    assert refused_as(bytes(10_000_000)) == "document-too-large"


def test_endorsements_are_at_most_64_kib_together() -> None:
    """C-18: certificates are small."""
    half = bytes(MAX_ENDORSEMENTS // 2)
    exactly = replace(GOOD, endorsements={"ark": half, "ask": half})
    assert AttestationDocument.parse(exactly.encode()) == exactly
    more = json.loads(exactly.encode())
    more["endorsements"]["crl"] = "AA=="
    assert refused_as(json.dumps(more).encode()) == "document-too-large"


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":"' + b'\\"' * 131_000,
        b'{"a":' + b'"' * 262_000,
        b"[" * 262_144,
        b'{"' + b"\\" * 262_000,
        b'{"version":1,' + b'"a":1,' * 43_000,
    ],
)
def test_a_hostile_document_is_refused_in_no_time(data: bytes) -> None:
    """C-18: the longest that is read, in shapes that make a scanner go back and forth."""
    start = time.perf_counter()
    refused_as(data)
    assert time.perf_counter() - start < 30.0


def test_a_document_does_not_change_when_the_mapping_it_was_made_from_does() -> None:
    endorsements = {"ark": b"ark"}
    document = replace(GOOD, endorsements=endorsements)
    endorsements["ark"] = b"another"
    assert document.endorsements["ark"] == b"ark"


@pytest.mark.parametrize(
    "change",
    [
        {"form": 0},
        {"form": 3},
        {"key_config": b""},
        {"key_config": bytes(MAX_KEY_CONFIG + 1)},
        {"nonce": b""},
        {"form": 2},  # with a nonce
        {"not_before": -1},
        {"not_after": -1},
        {"not_before": 253402300800},
        {"not_after": 253402300800},
        {"boot_id": bytes(15)},
        {"config_digest": bytes(47)},
        {"tls_spki_sha256": bytes(31)},
        {"receipt_key": bytes(31)},
    ],
)
def test_no_transcript_is_made_of_what_none_would_be_read_from(change: dict[str, Any]) -> None:
    """C-20: also where it was not read from JSON."""
    with pytest.raises(MalformedEvidence) as caught:
        replace(GOOD.transcript, **change)
    assert caught.value.code == "wrong-type"


def test_the_longest_key_configuration_is_read() -> None:
    longest = replace(GOOD, transcript=replace(GOOD.transcript, key_config=bytes(MAX_KEY_CONFIG)))
    assert AttestationDocument.parse(longest.encode()) == longest


def test_no_document_is_made_with_an_endorsement_of_another_name() -> None:
    """C-17: also where it was not read from JSON."""
    with pytest.raises(MalformedEvidence, match="no such endorsement: 'intermediate'") as caught:
        replace(GOOD, endorsements={"intermediate": b""})
    assert caught.value.code == "unknown-key"


def test_a_later_version_is_one_as_far_as_numbers_go() -> None:
    for version, code in (((1 << 63) - 1, "unsupported-version"), (1 << 63, "wrong-type")):
        assert refused_as(changed(lambda told, version=version: told.update(version=version))) == code
