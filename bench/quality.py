"""
What each setting of the fast engine costs in quality, beside what it gains in speed.

    python bench/quality.py [FOLDER] [--exports DIR] [--only TEXT] [--json FILE] [--plot FILE]

For each way to hold the weights, the KV cache and the arithmetic: how many tokens of greedy answers agree
with PyTorch in float32, by how much the perplexity of a fixed text (`quality.txt`) differs, and the
tokens a second of eight callers. The last line names the fastest setting within 1 % of PyTorch's perplexity.
Each setting runs in a process of its own, through the same continuous batching that serves.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TEXT = ROOT / "bench" / "quality.txt"
WINDOW = 512  # tokens of text that are read at once
ANSWER = 32  # tokens of each greedy answer
CALLERS, CALLERS_PROMPT, CALLERS_ANSWER = 8, 128, 64
ALLOWED = 1.0  # per cent of perplexity

QUESTIONS = (
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "Why does ice float on water?",
    "Write one sentence about a lighthouse.",
    "What is 12 times 9?",
    "Translate 'good morning' into Spanish.",
    "Who wrote Romeo and Juliet?",
    "How do I boil an egg?",
    "Give me a synonym for 'quick'.",
    "What does a compiler do?",
    "How many days are there in a leap year?",
    "Tell me a short joke about a cat.",
)


@dataclass(frozen=True, slots=True)
class Setting:
    """A way to run the model; the names are OpenVINO's."""

    weights: str
    kv: str
    groups: str  # of dynamic quantisation: "default", or "0" for none
    hint: str  # inference precision: "default" or "f32"

    @property
    def name(self) -> str:
        quantised = "" if self.groups == "default" else ", no dynamic quantisation"
        return (
            f"{self.weights}, KV {self.kv}{quantised}{'' if self.hint == 'default' else ', f32 arithmetic'}"
        )

    def properties(self) -> dict[str, str]:
        found = {"KV_CACHE_PRECISION": self.kv}
        if self.groups != "default":
            found["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = self.groups
        if self.hint != "default":
            found["INFERENCE_PRECISION_HINT"] = self.hint
        return found


@dataclass(frozen=True, slots=True)
class Measured:
    """What came out for one setting."""

    name: str
    agreed: tuple[int, ...]  # tokens of each answer until it leaves the reference
    perplexity: float
    change: float  # per cent of the reference's
    spread: float  # standard error of `change`, over the text's tokens
    speed: float  # tokens a second, eight callers


def settings(bf16: bool) -> list[Setting]:
    """All of them that this CPU can run."""
    return [
        Setting(weights, kv, groups, hint)
        for weights in ("int8", "bf16", "int4")
        for kv in ("f32", *(("bf16",) if bf16 else ()), "f16", "u8")
        for groups in ("default", "0")
        # Without bf16 arithmetic the default is f32 already.
        for hint in (("default", "f32") if bf16 else ("default",))
    ]


# --- in a process of its own --------------------------------------------------------------------------


def reference(job: dict[str, Any]) -> dict[str, Any]:
    """PyTorch in float32: the answers, and the log probability of each token of the text."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=torch.float32).eval()
    answers, logs = [], []
    with torch.no_grad():
        for ids in job["prompts"]:
            answer: list[int] = []
            cache, asked = None, ids
            while len(answer) < ANSWER and not (answer and answer[-1] in job["ends"]):
                out = model(torch.tensor([asked]), past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                answer.append(int(out.logits[0, -1].argmax()))
                asked = answer[-1:]
            answers.append(answer)
        for ids in job["windows"]:
            told = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            logs += told.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    return {"answers": answers, "logs": logs}


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """The same through OpenVINO's continuous batching, and how fast it is."""
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = 512
    scheduler.max_num_batched_tokens = 256
    scheduler.max_num_seqs = 64
    scheduler.dynamic_split_fuse = True
    pipeline: Any = genai.ContinuousBatchingPipeline(
        job["ir"], scheduler, "CPU", job["properties"] | {"INFERENCE_NUM_THREADS": os.cpu_count() or 1}
    )
    greedy = genai.GenerationConfig()
    greedy.max_new_tokens, greedy.do_sample = ANSWER, False
    greedy.stop_token_ids = set(job["ends"])
    answers = [ids for ids, _ in _run(pipeline, job["prompts"], greedy)]
    echo = genai.GenerationConfig()
    echo.max_new_tokens, echo.do_sample, echo.echo, echo.logprobs = 1, False, True, 1
    logs: list[float] = []
    for window in job["windows"]:
        ((_, told),) = _run(pipeline, [window], echo)
        logs += told[1 : len(window)]  # nothing predicts the first token
    busy = genai.GenerationConfig()
    busy.max_new_tokens, busy.do_sample, busy.ignore_eos = CALLERS_ANSWER, False, True
    rates = []
    for _ in range(3):
        begun = time.perf_counter()
        _run(pipeline, job["callers"], busy)
        rates.append(CALLERS * CALLERS_ANSWER / (time.perf_counter() - begun))
    return {"answers": answers, "logs": logs, "speed": statistics.median(rates)}


def _run(pipeline: Any, prompts: list[list[int]], config: Any) -> list[tuple[list[int], list[float]]]:
    import numpy as np
    import openvino as ov

    handles = [
        pipeline.add_request(key, ov.Tensor(np.array([ids], dtype=np.int64)), config)
        for key, ids in enumerate(prompts)
    ]
    while pipeline.has_non_finished_requests():
        pipeline.step()
    told = []
    for handle in handles:
        ids: list[int] = []
        logs: list[float] = []
        while handle.can_read():
            for output in handle.read().values():
                ids += output.generated_ids
                logs += output.generated_log_probs
        told.append((ids, logs))
    return told


# --- the table ------------------------------------------------------------------------------------------


def compared(name: str, told: dict[str, Any], wanted: dict[str, Any]) -> Measured:
    """How one setting's answers and log probabilities lie to the reference's."""
    agreed = tuple(
        next(
            (at for at, pair in enumerate(zip(mine, theirs, strict=False)) if pair[0] != pair[1]), len(theirs)
        )
        for mine, theirs in zip(told["answers"], wanted["answers"], strict=True)
    )
    lost = [theirs - mine for mine, theirs in zip(told["logs"], wanted["logs"], strict=True)]
    return Measured(
        name=name,
        agreed=agreed,
        perplexity=math.exp(-statistics.fmean(told["logs"])),
        change=100 * math.expm1(statistics.fmean(lost)),
        spread=100 * statistics.stdev(lost) / math.sqrt(len(lost)),
        speed=told["speed"],
    )


def best(rows: list[Measured]) -> Measured | None:
    """The fastest whose perplexity is within `ALLOWED` of the reference's."""
    return max((row for row in rows if row.change <= ALLOWED), key=lambda row: row.speed, default=None)


def table(rows: list[Measured], wanted: dict[str, Any]) -> str:
    """As Markdown."""
    lengths = [len(answer) for answer in wanted["answers"]]
    lines = [
        f"| setting | greedy tokens equal (of {sum(lengths)}) | answers equal (of {len(lengths)}) "
        "| perplexity | against torch f32 | tokens/s, 8 callers |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(rows, key=lambda row: -row.speed):
        whole = sum(agreed == length for agreed, length in zip(row.agreed, lengths, strict=True))
        lines.append(
            f"| {row.name} | {sum(row.agreed)} | {whole} | {row.perplexity:.3f} "
            f"| {row.change:+.2f} % (± {row.spread:.2f}) | {row.speed:.0f} |"
        )
    return "\n".join(lines)


def plot(rows: list[Measured], path: Path) -> None:
    """Speed against what it costs."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for weights, colour in (("int8", "#1b6ca8"), ("bf16", "#2a9d4a"), ("int4", "#c4572b")):
        mine = [row for row in rows if row.name.startswith(weights)]
        axes.errorbar(
            [row.change for row in mine],
            [row.speed for row in mine],
            xerr=[row.spread for row in mine],
            fmt="o",
            color=colour,
            label=weights,
        )
        for row in mine:
            text = row.name.partition(", ")[2]
            axes.annotate(
                text, (row.change, row.speed), fontsize=6, xytext=(4, 4), textcoords="offset points"
            )
    axes.axvline(ALLOWED, linestyle="--", color="grey")
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlabel("perplexity against PyTorch float32, per cent (dashed: what is allowed)")
    axes.set_ylabel("tokens/s, 8 callers")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def _elsewhere(what: str, job: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--job", what],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
    )
    if done.returncode:
        raise SystemExit(f"{what} failed:\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _job(folder: Path) -> dict[str, Any]:
    from enclave_app.prompts import Template
    from enclave_app.tokenizer import FolderTokenizer

    words = FolderTokenizer(folder)
    template = Template.for_base(words)
    text = words(TEXT.read_text("utf-8"), add_special_tokens=False)["input_ids"]
    windows = [text[at : at + WINDOW] for at in range(0, len(text), WINDOW)]
    return {
        "folder": str(folder),
        "ends": sorted(words.ends),
        "prompts": [template.prompt(words, question) for question in QUESTIONS],
        "windows": [window for window in windows if len(window) > 1],
        # Each caller's own piece of the text, so that none begins like another.
        "callers": [(text * 4)[at * 97 : at * 97 + CALLERS_PROMPT] for at in range(CALLERS)],
    }


def cpu() -> str:
    """What this machine calls its processor."""
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "an unknown CPU"


def main() -> None:
    """The command line; see the module's first lines."""
    parser = argparse.ArgumentParser(description="quality and speed of each setting")
    parser.add_argument(
        "folder", nargs="?", type=Path, default=ROOT / ".cache" / "models" / "smollm2-135m-instruct"
    )
    parser.add_argument("--exports", type=Path, default=ROOT / ".cache" / "models" / "exported")
    parser.add_argument("--only", default="", help="settings whose name holds this")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--job", choices=("reference", "measure"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.job:
        job = json.load(sys.stdin)
        told = reference(job) if chosen.job == "reference" else measure(job)
        print(json.dumps(told))
        return
    import openvino as ov

    from enclave_app.engines.export import export
    from enclave_app.models import Model

    able = str(ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    wanted_settings = [each for each in settings("BF16" in able) if chosen.only in each.name]
    job = _job(chosen.folder)
    print(
        f"{chosen.folder.name}, {date.today()}, {cpu()}, {os.cpu_count()} cores; OpenVINO: {able}\n",
        flush=True,
    )
    wanted = _elsewhere("reference", job)
    rows = []
    for each in wanted_settings:
        ir = export(Model.at(chosen.folder), each.weights, [chosen.exports])  # type: ignore[arg-type]
        told = _elsewhere("measure", job | {"ir": str(ir), "properties": each.properties()})
        rows.append(compared(each.name, told, wanted))
        print(f"  {each.name}: {rows[-1].change:+.2f} %, {rows[-1].speed:.0f} tokens/s", flush=True)
    print(f"\n{table(rows, wanted)}\n")
    found = best(rows)
    print(
        f"The fastest setting within {ALLOWED:g} % of torch f32's perplexity "
        f"({math.exp(-statistics.fmean(wanted['logs'])):.3f}): {found.name if found else 'none'}."
    )
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", "utf-8")
    if chosen.plot:
        plot(rows, chosen.plot)


if __name__ == "__main__":
    main()
