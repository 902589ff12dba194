"""Programs that know nothing of BlindBox, through the proxy: curl, LangChain, OpenAI's package for Node."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blindbox.proxy import EVIDENCE_HEADER, Proxy
from enclave_app.engines.echo import EchoEngine
from tests.conftest import REPOSITORY
from tests.kit.app import idle, whole_app
from tests.kit.simulated import unsafe

WORDS = "Say these words again, please."
NODE_PACKAGE = "openai@7"


@pytest.fixture(scope="module")
def engine() -> EchoEngine:
    return EchoEngine(rate=200)


@pytest.fixture(scope="module")
def origin(engine: EchoEngine) -> Iterator[str]:
    with whole_app(engine=engine) as one:
        yield one.origin


@pytest.fixture
def proxy(origin: str, own_home: Path) -> Iterator[Proxy]:
    with Proxy(origin, policy=unsafe(), listen="127.0.0.1:0") as one:
        yield one


# ── curl ──────────────────────────────────────────────────────────────────────────────────────────────────

curl = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")


def curled(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["curl", "-sS", *arguments], capture_output=True, text=True, timeout=240, **more)


@curl
def test_curl_chats_and_sees_the_evidence(proxy: Proxy) -> None:
    asked = {"model": "echo", "messages": [{"role": "user", "content": WORDS}]}
    done = curled("-i", "--json", json.dumps(asked), f"{proxy.url}/v1/chat/completions")
    head, _, body = done.stdout.partition("\n\n")
    assert json.loads(body)["choices"][0]["message"]["content"] == WORDS
    assert f"{EVIDENCE_HEADER}: {proxy.proof.evidence_id}" in head


@curl
def test_curl_streams_and_stops_the_engine_when_it_is_interrupted(proxy: Proxy, engine: EchoEngine) -> None:
    """S-11."""
    asked = {
        "model": "echo",
        "messages": [{"role": "user", "content": "word " * 5000}],
        "stream": True,
        "max_tokens": 4000,
    }
    process = subprocess.Popen(
        ["curl", "-sSN", "--json", json.dumps(asked), f"{proxy.url}/v1/chat/completions"],
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"data: {")
        assert engine.busy()
        process.terminate()
    assert idle(engine)


@curl
def test_curl_uses_the_house_api_and_uploads(proxy: Proxy, tmp_path: Path) -> None:
    done = curled("--json", json.dumps({"input_text": WORDS}), f"{proxy.url}/test")
    assert WORDS in json.loads(done.stdout)["text"]
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "a", "answer": "b"}\n' * 1000)
    done = curled("-F", f"file=@{rows}", "-F", "purpose=fine-tune", f"{proxy.url}/v1/files")
    assert json.loads(done.stdout)["bytes"] == rows.stat().st_size
    done = curled(
        "-o",
        str(tmp_path / "nothing"),
        "-w",
        "%{http_code}",
        "-H",
        "Origin: http://x",
        f"{proxy.url}/v1/files",
    )
    assert done.stdout == "403"


# ── LangChain ─────────────────────────────────────────────────────────────────────────────────────────────


def test_langchain_chats_streams_and_batches(proxy: Proxy) -> None:
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(model="echo", base_url=f"{proxy.url}/v1", api_key="anything")
    assert model.invoke(WORDS).content == WORDS
    assert "".join(chunk.content for chunk in model.stream(WORDS)) == WORDS
    assert [each.content for each in model.batch([f"{WORDS} {n}" for n in range(8)])] == [
        f"{WORDS} {n}" for n in range(8)
    ]

    async def main() -> str:
        return "".join([chunk.content async for chunk in model.astream(WORDS)])

    assert asyncio.run(main()) == WORDS


def test_langchain_can_go_without_the_proxy(origin: str, own_home: Path) -> None:
    """Its model takes the clients that `blindbox.OpenAI` makes."""
    langchain = pytest.importorskip("langchain_openai")
    import blindbox

    client = blindbox.OpenAI(origin, policy=unsafe())
    model = langchain.ChatOpenAI(
        model="echo", api_key="unused", client=client.chat.completions, root_client=client
    )
    assert model.invoke(WORDS).content == WORDS
    assert "".join(chunk.content for chunk in model.stream(WORDS)) == WORDS


# ── Node ──────────────────────────────────────────────────────────────────────────────────────────────────

SCRIPT = """
import OpenAI from "openai";
const client = new OpenAI({ maxRetries: 0 });  // OPENAI_BASE_URL and OPENAI_API_KEY are set
const model = "echo", messages = [{ role: "user", content: process.argv[2] }];
const told = {};
told.models = (await client.models.list()).data.map((model) => model.id);
const { data, response } = await client.chat.completions.create({ model, messages }).withResponse();
told.answer = data.choices[0].message.content;
told.evidence = response.headers.get("blindbox-evidence-id");
told.pieces = [];
for await (const chunk of await client.chat.completions.create({ model, messages, stream: true }))
  if (chunk.choices[0]?.delta?.content) told.pieces.push(chunk.choices[0].delta.content);
const stop = await client.chat.completions.create({ model, messages, stop: ["again"], n: 2, seed: 7 });
told.stopped = stop.choices.map((choice) => choice.message.content);
try {
  await client.chat.completions.create({ model: "nowhere", messages });
} catch (error) {
  told.error = [error.constructor.name, error.status, error.code];
}
const long = { model, messages: [{ role: "user", content: "word ".repeat(5000) }], max_tokens: 4000 };
const stream = await client.chat.completions.create({ ...long, stream: true });
for await (const chunk of stream) { stream.controller.abort(); break; }
try {
  await client.chat.completions.create(long, { timeout: 500 });
} catch (error) {
  told.timeout = error.constructor.name;
}
console.log(JSON.stringify(told));
"""


@pytest.fixture(scope="module")
def node_folder() -> Path:
    """A folder in which Node finds the package; kept, so that it is fetched once."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("there is no Node with npm on this machine (apt-get install nodejs npm)")
    folder = REPOSITORY / ".cache" / "node-openai"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "node_modules" / "openai").is_dir():
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", NODE_PACKAGE]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
        if done.returncode:
            pytest.skip(f"npm cannot fetch {NODE_PACKAGE}: {done.stderr.strip().splitlines()[-1:]}")
    return folder


def test_openais_package_for_node_works_unchanged(
    proxy: Proxy, node_folder: Path, engine: EchoEngine
) -> None:
    """S-11: models, chat, stream, stop, errors; an abort and a timeout free the engine."""
    script = node_folder / "journey.mjs"
    script.write_text(SCRIPT)
    done = subprocess.run(
        ["node", str(script), WORDS],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OPENAI_BASE_URL": f"{proxy.url}/v1", "OPENAI_API_KEY": "anything"},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["models"] == ["echo"]
    assert told["answer"] == WORDS
    assert told["evidence"] == proxy.proof.evidence_id
    assert "".join(told["pieces"]) == WORDS
    assert len(told["pieces"]) > 1
    assert told["stopped"] == ["Say these words "] * 2
    assert told["error"] == ["NotFoundError", 404, "model_not_found"]
    assert told["timeout"] == "APIConnectionTimeoutError"
    assert idle(engine)
