"""The environment is read once, strictly; what must not be there stops the start."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import tokenizers
import tokenizers.models

from enclave_app.settings import KEPT, MALLOC_TUNABLES, InvalidSettings, Settings, forget
from tests.conftest import REPOSITORY


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = Settings.from_environ({})
    assert settings == Settings()
    assert (settings.model, settings.instruct_model) == ("tiiuae/falcon-7b", "tiiuae/falcon-7b-instruct")
    assert (settings.port, settings.allow_outbound, settings.data_dir) == (80, False, None)


def test_every_field_can_be_set_and_is_read_as_its_type() -> None:
    read = Settings.from_environ(
        {
            "BLINDBOX_MODEL": "/models/base",
            "BLINDBOX_INSTRUCT_MODEL": "org/chat-1.5",
            "BLINDBOX_MODELS_DIR": "/srv/models",
            "BLINDBOX_ENGINE": "echo",
            "BLINDBOX_WEIGHTS": "bf16",
            "BLINDBOX_EXPORTS_DIR": "/srv/exports",
            "BLINDBOX_THREADS": "3",
            "BLINDBOX_KV_CACHE_MIB": "512",
            "BLINDBOX_MOST_SEQUENCES": "16",
            "BLINDBOX_QUOTER": "simulated",
            "BLINDBOX_TPM_AK": "0x81010002",
            "BLINDBOX_AUDIENCE": "https://box.example/",
            "BLINDBOX_DEVICE": "cuda:1",
            "BLINDBOX_HOST": "127.0.0.1",
            "BLINDBOX_PORT": "8080",
            "BLINDBOX_DATA_DIR": "/srv/data",
            "BLINDBOX_ALLOW_OUTBOUND": "1",
            "BLINDBOX_HUB_ENDPOINT": "https://mirror.example:8443",
            "BLINDBOX_AUTHORITIES": "Box.example:80, other.example",
            "BLINDBOX_ENDORSEMENTS_DIR": "/srv/certificates",
            "BLINDBOX_MAX_NEW_TOKENS": "7",
            "BLINDBOX_MAX_UPLOAD_BYTES": "1000",
            "BLINDBOX_MAX_FILES": "2",
            "BLINDBOX_MAX_STORED_BYTES": "2000000",
            "BLINDBOX_RETENTION_DAYS": "30",
            "BLINDBOX_MAX_TRAINING_ROWS": "3",
            "BLINDBOX_MAX_TRAINING_TOKENS": "64",
            "BLINDBOX_MAX_EPOCHS": "4",
            "BLINDBOX_MAX_CHOICES": "1",
            "BLINDBOX_MAX_STOPS": "0",
            "BLINDBOX_MAX_STOP_CHARS": "10",
            "BLINDBOX_MAX_MESSAGES": "9",
            "BLINDBOX_MAX_SCHEMA_BYTES": "0",
            "BLINDBOX_MAX_WAITING": "5",
            "BLINDBOX_MAX_WAITING_EACH": "6",
            "BLINDBOX_MAX_TOKENS_EACH": "1000",
            "BLINDBOX_MAX_STEP_SECONDS": "11",
            "BLINDBOX_MAX_TUNED": "0",
            "BLINDBOX_TUNED_MEMORY_MIB": "700",
            "BLINDBOX_MAX_MODELS_EACH": "3",
            "BLINDBOX_OPERATOR_PORT": "9090",
            "BLINDBOX_DRAIN_SECONDS": "12",
            "BLINDBOX_MAX_JOBS_WAITING": "0",
            "BLINDBOX_MAX_JOBS_EACH": "2",
            "BLINDBOX_MAX_JOBS_KEPT": "9",
            "BLINDBOX_MAX_CHECKPOINTS": "1",
            "BLINDBOX_TRAINING_THREADS": "3",
            "BLINDBOX_TRAINING_PROCESSES": "2",
            "BLINDBOX_MAX_TRAINING_SECONDS": "60",
        }
    )
    assert all(getattr(read, field.name) != getattr(Settings(), field.name) for field in fields(Settings))
    assert read.data_dir == Path("/srv/data")
    assert read.authorities == ("box.example:80", "other.example")


def test_a_misspelt_setting_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InvalidSettings, match='Did you mean "BLINDBOX_MODEL"'):
        Settings.from_environ({"BLINDBOX_MODLE": "x"})
    with pytest.raises(InvalidSettings, match="not a setting"):
        Settings.from_environ({"blindbox_model": "x"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BLINDBOX_PORT", "70000"),
        ("BLINDBOX_PORT", "-1"),
        ("BLINDBOX_PORT", "８０"),
        ("BLINDBOX_PORT", ""),
        ("BLINDBOX_ENGINE", "vllm"),
        ("BLINDBOX_QUOTER", "none"),
        ("BLINDBOX_TPM_AK", "0x80000000"),
        ("BLINDBOX_AUDIENCE", "two words"),
        ("BLINDBOX_HOST", "a b"),
        ("BLINDBOX_DEVICE", "cuda;rm"),
        ("BLINDBOX_MODEL", "../../etc"),
        ("BLINDBOX_MODEL", "/models/../etc"),
        ("BLINDBOX_MODEL", "org/name/more"),
        ("BLINDBOX_MODEL", "org/na\nme"),
        ("BLINDBOX_DATA_DIR", "data"),
        ("BLINDBOX_DATA_DIR", "/data\0"),
        ("BLINDBOX_ALLOW_OUTBOUND", "yes"),
        ("BLINDBOX_AUTHORITIES", "a,,b"),
        ("BLINDBOX_MAX_NEW_TOKENS", "0"),
        ("BLINDBOX_MAX_NEW_TOKENS", "1e3"),
    ],
)
def test_a_value_out_of_range_or_character_set_is_refused_by_name(name: str, value: str) -> None:
    """S-31: allowed by name and by character set."""
    with pytest.raises(InvalidSettings, match=name):
        Settings.from_environ({name: value})


HOSTILE = {
    "LD_PRELOAD": "/tmp/x.so",
    "LD_LIBRARY_PATH": "/tmp",
    "LD_AUDIT": "/tmp/x.so",
    "PYTHONPATH": "/tmp",
    "PYTHONSTARTUP": "/tmp/x.py",
    "PYTHONHOME": "/tmp",
    "PYTHON_VERSION": "3.11; rm",
    "PYTHONUNBUFFERED": "/tmp",
    "HF_ENDPOINT": "http://evil",
    "HF_HOME": "/tmp",
    "HF_HUB_OFFLINE": "0",
    "HUGGINGFACE_HUB_CACHE": "/tmp",
    "TORCH_HOME": "/tmp",
    "TORCHINDUCTOR_CACHE_DIR": "/tmp",
    "PYTORCH_JIT": "0",
    "TRANSFORMERS_CACHE": "/tmp",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://evil",
    "FASTAPI_OTEL_AUTO_CONFIGURE": "true",
    "HTTP_PROXY": "http://evil",
    "https_proxy": "http://evil",
    "all_proxy": "socks5://evil",
    "no_proxy": "*",
    "SSL_CERT_FILE": "/tmp/ca.pem",
    "SSL_CERT_DIR": "/tmp",
    "SSLKEYLOGFILE": "/tmp/keys",
    "REQUESTS_CA_BUNDLE": "/tmp/ca.pem",
    "CURL_CA_BUNDLE": "/tmp/ca.pem",
    "OPENSSL_CONF": "/tmp/openssl.cnf",
    "GLIBC_TUNABLES": "glibc.malloc.check=3",
    "MALLOC_TRACE": "/tmp/trace",
    "WANDB_API_KEY": "x",
    "WEB_CONCURRENCY": "8",
    "FORWARDED_ALLOW_IPS": "*",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_variable_stops_the_start(name: str) -> None:
    """S-31: whatever would change what runs without changing what is measured."""
    with pytest.raises(InvalidSettings, match=name):
        Settings.from_environ({name: HOSTILE[name]})


def test_all_faults_are_told_at_once_and_values_are_not_repeated() -> None:
    with pytest.raises(InvalidSettings) as refused:
        Settings.from_environ({"LD_PRELOAD": "canary", "BLINDBOX_PORT": "canary", "BLINDBOX_X": "canary"})
    assert len(str(refused.value).splitlines()) == 3
    assert "canary" not in str(refused.value)


def test_what_official_python_images_set_is_harmless() -> None:
    environ = {
        "PATH": "/usr/bin",
        "PYTHON_VERSION": "3.11.14",
        "PYTHON_SHA256": "ab" * 32,
        "PYTHON_PIP_VERSION": "24.0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "GLIBC_TUNABLES": MALLOC_TUNABLES,
        "HF_HUB_OFFLINE": "1",
        "HOSTNAME": "box",
    }
    assert Settings.from_environ(environ) == Settings()


def test_what_is_not_needed_is_forgotten() -> None:
    environ = {
        "PATH": "/usr/bin",
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "BLINDBOX_PORT": "80",
        "AWS_SECRET": "x",
    }
    forget(environ)
    assert environ == {"PATH": "/usr/bin"}
    assert "PATH" in KEPT


def test_the_digest_covers_every_field() -> None:
    base = Settings()
    assert len(base.digest()) == 48
    assert base.digest() == Settings().digest()
    others = [
        replace(base, **{field.name: 7 if value != 7 else 8})
        for field in fields(Settings)
        for value in (getattr(base, field.name),)
    ]
    digests = {settings.digest() for settings in (base, *others)}
    assert len(digests) == 1 + len(fields(Settings))


def test_every_setting_stands_in_the_manual_with_its_default() -> None:
    page = (REPOSITORY / "docs" / "running.md").read_text("utf-8")
    table = page.partition("\n## Settings\n")[2].partition("\n## ")[0]
    told: dict[str, str] = {}
    for names, defaults in re.findall(r"^\| (`BLINDBOX_[^|]+) \| ([^|]+) \|", table, re.MULTILINE):
        told |= dict(zip(names.split(", "), defaults.split(", "), strict=True))
    units = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
    for field in fields(Settings):
        number, _, unit = told.pop(f"`BLINDBOX_{field.name.upper()}`").partition(" ")
        value = getattr(Settings(), field.name)
        meant: object = int(number) * units[unit] if unit else number.strip("`")
        if isinstance(value, int):  # a flag is one too
            assert meant in (value, str(int(value))), field.name
        else:
            assert meant == (str(value) if value else "none"), field.name
    assert not told, f"the manual has settings that there are not: {', '.join(told)}"


def start(environ: dict[str, str], seconds: float = 60) -> subprocess.CompletedProcess[str]:
    paths = [str(REPOSITORY), str(REPOSITORY / "attestation"), str(REPOSITORY / "data")]
    code = f"import sys; sys.path[:0] = {paths!r}; import runpy; "
    return subprocess.run(
        [sys.executable, "-I", "-c", code + "runpy.run_module('enclave_app', run_name='__main__')"],
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        timeout=seconds,
    )


ECHO = {"BLINDBOX_ENGINE": "echo", "BLINDBOX_QUOTER": "simulated", "BLINDBOX_HOST": "127.0.0.1"}


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"BLINDBOX_HOST": "203.0.113.9", "BLINDBOX_PORT": "0"}, "no such address"),
        ({"BLINDBOX_PORT": "0", "BLINDBOX_DATA_DIR": "/etc/passwd"}, "BLINDBOX_DATA_DIR: /etc/passwd"),
    ],
)
def test_an_address_or_a_folder_that_cannot_be_had_is_told_in_words(
    environ: dict[str, str], words: str
) -> None:
    run = start(ECHO | environ)
    assert run.returncode == 2, run.stderr
    assert words in run.stderr
    assert "Traceback" not in run.stderr


def test_a_port_that_is_taken_is_told_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        run = start(ECHO | {"BLINDBOX_ENGINE": "torch", "BLINDBOX_PORT": port, "BLINDBOX_MODEL": "/nowhere"})
    assert run.returncode == 2, run.stderr
    assert f"port {port} is taken" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("has_words", "reason"), [(False, "has no tokenizer.json"), (True, "an engine cannot be started")]
)
def test_a_model_that_cannot_be_read_stops_the_start_in_words(
    tmp_path: Path, has_words: bool, reason: str
) -> None:
    """What the engine's process found out is the last line here: a reason, and no trace."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"garbage")
    if has_words:
        tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0})).save(str(tmp_path / "tokenizer.json"))
    model = {"BLINDBOX_MODEL": str(tmp_path), "BLINDBOX_INSTRUCT_MODEL": str(tmp_path)}
    run = start(ECHO | model | {"BLINDBOX_ENGINE": "torch", "BLINDBOX_PORT": "0"}, 120)
    assert run.returncode == 2, run.stderr
    last = run.stderr.splitlines()[-1]
    assert last.startswith("not started: ")
    assert reason in last
    assert "Traceback" not in run.stderr


def test_the_process_that_answers_the_network_imports_nothing_heavy() -> None:
    """A cold start is mostly imports; and what is not there cannot be attacked."""
    code = (
        f"import sys; sys.path[:0] = {[str(REPOSITORY / room) for room in ('', 'attestation', 'data')]!r}\n"
        "from enclave_app import __main__, serving\n"
        "from enclave_app.main import from_settings\n"
        "from enclave_app.settings import Settings\n"
        "from enclave_app.training import sft\n"
        "from enclave_app.engines import export\n"
        "import enclave_app.tokenizer\n"
        "from_settings(Settings(engine='echo', quoter='simulated'))\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "uvicorn" in loaded
    heavy = {"torch", "transformers", "openvino", "openvino_genai", "optimum", "nncf", "numpy", "pandas"}
    assert not loaded & (heavy | {"datasets", "pyarrow", "peft", "trl", "scipy", "huggingface_hub"})


@pytest.mark.parametrize(
    "environ",
    [
        {"HF_ENDPOINT": "http://evil"},
        {"http_proxy": "http://evil"},
        {"BLINDBOX_PROT": "80"},
        {"BLINDBOX_QUOTER": "simulated", "BLINDBOX_MODEL": "/nowhere/at/all"},
        {"BLINDBOX_QUOTER": "simulated", "BLINDBOX_MODEL": "org/absent"},
    ],
)
def test_the_program_does_not_start_with_it_and_says_why(environ: dict[str, str]) -> None:
    """S-31: exit code 2 and a reason, before anything is loaded."""
    run = start(environ)
    assert run.returncode == 2, run.stderr
    assert "not started" in run.stderr
    assert "Traceback" not in run.stderr
