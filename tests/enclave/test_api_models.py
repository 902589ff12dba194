"""`/v1/models`: one's own models listed, named, taken home and deleted, and nobody else's."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from enclave_app import zipped
from enclave_app.api import Rooms
from enclave_app.catalogue import Catalogue, Source
from enclave_app.engines.adapter import Adapter, Manifest
from enclave_app.engines.echo import ByteTokenizer
from enclave_app.model_card import _ASKED, CARD, CONFIG, FULL, LORA
from enclave_app.models_book import model_id
from enclave_app.prompts import Template
from enclave_app.tenants import tenant_from
from tests.kit.models import tiny_llama
from tests.kit.rooms import ALICE, BOB, client_of, error_of, rooms_in
from tests.kit.tensors import floats, lora

JOB, OTHER = "ftjob-" + "1" * 32, "ftjob-" + "2" * 32
TENANT = tenant_from(ALICE["authorization"])
CANARY = "Wend-4711"


def an_adapter(weights: bytes, **changes: Any) -> Adapter:
    fields: dict[str, Any] = {
        "model": "",
        "template": Template.TEXT.value,
        "template_digest": Template.TEXT.digest(ByteTokenizer()),
        "rank": 4,
        "alpha": 8,
        "targets": ("q_proj",),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    return Adapter(Manifest(**(fields | changes)), weights)


def published(rooms: Rooms, job: str = JOB, suffix: str = "mill", seed: int = 0) -> str:
    more = {"rows_used": 24, "first_loss": 2.5, "note": CANARY, CANARY: 1}
    return rooms.catalogue.publish(TENANT, job, suffix, an_adapter(lora(seed=seed)), more)


def test_ones_own_models_are_listed_and_found_with_what_they_were_made_of(
    client: TestClient, rooms: Rooms
) -> None:
    """S-22: and nobody else sees them."""
    old, new = published(rooms), published(rooms, OTHER, "")
    assert old == f"ft:org/echo:mill:{model_id(JOB)}"
    listed = client.get("/v1/models").json()["data"]
    assert [each["id"] for each in listed] == ["org/echo", new, old]
    told = client.get(f"/v1/models/{old}").json()
    assert told in listed
    assert (told["object"], told["owned_by"]) == ("model", "you")
    assert told["parent"] == told["root"] == "org/echo"
    assert told["created"] > 1_700_000_000
    assert listed[0]["parent"] is None
    assert [each["id"] for each in client.get("/v1/models", headers=BOB).json()["data"]] == ["org/echo"]
    for verb, path in (("GET", old), ("GET", f"{old}/content"), ("DELETE", old)):
        theirs = client.request(verb, f"/v1/models/{path}", headers=BOB)
        never = client.request(verb, f"/v1/models/{path.replace('mill', 'wind')}", headers=BOB)
        assert error_of(theirs, 404, "model_not_found", "model") == error_of(never, 404, "model_not_found")
    assert len(client.get("/v1/models").json()["data"]) == 3


def test_models_answer_by_name_and_the_newest_without_one(client: TestClient, rooms: Rooms) -> None:
    old, new = published(rooms), published(rooms, OTHER, seed=1)
    marks = {
        name: f"[{rooms.catalogue.adapter(TENANT, name).manifest.weights_sha256[:16]}]" for name in (old, new)
    }
    fingerprints = set()
    for name in (old, new, "org/echo"):
        body = {"model": name, "messages": [{"role": "user", "content": "hello"}]}
        told = client.post("/v1/chat/completions", json=body).json()
        assert told["choices"][0]["message"]["content"].startswith(marks.get(name, "hello"))
        fingerprints.add(told["system_fingerprint"])
    assert len(fingerprints) == 3
    inference = client.post("/inference", json={"input_text": "hello"}).json()
    assert inference["completion"] == f"{marks[new]} hello"
    assert (
        marks[new] in client.post("/generate", json={"prompt_config": {"instruction": "x"}}).json()["output"]
    )


def test_a_deleted_model_is_gone_and_the_one_before_answers(client: TestClient, rooms: Rooms) -> None:
    old, new = published(rooms), published(rooms, OTHER, seed=1)
    gone = client.delete(f"/v1/models/{new}")
    assert (gone.status_code, gone.json()) == (200, {"id": new, "object": "model", "deleted": True})
    error_of(client.delete(f"/v1/models/{new}"), 404, "model_not_found", "model")
    error_of(client.get(f"/v1/models/{new}/content"), 404, "model_not_found", "model")
    answer = client.post("/inference", json={"input_text": "hello"}).json()["completion"]
    assert rooms.catalogue.adapter(TENANT, old).manifest.weights_sha256[:16] in answer
    error_of(client.delete("/v1/models/org/echo"), 400, "not_deletable", "model")


@pytest.mark.parametrize(
    "name", ["..", "../../etc", "ft:org/echo::../x", "ft:%00", "%2e%2e%2f", "ft:" + "x" * 4000]
)
def test_names_that_are_none_are_answered_like_names_that_never_were(client: TestClient, name: str) -> None:
    """S-17"""
    for verb, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        answer = client.request(verb, f"/v1/models/{name}{path}")
        assert answer.status_code in (404, 405), answer.text


# --- what is taken home ---------------------------------------------------------------------------------


def taken(client: TestClient, name: str) -> dict[str, bytes]:
    answer = client.get(f"/v1/models/{name}/content")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/zip"
    assert int(answer.headers["content-length"]) == len(answer.content)
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert {each.compress_type for each in archive.infolist()} == {zipfile.ZIP_STORED}
        return {name: archive.read(name) for name in archive.namelist()}


def test_what_is_taken_home_tells_of_the_training_and_nothing_of_its_data(
    client: TestClient, rooms: Rooms
) -> None:
    """S-20: of what a job reports, numbers alone are shown."""
    name = published(rooms)
    files = taken(client, name)
    assert list(files) == [LORA, CONFIG, CARD]
    assert files[LORA] == lora()  # byte for byte: the receipt's digest is of these
    config = json.loads(files[CONFIG])
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8)
    card = files[CARD].decode()
    for part in (
        name,
        "org/echo",
        "PeftModel",
        "`q_proj`",
        hashlib.sha256(lora()).hexdigest(),
        "| 24 |",
        "2.5",
    ):
        assert part in card
    assert CANARY.encode() not in b"".join(files.values())


@pytest.mark.parametrize("template", Template)
def test_the_card_says_how_the_model_was_taught_to_be_asked(
    client: TestClient, rooms: Rooms, template: Template
) -> None:
    adapter = an_adapter(lora(), template=template.value, template_digest=template.digest(ByteTokenizer()))
    card = taken(client, rooms.catalogue.publish(TENANT, JOB, "", adapter))[CARD].decode()
    assert f"It is asked {_ASKED[template]}." in card


def test_whole_weights_are_taken_home_with_a_word_on_how_to_load_them(
    client: TestClient, rooms: Rooms
) -> None:
    weights = floats({"model.layers.0.self_attn.q_proj.weight": (6, 5)})
    adapter = an_adapter(weights, kind="full", rank=0, alpha=0)
    files = taken(client, rooms.catalogue.publish(TENANT, JOB, "", adapter))
    assert list(files) == [FULL, CARD]
    assert files[FULL] == weights
    assert "load_state_dict" in files[CARD].decode()
    assert "PeftModel" not in files[CARD].decode()


def test_the_archive_is_read_by_others_whatever_is_in_it(tmp_path: Path) -> None:
    for files in ({}, {"a": b""}, {"ä/b.txt": b"x" * (zipped.PIECE + 1), "c": bytes(range(256))}):
        data = b"".join(zipped.zipped(files))
        assert len(data) == zipped.size(files)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert {name: archive.read(name) for name in archive.namelist()} == files


def test_an_archive_beyond_32_bits_is_read_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a limit of 100 bytes in the place of 4 GiB, so that every field for large files is written."""
    monkeypatch.setattr(zipped, "_FULL", 100)
    files = {"small": b"s" * 10, "large": b"l" * 1000, "behind": b"b" * 10}
    data = b"".join(zipped.zipped(files))
    assert len(data) == zipped.size(files)
    assert data.count(b"PK\x06\x06") == data.count(b"PK\x06\x07") == 1
    # Where 32 bits are too few, all of them are set; the small limit stands there instead.
    full = data.replace((100).to_bytes(4, "little"), b"\xff" * 4)
    with zipfile.ZipFile(io.BytesIO(full)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == files


# --- in plain peft, outside -----------------------------------------------------------------------------


@cache
def trained() -> tuple[Adapter, list[int], list[int]]:
    """An adapter of the tiny model, a prompt, and what the model says to it under that adapter."""
    import safetensors.torch
    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from peft.utils import set_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    from enclave_app.models import Model
    from enclave_app.tokenizer import FolderTokenizer

    torch.manual_seed(3)
    net: Any = AutoModelForCausalLM.from_pretrained(tiny_llama(), dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model: Any = get_peft_model(net, config)
    state = {name: torch.randn_like(each) * 0.3 for name, each in get_peft_model_state_dict(model).items()}
    set_peft_model_state_dict(model, state)
    weights = safetensors.torch.save(state)
    words = FolderTokenizer(tiny_llama())
    adapter = an_adapter(
        weights,
        model=Model.at(tiny_llama()).fingerprint,
        template=Template.CHAT.value,
        template_digest=Template.CHAT.digest(words),
        alpha=12,
        targets=("down_proj", "q_proj"),
    )
    prompt = list(range(30, 50))
    return adapter, prompt, greedy(model.eval(), prompt)


def greedy(model: Any, ids: list[int], most: int = 16) -> list[int]:
    import torch

    found = list(ids)
    with torch.no_grad():
        for _ in range(most):
            found.append(int(model(torch.tensor([found])).logits[0, -1].argmax()))
    return found[len(ids) :]


def test_plain_peft_loads_what_was_taken_home_and_says_what_the_trained_model_said(tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from enclave_app.models import Model
    from enclave_app.tokenizer import FolderTokenizer

    adapter, prompt, said = trained()
    rooms = rooms_in(tmp_path / "store")
    echo = rooms.catalogue.base
    base = Source("org/tiny", echo.make, FolderTokenizer(tiny_llama()), Model.at(tiny_llama()).fingerprint)
    object.__setattr__(rooms, "catalogue", Catalogue(base, base, rooms.desk, rooms.store))
    with client_of(rooms) as client:
        name = rooms.catalogue.publish(TENANT, JOB, "", adapter)
        files = taken(client, name)
    home = tmp_path / "home"
    home.mkdir()
    for file, data in files.items():
        (home / file).write_bytes(data)
    net = AutoModelForCausalLM.from_pretrained(tiny_llama(), dtype=torch.float32)
    plain = greedy(net, prompt)
    assert greedy(PeftModel.from_pretrained(net, str(home)).eval(), prompt) == said != plain
