"""Tokens become text: whole characters, no stop string, and each token with the text it begins in."""

from __future__ import annotations

import random
import time

import pytest

from enclave_app.engines import Token
from enclave_app.engines.echo import ByteTokenizer
from enclave_app.engines.text import Writer


def written(pieces: list[str], stops: tuple[str, ...]) -> tuple[list[str], list[list[int]], bool]:
    """What each of these tokens makes certain, and what is left at the end; a token is its index."""
    writer = Writer(lambda index: pieces[index] or None, stops)
    texts, tokens = [], []
    for index in range(len(pieces)):
        text, told = writer.write(Token(index))
        texts.append(text)
        tokens.append([token.id for token in told])
    rest = writer.rest()
    return [*texts, rest.text], [*tokens, [token.id for token in rest.tokens]], writer.stopped


def test_without_stop_strings_everything_is_shown_at_once() -> None:
    assert written(["Hel", "lo", "!"], ()) == (["Hel", "lo", "!", ""], [[0], [1], [2], []], False)


def test_a_stop_string_is_never_shown_also_when_it_spans_tokens() -> None:
    texts, tokens, stopped = written(["Hello ", "Us", "er", ":", " more"], ("User:",))
    assert (texts, stopped) == (["Hello ", "", "", "", "", ""], True)
    assert tokens == [[0], [], [], [], [], []]


def test_a_token_that_begins_before_the_stop_string_is_told_and_its_own_are_not() -> None:
    texts, tokens, stopped = written(["a", "b<", "end>", "c"], ("<end>",))
    assert "".join(texts) == "ab"
    assert [each for some in tokens for each in some] == [0, 1]
    assert stopped


def test_what_looked_like_a_stop_string_is_shown_once_it_is_known_not_to_be() -> None:
    texts, tokens, stopped = written(["x<", "en", "d!"], ("<end>",))
    assert (texts, stopped) == (["x", "", "<end!", ""], False)
    assert tokens == [[0], [], [1, 2], []]


def test_what_is_held_at_the_end_is_shown() -> None:
    texts, tokens, stopped = written(["x<", "en"], ("<end>",))
    assert (texts, stopped) == (["x", "", "<en"], False)
    assert tokens == [[0], [], [1]]


def test_the_stop_string_that_is_complete_first_counts() -> None:
    assert written(["abcd"], ("bcd", "abcde", "c"))[0] == ["ab", ""]


def test_an_empty_stop_string_stops_nothing() -> None:
    assert written(["ab"], ("",)) == (["ab", ""], [[0], []], False)


def test_a_token_of_half_a_character_is_told_with_the_whole_one() -> None:
    words = ByteTokenizer()
    writer = Writer(words.decoder(()))
    told = [writer.write(Token(byte)) for byte in "é!".encode()]
    assert [text for text, _ in told] == ["", "é", "!"]
    assert [len(tokens) for _, tokens in told] == [0, 2, 1]


@pytest.mark.parametrize("seed", range(40))
def test_the_text_is_that_before_the_first_complete_stop_string_however_it_is_cut(seed: int) -> None:
    dice = random.Random(seed)
    text = "".join(dice.choices("ab", k=60))
    stops = tuple("".join(dice.choices("ab", k=dice.randint(3, 9))) for _ in range(dice.randint(1, 5)))
    ends = [at + len(stop) for stop in stops if (at := text.find(stop)) >= 0]
    expected = text
    if ends:
        before = text[: min(ends)]
        expected = before[: len(before) - max(len(stop) for stop in stops if before.endswith(stop))]
    pieces, at = [], 0
    while at < len(text):
        size = dice.randint(1, 5)
        pieces.append(text[at : at + size])
        at += size
    texts, tokens, stopped = written(pieces, stops)
    assert "".join(texts) == expected
    assert stopped == bool(ends)
    flat = [token for some in tokens for token in some]
    assert flat == list(range(len(flat)))
    # Exactly the tokens that begin in what is shown.
    starts = [sum(map(len, pieces[:index])) for index in range(len(pieces))]
    assert len(flat) == sum(start < len(expected) for start in starts)


def test_many_long_stop_strings_that_nearly_match_cost_a_step_a_character() -> None:
    """S-24: a list of stop strings cannot keep the server busy."""
    stops = tuple("a" * length + "b" for length in range(200, 256))
    writer = Writer(lambda _: "a" * 10, stops)
    began = time.process_time()
    for _ in range(2000):
        writer.write(Token(0))
    # Looking for each string's beginnings anew would take minutes.
    assert time.process_time() - began < 40
