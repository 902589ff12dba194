"""
Who is served when: room, turns, limits, what is told of the load, and what is left behind. The engines are
echo engines, held to so many steps a second where time matters.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest

from enclave_app.engines import Sampling, Work
from enclave_app.engines.desk import Answer, Desk
from enclave_app.engines.echo import ByteTokenizer, EchoEngine
from enclave_app.engines.worker import UnusableEngine, Worker, in_process, in_thread
from enclave_app.refusals import Busy, Failed, NotFound, RateLimited, Refusal

T = TypeVar("T")
NAME = "echo"


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run it, but not for ever: what hangs is a fault."""

    async def bounded() -> T:
        async with asyncio.timeout(240):
            return await work

    return asyncio.run(bounded())


@asynccontextmanager
async def opened(
    *,
    rate: float = 0.0,
    room: int = 1 << 20,
    most_sequences: int = 256,
    on_a_thread: bool = False,
    **options: Any,
) -> AsyncIterator[Desk]:
    """A desk with one echo engine; on a thread where its process plays no part, since that starts sooner."""
    desk = Desk(**options)
    card: dict[str, Any] = {"rate": rate, "room": room, "most_sequences": most_sequences}

    async def make() -> Worker:
        return await (in_thread(EchoEngine(**card)) if on_a_thread else in_process({"engine": "echo"} | card))

    try:
        await desk.open(NAME, make, ByteTokenizer())
        yield desk
    finally:
        desk.close()


def work(text: str = "hello", owner: str = "me", **sampling: Any) -> Work:
    return Work(tuple(text.encode()), Sampling(**sampling), owner=owner)


async def text_of(answer: Answer) -> str:
    async with answer:
        return "".join([piece.text async for piece in answer])


async def until(true: Callable[[], bool], seconds: float = 120.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.005)


async def until_gauge(desk: Desk, name: str, value: float, seconds: float = 20.0) -> None:
    """The worker's own figure becomes this, long before the answers that it tells of would end."""
    worker = the_worker(desk)
    async with asyncio.timeout(seconds):
        while (await worker.gauges())[name] != value:
            await asyncio.sleep(0.02)


def the_worker(desk: Desk) -> Worker:
    worker = desk._stations[NAME].worker
    assert worker is not None
    return worker


def test_an_answer_comes_in_pieces_with_its_tokens_and_its_end() -> None:
    async def asked() -> None:
        async with opened() as desk, desk.ask(NAME, work("héllo")) as answer:
            pieces = [piece async for piece in answer]
            assert "".join(piece.text for piece in pieces) == "héllo"
            assert [token.id for piece in pieces for token in piece.tokens] == list("héllo".encode())
            assert [piece.finish for piece in pieces if piece.finish] == ["stop"]
            assert pieces[-1].finish == "stop"
            assert answer.tokens == 6

    run(asked())


def test_what_has_come_since_the_reader_last_looked_is_one_piece() -> None:
    async def asked() -> None:
        async with opened() as desk, desk.ask(NAME, work("a" * 50)) as answer:
            await until(lambda: answer.finished)
            (piece,) = [piece async for piece in answer]
            assert (piece.text, len(piece.tokens), piece.finish) == ("a" * 50, 50, "stop")

    run(asked())


def test_a_stop_string_ends_the_answer_and_frees_the_sequence_in_the_engine() -> None:
    async def asked() -> None:
        async with opened(rate=100) as desk:
            answer = desk.ask(NAME, work("one END" + "x" * 6000, max_new_tokens=6000), stops=("END",))
            async with answer:
                assert "".join([piece.text async for piece in answer]) == "one "
                # At once, and not when the route leaves the block.
                assert desk.standing("me").running == 0
                await until_gauge(desk, "sequences", 0)
            assert desk.standing("me").kv_tokens == 0
            assert answer.tokens == 7

    run(asked())


def test_one_model_that_is_not_there_is_refused() -> None:
    async def asked() -> None:
        async with opened(on_a_thread=True) as desk:
            with pytest.raises(NotFound):
                desk.ask("another", work())

    run(asked())


def test_more_sequences_than_run_at_once_wait_and_all_are_answered() -> None:
    async def asked() -> None:
        async with opened(on_a_thread=True, most_sequences=3, most_waiting=100, most_of_one=100) as desk:
            texts = [f"prompt {number}" for number in range(40)]
            got = await asyncio.gather(*(text_of(desk.ask(NAME, work(text))) for text in texts))
            assert got == texts

    run(asked())


def test_no_more_is_started_than_the_kv_cache_has_room_for() -> None:
    async def asked() -> None:
        async with opened(on_a_thread=True, rate=200, room=100, most_waiting=50, most_of_one=50) as desk:
            most = 0
            answers = [
                asyncio.create_task(text_of(desk.ask(NAME, work("x" * 10, max_new_tokens=20))))
                for _ in range(12)
            ]
            while not all(answer.done() for answer in answers):
                standing = desk.standing("me")
                most = max(most, standing.kv_tokens)
                assert standing.kv_tokens <= 100
                await asyncio.sleep(0.005)
            assert most == 90  # three of them: it is used as far as it goes
            assert [task.result() for task in answers] == ["x" * 10] * 12

    run(asked())


def test_what_never_fits_is_refused_at_once_and_says_how_much_would() -> None:
    async def asked() -> None:
        async with opened(on_a_thread=True, room=100) as desk:
            with pytest.raises(Refusal, match="100") as refused:
                desk.ask(NAME, work("x" * 90, max_new_tokens=20))
            assert (refused.value.status, refused.value.code) == (400, "context_length_exceeded")

    run(asked())


# Turns


def test_a_tenant_with_one_prompt_does_not_wait_for_a_hundred_of_another() -> None:
    """S-10: healthy requests keep their latency beside one caller's flood."""

    async def asked() -> None:
        async with opened(
            on_a_thread=True, rate=300, most_sequences=2, most_waiting=200, most_of_one=150
        ) as desk:
            order: list[str] = []

            async def one(owner: str) -> None:
                await text_of(desk.ask(NAME, work("x" * 10, owner, max_new_tokens=50)))
                order.append(owner)

            flood = [asyncio.create_task(one("many")) for _ in range(100)]
            await until(lambda: len(order) >= 4)
            before = len(order)
            await one("few")
            # Two were running when it came; at most those and the one it shares a step with end before it.
            assert order.index("few") <= before + 4
            for task in flood:
                task.cancel()
            await asyncio.gather(*flood, return_exceptions=True)

    run(asked())


def test_two_tenants_get_about_the_same_tokens_though_one_asks_in_large_pieces() -> None:
    async def asked() -> None:
        async with opened(
            on_a_thread=True, rate=500, most_sequences=2, most_waiting=400, most_of_one=300
        ) as desk:
            given = {"large": 0, "small": 0}

            async def one(owner: str, size: int) -> None:
                await text_of(desk.ask(NAME, work("x" * size, owner, max_new_tokens=size)))
                given[owner] += 2 * size

            tasks = [asyncio.create_task(one("large", 40)) for _ in range(60)]
            tasks += [asyncio.create_task(one("small", 10)) for _ in range(240)]
            await until(lambda: sum(given.values()) > 2400)
            assert 0.6 < given["large"] / given["small"] < 1.7
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    run(asked())


def test_what_was_reserved_and_not_used_does_not_count_against_a_tenant() -> None:
    """An answer that ends early hands back its turn: short answers with a large limit are not punished."""

    async def asked() -> None:
        async with opened(
            on_a_thread=True, rate=500, most_sequences=1, most_waiting=400, most_of_one=300
        ) as desk:
            ended = {"careless": 0, "careful": 0}

            async def one(owner: str, most: int) -> None:
                await text_of(desk.ask(NAME, work("x" * 10, owner, max_new_tokens=most)))
                ended[owner] += 1

            tasks = [asyncio.create_task(one("careless", 900)) for _ in range(100)]
            tasks += [asyncio.create_task(one("careful", 10)) for _ in range(100)]
            await until(lambda: sum(ended.values()) >= 40)
            assert min(ended.values()) >= 15
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    run(asked())


def test_a_large_request_is_neither_starved_by_small_ones_nor_blocks_them() -> None:
    """S-10: both get their turn; small ones fill the room that the large one cannot use yet."""

    async def asked() -> None:
        async with opened(on_a_thread=True, rate=100, room=200, most_waiting=500, most_of_one=400) as desk:
            ended: list[str] = []

            async def one(owner: str, text: str, most: int) -> None:
                await text_of(desk.ask(NAME, work(text, owner, max_new_tokens=most)))
                ended.append(owner)

            # Half of the room is taken by one that takes long; the large one needs nearly all of it.
            long = asyncio.create_task(one("long", "y" * 90, 90))
            await asyncio.sleep(0.05)
            large = asyncio.create_task(one("large", "z" * 20, 170))
            await asyncio.sleep(0)

            async def stream() -> None:
                while True:
                    await one("small", "x" * 10, 10)

            streams = [asyncio.create_task(stream()) for _ in range(4)]
            await large
            assert ended.count("small") >= 4, "small ones stood still while the large one waited"
            assert long.done()
            # It began when the long one ended: only what was running then ended between.
            between = ended[ended.index("long") + 1 : ended.index("large")]
            assert between.count("small") <= 12
            for task in streams:
                task.cancel()
            await asyncio.gather(*streams, return_exceptions=True)

    run(asked())


# Limits


def test_a_tenant_that_waits_too_often_gets_429_and_others_are_still_served() -> None:
    """S-10, S-24: the line has an end for each, and says when to come again."""

    async def asked() -> None:
        async with opened(
            on_a_thread=True, rate=20, most_sequences=1, most_waiting=10, most_of_one=3
        ) as desk:
            tasks = [asyncio.create_task(text_of(desk.ask(NAME, work("x" * 60, "many")))) for _ in range(1)]
            await asyncio.sleep(0)
            tasks += [asyncio.create_task(text_of(desk.ask(NAME, work("y", "many")))) for _ in range(3)]
            await asyncio.sleep(0)
            with pytest.raises(RateLimited) as refused:
                desk.ask(NAME, work("z", "many"))
            error = refused.value
            assert (error.status, error.type, error.code) == (429, "rate_limit_error", "too_many_waiting")
            assert error.retry_after is not None
            assert 1 <= error.retry_after <= 60
            desk.ask(NAME, work("z", "other"))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    run(asked())


def test_when_all_wait_too_often_everyone_gets_503_with_an_honest_retry_after() -> None:
    """S-10: Retry-After is made of how fast answers have been ending."""

    async def asked() -> None:
        async with opened(
            on_a_thread=True, rate=100, most_sequences=1, most_waiting=8, most_of_one=8
        ) as desk:
            began = time.monotonic()
            for _ in range(3):  # a quarter of a second each: now the pace is known
                await text_of(desk.ask(NAME, work("x" * 25, "before")))
            slow = time.monotonic() - began  # a busy machine may take longer
            waiting = [desk.ask(NAME, work("x" * 25, f"tenant {number}")) for number in range(9)]
            with pytest.raises(Busy) as refused:
                desk.ask(NAME, work("z", "another"))
            error = refused.value
            assert (error.status, error.code) == (503, "overloaded")
            assert error.retry_after is not None
            # Eight wait, at about a quarter of a second each.
            assert 2 <= error.retry_after <= max(6, 8 * slow)
            await asyncio.gather(*(text_of(answer) for answer in waiting))
            assert await text_of(desk.ask(NAME, work("z", "another"))) == "z"

    run(asked())


def test_one_tenant_may_have_so_many_tokens_at_a_time() -> None:
    """S-24: a total budget, whatever it is spent on."""

    async def asked() -> None:
        async with opened(on_a_thread=True, rate=20, tokens_of_one=1000) as desk:
            with pytest.raises(Refusal) as alone:
                desk.ask(NAME, work("x" * 500, max_new_tokens=501))
            assert (alone.value.status, alone.value.code) == (400, "token_budget")
            answers = [desk.ask(NAME, work("x" * 100, max_new_tokens=200)) for _ in range(3)]
            with pytest.raises(RateLimited) as refused:
                desk.ask(NAME, work("x" * 100, max_new_tokens=200))
            assert (refused.value.status, refused.value.code) == (429, "token_budget")
            desk.ask(NAME, work("x" * 100, "other", max_new_tokens=200))
            async with answers[0]:
                pass  # given up, and so is what it held
            desk.ask(NAME, work("x" * 100, max_new_tokens=200))

    run(asked())


def test_under_ten_times_the_load_everyone_is_answered_or_refused_at_once() -> None:
    """S-10, S-13: 160 prompts where 16 have room: all end well or with 503, and refusals are quick."""

    async def asked() -> None:
        async with opened(rate=200, most_sequences=8, most_waiting=8, most_of_one=4) as desk:
            answered, refusals, took = 0, [], []

            async def one(owner: str) -> None:
                nonlocal answered
                began = time.monotonic()
                try:
                    answer = desk.ask(NAME, work("x" * 40, owner))
                except Refusal as refusal:
                    refusals.append(refusal)
                    took.append(time.monotonic() - began)
                    return
                assert await text_of(answer) == "x" * 40
                answered += 1

            await asyncio.gather(*(one(f"tenant {number % 20}") for number in range(160)))
            assert answered == 16
            assert {refusal.status for refusal in refusals} == {503}
            assert all(refusal.retry_after for refusal in refusals)
            assert sorted(took)[-5] < 2  # a busy machine may stop any process for a while
            assert desk._stations[NAME].turns.reserved == 0

    run(asked())


# Going away


@pytest.mark.parametrize("when", ["waiting", "running"])
def test_whoever_goes_away_gives_everything_back_soon(when: str) -> None:
    """S-11: also in the engine: its own figures say so."""

    async def asked() -> None:
        async with opened(rate=10, most_sequences=1) as desk:
            first = asyncio.create_task(text_of(desk.ask(NAME, work("x" * 500, max_new_tokens=500))))
            second = asyncio.create_task(text_of(desk.ask(NAME, work("y" * 500, max_new_tokens=500))))
            await until_gauge(desk, "sequences", 1)
            gone = first if when == "running" else second
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            assert desk.standing("me").waiting == 0
            assert desk.standing("me").running == 1
            other = second if when == "running" else first
            other.cancel()
            await asyncio.gather(other, return_exceptions=True)
            assert desk.standing("me").running == 0
            await until_gauge(desk, "sequences", 0)
            await until_gauge(desk, "kv_used_tokens", 0)

    run(asked())


def test_a_thousand_callers_who_leave_at_random_leave_nothing_behind() -> None:
    """S-11: no leaked sequence, no leaked reservation."""

    async def asked() -> None:
        import random

        dice = random.Random(11)
        async with opened(rate=2000, most_sequences=16, room=4000, most_waiting=64, most_of_one=64) as desk:

            async def one(number: int) -> None:
                try:
                    async with asyncio.timeout(dice.random() * 0.05):
                        await text_of(desk.ask(NAME, work("x" * dice.randint(1, 200), f"{number % 7}")))
                except (TimeoutError, Refusal):
                    pass

            for batch in range(20):
                await asyncio.gather(*(one(batch * 50 + number) for number in range(50)))
            turns = desk._stations[NAME].turns
            assert (turns.waiting, turns.reserved, turns.width, turns.asked) == (0, 0, 0, False)
            await until_gauge(desk, "sequences", 0)
            assert await text_of(desk.ask(NAME, work("still here"))) == "still here"

    run(asked())


# The engine's death


def test_what_runs_when_the_engine_dies_fails_by_type_and_what_waits_is_served_by_the_next() -> None:
    """S-13: never a dead engine behind a listening port."""

    async def asked() -> None:
        async with opened(rate=50, most_sequences=1) as desk:
            running = desk.ask(NAME, work("a" * 400, max_new_tokens=400))
            waiting = desk.ask(NAME, work("waited"))
            pieces = aiter(running)
            assert (await anext(pieces)).text
            pid = the_worker(desk).pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(Failed) as failed:
                async for _ in pieces:
                    pass
            assert (failed.value.status, failed.value.code) == (503, "engine_restarted")
            assert failed.value.retry_after
            assert not desk.ready
            late = desk.ask(NAME, work("late"))  # the next engine is on its way: it may wait for it
            assert await text_of(waiting) == "waited"
            assert await text_of(late) == "late"
            assert desk.ready
            assert desk.health()[NAME]["restarts"] == 1
            assert b'blindbox_engine_restarts_total{engine="echo"} 1.0' in desk.figures.text()

    run(asked())


def test_an_engine_that_hangs_is_ended_and_started_again() -> None:
    """S-13: a process that is there and does nothing is as bad as none."""

    async def asked() -> None:
        async with opened(rate=50, most_sequences=1, hang_seconds=3.0) as desk:
            running = desk.ask(NAME, work("a" * 400, max_new_tokens=400))
            await anext(aiter(running))
            pid = the_worker(desk).pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            with pytest.raises(Failed, match="ended"):
                await text_of(running)
            assert await text_of(desk.ask(NAME, work("again"))) == "again"
            assert desk.health()[NAME]["restarts"] == 1

    run(asked())


def test_an_engine_that_rests_is_not_taken_for_one_that_hangs() -> None:
    async def asked() -> None:
        async with opened(hang_seconds=2.0) as desk:
            await asyncio.sleep(2.6)
            assert await text_of(desk.ask(NAME, work("rested"))) == "rested"
            assert desk.health()[NAME]["restarts"] == 0

    run(asked())


def test_an_engine_that_does_not_come_back_refuses_and_is_tried_again_with_pauses() -> None:
    async def asked() -> None:
        makes = 0

        async def make() -> Worker:
            nonlocal makes
            makes += 1
            return await in_process({"engine": "none such" if 1 < makes < 3 else "echo", "rate": 20.0})

        desk = Desk()
        try:
            await desk.open(NAME, make, ByteTokenizer())
            os.kill(the_worker(desk).pid or 0, signal.SIGKILL)
            await until(lambda: not desk.ready)
            with pytest.raises(Busy) as told:
                await text_of(desk.ask(NAME, work("waited")))
            assert (told.value.status, told.value.code) == (503, "starting")
            with pytest.raises(Busy):
                desk.ask(NAME, work("refused"))
            await until(lambda: desk.ready)
            assert makes == 3
            assert await text_of(desk.ask(NAME, work("back"))) == "back"
        finally:
            desk.close()

    run(asked())


def test_a_second_death_in_a_row_does_not_start_two_engines() -> None:
    async def asked() -> None:
        made: list[Worker] = []

        async def make() -> Worker:
            made.append(await in_process({"engine": "echo"}))
            return made[-1]

        desk = Desk()
        try:
            await desk.open(NAME, make, ByteTokenizer())
            for deaths in (1, 2):
                os.kill(the_worker(desk).pid or 0, signal.SIGKILL)
                await until(lambda: not desk.ready)
                await until(lambda: desk.ready)
                assert len(made) == deaths + 1
            made[0].gone()  # late news of the first is no news of the third
            assert desk.ready
        finally:
            desk.close()

    run(asked())


# What is told


def test_a_caller_sees_all_of_its_own_and_only_quarters_of_the_whole() -> None:
    """S-23: what others ask shows in no finer steps than these."""

    async def asked() -> None:
        async with opened(on_a_thread=True, rate=10, most_sequences=8, room=1000, most_waiting=10) as desk:
            mine = desk.ask(NAME, work("x" * 40, max_new_tokens=60))
            desk.ask(NAME, work("x" * 200, "other", max_new_tokens=250))
            await until(lambda: mine.tokens >= 5)
            standing = desk.standing("me")
            assert (standing.running, standing.waiting) == (1, 0)
            assert (standing.kv_tokens, standing.kv_room) == (100, 1000)
            (running,) = standing.answers
            assert (running.prompt_tokens, running.most_tokens) == (40, 60)
            assert running.generated_tokens >= 5
            assert running.seconds > 0
            # From its first token on: what came before that is not counted against it.
            assert standing.tokens_per_second > 0.9 * (running.generated_tokens - 1) / running.seconds
            load = standing.load[NAME]
            assert (load.sequences, load.kv, load.waiting) == (0.25, 0.75, 0.0)
            nobody = desk.standing("nobody")
            assert (nobody.running, nobody.waiting, nobody.kv_tokens, nobody.answers) == (0, 0, 0, ())

    run(asked())


# Its end


def test_draining_takes_nothing_new_and_finishes_what_runs_and_what_waits() -> None:
    """S-12: everyone who was let in is answered."""

    async def asked() -> None:
        async with opened(on_a_thread=True, rate=100, most_sequences=2) as desk:
            answers = [asyncio.create_task(text_of(desk.ask(NAME, work("x" * 30)))) for _ in range(4)]
            await asyncio.sleep(0.05)
            draining = asyncio.create_task(desk.drain(30))
            await asyncio.sleep(0)
            assert not desk.ready
            with pytest.raises(Busy) as refused:
                desk.ask(NAME, work())
            assert refused.value.code == "stopping"
            await draining
            assert await asyncio.gather(*answers) == ["x" * 30] * 4

    run(asked())


def test_what_is_left_when_the_desk_closes_is_told_so() -> None:
    async def asked() -> None:
        async with opened(on_a_thread=True, rate=20, most_sequences=1) as desk:
            running = desk.ask(NAME, work("x" * 500, max_new_tokens=500))
            waiting = desk.ask(NAME, work("y"))
            await until(lambda: running.tokens > 0)
            desk.close()
            for answer in (running, waiting):
                with pytest.raises(Busy) as ended:
                    await text_of(answer)
                assert ended.value.code == "stopping"

    run(asked())


def test_a_desk_that_is_closed_while_an_engine_starts_leaves_no_process() -> None:
    async def asked() -> None:
        made: list[Worker] = []

        async def make() -> Worker:
            made.append(await in_process({"engine": "echo"}))
            return made[-1]

        desk = Desk()
        opening = asyncio.create_task(desk.open(NAME, make, ByteTokenizer()))
        await until(lambda: bool(made))
        desk.close()
        with pytest.raises(UnusableEngine, match=r"its process ended|was stopped"):
            await opening
        await made[0].ended()
        assert not os.path.exists(f"/proc/{made[0].pid}")

    run(asked())
