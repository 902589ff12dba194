"""
What was fetched is kept inside its validity, on disk and in memory, and whatever happens to the files costs
a question.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import stat
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from blindbox import Collateral
from blindbox.collateral import cache as collateral_cache
from blindbox_attestation.errors import AttestationError
from tests.kit import NOON
from tests.kit.amd import FakeAmd
from tests.kit.kds import KeyService
from tests.kit.relay import http_reply

NONCE = bytes(32)
DAY = timedelta(days=1)


@pytest.fixture
def amd() -> FakeAmd:
    return FakeAmd()


@pytest.fixture
def down(kds: KeyService) -> Any:
    """Makes the server fail from now on."""

    def fail() -> None:
        kds.instead = lambda _: http_reply(500, "text/plain", b"")

    return fail


def fetched(
    kds: KeyService, amd: FakeAmd, now: datetime = NOON, *, sent: Any = None, by: Any = None
) -> set[str]:
    """What a new process fetches for a machine that sent no revocation list (or just what is `sent`)."""
    collateral = by or Collateral(amd=kds.origin)
    endorsements = amd.endorsements(crl=None) if sent is None else sent
    start = int(now.timestamp()) - 60
    document = amd.document(endorsements=endorsements, not_before=start, not_after=start + 3600)
    return set(collateral.verify(document, amd.policy(), nonce=NONCE, now=now)[1])


def refused(kds: KeyService, amd: FakeAmd, now: datetime = NOON, **options: Any) -> str:
    with pytest.raises(AttestationError) as caught:
        fetched(kds, amd, now, **options)
    return caught.value.code


def kept(home: Path) -> list[Path]:
    return sorted((home / "collateral").glob("*.json"))


# ── inside its validity ───────────────────────────────────────────────────────────────────────────────────


def test_what_was_fetched_serves_the_next_process_while_the_server_is_down(
    amd: FakeAmd, kds: KeyService, down: Any
) -> None:
    """C-23: cached collateral inside its validity."""
    assert fetched(kds, amd, sent={}) == {"ark", "ask", "vcek", "crl"}
    down()
    assert fetched(kds, amd, sent={}) == {"ark", "ask", "vcek", "crl"}
    assert fetched(kds, amd, sent={}, now=NOON + timedelta(hours=23)) == {"ark", "ask", "vcek", "crl"}
    assert len(kds.asked) == 3


def test_a_list_is_asked_for_again_every_day_and_a_certificate_is_not(amd: FakeAmd, kds: KeyService) -> None:
    fetched(kds, amd, sent={})
    fetched(kds, amd, NOON + 0.9 * DAY, sent={})
    assert len(kds.asked) == 3
    fetched(kds, amd, NOON + 1.1 * DAY, sent={})
    assert [path.rpartition("/")[2] for path in kds.paths[3:]] == ["crl"]
    fetched(kds, amd, NOON + 1.2 * DAY, sent={})
    assert len(kds.asked) == 4


def test_a_newer_list_takes_the_place_of_the_kept_one(amd: FakeAmd, kds: KeyService) -> None:
    """C-10: a revocation is noticed within a day, though the older list is still valid."""
    fetched(kds, amd)
    kds.lists["Genoa"] = amd.crl(revoked=[0x20002], this_update=NOON)
    assert fetched(kds, amd, NOON + 0.5 * DAY) == {"crl"}
    assert refused(kds, amd, NOON + 1.5 * DAY) == "revoked"


def test_a_list_that_could_not_be_renewed_serves_until_its_end_and_no_longer(
    amd: FakeAmd, kds: KeyService, down: Any
) -> None:
    """C-11, C-23"""
    fetched(kds, amd)
    down()
    for days in (2, 15, 29.9):
        assert fetched(kds, amd, NOON + days * DAY) == {"crl"}
    assert len(kds.asked) == 4
    assert refused(kds, amd, NOON + 30.1 * DAY) == "crl-missing"
    assert kept(Path(os.environ["BLINDBOX_HOME"])) == []


def test_a_list_of_the_future_is_not_used(amd: FakeAmd, kds: KeyService, down: Any) -> None:
    """C-11: not even from the cache, should the clock have been set back."""
    fetched(kds, amd)
    down()
    assert refused(kds, amd, NOON - 31 * DAY) == "crl-missing"


def test_a_certificate_that_ends_soon_is_asked_for_again_every_hour(amd: FakeAmd, kds: KeyService) -> None:
    soon = amd.certificate("vcek", not_after=NOON + 0.5 * DAY)
    kds.instead = lambda asked: http_reply(200, "x/y", soon) if amd.hwid.hex() in asked.target else None
    sent = amd.endorsements(vcek=None)
    for minutes, asked in ((0, 1), (30, 1), (70, 2), (80, 2)):
        assert fetched(kds, amd, NOON + timedelta(minutes=minutes), sent=sent) == {"vcek"}
        assert len(kds.asked) == asked


def test_a_renewal_that_fails_is_not_tried_in_every_call(amd: FakeAmd, kds: KeyService, down: Any) -> None:
    fetched(kds, amd)
    down()
    one = Collateral(amd=kds.origin)
    for _ in range(5):
        assert fetched(kds, amd, NOON + 2 * DAY, by=one) == {"crl"}
    assert len(kds.asked) == 2


def test_a_renewal_may_take_less_time_than_a_first_question(
    amd: FakeAmd, kds: KeyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C-23: a server that hangs does not slow down who has a valid copy."""
    monkeypatch.setattr(collateral_cache, "REFRESH_WITHIN", 0.3)
    fetched(kds, amd)
    kds.instead = lambda _: time.sleep(120)  # type: ignore[func-returns-value]
    before = time.monotonic()
    assert fetched(kds, amd, NOON + 2 * DAY) == {"crl"}
    assert time.monotonic() - before < 60.0


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_files_and_their_folder_belong_to_the_user_alone(
    amd: FakeAmd, kds: KeyService, own_home: Path
) -> None:
    fetched(kds, amd, sent={})
    assert len(kept(own_home)) == 3
    for path in [own_home, own_home / "collateral", *kept(own_home)]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    assert not [path for path in (own_home / "collateral").iterdir() if path.name.startswith(".")]


def change(**changes: Any) -> Any:
    def write(path: Path) -> None:
        path.write_bytes(json.dumps({**json.loads(path.read_bytes()), **changes}).encode())

    return write


SPOILED: dict[str, Any] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:700]),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 100),
    "not an object": lambda path: path.write_bytes(b"[1,2]"),
    "deep": lambda path: path.write_bytes(b"[" * 100000),
    "another version": change(version=2),
    "of another address": change(url="https://elsewhere.example/"),
    "another content": change(body="aGVsbG8="),
    "another content, rightly summed": change(
        body="aGVsbG8=", sha256="2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    ),
    "no base64": change(body="???"),
    "no time": change(asked_at="yesterday"),
    "a time beyond all": change(asked_at=10**30),
    "headers of another kind": change(headers=[1]),
    "larger than anything we write": lambda path: path.write_bytes(b" " * (3 << 20)),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_spoiled_file_is_removed_and_the_vendor_asked_again(
    amd: FakeAmd, kds: KeyService, own_home: Path, down: Any, how: str
) -> None:
    fetched(kds, amd)
    (path,) = kept(own_home)
    SPOILED[how](path)
    assert fetched(kds, amd) == {"crl"}
    assert len(kds.asked) == 2
    down()
    assert fetched(kds, amd) == {"crl"}, "and kept again"
    SPOILED[how](path)
    assert refused(kds, amd) == "crl-missing"
    assert not path.exists()


def test_a_kept_list_under_the_name_of_another_is_refused(
    amd: FakeAmd, kds: KeyService, own_home: Path, down: Any
) -> None:
    """C-13: files that were swapped are not mistaken for one another."""
    fetched(kds, amd, sent={})
    paths = kept(own_home)
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)
    down()
    assert refused(kds, amd, sent={}) == "missing-endorsement"


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_a_file_that_others_may_write_is_not_used(amd: FakeAmd, kds: KeyService, own_home: Path) -> None:
    fetched(kds, amd)
    (path,) = kept(own_home)
    path.chmod(0o666)
    fetched(kds, amd)
    assert len(kds.asked) == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("obstacle", ["a file where the folder should be", "a folder where a file should be"])
def test_a_place_that_cannot_be_written_costs_a_question_and_no_proof(
    amd: FakeAmd, kds: KeyService, own_home: Path, obstacle: str
) -> None:
    fetched(kds, amd)
    (path,) = kept(own_home)
    path.unlink()
    if obstacle.startswith("a folder"):
        path.mkdir()
        (path / "inside").touch()
    else:
        path.parent.rmdir()
        path.parent.touch()
    one = Collateral(amd=kds.origin)
    for _ in range(2):
        assert fetched(kds, amd, by=one) == {"crl"}
    assert len(kds.asked) == 2, "in memory it is kept all the same"


def test_without_a_home_it_is_kept_in_memory(
    amd: FakeAmd, kds: KeyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BLINDBOX_HOME")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    one = Collateral(amd=kds.origin)
    for _ in range(2):
        assert fetched(kds, amd, by=one) == {"crl"}
    assert len(kds.asked) == 1


def test_the_folder_does_not_grow_without_end(
    amd: FakeAmd, kds: KeyService, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collateral_cache, "MOST_FILES", 4)
    folder = own_home / "collateral"
    folder.mkdir(parents=True)
    for number in range(8):
        (folder / f"{number:064x}.json").touch()
        os.utime(folder / f"{number:064x}.json", (1000 + number, 1000 + number))
    draft, young = folder / ".0123456789abcdef", folder / ".fedcba9876543210"
    draft.touch()
    young.touch()
    os.utime(draft, (1000, 1000))
    fetched(kds, amd)
    assert [path.name[-6:] for path in kept(own_home) if path.stat().st_size == 0] == [
        "5.json",
        "6.json",
        "7.json",
    ]
    assert not draft.exists(), "left behind by a process that was killed"
    assert young.exists(), "of a process that may be writing it just now"


def test_memory_does_not_grow_without_end(
    amd: FakeAmd, kds: KeyService, monkeypatch: pytest.MonkeyPatch, down: Any
) -> None:
    monkeypatch.setattr(collateral_cache, "MOST_IN_MEMORY", 2)
    one = Collateral(amd=kds.origin)
    fetched(kds, amd, by=one, sent={})
    assert len(one._cache._memory) == 2
    down()
    for number in range(5):
        one.complete(amd.document(endorsements={}, chip_id=bytes([number + 1]) * 64), amd.policy(), now=NOON)
    assert len(one._cache._failed) == 2
    gc.collect()
    assert len(one._cache._asking) == 0


# ── processes ─────────────────────────────────────────────────────────────────────────────────────────────


def _fetch(origin: str, document: bytes, times: int) -> None:
    amd = FakeAmd()
    for _ in range(times):
        one = Collateral(amd=origin)
        assert one.verify(document, amd.policy(), nonce=NONCE, now=NOON)[1].keys() == {"crl"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_processes_at_once_do_not_spoil_each_other_s_files(
    amd: FakeAmd, kds: KeyService, own_home: Path
) -> None:
    document = amd.document(endorsements=amd.endorsements(crl=None))
    context = multiprocessing.get_context("fork")
    several = [context.Process(target=_fetch, args=(kds.origin, document, 5)) for _ in range(4)]
    for one in several:
        one.start()
    for one in several:
        one.join(60)
    assert [one.exitcode for one in several] == [0] * 4
    assert len(kept(own_home)) == 1
    json.loads(kept(own_home)[0].read_bytes())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_process_leaves_nothing_that_is_mistaken_for_a_list(
    amd: FakeAmd, kds: KeyService, own_home: Path, down: Any
) -> None:
    """`kill -9` at any moment: what is there afterwards is whole, or not there."""
    document = amd.document(endorsements=amd.endorsements(crl=None))
    context = multiprocessing.get_context("fork")
    for pause in (0.0, 0.01, 0.02, 0.03, 0.05, 0.08):
        for path in own_home.rglob("*.json"):
            path.unlink()
        one = context.Process(target=_fetch, args=(kds.origin, document, 50))
        one.start()
        time.sleep(pause)
        assert one.pid is not None
        os.kill(one.pid, signal.SIGKILL)
        one.join(60)
        for path in own_home.rglob("*.json"):
            json.loads(path.read_bytes())
    assert fetched(kds, amd) == {"crl"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_is_not_stopped_by_what_a_thread_of_its_parent_was_asking(
    amd: FakeAmd, kds: KeyService
) -> None:
    one = Collateral(amd=kds.origin)
    fetched(kds, amd, by=one)
    one._cache._lock.acquire()  # as a thread of the parent would hold it in the moment of the fork
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if fetched(kds, amd, by=one) == {"crl"} else 2
        finally:
            os._exit(code)
    one._cache._lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
