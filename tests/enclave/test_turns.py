"""Whose turn it is, without an engine: what the line does is decided by numbers alone. How fast it moves."""

from __future__ import annotations

import random
from itertools import count

import pytest

from enclave_app.engines import Sampling, Token, Update, Work
from enclave_app.engines.answer import Answer
from enclave_app.engines.pace import Pace
from enclave_app.engines.text import Writer
from enclave_app.engines.turns import Bounds, Turns
from enclave_app.refusals import Busy, RateLimited, Refusal

_keys = count()


def line(**bounds: int) -> Turns:
    return Turns(Bounds(**bounds), Pace())


def one(owner: str, prompt: int = 10, most: int = 10, **sampling: int) -> Answer:
    work = Work((1,) * prompt, Sampling(max_new_tokens=most, **sampling), owner=owner)  # type: ignore[arg-type]
    return Answer(next(_keys), work, Writer(lambda _: "x"), lambda _: None)


def started(turns: Turns, room: int = 10_000, most: int = 100) -> list[Answer]:
    """Whoever may be started now, in order."""
    found = []
    while (answer := turns.next(room, most)) is not None:
        answer.started = 0.0
        found.append(answer)
    return found


def step(answer: Answer, tokens: int) -> None:
    """The engine made so many tokens of it."""
    answer.hear(Update(answer.key, (Token(1),) * tokens))


def served(turns: Turns, answer: Answer, tokens: int) -> None:
    """It is put in, started, continued and over, with nobody else in the way."""
    turns.enter(answer)
    (begun,) = started(turns)
    assert begun is answer
    step(begun, tokens)
    turns.leave(begun)


def owners(answers: list[Answer]) -> str:
    return "".join(answer.owner for answer in answers)


def test_tenants_take_turns_however_many_prompts_each_has() -> None:
    """S-10: a flood of one tenant is not in front of the others."""
    turns = line()
    for _ in range(5):
        turns.enter(one("a"))
    for owner in "bc":
        turns.enter(one(owner))
    assert owners(started(turns)) == "abcaaaa"


def test_turns_are_of_tokens_and_not_of_requests() -> None:
    turns = line()
    for _ in range(3):
        turns.enter(one("a", prompt=20, most=20))
    for _ in range(6):
        turns.enter(one("b", prompt=5, most=15))
    assert owners(started(turns)) == "abbabbabb"


def test_what_was_not_used_is_handed_back_when_it_is_known() -> None:
    turns = line()
    turns.enter(one("a", most=1000))
    turns.enter(one("b", most=100))
    first, second = started(turns)
    turns.enter(one("a"))
    turns.enter(one("b"))
    step(first, 1)
    step(second, 50)
    turns.leave(first)  # a used 11, of the 1010 that it was promised
    assert owners(started(turns)) == "ab"


def test_whoever_comes_new_has_no_turns_saved_up() -> None:
    turns = line()
    turns.enter(one("a", most=1000))
    (running,) = started(turns)
    step(running, 500)  # a was given 510, and b two times 20 more than that
    served(turns, one("b"), 10)
    served(turns, one("b"), 10)
    for owner in "bbcccc":
        turns.enter(one(owner))
    # c begins where a is, not at nothing: it comes twice before b, and then by turns.
    assert owners(started(turns)) == "ccbcbc"


def test_whoever_comes_back_is_owed_nothing_for_the_time_away_and_owes_what_it_was_given() -> None:
    turns = line()
    turns.enter(one("b", most=1000))  # stays all the time, and is given little
    started(turns)
    served(turns, one("a"), 10)
    turns.enter(one("a", most=5))
    turns.enter(one("c"))
    # c comes new and begins with the least that anybody was given; a has had its share already.
    assert owners(started(turns)) == "ca"


def test_nobody_owes_anything_once_everyone_has_gone() -> None:
    turns = line()
    for _ in range(10):
        served(turns, one("a"), 10)
    assert not turns.asked
    turns.enter(one("a"))
    turns.enter(one("b"))
    assert owners(started(turns)) == "ab"


def test_no_more_than_the_room_and_the_places_is_given_out() -> None:
    turns = line()
    for _ in range(10):
        turns.enter(one("a"))
    assert len(started(turns, room=59)) == 2
    assert len(started(turns, room=200, most=5)) == 3
    assert (turns.reserved, turns.width, turns.waiting) == (100, 5, 5)


def test_a_beam_takes_a_place_and_room_of_its_own() -> None:
    turns = line()
    turns.enter(one("a", num_beams=4))
    turns.enter(one("b", num_beams=2))
    assert owners(started(turns, most=5)) == "a"
    assert (turns.reserved, turns.width) == (50, 4)


def test_small_ones_pass_a_large_one_only_if_they_end_before_it_could_begin() -> None:
    """S-10: a huge request is neither starved, nor does it block the others."""
    turns = line()
    turns.enter(one("a", prompt=50, most=50))
    (long,) = started(turns, room=150)
    step(long, 30)  # 20 more steps at most
    turns.enter(one("b", prompt=60, most=60))
    turns.enter(one("c", prompt=10, most=21))
    turns.enter(one("d", prompt=10, most=20))
    turns.enter(one("e", prompt=15, most=10))
    assert (
        owners(started(turns, room=150)) == "d"
    )  # c would take a step too long; for e there is no room left
    turns.leave(long)
    assert owners(started(turns, room=150)) == "b"


def test_a_small_one_of_the_same_tenant_may_pass_its_own_large_one() -> None:
    turns = line()
    turns.enter(one("a", prompt=50, most=50))
    started(turns, room=150)
    large, small = one("b", prompt=60, most=60), one("b", prompt=5, most=5)
    turns.enter(large)
    turns.enter(small)
    assert started(turns, room=150) == [small]


def test_a_large_one_begins_though_small_ones_never_stop_coming() -> None:
    """S-10: starved by nobody, at the latest when what ran before it came has ended."""
    turns, dice = line(waiting=10_000, waiting_each=10_000, tokens_each=1 << 30), random.Random(3)
    large = one("large", prompt=50, most=45)
    running: list[Answer] = []
    turn = 0
    while turn < 400 and large not in running:
        turn += 1
        for _ in range(3):
            turns.enter(one(dice.choice("abc"), prompt=5, most=dice.randint(1, 30)))
        if turn == 100:
            turns.enter(large)
        running += started(turns, room=100)
        for answer in running[:]:
            step(answer, 1)
            if not answer.remaining:
                running.remove(answer)
                turns.leave(answer)
    assert large in running
    assert turn <= 100 + 32


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_and_goes_the_sums_are_right_and_nobody_is_left(seed: int) -> None:
    dice, turns = random.Random(seed), line(waiting=30, waiting_each=10, tokens_each=2000)
    alive: list[Answer] = []
    for _ in range(600):
        match dice.randint(0, 3):
            case 0 | 1:
                answer = one(dice.choice("abcdefgh"), dice.randint(1, 80), dice.randint(1, 80))
                try:
                    turns.enter(answer)
                    alive.append(answer)
                except (Busy, RateLimited):
                    pass
            case 2 if alive:
                leaving = alive.pop(dice.randrange(len(alive)))
                assert turns.leave(leaving) == (leaving.started is not None)
                assert not turns.leave(leaving)
            case _:
                started(turns, room=400, most=6)
        runs = [answer for answer in alive if answer.started is not None]
        assert sum(answer.reserved for answer in runs) == turns.reserved <= 400
        assert len(runs) == turns.width == len(turns.running) <= 6
        assert turns.waiting == len(alive) - len(runs) <= 30
        assert set(turns.all()) == set(alive)
    for answer in alive:
        turns.leave(answer)
    assert (turns.reserved, turns.width, turns.waiting, turns.asked) == (0, 0, 0, False)


def test_each_limit_refuses_by_its_own_type_and_takes_nothing() -> None:
    """S-24: limits of one tenant, and of all."""
    turns = line(waiting=3, waiting_each=2, tokens_each=100)
    with pytest.raises(Refusal) as alone:
        turns.enter(one("a", prompt=60, most=60))
    assert (alone.value.status, alone.value.code) == (400, "token_budget")
    turns.enter(one("a", prompt=30, most=30))
    with pytest.raises(RateLimited) as budget:
        turns.enter(one("a", prompt=30, most=30))
    assert budget.value.code == "token_budget"
    turns.enter(one("a"))
    with pytest.raises(RateLimited) as each:
        turns.enter(one("a", prompt=1, most=1))
    assert each.value.code == "too_many_waiting"
    turns.enter(one("b"))
    with pytest.raises(Busy) as everyone:
        turns.enter(one("c"))
    assert everyone.value.code == "overloaded"
    assert turns.waiting == 3
    assert {answer.owner for answer in turns.all()} == {"a", "b"}


# How fast


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_wait_is_told_from_how_fast_answers_ended() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.begin()
    for _ in range(10):
        clock.now += 0.5
        pace.ended(more=True)
    assert [pace.until(number) for number in (1, 4, 20, 1000)] == [1, 2, 10, 60]
    clock.now += 0.4
    assert pace.until(3) == 2  # a part of it has passed already


def test_time_without_work_does_not_count() -> None:
    clock = Clock()
    pace = Pace(clock)
    for _ in range(5):
        clock.now += 3600
        pace.begin()
        clock.now += 2
        pace.ended(more=False)
    assert pace.until(3) == 6


def test_a_pace_that_changed_is_soon_the_pace_that_is_told() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.begin()
    for seconds in [10.0] * 100 + [0.1] * 64:
        clock.now += seconds
        pace.ended(more=True)
    assert pace.until(20) == 2


def test_before_anything_has_ended_it_is_told_how_long_it_has_been_going_on() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.until(5) == 1
    pace.begin()
    clock.now += 7
    assert pace.until(5) == 7
