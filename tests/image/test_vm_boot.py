"""
The demo's machine, booted: it proves itself by what was predicted of its files, and its model answers.

Everything here is real but the TPM, which is software, and the processor, which is emulated. What somebody
changes on the way, and how that ends, is in test_vm_tampered.py.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

import blindbox
import blindbox.requests as requests
from blindbox_attestation.event_log import EventLog
from blindbox_attestation.evidence import AttestationDocument
from enclave_app import settings_file
from image.measure import log, tdx
from image.measure.build import Build, config_digest
from image.vm.build import Wanted
from image.vm.run.qemu import Machine
from tests.kit import boots
from tests.kit.image import container_image
from tests.kit.own_home import moved_to
from tests.kit.process import free_port
from tests.kit.vm import buildah, small_image

pytestmark = [pytest.mark.container, pytest.mark.timeout(1500)]
WELL_KNOWN = [*range(1, 1024), 2375, 3000, 5000, 5900, 8000, 8080, 8443, 9000, 9090, 10250]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The virtual machine of the demo's image."""
    if os.geteuid() != 0:
        pytest.skip("mounting an image's files takes root")
    boots.need_qemu()
    with boots.built(Wanted(image=container_image(), out=tmp_path_factory.mktemp("demo") / "vm")) as out:
        yield out


@pytest.fixture(scope="module")
def measured(built: Path) -> Path:
    """What was predicted, before anything was started."""
    return boots.measurements(built)


@pytest.fixture(scope="module")
def another_release(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What was predicted of another image."""
    folder = tmp_path_factory.mktemp("another")
    image = small_image(f"localhost/blindbox-boot-test:{os.getpid()}", folder / "image")
    try:
        with boots.built(Wanted(image=image, out=folder / "vm")) as out:
            return boots.measurements(out)
    finally:
        buildah("rmi", "-f", image)


@pytest.fixture(scope="module")
def machine(measured: Path, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    disk, folder = built / "disk.raw", tmp_path_factory.mktemp("machine")
    with boots.answering(boots.wanted(disk, folder, memory=3072)) as one:
        yield one


@pytest.fixture(autouse=True)
def console(machine: Machine) -> Iterator[None]:
    """Shown where a test fails."""
    yield
    print(boots.tail(machine))


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved_to(tmp_path / "home", monkeypatch)


def test_the_machine_proves_what_was_predicted_and_its_model_answers(
    machine: Machine, measured: Path
) -> None:
    """C-6, S-32: registers 4, 11 and 12, worked out from the files, are those that its TPM quotes."""
    policy = boots.policy(measured, machine)
    assert policy.tpm is not None
    assert set(policy.tpm.boot.pcrs) == {4, 11, 12}
    with requests.Session(policy=policy) as session:
        answer = session.post(
            f"{machine.origin}/test",
            json={"input_text": "What is the capital of France?", "max_new_tokens": 7, "do_sample": False},
            timeout=600,
        )
        assert session.proof is not None
        proved = {check.name for check in session.proof.checks if check.outcome == "passed"}
    assert answer.status_code == 200
    assert "Paris" in answer.json()["text"]
    assert {"PCR4", "PCR11", "PCR12"} <= proved


def test_every_event_of_the_boot_was_predicted(machine: Machine, measured: Path, built: Path) -> None:
    """C-6: and with them the run-time registers that a TDX machine would have."""
    with requests.Session(policy=boots.policy(measured, machine)) as session:
        evidence = AttestationDocument.parse(session.prove(machine.origin).document)
    found = EventLog.parse(evidence.endorsements["event_log"])
    predicted = Build.read(built).boot
    assert list(log.differences(found, predicted)) == []
    assert set(log.registers(found)) == {"sha256", "sha384"}
    assert tdx.of_tpm_log(found) == tdx.predicted(predicted)


def test_a_policy_can_name_the_settings_and_others_are_refused(
    machine: Machine, measured: Path, built: Path
) -> None:
    """S-31: the settings are the operator's, come after the measurement, and are attested."""
    told = settings_file.read(boots.SETTINGS.encode())
    ours = config_digest({**Build.read(built).environment, **told})
    with requests.Session() as session:
        session.prove(machine.origin, boots.policy(measured, machine, "--config-digest", ours))
        images_own = boots.policy(measured, machine, "--config-digest", "default")
        with pytest.raises(blindbox.AttestationError, match="somebody gave it others") as refused:
            session.prove(machine.origin, images_own)
    assert refused.value.code == "settings-not-listed"
    assert ours in str(refused.value)


def test_another_release_is_refused_unless_the_policy_names_both(
    machine: Machine, measured: Path, another_release: Path
) -> None:
    """C-6: the machine that is left over from before an update, or the one that is there too early."""
    theirs, ours = boots.policy(another_release, machine), boots.policy(measured, machine)
    with pytest.raises(blindbox.AttestationError, match=r"^PCR4 is \w{64}, which is none") as refused:
        requests.post(f"{machine.origin}/test", json={"input_text": "a secret"}, policy=theirs)
    assert refused.value.code == "pcr-mismatch"
    with requests.Session() as session:
        session.prove(machine.origin, blindbox.AnyOf((theirs, ours)))


def test_another_tpm_is_refused(machine: Machine, measured: Path) -> None:
    """C-6: the registers prove nothing unless somebody has said whose TPM it is."""
    other = boots.policy(measured, replace(machine, key_digest=bytes(32)))
    with requests.Session() as session, pytest.raises(blindbox.AttestationError) as refused:
        session.prove(machine.origin, other)
    assert refused.value.code == "unpinned-ak"


def listens(machine: Machine, port: int) -> bool:
    """Whether somebody in the guest takes a connection, asked by way of a forwarded port of ours."""
    ours = free_port()
    forward = f"tcp:127.0.0.1:{ours}"
    machine.monitor.ask("human-monitor-command", **{"command-line": f"hostfwd_add net {forward}-:{port}"})
    try:
        with socket.create_connection(("127.0.0.1", ours), timeout=60) as connection:
            with suppress(ConnectionError):
                connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                return bool(connection.recv(1))
            return False
    finally:
        machine.monitor.ask("human-monitor-command", **{"command-line": f"hostfwd_remove net {forward}"})


def test_nothing_in_the_machine_listens_but_the_enclave(machine: Machine) -> None:
    """S-31: no shell, no agent, no port of an operator."""
    assert [port for port in WELL_KNOWN if listens(machine, port)] == [80]


def test_the_power_button_ends_it_in_good_order(machine: Machine) -> None:
    """The last test: nobody answers any more."""
    machine.switch_off()
    assert machine.process.poll() == 0
    assert machine.ended_in_order()
    assert "the power button" in machine.said()
