"""The reference at `/docs`: one static page, rendered once from the OpenAPI document, without scripts."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any, Final

import msgspec
from aiohttp import web

from app.web.answers import JSON, PROBLEM_JSON, Answer
from app.web.openapi import openapi
from app.web.problems import Problem
from app.web.request import Request
from app.web.routes import Route
from app.web.samples import Json, resolve, sample

HTML: Final = "text/html; charset=utf-8"
REVALIDATE: Final = "no-cache"  # the page changes with the server; a proxy must ask again.
DEPTH_MAX: Final = 5  # nested objects that one table of fields unfolds.

EVERYWHERE: Final = (
    "Bodies are JSON in UTF-8. Calls need `Authorization: Bearer <key>` unless they say otherwise. "
    "Every answer has an `X-Request-ID`; a request may bring its own, 1-128 of `A-Za-z0-9._:-`. "
    "Refusals are `application/problem+json` (RFC 9457) with a stable `code`."
)

_code = re.compile(r"`([^`]+)`")
_LIMITS: Final = (
    ("minimum", "from {}"),
    ("maximum", "to {}"),
    ("exclusiveMinimum", "above {}"),
    ("exclusiveMaximum", "below {}"),
    ("minLength", "at least {} characters"),
    ("maxLength", "at most {} characters"),
    ("minItems", "at least {} entries"),
    ("maxItems", "at most {} entries"),
    ("pattern", "matches {}"),
    ("default", "default {}"),
)


def _kind(schema: Json, document: Json) -> str:
    """The type of a schema in a few words."""
    schema = resolve(schema, document)
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        return " or ".join(dict.fromkeys(_kind(choice, document) for choice in choices))
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return " | ".join(json.dumps(value) for value in schema["enum"])
    kind = schema.get("type", "any")
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array":
        return f"array of {_kind(schema.get('items', {}), document)}"
    return f"{kind} ({schema['format']})" if "format" in schema else str(kind)


def _prose(text: str) -> str:
    """A description as HTML, with `...` as code."""
    return _code.sub(r"<code>\1</code>", escape(text))


def _limits(schema: Json, document: Json) -> str:
    """Description and bounds of a schema, as HTML."""
    schema = resolve(schema, document)
    parts = [_prose(schema["description"])] if "description" in schema else []
    parts += [_limits(choice, document) for choice in schema.get("anyOf", [])]
    bounds = [
        words.format(f"<code>{escape(str(schema[word]))}</code>") for word, words in _LIMITS if schema.get(word) is not None
    ]
    if bounds:
        text = ", ".join(bounds)
        parts.append(text[:1].upper() + text[1:] + ".")
    return " ".join(part for part in parts if part)


def _rows(schema: Json, document: Json, prefix: str = "", depth: int = 0) -> list[tuple[str, str, str]]:
    """Name, type and limits of every member of an object, nested ones under dotted names."""
    schema = resolve(schema, document)
    rows: list[tuple[str, str, str]] = []
    for choice in schema.get("anyOf", []) + schema.get("oneOf", []):
        rows += _rows(choice, document, prefix, depth)
    if schema.get("type") == "array":
        return _rows(schema.get("items", {}), document, prefix.removesuffix(".") + "[].", depth)
    required = schema.get("required", ())
    for name, member in schema.get("properties", {}).items():
        mark = "" if name in required or depth < 0 else ' <span class="soft">optional</span>'
        label = f"<code>{escape(prefix + name)}</code>{mark}"
        rows.append((label, escape(_kind(member, document)), _limits(member, document)))
        if depth < DEPTH_MAX:
            rows += _rows(member, document, f"{prefix}{name}.", depth + 1)
    return rows


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{text}</th>" for text in heads)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _section(title: str, content: str) -> str:
    return f"<h4>{title}</h4>{content}" if content else ""


def curl(method: str, path: str, operation: Json, document: Json) -> str:
    """A command that makes the call, with a small valid body."""
    url = "$SHIELDX_URL" + path
    for parameter in operation["parameters"]:
        if parameter.get("in") == "path":
            value = sample(parameter["schema"], document, parameter["name"])
            url = url.replace("{" + parameter["name"] + "}", str(value))
    words = ["curl"] if method == "get" else [f"curl -X {method.upper()}"]
    if operation.get("security") != []:
        words.append('-H "Authorization: Bearer $SHIELDX_KEY"')
    if {"$ref": "#/components/parameters/Idempotency-Key"} in operation["parameters"]:
        words.append('-H "Idempotency-Key: $(uuidgen)"')
    body = operation.get("requestBody")
    if body is not None:
        content = json.dumps(sample(body["content"][JSON]["schema"], document))
        words += ['-H "Content-Type: application/json"', f"-d '{content}'"]
    return " \\\n  ".join([*words, f'"{url}"'])


def _parameters(operation: Json, document: Json) -> str:
    rows = []
    for parameter in (resolve(each, document) for each in operation["parameters"]):
        if parameter["name"] == "X-Request-ID":
            continue  # Every call takes it; the page says so once.
        mark = "" if parameter.get("required") else ' <span class="soft">optional</span>'
        text = " ".join((_prose(parameter.get("description", "")), _limits(parameter["schema"], document)))
        name = f'<code>{escape(parameter["name"])}</code> <span class="soft">{parameter["in"]}</span>{mark}'
        rows.append((name, escape(_kind(parameter["schema"], document)), text))
    return _table(("Name", "Type", "Meaning and limits"), rows)


def _answers(operation: Json, document: Json) -> tuple[str, str]:
    """The answers below 400, and the table of problem codes."""
    answers: list[str] = []
    problems: list[tuple[str, str]] = []
    for status, response in operation["responses"].items():
        if status == "default":
            continue
        content = response.get("content", {})
        if PROBLEM_JSON in content:
            problems.append((f"<code>{status}</code>", _codes(response["description"])))
            continue
        kinds = ", ".join(map(escape, content))
        answers.append(f"<p><code>{status}</code> {escape(response['description'])} {kinds}</p>")
        answers += [
            _table(("Field", "Type", "Meaning and limits"), _rows(media["schema"], document)) for media in content.values()
        ]
    return "".join(answers), _table(("Status", "Codes"), problems)


def _codes(description: str) -> str:
    lines = []
    for line in description.split("\n\n"):
        code, _, title = line.partition(": ")
        lines.append(f"<code>{escape(code.strip('`'))}</code> {escape(title)}")
    return "<br>".join(lines)


def _article(method: str, path: str, operation: Json, document: Json) -> str:
    answers, problems = _answers(operation, document)
    body = ""
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"][JSON]["schema"]
        body = _table(("Field", "Type", "Meaning and limits"), _rows(schema, document))
    description = operation.get("description", "")
    needs = "No key needed." if operation.get("security") == [] else ""
    return (
        f'<article id="{operation["operationId"]}"><h3><span class="verb {method}">{method.upper()}</span> '
        f'{escape(path)}</h3><p>{_prose(operation["summary"])} <span class="soft">{needs}</span></p>'
        + (f"<p>{_prose(description)}</p>" if description else "")
        + _section("Parameters", _parameters(operation, document))
        + _section("Body", body)
        + _section("Answers", answers)
        + _section("Problems", problems)
        + _section("Example", f"<pre>{escape(curl(method, path, operation, document))}</pre>")
        + "</article>"
    )


def render(document: Json) -> str:
    """The whole page for an OpenAPI document made by `openapi`."""
    calls: dict[str, list[tuple[str, str, Json]]] = {tag["name"]: [] for tag in document["tags"]}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            calls[operation["tags"][0]].append((method, path, operation))
    contents: list[str] = []
    articles: list[str] = []
    for tag, operations in calls.items():
        links = "".join(
            f'<li><a href="#{operation["operationId"]}"><span class="verb {method}">{method.upper()}</span> '
            f"{escape(path)}</a></li>"
            for method, path, operation in operations
        )
        contents.append(f"<h2>{escape(tag)}</h2><ul>{links}</ul>")
        articles.append(f"<h2>{escape(tag)}</h2>")
        articles += [_article(method, path, operation, document) for method, path, operation in operations]
    info = document["info"]
    title = escape(info["title"])
    description = _prose(info.get("description", ""))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title} API reference</title><style>{stylesheet()}</style></head><body>"
        f'<nav aria-label="Calls"><strong>{title}</strong>{"".join(contents)}</nav>'
        f'<main><h1>{title} API</h1><p class="soft">Version {escape(info["version"])}. '
        f'Machine-readable: <a href="/openapi.json">/openapi.json</a>.</p>'
        f"<p>{description}</p><p>{_prose(EVERYWHERE)}</p>{''.join(articles)}</main></body></html>"
    )


def stylesheet() -> str:
    """The style of the page."""
    return files("app.web").joinpath("page.css").read_text(encoding="utf-8")


def policy() -> str:
    """Content-Security-Policy of the page: nothing but its own style, by hash."""
    digest = base64.b64encode(hashlib.sha256(stylesheet().encode()).digest()).decode()
    closed = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return f"{closed}; style-src 'sha256-{digest}'"


def reference_routes(routes: Sequence[Route], *, title: str, version: str, description: str = "") -> list[Route]:
    """The open routes `/openapi.json` and `/docs`, which describe `routes` and themselves.

    Both are rendered once, here.
    """

    async def document_of(_: Request) -> web.StreamResponse | Problem:
        return Answer(text, cache=REVALIDATE)

    async def page_of(_: Request) -> web.StreamResponse | Problem:
        return Answer(page, content_type=HTML, cache=REVALIDATE, fields=fields)

    own = [
        Route(
            "GET",
            "/openapi.json",
            document_of,
            "This API as an OpenAPI 3.1 document",
            "operations",
            answers={200: dict[str, Any]},
            open=True,
        ),
        Route(
            "GET",
            "/docs",
            page_of,
            "This reference",
            "operations",
            answers={200: None},
            open=True,
            media_type="text/html",
        ),
    ]
    document = openapi([*routes, *own], title=title, version=version, description=description)
    text = msgspec.json.encode(document)
    page = render(document).encode()
    fields = f"Content-Security-Policy: {policy()}\r\nReferrer-Policy: no-referrer\r\nX-Frame-Options: DENY\r\n"
    return own
