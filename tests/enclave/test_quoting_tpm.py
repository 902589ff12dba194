"""
The TPM's side of quoting, on a real TPM in software: our own commands, and what other people's tools say of
the result. Whether a client accepts it is tested in tests/together/test_quoting_end_to_end.py.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

from blindbox_attestation.binding import Bound
from enclave_app.quoting import Quote, QuoteUnavailable, find_quoter
from enclave_app.quoting.tpm import (
    ATTEMPTS,
    REGISTERS,
    TpmQuoter,
    trimmed,
)
from enclave_app.quoting.tpm_commands import (
    ECC,
    ENDORSEMENT,
    RSA,
    SHA256,
    SHA384,
    Device,
    Reader,
    Tpm,
    TpmFailure,
    restricted_signing_key,
)
from tests.kit.machine import NOWHERE, bare_machine, no_tpm
from tests.kit.swtpm import Socket, SoftwareTpm, swtpm, swtpm_behind_a_device

BOUND = Bound(digest=bytes(range(48)), nonce=b"n" * 32, key_config=b"keys")
OTHER = Bound(digest=bytes(48), nonce=b"", key_config=b"keys")


@pytest.fixture(scope="module")
def shared() -> Iterator[SoftwareTpm]:
    with swtpm() as tpm:
        yield tpm


@pytest.fixture
def tpm(shared: SoftwareTpm) -> SoftwareTpm:
    """A TPM that has forgotten the keys of earlier tests."""
    shared.forget_keys()
    return shared


def quoter(tpm: SoftwareTpm, **options: Any) -> TpmQuoter:
    quiet: dict[str, Any] = {"event_log": NOWHERE}
    return TpmQuoter(tpm.open, **(quiet | options))


def told(quote: Quote) -> dict[str, Any]:
    evidence = json.loads(quote.evidence)
    return {
        name: base64.b64decode(value) if isinstance(value, str) else value for name, value in evidence.items()
    }


def accepted_by_tpm2_tools(folder: Path, evidence: dict[str, Any], digest: bytes) -> bool:
    """Whether tpm2_checkquote, which knows nothing of us, accepts this as a quote over this data."""
    key = load_der_public_key(evidence["ak_public"])
    (folder / "ak.pem").write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    (folder / "attest").write_bytes(evidence["attest"])
    (folder / "signature").write_bytes(evidence["signature"])
    command = ["tpm2_checkquote", "-u", "ak.pem", "-m", "attest", "-s", "signature", "-q", digest.hex()]
    return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0


# --- quotes ---


@pytest.mark.parametrize(("ak", "kind"), [("ecc", EllipticCurvePublicKey), ("rsa", RSAPublicKey)])
def test_a_quote_over_the_binding_is_one_that_others_accept(
    tpm: SoftwareTpm, tmp_path: Path, ak: str, kind: type
) -> None:
    evidence = told(quoter(tpm, ak=ak).quote(BOUND))
    assert set(evidence) == {"version", "attest", "signature", "ak_public", "ak_area", "pcrs"}
    assert evidence["version"] == 1
    assert isinstance(load_der_public_key(evidence["ak_public"]), kind)
    assert accepted_by_tpm2_tools(tmp_path, evidence, BOUND.digest)
    assert not accepted_by_tpm2_tools(tmp_path, evidence, OTHER.digest)


def test_the_values_beside_the_quote_are_those_it_covers(tpm: SoftwareTpm) -> None:
    asked = quoter(tpm)
    before = told(asked.quote(BOUND))
    tpm.extend((4, hashlib.sha256(b"a loader").digest()))
    after = told(asked.quote(BOUND))
    for evidence in (before, after):
        assert " ".join(evidence["pcrs"]) == "0 1 2 3 4 5 6 7 8 9 11 12 13 14 15"
        values = b"".join(map(bytes.fromhex, evidence["pcrs"].values()))
        assert evidence["attest"].endswith(hashlib.sha256(values).digest())
    extended = hashlib.sha256(bytes.fromhex(before["pcrs"]["4"]) + hashlib.sha256(b"a loader").digest())
    assert after["pcrs"] == {**before["pcrs"], "4": extended.hexdigest()}


def test_a_register_that_moves_between_reading_and_quoting_is_read_again(tpm: SoftwareTpm) -> None:
    class Busy(Socket):
        """Somebody extends PCR 14 just before each of the first quotes."""

        moves = 2

        def transmit(self, command: bytes) -> bytes:
            if command[6:10] == b"\x00\x00\x01\x58" and self.moves:  # TPM2_Quote
                self.moves -= 1
                tpm.extend((14, bytes([self.moves]) * 32))
            return super().transmit(command)

    transport = Busy(tpm.port)
    evidence = told(TpmQuoter(lambda: transport, event_log=NOWHERE).quote(BOUND))
    values = b"".join(map(bytes.fromhex, evidence["pcrs"].values()))
    assert evidence["attest"].endswith(hashlib.sha256(values).digest())
    transport.moves = ATTEMPTS * 2
    with pytest.raises(QuoteUnavailable, match="moved"):
        TpmQuoter(lambda: transport, event_log=NOWHERE).quote(BOUND)


def test_another_bank_can_be_quoted(tpm: SoftwareTpm, tmp_path: Path) -> None:
    evidence = told(quoter(tpm, bank=SHA384).quote(BOUND))
    assert {len(value) for value in evidence["pcrs"].values()} == {96}
    assert accepted_by_tpm2_tools(tmp_path, evidence, BOUND.digest)
    with pytest.raises(QuoteUnavailable, match="0x0004"):
        quoter(tpm, bank=0x0004).quote(BOUND)  # SHA-1 is switched off


def test_the_boot_log_and_the_operators_chain_travel_with_the_quote(tpm: SoftwareTpm, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"events")
    (tmp_path / "ak_chain.der").write_bytes(b"chain")
    quote = quoter(tpm, event_log=tmp_path / "log", endorsements_dir=tmp_path).quote(BOUND)
    assert quote.endorsements == {"event_log": b"events", "ak_chain": b"chain"}


def test_two_threads_may_ask_at_once(tpm: SoftwareTpm, tmp_path: Path) -> None:
    asked = quoter(tpm)
    quotes: dict[bytes, Quote] = {}

    def ask(bound: Bound) -> None:
        quotes[bound.digest] = asked.quote(bound)

    threads = [threading.Thread(target=ask, args=(bound,)) for bound in (BOUND, OTHER)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for digest, quote in quotes.items():
        assert accepted_by_tpm2_tools(tmp_path, told(quote), digest)
    assert len(quotes) == 2


# --- keys ---


@pytest.mark.parametrize("ak", ["ecc", "rsa"])
def test_the_same_tpm_grows_the_same_key_again(tpm: SoftwareTpm, ak: str) -> None:
    """So that a client can pin it once."""
    first = told(quoter(tpm, ak=ak).quote(BOUND))["ak_public"]
    tpm.forget_keys()  # as a restart does
    assert told(quoter(tpm, ak=ak).quote(BOUND))["ak_public"] == first
    with swtpm() as another:
        assert told(quoter(another, ak=ak).quote(BOUND))["ak_public"] != first


def test_a_key_that_is_gone_is_grown_again(tpm: SoftwareTpm, tmp_path: Path) -> None:
    """As after a reset of the TPM, with the enclave still running."""
    asked = quoter(tpm)
    first = told(asked.quote(BOUND))
    tpm.forget_keys()
    again = told(asked.quote(OTHER))
    assert again["ak_public"] == first["ak_public"]
    assert accepted_by_tpm2_tools(tmp_path, again, OTHER.digest)


@pytest.mark.parametrize("algorithm", ["ecc", "rsa"])
def test_an_operators_persistent_key_is_used_by_its_handle(
    tpm: SoftwareTpm, tmp_path: Path, algorithm: str
) -> None:
    """The key is made by tpm2-tools, as its manual says."""
    handle = {"ecc": "0x81010003", "rsa": "0x81010004"}[algorithm]
    scheme = {"ecc": "ecdsa", "rsa": "rsassa"}[algorithm]
    tpm.tool("tpm2_createek", "-c", "ek.ctx", "-G", "rsa", "-u", "ek.pub")
    tpm.tool(
        *("tpm2_createak", "-C", "ek.ctx", "-c", "ak.ctx", "-G", algorithm, "-g", "sha256", "-s", scheme),
        *("-u", "ak.pem", "-f", "pem"),
    )
    tpm.forget_keys()
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "ak.ctx", handle)
    tpm.forget_keys()
    evidence = told(quoter(tpm, ak=handle).quote(BOUND))
    made = load_pem_public_key((tpm.state / "ak.pem").read_bytes())
    assert evidence["ak_public"] == made.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert accepted_by_tpm2_tools(tmp_path, evidence, BOUND.digest)


def test_a_handle_with_no_key_or_a_key_of_another_use_is_refused_at_the_start(tpm: SoftwareTpm) -> None:
    with pytest.raises(QuoteUnavailable, match="no key under the handle 0x81fffffe"):
        quoter(tpm, ak="0x81fffffe").check()
    common = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth"
    for handle, attributes, said in (
        ("0x81010010", f"{common}|sign", "restricted"),  # signs forgeries
        ("0x81010011", f"{common}|restricted|decrypt", "encrypts"),  # keeps other keys
    ):
        tpm.tool("tpm2_createprimary", "-C", "o", "-G", "ecc", "-a", attributes, "-c", "other.ctx")
        tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "other.ctx", handle)
        tpm.forget_keys()
        with pytest.raises(QuoteUnavailable, match=said):
            find_quoter("tpm", tpm_ak=handle, machine=bare_machine(open_tpm=tpm.open))


@pytest.mark.parametrize(
    ("ak", "kind", "at", "certified_at"),
    [("ecc", ECC, 0x01C10003, 0x01C10002), ("rsa", RSA, 0x01C10001, 0x01C10000)],
)
def test_a_clouds_template_grows_the_key_of_the_clouds_certificate(
    tmp_path: Path, ak: str, kind: int, at: int, certified_at: int
) -> None:
    """As on Google's VMs: the template differs from ours in one attribute, and so does the key."""
    template = bytearray(restricted_signing_key(kind))
    template[4:8] = struct.pack(">I", struct.unpack(">I", template[4:8])[0] & ~(1 << 10))  # without noDA
    certificate = b"\x30\x82\x01\x00" + bytes(range(256))
    (tmp_path / "ak_chain.der").write_bytes(b"issuers")
    with swtpm() as cloud:
        ours = told(quoter(cloud, ak=ak).quote(BOUND))
        cloud.forget_keys()
        for index, value in ((at, bytes(template)), (certified_at, certificate + bytes(500))):
            cloud.commands.nv_define(index, len(value))
            cloud.commands.nv_write(index, value)
        quote = quoter(cloud, ak=ak, endorsements_dir=tmp_path).quote(BOUND)
        assert told(quote)["ak_public"] != ours["ak_public"]
        assert accepted_by_tpm2_tools(tmp_path, told(quote), BOUND.digest)
        assert quote.endorsements["ak_chain"] == certificate + b"issuers"


def test_a_certificate_is_trimmed_to_its_der() -> None:
    certificate = b"\x30\x82\x00\x03abc"
    assert trimmed(certificate + bytes(100)) == trimmed(certificate) == certificate
    assert trimmed(bytes(100)) == trimmed(b"") == b""


@pytest.mark.parametrize("ak", ["", "ed25519", "0x80000000", "0x8101000g", "0x81010001 "])
def test_a_key_is_named_by_its_kind_or_a_persistent_handle(ak: str) -> None:
    with pytest.raises(ValueError, match="attestation key"):
        TpmQuoter(no_tpm, ak=ak)


def test_a_key_that_signs_with_a_hash_that_no_client_takes_is_refused(tpm: SoftwareTpm) -> None:
    tpm.tool(
        *("tpm2_createprimary", "-C", "o", "-G", "rsa2048:rsassa-sha512:null", "-c", "other.ctx"),
        *("-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign"),
    )
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "other.ctx", "0x81010012")
    tpm.forget_keys()
    with pytest.raises(QuoteUnavailable, match="hash 0x000d"):
        quoter(tpm, ak="0x81010012").check()


# --- commands ---


def test_what_is_written_to_non_volatile_memory_is_what_others_read(tpm: SoftwareTpm) -> None:
    """More than one command carries, written by us and read by tpm2-tools and by us."""
    index, value = 0x01500001, os.urandom(1300)
    assert tpm.commands.nv_public(index) is None
    assert tpm.commands.nv_read(index) is None
    tpm.commands.nv_define(index, len(value))
    assert tpm.commands.nv_read(index) is None  # there, and never written
    tpm.commands.nv_write(index, value)
    assert tpm.commands.nv_read(index) == value
    tpm.tool("tpm2_nvread", "-C", "o", "-o", "read", hex(index))
    assert (tpm.state / "read").read_bytes() == value
    public = tpm.commands.nv_public(index)
    assert public is not None
    assert public.size == len(value)


def test_an_index_that_only_its_own_password_opens_is_read_too(tpm: SoftwareTpm) -> None:
    tpm.tool("tpm2_nvdefine", "-C", "o", "-s", "4", "-a", "authread|ownerwrite", "0x01500002")
    tpm.commands.nv_write(0x01500002, b"open")
    assert tpm.commands.nv_read(0x01500002) == b"open"


def test_registers_are_read_as_others_read_them(tpm: SoftwareTpm) -> None:
    values = tpm.commands.pcr_read(SHA256, range(24))
    printed = tpm.tool("tpm2_pcrread", "sha256:all")
    assert list(values) == list(range(24))
    for register, value in values.items():
        assert f"{register:<2}: 0x{value.hex().upper()}" in printed
    with pytest.raises(TpmFailure, match="does not keep"):
        tpm.commands.pcr_read(0x0004, [0])


class Answers:
    """A TPM that says these things, one after the other."""

    def __init__(self, *answers: bytes | OSError) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.closed = 0

    def transmit(self, command: bytes) -> bytes:
        self.asked += 1
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    def close(self) -> None:
        self.closed += 1


def response(body: bytes = b"", *, tag: int = 0x8001, code: int = 0, size: int | None = None) -> bytes:
    return struct.pack(">HII", tag, 10 + len(body) if size is None else size, code) + body


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x80\x01\x00\x00",
        response(size=9),
        response(size=11),
        response(size=0xFFFFFFFF),
        response() + b"\x00",
        response(b"\x00\x05abc"),
        response(b"\x00\x00" * 3 + b"\x00"),
        response(b"\x00\x00" * 3, tag=0x8002),
        response(code=0x101),
        response(b"\x00\x00", code=0x101),
    ],
)
def test_an_answer_that_is_not_whole_or_not_asked_for_is_refused(answer: bytes) -> None:
    with pytest.raises(TpmFailure):
        Tpm(Answers(answer)).read_public(0x81000001)


def nv(*answers: bytes) -> bytes | None:
    """What is read of an index of 4 bytes that answers so."""
    public = struct.pack(">IHIHH", 0x01500003, SHA256, 0, 0, 4)
    there = response(struct.pack(">H", len(public)) + public + b"\x00\x00")
    return Tpm(Answers(there, *answers)).nv_read(0x01500003)


def test_a_read_that_fails_or_falls_short_is_no_value() -> None:
    with pytest.raises(TpmFailure, match="0x149"):  # TPM_RC_NV_AUTHORIZATION
        nv(response(code=0x149))
    for piece in (b"", b"abc", b"abcde"):
        body = struct.pack(">IH", 2 + len(piece), len(piece)) + piece + bytes.fromhex("0000010000")
        with pytest.raises(TpmFailure, match="asked for 4"):
            nv(response(body, tag=0x8002))


@pytest.mark.parametrize(
    "selected",
    [
        b"\x00\x00\x00\x00",
        b"\x00\x00\x00\x01" + b"\x00\x0c\x03\x01\x00\x00",  # another bank
        b"\x00\x00\x00\x01" + b"\x00\x0b\x03\x02\x00\x00",  # another register
        b"\x00\x00\x00\x01" + b"\x00\x0b\x03\x03\x00\x00",  # one more than there are values
    ],
)
def test_values_of_other_registers_are_not_taken_for_those_asked_for(selected: bytes) -> None:
    answer = response(bytes(4) + selected + b"\x00\x00\x00\x01" + b"\x00\x20" + bytes(32))
    with pytest.raises(TpmFailure, match="does not keep"):
        Tpm(Answers(answer)).pcr_read(SHA256, [0])


def test_every_cut_and_every_longer_answer_to_a_quote_is_refused(tpm: SoftwareTpm) -> None:
    class Heard(Socket):
        def transmit(self, command: bytes) -> bytes:
            self.last = super().transmit(command)
            return self.last

    heard = Heard(tpm.port)
    real = Tpm(heard)
    handle, _ = real.create_primary(ENDORSEMENT, restricted_signing_key(ECC))
    grown = heard.last
    for cut in range(len(grown)):
        with pytest.raises(TpmFailure):
            Tpm(Answers(grown[:cut])).create_primary(ENDORSEMENT, b"")
        body = grown[10:cut]
        with pytest.raises(TpmFailure):
            Tpm(Answers(response(body, tag=0x8002))).create_primary(ENDORSEMENT, b"")
    with pytest.raises(TpmFailure):
        Tpm(Answers(response(grown[10:] + b"\x00", tag=0x8002))).create_primary(ENDORSEMENT, b"")
    attest, signature = real.quote(handle, b"x", SHA256, REGISTERS)
    again = Tpm(Answers(heard.last)).quote(handle, b"x", SHA256, REGISTERS)
    assert again == (attest, signature)


def test_a_busy_tpm_is_asked_again() -> None:
    busy = Answers(response(code=0x922), response(code=0x908), response(b"\x00\x01x" + b"\x00\x00" * 2))
    assert Tpm(busy).read_public(1) == b"x"
    assert busy.asked == 3


def test_a_tpm_that_fails_is_opened_once_more_and_then_given_up(tpm: SoftwareTpm) -> None:
    opened: list[Failing] = []

    class Failing(Socket):
        """Works until it breaks."""

        broken = closed = 0

        def transmit(self, command: bytes) -> bytes:
            if self.broken:
                raise OSError(errno.EIO, "gone")
            return super().transmit(command)

        def close(self) -> None:
            self.closed += 1

    def open_tpm() -> Failing:
        opened.append(Failing(tpm.port))
        opened[-1].broken = len(opened) > 2
        return opened[-1]

    asked = TpmQuoter(open_tpm, event_log=NOWHERE)
    asked.check()
    opened[0].broken = 1
    asked.quote(BOUND)
    assert len(opened) == 2
    opened[1].broken = 1
    for _ in range(2):
        with pytest.raises(QuoteUnavailable, match="gone"):
            asked.quote(BOUND)
    assert len(opened) == 4  # each failure was given one new opening
    assert [transport.closed for transport in opened] == [1] * 4
    with pytest.raises(QuoteUnavailable, match="No such file"):
        TpmQuoter(no_tpm).check()


def test_a_reader_leaves_nothing_over() -> None:
    reader = Reader(b"\x00\x01x\x00")
    assert reader.sized() == b"x"
    with pytest.raises(TpmFailure, match="1 bytes too many"):
        reader.end()


# --- the device ---


def test_the_device_file_is_spoken_to_like_the_kernels(tmp_path: Path) -> None:
    """A real character device with a real TPM behind it."""
    with swtpm_behind_a_device() as path:
        asked = TpmQuoter(lambda: Device(path), event_log=NOWHERE)
        asked.check()
        for bound in (BOUND, OTHER):
            assert accepted_by_tpm2_tools(tmp_path, told(asked.quote(bound)), bound.digest)


def test_a_device_that_does_not_answer_is_not_waited_for_for_ever() -> None:
    ours, theirs = os.openpty()
    try:
        device = Device(Path(os.ttyname(theirs)), patience=0.05)
        start = time.monotonic()
        with pytest.raises(TimeoutError, match=r"0\.05 s"):
            device.transmit(b"anything")
        assert time.monotonic() - start < 60
        device.close()
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_device_that_ends_in_the_middle_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "device"
    broken.write_bytes(b"")
    device = Device(broken)  # a file: what was written lies behind what is read
    with pytest.raises(ConnectionError):
        device.transmit(b"anything")
    device.close()


def test_a_plain_tpm_is_used_when_it_is_asked_for_and_never_by_itself(tpm: SoftwareTpm) -> None:
    """C-21: its word is its hypervisor's, so a laptop that has one still runs simulated."""
    machine = bare_machine(open_tpm=tpm.open)
    assert find_quoter("auto", machine=machine).platform == "simulated"
    assert find_quoter("tpm", machine=machine).platform == "tpm"
    tpm.forget_keys()
    with pytest.raises(QuoteUnavailable, match="no confidential VM of Azure"):
        find_quoter("az-snp-vtpm", machine=machine)


def test_the_measured_machine_proves_itself_by_its_tpm_and_simulates_nothing(
    tpm: SoftwareTpm, tmp_path: Path
) -> None:
    """C-21: what was started from a root hash on the command line has nothing to hide behind a simulation."""
    words = tmp_path / "cmdline"
    words.write_text("console=ttyS0 panic=-1 blindbox.root=ab,cd,7\n")
    machine = bare_machine(open_tpm=tpm.open, command_line=words)
    assert find_quoter("auto", machine=machine).platform == "tpm"
    with pytest.raises(QuoteUnavailable, match=r"this machine can prove itself \(tpm\)"):
        find_quoter("simulated", machine=machine)
    for name in ("auto", "tpm"):  # and without one it does not start
        with pytest.raises(QuoteUnavailable, match="TPM"):
            find_quoter(name, machine=bare_machine(command_line=words))
    words.write_text("console=ttyS0 not.blindbox.root=ab,cd,7 root=/dev/vda1\n")
    assert find_quoter("auto", machine=machine).platform == "simulated"
