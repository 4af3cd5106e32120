"""Clients of other people, unmodified: py-consul, Prometheus with http_sd, VictoriaMetrics with consul_sd.

Debian's Prometheus is built without consul_sd, so the agent of VictoriaMetrics, which reads the same configuration and
asks the same questions, stands in for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import consul
import orjson
import pytest
from aiohttp import web

from tests.credits.ledger_client import Client, fresh
from tests.debian import program
from tests.launcher import launched
from tests.server import ROOT_KEY, ShieldxServer, free_port

SCRAPE_DEADLINE_S = 60.0


@pytest.fixture
def agent(server: ShieldxServer) -> Iterator[consul.Consul]:
    """py-consul, which takes us for a Consul agent."""
    made = consul.Consul("127.0.0.1", server.port, token=ROOT_KEY)
    yield made
    made.http.session.close()


def statuses(agent: consul.Consul, service: str, **query: Any) -> dict[str, str]:
    """Return the checks of a service by instance."""
    _, found = agent.health.service(service, **query)
    return {entry["Service"]["ID"]: entry["Checks"][0]["Status"] for entry in found}


def test_py_consul_registers_passes_fails_and_deregisters(agent: consul.Consul) -> None:
    service = fresh("web")
    one, other = f"{service}-1", f"{service}-2"

    assert agent.agent.service.register(
        service, one, address="10.0.0.1", port=80, tags=["v1"], meta={"k": "v"}, check=consul.Check.ttl("30s")
    )
    assert agent.agent.service.register(service, other, address="10.0.0.2", port=80)
    assert statuses(agent, service) == {one: "critical", other: "passing"}
    assert agent.agent.check.ttl_pass(f"service:{one}")
    assert statuses(agent, service, passing=True) == {one: "passing", other: "passing"}
    assert agent.agent.check.ttl_fail(f"service:{one}")
    assert statuses(agent, service, passing=True) == {other: "passing"}
    assert agent.agent.service.maintenance(other, "true")
    assert statuses(agent, service) == {one: "critical", other: "critical"}
    assert agent.agent.service.maintenance(other, "false")
    assert agent.agent.services()[one]["Tags"] == ["v1"]
    assert agent.agent.checks()[f"service:{other}"]["Status"] == "passing"
    assert agent.agent.service.deregister(one)
    assert statuses(agent, service) == {other: "passing"}
    with pytest.raises(consul.ConsulException):
        agent.agent.service.register("bad name", port=80)


def test_py_consul_reads_the_catalogue(agent: consul.Consul) -> None:
    service = fresh("web")
    agent.agent.service.register(service, address="10.0.0.1", port=8080, tags=["blue"], meta={"k": "v"})

    _, services = agent.catalog.services()
    _, entries = agent.catalog.service(service, tag="blue")
    _, nodes = agent.catalog.nodes()
    _, checks = agent.health.state("passing")

    assert services[service] == ["blue"]
    assert (entries[0]["ServiceAddress"], entries[0]["ServicePort"], entries[0]["ServiceMeta"]) == (
        "10.0.0.1",
        8080,
        {"k": "v"},
    )
    assert nodes[0]["Node"] == "shieldx"
    assert f"service:{service}" in [check["CheckID"] for check in checks]
    agent.http.session.headers["X-Consul-Token"] = ROOT_KEY  # py-consul sends none with the next two
    assert agent.catalog.datacenters() == [agent.agent.self()["Config"]["Datacenter"]]


async def test_py_consul_waits_for_a_change(agent: consul.Consul) -> None:
    service = fresh("web")
    agent.agent.service.register(service, address="10.0.0.1", port=80)
    index, _ = agent.health.service(service)

    waiting = asyncio.create_task(asyncio.to_thread(agent.health.service, service, index=index, wait="20s"))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    again = consul.Consul("127.0.0.1", agent.http.port, token=ROOT_KEY)
    await asyncio.to_thread(again.agent.service.deregister, service)
    later, found = await asyncio.wait_for(waiting, 10)
    again.http.session.close()

    assert found == []
    assert int(later) > int(index)


@contextlib.asynccontextmanager
async def running_target() -> AsyncIterator[int]:
    """A real target: a server with one metric; its port."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text="shieldx_interop 7\n")

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


HTTP_SD = """
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: web
    http_sd_configs:
      - url: {url}/v1/sd/prometheus?service={service}
        refresh_interval: 1s
        authorization: {{type: Bearer, credentials: {key}}}  # without the type, 2.42 sends the bare key
    relabel_configs:
      - {{source_labels: [__meta_locator_zone], target_label: zone}}
      - {{source_labels: [__meta_locator_metadata_team], target_label: team}}
      - {{source_labels: [__meta_locator_tags], regex: '.*,blue,.*', action: keep}}
"""
CONSUL_SD = """
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: web
    consul_sd_configs:
      - server: 127.0.0.1:{port}
        token: {key}
        services: [{service}]
        tags: [blue]
    relabel_configs:
      - {{source_labels: [__meta_consul_health], target_label: health}}
      - {{source_labels: [__meta_consul_service_metadata_team], target_label: team}}
"""
PROMETHEUS = (
    "--config.file=config.yml", "--web.listen-address=127.0.0.1:{port}", "--storage.tsdb.path=data", "--log.level=warn",
)  # fmt: skip
VICTORIA_METRICS = (
    "-promscrape.config=config.yml", "-httpListenAddr=127.0.0.1:{port}", "-storageDataPath=data",
    "-promscrape.consulSDCheckInterval=1s", "-search.latencyOffset=0s", "-loggerLevel=ERROR",
)  # fmt: skip


@contextlib.contextmanager
def scraping(name: str, arguments: tuple[str, ...], config: str, directory: Path) -> Iterator[str]:
    """A real scraper with a configuration; its URL."""
    directory.mkdir()
    directory.joinpath("config.yml").write_text(config)
    port = free_port()
    words = [argument.format(port=port) for argument in arguments]
    with directory.joinpath("log").open("wb") as log:
        process = subprocess.Popen(launched([program(name), *words], directory), stdout=log, stderr=log)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


async def scraped(url: str) -> list[dict[str, Any]]:
    """Return what was scraped, once there is something."""
    found: list[dict[str, Any]] = []
    deadline_s = time.monotonic() + SCRAPE_DEADLINE_S
    async with aiohttp.ClientSession() as session:
        while not found:
            assert time.monotonic() < deadline_s, "nothing was scraped"
            await asyncio.sleep(0.1)
            with contextlib.suppress(aiohttp.ClientError, orjson.JSONDecodeError):  # while it starts
                async with session.get(f"{url}/api/v1/query", params={"query": "shieldx_interop"}) as answer:
                    found = orjson.loads(await answer.read())["data"]["result"]
    return found


async def test_scrapers_find_real_targets_by_http_sd_and_by_consul_sd(
    client: Client, server: ShieldxServer, tmp_path: Path
) -> None:
    service = fresh("scraped")
    path = f"/v1/services/{service}/instances"
    http_sd, consul_sd = (
        config.format(url=server.url, port=server.port, service=service, key=ROOT_KEY) for config in (HTTP_SD, CONSUL_SD)
    )
    async with running_target() as port:
        body = {"host": "127.0.0.1", "port": port, "zone": "z1", "tags": ["blue"], "metadata": {"team": "pay"}}
        await client.call("PUT", f"{path}/a", body)
        await client.call("PUT", f"{path}/green", body | {"metadata": {"team": "other"}, "tags": ["green"]})

        with (
            scraping("prometheus", PROMETHEUS, http_sd, tmp_path / "prometheus") as one,
            scraping("victoria-metrics", VICTORIA_METRICS, consul_sd, tmp_path / "victoria") as other,
        ):
            (by_http,), (by_consul,) = await asyncio.gather(scraped(one), scraped(other))

    assert (by_http["value"][1], by_consul["value"][1]) == ("7", "7")
    assert (by_http["metric"]["team"], by_http["metric"]["zone"]) == ("pay", "z1")
    assert (by_consul["metric"]["team"], by_consul["metric"]["health"]) == ("pay", "passing")
