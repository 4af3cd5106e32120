"""A real Chromium without a window, driven by its DevTools protocol (https://chromedevtools.github.io/devtools-protocol/)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import aiohttp

from tests.debian import program
from tests.launcher import launched

START_TIMEOUT_S: Final = 60.0  # the first start of a browser on a busy machine
DEADLINE_S: Final = 30.0
POLL_S: Final = 0.02
MESSAGE_MAX_BYTES: Final = 8 * 2**20  # a screenshot is below 1 MiB
FLAGS: Final = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--remote-debugging-port=0", "--window-size=1200,900",
)  # fmt: skip


class Page:
    """One tab. `complaints` holds what the page logged as an error: exceptions, refused scripts, failed loads."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """`socket` is the tab's DevTools connection."""
        self.complaints: Final[list[str]] = []
        self._socket = socket
        self._numbers = itertools.count(1)

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a DevTools method and return its result."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await asyncio.wait_for(self._socket.receive_json(), DEADLINE_S)
            if message.get("id") == number:
                assert "error" not in message, message
                return dict(message["result"])
            if message["method"] in {"Runtime.exceptionThrown", "Log.entryAdded"}:
                self.complaints.append(json.dumps(message["params"])[:500])

    async def evaluate(self, script: str) -> Any:
        """Return the value of an expression, awaited if it is a promise."""
        result = await self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until an expression is true; AssertionError with the page's text when it does not become so."""
        for _ in range(int(DEADLINE_S / POLL_S)):
            if await self.evaluate(f"Boolean({condition})"):
                return
            await asyncio.sleep(POLL_S)
        raise AssertionError(f"{condition} is not true of: {await self.evaluate('document.body.innerText')}")

    async def until_shown(self, text: str) -> None:
        """Wait until the page's text has this in it."""
        await self.until(f"document.body?.innerText.includes({json.dumps(text)})")


@contextlib.asynccontextmanager
async def browsing(directory: Path, url: str) -> AsyncIterator[Page]:
    """Yield a tab that loads `url`; the browser keeps its profile in `directory`."""
    profile = directory / "chromium"
    command = launched([program("chromium"), *FLAGS, f"--user-data-dir={profile}", "about:blank"], directory)
    nowhere = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdin=nowhere, stdout=nowhere, stderr=nowhere)
    try:
        port = await _port_of(profile, process)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                tabs = json.loads(await answer.text())
            address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            async with session.ws_connect(address, max_msg_size=MESSAGE_MAX_BYTES) as socket:
                page = Page(socket)
                for domain in ("Runtime", "Log", "Page"):
                    await page.send(f"{domain}.enable")
                await page.send("Page.navigate", url=url)
                yield page
    finally:
        process.kill()
        await process.wait()


async def _port_of(profile: Path, process: asyncio.subprocess.Process) -> int:
    """Return the port that the browser wrote down once it listens."""
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            assert process.returncode is None, "the browser ended"
            with contextlib.suppress(FileNotFoundError, IndexError):  # not there, or there and still empty
                return int((profile / "DevToolsActivePort").read_text().splitlines()[0])
            await asyncio.sleep(POLL_S)
