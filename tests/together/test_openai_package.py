"""The `openai` package against the whole enclave: through the proxy, and as `blindbox.OpenAI`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from datetime import timedelta
from typing import Any

import openai
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import blindbox
from blindbox import AttestationError
from blindbox.proxy import EVIDENCE_HEADER
from enclave_app.engines.echo import EchoEngine
from enclave_app.gateway import Gateway
from tests.conftest import REPOSITORY
from tests.kit.app import idle, whole_app
from tests.kit.enclave import RunningEnclave, make_identity, serving
from tests.kit.openai_ways import POLICY, WAYS, as_blindbox, through_the_proxy
from tests.kit.relay import Relay, Reply, http_reply
from tests.kit.simulated import unsafe

pytestmark = pytest.mark.usefixtures("own_home")

WORDS = "Say these words again, please."
ASKED: Any = {"model": "echo", "messages": [{"role": "user", "content": WORDS}]}


# ── its examples ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_chat_is_answered(client: openai.OpenAI) -> None:
    told = client.chat.completions.create(**ASKED)
    assert told.choices[0].message.content == WORDS
    assert told.choices[0].finish_reason == "stop"
    assert told.usage is not None
    assert told.usage.completion_tokens == len(WORDS)


def test_a_chat_is_streamed(client: openai.OpenAI) -> None:
    pieces = []
    usage = None
    with client.chat.completions.create(
        **ASKED, stream=True, stream_options={"include_usage": True}
    ) as stream:
        for chunk in stream:
            usage = chunk.usage or usage
            pieces += [choice.delta.content or "" for choice in chunk.choices]
    assert "".join(pieces) == WORDS
    assert usage is not None
    assert usage.completion_tokens == len(WORDS)


def test_a_text_is_completed_and_streamed(client: openai.OpenAI) -> None:
    assert client.completions.create(model="echo", prompt=WORDS, max_tokens=99).choices[0].text == WORDS
    stream = client.completions.create(model="echo", prompt=WORDS, max_tokens=99, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices) == WORDS


@pytest.mark.parametrize("stop", ["again", ["nowhere", "again"]])
def test_an_answer_ends_before_a_stop_string(stop: Any, client: openai.OpenAI) -> None:
    told = client.chat.completions.create(**ASKED, stop=stop)
    assert told.choices[0].message.content == "Say these words "
    assert told.choices[0].finish_reason == "stop"
    stream = client.chat.completions.create(**ASKED, stop=stop, stream=True)
    assert "".join(each.choices[0].delta.content or "" for each in stream) == "Say these words "


def test_several_choices_and_a_seed_are_taken(client: openai.OpenAI) -> None:
    told = client.chat.completions.create(**ASKED, n=3, seed=7, temperature=0.5)
    assert [choice.index for choice in told.choices] == [0, 1, 2]
    assert {choice.message.content for choice in told.choices} == {WORDS}
    short = client.chat.completions.create(**ASKED, max_tokens=3)
    assert (short.choices[0].message.content, short.choices[0].finish_reason) == ("Say", "length")


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["echo"]


def test_files_are_uploaded_as_the_user_of_this_machine(
    enclave: RunningEnclave, client: openai.OpenAI
) -> None:
    """Whatever key the package was given, the tenant is the one of `blindbox.requests`."""
    rows = b'{"question": "a", "answer": "b"}\n' * 3
    made = client.files.create(file=("rows.jsonl", rows), purpose="fine-tune")
    listed = blindbox.requests.get(f"{enclave.origin}/v1/files", policy=POLICY).json()
    assert made.id in [file["id"] for file in listed["data"]]


def test_errors_are_the_packages_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nowhere", messages=ASKED["messages"])
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(**ASKED, temperature=99)
    assert bad.value.param == "temperature"
    assert WORDS not in str(bad.value)


def test_each_answer_names_the_evidence_it_stands_on(enclave: RunningEnclave) -> None:
    with through_the_proxy(enclave.origin) as client:
        told = client.chat.completions.with_raw_response.create(**ASKED)
        assert len(bytes.fromhex(told.headers[EVIDENCE_HEADER])) == 48
    with as_blindbox(enclave.origin) as client:
        told = client.chat.completions.with_raw_response.create(**ASKED)
        proof = told.http_response.extensions["blindbox"]
        assert proof.origin == enclave.origin
        assert proof.simulated


def test_the_async_client_does_the_same(enclave: RunningEnclave) -> None:
    async def main() -> None:
        async with blindbox.AsyncOpenAI(enclave.origin, policy=POLICY) as client:
            told = await client.chat.completions.create(**ASKED)
            assert told.choices[0].message.content == WORDS
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(model="nowhere", messages=ASKED["messages"])

            async def streamed(number: int) -> str:
                asked: Any = [{"role": "user", "content": f"{WORDS} {number}"}]
                stream = await client.chat.completions.create(model="echo", messages=asked, stream=True)
                return "".join([each.choices[0].delta.content or "" async for each in stream])

            answers = await asyncio.gather(*(streamed(number) for number in range(32)))
            assert answers == [f"{WORDS} {number}" for number in range(32)]

    asyncio.run(main())


# ── cancelling and limits ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def slow() -> Iterator[tuple[RunningEnclave, EchoEngine]]:
    engine = EchoEngine(rate=20)
    with whole_app(engine=engine) as one:
        yield one, engine


LONG: Any = {"model": "echo", "messages": [{"role": "user", "content": "word " * 2000}], "max_tokens": 4000}


@pytest.mark.parametrize("way", WAYS)
def test_a_stream_that_is_left_frees_its_slot(way: Any, slow: tuple[RunningEnclave, EchoEngine]) -> None:
    """S-11: the engine works for nobody any more."""
    enclave, engine = slow
    with way(enclave.origin) as client:
        with client.chat.completions.create(**LONG, stream=True) as stream:
            next(iter(stream))
            assert engine.busy()
        assert idle(engine)


@pytest.mark.parametrize("way", WAYS)
def test_a_call_that_times_out_frees_its_slot(way: Any, slow: tuple[RunningEnclave, EchoEngine]) -> None:
    """S-11, C-48: before the first word of an answer that comes whole; the package asks no second time."""
    enclave, engine = slow
    started: list[int] = []
    start = engine.start
    engine.start = lambda key, work: (started.append(key), start(key, work))[1]  # type: ignore[method-assign]
    with way(enclave.origin, max_retries=0) as client:
        client.models.list()
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(**LONG, timeout=2.0)
        assert idle(engine)
    with as_blindbox(enclave.origin, max_retries=2) as client:
        client.models.list()
        started.clear()
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(**LONG, timeout=2.0)
        assert len(started) == 1


def test_a_cancelled_task_frees_its_slot(slow: tuple[RunningEnclave, EchoEngine]) -> None:
    """S-11: with the async client, in the middle of a stream and before any answer."""
    enclave, engine = slow

    async def main() -> None:
        async with blindbox.AsyncOpenAI(enclave.origin, policy=POLICY) as client:

            async def streams() -> None:
                async for _ in await client.chat.completions.create(**LONG, stream=True):
                    pass

            async def waits() -> None:
                await client.chat.completions.create(**LONG)

            for asks in (streams, waits):
                task = asyncio.create_task(asks())
                while not engine.busy():
                    await asyncio.sleep(0.02)
                await asyncio.sleep(0.2)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await asyncio.to_thread(idle, engine)

    asyncio.run(main())


@pytest.mark.parametrize("way", WAYS)
def test_a_machine_that_never_answers_is_not_waited_for(way: Any, enclave: RunningEnclave) -> None:
    """C-48: accepts the sealed call, and says nothing."""

    def nothing() -> Iterator[bytes]:
        time.sleep(200)
        yield b""

    with Relay(enclave.origin) as relay, way(relay.origin, max_retries=0) as client:
        client.models.list()
        relay.before = lambda asked: Reply(nothing()) if asked.method == "POST" else None
        began = time.monotonic()
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(**ASKED, timeout=0.5)
        assert time.monotonic() - began < 60


# ── trying again ──────────────────────────────────────────────────────────────────────────────────────────


def lost(passed: Any) -> Reply:
    return Reply([])


def cut(passed: Any) -> Reply:
    reply: Reply = passed.reply(cut=len(passed.body) - 1)
    return reply


def in_the_clear(passed: Any) -> Reply:
    return http_reply(503, "text/plain", b"busy")


@pytest.mark.parametrize("trouble", [lost, cut, in_the_clear])
@pytest.mark.parametrize("way", WAYS)
def test_a_call_that_may_have_run_is_not_sent_again(
    way: Any, trouble: Callable[[Any], Reply], enclave: RunningEnclave
) -> None:
    """C-34: the package would try three times; the answer was lost after the call had been sent, so once."""
    with Relay(enclave.origin) as relay, way(relay.origin, max_retries=2) as client:
        client.models.list()
        before = len(relay.sealed())
        relay.change = trouble
        with pytest.raises((openai.APIConnectionError, openai.InternalServerError)):
            client.chat.completions.create(**ASKED)
        assert len(relay.sealed()) == before + 1


@pytest.mark.parametrize("trouble", [lost, in_the_clear])
@pytest.mark.parametrize("way", WAYS)
def test_what_may_run_twice_is_sent_again(
    way: Any, trouble: Callable[[Any], Reply], enclave: RunningEnclave
) -> None:
    """C-34: a GET, and a call with an Idempotency-Key of the caller's own; the package does it by itself."""
    with Relay(enclave.origin) as relay, way(relay.origin, max_retries=1) as client:
        client.models.list()
        for ask in (
            lambda: client.models.list().data[0].id,
            lambda: (
                client.chat.completions.create(**ASKED, extra_headers={"Idempotency-Key": "of-mine"}).model
            ),
        ):
            failing = iter([True])
            relay.change = lambda passed, failing=failing: trouble(passed) if next(failing, False) else None  # type: ignore[misc]
            assert ask() == "echo"


@pytest.mark.parametrize("way", WAYS)
def test_a_machine_that_could_not_be_reached_is_tried_again(way: Any) -> None:
    """C-34: nothing was sent yet, so the package may try as often as it likes; the call runs once."""
    runs: list[bytes] = []

    async def answer(request: Request) -> Response:
        if request.method == "POST":
            runs.append(await request.body())
        return JSONResponse({"object": "list", "data": [], "choices": [], "id": "1", "created": 1})

    app = Starlette(routes=[Route("/v1/{rest:path}", answer, methods=["GET", "POST"])])
    gateway = Gateway(app, make_identity())
    back = threading.Event()

    def again() -> None:
        time.sleep(0.6)
        with serving(gateway, port=port):
            back.wait(120)

    with contextlib.ExitStack() as stack:
        with serving(gateway) as port:
            client = stack.enter_context(way(f"http://127.0.0.1:{port}", max_retries=4))
            client.models.list()
        thread = threading.Thread(target=again)
        thread.start()
        try:
            assert client.chat.completions.create(**ASKED).id == "1"
        finally:
            back.set()
            thread.join()
    assert len(runs) == 1


def test_a_machine_that_does_not_prove_itself_is_asked_once(enclave: RunningEnclave) -> None:
    """C-34: a proof that fails is no hiccup."""
    with Relay(enclave.origin) as relay, as_blindbox(relay.origin, max_retries=3) as client:
        relay.before = lambda _: http_reply(404, "text/plain", b"")
        with pytest.raises(AttestationError) as told:
            client.chat.completions.create(**ASKED)
        assert not isinstance(told.value, openai.OpenAIError)
        assert len(relay.asked) == 1
    short = unsafe(max_age=timedelta(seconds=0.2))
    with Relay(enclave.origin) as relay, through_the_proxy(relay.origin, short, max_retries=3) as client:
        time.sleep(0.25)
        asked = len(relay.asked)
        relay.before = lambda _: http_reply(404, "text/plain", b"")
        with pytest.raises(openai.InternalServerError, match="did not prove itself"):
            client.chat.completions.create(**ASKED)
        assert len(relay.asked) == asked + 1


@pytest.mark.parametrize("way", WAYS)
def test_busy_is_tried_again_when_the_enclave_says_so_under_the_seal(way: Any) -> None:
    """The call did not run, and only the enclave can have said so."""
    engine = EchoEngine(most_sequences=1)
    step, go = engine.step, threading.Event()
    engine.step = lambda: step() if go.wait(0.01) else []  # type: ignore[method-assign]
    with (
        whole_app(engine=engine, max_waiting=1, max_waiting_each=1) as enclave,
        way(enclave.origin) as client,
    ):
        with ThreadPoolExecutor(3) as pool:
            asked: Any = {"model": "echo", "messages": [{"role": "user", "content": "twenty characters ok"}]}
            with client.with_options(max_retries=0) as once:
                told = [pool.submit(once.chat.completions.create, **asked) for _ in range(3)]
                wait(told, 60, FIRST_COMPLETED)  # one runs, one waits
                go.set()
                errors = [each.exception() for each in told]
        refused = [error for error in errors if error is not None]
        assert refused
        assert all(isinstance(error, openai.RateLimitError | openai.InternalServerError) for error in refused)


@pytest.mark.parametrize("way", WAYS)
def test_proofs_that_end_all_the_time_lose_no_stream(way: Any, enclave: RunningEnclave) -> None:
    """C-35: each lasts 100 ms; 8 threads stream 5 times each."""
    restless = unsafe(max_age=timedelta(seconds=0.1))
    with way(enclave.origin, restless, max_retries=0) as client:

        def one(number: int) -> bool:
            asked: Any = [{"role": "user", "content": f"{WORDS} {number}"}]
            stream = client.chat.completions.create(model="echo", messages=asked, stream=True)
            told = "".join(each.choices[0].delta.content or "" for each in stream if each.choices)
            return told == f"{WORDS} {number}"

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(one, range(40)))


# ── how it is made ────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_of_the_environment_leads_it_elsewhere(
    enclave: RunningEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-somebody-else")
    with Relay(enclave.origin) as relay, as_blindbox(relay.origin) as client:
        assert client.api_key != "sk-for-somebody-else"
        assert client.chat.completions.create(**ASKED).choices[0].message.content == WORDS
        assert WORDS.encode() not in relay.heard
        with pytest.raises(blindbox.NoPolicy):
            client.with_options(base_url="http://127.0.0.1:9/v1", max_retries=0).models.list()


def test_a_key_that_is_given_is_the_tenant(enclave: RunningEnclave) -> None:
    rows = b'{"question": "a", "answer": "b"}\n'
    with blindbox.OpenAI(enclave.origin, policy=POLICY, api_key="a-tenant-of-its-own-0001") as other:
        made = other.files.create(file=("rows.jsonl", rows), purpose="fine-tune")
        assert made.id in [file.id for file in other.files.list()]
    with blindbox.OpenAI(enclave.origin, policy=POLICY) as mine:
        assert made.id not in [file.id for file in mine.files.list()]


def test_without_the_package_it_is_said_what_to_install() -> None:
    code = (
        "import sys; sys.modules['openai'] = None\n"
        "import blindbox\n"
        "try: blindbox.OpenAI('http://127.0.0.1:9')\n"
        "except ImportError as error: print(error)\n"
        "print('httpx2' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(each for each in sys.path if each), "PATH": ""},
    )
    assert 'pip install "blindbox[openai]"' in done.stdout, done.stderr


def test_importing_blindbox_loads_neither_package() -> None:
    code = "import sys, json, blindbox; blindbox.OpenAI; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(each for each in sys.path if each), "PATH": ""},
    )
    assert not {"openai", "httpx2", "anyio"} & set(json.loads(done.stdout)), done.stderr


def test_the_example_prints_the_answer_as_it_comes(
    enclave: RunningEnclave, capsys: pytest.CaptureFixture[str]
) -> None:
    example = REPOSITORY / "client_sdk" / "examples" / "chat_with_openai.py"
    main = runpy.run_path(str(example))["main"]
    assert main(enclave.origin, WORDS, POLICY) == 0
    assert capsys.readouterr().out == f"{WORDS}\n"
    assert main(enclave.origin, WORDS) == 1
    assert "there is no policy for" in capsys.readouterr().err
