"""
How an enclave ends: what it has begun is finished, nothing new is begun, and no process of it is left.
Each of these is a process of its own, ended by a signal.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests as plain

import blindbox.requests as requests
from tests.kit.process import Process, gone, in_its_own_process


def streamed(caller: Any, enclave: Process, text: str, began: threading.Semaphore | None = None) -> Any:
    """What a stream of `text` says: the text that came, and the error that ended it, if one did."""
    body = {
        "model": "echo",
        "stream": True,
        "max_tokens": 1000,
        "messages": [{"role": "user", "content": text}],
    }
    came, error, done = "", None, False
    with caller.post(f"{enclave.origin}/v1/chat/completions", json=body, stream=True) as response:
        assert response.status_code == 200, response.text
        for line in response.iter_lines():
            data = line.decode().removeprefix("data: ")
            if data == "[DONE]":
                done = True
            elif line.startswith(b"data: "):
                event = json.loads(data)
                error = event.get("error", error)
                for choice in event.get("choices", []):
                    came += choice.get("delta", {}).get("content") or ""
            if came and began is not None:
                began.release()
                began = None
    return came, error, done


def begun(threads: ThreadPoolExecutor, caller: Any, enclave: Process, text: str, number: int) -> list[Any]:
    """So many streams, of which each has shown something."""
    began = threading.Semaphore(0)
    futures = [threads.submit(streamed, caller, enclave, text, began) for _ in range(number)]
    for _ in futures:
        assert began.acquire(timeout=60)
    return futures


def ended_soon(pids: list[int], seconds: float = 60) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not all(gone(pid) for pid in pids):
        time.sleep(0.02)
    return all(gone(pid) for pid in pids)


def stopping(enclave: Process, seconds: float = 60) -> bool:
    """Has it heard the signal? Asked until it has."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        status, told = enclave.ask_operator("/ready")
        if (status, json.loads(told)["status"]) == (503, "stopping"):
            return True
        time.sleep(0.02)
    return False


def test_a_signal_lets_streams_finish_refuses_what_is_new_and_ends_with_0(caller: Any) -> None:
    """S-12: 16 streams, all of them whole; new requests are refused inside the seal; exit code 0."""
    text = "x" * 60
    with (
        in_its_own_process(engine={"rate": 25.0}, drain_seconds=200) as enclave,
        ThreadPoolExecutor(16) as threads,
    ):
        engines = enclave.engines()
        streams = begun(threads, caller, enclave, text, 16)
        os.kill(engines[0], signal.SIGSTOP)  # so that no stream ends before all was asked
        enclave.process.send_signal(signal.SIGTERM)
        assert stopping(enclave)
        assert enclave.ask_operator("/health")[0] == 200
        refused = caller.post(f"{enclave.origin}/test", json={"input_text": "new"}, timeout=60)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "stopping"
        assert int(refused.headers["retry-after"]) > 0
        os.kill(engines[0], signal.SIGCONT)
        assert [stream.result() for stream in streams] == [(text, None, True)] * 16
        assert enclave.end() == 0
        assert len(engines) == 1
        assert ended_soon(engines)
        with pytest.raises(plain.ConnectionError):
            plain.get(enclave.origin, timeout=5)


def test_an_enclave_with_nothing_to_do_ends_at_once() -> None:
    with in_its_own_process(drain_seconds=250) as enclave:
        enclave.process.send_signal(signal.SIGTERM)
        assert enclave.end(120) == 0  # and not after the time that it might take


def test_what_is_not_finished_in_time_ends_with_a_typed_error_and_not_with_a_broken_line(caller: Any) -> None:
    """S-12: to the deadline, and no longer."""
    with (
        in_its_own_process(engine={"rate": 10.0}, drain_seconds=1) as enclave,
        ThreadPoolExecutor(2) as threads,
    ):
        (stream,) = begun(threads, caller, enclave, "x" * 600, 1)
        began = time.monotonic()
        enclave.process.send_signal(signal.SIGTERM)
        came, error, done = stream.result()
        assert 0 < len(came) < 600
        assert (error or {}).get("code") == "stopping"
        assert not done
        assert enclave.end() == 0
        assert time.monotonic() - began < 40  # and not the minute that the answer would take


def test_a_second_signal_ends_everything_now(caller: Any) -> None:
    """S-12."""
    with (
        in_its_own_process(engine={"rate": 10.0}, drain_seconds=250) as enclave,
        ThreadPoolExecutor(2) as threads,
    ):
        engines = enclave.engines()
        (stream,) = begun(threads, caller, enclave, "x" * 600, 1)
        enclave.process.send_signal(signal.SIGTERM)
        assert stopping(enclave)
        enclave.process.send_signal(signal.SIGTERM)
        assert enclave.end() == 1  # 0 would be the end of the stream, a minute later
        assert stream.exception() is not None or stream.result()[1] is not None
        assert ended_soon(engines)


def test_a_signal_while_engines_are_being_started_ends_it_with_0() -> None:
    with in_its_own_process(ready=False) as enclave:
        until = time.monotonic() + 60
        while not enclave.engines() and time.monotonic() < until:
            time.sleep(0.01)
        engines = enclave.engines()
        assert engines
        enclave.process.send_signal(signal.SIGTERM)
        assert enclave.end() == 0
        assert ended_soon(engines)
        assert not any("Traceback" in line for line in enclave.said)


@pytest.mark.parametrize("stuck", [False, True])
def test_no_engine_outlives_a_server_that_is_killed(stuck: bool) -> None:
    """S-13: nothing is left that would hold a model's memory, also if it is too busy to notice."""
    with in_its_own_process() as enclave:
        engines = enclave.engines()
        assert engines
        if stuck:
            os.kill(engines[0], signal.SIGSTOP)
        os.kill(enclave.process.pid, signal.SIGKILL)
        enclave.end()
        assert ended_soon(engines)


def test_an_engine_that_cannot_be_started_ends_the_process_with_2_and_a_reason() -> None:
    with in_its_own_process(engine={"engine": "none such"}, ready=False) as enclave:
        assert enclave.end() == 2
        last = enclave.said[-1]
        assert last.startswith("not started: an engine cannot be started:")
        assert "none such" in last
        assert not any("Traceback" in line for line in enclave.said)


def test_an_engine_that_dies_is_replaced_while_the_server_keeps_answering(caller: Any) -> None:
    """S-13: from outside: a typed 503 for what ran, readiness tells, and the next request is served."""
    with in_its_own_process(engine={"rate": 25.0}) as enclave, ThreadPoolExecutor(2) as threads:
        (engine,) = enclave.engines()
        (stream,) = begun(threads, caller, enclave, "x" * 600, 1)
        os.kill(engine, signal.SIGKILL)
        _, error, _ = stream.result()
        assert (error or {}).get("code") == "engine_restarted"
        assert plain.get(enclave.origin, timeout=60).status_code == 200
        answer = caller.post(f"{enclave.origin}/test", json={"input_text": "hello", "max_new_tokens": 5})
        assert answer.json()["completion"] == "hello"
        assert 'blindbox_engine_restarts_total{engine="echo"} 1.0' in enclave.ask_operator("/metrics")[1]


@pytest.mark.parametrize("way", ["streamed", "whole"])
def test_a_caller_who_hangs_up_frees_the_sequence_soon(caller: Any, way: str) -> None:
    """S-11: from outside: the engine's own figures, asked on the operator's port."""
    with in_its_own_process(engine={"rate": 20.0}) as enclave:

        def used() -> float:
            (found,) = re.findall(
                r"^blindbox_kv_used_tokens.* (.+)$", enclave.ask_operator("/metrics")[1], re.M
            )
            return float(found)

        body = {"model": "echo", "max_tokens": 600, "messages": [{"role": "user", "content": "x" * 600}]}
        url = f"{enclave.origin}/v1/chat/completions"
        caller.get(f"{enclave.origin}/v1/models")  # the proof is not what the deadline below is for
        if way == "streamed":
            response = caller.post(url, json=body | {"stream": True}, stream=True)
            next(response.iter_lines())
            assert used() > 600
            response.close()
        else:
            with pytest.raises((requests.Timeout, requests.ConnectionError)):
                caller.post(url, json=body, timeout=1.0)
        hung_up = time.monotonic()
        while used() > 0:
            assert time.monotonic() - hung_up < 15  # the answer would take half a minute
            time.sleep(0.02)
