"""Who is trusted, and who is asking: policies and tokens by origin, and the command `blindbox`."""

from __future__ import annotations

import multiprocessing
import os
import stat
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

import blindbox.requests as requests
from blindbox import InvalidPolicy, NoPolicy, Policy, SnpPolicy, Tcb, cli
from blindbox.errors import AttestationError, MalformedEvidence, PolicyRefused
from blindbox.origin import origin_of
from blindbox.tenant import TokenStore
from blindbox.trust import TrustStore
from tests.kit.enclave import RunningEnclave
from tests.kit.relay import Box, http_reply

SNP = Policy(
    snp=SnpPolicy(
        measurements={bytes(48)}, minimum_tcb={"Genoa": Tcb(bootloader=4, tee=0, snp=22, microcode=213)}
    )
)


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.json"
    path.write_text(SNP.to_json() if isinstance(SNP.to_json(), str) else SNP.to_json().decode())
    return path


# ── origins ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://10.0.0.1/test", "http://10.0.0.1:80"),
        ("HTTP://Example.COM:80/a?b#c", "http://example.com:80"),
        ("https://example.com", "https://example.com:443"),
        ("http://user:secret@example.com:8080", "http://example.com:8080"),
        ("http://[::1]/", "http://[::1]:80"),
        ("http://bücher.example/", "http://xn--bcher-kva.example:80"),
        ("ftp://example.com", None),
        ("example.com/x", None),
        ("http:///x", None),
    ],
)
def test_an_origin_has_one_spelling(url: str, origin: str | None) -> None:
    if origin is not None:
        assert origin_of(url) == origin
        assert origin_of(origin) == origin
        return
    with pytest.raises(requests.RequestException) as caught:
        origin_of(url)
    assert isinstance(caught.value, ValueError)


# ── policies ──────────────────────────────────────────────────────────────────────────────────────────────


def test_without_a_policy_nothing_is_sent_and_the_error_says_what_to_type() -> None:
    """C-39: not even a request for evidence."""
    with Box(lambda asked: http_reply(200, "text/plain", b"")) as box:
        with pytest.raises(NoPolicy) as caught:
            requests.post(url=f"{box.origin}/test", json={"input_text": "mine"})
        assert f"blindbox trust {box.origin} --policy FILE" in str(caught.value)
        assert not isinstance(caught.value, requests.RequestException)
        assert isinstance(caught.value, AttestationError)
        assert box.connections == 0


def test_the_literal_call_works_by_the_stored_policy(enclave: RunningEnclave, policy_file: Path) -> None:
    """A stored policy is asked; a simulated machine is not what it names."""
    assert cli.main(["trust", enclave.origin + "/test", "--policy", str(policy_file)]) == 0
    with pytest.raises(PolicyRefused) as caught:
        requests.post(url=f"{enclave.origin}/test", json={"input_text": "mine"})
    assert "simulated" in caught.value.code or "platform" in caught.value.code


def test_every_folder_that_is_made_is_private_whatever_the_umask_says(tmp_path: Path) -> None:
    """Who may write in a folder may take a floor or a policy away."""
    before = os.umask(0)
    try:
        TrustStore(tmp_path / "config" / "blindbox" / "trust").set("http://example.com", SNP)
    finally:
        os.umask(before)
    made = ("config", "config/blindbox", "config/blindbox/trust")
    assert [stat.S_IMODE((tmp_path / one).stat().st_mode) for one in made] == [0o700] * 3


def test_a_stored_policy_is_whole_private_and_found_again(own_home: Path) -> None:
    store = TrustStore()
    store.set("http://EXAMPLE.com/path", SNP)
    stored = store.get("http://example.com:80/other")
    assert stored is not None
    assert stored.digest == SNP.digest
    assert store.get("https://example.com") is None
    (path,) = (own_home / "trust").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert set(store.all()) == {"http://example.com:80"}
    assert store.forget("http://example.com")
    assert not store.forget("http://example.com")
    assert store.get("http://example.com") is None


def test_a_policy_counts_for_the_origin_that_it_was_stored_for_alone() -> None:
    store = TrustStore()
    store.set("http://example.com", SNP)
    (path,) = store.folder.iterdir()
    store.set("http://example.org", SNP)
    (other,) = set(store.folder.iterdir()) - {path}
    other.write_bytes(path.read_bytes())
    with pytest.raises(InvalidPolicy, match="another origin"):
        store.get("http://example.org")


def test_a_policy_file_that_others_may_change_is_refused() -> None:
    store = TrustStore()
    store.set("http://example.com", SNP)
    (path,) = store.folder.iterdir()
    path.chmod(0o666)
    with pytest.raises(InvalidPolicy, match="chmod"):
        store.get("http://example.com")
    with pytest.raises(InvalidPolicy, match="chmod"):
        store.all()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"version": 1}',
        '{"version": 1, "origin": "http://other:80", "policy": {}}',
        "[]",
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_a_damaged_policy_file_is_an_error_and_not_an_absence(text: str) -> None:
    store = TrustStore()
    store.set("http://example.com", SNP)
    (path,) = store.folder.iterdir()
    path.write_text(text)
    with pytest.raises(InvalidPolicy):
        store.get("http://example.com")


def test_no_file_can_make_simulated_evidence_acceptable(
    enclave: RunningEnclave, tmp_path: Path, policy: Any
) -> None:
    """C-21: neither a policy file, nor the store, nor the environment."""
    for text in (
        '{"version": 1, "simulated": true}',
        '{"version": 1, "simulated": {"measurements": []}}',
        '{"version": 1, "unsafe_simulated": {}, "accept_cached": false, "max_age_seconds": 600}',
    ):
        path = tmp_path / "simulated.json"
        path.write_text(text)
        assert cli.main(["trust", enclave.origin, "--policy", str(path)]) == cli.USAGE
        with pytest.raises(InvalidPolicy):
            requests.get(enclave.origin, policy=path)
    assert not hasattr(policy, "to_json")
    with pytest.raises(NoPolicy):
        requests.get(enclave.origin + "/echo")


def test_a_policy_may_be_given_as_a_file(enclave: RunningEnclave, policy_file: Path) -> None:
    for given in (policy_file, str(policy_file)):
        with pytest.raises(PolicyRefused):
            requests.get(enclave.origin, policy=given)
    with pytest.raises(InvalidPolicy, match="cannot be read"):
        requests.get(enclave.origin, policy="/nonexistent")


# ── blindbox 0.2.1 ────────────────────────────────────────────────────────────────────────────────────────


def test_a_cce_policy_narrows_the_measurement_to_a_container_policy(
    enclave: RunningEnclave, policy: Any, tmp_path: Path
) -> None:
    path = tmp_path / "cce_policy.txt"
    path.write_bytes(b64encode(b"package policy\n" * 20) + b"\n")
    with pytest.raises(AttestationError) as caught:
        requests.SecureSession(enclave.origin, path, policy=policy)
    assert caught.value.code == "host-data"
    assert isinstance(caught.value, requests.InvalidEnclaveCode)
    with pytest.raises(AttestationError):
        requests.get(enclave.origin + "/echo", policy=policy, cce_policy=str(path))
    assert requests.get(enclave.origin + "/echo", policy=policy).ok
    for bad in (b"", b"not base64!"):
        path.write_bytes(bad)
        with pytest.raises(InvalidPolicy):
            requests.SecureSession(enclave.origin, str(path), policy=policy)
    with pytest.raises(InvalidPolicy, match="cannot be read"):
        requests.SecureSession(enclave.origin, "/nonexistent", policy=policy)


def test_a_cce_policy_alone_is_not_enough(tmp_path: Path) -> None:
    path = tmp_path / "cce_policy.txt"
    path.write_bytes(b64encode(b"package policy"))
    with pytest.raises(NoPolicy):
        requests.SecureSession("http://127.0.0.1:9", str(path))


def test_secure_session_speaks_in_paths(enclave: RunningEnclave, policy: Any) -> None:
    with requests.SecureSession(enclave.origin.removeprefix("http://"), policy=policy) as session:
        assert session.proof.simulated
        assert session.post(endpoint="/echo", json={}).json()["method"] == "POST"
        assert session.get("echo?a=b").json()["query"] == "a=b"
        for verb in (session.put, session.patch, session.delete, session.options):
            assert verb("/echo").ok
        assert session.head("/echo").ok
    with pytest.raises(InvalidPolicy, match="debug_mode"):
        requests.SecureSession(enclave.origin, debug_mode=True)
    with pytest.raises(requests.exceptions.MissingSchema):
        requests.SecureSession("")


# ── tokens ────────────────────────────────────────────────────────────────────────────────────────────────


def _token_of(folder: str) -> str:
    return TokenStore(Path(folder)).token("http://example.com")


def test_processes_that_start_at_once_have_one_token(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(8) as pool:
        tokens = pool.map(_token_of, [str(tmp_path / "tokens")] * 64, chunksize=1)
    assert len(set(tokens)) == 1
    (path,) = (tmp_path / "tokens").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_token_is_256_random_bits_an_origin() -> None:
    store = TokenStore()
    one, other = store.token("http://a.example/x"), store.token("http://b.example")
    assert len(one) == 43
    assert one != other
    assert TokenStore().token("http://A.example:80") == one


def test_the_token_travels_inside_and_a_given_authorization_wins(
    enclave: RunningEnclave, session: requests.Session
) -> None:
    def said(**keywords: Any) -> str:
        return dict(session.get(enclave.origin + "/echo", **keywords).json()["headers"])["authorization"]

    assert said() == f"Bearer {TokenStore().token(enclave.origin)}"
    assert said(headers={"Authorization": "Bearer mine"}) == "Bearer mine"
    assert said(auth=("a", "b")) == "Basic YTpi"
    prepared = session.get(enclave.origin + "/echo").request
    assert "Authorization" not in prepared.headers


def test_a_token_file_that_others_may_read_is_refused() -> None:
    store = TokenStore()
    store.token("http://a.example")
    (path,) = store.folder.iterdir()
    path.chmod(0o644)
    with pytest.raises(PermissionError, match="chmod"):
        TokenStore().token("http://a.example")


@pytest.mark.skipif(
    os.geteuid() == 0 and not Path("/proc").exists(), reason="needs a folder nobody can write"
)
def test_where_nothing_can_be_kept_the_token_lives_as_long_as_the_process() -> None:
    store = TokenStore(Path("/proc/blindbox"))
    with pytest.warns(UserWarning, match="BLINDBOX_HOME"):
        token = store.token("http://a.example")
    assert store.token("http://a.example") == token


# ── the command ───────────────────────────────────────────────────────────────────────────────────────────


def test_trust_lists_and_forgets(policy_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trust", "http://203.0.113.7", "--policy", str(policy_file)]) == 0
    assert cli.main(["trust", "--list"]) == 0
    told = capsys.readouterr().out
    assert "http://203.0.113.7:80" in told
    assert bytes(48).hex() in told
    assert "left open: " in told
    assert cli.main(["trust", "--forget", "http://203.0.113.7:80"]) == 0
    assert cli.main(["trust", "--list"]) == 0
    assert "no policy is stored" in capsys.readouterr().err
    assert cli.main(["trust", "--forget", "http://203.0.113.7:80"]) == cli.USAGE
    assert cli.main(["trust", "http://203.0.113.7"]) == cli.USAGE


def test_without_a_command_it_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Every command, in its group, with what it is for; and what to type first."""
    assert cli.main([]) == cli.USAGE
    told = capsys.readouterr()
    assert told.err == ""
    listed = {name: about for group in cli._COMMANDS.values() for name, about in group.items()}
    for name, about in listed.items():
        assert f"  {name:<10}{about}\n" in told.out
        with pytest.raises(SystemExit) as ended:
            cli.main([name, "--help"])
        assert ended.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: blindbox {name} ")
    with pytest.raises(SystemExit):
        cli.main(["no such command"])
    choices = capsys.readouterr().err.partition("(choose from ")[2].rstrip(")\n")
    assert set(choices.replace("'", "").split(", ")) == set(listed)
    assert "blindbox trust http://203.0.113.7:80 --policy release-1.0.json" in told.out


def test_the_command_runs_as_a_module_and_explains_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "blindbox.cli", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
    )
    assert "exit status" in done.stdout
    for command in ("policy", "trust", "verify", "ui", "proxy", "top", "data", "finetune", "jobs", "receipt"):
        assert f"\n  {command} " in done.stdout
    assert MalformedEvidence.__name__ not in done.stderr
