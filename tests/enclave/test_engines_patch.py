"""A tuned model made of an export and an adapter or new weights, against peft's merge and PyTorch's own."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import os
import shutil
import struct
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enclave_app.engines import Sampling, Work
from enclave_app.engines.adapter import PREFIX, A, Adapter, B, MalformedAdapter, Manifest
from enclave_app.engines.ir import BIN, XML, Export, UnusableExport
from enclave_app.engines.patch import UnusableAdapter, _dequantised, _int8, _narrowed, patched
from enclave_app.engines.tensors import MalformedTensors, layout
from tests.kit.exports import ready
from tests.kit.models import tiny_falcon, tiny_llama
from tests.kit.tensors import written

pytest.importorskip("openvino_genai")

PROMPTS = [tuple(range(30, 50)), tuple(range(200, 207)), (5, 6)]
BASES = {"llama": tiny_llama, "falcon": tiny_falcon}


@pytest.fixture(scope="module")
def irs() -> dict[str, Path]:
    return dict(zip(BASES, ready([make() for make in BASES.values()]), strict=True))


@pytest.fixture(scope="module")
def int8() -> Path:
    return ready([tiny_llama()], "int8")[0]


@cache
def tuned(kind: str, strength: float = 0.3) -> tuple[Adapter, Any]:
    """An adapter as the trainer writes it, and the float model that peft merges it into."""
    import safetensors.torch
    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from peft.utils import set_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    net: Any = AutoModelForCausalLM.from_pretrained(BASES[kind](), dtype=torch.float32)
    model: Any = get_peft_model(
        net, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    state = {
        name: torch.randn_like(each) * strength for name, each in get_peft_model_state_dict(model).items()
    }
    set_peft_model_state_dict(model, state)
    weights = safetensors.torch.save(state)
    targets = tuple(sorted(model.peft_config["default"].target_modules))
    manifest = Manifest("m", "chat", "d", 4, 8, targets, hashlib.sha256(weights).hexdigest())
    return Adapter(manifest, weights), model.merge_and_unload().eval()


def said(folder: Path, ids: tuple[int, ...], **options: Any) -> list[int]:
    from enclave_app.engines.openvino import OpenVinoEngine

    engine = OpenVinoEngine(
        str(folder), threads=1, kv_cache_mib=1, most_sequences=4, precision="full", **options
    )
    engine.start(1, Work(ids, Sampling(max_new_tokens=32, do_sample=False, ignore_end=True)))
    found: list[int] = []
    while engine.busy():
        for update in engine.step():
            assert not hasattr(update, "refusal")
            found += [token.id for token in getattr(update, "tokens", ())]
    return found


def greedy(model: Any, ids: tuple[int, ...]) -> list[int]:
    import torch

    found = list(ids)
    with torch.no_grad():
        for _ in range(32):
            found.append(int(model(torch.tensor([found])).logits[0, -1].argmax()))
    return found[len(ids) :]


@cache
def whole(kind: str, seed: int = 1) -> tuple[Adapter, Any]:
    """New weights of all linear layers but the head, and the model that has them."""
    import safetensors.torch
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    net: Any = AutoModelForCausalLM.from_pretrained(BASES[kind](), dtype=torch.float32)
    state = {}
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.weight.data += torch.randn_like(module.weight) * 0.1
            state[f"{name}.weight"] = module.weight.detach().clone()
    weights = safetensors.torch.save(state)
    targets = tuple(sorted({name.split(".")[-2] for name in state}))
    digest = hashlib.sha256(weights).hexdigest()
    return Adapter(Manifest("m", "chat", "d", 0, 0, targets, digest, kind="full"), weights), net.eval()


@pytest.mark.parametrize("kind", BASES)
def test_new_weights_of_whole_layers_say_what_the_model_says_that_has_them(
    kind: str, irs: dict[str, Path]
) -> None:
    import torch

    adapter, net = whole(kind)
    narrow = copy.deepcopy(net).to(torch.bfloat16).float()  # as the export's type is
    for ids in PROMPTS[:2]:
        found = said(irs[kind], ids, adapter=adapter, base_folder=str(BASES[kind]()))
        assert found == greedy(narrow, ids)
    assert found != said(irs[kind], ids)


@pytest.mark.parametrize("kind", BASES)
def test_pytorchs_engine_says_the_same_with_both_kinds_beside_each_other(kind: str) -> None:
    """S-22: weights that are put in the place of others are gone when somebody else is answered."""
    from enclave_app.engines.torch import TorchEngine

    engine = TorchEngine(str(BASES[kind]()), device="cpu", threads=1, dtype="float32")

    def answers(tuning: str, ids: tuple[int, ...]) -> list[int]:
        work = Work(ids, Sampling(max_new_tokens=32, do_sample=False, ignore_end=True), tuning=tuning)
        engine.start(1, work)
        found: list[int] = []
        while engine.busy():
            found += [token.id for update in engine.step() for token in getattr(update, "tokens", ())]
        return found

    ids = PROMPTS[0]
    base = answers("", ids)
    (full, net), (other, _), (lora, merged) = whole(kind), whole(kind, 2), tuned(kind)
    engine.load("full", full)
    assert answers("full", ids) == greedy(net, ids) != base
    engine.load("lora", lora)
    engine.load("other", other)
    wanted = {"": base, "full": greedy(net, ids), "lora": greedy(merged, ids)}
    for tuning in ("lora", "full", "", "other", "lora", "other", "full", "full", "lora", ""):
        if tuning in wanted:
            assert answers(tuning, ids) == wanted[tuning]
        else:
            assert answers(tuning, ids) not in wanted.values()
    for version in ("full", "lora", "other"):
        engine.unload(version)
        assert answers("", ids) == base


def test_two_tenants_models_and_the_base_answer_at_once_each_as_itself(irs: dict[str, Path]) -> None:
    """S-22: on the real engine, each in a process of its own, all asked at the same time again and again."""
    import torch

    from enclave_app.engines import Tuning
    from enclave_app.engines.desk import Desk
    from enclave_app.engines.worker import Worker, in_process
    from enclave_app.tokenizer import FolderTokenizer

    spec = {
        "engine": "openvino",
        "folder": str(irs["llama"]),
        "threads": 1,
        "kv_cache_mib": 1,
        "most_sequences": 4,
        "precision": "full",
        "base_folder": str(tiny_llama()),
    }
    (ann, merged), (bob, net) = tuned("llama"), whole("llama")
    ids = PROMPTS[0]
    narrow = [copy.deepcopy(each).to(torch.bfloat16).float() for each in (merged, net)]
    wanted = {"ann": greedy(narrow[0], ids), "bob": greedy(narrow[1], ids), "": said(irs["llama"], ids)}
    assert len(set(map(tuple, wanted.values()))) == 3

    async def start(of: Adapter) -> Worker:
        return await in_process(spec, of)

    async def tried() -> None:
        desk = Desk(most_tuned=2)
        tunings = {"ann": Tuning("ann 1", lambda: ann, "ann"), "bob": Tuning("bob 1", lambda: bob, "bob")}

        async def asked(owner: str) -> list[int]:
            if owner:
                await desk.tuned("base", tunings[owner])
            version = tunings[owner].version if owner else ""
            sampling = Sampling(max_new_tokens=32, do_sample=False, ignore_end=True)
            found: list[int] = []
            async with desk.ask("base", Work(ids, sampling, tuning=version, owner=owner)) as answer:
                async for piece in answer:
                    found += [token.id for token in piece.tokens]
            return found

        try:
            await desk.open("base", lambda: in_process(spec), FolderTokenizer(tiny_llama()), start)
            owners = ["ann", "bob", ""] * 3
            found = await asyncio.gather(*map(asked, owners))
            assert found == [wanted[owner] for owner in owners]
        finally:
            desk.close()

    asyncio.run(tried())


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("with_base", [True, False])
def test_a_patched_float_model_says_what_pefts_merged_model_says(
    kind: str, with_base: bool, irs: dict[str, Path]
) -> None:
    import torch

    adapter, merged = tuned(kind)
    merged = copy.deepcopy(merged)
    if with_base:
        merged = merged.to(torch.bfloat16).float()  # merged in full, then narrowed, as the export's type is
    else:  # the export's weights were narrowed before
        from transformers import AutoModelForCausalLM

        narrow: Any = AutoModelForCausalLM.from_pretrained(BASES[kind](), dtype=torch.bfloat16).float()
        full: Any = AutoModelForCausalLM.from_pretrained(BASES[kind](), dtype=torch.float32)
        state = merged.state_dict()
        for name, weight in narrow.state_dict().items():
            state[name] = (state[name] - full.state_dict()[name] + weight).to(torch.bfloat16).float()
        merged.load_state_dict(state)
    base = str(BASES[kind]()) if with_base else None
    ids = PROMPTS[0]
    found = said(irs[kind], ids, adapter=adapter, base_folder=base)
    assert found == greedy(merged, ids)
    assert found != said(irs[kind], ids)


def test_requantised_weights_are_those_that_nncf_makes(int8: Path) -> None:
    from safetensors.numpy import load_file

    export, weights = Export.at(int8), load_file(tiny_llama() / "model.safetensors")
    data = (int8 / BIN).read_bytes()
    seen = 0
    for name, constant in export.constants.items():
        module = name.removeprefix("self.").removesuffix("._openvino_orig_weight").removesuffix(".weight")
        if constant.kind != "u8" or f"{module}.weight" not in weights or len(constant.shape) != 2:
            continue
        whole, _, scale = _int8(weights[f"{module}.weight"].astype(np.float32))
        there = np.frombuffer(data, np.uint8, constant.size, constant.offset).reshape(constant.shape)
        assert np.mean(whole != there) < 0.001
        about = export.constants[f"{name}/scale"]
        kind = {"f16": np.float16, "f32": np.float32}[about.kind]
        assert np.allclose(
            np.frombuffer(data, kind, about.shape[0], about.offset), scale[:, 0], rtol=2e-3, atol=1e-6
        )
        seen += 1
    assert seen >= 14


def test_an_int8_models_weights_move_by_what_the_adapter_says(int8: Path) -> None:
    import mmap

    adapter, merged = tuned("llama")
    export = Export.at(int8)
    name, module = next(
        (name, name.removeprefix("self.").rpartition(".")[0])
        for name in export.constants
        if "q_proj" in name and export.constants[name].kind == "u8" and not name.endswith("point")
    )
    wanted = dict(merged.named_parameters())[f"{module}.weight"].detach().numpy()
    with (
        patched(int8, adapter, str(tiny_llama())) as place,
        (place / BIN).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory,
    ):
        there = _dequantised(Export.at(place), name, memory)
    step = (wanted.max(1) - wanted.min(1)) / 255
    assert (np.abs(there - wanted) < 0.75 * step[:, None] + 1e-3).all()
    assert said(int8, PROMPTS[0], adapter=adapter) != said(int8, PROMPTS[0])


def test_bf16_is_rounded_to_the_nearest_and_from_the_middle_to_the_even_one() -> None:
    import torch

    numbers = np.array([1, 1.00390625, 1.01171875, -3.1415927, 1e-30, 65504.0], np.float32)
    assert _narrowed(numbers, "bf16") == torch.tensor(numbers).bfloat16().view(torch.int16).numpy().tobytes()


def test_a_tenants_weights_are_on_no_disk_and_nothing_is_left_when_the_model_is_open(
    irs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-21: what a crash could leave behind are links to memory that is gone."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    adapter, _ = tuned("llama")
    before = (irs["llama"] / BIN).read_bytes()
    with patched(irs["llama"], adapter, None) as place:
        assert place.parent == tmp_path
        assert all(path.is_symlink() for path in place.iterdir())
        assert os.readlink(place / BIN).startswith("/proc/self/fd/")
        assert (place / BIN).read_bytes()[: len(before)] != before
        assert sum(path.lstat().st_size for path in place.iterdir()) < 4096  # names of other places
    assert list(tmp_path.iterdir()) == []
    assert (irs["llama"] / BIN).read_bytes() == before
    kept = set(os.listdir("/proc/self/fd"))
    assert said(irs["llama"], PROMPTS[1], adapter=adapter)
    assert len(set(os.listdir("/proc/self/fd")) - kept) < 3
    assert list(tmp_path.iterdir()) == []


def test_a_constant_that_shares_its_bytes_with_another_is_moved_before_it_is_changed(
    irs: dict[str, Path], tmp_path: Path
) -> None:
    """A writer of exports may store equal constants once; the one that is not tuned must stay as it is."""
    folder = Path(shutil.copytree(irs["llama"], tmp_path / "shared"))
    export = Export.at(folder)
    first, second = (
        next(
            name
            for name in export.constants
            if f"layers.{layer}.self_attn.q_proj" in name and "weight" in name
        )
        for layer in (0, 1)
    )
    old, new = export.constants[second].offset, export.constants[first].offset
    text = (folder / XML).read_text("utf-8")
    assert text.count(f'offset="{old}"') == 1
    (folder / XML).write_text(text.replace(f'offset="{old}"', f'offset="{new}"'), "utf-8")
    adapter, _ = tuned("llama")
    with patched(folder, adapter, None) as place:
        after = Export.at(place).constants
        data = (place / BIN).read_bytes()
    assert after[first].offset != after[second].offset
    assert len({after[first].offset, after[second].offset, new}) == 3
    pieces = [data[each.offset : each.offset + each.size] for each in (after[first], after[second])]
    assert pieces[0] != pieces[1]


# --- what cannot be merged ------------------------------------------------------------------------------


def without(adapter: Adapter, change: Any) -> Adapter:
    import safetensors.torch

    state = safetensors.torch.load(adapter.weights)
    change(state)
    weights = safetensors.torch.save(state)
    digest = hashlib.sha256(weights).hexdigest()
    return Adapter(replace(adapter.manifest, weights_sha256=digest), weights)


def _drop(state: dict[str, Any]) -> None:
    del state[next(name for name in state if "lora_B" in name)]


def _foreign(state: dict[str, Any]) -> None:
    state["base_model.model.lm_head.weight"] = next(iter(state.values())).clone()


def _elsewhere(state: dict[str, Any]) -> None:
    for name in [name for name in state if ".0.self_attn.q_proj." in name]:
        state[name.replace("q_proj", "x_proj")] = state.pop(name)


def _narrower(state: dict[str, Any]) -> None:
    for name in [name for name in state if "lora_A" in name]:
        state[name] = state[name][:, :-1].clone()


def _ranked(state: dict[str, Any]) -> None:
    for name in [name for name in state if "lora_A" in name]:
        state[name] = state[name][:-1].clone()


def _empty(state: dict[str, Any]) -> None:
    state.clear()


def _no_number(state: dict[str, Any]) -> None:
    next(iter(state.values()))[0, 0] = float("nan")


def _endless(state: dict[str, Any]) -> None:
    next(iter(state.values()))[-1, -1] = float("-inf")


def _counted(state: dict[str, Any]) -> None:
    for name in state:
        state[name] = state[name].int()


LORA_CHANGES = [_drop, _foreign, _elsewhere, _narrower, _ranked, _empty, _no_number, _endless, _counted]


@pytest.mark.parametrize("change", LORA_CHANGES)
def test_an_adapter_that_does_not_fit_is_refused_whole(change: Any, irs: dict[str, Path]) -> None:
    """S-29: a matrix without its other half, another layer's, another shape, what is no number, integers."""
    adapter, _ = tuned("llama")
    with pytest.raises(UnusableAdapter), patched(irs["llama"], without(adapter, change), str(tiny_llama())):
        pass


@pytest.mark.parametrize("change", [_foreign, _elsewhere, _empty, _no_number, _endless, _counted])
def test_new_weights_that_do_not_fit_are_refused_whole(change: Any, irs: dict[str, Path]) -> None:
    """S-29"""
    adapter, _ = whole("llama")
    with pytest.raises(UnusableAdapter), patched(irs["llama"], without(adapter, change), str(tiny_llama())):
        pass


@pytest.mark.parametrize("change", [_no_number, _endless, _counted])
@pytest.mark.parametrize("made", [tuned, whole])
def test_pytorchs_engine_refuses_what_is_no_number_too(made: Any, change: Any) -> None:
    """S-29"""
    from enclave_app.engines.torch import TorchEngine
    from enclave_app.refusals import Conflict, Failed

    engine = TorchEngine(str(tiny_llama()), device="cpu", threads=1, dtype="float32")
    with pytest.raises(Failed) as refused:
        engine.load("v", without(made("llama")[0], change))
    assert refused.value.code == "damaged_adapter"
    with pytest.raises(Conflict):
        engine.start(1, Work((1, 2), Sampling(), tuning="v"))


# --- headers that lie -------------------------------------------------------------------------------------

A_NAME, B_NAME = PREFIX + "m.q" + A, PREFIX + "m.q" + B
HONEST: dict[str, Any] = {
    A_NAME: {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    B_NAME: {"dtype": "F32", "shape": [3, 2], "data_offsets": [24, 48]},
}


def lying(name: str = A_NAME, **changes: Any) -> bytes:
    return written(HONEST | {name: HONEST[name] | changes}, bytes(48))


LIES = {
    "beyond the end": lying(B_NAME, data_offsets=[24, 52], shape=[13]),
    "far beyond": lying(B_NAME, data_offsets=[24, 2**63], shape=[2**61]),
    "overlap": lying(B_NAME, data_offsets=[0, 24]),
    "half an overlap": lying(B_NAME, data_offsets=[20, 44]),
    "hole": lying(B_NAME, data_offsets=[28, 48], shape=[5, 1]),
    "backwards": lying(B_NAME, data_offsets=[48, 24]),
    "negative": lying(A_NAME, data_offsets=[-24, 0]),
    "negative shape": lying(A_NAME, shape=[-2, -3]),
    "larger than its place": lying(A_NAME, shape=[2, 4]),
    "another type": lying(A_NAME, dtype="F16"),
    "unknown type": lying(A_NAME, dtype="F12"),
    "no type": lying(A_NAME, dtype=["F32"]),
    "shape of floats": lying(A_NAME, shape=[2.0, 3.0]),
    "shape of truths": lying(A_NAME, shape=[True, 6]),
    "too many axes": lying(A_NAME, shape=[2, 3, *[1] * 30]),
    "no shape": lying(A_NAME, shape=None),
    "one more field": lying(A_NAME, more=1),
    "no fields": written(HONEST | {A_NAME: {}}, bytes(48)),
    "no object": written([HONEST], bytes(48)),
    "bytes behind": written(HONEST, bytes(49)),
    "bytes missing": written(HONEST, bytes(47)),
    "twice": written(json.dumps(HONEST)[:-1].encode() + b"," + json.dumps(HONEST).encode()[1:], bytes(48)),
    "not JSON": written(b"{", b""),
    "deep": written(b"[" * 100_000, b""),
    "no UTF-8": written(b'{"\xff": 1}', b""),
    "long header": struct.pack("<Q", 2**63) + b"{}",
    "header beyond the end": struct.pack("<Q", 3) + b"{}",
    "nothing": b"",
    "seven bytes": bytes(7),
    "control characters": written({"a\nb": HONEST[A_NAME], B_NAME: HONEST[B_NAME]}, bytes(48)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused_before_anything_is_read(lie: str, irs: dict[str, Path]) -> None:
    """S-29: by the reader, and by whatever would use the adapter."""
    assert set(layout(written(HONEST, bytes(48)))) == {A_NAME, B_NAME}
    with pytest.raises(MalformedTensors):
        layout(LIES[lie])
    digest = hashlib.sha256(LIES[lie]).hexdigest()
    adapter = Adapter(Manifest("m", "chat", "d", 2, 4, ("q",), digest), LIES[lie])
    assert Adapter.parse(adapter.encode()) == adapter  # its digest is right: whoever trained it lied
    with pytest.raises(MalformedAdapter):
        adapter.modules()
    with pytest.raises(UnusableAdapter), patched(irs["llama"], adapter, None):
        pass


def test_a_flipped_bit_anywhere_in_an_adapter_is_refused() -> None:
    """S-29: every bit of the manifest and the header, and one in so many of the numbers."""
    adapter, _ = tuned("llama")
    data = adapter.encode()
    few = min(len(data), 4096)
    places = [*range(few * 8), *range(few * 8, len(data) * 8, 9973)]
    for place in places:
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        try:
            found = Adapter.parse(bytes(changed))
        except MalformedAdapter:
            continue
        # Parts of the manifest may be read as something else: who keeps the adapter compares them (S-29).
        assert found.weights == adapter.weights
        assert found.manifest != adapter.manifest


def test_weights_in_four_bits_are_refused_in_words_that_say_what_to_do(
    irs: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(irs["llama"], tmp_path / "int4"))
    text = (folder / XML).read_text("utf-8")
    (folder / XML).write_text(text.replace('element_type="bf16"', 'element_type="i4"'), "utf-8")
    adapter, _ = tuned("llama")
    with pytest.raises(UnusableAdapter, match="BLINDBOX_WEIGHTS=int8"), patched(folder, adapter, None):
        pass


def test_another_base_model_is_refused(irs: dict[str, Path]) -> None:
    adapter, _ = tuned("llama")
    wrong = str(tiny_falcon())
    with pytest.raises(UnusableAdapter, match="no weight called"), patched(irs["llama"], adapter, wrong):
        pass


def test_a_folder_without_a_model_that_is_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableExport):
        Export.at(tmp_path)
    (tmp_path / XML).write_text("<net><layers/></net>")
    with pytest.raises(UnusableExport, match="KV cache"):
        Export.at(tmp_path)
    (tmp_path / XML).write_text(json.dumps({}))
    with pytest.raises(UnusableExport):
        Export.at(tmp_path)
