"""The console in a real browser, on a real server."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.credits.ledger_client import Client, fresh
from tests.flow.browser import Page, browsing
from tests.server import REPOSITORY, ROOT_KEY, ShieldxServer

CALL = re.compile(r'(?:call|moveForm)\((?:"(GET|POST)"|"[\w ]+"), [`"](/[^`"?]*)')


async def enter(page: Page, key: str) -> None:
    """Enter an API key as a user does."""
    await page.evaluate(f"document.getElementById('key').value = {json.dumps(key)}")
    await page.evaluate("document.getElementById('key-form').requestSubmit()")


async def submit(page: Page, button: str, **fields: str) -> None:
    """Fill the form with this button and send it."""
    form = f"[...document.forms].find((form) => form.querySelector('button').textContent === {json.dumps(button)})"
    await page.until(form)
    for name, value in fields.items():
        await page.evaluate(f"{form}.elements[{json.dumps(name)}].value = {json.dumps(value)}")
    await page.evaluate(f"{form}.requestSubmit()")


async def test_credits_move_and_the_chain_is_verified_in_the_browser(server: ShieldxServer, tmp_path: Path) -> None:
    tenant = fresh("console")

    async with browsing(tmp_path, f"{server.url}/") as page:
        await page.until_shown("Enter an API key above")
        await enter(page, ROOT_KEY)
        await page.until_shown("All accounts add up to zero.")
        await page.evaluate("location.hash = '#/accounts'")
        await submit(page, "Create account", tenant=tenant)
        await page.until_shown("Nothing is reserved.")
        await submit(page, "Top up", amount="5000")
        await page.until_shown("5,000")
        await submit(page, "Consume", amount="1234")
        await page.until_shown("3,766")
        await submit(page, "Consume", amount="99999")
        await page.until_shown("The available balance is below the amount")
        receipt = await page.evaluate("document.querySelector('main td a').getAttribute('href')")
        await page.evaluate(f"location.hash = {json.dumps(receipt)}")
        await page.until_shown("c2sp.org/tlog-proof@v1")
        await page.evaluate(
            "[...document.querySelectorAll('main button')].find((b) => /Verify/.test(b.textContent)).click()"
        )
        await page.until_shown("Intact:")

    # The refused consume, and the receipt until its entry is signed.
    assert [text for text in page.complaints if "402" not in text and "404" not in text] == []


async def test_experiments_and_instances_are_shown(server: ShieldxServer, client: Client, tmp_path: Path) -> None:
    experiment, service = fresh("console-ranker"), fresh("console-embedder")
    variants = [{"name": "champion", "control": True}, {"name": "challenger"}]
    await client.post("/v1/experiments", {"name": experiment, "variants": variants, "allocation": "fixed"})
    outcomes = [{"event_id": f"e{i}", "variant": variants[i % 2]["name"], "success": i % 3 == 0} for i in range(60)]
    await client.post(f"/v1/experiments/{experiment}/outcomes", {"outcomes": outcomes})
    await client.call("PUT", f"/v1/services/{service}/instances/one", {"host": "10.1.2.3", "port": 8000})

    async with browsing(tmp_path, f"{server.url}/#/experiments/{experiment}") as page:
        await page.until_shown("Enter a valid API key above.")
        await enter(page, ROOT_KEY)
        await page.until_shown("champion (control)")
        assert await page.evaluate("document.querySelectorAll('main svg').length") == len(variants)
        await page.evaluate(f"location.hash = '#/services/{service}'")
        await page.until_shown("10.1.2.3:8000")
        await page.evaluate("[...document.querySelectorAll('main button')].find((b) => b.textContent === 'Drain').click()")
        await page.until_shown("draining")

    assert [text for text in page.complaints if "401" not in text] == []


async def test_the_console_calls_what_the_server_describes(client: Client) -> None:
    described = (await client.call("GET", "/openapi.json")).body["paths"]
    script = (REPOSITORY / "app" / "web" / "console.js").read_text()

    called = {(method or "POST", re.sub(r"\$\{[^}]*\}", "{}", path)) for method, path in CALL.findall(script)}

    known: set[Any] = {(m.upper(), re.sub(r"\{\w+\}", "{}", path)) for path, item in described.items() for m in item}
    assert len(called) > 5
    assert called <= known
