"""The pipeline on a tiny real model: what it can be asked for, what it is spared, what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from enclave_app.engines import Constraint, Refused, Sampling, Token, Work
from enclave_app.engines.adapter import Adapter
from enclave_app.engines.ir import Export
from enclave_app.engines.schema_limits import MOST_STEPS, checked
from enclave_app.refusals import Refusal
from enclave_app.tokenizer import FolderTokenizer
from tests.kit.exports import ready
from tests.kit.models import tiny_llama

genai: Any = pytest.importorskip("openvino_genai")

IDS = (30, 31, 77, 200, 5, 6, 9)
GREEDY = Sampling(max_new_tokens=12, do_sample=False, ignore_end=True)


@pytest.fixture(scope="module")
def folder() -> Path:
    return ready([tiny_llama()])[0]


@pytest.fixture(scope="module")
def words() -> FolderTokenizer:
    return FolderTokenizer(tiny_llama())


@pytest.fixture(scope="module")
def made(folder: Path) -> Any:
    from enclave_app.engines.openvino import OpenVinoEngine

    return OpenVinoEngine(str(folder), threads=1, kv_cache_mib=1, most_sequences=8, precision="full")


@pytest.fixture
def engine(made: Any) -> Iterator[Any]:
    """Each test leaves the engine as it found it."""
    yield made
    assert not made.busy()
    assert used(made) == 0


def used(engine: Any) -> float:
    figure: float = engine.gauges()["kv_used_tokens"]
    return figure


def answers(engine: Any, asked: Mapping[int, Work]) -> dict[int, tuple[list[Token], str | None]]:
    for key, work in asked.items():
        engine.start(key, work)
    found: dict[int, tuple[list[Token], str | None]] = {key: ([], None) for key in asked}
    while engine.busy():
        for update in engine.step():
            found[update.key] = (found[update.key][0] + list(update.tokens), update.finish)
    return found


def said(engine: Any, sampling: Sampling = GREEDY, ids: tuple[int, ...] = IDS) -> list[int]:
    return [token.id for token in answers(engine, {1: Work(ids, sampling)})[1][0]]


def refused(engine: Any, sampling: Sampling, ids: tuple[int, ...] = IDS) -> Refusal:
    with pytest.raises(Refusal) as caught:
        engine.start(1, Work(ids, sampling))
    return caught.value


# --- what a card says -----------------------------------------------------------------------------------


def test_the_card_tells_what_the_export_and_its_cache_can_hold(engine: Any, folder: Path) -> None:
    card = engine.card()
    # 2 layers of keys and values, 2 heads of 16 numbers, in float32
    assert card.kv_bytes == Export.at(folder).kv_numbers * 4 == 2 * 2 * 2 * 16 * 4
    assert card.context == 256
    assert card.room * card.kv_bytes == 1 << 20 == engine.gauges()["kv_bytes"]
    assert card.abilities == {"beams", "schema", "triggered_schema"}
    assert card.tunes == "apart"
    assert ("weights", "bf16") in card.details


def test_by_itself_it_never_keeps_eight_bits_of_keys_and_values(folder: Path) -> None:
    from enclave_app.engines.openvino import OpenVinoEngine

    details = dict(OpenVinoEngine(str(folder), threads=1, kv_cache_mib=1).card().details)
    assert details["kv_cache"] in ("bf16", "f16", "f32")


def test_a_cache_that_does_not_fit_is_refused_before_the_model_is_opened(folder: Path) -> None:
    from enclave_app.engines.openvino import DoesNotFit, OpenVinoEngine

    with pytest.raises(DoesNotFit, match=r"BLINDBOX_KV_CACHE_MIB"):
        OpenVinoEngine(str(folder), kv_cache_mib=1 << 30)


# --- what can be asked for ------------------------------------------------------------------------------


def test_an_answer_is_the_same_alone_and_beside_others(engine: Any) -> None:
    alone = said(engine)
    sampled = Sampling(max_new_tokens=12, seed=7, top_k=0, temperature=2.0, ignore_end=True)
    drawn = said(engine, sampled)
    beside = answers(engine, {1: Work((9, 9, 9), sampled), 2: Work(IDS, GREEDY), 3: Work(IDS, sampled)})
    assert [token.id for token in beside[2][0]] == alone
    assert [token.id for token in beside[3][0]] == drawn != alone


def test_without_a_seed_each_answer_is_drawn_anew(engine: Any) -> None:
    sampling = Sampling(max_new_tokens=12, top_k=0, temperature=2.0, ignore_end=True)
    assert said(engine, sampling) != said(engine, sampling)


@pytest.mark.parametrize("seed", [0, -1, 2**31, 2**32, 2**63 - 1, -(2**63)])
def test_any_seed_of_64_bits_draws_the_same_twice(engine: Any, seed: int) -> None:
    sampling = Sampling(max_new_tokens=8, seed=seed, top_k=0, temperature=2.0, ignore_end=True)
    assert said(engine, sampling) == said(engine, sampling)


@pytest.mark.parametrize(
    "coldest",
    [
        {"temperature": 0.0},
        {"temperature": 1e-30},
        {"top_k": 1},
        {"top_p": 0.0},
        {"min_p": 1.0},
        {"top_k": 10**9, "temperature": 1e-9},
    ],
)
def test_the_ends_of_every_range_are_taken_and_mean_the_likeliest(
    engine: Any, coldest: dict[str, Any]
) -> None:
    assert said(engine, replace(GREEDY, do_sample=True, **coldest)) == said(engine)


def test_log_probabilities_are_those_of_the_model_whatever_the_temperature(engine: Any) -> None:
    weighed = replace(GREEDY, logprobs=0)
    plain = answers(engine, {1: Work(IDS, weighed)})[1][0]
    hot = answers(engine, {1: Work(IDS, replace(weighed, do_sample=True, top_k=1, temperature=5.0))})[1][0]
    assert [token.logprob for token in plain] == pytest.approx([token.logprob for token in hot])
    assert all(token.logprob < 0 for token in plain)
    assert {token.logprob for token in answers(engine, {1: Work(IDS, GREEDY)})[1][0]} == {0.0}


def test_penalties_do_what_they_do_in_torch(engine: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    net: Any = AutoModelForCausalLM.from_pretrained(tiny_llama(), dtype=torch.bfloat16).float().eval()

    def expected(presence: float, frequency: float, repetition: float) -> list[int]:
        ids = list(IDS)
        for _ in range(12):
            with torch.no_grad():
                scores = net(torch.tensor([ids])).logits[0, -1]
            for token in set(ids):
                scores[token] = (
                    scores[token] / repetition if scores[token] > 0 else scores[token] * repetition
                )
            for token in set(ids[len(IDS) :]):
                scores[token] -= presence + frequency * ids[len(IDS) :].count(token)
            ids.append(int(scores.argmax()))
        return ids[len(IDS) :]

    for presence, frequency, repetition in ((0, 0, 1), (2, 0, 1), (0, 2, 1), (0, -2, 1), (0, 0, 1.8)):
        sampling = replace(
            GREEDY,
            presence_penalty=presence,
            frequency_penalty=frequency,
            repetition_penalty=repetition,
        )
        assert said(engine, sampling) == expected(presence, frequency, repetition)


def test_an_end_token_ends_and_is_not_told(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = said(made)
    monkeypatch.setattr(made, "_ends", frozenset({whole[3], 399}))
    tokens, finish = answers(made, {1: Work(IDS, replace(GREEDY, ignore_end=False))})[1]
    assert ([token.id for token in tokens], finish) == (whole[:3], "stop")
    tokens, finish = answers(made, {1: Work(IDS, GREEDY)})[1]
    assert ([token.id for token in tokens], finish) == (whole, "length")


def test_beams_find_an_answer_that_is_at_least_as_likely(engine: Any) -> None:
    def likelihood(sampling: Sampling) -> float:
        tokens, finish = answers(engine, {1: Work(IDS, replace(sampling, logprobs=0))})[1]
        assert (len(tokens), finish) == (12, "length")
        return sum(token.logprob for token in tokens)

    assert likelihood(replace(GREEDY, num_beams=4)) >= likelihood(GREEDY) - 1e-3


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"logit_bias": ((5, 1.0),)}, "logit_bias"),
        ({"logprobs": 1}, "top_logprobs"),
        ({"num_beams": 2, "repetition_penalty": 1.1}, "repetition_penalty"),
        ({"num_beams": 2, "presence_penalty": 0.1}, "presence_penalty"),
        ({"num_beams": 2, "constraint": Constraint("{}")}, "num_beams"),
    ],
)
def test_what_it_has_no_means_for_is_refused_by_name(engine: Any, asked: dict[str, Any], param: str) -> None:
    refusal = refused(engine, replace(GREEDY, **asked))
    assert (refusal.code, refusal.param) == ("unsupported_parameter", param)


def test_settings_that_the_pipeline_refuses_cost_one_request_and_no_engine(engine: Any) -> None:
    before = said(engine)
    assert refused(engine, replace(GREEDY, repetition_penalty=-1.0)).status == 400
    assert refused(engine, replace(GREEDY, presence_penalty=3.0)).status == 400
    assert said(engine) == before


# --- memory ---------------------------------------------------------------------------------------------


def test_a_sequence_longer_than_the_cache_is_refused(engine: Any) -> None:
    room = engine.card().room
    refusal = refused(engine, replace(GREEDY, max_new_tokens=room))
    assert refusal.code == "context_length_exceeded"
    assert refused(engine, replace(GREEDY, max_new_tokens=room // 4, num_beams=4)).code == refusal.code


def test_sequences_that_fill_the_cache_to_the_last_block_all_finish(engine: Any) -> None:
    card = engine.card()
    each = card.room // 8
    asked = {key: Work((key + 1,) * (each - 20), replace(GREEDY, max_new_tokens=20)) for key in range(8)}
    for key, work in asked.items():
        engine.start(key, work)
    most = 0.0
    told = dict.fromkeys(asked, 0)
    while engine.busy():
        for update in engine.step():
            assert not isinstance(update, Refused)
            told[update.key] += len(update.tokens)
        most = max(most, used(engine))
    assert set(told.values()) == {20}
    assert most == card.room


def test_what_is_cancelled_is_free_at_the_next_step(engine: Any) -> None:
    """S-11: also before its first step, and one that is not there."""
    engine.start(1, Work((7,) * 200, replace(GREEDY, max_new_tokens=50)))
    engine.start(2, Work(IDS, replace(GREEDY, max_new_tokens=50)))
    engine.step()
    engine.step()
    assert used(engine) > 200
    engine.cancel(1)
    engine.start(3, Work((8,) * 200, GREEDY))
    engine.cancel(3)
    engine.cancel(99)
    engine.step()
    assert {update.key for update in engine.step()} == {2}
    assert used(engine) < 100
    engine.cancel(2)
    engine.step()


def test_hundreds_that_come_and_go_leave_nothing(engine: Any) -> None:
    """S-11: whoever goes away early, by beams or not, leaves the engine as it was."""
    before = said(engine)
    for turn in range(300):
        beams = 1 + 2 * (turn % 2)
        engine.start(turn, Work(IDS, replace(GREEDY, max_new_tokens=40, num_beams=beams)))
        for _ in range(turn % 4):
            engine.step()
        engine.cancel(turn)
        engine.step()
    assert said(engine) == before
    room = engine.card().room
    assert len(said(engine, GREEDY, (5,) * (room - 12))) == 12  # all of it can be had


# --- schemas --------------------------------------------------------------------------------------------

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["a", "b", 3, None]},
        "code": {"type": "string", "pattern": "^[a-z]{2}-[0-9]{3}$"},
        "born": {"type": "string", "format": "date"},
        "likes": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
        "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/place"}]},
    },
    "required": ["name", "age", "kind", "code", "born", "likes", "next"],
    "additionalProperties": False,
    "$defs": {"place": {"type": "object", "properties": {"x": {"type": "integer", "maximum": 9}}}},
}


def test_a_model_that_babbles_still_answers_by_the_schema(engine: Any, words: FolderTokenizer) -> None:
    constraint = Constraint(json.dumps(PERSON))
    sampling = Sampling(max_new_tokens=400, top_k=0, constraint=constraint, temperature=0.7)
    asked = {seed: Work(IDS, replace(sampling, seed=seed), owner="a") for seed in range(8)}
    whole = 0
    for tokens, finish in answers(engine, asked).values():
        if finish == "stop":  # the others are at white space still
            text = "".join(map(words.text, (token.id for token in tokens)))
            try:
                jsonschema_rs.validate(PERSON, json.loads(words.decode([token.id for token in tokens])))
            except Exception as error:
                raise AssertionError(text) from error
            whole += 1
    assert whole


def test_a_triggered_schema_begins_where_the_model_writes_its_first_words(
    engine: Any, words: FolderTokenizer
) -> None:
    free = words.decode(said(engine))
    trigger = free.strip()[:1]
    schema = '{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}'
    sampling = replace(GREEDY, max_new_tokens=60, constraint=Constraint(schema, trigger, ";"))
    text = words.decode(said(engine, sampling))
    assert text.partition(trigger)[2].lstrip().startswith("{")


@pytest.mark.parametrize(
    ("schema", "code"),
    [
        ("{nope", "invalid_schema"),
        ("[]", "invalid_schema"),
        ('{"type": "nonsense"}', "invalid_schema"),
        ('{"$ref": "#/$defs/nowhere"}', "invalid_schema"),
        ('{"type": "string", "pattern": "(a"}', "invalid_schema"),
        ('{"type": "integer", "minimum": 5, "maximum": 1}', "invalid_schema"),
        ('{"type": "integer", "maximum": 1000000000000000000000000}', "invalid_schema"),
        ('{"type": "array", "items": false, "minItems": 1}', "invalid_schema"),
        ('{"oneOf": [{"type": "string"}]}', "unsupported_schema"),
    ],
)
def test_a_schema_that_cannot_be_used_is_one_callers_fault_and_nobody_elses(
    engine: Any, schema: str, code: str
) -> None:
    """S-24: the library's exceptions end a request, not the engine."""
    engine.start(7, Work(IDS, GREEDY))
    engine.step()
    refusal = refused(engine, replace(GREEDY, constraint=Constraint(schema)))
    done = [update.finish for _ in range(11) for update in engine.step()]
    assert done[-1] == "length"
    assert (refusal.status, refusal.code, refusal.param) == (400, code, "response_format")
    assert "/" not in refusal.message.replace("#/", "")  # no path of the library


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "maxLength": 10**6},
        {"type": "string", "minLength": 10**6},
        {"type": "string", "pattern": "^((([a-z]{1,50}){1,50}){1,50}){1,50}$"},
        {"type": "string", "pattern": "^[a-z]{1,99999}$"},
        {"type": "string", "pattern": "^(?:ab){60}$"},
        {"type": "string", "pattern": "a" * (MOST_STEPS + 1)},
        {"type": "object", "properties": {f"p{n}": {"type": "string", "maxLength": n} for n in range(60)}},
        {"type": "object", "properties": {f"p{n}": {} for n in range(1000)}},
        {"enum": list(range(5000))},
        deep(17),
        deep(400),
        {"anyOf": [{"type": "null"}] * 1000},
        {"type": "array", "prefixItems": [{"type": "null"}] * 1000},
    ],
)
def test_a_schema_that_would_explode_is_refused_before_it_is_compiled(schema: dict[str, Any]) -> None:
    """S-24: these kept the grammar library busy for seconds or minutes, while everybody waits."""
    with pytest.raises(Refusal) as caught:
        checked(json.dumps(schema), param="tools")
    assert (caught.value.code, caught.value.param) == ("schema_too_complex", "tools")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number", "multipleOf": 3},
        {"type": "array", "uniqueItems": True},
        {"type": "object", "minProperties": 3},
        {"type": "object", "patternProperties": {"^a": {}}},
        {"not": {"type": "string"}},
        {"type": "string", "pattern": "a", "maxLength": 3},
        {"type": "string", "pattern": "(?=a)b"},
        {"type": "string", "pattern": "^.*$"},
        {"type": "string", "pattern": "[^,]"},
        {"type": "string", "pattern": 'a"b'},
        {"type": "string", "pattern": "[A-z]"},
        {"type": "string", "pattern": r"\\\\"},
        {"type": "string", "pattern": r"\\s"},
        {"type": "string", "pattern": "a^b"},
        {"type": "string", "format": "regex"},
        {"$ref": "#", "minLength": 3},
        {"$ref": "https://example.org/schema"},
        {"allOf": [{"type": "string"}, {"maxLength": 3}]},
        {"anyOf": [{"type": "string"}], "maxLength": 3},
        {"type": "object", "required": ["a"]},
        {"maxLength": 3},
    ],
)
def test_what_the_grammar_library_would_pass_over_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(Refusal) as caught:
        checked(json.dumps(schema), param="response_format")
    assert caught.value.code == "unsupported_schema"


def test_grammars_that_pile_up_are_let_go_when_nothing_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-24: the library keeps each for ever, and a caller can send as many different ones as he likes."""
    from enclave_app.engines import grammar
    from enclave_app.engines.openvino import OpenVinoEngine

    engine = OpenVinoEngine(str(folder), threads=1, kv_cache_mib=1, most_sequences=4, precision="full")
    monkeypatch.setattr(grammar, "_resident", iter(range(0, 1 << 40, 300 << 20)).__next__)
    held = replace(GREEDY, constraint=Constraint("{}"))
    before = said(engine)
    engine.start(7, Work(IDS, GREEDY))
    for _ in range(2):  # grows by 300 MiB each
        engine.start(8, Work(IDS, held))
    refusal = refused(engine, held)
    assert (refusal.status, refusal.code) == (503, "no_memory")
    while engine.busy():
        engine.step()
    engine.start(9, Work(IDS, held))  # nothing ran: it is afresh
    engine.cancel(9)
    engine.step()
    assert said(engine) == before


# --- what this leans on in the pinned library ------------------------------------------------------------


def test_the_pinned_library_still_fails_in_the_middle_of_a_step(folder: Path) -> None:
    """The reason for `grammar.py`: if this fails, look whether it can go."""
    import numpy as np
    import openvino as ov

    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = 16
    pipeline = genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", {"INFERENCE_NUM_THREADS": 1})
    config = genai.GenerationConfig()
    config.max_new_tokens = 4
    config.structured_output_config = genai.StructuredOutputConfig()
    config.structured_output_config.json_schema = "{nope"
    handle = pipeline.add_request(1, ov.Tensor(np.array([IDS], np.int64)), config)
    with pytest.raises(RuntimeError):
        pipeline.step()
    handle.cancel()


def test_only_a_tuned_models_own_worker_keeps_prefixes(engine: Any, folder: Path) -> None:
    """S-22: one cache serves the whole pipeline, so the shared one has none."""
    assert "prefix_cache" not in engine.card().abilities
    with pytest.raises(Refusal):
        engine.load("v", Adapter.__new__(Adapter))
