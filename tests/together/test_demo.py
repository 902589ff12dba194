"""The demo as a newcomer runs it, while someone listens on the wire."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.kit.capture import LoopbackCapture
from tests.kit.process import free_port

DEMO = REPOSITORY / "client_sdk" / "examples" / "demo.py"
HANDBOOK = DEMO.with_name("office_handbook.jsonl")


@pytest.mark.timeout(900)
@pytest.mark.skipif(not LoopbackCapture.available(), reason="capturing packets needs CAP_NET_RAW")
def test_a_packet_capture_of_the_demo_holds_no_prompt_answer_path_column_or_token(tmp_path: Path) -> None:
    """S-4, S-20, C-42: on the wire there is one constant request line and ciphertext."""
    port = free_port()
    home = tmp_path / "home"
    home.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "BLINDBOX_HOME": str(home / "blindbox")}
    command = [sys.executable, str(DEMO), "--quick", "--port", str(port)]
    with LoopbackCapture() as capture:
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "SIMULATED" in run.stdout
    assert "succeeded: ft:" in run.stderr
    assert re.search(r"loss     [0-9.]+ [▁▂▃▄▅▆▇█]+ [0-9.]+$", run.stdout, re.MULTILINE)
    assert "verdict  SIMULATED, kept in" in run.stdout
    assert "<svg" in (REPOSITORY / ".cache" / "demo-loss.svg").read_text()
    assert run.stdout.strip().splitlines()[-1].startswith("Proved once, sealed throughout")

    sent, received = capture.payload(port)
    assert b"POST /.well-known/ohttp-gateway HTTP/1.1" in sent, "the capture saw nothing: it proves nothing"
    assert b"message/ohttp-chunked-res" in received

    answers = re.findall(r"^  enclave  (.+)$", run.stdout, re.MULTILINE)
    prompts = re.findall(r"^  you      (.+)$", run.stdout, re.MULTILINE)
    assert len(answers) == len(prompts) == 3
    tokens = [path.read_text().strip() for path in home.rglob("*") if path.is_file() and "token" in str(path)]
    assert tokens, "the client kept no tenant token"
    rows = [json.loads(line) for line in HANDBOOK.read_text().splitlines()]
    secrets = {
        *prompts,
        *answers,
        *(row["question"] for row in rows),
        *(row["answer"] for row in rows),
        *("question_column", "answer_column", "dataset_name", "input_text", "max_new_tokens"),
        *("/test", "/inference", "/v1/files", "/v1/fine_tuning", "fine-tune", "office_handbook", "file-"),
        *("ftjob-", "blindbox-receipt", "handbook", "train_loss"),
        *("python-requests", "Bearer", "text/event-stream", "completion"),
        *(piece for token in tokens for piece in re.findall(r"[A-Za-z0-9_-]{43}", token)),
    }
    wire = sent + received
    leaked = {secret for secret in secrets if secret.encode() in wire}
    assert not leaked
