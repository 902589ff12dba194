"""Real transformers models (tiny ones), many sequences at once, each as if it were alone."""

from __future__ import annotations

import hashlib
import random
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from enclave_app.engines import Constraint, Refused, Sampling, Token, Work
from enclave_app.engines.adapter import Adapter, MalformedAdapter, Manifest
from enclave_app.models import Model
from enclave_app.prompts import Template
from enclave_app.refusals import Busy, Conflict, Failed, Refusal
from enclave_app.tokenizer import FolderTokenizer
from tests.kit.models import FAMILIES, _saved, tiny, tiny_falcon, tiny_llama, tokenizer

torch = pytest.importorskip("torch")

GREEDY = Sampling(max_new_tokens=32, do_sample=False, ignore_end=True)
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "initializer_range": 0.2,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "pad_token_id": None,
}


@cache
def folder(family: str) -> Path:
    """A tiny model: those of the kit, and some whose attention is of another kind."""
    import transformers

    if family in FAMILIES.keys() - {"llama", "falcon"}:
        return tiny(family, chat=False)
    words = tokenizer(chat=False)
    shape = SHAPE | {"vocab_size": len(words), "eos_token_id": words.eos_token_id}
    match family:
        case "llama":
            return tiny_llama()
        case "falcon":
            return tiny_falcon()
        case "falcon with alibi":
            shape.pop("head_dim")
            made = transformers.FalconConfig(**shape, alibi=True, multi_query=True)
            return _saved(transformers.FalconForCausalLM, made, words, 0)
        case "mistral with a window":
            made = transformers.MistralConfig(**shape, sliding_window=16)
            return _saved(transformers.MistralForCausalLM, made, words, 0)
        case "gemma with a window in some layers":
            made = transformers.Gemma3TextConfig(
                **shape | {"num_hidden_layers": 4, "initializer_range": 0.05},
                sliding_window=16,
                layer_types=["sliding_attention", "full_attention"] * 2,
            )
            return _saved(transformers.Gemma3ForCausalLM, made, words, 0)
        case "growing positions":
            made = transformers.LlamaConfig(
                **shape | {"max_position_embeddings": 64},
                rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0},
            )
            return _saved(transformers.LlamaForCausalLM, made, words, 0)
        case "recurrent":
            made = transformers.Lfm2Config(**shape, layer_types=["conv", "full_attention"])
            return _saved(transformers.Lfm2ForCausalLM, made, words, 0)
    raise AssertionError(family)


TOGETHER = [
    "llama",
    "falcon",
    "falcon-new",
    "falcon with alibi",
    "smollm",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
    "mistral with a window",
    "gemma with a window in some layers",
]
APART = ["growing positions", "recurrent"]


@cache
def engine_of(family: str) -> Any:
    from enclave_app.engines.torch import TorchEngine

    made = TorchEngine(str(folder(family)), device="cpu", threads=1, dtype="float32")
    made._piece = 32  # so that these short prompts, too, are read in pieces
    return made


@cache
def reference(family: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder(family), dtype=torch.float32)


@pytest.fixture
def llama() -> Any:
    return fresh("llama")


def fresh(family: str) -> Any:
    """The family's engine without what tests before have left in it."""
    engine = engine_of(family)
    for key in list(engine._rows):
        engine.cancel(key)
    for version in list(engine._names):
        engine.unload(version)
    engine._kept.clear()
    return engine


def prompts(family: str, lengths: Iterable[int], seed: int = 1) -> list[tuple[int, ...]]:
    chance = random.Random(seed)
    size = engine_of(family)._config.vocab_size
    return [tuple(chance.randrange(3, size) for _ in range(length)) for length in lengths]


def answers(engine: Any, works: Mapping[int, Work]) -> dict[int, tuple[list[Token], str]]:
    """All of them, one starting at each step."""
    said: dict[int, list[Token]] = {key: [] for key in works}
    ended: dict[int, str] = {}
    todo = list(works.items())
    while todo or engine.busy():
        if todo:
            engine.start(*todo.pop(0))
        for update in engine.step():
            assert update.key not in ended
            said[update.key] += update.tokens
            if update.finish is not None:
                ended[update.key] = update.finish
    assert engine.gauges()["sequences"] == engine.gauges()["kv_used_tokens"] == 0
    return {key: (said[key], ended[key]) for key in works}


def ids(engine: Any, *works: Work) -> list[list[int]]:
    found = answers(engine, dict(enumerate(works)))
    return [[token.id for token in found[key][0]] for key in range(len(works))]


def generated(family: str, prompt: tuple[int, ...], most: int, **options: Any) -> list[int]:
    """What transformers' own `generate` says."""
    out = reference(family).generate(
        torch.tensor([prompt]), max_new_tokens=most, do_sample=False, pad_token_id=0, **options
    )
    made: list[int] = out[0, len(prompt) :].tolist()
    return made


# --- the same as alone -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", TOGETHER)
def test_sequences_together_say_what_transformers_generates_for_each_alone(family: str) -> None:
    engine = fresh(family)
    asked = prompts(family, (3, 40, 17, 130, 60, 1))
    said = ids(engine, *(Work(prompt, GREEDY) for prompt in asked))
    for prompt, tokens in zip(asked, said, strict=True):
        assert tokens == generated(family, prompt, 32, eos_token_id=10**6)
    assert dict(engine.card().details)["sequences"] == "together"


@pytest.mark.parametrize("family", APART)
def test_families_that_cannot_be_padded_are_served_one_after_another(family: str) -> None:
    """Each forgets what a longer one did to the model's frequencies, which transformers leaves grown."""
    engine = fresh(family)
    asked = prompts(family, (30, 3, 40, 17))
    most = 24 if family == "growing positions" else 32
    if family == "growing positions":
        engine._context = 128  # beyond the length it was made for
        asked.append(prompts(family, (80,))[0])
    sampling = replace(GREEDY, max_new_tokens=most)
    said = ids(engine, *(Work(prompt, sampling) for prompt in asked))
    for prompt, tokens in zip(asked, said, strict=True):
        reference.cache_clear()
        assert tokens == generated(family, prompt, most, eos_token_id=10**6)
    assert dict(engine.card().details)["sequences"] == "one after another"
    with pytest.raises(Refusal) as refused:
        engine.start(1, Work((5,), Sampling(num_beams=2)))
    assert refused.value.param == "num_beams"


@pytest.mark.parametrize("family", ["llama", "falcon"])
def test_whoever_comes_and_goes_changes_nobodys_answer(family: str) -> None:
    """S-11: joins and cancels at random; what is left says what it would have said alone."""
    engine = fresh(family)
    chance = random.Random(family)
    works = {
        key: Work(
            prompt,
            Sampling(
                max_new_tokens=chance.randrange(1, 40),
                do_sample=chance.random() < 0.7,
                temperature=1.5,
                top_k=chance.choice([0, 10, 50]),
                top_p=chance.choice([0.9, 1.0]),
                frequency_penalty=chance.choice([0.0, 0.7]),
                seed=key,
            ),
        )
        for key, prompt in enumerate(prompts(family, (chance.randrange(1, 100) for _ in range(30))))
    }
    alone = {key: answers(engine, {key: work})[key] for key, work in works.items()}
    said: dict[int, list[Token]] = {}
    ended: dict[int, str | None] = {}
    todo, leaving = list(works), set(chance.sample(sorted(works), 8))
    most_together = 0
    while todo or engine.busy():
        while todo and chance.random() < 0.5:
            key = todo.pop()
            said[key] = []
            engine.start(key, works[key])
        for update in engine.step():
            said[update.key] += update.tokens
            ended[update.key] = update.finish
            assert ended[update.key] == update.finish
        most_together = max(most_together, *(len(batch.rows) for batch in engine._batches), 0)
        for key in leaving & said.keys():
            if chance.random() < 0.2:
                leaving.remove(key)
                engine.cancel(key)
                engine.cancel(key)
    assert most_together >= 5
    for key, (tokens, finish) in alone.items():
        if ended.get(key) is not None:
            assert (said[key], ended[key]) == (tokens, finish)
        else:
            assert said[key] == tokens[: len(said[key])]
    assert sum(ended.get(key) is not None for key in works) >= 22
    assert engine.gauges()["kv_used_tokens"] == 0


def test_a_long_prompt_is_read_in_pieces_while_others_go_on(llama: Any) -> None:
    short, long = prompts("llama", (5, 200))
    llama.start(1, Work(short, GREEDY))
    assert [update.key for update in llama.step()] == [1]
    llama.start(2, Work(long, GREEDY))
    steps = [[update.key for update in llama.step()] for _ in range(7)]
    assert steps == [[1]] * 6 + [[1, 2]]
    assert llama.gauges()["kv_used_tokens"] == 5 + 7 + 200


def test_a_short_prompt_does_not_wait_for_a_long_one_that_came_first(llama: Any) -> None:
    long, short = prompts("llama", (200, 5))
    llama.start(1, Work(long, GREEDY))
    llama.start(2, Work(short, GREEDY))
    assert [[update.key for update in llama.step()] for _ in range(2)] == [[], [2]]


def test_rows_of_very_different_length_are_not_padded_to_the_longest(llama: Any) -> None:
    for key, prompt in enumerate(prompts("llama", (200, 4, 5, 6))):
        llama.start(key, Work(prompt, GREEDY))
    for _ in range(12):
        llama.step()
    assert sorted(len(batch.rows) for batch in llama._batches) == [1, 3]


def test_what_leaves_frees_its_memory_at_once(llama: Any) -> None:
    """S-11: in any state: unread, read, in a batch, in a beam search."""
    asked = prompts("llama", (40, 10, 10, 10))
    for key, prompt in enumerate(asked):
        llama.start(key, Work(prompt, replace(GREEDY, num_beams=3 if key == 3 else 1)))
    llama.cancel(0)
    for key in (1, 2, 3):
        for _ in range(key):
            llama.step()
        llama.cancel(key)
    assert not llama.busy()
    assert llama.gauges() | {"prefix_tokens_reused": 0.0} == dict.fromkeys(llama.gauges(), 0.0)
    assert not llama._batches
    assert not llama._searching
    assert not llama._unread
    assert not llama._read


# --- choosing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 0},
        {"top_k": 5},
        {"top_k": 0, "top_p": 0.7},
        {"top_k": 20, "top_p": 0.5, "temperature": 0.7},
        {"top_k": 0, "min_p": 0.1, "temperature": 2.0},
        {"top_k": 0, "repetition_penalty": 1.7},
        {"top_k": 0, "repetition_penalty": 0.6, "top_p": 0.9},
    ],
)
def test_tokens_are_drawn_with_the_chances_that_transformers_gives_them(options: dict[str, Any]) -> None:
    from transformers.generation import logits_process as theirs

    from enclave_app.engines.choice import Chooser

    sampling = Sampling(seed=1, **options)
    prompt = (3, 4, 5, 3)
    scores = torch.randn(60, generator=torch.Generator().manual_seed(5)) * 2
    processors = [theirs.TemperatureLogitsWarper(sampling.temperature)]
    if sampling.repetition_penalty != 1.0:
        processors.insert(0, theirs.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.top_k:
        processors.append(theirs.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(theirs.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        processors.append(theirs.MinPLogitsWarper(sampling.min_p))
    expected = scores[None].clone()
    for processor in processors:
        expected = processor(torch.tensor([prompt]), expected)
    likely = torch.softmax(expected[0], dim=-1)

    class Evenly:
        """Each of 4000 chances once."""

        at = 0

        def random(self) -> float:
            self.at += 1
            return (self.at - 0.5) / 4000

    chooser = Chooser(sampling, prompt, 60)
    chooser._chance = Evenly()  # type: ignore[assignment]
    drawn = Counter[int]()
    for _ in range(4000):
        drawn[chooser.choose(scores).id] += 1
        chooser._said.clear()
    for token in range(60):
        assert abs(drawn[token] - 4000 * float(likely[token])) <= 1.01


def test_the_same_seed_samples_the_same_tokens_and_another_seed_others(llama: Any) -> None:
    (prompt,) = prompts("llama", (20,))
    hot = Sampling(max_new_tokens=12, top_k=50, temperature=2.0, ignore_end=True)
    one, again, other, negative, free, free_again = ids(
        llama, *(Work(prompt, replace(hot, seed=seed)) for seed in (1, 1, 2, -1, None, None))
    )
    assert one == again
    assert len({tuple(one), tuple(other), tuple(negative), tuple(free), tuple(free_again)}) == 5


@pytest.mark.parametrize(
    "options", [{"top_k": 1}, *({"temperature": cold} for cold in (0.0, 1e-5, 1e-45, 1e-300))]
)
def test_the_coldest_answers_are_the_likeliest(llama: Any, options: dict[str, Any]) -> None:
    (prompt,) = prompts("llama", (20,))
    cold = replace(GREEDY, do_sample=True, **options)
    assert ids(llama, Work(prompt, cold)) == ids(llama, Work(prompt, GREEDY))


def test_a_bias_forces_a_token_and_bans_another(llama: Any) -> None:
    (prompt,) = prompts("llama", (20,))
    (plain,) = ids(llama, Work(prompt, GREEDY))
    forced = replace(GREEDY, logit_bias=((7, 100.0),))
    banned = replace(GREEDY, logit_bias=tuple((token, -100.0) for token in set(plain)))
    first, second = ids(llama, Work(prompt, forced), Work(prompt, banned))
    assert first == [7] * 32
    assert not set(second) & set(plain)
    for token in (-1, 10**6):
        with pytest.raises(Refusal) as refused:
            llama.start(1, Work(prompt, replace(GREEDY, logit_bias=((token, 1.0),))))
        assert refused.value.param == "logit_bias"
    assert not llama.busy()


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty", "repetition_penalty"])
def test_penalties_make_an_answer_repeat_itself_less_and_rewards_more(llama: Any, penalty: str) -> None:
    asked = prompts("llama", (10, 20, 30))
    neutral = 1.0 if penalty == "repetition_penalty" else 0.0

    def different(value: float) -> int:
        sampling = replace(GREEDY, **{penalty: value})
        return sum(len(set(tokens)) for tokens in ids(llama, *(Work(prompt, sampling) for prompt in asked)))

    assert different(neutral + 2.0) > different(neutral) > different(neutral - 0.9)


def test_logprobs_are_those_of_the_model_for_chosen_and_likeliest(llama: Any) -> None:
    """Neither temperature nor penalties change what is told."""
    (prompt,) = prompts("llama", (20,))
    sampling = replace(GREEDY, do_sample=True, temperature=1.7, presence_penalty=1.0, seed=3, logprobs=4)
    found = answers(llama, {1: Work(prompt, sampling), 2: Work(prompt[:9], GREEDY)})
    tokens, _ = found[1]
    said = [token.id for token in tokens]
    with torch.inference_mode():
        scores = reference("llama")(torch.tensor([[*prompt, *said]])).logits[0, len(prompt) - 1 :]
    for token, row in zip(tokens, torch.log_softmax(scores, dim=-1), strict=False):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
        best = row.topk(4)
        assert [each for each, _ in token.top] == best.indices.tolist()
        assert [logprob for _, logprob in token.top] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert all(token.logprob == 0.0 and token.top == () for token in found[2][0])
    (only,) = answers(llama, {1: Work(prompt, replace(sampling, logprobs=0))}).values()
    assert [(token.id, token.top) for token in only[0]] == [(token, ()) for token in said]
    with pytest.raises(Refusal, match="20"):
        llama.start(1, Work(prompt, replace(sampling, logprobs=21)))


@pytest.mark.parametrize("family", ["llama", "falcon", "mistral with a window"])
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.5}])
def test_beams_find_what_transformers_finds_with_beams(family: str, options: dict[str, Any]) -> None:
    engine = fresh(family)
    asked = prompts(family, (3, 40, 17, 5, 60))
    sampling = Sampling(max_new_tokens=24, num_beams=3, **options)
    works = {key: Work(prompt, sampling) for key, prompt in enumerate(asked)}
    works[9] = Work(asked[0], GREEDY)  # beside the others
    found = answers(engine, works)
    for key, prompt in enumerate(asked):
        expected = generated(family, prompt, 24, num_beams=3, **options)
        finish = "length"
        if expected[-1] in engine._ends:
            expected, finish = expected[:-1], "stop"
        assert ([token.id for token in found[key][0]], found[key][1]) == (expected, finish)
    assert [token.id for token in found[9][0]] == generated(family, asked[0], 32, eos_token_id=10**6)


# --- ends and limits ---------------------------------------------------------------------------------------


def test_an_answer_stops_at_any_of_the_models_end_tokens_and_does_not_tell_it(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (prompt,) = prompts("llama", (20,))
    (whole,) = ids(llama, Work(prompt, GREEDY))
    monkeypatch.setattr(llama, "_ends", frozenset({whole[5], 399}))
    first = whole.index(whole[5])
    until = replace(GREEDY, ignore_end=False)
    found = answers(llama, {1: Work(prompt, until), 2: Work(prompt, GREEDY)})
    assert ([token.id for token in found[1][0]], found[1][1]) == (whole[:first], "stop")
    assert ([token.id for token in found[2][0]], found[2][1]) == (whole, "length")


def test_what_this_engine_cannot_do_is_refused_by_the_name_of_the_field(llama: Any) -> None:
    """S-24: before anything is read, and what runs goes on."""
    llama.start(1, Work((5, 6, 7), GREEDY))
    for sampling, param in (
        (Sampling(constraint=Constraint("{}")), "response_format"),
        (Sampling(num_beams=2, logprobs=1), "logprobs"),
    ):
        with pytest.raises(Refusal) as refused:
            llama.start(2, Work((5, 6, 7), sampling))
        assert (refused.value.status, refused.value.param) == (400, param)
    with pytest.raises(Refusal, match="256") as refused:
        llama.start(2, Work((5,) * 250, GREEDY))
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(Conflict):
        llama.start(2, Work((5,), GREEDY, tuning="nobody's"))
    assert llama.gauges()["sequences"] == 1


def test_what_does_not_fit_into_the_cache_is_refused_and_what_runs_is_not_hurt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """S-13: what runs has its memory until it ends."""
    engine = fresh("llama")
    monkeypatch.setattr(engine, "_room", 200)
    one, two = prompts("llama", (60, 60))
    with pytest.raises(Refusal) as refused:
        engine.start(0, Work(one, replace(GREEDY, num_beams=3)))
    assert refused.value.code == "context_length_exceeded"
    engine.start(1, Work(one, GREEDY, owner="anna"))
    engine.start(2, Work(two, GREEDY, owner="anna"))
    with pytest.raises(Busy):
        engine.start(3, Work(two, GREEDY))
    said: list[int] = []
    while engine.busy():
        said += [token.id for update in engine.step() if update.key == 1 for token in update.tokens]
    assert said == generated("llama", one, 32, eos_token_id=10**6)
    assert 0 < engine.gauges()["kv_kept_tokens"] <= 200
    engine.start(3, Work(two, GREEDY))
    assert engine.gauges()["kv_kept_tokens"] <= 200 - 92


@pytest.mark.parametrize("when", ["reading", "joining", "going on"])
def test_a_sequence_for_which_memory_runs_out_is_refused_alone(
    llama: Any, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-13: the newest of those that were at it; what is raised is the allocator's own error."""
    import enclave_app.engines.torch as ours

    one, two = prompts("llama", (20, 40))
    llama.start(1, Work(one, GREEDY))
    llama.step()
    llama.start(2, Work(two, GREEDY))
    for _ in range(3 if when == "going on" else 0):
        llama.step()
    happened: list[Any] = []

    def full() -> None:
        if not happened:
            happened.append(True)
            torch.empty(1 << 60)

    def layer(_: Any, given: Any) -> None:
        if given[0].shape[:2] == {"reading": (1, 32), "going on": (2, 1)}.get(when):
            full()

    def joined(rows: Any, join: Any = ours.together) -> Any:
        if when == "joining":
            full()
        return join(rows)

    monkeypatch.setattr(ours, "together", joined)
    last = llama._net.model.layers[-1].mlp  # the layers before it have taken the new columns by then
    hook = last.register_forward_pre_hook(layer)
    told: list[Any] = []
    try:
        while llama.busy():
            told += llama.step()
    finally:
        hook.remove()
    assert happened
    (refused,) = [each for each in told if isinstance(each, Refused)]
    assert refused.key == 2
    assert isinstance(refused.refusal, Busy)
    assert (refused.refusal.status, refused.refusal.code) == (503, "no_memory")
    said = [
        token.id for each in told if not isinstance(each, Refused) and each.key == 1 for token in each.tokens
    ]
    assert said == generated("llama", one, 32, eos_token_id=10**6)[-len(said) :]
    assert len(said) >= 28


# --- beginnings that were read before ----------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "falcon", "gemma with a window in some layers"])
def test_a_beginning_that_was_read_before_is_not_read_again_and_the_answer_is_the_same(family: str) -> None:
    engine = fresh(family)
    first, more = prompts(family, (50, 20))
    (said,) = ids(engine, Work(first, GREEDY, owner="anna"))
    reused = engine.gauges()["prefix_tokens_reused"]
    longer = (*first, *said, *more)
    expected = generated(family, longer, 32, eos_token_id=10**6)
    assert ids(engine, Work(longer, GREEDY, owner="anna")) == [expected]
    assert engine.gauges()["prefix_tokens_reused"] - reused == 50 + 31  # the last token was not read
    # The same prompt again, twice at once: all but its last token is known.
    assert ids(engine, *[Work(longer, GREEDY, owner="anna")] * 2) == [expected] * 2
    assert engine.gauges()["prefix_tokens_reused"] - reused == 81 + 2 * (len(longer) - 1)


def test_a_beginning_is_reused_for_the_same_owner_and_the_same_model_only(llama: Any) -> None:
    """S-22: not another tenant's, not of another tuned model, not of nobody."""
    (prompt,) = prompts("llama", (60,))
    llama.load("v1", adapter_for("llama", 1))
    for work in (Work(prompt, GREEDY, owner="anna"), Work(prompt, GREEDY, owner="")):
        ids(llama, work)
    reused = llama.gauges()["prefix_tokens_reused"]
    for work in (
        Work(prompt, GREEDY, owner="berta"),
        Work(prompt, GREEDY, owner="anna", tuning="v1"),
        Work(prompt, GREEDY, owner=""),
    ):
        ids(llama, work)
        assert llama.gauges()["prefix_tokens_reused"] == reused
    llama.unload("v1")
    llama.load("v1", adapter_for("llama", 2))  # the same name, other weights
    ids(llama, Work(prompt, GREEDY, owner="anna", tuning="v1"))
    assert llama.gauges()["prefix_tokens_reused"] == reused
    ids(llama, Work(prompt, GREEDY, owner="anna"))
    assert llama.gauges()["prefix_tokens_reused"] == reused + 59


# --- adapters ----------------------------------------------------------------------------------------------


@cache
def adapter_for(family: str, seed: int) -> Adapter:
    """Strong random LoRA matrices, shaped by peft itself."""
    import safetensors.torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    net = AutoModelForCausalLM.from_pretrained(folder(family))
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = get_peft_model(net, config)
    state = {
        name: torch.randn_like(tensor) * 0.5 for name, tensor in get_peft_model_state_dict(tuned).items()
    }
    weights = safetensors.torch.save(state)
    words = FolderTokenizer(folder(family))
    manifest = Manifest(
        model=Model.at(folder(family)).fingerprint,
        template=Template.TEXT.value,
        template_digest=Template.TEXT.digest(words),
        rank=4,
        alpha=8,
        targets=tuple(sorted(tuned.peft_config["default"].target_modules)),
        weights_sha256=hashlib.sha256(weights).hexdigest(),
    )
    return Adapter(manifest, weights)


@pytest.mark.parametrize("family", ["llama", "falcon"])
def test_two_tenants_adapters_and_the_base_each_answer_as_if_they_were_alone(family: str) -> None:
    """S-22: in one step after another, mixed; nothing of one is in anybody else's answer."""
    engine = fresh(family)
    (prompt, other) = prompts(family, (20, 33))
    (base,) = ids(engine, Work(prompt, GREEDY))
    engine.load("one", adapter_for(family, 1))
    engine.load("two", adapter_for(family, 2))
    works = [Work(each, GREEDY, tuning=tuning) for tuning in ("", "one", "two") for each in (prompt, other)]
    alone = [ids(engine, work)[0] for work in works]
    assert alone[0] == base
    assert len(set(map(tuple, alone))) == 6
    assert ids(engine, *works) == alone
    assert ids(engine, *reversed(works)) == alone[::-1]
    engine.unload("one")
    assert ids(engine, works[4], works[0]) == [alone[4], base]
    engine.unload("two")
    assert ids(engine, works[0]) == [base]
    engine.load("one", adapter_for(family, 1))
    assert ids(engine, works[2], works[0]) == [alone[2], base]


def test_an_adapter_equals_peft_itself(llama: Any, tmp_path: Path) -> None:
    """The weights as peft would load them from a folder give the same greedy tokens."""
    from peft import LoraConfig, PeftModel
    from transformers import AutoModelForCausalLM

    made = adapter_for("llama", 3)
    LoraConfig(
        r=4, lora_alpha=8, target_modules=list(made.manifest.targets), task_type="CAUSAL_LM"
    ).save_pretrained(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(made.weights)
    net = AutoModelForCausalLM.from_pretrained(folder("llama"), dtype=torch.float32)
    net = PeftModel.from_pretrained(net, str(tmp_path))
    (prompt,) = prompts("llama", (20,))
    out = net.generate(
        input_ids=torch.tensor([prompt]),
        max_new_tokens=32,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=10**6,
    )
    llama.load("v", made)
    assert ids(llama, Work(prompt, GREEDY, tuning="v")) == [out[0, len(prompt) :].tolist()]


def test_weights_that_do_not_fit_are_refused_and_nothing_of_them_stays(llama: Any) -> None:
    import safetensors.torch

    (prompt,) = prompts("llama", (20,))
    (base,) = ids(llama, Work(prompt, GREEDY))
    made = adapter_for("llama", 5)
    state = safetensors.torch.load(made.weights)
    name = min(state)  # of the first layer
    missing = {key: tensor for key, tensor in state.items() if key != name}
    broken = {
        "no safetensors": b"no safetensors at all",
        "one missing": safetensors.torch.save(missing),
        "one too many": safetensors.torch.save(
            state | {name.replace("layers.0", "layers.9"): state[name].clone()}
        ),
        "another shape": safetensors.torch.save(state | {name: torch.zeros(3, 3)}),
    }
    for version, weights in broken.items():
        with pytest.raises(Failed) as failed:
            llama.load(version, Adapter(made.manifest, weights))
        assert failed.value.code == "damaged_adapter"
        with pytest.raises(Conflict):
            llama.start(1, Work(prompt, GREEDY, tuning=version))
    with pytest.raises(Failed):
        llama.load("no such layer", Adapter(replace(made.manifest, targets=("nothing",)), made.weights))
    assert ids(llama, Work(prompt, GREEDY)) == [base]
    llama.load("whole", made)
    assert ids(llama, Work(prompt, GREEDY), Work(prompt, GREEDY, tuning="whole"))[0] == base


def test_an_adapter_survives_its_encoding_and_altered_bytes_do_not() -> None:
    made = adapter_for("llama", 6)
    data = made.encode()
    assert Adapter.parse(data) == made
    for broken in (data[:-1], data[: len(data) // 2], b"", b"blindbox-adapter/1\n", data[:-1] + b"\0\0"):
        with pytest.raises(MalformedAdapter):
            Adapter.parse(broken)


# --- Intel's extension -------------------------------------------------------------------------------------

# The real one needs torch 2.8 and cannot be installed beside the torch of these tests.
STAND_IN = """
import torch
__version__ = "2.8.0"
calls = []

class Optimised(torch.nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight, self.bias)

def optimize(model, dtype=None, inplace=False):
    calls.append((type(model).__name__, dtype, inplace, model.training))
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is torch.nn.Linear:
                setattr(module, name, Optimised(child))
    return model
"""


@pytest.fixture
def ipex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of that name; what it says, the test writes."""
    package = tmp_path / "intel_extension_for_pytorch"
    package.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "intel_extension_for_pytorch", raising=False)
    return package / "__init__.py"


def test_intels_extension_is_used_where_it_can_be_imported(ipex: Path) -> None:
    """Adapters work beside it: peft does not know its layers, and is given plain ones."""
    from enclave_app.engines.torch import TorchEngine

    ipex.write_text(STAND_IN)
    engine = TorchEngine(str(folder("llama")), device="cpu", dtype="float32")
    assert dict(engine.card().details)["ipex"] == "2.8.0"
    assert sys.modules["intel_extension_for_pytorch"].calls == [
        ("LlamaForCausalLM", torch.float32, True, False)
    ]
    (prompt,) = prompts("llama", (20,))
    works = [Work(prompt, GREEDY), Work(prompt, GREEDY, tuning="v")]
    engine.load("v", adapter_for("llama", 1))
    plain = fresh("llama")
    plain.load("v", adapter_for("llama", 1))
    assert ids(engine, *works) == ids(plain, *works)
    del sys.modules["intel_extension_for_pytorch"]


@pytest.mark.parametrize("end", ["exit(127)", "raise ImportError('no')", "raise OSError('no such library')"])
def test_an_extension_for_another_torch_is_left_alone(ipex: Path, end: str) -> None:
    """The real one prints a line and ends the process where torch is not of its version."""
    from enclave_app.engines.torch import TorchEngine

    ipex.write_text(end)
    engine = TorchEngine(str(folder("llama")), device="cpu", dtype="float32")
    assert "ipex" not in dict(engine.card().details)
    assert ids(engine, Work((5, 6, 7), GREEDY)) == [generated("llama", (5, 6, 7), 32, eos_token_id=10**6)]
