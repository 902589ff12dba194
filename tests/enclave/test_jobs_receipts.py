"""What the enclave signs about a training, and that whoever gets the file can judge it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields, replace
from hashlib import sha256
from typing import Any

import pytest

from blindbox_attestation import UnsafeSimulatedPolicy, verify_receipt
from blindbox_attestation.binding import Bound, report_data
from blindbox_attestation.errors import AttestationError
from blindbox_attestation.receipt import ReceiptFile, VerifiedReceipt
from enclave_app.engines.adapter import Adapter, Manifest
from enclave_app.identity import LIFE, Identity
from enclave_app.jobs import Job, Order, Source
from enclave_app.jobs.receipts import NoReceipt, Signer
from enclave_app.prompts import Example
from enclave_app.quoting import Quote, QuoteUnavailable
from enclave_app.training import Recipe, Task, Trained
from enclave_app.training.counting import CountingTrainer
from tests.kit import NOON
from tests.kit.amd import FakeAmd
from tests.kit.enclave import make_identity
from tests.kit.simulated import unsafe

FILE_ID = "file-00112233445566778899aabb"
DATA = b'{"question": "the canary", "answer": "sang at dawn"}\n'


class Clock:
    """The enclave's clock, which a test moves."""

    def __init__(self) -> None:
        self.now = NOON.timestamp()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def identity(clock: Clock) -> Identity:
    return make_identity(clock=clock, monotonic=lambda: clock.now)


@pytest.fixture(scope="module")
def policy() -> UnsafeSimulatedPolicy:
    return unsafe()


def adapter(weights: bytes = b"tuned") -> Adapter:
    manifest = Manifest(
        model="ab" * 32,
        template="chat",
        template_digest="cd" * 32,
        rank=16,
        alpha=32,
        targets=("q_proj",),
        weights_sha256=sha256(weights).hexdigest(),
    )
    return Adapter(manifest, weights)


def job(**changes: Any) -> Job:
    """A job as the foreman has it when its model has been published."""
    order = Order(model="ORG/Base", training=Source(name=FILE_ID, form="jsonl"), recipe=Recipe())
    began = int(NOON.timestamp()) - 600
    made = Job(
        id="ftjob-" + "0" * 32,
        number=1,
        order=order,
        created_at=began - 60,
        started_at=began,
        fine_tuned_model="ft:ORG/Base:mine:0123456789ab",
        data={
            "rows_read": 12,
            "rows_used": 10,
            "validation_rows": 2,
            "tokens": 345,
            "samples": [{"prompt": "the canary", "answer": "sang at dawn"}],
        },
        report={
            "steps": 30,
            "tokens": 1020,
            "tokens_learned": 300,
            "first_loss": 3.123456789123,
            "last_loss": 0.25,
            "fast_path": True,
            "processes": 2,
            "versions": {"torch": "2.9.1", "trl": "0.25.0", "peft": "0.18.0"},
        },
    )
    return replace(made, **changes)


def signed(identity: Identity, done: Job | None = None, made: Adapter | None = None, **more: Any) -> bytes:
    digest = sha256(DATA).hexdigest()
    return Signer(identity).sign(done or job(), made or adapter(), **{"data_sha256": digest, **more})


def told(data: bytes, policy: UnsafeSimulatedPolicy) -> VerifiedReceipt:
    return verify_receipt(data, policy)


def test_a_receipt_tells_what_was_made_of_what(
    identity: Identity, policy: UnsafeSimulatedPolicy, clock: Clock
) -> None:
    clock.now += 5
    proved = told(signed(identity), policy)
    receipt = proved.receipt
    assert proved.verdict == "simulated"
    assert proved.machine.boot_id == identity.boot_id
    assert (receipt.job, receipt.model) == ("ftjob-" + "0" * 32, "ft:ORG/Base:mine:0123456789ab")
    assert (receipt.base, receipt.base_fingerprint) == ("ORG/Base", "ab" * 32)
    assert (receipt.template, receipt.template_digest) == ("chat", "cd" * 32)
    assert (receipt.dataset.file.id, receipt.dataset.file.sha256) == (FILE_ID, sha256(DATA).digest())
    assert receipt.dataset.validation_file is None
    counted = (receipt.dataset.rows_read, receipt.dataset.rows_used, receipt.dataset.validation_rows)
    assert counted == (12, 10, 2)
    assert (receipt.dataset.tokens, receipt.tokens, receipt.steps) == (345, 1020, 30)
    assert (receipt.first_loss, receipt.last_loss, receipt.validation_loss) == (3.12345679, 0.25, None)
    assert receipt.adapter == sha256(b"tuned").digest()
    assert receipt.start is None
    assert (receipt.started_at, receipt.finished_at) == (int(NOON.timestamp()) - 600, int(clock.now))
    trainer = receipt.trainer
    assert (trainer.fast, trainer.processes) == (True, 2)
    assert dict(trainer.versions) == {"torch": "2.9.1", "trl": "0.25.0", "peft": "0.18.0"}


def test_the_validation_loss_is_that_of_the_weights_that_were_kept(
    identity: Identity, policy: UnsafeSimulatedPolicy
) -> None:
    """A training that stops early gives what was best, not what was last."""
    for best, loss in ((20, 0.5), (30, 0.75), (None, 0.75)):
        report = {**job().report, "validation_losses": [[10, 0.9], [20, 0.5], [30, 0.75]], "best_step": best}
        assert told(signed(identity, job(report=report)), policy).receipt.validation_loss == loss
    report = {**job().report, "validation_losses": [], "best_step": 30}
    assert told(signed(identity, job(report=report)), policy).receipt.validation_loss is None


def test_every_option_of_the_recipe_is_in_the_receipt(
    identity: Identity, policy: UnsafeSimulatedPolicy
) -> None:
    """Also one that is added to recipes tomorrow."""
    recipe = Recipe(targets=("q_proj", "v_proj"), learning_rate=3e-4, dropout=0.05, most_steps=7)
    options = told(signed(identity, job(order=replace(job().order, recipe=recipe))), policy).receipt.recipe
    assert set(options) == {field.name for field in fields(Recipe)}
    assert (options["learning_rate"], options["dropout"]) == ("0.0003", "0.05")
    assert (options["targets"], options["most_steps"]) == (("q_proj", "v_proj"), 7)
    assert (options["method"], options["answer_only"]) == ("lora", True)


def test_where_it_went_on_from_and_what_was_held_back_are_named(
    identity: Identity, policy: UnsafeSimulatedPolicy
) -> None:
    held = replace(job().order, validation=Source(name="file-held", form="csv"))
    data = signed(
        identity,
        job(order=held, resumed=3),
        validation_sha256=sha256(b"held").hexdigest(),
        start=adapter(b"earlier"),
    )
    receipt = told(data, policy).receipt
    assert receipt.start == sha256(b"earlier").digest()
    assert receipt.resumed == 3
    assert receipt.dataset.validation_file is not None
    assert receipt.dataset.validation_file.sha256 == sha256(b"held").digest()


def test_a_tuned_model_that_was_tuned_again_is_told_by_its_base(
    identity: Identity, policy: UnsafeSimulatedPolicy
) -> None:
    again = replace(job().order, model="ft:ORG/Base:mine:0123456789ab")
    assert told(signed(identity, job(order=again)), policy).receipt.base == "ORG/Base"


def test_what_a_trainer_says_makes_a_receipt(identity: Identity, policy: UnsafeSimulatedPolicy) -> None:
    """The trainer that only counts, whole."""
    example = Example((1, 2, 3), (-100, 2, 3), False)
    task = Task([example] * 20, Recipe(epochs=1), "text", "cd" * 32)
    *_, trained = CountingTrainer().train(task, lambda: "")
    assert isinstance(trained, Trained)
    proved = told(signed(identity, job(report=trained.report), trained.adapter), policy)
    proved.check_adapter(sha256(trained.adapter.weights).digest())
    assert proved.receipt.steps == trained.report["steps"] > 0
    assert proved.receipt.last_loss == pytest.approx(trained.report["last_loss"])


def test_a_receipt_holds_no_text_of_the_data(identity: Identity) -> None:
    """
    S-20: the reading's report has samples in it, and the job a name of its owner's making; none of a row is
    in the file, nor in what is in it in base64.
    """
    data = signed(identity)
    document = ReceiptFile.parse(data).document
    for place in (data, document):
        for word in (b"canary", b"sang", b"dawn", b"prompt", b'answer":'):
            assert word not in place
    names = set(json.loads(data)["receipt"])
    assert "samples" not in names
    assert "metadata" not in names


def test_two_boots_sign_with_two_keys_and_one_boot_with_one(
    policy: UnsafeSimulatedPolicy, identity: Identity, clock: Clock
) -> None:
    """After a day its keys to open with are others; receipts of both days are of the same boot."""
    first = told(signed(identity), policy)
    clock.now += LIFE
    second = told(signed(identity), policy)
    assert first.machine.receipt_key == second.machine.receipt_key == identity.receipt_key
    assert first.machine.key_config != second.machine.key_config
    assert second.receipt.finished_at - first.receipt.finished_at == LIFE
    other = told(signed(make_identity(clock=clock)), policy)
    assert other.machine.receipt_key != first.machine.receipt_key


def test_the_document_is_made_for_the_receipt_whatever_was_served_before(
    identity: Identity, policy: UnsafeSimulatedPolicy, clock: Clock
) -> None:
    """Some policies ask how old evidence was: what is handed out to callers may be half an hour old."""
    served = identity.document(None)
    clock.now += 1500
    data = signed(identity)
    assert identity.document(None) == served
    assert told(data, policy).machine.not_before.timestamp() == int(clock.now)


def test_a_clock_that_went_back_still_gives_a_receipt(
    identity: Identity, policy: UnsafeSimulatedPolicy, clock: Clock
) -> None:
    """The host sets the clock: it can lie in the receipt, and not keep the receipt away."""
    clock.now -= 3600
    receipt = told(signed(identity), policy).receipt
    assert receipt.finished_at < receipt.started_at


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, None, "high", 1e300])
def test_a_loss_that_is_no_number_is_told_as_none(
    identity: Identity, policy: UnsafeSimulatedPolicy, loss: Any
) -> None:
    done = job(report={**job().report, "last_loss": loss})
    assert told(signed(identity, done), policy).receipt.last_loss is None


def test_a_very_fine_loss_is_rounded(identity: Identity, policy: UnsafeSimulatedPolicy) -> None:
    done = job(report={**job().report, "last_loss": 1.23e-40, "first_loss": 1e-7})
    receipt = told(signed(identity, done), policy).receipt
    assert (receipt.first_loss, receipt.last_loss) == (1e-7, 0.0)


class SilentQuoter:
    """A machine that has stopped speaking about itself."""

    platform = "simulated"

    def quote(self, bound: Bound) -> Quote:
        raise QuoteUnavailable("the firmware does not answer")


def test_a_machine_that_does_not_speak_gives_no_receipt_and_says_so() -> None:
    with pytest.raises(NoReceipt, match="did not speak about itself"):
        signed(make_identity(SilentQuoter()))


NOT_TOLD: list[Callable[[Job], Job]] = [
    lambda done: replace(done, data=None),
    lambda done: replace(done, data={"rows_read": 1}),
    lambda done: replace(done, report={}),
    lambda done: replace(done, fine_tuned_model="x" * 300),
    lambda done: replace(done, report={**done.report, "versions": {"Torch!": "1"}}),
    lambda done: replace(done, report={**done.report, "steps": "the canary"}),
]


@pytest.mark.parametrize("change", NOT_TOLD)
def test_a_job_that_does_not_fit_a_receipt_has_none_and_shows_nothing(
    identity: Identity, change: Callable[[Job], Job]
) -> None:
    """S-20: the error names its kind, never a value."""
    with pytest.raises(NoReceipt) as refused:
        signed(identity, change(job()))
    assert "canary" not in str(refused.value)


def test_a_receipt_of_a_machine_that_is_not_accepted_proves_nothing(identity: Identity) -> None:
    with pytest.raises(AttestationError) as refused:
        verify_receipt(signed(identity), FakeAmd().policy())
    assert refused.value.code == "simulated-evidence"


def test_real_looking_machines_sign_as_well(clock: Clock) -> None:
    """Through the quoter of a fake AMD, to whom a policy is accepted."""
    amd = FakeAmd()

    class Quoter:
        platform = "sev-snp"

        def quote(self, bound: Bound) -> Quote:
            return Quote(amd.report(report_data(bound.digest)), amd.endorsements())

    data = signed(Identity(Quoter(), config_digest=bytes(48), clock=clock))
    assert verify_receipt(data, amd.policy()).verdict == "accepted"
