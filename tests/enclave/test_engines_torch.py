"""Real transformers models (tiny ones), one tenant's adapter at a time."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from enclave_app.engines import Prompt, Sampling, Tuning
from enclave_app.engines.adapter import Adapter, MalformedAdapter, Manifest
from enclave_app.models import Model
from enclave_app.prompts import Template
from enclave_app.refusals import Conflict, Failed, Refusal
from tests.kit.models import tiny_falcon, tiny_llama

torch = pytest.importorskip("torch")

GREEDY = Sampling(max_new_tokens=12, do_sample=False)
QUESTION = "Where does the mill stand?"


@pytest.fixture(scope="module")
def llama() -> Any:
    from enclave_app.engines.torch import TorchEngine

    return TorchEngine(Model.at(tiny_llama()), "cpu", torch.float32)


@pytest.fixture(scope="module")
def falcon() -> Any:
    from enclave_app.engines.torch import TorchEngine

    return TorchEngine(Model.at(tiny_falcon()), "cpu", torch.float32)


def said(engine: Any, text: str, sampling: Sampling = GREEDY, tuning: Tuning | None = None) -> str:
    return "".join(piece.text for piece in engine.generate(Prompt(text, tuning), sampling))


def adapter_for(engine: Any, seed: int, template: Template = Template.CHAT) -> Adapter:
    """Strong random LoRA matrices, shaped by peft itself."""
    import safetensors.torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    net = AutoModelForCausalLM.from_pretrained(engine.model.folder)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = get_peft_model(net, config)
    state = {
        name: torch.randn_like(tensor) * 0.5 for name, tensor in get_peft_model_state_dict(tuned).items()
    }
    weights = safetensors.torch.save(state)
    manifest = Manifest(
        model=engine.model.fingerprint,
        template=template.value,
        template_digest=template.digest(engine._tokenizer),
        rank=4,
        alpha=8,
        targets=tuple(sorted(tuned.peft_config["default"].target_modules)),
        weights_sha256=hashlib.sha256(weights).hexdigest(),
    )
    return Adapter(manifest, weights)


def tuning(adapter: Adapter) -> Tuning:
    return Tuning(adapter.manifest.weights_sha256, lambda: adapter)


@pytest.mark.parametrize("kind", ["llama", "falcon"])
def test_greedy_text_is_what_transformers_generates(kind: str, request: pytest.FixtureRequest) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    engine = request.getfixturevalue(kind)
    words = AutoTokenizer.from_pretrained(engine.model.folder)
    net = AutoModelForCausalLM.from_pretrained(engine.model.folder, dtype=torch.float32)
    ids = Template.for_base(words).prompt(words, QUESTION)
    made = net.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, pad_token_id=0)[
        0, len(ids) :
    ]
    expected = words.decode(ids[-6:] + made.tolist(), skip_special_tokens=True)
    prefix = words.decode(ids[-6:], skip_special_tokens=True)
    assert said(engine, QUESTION) == expected[len(prefix) :] != ""


def test_the_same_seed_samples_the_same_text_and_another_seed_another(llama: Any) -> None:
    sampling = Sampling(max_new_tokens=12, top_k=50, temperature=2.0, top_p=0.99, seed=1)
    assert said(llama, QUESTION, sampling) == said(llama, QUESTION, sampling)
    assert said(llama, QUESTION, sampling) != said(llama, QUESTION, replace(sampling, seed=2))


def test_top_k_of_one_is_the_greedy_choice(llama: Any) -> None:
    assert said(llama, QUESTION, Sampling(max_new_tokens=12, top_k=1)) == said(llama, QUESTION)


def test_generation_stops_at_any_of_the_models_end_tokens(llama: Any) -> None:
    whole = said(llama, QUESTION)
    ends = llama._ends
    try:
        words = llama._tokenizer
        ids = Template.CHAT.prompt(words, QUESTION)
        third = list(llama._tokens(ids, GREEDY))[2]
        llama._ends = frozenset({third, 399})
        pieces = list(llama.generate(Prompt(QUESTION), GREEDY))
    finally:
        llama._ends = ends
    assert pieces[-1].finish == "stop"
    assert whole.startswith("".join(piece.text for piece in pieces))
    assert len("".join(piece.text for piece in pieces)) < len(whole)


def test_end_tokens_come_from_the_generation_config_as_number_or_list() -> None:
    from types import SimpleNamespace

    from enclave_app.engines.torch import _end_tokens

    def net(named: Any) -> Any:
        return SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=named))

    words = SimpleNamespace(eos_token_id=9)
    assert _end_tokens(net(3), words) == {3}
    assert _end_tokens(net([3, 4]), words) == {3, 4}
    assert _end_tokens(net(None), words) == {9}


def test_two_tenants_adapters_and_the_base_each_answer_as_if_they_were_alone(llama: Any) -> None:
    """S-22: switching adapters leaves no trace in anybody else's answer."""
    first, second = tuning(adapter_for(llama, 1)), tuning(adapter_for(llama, 2))
    base, one, two = (
        said(llama, QUESTION),
        said(llama, QUESTION, GREEDY, first),
        said(llama, QUESTION, GREEDY, second),
    )
    assert len({base, one, two}) == 3
    for asked, expected in ((None, base), (second, two), (first, one), (None, base), (first, one)):
        assert said(llama, QUESTION, GREEDY, asked) == expected


def test_an_adapter_that_was_put_away_is_loaded_again_and_answers_the_same(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enclave_app.engines.torch.ADAPTERS_KEPT", 1)
    first, second = tuning(adapter_for(llama, 1)), tuning(adapter_for(llama, 2))
    one = said(llama, QUESTION, GREEDY, first)
    said(llama, QUESTION, GREEDY, second)
    assert list(llama._names) == [second.version]
    assert said(llama, QUESTION, GREEDY, first) == one


def test_an_adapter_equals_peft_itself(llama: Any, tmp_path: Any) -> None:
    """The weights as peft would load them from a folder give the same greedy text."""
    from peft import LoraConfig, PeftModel
    from transformers import AutoModelForCausalLM

    made = adapter_for(llama, 3)
    LoraConfig(
        r=4, lora_alpha=8, target_modules=list(made.manifest.targets), task_type="CAUSAL_LM"
    ).save_pretrained(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(made.weights)
    net = AutoModelForCausalLM.from_pretrained(llama.model.folder, dtype=torch.float32)
    net = PeftModel.from_pretrained(net, str(tmp_path))
    words = llama._tokenizer
    ids = Template.CHAT.prompt(words, QUESTION)
    out = net.generate(input_ids=torch.tensor([ids]), max_new_tokens=12, do_sample=False, pad_token_id=0)
    expected = words.decode(out[0, len(ids) - 6 :], skip_special_tokens=True)
    prefix = words.decode(ids[-6:], skip_special_tokens=True)
    assert said(llama, QUESTION, GREEDY, tuning(made)) == expected[len(prefix) :]


@pytest.mark.parametrize("change", [{"model": "0" * 64}, {"template_digest": "0" * 64}])
def test_an_adapter_for_another_model_or_template_is_refused(llama: Any, change: dict[str, str]) -> None:
    made = adapter_for(llama, 4)
    other = Adapter(replace(made.manifest, **change), made.weights)
    with pytest.raises(Conflict, match="Fine-tune again"):
        said(llama, QUESTION, GREEDY, Tuning("other", lambda: other))


def test_weights_that_do_not_fit_are_refused_and_the_base_still_answers(llama: Any) -> None:
    import safetensors.torch

    base = said(llama, QUESTION)
    made = adapter_for(llama, 5)
    state = safetensors.torch.load(made.weights)
    state.pop(next(iter(state)))
    for weights in (b"no safetensors at all", safetensors.torch.save(state)):
        broken = Adapter(made.manifest, weights)
        with pytest.raises(Failed, match="Fine-tune again"):
            said(llama, QUESTION, GREEDY, Tuning(f"broken {len(weights)}", lambda broken=broken: broken))
    assert said(llama, QUESTION) == base


@pytest.mark.parametrize("temperature", [1e-5, 1e-45, 1e-300])
def test_the_coldest_temperature_is_the_likeliest_answer(llama: Any, temperature: float) -> None:
    cold = Sampling(max_new_tokens=GREEDY.max_new_tokens, temperature=temperature)
    assert said(llama, QUESTION, cold) == said(llama, QUESTION, GREEDY)


def test_a_prompt_that_does_not_fit_is_refused_with_numbers(llama: Any) -> None:
    with pytest.raises(Refusal, match="256") as refused:
        said(llama, "mill " * 300)
    assert refused.value.code == "context_length_exceeded"
    assert str(refused.value).endswith("Shorten the prompt.")  # fewer new tokens would not help
    with pytest.raises(Refusal, match="at most"):
        said(llama, QUESTION, Sampling(max_new_tokens=250))


def test_letters_of_several_tokens_come_out_whole(llama: Any) -> None:
    from enclave_app.engines.torch import _Decoder

    words = llama._tokenizer
    text = "naïve → 東京 🙂 done"
    decoder = _Decoder(words, words("x")["input_ids"])
    pieces = [decoder.add(token) for token in words(text)["input_ids"]]
    assert "".join(pieces) + decoder.rest() == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_adapter_survives_its_encoding_and_altered_bytes_do_not(llama: Any) -> None:
    made = adapter_for(llama, 6)
    data = made.encode()
    assert Adapter.parse(data) == made
    for broken in (data[:-1], data[: len(data) // 2], b"", b"blindbox-adapter/1\n", data[:-1] + b"\0\0"):
        with pytest.raises(MalformedAdapter):
            Adapter.parse(broken)
