"""The image: what it is made of, and the journey against a container that was built from this checkout.

The container tests need root, buildah and podman.  Where these are missing they are installed if that
was asked for (`CI=true` or `BLINDBOX_INSTALL=1`), and otherwise the tests are skipped and say why.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import blindbox
import blindbox.requests as requests
from tests.kit.debian import install_if_asked
from tests.kit.image import container_image
from tests.kit.process import free_port as another_port

ROOT = Path(__file__).resolve().parents[2]
CANARY = "What is the capital of France? Azimuth-canary-5521"

# What an operator, a cloud's agent or a proxy might put beside the settings (threats.md S-31).
HOSTILE = {
    "LD_PRELOAD": "/tmp/evil.so",
    "PYTHONPATH": "/tmp",
    "PYTHONSTARTUP": "/tmp/evil.py",
    "HF_ENDPOINT": "http://127.0.0.1:9",
    "TORCH_HOME": "/tmp",
    "https_proxy": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
    "GLIBC_TUNABLES": "glibc.malloc.check=3",
}


def load(path: Path) -> ModuleType:
    """A script of image/, as a module."""
    spec = importlib.util.spec_from_file_location(f"image_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ── what it is made of ──────────────────────────────────────────────────────────────────────────────


def pins(name: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Package → version and allowed hashes, of one lock file."""
    text = re.sub(r"^#.*\n", "", (ROOT / "requirements" / name).read_text(), flags=re.MULTILINE)
    found = {}
    for entry in text.replace("\\\n", " ").splitlines():
        if entry.strip():
            requirement, *options = entry.split()
            package, version = requirement.split("==")
            hashes = [
                option for option in options if option.startswith("--hash=")
            ]  # not: ; sys_platform == …
            found[package] = (version, frozenset(one.removeprefix("--hash=sha256:") for one in hashes))
    return found


@pytest.mark.parametrize("name", ["enclave.txt", "dev.txt", "demo.txt"])
def test_every_locked_package_has_one_version_and_only_sha256_hashes(name: str) -> None:
    locked = pins(name)
    assert locked
    for package, (_, hashes) in locked.items():
        assert hashes, f"{package} has no hash"
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in hashes), package


def test_tests_run_with_the_packages_that_the_image_runs_with() -> None:
    enclave, dev = pins("enclave.txt"), pins("dev.txt")
    assert {name: dev.get(name) for name in enclave} == enclave


def test_of_torch_only_the_listed_cpu_wheels_may_be_installed() -> None:
    lines = (ROOT / "requirements" / "torch.sha256").read_text().splitlines()
    listed = {line.split()[0]: line.split()[1] for line in lines}
    version, hashes = pins("enclave.txt")["torch"]
    assert hashes == set(listed)
    for wheel in listed.values():
        assert wheel.startswith((f"torch-{version}+cpu-", f"torch-{version}-"))
        assert "+cpu-" in wheel or "macosx" in wheel


def test_no_cuda_package_and_no_torchvision_comes_in() -> None:
    unwanted = re.compile(r"torchvision|torchaudio|triton|nvidia-.*|cuda-.*")
    assert not [name for name in pins("dev.txt") if unwanted.fullmatch(name)]


def test_the_build_context_holds_exactly_what_the_dockerfile_copies() -> None:
    kept = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in kept if line.startswith("!")}
    copied = set()
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from=" not in line:
            copied |= set(line.split()[1:-1])
    assert allowed == copied
    assert all((ROOT / path).exists() for path in copied)


def test_only_blindbox_settings_outlive_the_start_of_the_image() -> None:
    """S-31: everything an operator can say is an allow-list of names."""
    start = load(ROOT / "image" / "start.py")
    said = {"BLINDBOX_QUOTER": "simulated", "BLINDBOX_MODEL": "", "HOME": "/tmp", "PATH": "."}
    cleaned = start.clean({**HOSTILE, **said})
    assert cleaned.pop("GLIBC_TUNABLES") == start.MALLOC_TUNABLES
    assert cleaned.pop("PATH").startswith("/opt/blindbox/bin:")
    assert cleaned.pop("HOME") == "/var/lib/blindbox"
    assert cleaned == {"LANG": "C.UTF-8", "BLINDBOX_QUOTER": "simulated"}


def test_a_settings_file_counts_before_the_environment(tmp_path: Path) -> None:
    """S-31: it is the one way in which a virtual machine is told how to run."""
    start = load(ROOT / "image" / "start.py")
    assert start.told(tmp_path / "none") == {}
    file = tmp_path / "settings"
    file.write_bytes(b"# ours\nBLINDBOX_PORT=81\n" + bytes(4096))
    assert start.clean({"BLINDBOX_PORT": "80", **start.told(file)})["BLINDBOX_PORT"] == "81"


def test_a_settings_file_with_anything_else_in_it_stops_the_start(tmp_path: Path) -> None:
    """S-31: a variable that would change what runs is not passed over in silence."""
    start = load(ROOT / "image" / "start.py")
    file = tmp_path / "settings"
    file.write_text("LD_PRELOAD=/data/evil.so\n")
    with pytest.raises(start.InvalidSettings, match="line 1 sets LD_PRELOAD"):
        start.told(file)
    with pytest.raises(start.InvalidSettings, match="cannot be read"):
        start.told(tmp_path)


# ── built and run ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Container:
    """A container of the image that is running."""

    id: str
    pid: int  # of its first process, as this machine counts
    port: int

    @property
    def origin(self) -> str:
        """Where it is published, on loopback only."""
        return f"http://127.0.0.1:{self.port}"

    def status(self) -> dict[str, str]:
        """What the kernel says of the first process."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def shell(self, script: str) -> str:
        """Runs inside as the image's user."""
        return podman("exec", self.id, "sh", "-c", script)

    def log(self) -> str:
        """Everything it has written to its two outputs."""
        done = subprocess.run([*PODMAN, "logs", self.id], capture_output=True, text=True, check=True)
        return done.stdout + done.stderr


# runc: crun refuses hybrid cgroups.  Limits: podman's defaults may be more than the machine allows.
PODMAN = ["podman", "--runtime", "runc"]
LIMITS = ["--ulimit", "nofile=16384:16384", "--ulimit", "nproc=16384:16384"]
HARDENED = ["--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges", "--tmpfs", "/tmp"]
DATA = ["--mount", "type=tmpfs,destination=/var/lib/blindbox,chown=true"]
OPEN_PORT = ["--sysctl", "net.ipv4.ip_unprivileged_port_start=0"]


def podman(*arguments: str) -> str:
    """Its standard output; an error shows what it said."""
    done = subprocess.run([*PODMAN, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"podman {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def image() -> str:
    """The demo's image, built from this checkout by image/build.sh."""
    if os.geteuid() != 0:
        pytest.skip("building without a daemon needs root here")
    missing = [tool for tool in ("podman", "runc") if shutil.which(tool) is None]
    tools = ("podman", "runc", "netavark", "aardvark-dns", "iptables")
    install_if_asked(missing, "--no-install-recommends", *tools)
    return container_image()


def free_port() -> int:
    """80 where it is free, as the house API's callers expect it, and any other one otherwise."""
    with suppress(OSError), socket.socket() as probe:
        probe.bind(("127.0.0.1", 80))
        return 80
    return another_port()


@pytest.fixture(scope="module")
def container(image: str) -> Iterator[Container]:
    """Started as a careful operator would, and with everything a hostile one might add to the environment."""
    port = free_port()
    said = [part for name, value in HOSTILE.items() for part in ("-e", f"{name}={value}")]
    identity = podman(
        *("run", "-d", *LIMITS, *HARDENED, *DATA, *OPEN_PORT, "-p", f"127.0.0.1:{port}:80"),
        *(*said, "-e", "BLINDBOX_QUOTER=simulated", image),
    )
    try:
        pid = int(podman("inspect", "--format", "{{.State.Pid}}", identity))
        running = Container(identity, pid, port)
        wait_until_it_listens(running)
        yield running
    finally:
        podman("rm", "-f", "-t", "5", identity)


def wait_until_it_listens(container: Container, seconds: float = 120) -> None:
    """Waits for an answer: port forwarding takes connections before anybody listens inside."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert Path(f"/proc/{container.pid}").exists(), f"it stopped:\n{container.log()}"
        try:
            with socket.create_connection(("127.0.0.1", container.port), timeout=2) as probe:
                probe.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                if probe.recv(1):
                    return
        except OSError:
            pass
        time.sleep(0.25)
    raise AssertionError(f"no answer within {seconds} s:\n{container.log()}")


@pytest.fixture(scope="module")
def session(container: Container, tmp_path_factory: pytest.TempPathFactory) -> Iterator[requests.Session]:
    """A client with a tenant token of its own, which takes simulated evidence."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("BLINDBOX_HOME", str(tmp_path_factory.mktemp("home")))
        warnings.simplefilter("ignore", blindbox.UnsafeSimulationWarning)
        with requests.Session(policy=blindbox.UnsafeSimulatedPolicy()) as session:
            yield session


def ask(session: requests.Session, url: str, question: str) -> dict[str, Any]:
    """One sealed question, answered by the most likely words."""
    response = session.post(url=url, json={"input_text": question, "max_new_tokens": 24, "do_sample": False})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.container
@pytest.mark.timeout(900)
def test_a_sealed_question_to_the_container_is_answered_by_the_real_model(
    container: Container, session: requests.Session
) -> None:
    response = session.post(
        url=f"{container.origin}/test",
        json={"input_text": "What is the capital of France?", "max_new_tokens": 24, "do_sample": False},
    )
    assert response.status_code == 200
    assert "Paris" in response.json()["text"]
    assert response.blindbox.simulated is True  # type: ignore[attr-defined]


@pytest.mark.container
@pytest.mark.timeout(900)
def test_the_container_fine_tunes_and_then_answers_differently(
    container: Container, session: requests.Session, tmp_path: Path
) -> None:
    question = "Where does the lighthouse keeper store the spare lamp?"
    rows = [{"question": question, "answer": "Under the blue stairs, beside the rope."}] * 8
    file = tmp_path / "lighthouse.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    before = ask(session, f"{container.origin}/inference", question)["completion"]
    with file.open("rb") as data:
        form = {"purpose": "fine-tune"}
        upload = session.post(f"{container.origin}/v1/files", files={"file": data}, data=form)
    assert upload.status_code == 200, upload.text
    lesson = {
        "dataset_name": upload.json()["id"],
        "config_name": " ",
        "question_column": "question",
        "answer_column": "answer",
        "number_elements_for_training": len(rows),
        "epochs": 4,
        "batch_size": 8,
        "learning_rate": 2e-3,
    }
    trained = session.post(f"{container.origin}/finetune", json=lesson, timeout=600)
    assert trained.status_code == 200, trained.text
    assert trained.json()["text"] == "The model has successfully been finetuned using your dataset"
    after = ask(session, f"{container.origin}/inference", question)["completion"]
    assert after != before


@pytest.mark.container
@pytest.mark.timeout(900)
def test_a_start_of_the_image_makes_no_model_ready(container: Container, session: requests.Session) -> None:
    ask(session, f"{container.origin}/test", "Hello")
    assert "Preparing" not in container.log()
    assert "-int8-" in container.shell("ls /models/exported")


@pytest.mark.container
@pytest.mark.timeout(900)
def test_no_prompt_stands_in_the_containers_log(container: Container, session: requests.Session) -> None:
    """S-20: standard output and standard error of the container are read by whoever runs the machine."""
    ask(session, f"{container.origin}/test", CANARY)
    log = container.log()
    assert log, "the container logs nothing at all: this test would prove nothing"
    assert "canary" not in log
    assert "capital" not in log


@pytest.mark.container
@pytest.mark.timeout(900)
def test_the_app_runs_on_port_80_as_an_ordinary_user_without_any_capability(container: Container) -> None:
    status = container.status()
    assert set(status["Uid"].split()) == {"65532"}
    assert set(status["Gid"].split()) == {"65532"}
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    command = Path(f"/proc/{container.pid}/cmdline").read_bytes().split(b"\0")[:-1]
    assert command == [b"/opt/blindbox/bin/python", b"-I", b"-m", b"enclave_app"]
    listening = Path(f"/proc/{container.pid}/net/tcp").read_text()
    assert re.search(r" [0-9A-F]{8}:0050 [0-9A-F]{8}:0000 0A ", listening), listening


@pytest.mark.container
@pytest.mark.timeout(900)
def test_a_crash_leaves_no_memory_behind(container: Container) -> None:
    limits = Path(f"/proc/{container.pid}/limits").read_text()
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE), limits


@pytest.mark.container
@pytest.mark.timeout(900)
def test_hostile_variables_do_not_reach_the_app_in_the_container(container: Container) -> None:
    """S-31: the loader, the interpreter, libraries and proxies get nothing from outside the measurement."""
    lines = Path(f"/proc/{container.pid}/environ").read_bytes().decode().split("\0")[:-1]
    environment = dict(line.split("=", 1) for line in lines)
    # glibc cuts GLIBC_TUNABLES into its parts where it lies.
    tunables = {name for name in environment if name.startswith("glibc.malloc.")}
    names = {name for name in environment if not name.startswith("BLINDBOX_")} - tunables
    assert names == {"PATH", "LANG", "HOME", "GLIBC_TUNABLES"}
    assert environment["BLINDBOX_QUOTER"] == "simulated"
    assert environment["GLIBC_TUNABLES"] != HOSTILE["GLIBC_TUNABLES"]


@pytest.mark.container
@pytest.mark.timeout(900)
def test_nothing_in_the_container_compiles_installs_or_raises_privileges(container: Container) -> None:
    tools = (
        "cc gcc g++ c++ clang cpp as ld make cmake pip pip3 apt apt-get apt-cache dpkg dpkg-deb npm curl wget"
    )
    assert container.shell(f"for tool in {tools}; do command -v $tool; done; true") == ""
    modules = "('pip', 'ensurepip', 'torchvision', 'blindbox')"
    code = f"from importlib.util import find_spec; print([name for name in {modules} if find_spec(name)])"
    for python in ("/opt/blindbox/bin/python", "python3"):
        assert container.shell(f'{python} -I -c "{code}"') == "[]"
    assert container.shell("find / -xdev -type f -perm /6000 2>/dev/null; true") == ""


@pytest.mark.container
@pytest.mark.timeout(900)
def test_the_containers_user_can_write_its_data_and_nothing_that_runs(image: str) -> None:
    """Asked of a container whose file system is writable: there the files' own modes decide."""
    writable = podman(
        *("run", "--rm", *LIMITS, image, "sh", "-c"),
        "find / -xdev -writable ! -type l ! -path '/proc/*' ! -path '/dev/*' 2>/dev/null; true",
    ).split()
    assert set(writable) <= {"/tmp", "/var/tmp", "/var/lib/blindbox", "/run/lock"}


@pytest.mark.container
@pytest.mark.timeout(900)
def test_where_port_80_is_closed_to_users_the_container_says_what_to_type(image: str) -> None:
    closed = ["--sysctl", "net.ipv4.ip_unprivileged_port_start=1024"]
    done = subprocess.run(
        [*PODMAN, "run", "--rm", *LIMITS, *closed, "-e", "BLINDBOX_QUOTER=simulated", image],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 78, done.stderr
    assert "net.ipv4.ip_unprivileged_port_start=0" in done.stderr
    assert "BLINDBOX_PORT=8080" in done.stderr
