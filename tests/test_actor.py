"""The five promises of an actor, and what follows from them."""

from __future__ import annotations

import asyncio
import gc

import pytest

from app.actor import ActorStopped, AskTimeout, InboxFull
from tests.actor_recorder import Number, Recorder, turn
from tests.lag import LOOP_TICK_S


async def test_an_ask_is_answered() -> None:
    actor = Recorder().run()
    actor.gate.set()

    assert await actor.ask(Number(7)) == 7
    await actor.stop()


async def test_bounded_a_full_mailbox_refuses_at_once_and_keeps_what_it_has() -> None:
    actor = Recorder(inbox_max=3).run()
    first = [actor.ask(Number(0))]
    await turn()
    first += [actor.ask(Number(value)) for value in (1, 2, 3)]

    with pytest.raises(InboxFull):
        actor.ask(Number(4))
    assert actor.waiting == 3
    actor.gate.set()

    assert await asyncio.gather(*first) == [0, 1, 2, 3]
    assert await actor.ask(Number(5)) == 5
    await actor.stop()


async def test_bounded_by_weight_not_by_count() -> None:
    actor = Recorder(inbox_max=10).run()
    actor.ask(Number(0))
    await turn()
    heavy = actor.ask(Number(1, weight=9))

    with pytest.raises(InboxFull):
        actor.ask(Number(2, weight=2))
    light = actor.ask(Number(3, weight=1))
    actor.gate.set()

    assert (await heavy, await light) == (1, 3)
    await actor.stop()


async def test_batched_what_gathers_while_one_batch_runs_is_the_next_one() -> None:
    actor = Recorder(batch_max=4).run()
    asks = [actor.ask(Number(0))]
    await turn()
    asks += [actor.ask(Number(value)) for value in range(1, 8)]
    actor.gate.set()
    await asyncio.gather(*asks)

    assert actor.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]
    await actor.stop()


async def test_batched_by_weight_and_a_message_above_the_limit_goes_alone() -> None:
    actor = Recorder(inbox_max=100, batch_max=4).run()
    asks = [actor.ask(Number(0))]
    await turn()
    asks += [actor.ask(Number(value, weight)) for value, weight in ((1, 3), (2, 2), (3, 2), (4, 9), (5, 1), (6, 3), (7, 1))]
    actor.gate.set()
    await asyncio.gather(*asks)

    assert actor.batches == [[0], [1], [2, 3], [4], [5, 6], [7]]
    await actor.stop()


async def test_an_idle_actor_answers_each_message_in_its_own_batch() -> None:
    actor = Recorder().run()
    actor.gate.set()

    for value in range(3):
        assert await actor.ask(Number(value)) == value

    assert actor.batches == [[0], [1], [2]]
    await actor.stop()


async def test_ordered_messages_are_received_as_they_were_accepted() -> None:
    actor = Recorder(inbox_max=1000, batch_max=7).run()
    actor.gate.set()
    asks = []
    for value in range(500):
        asks.append(actor.ask(Number(value)))
        if value % 13 == 0:
            await turn()
    await asyncio.gather(*asks)

    assert actor.received == list(range(500))
    await actor.stop()


async def test_crash_fails_every_open_ask_stops_and_reports() -> None:
    actor = Recorder(batch_max=2).run()
    asks = [actor.ask(Number(value)) for value in (1, -1, 2, 3, 4)]
    actor.gate.set()

    results = await asyncio.gather(*asks, return_exceptions=True)

    assert results[0] == 1
    assert all(isinstance(result, ActorStopped) for result in results[1:])
    assert [str(error) for error in actor.crashes] == ["-1 is below zero"]
    assert actor.batches == [[1, -1]]
    with pytest.raises(ActorStopped):
        actor.ask(Number(5))
    await actor.stop()


async def test_crash_fails_asks_whose_batch_was_received_but_not_answered() -> None:
    class Forgetful(Recorder):
        async def receive(self, batch: list[Number]) -> None:
            if batch[0].value < 0:
                raise ValueError("broken")

    actor = Forgetful().run()
    kept = actor.ask(Number(1))
    await turn()
    actor.ask(Number(-1)).add_done_callback(lambda future: future.exception())
    await turn()

    with pytest.raises(ActorStopped):
        await asyncio.wait_for(kept, 5)
    await actor.stop()


async def test_drained_stop_finishes_what_was_accepted_and_refuses_the_rest() -> None:
    actor = Recorder(batch_max=2).run()
    asks = [actor.ask(Number(value)) for value in range(5)]
    stopping = asyncio.create_task(actor.stop())
    await turn()

    with pytest.raises(ActorStopped):
        actor.ask(Number(9))
    assert not stopping.done()
    actor.gate.set()
    await stopping

    assert [ask.result() for ask in asks] == [0, 1, 2, 3, 4]
    assert actor.received == [0, 1, 2, 3, 4]


async def test_stop_of_an_actor_that_never_started_returns() -> None:
    await Recorder().stop()


async def test_an_actor_that_has_not_started_takes_nothing() -> None:
    with pytest.raises(ActorStopped):
        Recorder().ask(Number(1))


async def test_an_ask_times_out_and_its_late_answer_does_no_harm() -> None:
    actor = Recorder(ask_timeout_s=0.05).run()
    first = actor.ask(Number(1))

    with pytest.raises(AskTimeout):
        await first
    actor.gate.set()

    assert await actor.ask(Number(2)) == 2
    assert actor.received == [1, 2]
    await actor.stop()


async def test_asks_time_out_in_the_order_of_their_deadlines() -> None:
    actor = Recorder(ask_timeout_s=0.1).run()
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    over: list[int] = []
    asks = [actor.ask(Number(value)) for value in range(10)]
    for value, ask in enumerate(asks):
        ask.add_done_callback(lambda _, value=value: over.append(value))

    results = await asyncio.gather(*asks, return_exceptions=True)

    assert all(isinstance(result, AskTimeout) for result in results)
    assert over == list(range(10))
    # One after the other they would take ten times as long.
    assert 0.1 - LOOP_TICK_S <= loop.time() - started_s < 0.9
    actor.gate.set()
    await actor.stop()


async def test_an_asker_that_goes_away_does_not_disturb_the_others() -> None:
    actor = Recorder().run()
    gone, stays = actor.ask(Number(1)), actor.ask(Number(2))
    gone.cancel()
    actor.gate.set()

    assert await stays == 2
    assert actor.received == [1, 2]
    await actor.stop()


async def test_put_back_returns_messages_to_the_front_in_their_order_whatever_the_bound() -> None:
    actor = Recorder(inbox_max=3, batch_max=10).run()
    actor.ask(Number(0))
    await turn()
    actor.ask(Number(3))
    actor.ask(Number(4))

    actor.put_back([Number(1, weight=5), Number(2)])

    assert actor.waiting == 8
    with pytest.raises(InboxFull):
        actor.ask(Number(5))
    actor.gate.set()
    await actor.stop()
    assert actor.received == [0, 1, 2, 3, 4]


async def test_answering_or_failing_twice_has_no_effect() -> None:
    actor = Recorder().run()
    message = Number(1)
    asked = actor.ask(message)

    message.answer(1)
    message.answer(2)
    message.fail(ValueError("late"))

    assert await asked == 1
    assert not message.open
    actor.gate.set()
    await actor.stop()


async def test_answered_asks_are_let_go_but_for_the_last_batch() -> None:
    class Tracked(Number):
        """Told apart from the messages of other tests."""

    actor = Recorder(inbox_max=1000, ask_timeout_s=0.04).run()
    actor.gate.set()
    for value in range(100):
        await actor.ask(Tracked(value))

    deadline_s = asyncio.get_running_loop().time() + 5
    while sum(isinstance(thing, Tracked) for thing in gc.get_objects()) > 1:
        assert asyncio.get_running_loop().time() < deadline_s, "answered messages are kept"
        await asyncio.sleep(0.005)
    await actor.stop()
