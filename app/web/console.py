"""The console at `/`: one page that calls the API with the key its user enters. Nothing comes from another server."""

import base64
import hashlib
from importlib.resources import files
from typing import Final

from aiohttp import web

from app.web.docs import HTML, REVALIDATE
from app.web.problems import Problem
from app.web.request import Request
from app.web.routes import Answer, Route


def _text(name: str) -> str:
    return files("app.web").joinpath(name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """Return the hash source expression of an inline element (CSP level 3, section 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def render(version: str) -> tuple[str, str]:
    """Return the page and its Content-Security-Policy: only its own style and script, only this server to call."""
    style, script = _text("console.css"), _text("console.js")
    page = _text("console.html").replace("{version}", version).replace("{style}", style).replace("{script}", script)
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; connect-src 'self'; "
        f"style-src {_source(style)}; script-src {_source(script)}"
    )
    return page, policy


def console_route(version: str) -> Route:
    """Return the open route `/`; the page is rendered once, here."""
    text, policy = render(version)
    page = text.encode()
    fields: Final = f"Content-Security-Policy: {policy}\r\nReferrer-Policy: no-referrer\r\nX-Frame-Options: DENY\r\n"

    async def console(_: Request) -> web.StreamResponse | Problem:
        return Answer(page, content_type=HTML, cache=REVALIDATE, fields=fields)

    return Route(
        "GET", "/", console, "The console, a page for people", "operations",
        answers={200: None}, open=True, media_type="text/html",
    )  # fmt: skip
