"""An experiment whose Redis was replaced by one that lacks the last changes, as after a failover."""

from __future__ import annotations

import pytest

from tests.shadow.conftest import Replicas, made


async def test_a_redis_that_took_over_without_the_last_changes_is_believed_by_every_replica(replicas: Replicas) -> None:
    one, two = await replicas.start("one"), await replicas.start("two")
    name = await made(one, allocation="thompson")
    ahead, behind = one.catalog.get(name), await two.catalog.find(name)
    assert ahead is not None
    await one.assign(name, "first")
    keys = await replicas.redis("KEYS", f"{{x:{name}}}:*")
    kept = [(key, await replicas.redis("DUMP", key)) for key in keys]
    await ahead.weigh((0.05, 0.95))
    lost = [await one.assign(name, f"u{number}") for number in range(20)]

    for key in await replicas.redis("KEYS", f"{{x:{name}}}:*"):
        await replicas.redis("DEL", key)
    for key, dump in kept:
        await replicas.redis("RESTORE", key, "0", dump)
    await behind.prepare()
    await behind.weigh((0.95, 0.05))
    given = [await two.assign(name, f"u{number}") for number in range(20)]
    ahead.known = ahead.known._replace(run_id="of the server that died")  # what its connections led to
    await one.assign(name, "next")

    assert [await one.assign(name, f"u{number}") for number in range(20)] == given
    assert [one.variant for one in given] != [one.variant for one in lost]
    assert ahead.weights[1] == behind.weights[1] == (0.95, 0.05)
    assert ahead.is_behind(1, ahead.known.born)


DIED = "of the server that died"


@pytest.mark.parametrize("idle", ["links", "enrol_links"])
async def test_a_connection_that_was_idle_while_redis_was_replaced_holds_up_nobody(replicas: Replicas, idle: str) -> None:
    shadow = await replicas.start()
    name = await made(shadow, allocation="thompson")
    experiment = shadow.catalog.get(name)
    assert experiment is not None
    assert shadow._parts is not None
    await shadow.assign(name, "first")
    (server,) = shadow._parts.counters._servers.values()

    for place in getattr(server, idle)._queue:
        place.run_id = DIED  # as it remembers it until it is used
    if idle == "links":
        experiment.known = experiment.known._replace(run_id=DIED)

    assert (await shadow.assign(name, "next")).reason == "sampled"
