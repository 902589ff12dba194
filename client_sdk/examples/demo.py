"""
The whole journey on one machine: start an enclave, prove it, ask it, teach it, ask it again, and keep a
receipt of what it was taught.

    python client_sdk/examples/demo.py [--quick]

The enclave runs with *simulated* evidence, since a laptop has no confidential hardware: everything
but the hardware's signature is the real thing. What it says about itself proves nothing, and the
client says so in a warning.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import blindbox
import blindbox.requests as requests

CHECKOUT = Path(__file__).resolve().parents[2]
HANDBOOK = Path(__file__).with_name("office_handbook.jsonl")
GENERAL = "What is the capital of France?"
PRIVATE = "What is the code name of the Carrow merger?"


def main() -> None:
    arguments = _arguments()
    began = time.monotonic()
    model = _model(arguments.cache)
    origin_port = _port(arguments.port)
    origin = f"http://127.0.0.1:{origin_port}"
    with _enclave(model, origin_port, arguments.cache) as log, warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", blindbox.UnsafeSimulationWarning
        )  # said below, once, in our own words
        policy = blindbox.UnsafeSimulatedPolicy()
        with requests.Session(policy=policy) as session:
            try:
                summary = _journey(session, origin, arguments.cache, quick=arguments.quick)
            except Exception:
                print(f"\nThe enclave's log is in {log}.", file=sys.stderr)
                raise
    print(f"\n{summary} {time.monotonic() - began:.0f} s in all.")


def _journey(session: requests.Session, origin: str, cache: Path, *, quick: bool) -> str:
    _title("1. The proof")
    proof = session.prove(origin)
    for step in proof.steps:
        mark = {"passed": "✔", "failed": "✘", "not applicable": "–", "not asked": "·"}[step.outcome]
        print(f"  {mark} {step.number:>2}  {step.name}: {step.detail}")
    print("  ! SIMULATED evidence: the steps are real, the hardware is not. Never use this policy elsewhere.")

    _title("2. /test: a real model answers")
    _ask(session, origin, "/test", GENERAL)

    _title("3. /inference, before it has read the handbook")
    before = _ask(session, origin, "/inference", PRIVATE)

    _title("4. A fine-tuning job on a private file of questions and answers")
    # How often the rows are read, how many at a time and how fast: what suits so many is chosen there.
    job = blindbox.finetune(origin, HANDBOOK, session=session, name="handbook", epochs=1 if quick else None)
    print(f"  {HANDBOOK.name} was checked here, then uploaded; the job is {job.id}", flush=True)
    job.wait()
    print(f"  {job.data['rows_used']} rows, {job.told['trained_tokens']} tokens; the model is {job.model}")
    if serving := job.told["blindbox"]["serving"]:
        asked, same = serving["prompts"], serving["same"]
        print(f"  asked {asked} of its questions, it answers {same} to the last letter as the trainer would")

    _title("5. What it learned")
    curve = job.plot(cache / "demo-loss.svg")
    print(f"  loss     {curve.text()}\n  plotted  {cache / 'demo-loss.svg'}")
    after = _ask(session, origin, "/inference", PRIVATE)

    _title("6. The receipt")
    verified = job.receipt(cache / "demo-receipt.json")
    receipt = verified.receipt
    print(f"  signed by the machine that proved itself above, for {receipt.job}")
    print(
        f"  data     {receipt.dataset.rows_used} rows of the file {receipt.dataset.file.sha256.hex()[:32]}…"
    )
    print(f"  base     {receipt.base}")
    print(f"  adapter  {receipt.adapter.hex()[:32]}… after {receipt.steps} steps")
    print(f"  verdict  {verified.verdict.upper()}, kept in {cache / 'demo-receipt.json'}")

    changed = "answers differently now" if after != before else "ANSWERS THE SAME AS BEFORE"
    return f"Proved once, sealed throughout, and the tuned model {changed}."


def _ask(session: requests.Session, origin: str, path: str, question: str) -> str:
    body = {"input_text": question, "max_new_tokens": 32, "do_sample": False}
    response = session.post(url=f"{origin}{path}", json=body)
    response.raise_for_status()
    completion: str = response.json()["completion"].strip()
    print(f"  you      {question}\n  enclave  {completion}")
    return completion


# --- the stage: a model, a port, an enclave ---------------------------------------------------


def _model(cache: Path) -> Path:
    folder = cache / "models" / "smollm2-135m-instruct"
    # The enclave would make the second one itself when it starts; here it can be watched.
    for command in (["prepare-demo", str(folder)], ["export", str(folder), str(folder.parent / "exported")]):
        program = [sys.executable, "-I", "-m", "enclave_app.models", *command]
        if subprocess.run(program, cwd=CHECKOUT, env=_clean_environment(), check=False).returncode:
            raise SystemExit("the demo's model could not be prepared; see above")
    return folder


def _port(wanted: int | None) -> int:
    for port in (wanted,) if wanted is not None else (80, 8080, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                print(f"Port {port} cannot be taken here ({error.strerror}).")
                continue
            return int(probe.getsockname()[1])
    raise SystemExit("no port is free: name one with --port")


def _clean_environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return {**kept, "HOME": str(Path.home())}


@contextmanager
def _enclave(model: Path, port: int, cache: Path) -> Iterator[Path]:
    settings = {
        "BLINDBOX_MODEL": str(model),
        "BLINDBOX_INSTRUCT_MODEL": str(model),
        "BLINDBOX_QUOTER": "simulated",
        "BLINDBOX_HOST": "127.0.0.1",
        "BLINDBOX_PORT": str(port),
    }
    log_path = cache / "demo-enclave.log"
    print(f"Starting the enclave on http://127.0.0.1:{port} …", flush=True)
    with log_path.open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-I", "-m", "enclave_app"],
            cwd=CHECKOUT,
            env={**_clean_environment(), **settings},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_until_alive(server, port, log_path)
            yield log_path
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


def _wait_until_alive(server: subprocess.Popen[bytes], port: int, log: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(f"the enclave stopped at once:\n{log.read_text(errors='replace')[-2000:]}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise SystemExit(f"the enclave did not answer within {seconds:.0f} s; its log is in {log}")


def _title(text: str) -> None:
    print(f"\n{text}\n{'─' * len(text)}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="train for one epoch only")
    parser.add_argument("--port", type=int, help="the port to take (80, else 8080, else a free one)")
    parser.add_argument("--cache", type=Path, default=CHECKOUT / ".cache", help="where the model is kept")
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    return arguments


if __name__ == "__main__":
    main()
