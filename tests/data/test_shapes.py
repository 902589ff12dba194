"""Which columns are meant, what a row becomes, and what the report tells of it."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blindbox_data import (
    Conversation,
    DataError,
    Fault,
    Form,
    Lengths,
    Message,
    Pair,
    Selection,
    Text,
    Wanted,
    open_rows,
    select,
)
from blindbox_data.oddities import oddities

ASK, SAY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def read(*rows: Any, **wanted: Any) -> Selection:
    wish = Wanted(**wanted)
    data = "\n".join(json.dumps(row) for row in rows).encode()
    return select(open_rows(io.BytesIO(data), Form.JSONL, wish), wish)


def chat(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), **more}


@pytest.mark.parametrize(
    ("row", "kind", "example"),
    [
        ({"question": "q", "answer": "a", "x": 1}, "question", Pair("q", "a")),
        ({"Question": "q", "Answer": "a", "Context": "c"}, "question", Pair("q", "a")),
        ({"prompt": "q", "completion": "a"}, "prompt", Pair("q", "a")),
        ({"instruction": "q", "output": "a"}, "alpaca", Pair("q", "a")),
        ({"instruction": "q", "input": "", "output": "a"}, "alpaca", Pair("q", "a")),
        ({"instruction": "q", "input": None, "output": "a"}, "alpaca", Pair("q", "a")),
        ({"instruction": "q", "input": "i", "output": "a"}, "alpaca", Pair("q", "a", "i")),
        ({"text": "t"}, "text", Text("t")),
        (chat(ASK, SAY), "messages", Conversation((Message("user", "q"), Message("assistant", "a", True)))),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            "sharegpt",
            Conversation((Message("user", "q"), Message("assistant", "a", True))),
        ),
    ],
)
def test_where_no_column_is_named_the_first_row_tells_its_shape(
    row: dict[str, Any], kind: str, example: Any
) -> None:
    selection = read(row)
    assert selection.shape.kind == kind
    assert selection.examples == (example,)


def test_columns_that_are_named_are_taken_whatever_others_there_are() -> None:
    row = {"instruction": "i", "output": "o", "question": "q", "answer": "a"}
    assert read(row).shape.kind == "alpaca"
    assert read(row, question_column="question", answer_column="answer").examples == (Pair("q", "a"),)
    assert read(row, question_column="instruction", answer_column="output").shape.kind == "question"
    assert read(row, question_column="output", answer_column="output").examples == (Text("o"),)


@pytest.mark.parametrize(
    ("row", "wanted", "param", "words"),
    [
        ({"a": "x", "b": "y"}, {}, "question_column", 'The columns are: "a", "b".'),
        ({"prompt": "x", "chosen": "y", "rejected": "z"}, {}, "question_column", "preferences"),
        ({"a": "x"}, {"question_column": "a"}, "answer_column", "Name both"),
        ({"a": "x"}, {"answer_column": "a"}, "question_column", "Name both"),
        ({"colour": "x"}, {"question_column": "color", "answer_column": "b"}, "question_column", "colour"),
        ({}, {}, "question_column", "The first row has none"),
    ],
)
def test_columns_that_do_not_say_what_they_are_are_listed(
    row: dict[str, Any], wanted: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(DataError) as caught:
        read(row, **wanted)
    assert words in caught.value.message
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("columns", "hint"),
    [
        (["questoin", "anwser"], 'Did you mean "question" by "questoin" and "answer" by "anwser"?'),
        (["QUESTION ", "Anwser"], 'Did you mean "answer" by "Anwser"?'),
        (["Prompts", "Completion", "id"], 'Did you mean "prompt" by "Prompts"?'),
        (["id", "instructions", "outputs"], 'Did you mean "instruction" by "instructions" and "output" by "'),
        (["massages"], 'Did you mean "messages" by "massages"?'),
        (["conversation", "id"], 'Did you mean "conversations" by "conversation"?'),
        (["Texts"], 'Did you mean "text" by "Texts"?'),
        (["qestion", "reply"], 'Did you mean "question" by "qestion"? Then "answer" is missing.'),
        (["Prompt", "reply"], 'With "Prompt", "completion" is missing.'),
    ],
)
def test_columns_that_are_nearly_right_are_told_what_they_may_have_been(
    columns: list[str], hint: str
) -> None:
    with pytest.raises(DataError) as caught:
        read(dict.fromkeys(columns, "canary"))
    assert hint in caught.value.message
    assert "name them as one of the known shapes" in caught.value.message
    assert "canary" not in caught.value.message
    assert (caught.value.code, caught.value.param) == ("missing_column", "question_column")


@pytest.mark.parametrize("columns", [["context", "reply"], ["a", "b"], ["title", "body"], ["x" * 5000], [""]])
def test_columns_that_are_like_nothing_known_are_given_no_hint(columns: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        read(dict.fromkeys(columns, "x"))
    assert "Did you mean" not in caught.value.message
    assert "is missing" not in caught.value.message


def test_blanks_and_capitals_around_a_known_name_are_no_slip() -> None:
    assert read({"Question ": "q", " ANSWER": "a"}).examples == (Pair("q", "a"),)


def test_a_single_row_is_told_of_in_the_singular() -> None:
    (only,) = read({"question": "q", "answer": "a"}).report.warnings
    assert only.startswith("Only 1 row is used: a model learns its wording by heart")
    two = {"question": "q", "answer": "a"}, {"question": "r", "answer": "a"}
    assert "Only 2 rows are used: a model learns their wording" in read(*two).report.warnings[0]
    again = read(two[0], two[0], two[1]).report.warnings[1]
    assert again.startswith("1 row (row 2) is there again")
    assert again.endswith("(dedup leaves it out).")
    null = {"question": None, "answer": "a"}
    for rows, words in (
        ((null,), "The only row cannot be used: it is null."),
        ((null, null), "No row of 2 can be used: 2 are null (rows 1, 2)."),
        ((*two, null), "Mend it, or send"),
        ((*two, null, null), "Mend them, or send"),
    ):
        with pytest.raises(DataError) as caught:
            read(*rows)
        assert words in caught.value.message


def test_a_column_whose_name_cannot_be_printed_is_told_all_the_same() -> None:
    with pytest.raises(DataError) as caught:
        read({"a\x1b[2Jb\u202ec": "x"})
    assert '"a�[2Jb�c"' in caught.value.message


def test_developer_parts_and_weights_are_read_as_openai_writes_them() -> None:
    selection = read(
        chat(
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
            SAY | {"weight": 0},
            ASK,
            SAY | {"weight": 1},
            {"role": "user", "content": "nobody answers"},
        )
    )
    (talk,) = selection.examples
    assert isinstance(talk, Conversation)
    assert [(each.role, each.learned) for each in talk.messages] == [
        ("system", False),
        ("user", False),
        ("assistant", False),
        ("user", False),
        ("assistant", True),
    ]
    assert talk.messages[1].content == "one\ntwo"


def test_tools_and_their_calls_are_kept() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    row = chat(
        ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": ""},
        SAY,
        tools=[tool],
    )
    (talk,) = read(row).examples
    assert isinstance(talk, Conversation)
    assert talk.tools == (tool,)
    assert talk.messages[1].told()["tool_calls"] == [
        {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    ]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"messages": "no list: canary"}, Fault.NO_MESSAGES),
        ({"messages": []}, Fault.NO_MESSAGES),
        ({"messages": None}, Fault.NO_MESSAGES),
        ({"other": 1}, Fault.NO_MESSAGES),
        (chat("canary"), Fault.NO_OBJECT),
        (chat({"content": "canary"}), Fault.NO_ROLE),
        (chat({"role": "user"}), Fault.NO_ROLE),
        (chat(ASK, SAY | {"canary": 1}), Fault.UNKNOWN_KEY),
        (chat({"role": "canary", "content": "x"}), Fault.UNKNOWN_ROLE),
        (chat({"role": 1, "content": "x"}), Fault.UNKNOWN_ROLE),
        (chat(ASK, {"role": "assistant", "content": ""}), Fault.NO_CONTENT),
        (chat(ASK, {"role": "assistant", "content": None}), Fault.NO_CONTENT),
        (
            chat(ASK, {"role": "assistant", "content": [{"type": "image_url", "image_url": {}}]}),
            Fault.NO_CONTENT,
        ),
        (chat(ASK), Fault.NO_ANSWER),
        (chat(ASK, SAY | {"weight": 0}), Fault.NO_ANSWER),
        (chat(ASK, SAY | {"weight": 0.5}), Fault.BAD_WEIGHT),
        (chat(ASK, SAY | {"weight": True}), Fault.BAD_WEIGHT),
        (
            chat(ASK, SAY | {"tool_calls": [{"function": {"name": "f", "arguments": "{canary"}}]}),
            Fault.BAD_CALLS,
        ),
        (chat(ASK, SAY, tools=["canary"]), Fault.BAD_CALLS),
        (chat(ASK, SAY, tools={"canary": 1}), Fault.BAD_CALLS),
        (chat(ASK, SAY | {"content": "\ud800"}), Fault.UNICODE),
        (chat(ASK, SAY | {"content": "x" * (1 << 20)}), Fault.LONG),
        (chat(*[ASK, SAY] * 600), Fault.MANY_MESSAGES),
    ],
)
def test_a_conversation_that_is_none_is_named_by_its_fault(row: Any, fault: Fault) -> None:
    """S-20: the row by its number, and nothing of it."""
    good = chat(ASK, SAY)
    with pytest.raises(DataError) as caught:
        read(good, row, good)
    assert caught.value.code == fault.code
    assert f"1 is {fault.words} (row 2)" in caught.value.message
    assert "canary" not in caught.value.message
    assert read(good, row, good, on_invalid="skip").rows == (1, 3)


def test_a_chat_in_csv_and_parquet_is_the_same_chat() -> None:
    expected = read(chat(ASK, SAY)).examples
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([chat(ASK, SAY), chat(ASK | {"name": "n"}, SAY)]), sink)
    wanted = Wanted()
    found = select(open_rows(io.BytesIO(sink.getvalue()), Form.PARQUET, wanted), wanted)
    assert found.examples[:1] == expected
    csv = 'messages\n"' + json.dumps([ASK, SAY]).replace('"', '""') + '"\n'
    assert select(open_rows(io.BytesIO(csv.encode()), Form.CSV), wanted).examples == expected


# --- the report -------------------------------------------------------------------------------


def test_duplicates_are_told_and_left_out_when_asked_to() -> None:
    rows = [{"question": "q", "answer": str(n % 2)} for n in range(6)]
    report = read(*rows).report
    assert (report.rows_used, report.duplicates.numbers) == (6, [3, 4, 5, 6])
    assert "4 rows (rows 3, 4, 5, 6) are there again" in " ".join(report.warnings)
    report = read(*rows, dedup=True).report
    assert (report.rows_used, report.dropped["duplicate"].count, report.dropped_rows) == (2, 4, [3, 4, 5, 6])
    assert read(chat(ASK, SAY), chat(ASK, SAY), dedup=True).rows == (1,)


def test_the_report_counts_lengths_and_names_the_longest_rows() -> None:
    report = read(*[{"text": "x" * size} for size in (1, 3, 3, 8, 100)]).report.told()
    assert report["characters"] == {
        "least": 1,
        "median": 3,
        "p95": 100,
        "most": 100,
        "histogram": [
            {"from": 1, "to": 1, "rows": 1},
            {"from": 2, "to": 3, "rows": 2},
            {"from": 4, "to": 7, "rows": 0},
            {"from": 8, "to": 15, "rows": 1},
            {"from": 16, "to": 31, "rows": 0},
            {"from": 32, "to": 63, "rows": 0},
            {"from": 64, "to": 127, "rows": 1},
        ],
    }
    assert report["longest"][0] == {"row": 5, "characters": 100}
    assert sum(bucket[2] for bucket in Lengths.of(range(1000)).histogram) == 1000
    assert Lengths.of([]).told()["histogram"] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("café ü 水車 Größe", []),
        ("CAFÉ” MAÇÔ” Ã", []),
        ("été".encode().decode("cp1252"), ["mojibake"]),
        ("naïve – “quoted”".encode().decode("cp1252", "replace"), ["mojibake", "replacement"]),
        ("мельница".encode().decode("latin-1"), ["mojibake", "control"]),
        ("a\ufffdb", ["replacement"]),
        ("a\x00b", ["control"]),
        ("a\tb\r\nc", []),
        ("ü\x1b[2J", ["control"]),
        ("abc\u202ecba", ["direction"]),
        ("a\u200bb", ["invisible"]),
        ("pаypal", ["mixed_scripts"]),  # the second letter is Cyrillic
        ("слово word", []),
    ],
)
def test_texts_that_are_not_what_they_seem_are_noticed(text: str, found: list[str]) -> None:
    assert oddities(text) == found
    told = read({"text": "fine"}, {"text": text}).report.told()
    assert told["problems"] == {name: {"count": 1, "rows": [2]} for name in found}


def test_the_scripts_a_data_set_is_written_in_are_told_by_share() -> None:
    report = read({"question": "weir", "answer": "мель"}, {"question": "水車水車", "answer": "où"}).report
    assert report.scripts == {"Latin": 0.429, "Cyrillic": 0.286, "Han": 0.286}


def test_the_report_holds_no_text_of_the_rows() -> None:
    """S-20"""
    rows = [{"question": f"canary {n}", "answer": "canary\x00"} for n in range(3)] + [{"question": None}]
    told = read(*rows, *rows, on_invalid="skip").report.told()
    assert "canary" not in json.dumps(told)
    assert told["rows_read"] == 8
