"""An experiment whose Redis was replaced by one that lacks the last changes, as after a failover."""

from __future__ import annotations

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
