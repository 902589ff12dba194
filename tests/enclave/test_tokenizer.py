"""Tokenizers and chat templates without transformers: the same tokens, the same text, and no way out."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_app import tokenizer as module
from enclave_app.prompts import Template
from enclave_app.refusals import Refusal
from enclave_app.tokenizer import FolderTokenizer, UnusableTokenizer
from tests.kit.tokenizers import KINDS, save

DEMO = Path(__file__).resolve().parents[2] / ".cache" / "models" / "smollm2-135m-instruct"
TEXTS = (
    "",
    " ",
    "What is the name of the river?",
    "  two spaces, a tab\t and a line\n\n feed ",
    "é 水車 мельница 👩‍👩‍👧‍👦 e\u0301 \u202e \ufffd \x00 \x7f",
    "<s> </s> <unk> <0x41> ▁ ▁▁",
    "a" * 3000,
)


@pytest.fixture(scope="module", params=KINDS)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FolderTokenizer, Any]:
    """Ours, and what transformers reads from the same folder."""
    folder = tmp_path_factory.mktemp("words")
    theirs = save(folder, request.param, bos=True)
    return FolderTokenizer(folder), theirs


# --- the same tokens, the same text -------------------------------------------------------------------


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("text", TEXTS)
def test_the_tokens_are_those_of_transformers(
    text: str, special: bool, both: tuple[FolderTokenizer, Any]
) -> None:
    ours, theirs = both
    ids = ours(text, add_special_tokens=special)["input_ids"]
    assert ids == theirs(text, add_special_tokens=special)["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert [ours.text(each) for each in ids] == [theirs.decode([each]) for each in ids]
    assert ours.size == len(theirs)
    assert ours.ends == {theirs.eos_token_id}


@pytest.mark.skipif(not DEMO.is_dir(), reason="the demo's model is not here (make demo prepares it)")
@pytest.mark.parametrize("text", [*TEXTS, "<|im_start|>user\nhi<|im_end|>\n"])
def test_the_demo_s_tokens_are_those_of_transformers(text: str) -> None:
    ours, theirs = FolderTokenizer(DEMO), _demo()
    ids = ours(text, add_special_tokens=True)["input_ids"]
    assert ids == theirs(text)["input_ids"]
    messages = [{"role": "user", "content": text}]
    assert Template.CHAT.conversation(ours, messages) == theirs.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert _streamed(ours, [], ids) == ours.decode(ids)


@cache
def _demo() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(DEMO)


def test_a_tokenizer_as_older_versions_wrote_it_is_read(tmp_path: Path) -> None:
    save(tmp_path, "llama")
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_bytes())
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>"})
    )
    path.write_text(json.dumps({key: config[key] for key in config if key not in ("bos_token", "eos_token")}))
    assert FolderTokenizer(tmp_path).special == {"bos_token": "<s>", "eos_token": "</s>"}


def test_the_model_s_own_end_tokens_come_before_the_tokenizer_s(tmp_path: Path) -> None:
    save(tmp_path, "byte-level")
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    assert FolderTokenizer(tmp_path).ends == {7}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [8, 9]}')
    assert FolderTokenizer(tmp_path).ends == {8, 9}


def test_what_was_set_for_training_cuts_no_prompt(tmp_path: Path) -> None:
    save(tmp_path, "byte-level")
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_bytes())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(content))
    assert len(FolderTokenizer(tmp_path)("a b c d e f g h", add_special_tokens=True)["input_ids"]) > 4


@pytest.mark.parametrize("content", [None, "", "{}", '{"model": {"type": "BPE"}}', "\0" * 100, "[" * 100_000])
def test_a_folder_without_a_tokenizer_says_so(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UnusableTokenizer, match=r"tokenizer\.json"):
        FolderTokenizer(tmp_path)


# --- token by token -----------------------------------------------------------------------------------


def _streamed(words: FolderTokenizer, prompt: Sequence[int], ids: Sequence[int]) -> str:
    decode = words.decoder(prompt)
    return "".join(decode(token) or "" for token in ids)


def _but_for_a_cut_end(told: str, whole: str) -> bool:
    """At most three bytes at the end could have been the beginning of a character; they are not told."""
    rest = whole.removeprefix(told) if whole.startswith(told) else "something else"
    return len(rest) <= 3 and not rest.strip("\ufffd")


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60) | st.text("aé水👩‍👧 \n▁", max_size=60))
def test_text_token_by_token_is_the_text_at_once(text: str, both: tuple[FolderTokenizer, Any]) -> None:
    words, _ = both
    ids = words(text, add_special_tokens=False)["input_ids"]
    assert _but_for_a_cut_end(_streamed(words, [], ids), words.decode(ids))


@settings(max_examples=100, deadline=None)
@given(prompt=st.text(max_size=20), answer=st.text("ab é水👧\n", min_size=1, max_size=20), cut=st.integers(0))
def test_an_answer_is_what_the_whole_has_more_than_the_prompt(
    prompt: str, answer: str, cut: int, both: tuple[FolderTokenizer, Any]
) -> None:
    words, _ = both
    ids = words(prompt + answer, add_special_tokens=False)["input_ids"]
    at = cut % (len(ids) + 1)
    before, whole = words.decode(ids[:at]), words.decode(ids)
    if before.endswith("\ufffd"):
        return  # the prompt itself ends within a character: no text does
    assert _but_for_a_cut_end(_streamed(words, ids[:at], ids[at:]), whole[len(before) :])


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 300), max_size=80))
def test_any_tokens_at_all_give_text_in_bounded_steps(
    ids: list[int], both: tuple[FolderTokenizer, Any]
) -> None:
    words, _ = both
    decode = words.decoder([])
    told = [decode(token) for token in ids]
    assert all(piece is None or piece for piece in told)
    assert len(vars(decode)["_ids"]) <= 64


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=60))
def test_byte_level_tokens_of_any_bytes_give_the_text_at_once(
    data: bytes, byte_level: FolderTokenizer
) -> None:
    ids = _bytes(byte_level, data)
    assert _but_for_a_cut_end(_streamed(byte_level, [], ids), data.decode("utf-8", "replace"))


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> FolderTokenizer:
    folder = tmp_path_factory.mktemp("bytes")
    save(folder, "byte-level")
    return FolderTokenizer(folder)


def _bytes(words: FolderTokenizer, data: bytes) -> list[int]:
    """Each byte as the one token that stands for it."""
    # GPT-2's bytes_to_unicode: printable ones stand for themselves, the others follow from U+0100 on.
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    names = {byte: chr(byte) for byte in plain} | {byte: chr(256 + at) for at, byte in enumerate(others)}
    vocabulary = words._words.get_vocab()
    return [vocabulary[names[byte]] for byte in data]


def test_a_character_comes_when_it_is_whole_and_a_cut_one_never(byte_level: FolderTokenizer) -> None:
    decode = byte_level.decoder([])
    assert [decode(token) for token in _bytes(byte_level, "a👧".encode())] == ["a", None, None, None, "👧"]
    assert [decode(token) for token in _bytes(byte_level, "👧".encode()[:3])] == [None, None, None]


def test_bytes_that_are_no_text_do_not_hold_back_what_follows(byte_level: FolderTokenizer) -> None:
    decode = byte_level.decoder([])
    told = [decode(token) for token in _bytes(byte_level, b"\xff" * 1000)]
    assert "".join(piece or "" for piece in told) == "\ufffd" * 999


# --- chat templates -------------------------------------------------------------------------------------

TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "Be <brief> & 'kind'."},
    {"role": "user", "content": "Où? \n"},
    {
        "role": "assistant",
        "content": "Là.",
        "tool_calls": [{"function": {"name": "f", "arguments": {"é": 1}}}],
    },
    {"role": "user", "content": "Merci {{ 7 * 7 }} {% raw %}"},
]
TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": "f", "description": "é <b>"}}]
TEMPLATES = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "special tokens": "{{ bos_token }}{% for m in messages %}{{ m['content'] | trim }}{{ eos_token }}"
    "{% endfor %}",
    "tools": "{%- if tools %}\n    {{- tools | tojson }}{{ tools | tojson(indent=2) }}\n{%- endif %}\n"
    "{%- for m in messages %}{% for c in m.tool_calls or [] %}"
    "{{ c.function | tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=True) }}"
    "{% endfor %}{% endfor %}",
    "loop controls": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
    "{{ loop.index }}{{ m.content }}{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% set x = 'out' %}"
    "{% generation %}{% set x = 'in' %}{{ m.content }}{% endgeneration %}\n{{ x }}{% endif %}{% endfor %}",
    "namespaces and macros": "{% macro show(m) %}[{{ m.role }}] {{ m.content }}{% endmacro %}"
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ show(m) }}{% endfor %}"
    "{{ ns.n }}",
    "undefined": "{% if messages[0].nothing is defined %}a{% else %}b{% endif %}{{ nothing }}"
    "{{ documents is none }}",
    "whitespace": "  {% if true %}\n  {{ messages[0].content }}\n  {% endif %}\n  end\n",
    "constant": "{% for m in messages %}{{ 'ß' }}{% endfor %}{{ messages | length }}{{ messages[1:] }}",
}


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_a_chat_template_renders_as_in_transformers(
    template: str, tools: list[dict[str, Any]] | None, tmp_path: Path
) -> None:
    theirs = save(tmp_path, "byte-level", chat_template=template)
    ours = FolderTokenizer(tmp_path)
    for generation in (True, False):
        assert ours.apply_chat_template(
            TURNS, tokenize=False, add_generation_prompt=generation, tools=tools
        ) == theirs.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=generation, tools=tools)
    assert Template.CHAT.conversation(ours, TURNS, tools) == theirs.apply_chat_template(
        TURNS, add_generation_prompt=True, tools=tools, return_dict=False
    )


def test_a_template_may_ask_for_the_day(tmp_path: Path) -> None:
    words = _with(tmp_path, "{{ strftime_now('%Y-%m-%d') }}")
    days = {datetime.now(UTC).strftime("%Y-%m-%d")}
    found = words.apply_chat_template([], add_generation_prompt=True)
    days.add(datetime.now(UTC).strftime("%Y-%m-%d"))
    assert found in days


def test_a_template_s_own_refusal_is_told(tmp_path: Path) -> None:
    words = _with(
        tmp_path,
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}",
    )
    with pytest.raises(Refusal, match="System role not supported") as caught:
        words.apply_chat_template(TURNS, add_generation_prompt=True)
    assert caught.value.param == "messages"


def test_the_template_for_tools_or_the_default_of_several(tmp_path: Path) -> None:
    save(tmp_path, "byte-level")
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_bytes())
    config["chat_template"] = [{"name": "default", "template": "D"}, {"name": "other", "template": "O"}]
    path.write_text(json.dumps(config))
    assert FolderTokenizer(tmp_path).chat_template == "D"


def _with(folder: Path, template: str) -> FolderTokenizer:
    save(folder, "byte-level", chat_template=template)
    return FolderTokenizer(folder)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['__builtins__'] }}",
        "{{ strftime_now.__globals__ }}",
        "{{ (messages | attr('__class__')).__name__ }}",
        "{{ '{0.__class__.__mro__}'.format(messages) | length + nothing.x }}",
        "{{ messages.append({'role': 'user'}) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ range(10000000) | list | length }}",
        "{{ 1 / 0 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_poisoned_template_gets_out_of_nothing(template: str, tmp_path: Path) -> None:
    """A4: what a model's folder brings cannot reach the process it is rendered in."""
    turns = [dict(turn) for turn in TURNS]
    words = _with(tmp_path, template)
    try:
        told = words.apply_chat_template(turns, add_generation_prompt=True)
    except Refusal as refusal:
        told = str(refusal).removeprefix("This model's chat template does not take these messages.")
    assert told == ""  # as jinja2 writes what is not there
    assert turns == TURNS


@pytest.mark.parametrize("somewhere", [True, False])
def test_a_template_without_an_end_is_ended(
    somewhere: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A4: on whatever thread it is rendered, and the thread goes on."""
    monkeypatch.setattr(module, "SECONDS", 0.3)
    loops = "{% for a in range(99999) %}" * 4 + "{% set x = a %}" + "{% endfor %}" * 4
    words = _with(tmp_path, "{% if messages | length > 1 %}" + loops + "{% endif %}ok")
    told: list[object] = []

    def ask() -> None:
        for turns in (TURNS, TURNS[:1]):
            try:
                told.append(words.apply_chat_template(turns, add_generation_prompt=True))
            except Refusal as refusal:
                told.append(refusal)

    if somewhere:
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(60)
    else:
        ask()
    assert isinstance(told[0], Refusal)
    assert told[1] == "ok"


def test_a_template_that_writes_and_writes_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A4: the prompt it makes is bounded before it is whole."""
    monkeypatch.setattr(module, "LONGEST", 1 << 20)
    words = _with(
        tmp_path,
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ 'x' * 999 }}{% endfor %}{% endfor %}",
    )
    with pytest.raises(Refusal):
        words.apply_chat_template(TURNS, add_generation_prompt=True)


@pytest.mark.parametrize("template", ["{% if %}", "{{ 'a }}", "{% generation %}", "{{ 1 }" * 20_000])
def test_a_template_that_is_none_is_told_at_the_start(template: str, tmp_path: Path) -> None:
    save(tmp_path, "byte-level")
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(UnusableTokenizer, match="chat template"):
        FolderTokenizer(tmp_path)


# --- many at once, and large ------------------------------------------------------------------------


def test_many_threads_get_what_one_gets(both: tuple[FolderTokenizer, Any]) -> None:
    words, _ = both
    texts = [f"The river {at} is called Wend, 水車 {at * at}." * 20 for at in range(8)]
    wanted = [words(text, add_special_tokens=True)["input_ids"] for text in texts]
    found: dict[int, list[bool]] = {}

    def ask(number: int) -> None:
        found[number] = [
            words(texts[at], add_special_tokens=True)["input_ids"] == wanted[at]
            and _streamed(words, [], wanted[at]) == words.decode(wanted[at])
            for at in range(8)
        ]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(all(found[number]) for number in range(8))


@pytest.mark.parametrize("piece", ["The river is called Wend. 👧\n", "a"])
def test_a_text_of_a_mebibyte_takes_seconds_at_most(piece: str, byte_level: FolderTokenizer) -> None:
    text = (piece * (1 << 20))[: (1 << 20) // len(piece.encode()) * len(piece)]
    begun = time.monotonic()
    ids = byte_level(text, add_special_tokens=True)["input_ids"]
    assert byte_level.decode(ids) == text
    assert time.monotonic() - begun < 60  # a quadratic one would take hours


def test_other_threads_run_while_a_long_text_is_read(both: tuple[FolderTokenizer, Any]) -> None:
    """S-24: or one caller's long prompt would stop everybody's streams for as long as it takes."""
    ours, _ = both
    text = "".join(random.Random(1).choices("abcdefghij", k=1 << 19))
    reading = threading.Thread(target=ours, args=(text,), kwargs={"add_special_tokens": False})
    reading.start()
    turns = 0
    while reading.is_alive():
        time.sleep(0.001)
        turns += 1
    assert turns > 5
