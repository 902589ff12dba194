"""
The environment, read once into a frozen `Settings`; its digest is part of what is attested (SPEC §2).

Only names beginning with BLINDBOX_ mean anything here, and each value has a character set and a range.
Variables that would change what other software in this process does (loader, interpreter, hubs, proxies,
telemetry) stop the start: whoever sets them sits outside the measurement. All others are forgotten.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .quoting import QUOTERS, QuoterName
from .refusals import listed, nearest

MALLOC_TUNABLES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8589934592"
    ":glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456"
)
"""The one GLIBC_TUNABLES that is accepted: training reuses its large buffers instead of giving them back."""

KEPT = frozenset(
    {"PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "USER", "TERM"}
    | {"HF_HUB_OFFLINE", "GLIBC_TUNABLES", "OMP_NUM_THREADS"}
)
"""Names that survive `forget`; everything else is taken out of the process's environment."""

_HOSTILE = re.compile(
    r"""
    (?: LD_ | DYLD_ | PYTHON | GLIBC_ | MALLOC_ | OPENSSL_ | SSL_ | SSLKEYLOGFILE | GCONV_ | LOCPATH | NLSPATH
      | HF_ | HUGGING | TORCH | PYTORCH_ | TRANSFORMERS_ | TRL_ | PEFT_ | ACCELERATE_ | TOKENIZERS_
      | DATASETS_
      | WANDB_ | MLFLOW_ | COMET_ | OTEL_ | FASTAPI_ | UVICORN_ | WEB_CONCURRENCY | FORWARDED_ALLOW_IPS
      | REQUESTS_CA_BUNDLE | CURL_CA_BUNDLE | OMP_TOOL | ONEDNN_ | DNNL_ | MKL_ | TRITON_ | INDUCTOR_ ).*
    | .*_PROXY
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""Compared without case: libraries read `http_proxy` and `HTTP_PROXY` alike."""

_HARMLESS: Mapping[str, re.Pattern[str]] = {
    # Set by the official Python images; nothing reads the first six, the last two cannot change what runs.
    "PYTHON_VERSION": re.compile(r"3\.[0-9a-z.]{1,16}"),
    "PYTHON_SHA256": re.compile(r"[0-9a-f]{64}"),
    "PYTHON_PIP_VERSION": re.compile(r"[0-9.]{1,16}"),
    "PYTHON_SETUPTOOLS_VERSION": re.compile(r"[0-9.]{1,16}"),
    "PYTHON_GET_PIP_URL": re.compile(r"https://github\.com/pypa/get-pip/raw/[0-9a-f]{40}/public/get-pip\.py"),
    "PYTHON_GET_PIP_SHA256": re.compile(r"[0-9a-f]{64}"),
    "PYTHONDONTWRITEBYTECODE": re.compile(r"1?"),
    "PYTHONUNBUFFERED": re.compile(r"1?"),
    # They only close doors.
    "HF_HUB_OFFLINE": re.compile("1"),
    "HF_HUB_DISABLE_TELEMETRY": re.compile("1"),
    "GLIBC_TUNABLES": re.compile(re.escape(MALLOC_TUNABLES)),
}

_TEXT = re.compile(r"[!-~](?:[ -~]{0,1022}[!-~])?")
_HOST = re.compile(r"[0-9A-Za-z.:-]{1,253}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_FOLDER = re.compile(r"/[A-Za-z0-9._/+@ -]{0,1022}")
_AUTHORITY = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}")
_HUB = re.compile(
    r"https://[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?(?::[0-9]{1,5})?|http://(?:127\.0\.0\.1|localhost)(?::[0-9]{1,5})?"
)
_TPM_AK = re.compile(r"ecc|rsa|0x81[0-9a-f]{6}")
_AUDIENCE = re.compile(r"[A-Za-z0-9._~:/?#@!$&'()*+,;=%-]{1,512}")
_DEVICE = re.compile(r"auto|cpu|cuda(?::[0-9]{1,2})?")


class InvalidSettings(Exception):
    """The environment cannot mean what it says; the message names the variable and what it may be."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How this enclave was told to run. Every field is part of `digest()`."""

    model: str = "tiiuae/falcon-7b"  # what tenants fine-tune and ask through /inference: a name or a folder
    instruct_model: str = "tiiuae/falcon-7b-instruct"  # what answers /test
    models_dir: Path = Path("/models")  # where a model named ORG/NAME is looked for
    engine: Literal["openvino", "torch", "echo"] = "openvino"
    weights: Literal["int8", "bf16", "int4"] = "int8"  # as openvino holds them
    exports_dir: Path | None = None  # of models made ready for openvino; None = `exported` beside the models
    threads: int = 0  # of the engine; 0 = the machine's cores
    kv_cache_mib: int = 0  # of each engine; 0 = a quarter of what memory is free at its start
    most_sequences: int = 64  # continued at once by each engine
    quoter: QuoterName = "auto"  # which hardware proves this machine (quoting/machine.py)
    tpm_ak: str = "ecc"  # the TPM's attestation key: its kind, or the handle of a persistent one
    audience: str = "blindbox"  # whom Confidential Space's tokens are for
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    host: str = "0.0.0.0"  # noqa: S104 - the container publishes what it wants
    port: int = 80
    data_dir: Path | None = None  # tenants' sealed files; None = a fresh folder that dies with the process
    allow_outbound: bool = False  # may data sets and models be fetched from the Hugging Face hub?
    hub_endpoint: str = "https://huggingface.co"  # where data sets are fetched from; a mirror of it, say
    authorities: tuple[str, ...] = ()  # names a client may use besides the boot id (SPEC §5.3)
    endorsements_dir: Path | None = None  # the vendor's certificates, put there by the operator
    max_new_tokens: int = 4096  # of one answer
    max_choices: int = 8  # `n` of one request
    max_stops: int = 16  # stop strings of one request, …
    max_stop_chars: int = 256  # … and how long each
    max_messages: int = 1024  # of one conversation
    max_schema_bytes: int = 32 << 10  # of a JSON schema that an answer has to follow
    max_upload_bytes: int = 1 << 30  # of one file
    max_files: int = 100  # of one tenant
    max_stored_bytes: int = 20 << 30  # of one tenant, all that is kept for it; never above half of the disk
    retention_days: int = 0  # files and jobs that are over go after so long; 0 = when their owner says
    max_training_rows: int = 100_000
    max_training_tokens: int = 512  # of one row; longer ones are cut at the end
    max_epochs: int = 100
    max_waiting: int = 256  # prompts waiting for one engine, …
    max_waiting_each: int = 64  # … and of one tenant
    max_tokens_each: int = 1 << 18  # of one tenant's prompts and answers together, waiting and running
    max_step_seconds: int = 300  # an engine that gives no sign of life for so long is started again
    max_tuned: int = 4  # tuned models held in memory beside the base model, …
    tuned_memory_mib: int = 0  # … and in how much of it, all together; 0 = in what is free
    max_models_each: int = 32  # tuned models that one tenant may keep
    operator_port: int = 0  # /metrics and /health on 127.0.0.1; 0 = none
    drain_seconds: int = 30  # what runs may take so long to finish once the enclave is told to stop
    max_jobs_waiting: int = 64  # fine-tunings of all tenants, beside the one that runs
    max_jobs_each: int = 8  # of one tenant, waiting and running
    max_jobs_kept: int = 200  # records of one tenant; the oldest that are over go first
    max_checkpoints: int = 4  # of one job; the oldest go first
    training_threads: int = 0  # of a fine-tuning, all its processes together; 0 = the machine's cores
    training_processes: int = 1  # that train one model together, each on its share of a batch
    max_training_seconds: int = 86_400  # of one job; 0 = as long as it takes

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """
        Read BLINDBOX_* and refuse what must not be there.

        Raises `InvalidSettings` naming every fault at once, so that one restart is enough.
        """
        faults = [_hostile(name, value) for name, value in sorted(environ.items())]
        values: dict[str, Any] = {}
        for name, text in sorted(environ.items()):
            if not name.upper().startswith("BLINDBOX_"):
                continue
            field = name.removeprefix("BLINDBOX_").lower()
            if name != name.upper() or field not in _READERS:
                known = sorted(f"BLINDBOX_{known.upper()}" for known in _READERS)
                faults.append(
                    f"{name[:80]} is not a setting.{nearest(name, known)} There are: {', '.join(known)}."
                )
                continue
            try:
                values[field] = _READERS[field](text)
            except ValueError as error:
                faults.append(f"{name} {error}.")
        found = [fault for fault in faults if fault]
        if found:
            raise InvalidSettings("\n".join(found))
        return cls(**values)

    def digest(self) -> bytes:
        """SHA-384 of the settings as canonical JSON: sorted keys, no spaces, paths as text."""
        plain = {
            field.name: str(value) if isinstance(value, Path) else value
            for field in dataclasses.fields(self)
            for value in (getattr(self, field.name),)
        }
        text = json.dumps({"blindbox-settings": 1, **plain}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha384(text.encode("ascii")).digest()


def forget(environ: MutableMapping[str, str]) -> None:
    """Take every variable out of the process's environment that nothing here needs any more."""
    for name in [name for name in environ if name not in KEPT]:
        del environ[name]


def _hostile(name: str, value: str) -> str | None:
    if not _HOSTILE.fullmatch(name):
        return None
    harmless = _HARMLESS.get(name)
    if harmless is not None and harmless.fullmatch(value):
        return None
    return (
        f"{name[:80]} is set: it would change what runs here without changing what is measured. "
        "Start without it (env -i)."
    )


def _matching(pattern: re.Pattern[str], expected: str) -> Any:
    def read(text: str) -> str:
        if not _TEXT.fullmatch(text) or not pattern.fullmatch(text):
            raise ValueError(f"must be {expected}")
        return text

    return read


def _one_of(*choices: str) -> Any:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be one of {listed(choices)}")
        return text

    return read


def _folder(text: str) -> Path:
    if not _FOLDER.fullmatch(text) or ".." in Path(text).parts:
        raise ValueError("must be an absolute path without '..' and unusual characters")
    return Path(text)


def _model(text: str) -> str:
    if text.startswith("/"):
        return str(_folder(text))
    if not _NAME.fullmatch(text) or ".." in text:
        raise ValueError("must be a model's name (ORG/NAME) or the absolute path of a folder")
    return text


def _integer(least: int, most: int) -> Any:
    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,15}", text) or not least <= int(text) <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return int(text)

    return read


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("must be 0 or 1")
    return text == "1"


def _authorities(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",")) if text.strip() else ()
    if not all(_AUTHORITY.fullmatch(name) for name in names):
        raise ValueError("must be host names, with or without a port, joined by commas")
    return tuple(sorted({name.lower() for name in names}))


_READERS: Mapping[str, Any] = {
    "model": _model,
    "instruct_model": _model,
    "models_dir": _folder,
    "engine": _one_of("openvino", "torch", "echo"),
    "weights": _one_of("int8", "bf16", "int4"),
    "exports_dir": _folder,
    "threads": _integer(0, 1024),
    "kv_cache_mib": _integer(0, 16 << 20),
    "most_sequences": _integer(1, 4096),
    "quoter": _one_of(*QUOTERS),
    "tpm_ak": _matching(_TPM_AK, "ecc, rsa or the handle of a persistent key, 0x81000000 to 0x81ffffff"),
    "audience": _matching(_AUDIENCE, "1 to 512 characters of a URL or a name"),
    "device": _matching(_DEVICE, "auto, cpu, cuda or cuda:N"),
    "host": _matching(_HOST, "an address or a host name"),
    "port": _integer(0, 65535),
    "data_dir": _folder,
    "allow_outbound": _flag,
    "hub_endpoint": _matching(_HUB, "https://HOST or https://HOST:PORT, without a path"),
    "authorities": _authorities,
    "endorsements_dir": _folder,
    "max_new_tokens": _integer(1, 1_000_000),
    "max_upload_bytes": _integer(1, 1 << 40),
    "max_files": _integer(1, 1_000_000),
    "max_stored_bytes": _integer(1 << 20, 1 << 49),
    "retention_days": _integer(0, 36_500),
    "max_training_rows": _integer(1, 100_000_000),
    "max_training_tokens": _integer(8, 1_000_000),
    "max_epochs": _integer(1, 10_000),
    "max_choices": _integer(1, 128),
    "max_stops": _integer(0, 1000),
    "max_stop_chars": _integer(1, 100_000),
    "max_messages": _integer(1, 1_000_000),
    "max_schema_bytes": _integer(0, 1 << 20),
    "max_waiting": _integer(1, 100_000),
    "max_waiting_each": _integer(1, 100_000),
    "max_tokens_each": _integer(1, 1 << 40),
    "max_step_seconds": _integer(1, 86_400),
    "max_tuned": _integer(0, 1000),
    "tuned_memory_mib": _integer(0, 16 << 20),
    "max_models_each": _integer(1, 100_000),
    "operator_port": _integer(0, 65535),
    "drain_seconds": _integer(0, 3600),
    "max_jobs_waiting": _integer(0, 100_000),
    "max_jobs_each": _integer(1, 10_000),
    "max_jobs_kept": _integer(1, 100_000),
    "max_checkpoints": _integer(1, 10_000),
    "training_threads": _integer(0, 4096),
    "training_processes": _integer(1, 64),
    "max_training_seconds": _integer(0, 10_000_000),
}
