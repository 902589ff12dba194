"""The examples do what they say."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.kit.app import whole_app
from tests.kit.enclave import running

EXAMPLES = Path(__file__).resolve().parents[2] / "client_sdk" / "examples"


async def ask(request: Request) -> Response:
    return JSONResponse({"text": "heard: " + (await request.json())["input_text"]})


APP = Starlette(
    routes=[
        Route("/test", ask, methods=["POST"]),
    ]
)


def test_the_first_call_prints_the_answer_and_who_gave_it(
    policy: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(EXAMPLES / "first_call.py"))["main"]
    with running(APP) as enclave:
        assert main(enclave.origin, policy, "why?") == 0
    told = capsys.readouterr()
    assert told.out == "heard: why?\n"
    assert "SIMULATED" in told.err
    assert main("http://127.0.0.1:9", None, "why?") == 1
    assert "blindbox trust http://127.0.0.1:9 --policy FILE" in capsys.readouterr().err


def test_training_tells_its_progress(policy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(EXAMPLES / "streamed_training.py"))["main"]
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"q": "1", "a": "2"}\n' * 3)
    with whole_app() as enclave:
        main(enclave.origin, str(rows), "q", "a", policy=policy)
    told = capsys.readouterr().out
    steps = [line for line in told.splitlines() if line.startswith("Step ")]
    assert [line.partition(": ")[2] for line in steps[:3]] == [
        "training loss 0.5000",
        "training loss 0.3333",
        "training loss 0.2500",
    ]
    assert "loss 0.500 █" in told
    assert "ask it as ft:echo::" in told
