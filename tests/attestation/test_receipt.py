"""The training receipt: an honest one is proved, and whatever is changed in it is refused."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import pickle
import random
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from blindbox_attestation.binding import Bound, report_data, transcript_bytes
from blindbox_attestation.errors import (
    AttestationError,
    BlindBoxError,
    ForgedReceipt,
    InvalidPolicy,
    ReceiptMismatch,
    ReceiptRefused,
    UnreadableReceipt,
)
from blindbox_attestation.evidence import SIMULATED, AttestationDocument
from blindbox_attestation.policy import AllOf, AnyOf
from blindbox_attestation.receipt import (
    MAX_OPTIONS,
    MAX_RECEIPT,
    Dataset,
    File,
    Receipt,
    ReceiptFile,
    SigningKey,
    Trainer,
    canonical,
    number_text,
    verify_receipt,
)
from blindbox_attestation.simulated import SIMULATED_ENDORSEMENTS, simulated_report
from tests.kit import NOON
from tests.kit.amd import MEASUREMENT, FakeAmd
from tests.kit.receipts import DATA, KEY, RECEIPT, WEIGHTS, document_of, made, retold
from tests.kit.simulated import unsafe

AMD = FakeAmd("Genoa")
FILE = made(AMD)
OTHER_KEY = SigningKey.from_bytes(bytes(range(1, 33)))


def refusal(data: bytes, policy: Any = None) -> BlindBoxError:
    with pytest.raises((ReceiptRefused, AttestationError)) as refused:
        verify_receipt(data, policy or AMD.policy())
    error = refused.value
    assert isinstance(error, BlindBoxError)
    return error


def code_of(data: bytes, policy: Any = None) -> str:
    error = refusal(data, policy)
    assert isinstance(error, ReceiptRefused | AttestationError)
    return error.code


def test_an_honest_receipt_is_proved_and_says_who_signed() -> None:
    proved = verify_receipt(FILE.encode(), AMD.policy())
    assert proved.verdict == "accepted"
    assert proved.receipt == FILE.receipt
    assert proved.machine.measurement == MEASUREMENT
    assert proved.machine.evidence_id == FILE.receipt.evidence_id
    assert proved.machine.verified_at == FILE.receipt.finished == NOON
    proved.check_adapter(hashlib.sha256(WEIGHTS).digest())
    proved.check_data(hashlib.sha256(DATA).digest())


def test_the_signed_bytes_are_those_of_the_specification() -> None:
    """Written out once more: label, a zero byte, and the canonical JSON of "receipt"."""
    told = json.loads(FILE.encode())
    assert list(told) == ["document", "format", "receipt", "signature"]
    signed = json.dumps(told["receipt"], sort_keys=True, separators=(",", ":")).encode()
    Ed25519PublicKey.from_public_bytes(KEY.public_bytes).verify(
        FILE.signature, b"blindbox/receipt/v1\x00" + signed
    )
    assert KEY.public_bytes == (
        Ed25519PrivateKey.from_private_bytes(bytes(range(32))).public_key().public_bytes_raw()
    )
    assert told["receipt"]["losses"] == {"first": "3.25", "last": "0.125", "validation": None}
    assert told["receipt"]["adapter"] == hashlib.sha256(WEIGHTS).hexdigest()


# ── every bit ─────────────────────────────────────────────────────────────────────────────────────────────


def flips(data: bytes, bits: range | list[int]) -> Iterator[tuple[int, bytes]]:
    changed = bytearray(data)
    for bit in bits:
        changed[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(changed)
        changed[bit // 8] ^= 1 << bit % 8


def check_flips(bits: range | list[int]) -> None:
    policy = AMD.policy()
    unnoticed = []
    for bit, changed in flips(FILE.encode(), bits):
        try:
            verify_receipt(changed, policy)
        except (ReceiptRefused, AttestationError):
            continue
        unnoticed.append(bit)
    assert unnoticed == []


def test_a_flipped_bit_anywhere_in_a_receipt_is_refused() -> None:
    """C-15: one bit in eleven of the signed part and the signature, fewer of the document."""
    data = FILE.encode()
    start = data.index(b'"format"')
    assert data.startswith(b'{"document":"')  # the longest part is the first
    check_flips(range(0, 8 * start, 73))
    check_flips(range(8 * start, 8 * len(data), 11))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_flipped_bit_of_a_receipt_is_refused() -> None:
    """C-15: all of them."""
    check_flips(range(8 * len(FILE.encode())))


def test_a_receipt_cut_short_or_with_bytes_after_it_is_refused() -> None:
    """C-17, C-19: a line break that an editor added is told in words."""
    data = FILE.encode()
    for size in [*range(60), *range(60, len(data), 131), *range(len(data) - 60, len(data))]:
        assert code_of(data[:size]) == "malformed-json"
    for more in (b"\n", b" "):
        assert code_of(data + more) == "not-canonical"
        assert "keep the bytes that came" in str(refusal(data + more))
    assert code_of(data + b"{}") == "malformed-json"
    assert code_of(data + b"\x00") == "malformed-json"
    assert code_of(b"\xef\xbb\xbf" + data) == "malformed-json"


def test_a_receipt_has_one_spelling() -> None:
    """C-17: over several lines, in another order, with an escape: the meaning is the same."""
    told = json.loads(FILE.encode())
    assert code_of(json.dumps(told, indent=1).encode()) == "not-canonical"
    turned = {name: told[name] for name in reversed(told)}
    assert code_of(json.dumps(turned, separators=(",", ":")).encode()) == "not-canonical"
    assert code_of(FILE.encode().replace(b'"lora"', b'"\\u006cora"')) == "not-canonical"
    assert code_of(FILE.encode().replace(b'"receipt":', b'"receipt":{},"receipt":', 1)) == "malformed-json"
    assert code_of(FILE.encode().replace(b'"steps":', b'"steps":1,"steps":')) == "malformed-json"


# ── its form ──────────────────────────────────────────────────────────────────────────────────────────────

KEYS = json.loads(FILE.encode())
PARTS = [name for name, value in KEYS["receipt"].items() if isinstance(value, dict)]
CLOSED = [name for name in PARTS if name != "recipe"]


@pytest.mark.parametrize("name", sorted(KEYS))
def test_no_key_of_the_file_may_be_missing(name: str) -> None:
    wanted = "unsupported-version" if name == "format" else "missing-key"
    assert code_of(retold(FILE, lambda told: told.pop(name))) == wanted


@pytest.mark.parametrize("name", sorted(KEYS["receipt"]))
def test_no_key_of_the_receipt_may_be_missing_or_of_another_type(name: str) -> None:
    assert code_of(retold(FILE, lambda told: told["receipt"].pop(name))) == "missing-key"
    strange: list[Any] = [1.5, [], [[]], -1, "\u202e", "x\n", "\ud800", "x" * 257, True]
    for value in strange:
        told = json.loads(FILE.encode())
        told["receipt"][name] = value
        assert code_of(canonical(told)) in {"wrong-type", "missing-key"}, (name, value)


@pytest.mark.parametrize("part", CLOSED)
def test_no_part_of_the_receipt_has_a_key_more_or_less(part: str) -> None:
    assert code_of(retold(FILE, lambda told: told["receipt"][part].update(more=1))) == "unknown-key"
    for name in KEYS["receipt"][part]:
        told = json.loads(FILE.encode())
        del told["receipt"][part][name]
        assert code_of(canonical(told)) == "missing-key"


WRONG: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda d: d.update(more=1), "unknown-key"),
    (lambda d: d.update(format="blindbox-receipt/2"), "unsupported-version"),
    (lambda d: d.update(format=1), "unsupported-version"),
    (lambda d: d.update(receipt=[]), "wrong-type"),
    (lambda d: d.update(receipt=None), "wrong-type"),
    (lambda d: d["receipt"].update(more=1), "unknown-key"),
    (lambda d: d.update(signature=""), "wrong-type"),
    (lambda d: d.update(signature=d["signature"][:-4]), "wrong-type"),
    (lambda d: d.update(signature=None), "wrong-type"),
    (lambda d: d.update(document=7), "wrong-type"),
    (lambda d: d["receipt"].update(adapter="AB" * 32), "wrong-type"),
    (lambda d: d["receipt"].update(adapter="ab" * 31), "wrong-type"),
    (lambda d: d["receipt"].update(start="ab"), "wrong-type"),
    (lambda d: d["receipt"]["evidence"].update(id="ab" * 32), "wrong-type"),
    (lambda d: d["receipt"].update(finished_at=253402300800), "wrong-type"),
    (lambda d: d["receipt"].update(started_at="2026"), "wrong-type"),
    (lambda d: d["receipt"]["trainer"].update(fast=1), "wrong-type"),
    (lambda d: d["receipt"]["trainer"]["versions"].update({"Torch": "2"}), "unknown-key"),
    (lambda d: d["receipt"]["recipe"].update({"a b": 1}), "unknown-key"),
    (lambda d: d["receipt"]["recipe"].update({"\ud800": 1}), "unknown-key"),
    (lambda d: d["receipt"]["recipe"].update(one={}), "wrong-type"),
    (lambda d: d["receipt"]["recipe"].update(one=[1]), "wrong-type"),
    (lambda d: d["receipt"]["recipe"].update(one=["x"] * 257), "wrong-type"),
    (lambda d: d["receipt"]["recipe"].update(one=1 << 63), "wrong-type"),
    (lambda d: d["receipt"].update(recipe={f"o{n}": 1 for n in range(MAX_OPTIONS + 1)}), "wrong-type"),
    (
        lambda d: d["receipt"].update(recipe={f"o{n}": ["x" * 256] * 256 for n in range(2)}),
        "receipt-too-large",
    ),
    *[
        (lambda d, loss=loss: d["receipt"]["losses"].update(last=loss), "wrong-type")
        for loss in ("", "1.0", "01", "+1", "1e3", ".5", "1.", "-0", "NaN", "inf", " 1", "1,5", 3, 1.5, "١")
    ],
]


@pytest.mark.parametrize(("change", "code"), WRONG)
def test_what_is_unknown_or_of_another_type_is_refused(
    change: Callable[[dict[str, Any]], object], code: str
) -> None:
    """C-17: one change to a receipt that is otherwise good."""
    data = retold(FILE, change)
    with pytest.raises(UnreadableReceipt) as refused:
        ReceiptFile.parse(data)
    assert refused.value.code == code
    assert isinstance(refused.value, ValueError)


def test_a_receipt_that_is_too_large_is_refused_before_it_is_read() -> None:
    """C-18."""
    assert code_of(bytes(MAX_RECEIPT + 1)) == "receipt-too-large"
    assert code_of(b"[" * MAX_RECEIPT) == "malformed-json"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_receipt_with_any_value_put_anywhere_is_refused_with_a_typed_error(data: st.DataObject) -> None:
    """C-17: the right shape with one value of another kind."""
    told = json.loads(FILE.encode())
    place = data.draw(st.sampled_from([told, told["receipt"], *(told["receipt"][part] for part in PARTS)]))
    name = data.draw(st.sampled_from(sorted(place)))
    was = place[name]
    place[name] = data.draw(json_values)
    if json.dumps(place[name]) != json.dumps(was):
        encoded = json.dumps(told, sort_keys=True, separators=(",", ":")).encode()
        assert isinstance(refusal(encoded), ReceiptRefused | AttestationError)


@given(st.binary(max_size=300) | json_values.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_a_receipt_or_a_typed_error(data: bytes) -> None:
    """C-17: whatever a hostile writer of files makes."""
    with pytest.raises(UnreadableReceipt):
        ReceiptFile.parse(data)


words = st.text(st.characters(categories=("L", "M", "N", "P", "S")), max_size=30)
counts = st.integers(0, (1 << 63) - 1)
losses = st.none() | st.floats(-1e6, 1e6, allow_subnormal=False).map(lambda one: round(one, 12))
digests = st.binary(min_size=32, max_size=32)
files = st.builds(File, words, digests)
names = st.from_regex(r"[a-z][a-z0-9_.-]{0,63}", fullmatch=True)
receipts = st.builds(
    Receipt,
    job=words,
    model=words,
    base=words,
    base_fingerprint=words,
    template=words,
    template_digest=words,
    dataset=st.builds(Dataset, files, st.none() | files, counts, counts, counts, counts),
    recipe=st.dictionaries(
        names,
        st.none() | st.booleans() | st.integers(-5, 5) | words | st.lists(words, max_size=3).map(tuple),
        max_size=5,
    ),
    start=st.none() | digests,
    adapter=digests,
    steps=counts,
    tokens=counts,
    first_loss=losses,
    last_loss=losses,
    validation_loss=losses,
    started_at=st.integers(0, 253402300799),
    finished_at=st.integers(0, 253402300799),
    resumed=counts,
    trainer=st.builds(Trainer, st.booleans(), counts, st.dictionaries(names, words, max_size=4)),
    evidence_id=st.binary(min_size=48, max_size=48),
    document_sha256=digests,
)


@given(receipts)
@settings(max_examples=30, deadline=None)
def test_what_is_written_is_read_back(receipt: Receipt) -> None:
    file = ReceiptFile(receipt, bytes(64), b"document")
    assert ReceiptFile.parse(file.encode()) == file
    assert json.loads(receipt.encode()) == json.loads(file.encode())["receipt"]


def test_every_field_of_a_receipt_is_signed() -> None:
    """A receipt with any field otherwise, beside the signature of the first."""
    other: dict[str, Any] = {
        "dataset": replace(RECEIPT.dataset, rows_used=201),
        "recipe": {**RECEIPT.recipe, "rank": 17},
        "trainer": replace(RECEIPT.trainer, fast=False),
        "start": bytes(32),
        "first_loss": 3.5,
        "last_loss": None,
        "validation_loss": 0.5,
        "adapter": bytes(32),
        "evidence_id": bytes(48),
        "document_sha256": bytes(32),
    }
    for field in fields(Receipt):
        was = getattr(FILE.receipt, field.name)
        changed = other.get(field.name, was + 1 if isinstance(was, int) else f"{was}x")
        forged = replace(FILE, receipt=replace(FILE.receipt, **{field.name: changed}))
        assert code_of(forged.encode()) == "bad-receipt-signature", field.name


def test_what_could_not_be_read_again_is_not_signed() -> None:
    """Neither a string that is too long or turns the line around, nor a number that is none."""
    for change in (
        {"model": "x" * 257},
        {"base": "a\u202eb"},
        {"recipe": {"UPPER": 1}},
        {"recipe": {"rate": 0.5}},
        {"steps": -1},
        {"adapter": bytes(31)},
        {"last_loss": math.nan},
        {"last_loss": 1e30},
        {"resumed": 1 << 63},
    ):
        with pytest.raises(UnreadableReceipt) as refused:
            replace(RECEIPT, **change).encode()
        assert refused.value.code in {"wrong-type", "unknown-key", "malformed-json"}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (-0.0, "0"), (2e-4, "0.0002"), (3.0, "3"), (-1.5, "-1.5"), (1e15, "1000000000000000")],
)
def test_a_number_has_one_spelling(value: float, text: str) -> None:
    assert number_text(value) == text
    assert float(text) == value


# ── who signed ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_receipt_signed_by_another_key_is_refused() -> None:
    """The document of an honest machine, and a receipt that somebody else has signed."""
    forged = replace(FILE, signature=OTHER_KEY.sign(FILE.receipt.encode()))
    assert isinstance(refusal(forged.encode()), ForgedReceipt)
    assert code_of(forged.encode()) == "bad-receipt-signature"


def test_the_document_of_another_enclave_does_not_fit() -> None:
    """Both machines are accepted; put together they are not. With its own key in it, it is about that key."""
    theirs = document_of(AMD, OTHER_KEY, boot_id=bytes(16))
    assert code_of(replace(FILE, document=theirs).encode()) == "bad-receipt-signature"
    # Another document of the same boot: the signature holds, and it is not the one that the receipt names.
    later = document_of(AMD, not_before=int(NOON.timestamp()) - 30)
    assert code_of(replace(FILE, document=later).encode()) == "wrong-document"


@pytest.mark.parametrize("name", ["evidence_id", "document_sha256"])
def test_both_names_of_the_document_have_to_be_right(name: str) -> None:
    changed: dict[str, Any] = {name: bytes(len(getattr(RECEIPT, name)))}
    assert code_of(made(AMD, **changed).encode()) == "wrong-document"


def test_a_machine_without_a_key_for_receipts_has_signed_none() -> None:
    bare = made(AMD, document=document_of(AMD, None))
    assert code_of(bare.encode()) == "no-receipt-key"


def test_the_key_is_taken_out_of_what_the_hardware_signed() -> None:
    """C-4: a key written into the transcript afterwards."""
    document = json.loads(document_of(AMD, None))
    document["transcript"]["receipt_key"] = json.loads(document_of(AMD))["transcript"]["receipt_key"]
    forged = made(AMD, document=json.dumps(document, separators=(",", ":")).encode())
    assert code_of(forged.encode()) == "unbound-key"


def test_another_field_of_32_bytes_is_no_key_for_receipts() -> None:
    document = document_of(AMD, None, tls_spki_sha256=KEY.public_bytes)
    assert code_of(made(AMD, document=document).encode()) == "no-receipt-key"


def test_a_key_that_is_no_point_signs_nothing() -> None:
    """Attested all the same: a machine may say what it likes about its own key."""
    for bad in (b"\xff" * 32, b"\x02" + bytes(31)):
        document = AMD.document(nonce=b"", receipt_key=bad)
        assert code_of(made(AMD, document=document).encode()) == "bad-receipt-signature"


def test_the_signature_of_something_else_is_no_receipt() -> None:
    """The label keeps what this key signs apart from all other uses of Ed25519."""
    raw = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    forged = replace(FILE, signature=raw.sign(FILE.receipt.encode()))
    assert code_of(forged.encode()) == "bad-receipt-signature"


# ── whose machine, and when ───────────────────────────────────────────────────────────────────────────────


def test_a_machine_that_the_policy_does_not_accept_gives_no_receipt() -> None:
    assert code_of(FILE.encode(), AMD.policy(measurements={bytes(48)})) == "measurement-mismatch"
    stranger = made(FakeAmd("Genoa", name="Stranger"))
    assert code_of(stranger.encode()) == "unpinned-root"
    with pytest.raises(InvalidPolicy):
        verify_receipt(FILE.encode(), None)  # type: ignore[arg-type]


def test_the_cached_form_is_taken_whatever_the_policy_says_of_calls() -> None:
    """No nonce could be the reader's: they were not there. A document with one is another kind of proof."""
    for accept_cached in (False, True):
        policy = AMD.policy(accept_cached=accept_cached)
        assert verify_receipt(FILE.encode(), policy).verdict == "accepted"
        several = AnyOf([AMD.policy(measurements={bytes(48)}), policy])
        assert verify_receipt(FILE.encode(), several).verdict == "accepted"
        assert verify_receipt(FILE.encode(), AllOf([policy, AMD.policy()])).verdict == "accepted"
    fresh = made(AMD, document=document_of(AMD, nonce=bytes(range(32))))
    assert code_of(fresh.encode()) == "form-not-accepted"


def test_the_machine_is_judged_as_of_when_the_training_ended() -> None:
    """C-24: the hour of the document, give or take the policy's skew, and certificates good at that time."""
    start = int(NOON.timestamp()) - 60
    exact = AMD.policy(clock_skew=timedelta(0))
    for finished, wanted in (
        (start - 1, "outside-validity"),
        (start, None),
        (start + 3600, None),
        (start + 3601, "outside-validity"),
    ):
        data = made(AMD, finished_at=finished).encode()
        if wanted is None:
            verify_receipt(data, exact)
        else:
            assert code_of(data, exact) == wanted
    years = int(NOON.timestamp()) + 40 * 365 * 86400
    assert code_of(made(AMD, finished_at=years).encode()) == "certificate-not-valid-now"


def test_a_document_for_longer_than_an_hour_is_none_to_keep() -> None:
    start = int(NOON.timestamp()) - 60
    document = document_of(AMD, not_after=start + 3601)
    assert code_of(made(AMD, document=document).encode()) == "window-too-long"


def test_what_the_machine_did_not_send_can_be_brought() -> None:
    bare = made(AMD, document=document_of(AMD, endorsements={}))
    assert code_of(bare.encode()) == "missing-endorsement"
    assert verify_receipt(bare.encode(), AMD.policy(), collateral=AMD.endorsements()).verdict == "accepted"


def simulated() -> ReceiptFile:
    transcript = AMD.transcript(nonce=b"", receipt_key=KEY.public_bytes)
    bound = Bound.of(transcript_bytes(SIMULATED, transcript), transcript)
    report = simulated_report(report_data(bound.digest))
    document = AttestationDocument(SIMULATED, transcript, report, SIMULATED_ENDORSEMENTS).encode()
    return made(AMD, document=document)


def test_a_simulated_machines_receipt_is_never_accepted() -> None:
    """C-35: it says "simulated" to who asked for that in code, and is refused to everybody else."""
    data = simulated().encode()
    assert code_of(data) == "simulated-evidence"
    proved = verify_receipt(data, unsafe())
    assert proved.simulated
    assert proved.verdict == "simulated"
    assert code_of(FILE.encode(), unsafe()) == "platform-not-accepted"


# ── the files it is about ─────────────────────────────────────────────────────────────────────────────────


def test_another_adapter_or_data_file_than_the_receipts_is_told() -> None:
    held = File("file-held", hashlib.sha256(b"held back").digest())
    proved = verify_receipt(
        made(AMD, dataset=replace(RECEIPT.dataset, validation_file=held)).encode(), AMD.policy()
    )
    proved.check_validation(held.sha256)
    for check, code in (
        (proved.check_adapter, "adapter-mismatch"),
        (proved.check_data, "data-mismatch"),
        (proved.check_validation, "validation-mismatch"),
    ):
        with pytest.raises(ReceiptMismatch) as refused:
            check(bytes(32))
        assert refused.value.code == code
        assert bytes(32).hex() in str(refused.value)
    with pytest.raises(ReceiptMismatch, match="had no validation file"):
        verify_receipt(FILE.encode(), AMD.policy()).check_validation(held.sha256)


# ── the key ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_signing_key_cannot_be_copied_told_or_taken_out() -> None:
    """S-33: all that is needed of it happens inside."""
    seed = random.Random(7).randbytes(32)
    key = SigningKey.from_bytes(seed)
    for away in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="one owner"):
            away(key)
    assert seed.hex() not in repr(key)
    assert {name for name in dir(key) if not name.startswith("_")} == {
        "from_bytes",
        "generate",
        "public_bytes",
        "sign",
    }
    assert key.public_bytes != seed
    assert SigningKey.generate().public_bytes != SigningKey.generate().public_bytes


def test_canonical_json_is_sorted_and_short() -> None:
    assert canonical({"b": 1, "a": {"d": None, "c": ["é"]}}) == b'{"a":{"c":["\\u00e9"],"d":null},"b":1}'


def test_a_refusal_of_the_machine_tells_its_steps() -> None:
    """Those of SPEC §4, as for a call."""
    error = refusal(FILE.encode(), AMD.policy(measurements={bytes(48)}))
    assert isinstance(error, AttestationError)
    assert (error.steps[-1].number, error.steps[-1].outcome) == (12, "failed")
