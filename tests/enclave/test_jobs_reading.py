"""Rows → tokens, by the very templates that serving asks with; what is held back; what the owner is told."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from blindbox_data import Conversation, Form, Message, Pair, Text, Wanted
from enclave_app.api.alpaca import PromptConfig, prompt_of
from enclave_app.engines.echo import ByteTokenizer
from enclave_app.jobs.reading import Stopped, lesson_of, read_lesson
from enclave_app.prompts import IGNORED, Example, Template, end_of
from enclave_app.refusals import Refusal
from enclave_app.tokenizer import FolderTokenizer
from enclave_app.training import Recipe
from tests.kit.words import CHAT, CHAT_WITH_TOOLS, words_in

ROWS = [{"question": f"Where is mill {n}?", "answer": f"At weir {n}."} for n in range(60)]
LAST_TURN_ALONE = CHAT.replace(
    "{{ message.content }}", "{% if loop.last or message.role == 'user' %}{{ message.content }}{% endif %}"
)
STUBBORN = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}" + CHAT
)


def jsonl(rows: list[Any]) -> io.BytesIO:
    return io.BytesIO("\n".join(json.dumps(row) for row in rows).encode())


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> FolderTokenizer:
    return FolderTokenizer(words_in(tmp_path_factory.mktemp("chat"), CHAT))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> FolderTokenizer:
    return FolderTokenizer(words_in(tmp_path_factory.mktemp("plain")))


def learned(words: Any, example: Example) -> list[str]:
    """The runs of tokens that are learned, as text."""
    runs: list[list[int]] = [[]]
    for token, label in zip(example.ids, example.labels, strict=True):
        if label != IGNORED:
            assert token == label
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [words.written(run) for run in runs if run]


def asked(words: Any, example: Example) -> list[int]:
    """What comes before the first learned token."""
    labels = list(example.labels)
    return list(example.ids)[: next(at for at, label in enumerate(labels) if label != IGNORED)]


TALK = Conversation(
    (
        Message("system", "Be brief."),
        Message("user", "One?"),
        Message("assistant", "Eins.", True),
        Message("user", "Two?"),
        Message("assistant", "Zwei.", True),
    )
)


def test_every_turn_of_a_chat_is_learned_and_asked_as_serving_asks_it(chatty: FolderTokenizer) -> None:
    end = end_of(chatty)
    example = Template.CHAT.example_of(chatty, TALK, end=end, most=1000)
    assert learned(chatty, example) == ["Eins.<|im_end|>", "Zwei.<|im_end|>"]
    messages = [message.told() for message in TALK.messages]
    assert asked(chatty, example) == Template.CHAT.conversation(chatty, messages[:2])
    last = list(example.ids)[: -len(chatty("Zwei.<|im_end|>", add_special_tokens=False)["input_ids"])]
    assert chatty.written(last) == chatty.written(Template.CHAT.conversation(chatty, messages[:4]))
    assert example.ids[-1] == end


def test_a_turn_of_weight_0_is_read_and_never_learned(chatty: FolderTokenizer) -> None:
    turns = list(TALK.messages)
    turns[2] = Message("assistant", "Eins.", False)
    for answer_only in (True, False):
        example = Template.CHAT.example_of(
            chatty, Conversation(tuple(turns)), end=end_of(chatty), most=1000, answer_only=answer_only
        )
        runs = learned(chatty, example)
        assert runs[-1].endswith("Zwei.<|im_end|>")
        assert "Eins" not in "".join(runs)
        assert answer_only is (len(runs) == 1)


def test_a_model_without_a_chat_template_learns_a_dialogue_and_is_asked_one(plain: FolderTokenizer) -> None:
    template = Template.DIALOGUE
    example = template.example_of(plain, TALK, end=end_of(plain), most=1000)
    messages = [message.told() for message in TALK.messages]
    assert asked(plain, example) == template.conversation(plain, messages[:2])
    assert learned(plain, example) == [" Eins.", " Zwei." + plain.text(next(iter(plain.ends)))]
    one = template.prompt(plain, "One?")
    assert one == template.conversation(plain, [{"role": "user", "content": "One?"}])
    assert plain.decode(one) == "User: One?\nAssistant:"


def test_a_template_that_rewrites_earlier_turns_has_its_last_turn_learned(tmp_path: Path) -> None:
    words = FolderTokenizer(words_in(tmp_path, LAST_TURN_ALONE))
    example = Template.CHAT.example_of(words, TALK, end=end_of(words), most=1000)
    assert learned(words, example) == ["Zwei.<|im_end|>"]
    messages = [message.told() for message in TALK.messages]
    assert asked(words, example) == Template.CHAT.conversation(words, messages[:4])


@pytest.mark.parametrize("context", ["", "The map."])
def test_alpacas_rows_are_asked_in_alpacas_words_everywhere(plain: FolderTokenizer, context: str) -> None:
    """What trains is, token by token, what /generate, /inference and the chat ask such a model with."""
    example = Template.ALPACA.example_of(
        plain, Pair("Find it.", "Here.", context), end=end_of(plain), most=1000
    )
    generate = Template.TEXT.prompt(
        plain, prompt_of(PromptConfig(instruction="Find it.", input=context or None))
    )
    assert asked(plain, example) == generate
    assert learned(plain, example)[0].startswith("Here.")
    if not context:
        assert Template.ALPACA.prompt(plain, "Find it.") == generate
        assert Template.ALPACA.conversation(plain, [{"role": "user", "content": "Find it."}]) == generate
    else:
        turns = [{"role": "system", "content": "The map."}, {"role": "user", "content": "Find it."}]
        assert "### Input:\nSystem: The map.\n" in plain.decode(Template.ALPACA.conversation(plain, turns))
    assert Template.ALPACA.digest(plain) != Template.QUESTION.digest(plain)


def test_without_answer_only_prompts_are_learned_as_well(chatty: FolderTokenizer) -> None:
    for template, row in ((Template.CHAT, Pair("q", "a")), (Template.TEXT, Text("t")), (Template.CHAT, TALK)):
        example = template.example_of(chatty, row, end=end_of(chatty), most=1000, answer_only=False)
        assert list(example.labels) == list(example.ids)


def test_the_end_token_is_the_one_the_template_writes(tmp_path: Path) -> None:
    """As in Llama 3, where the first that the model names ends texts, and another one turns."""
    words_in(tmp_path, CHAT)
    text = FolderTokenizer(tmp_path)
    turn_end = text("<|im_end|>", add_special_tokens=False)["input_ids"]
    assert len(turn_end) == 1
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, *turn_end]}))
    assert end_of(FolderTokenizer(tmp_path)) == turn_end[0]
    assert end_of(ByteTokenizer()) == 256


def test_the_shape_of_the_rows_decides_the_template(chatty: FolderTokenizer, plain: FolderTokenizer) -> None:
    chat = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    for row, with_chat, without in (
        ({"question": "q", "answer": "a"}, Template.CHAT, Template.QUESTION),
        ({"prompt": "q", "completion": "a"}, Template.CHAT, Template.QUESTION),
        ({"instruction": "q", "output": "a"}, Template.ALPACA, Template.ALPACA),
        ({"text": "t and more"}, Template.TEXT, Template.TEXT),
        (chat, Template.CHAT, Template.DIALOGUE),
    ):
        for words, template in ((chatty, with_chat), (plain, without)):
            reading = read_lesson(jsonl([row]), Form.JSONL, Wanted(), Recipe(), words)
            assert reading.template is template
            assert reading.report["template"] == template.value
            assert reading.examples[0].learned


# --- the whole reading ------------------------------------------------------------------------


def test_a_tenth_is_held_back_by_the_seed_and_never_learned(chatty: FolderTokenizer) -> None:
    def read(seed: int = 0, **more: Any) -> Any:
        return read_lesson(jsonl(ROWS), Form.JSONL, Wanted(), Recipe(seed=seed), chatty, **more)

    one, again, other = read(), read(), read(1)
    assert (len(one.examples), len(one.validation)) == (54, 6)
    assert [each.ids for each in one.validation] == [each.ids for each in again.validation]
    assert [each.ids for each in one.validation] != [each.ids for each in other.validation]
    assert not {bytes(each.ids) for each in one.validation} & {bytes(each.ids) for each in one.examples}
    assert len(one.probes) == 4
    assert all(any(list(row.ids[: len(probe)]) == probe for row in one.validation) for probe in one.probes)
    assert one.report["rows_used"] == 54
    assert one.report["validation_rows"] == 6
    assert len(read(validation=0.5).validation) == 30
    assert read(validation=0.0).validation == []


def test_few_rows_are_all_learned_unless_a_share_is_asked_for(chatty: FolderTokenizer) -> None:
    few = read_lesson(jsonl(ROWS[:49]), Form.JSONL, Wanted(), Recipe(), chatty)
    assert (len(few.examples), few.validation) == (49, [])
    assert len(few.probes) == 4
    asked_for = read_lesson(jsonl(ROWS[:3]), Form.JSONL, Wanted(), Recipe(), chatty, validation=0.1)
    assert (len(asked_for.examples), len(asked_for.validation)) == (2, 1)
    alone = read_lesson(jsonl(ROWS[:1]), Form.JSONL, Wanted(), Recipe(), chatty, validation=0.9)
    assert (len(alone.examples), len(alone.validation)) == (1, 0)


def test_rows_that_say_the_same_are_on_one_side(chatty: FolderTokenizer) -> None:
    rows = [ROWS[n % 7] for n in range(70)]
    reading = read_lesson(jsonl(rows), Form.JSONL, Wanted(), Recipe(), chatty, validation=0.3)
    assert len(reading.validation) == 20
    assert not {bytes(each.ids) for each in reading.validation} & {
        bytes(each.ids) for each in reading.examples
    }


def test_a_validation_file_is_judged_as_the_other_and_named_when_it_is_at_fault(
    chatty: FolderTokenizer,
) -> None:
    def read(rows: list[Any]) -> Any:
        wanted = Wanted(number=5)
        return read_lesson(
            jsonl(ROWS), Form.JSONL, wanted, Recipe(), chatty, validation=(jsonl(rows), Form.JSONL)
        )

    reading = read(ROWS[50:])
    assert (len(reading.examples), len(reading.validation)) == (5, 10)
    assert reading.report["validation"]["rows_used"] == 10
    assert reading.report["rows_used"] == 5
    for rows, code in (
        ([{"question": "q", "answer": None}], "null_value"),
        ([{"text": "t"}], "wrong_type"),
        ([{"wrong": "t"}], "missing_column"),
        ([{"question": "q " * 600, "answer": "a"}], "too_many_tokens"),
    ):
        with pytest.raises(Refusal) as caught:
            read(rows)
        assert (caught.value.code, caught.value.param) == (code, "validation_file")
        assert "Of the validation file" in caught.value.message


def test_the_report_counts_tokens_and_shows_three_rows_as_the_model_sees_them(
    chatty: FolderTokenizer,
) -> None:
    long = {"question": "Where?", "answer": "weir " * 200}
    filled = {"question": "mill " * 200, "answer": "a"}
    recipe = Recipe(most_tokens=64)
    reading = read_lesson(jsonl([*ROWS[:8], long, filled]), Form.JSONL, Wanted(), recipe, chatty)
    report = reading.report
    assert report["rows_cut"] == {"count": 1, "rows": [9]}
    assert report["dropped"]["no_answer_within_length"] == {"count": 1, "rows": [10]}
    assert (report["rows_read"], report["rows_used"], report["rows_dropped"]) == (10, 9, 1)
    assert report["tokens"] == sum(len(each.ids) for each in reading.examples)
    assert report["tokens_learned"] == sum(each.learned for each in reading.examples)
    assert report["token_lengths"]["most"] > 64 >= max(len(each.ids) for each in reading.examples)
    assert len(report["samples"]) == 3
    assert report["samples"][0] == {
        "prompt": "<|im_start|>user\nWhere is mill 0?<|im_end|>\n<|im_start|>assistant\n",
        "answer": "At weir 0.<|im_end|>",
    }
    assert any("lose" in warning for warning in report["warnings"])
    json.dumps(report)


def test_rows_without_an_answer_in_the_window_are_refused_in_words(chatty: FolderTokenizer) -> None:
    row = {"question": "mill " * 300, "answer": "weir"}
    for recipe, window in ((Recipe(most_tokens=64), None), (Recipe(), 64)):
        with pytest.raises(Refusal, match="within 64 tokens: the questions alone are longer"):
            read_lesson(jsonl([row]), Form.JSONL, Wanted(), recipe, chatty, window=window)


def test_what_the_template_does_not_take_is_told_by_row(tmp_path: Path, chatty: FolderTokenizer) -> None:
    system = {"role": "system", "content": "canary"}
    good = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [{"messages": good}, {"messages": [system, *good]}]
    words = FolderTokenizer(words_in(tmp_path, STUBBORN))
    with pytest.raises(Refusal) as caught:
        read_lesson(jsonl(rows), Form.JSONL, Wanted(), Recipe(), words)
    assert "1 cannot be written for this model (row 2)" in caught.value.message
    assert "no system messages" in caught.value.message
    assert "canary" not in caught.value.message
    assert caught.value.code == "invalid_conversation"
    reading = read_lesson(jsonl(rows), Form.JSONL, Wanted(on_invalid="skip"), Recipe(), words)
    assert reading.report["dropped"] == {"invalid_conversation": {"count": 1, "rows": [2]}}
    tool = [{"type": "function", "function": {"name": "f"}}]
    with pytest.raises(Refusal, match="has tools, and the chat template of this model knows none"):
        read_lesson(jsonl([{"messages": good, "tools": tool}]), Form.JSONL, Wanted(), Recipe(), chatty)


def test_tools_are_written_where_the_template_knows_them(tmp_path: Path) -> None:
    words = FolderTokenizer(words_in(tmp_path, CHAT_WITH_TOOLS))
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    row = {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }
    reading = read_lesson(jsonl([row]), Form.JSONL, Wanted(), Recipe(), words)
    (example,) = reading.examples
    assert learned(words, example) == [
        '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call><|im_end|>'
    ]
    assert "Tools:" in reading.report["samples"][0]["prompt"]


def test_pieces_from_the_store_and_rows_of_a_hub_are_read_alike(chatty: FolderTokenizer) -> None:
    data = jsonl(ROWS).getvalue()
    pieces = [data[at : at + 7] for at in range(0, len(data), 7)]
    expected = read_lesson(jsonl(ROWS), Form.JSONL, Wanted(), Recipe(), chatty).report
    assert read_lesson(pieces, Form.JSONL, Wanted(), Recipe(), chatty).report == expected
    assert lesson_of(iter(enumerate(ROWS, start=1)), Wanted(), Recipe(), chatty).report == expected


def test_a_reading_that_nobody_wants_any_more_stops(chatty: FolderTokenizer) -> None:
    with pytest.raises(Stopped):
        read_lesson(jsonl(ROWS), Form.JSONL, Wanted(), Recipe(), chatty, stopped=lambda: True)


def test_a_fault_is_told_in_the_routes_own_words(chatty: FolderTokenizer) -> None:
    names = {"dataset_name": "training_file", "question_column": "blindbox.question_column"}
    for data, wanted, param in (
        (b'{"question": ', Wanted(), "training_file"),
        (b'{"a": "x"}', Wanted("q", "a"), "blindbox.question_column"),
    ):
        with pytest.raises(Refusal) as caught:
            read_lesson(io.BytesIO(data), Form.JSONL, wanted, Recipe(), chatty, names=names)
        assert (caught.value.status, caught.value.param) == (400, param)
