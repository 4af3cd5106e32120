"""The OpenAPI 3.1 document of a sequence of routes, and nothing that the routes do not say themselves."""

import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec

from app.web.answers import JSON, PROBLEM_JSON
from app.web.fields import INT64_MAX, INT64_MIN, Metadata
from app.web.problems import TITLES, TYPE_PREFIX
from app.web.request import REQUEST_ID_MAX
from app.web.routes import Route

Json = dict[str, Any]

REF: Final = "#/components/schemas/"
# Header fields, in lower case, in which clients of other protocols send their key, and what the document calls each.
KEY_SCHEMES: Final = {"x-api-key": "apiKey", "x-consul-token": "consulToken"}
NO_NUL: Final = r"^[^\x00]*$"
KEY_PATTERN: Final = r'^([!#-~][ -~]{0,254}|"([ !#-\[\]-~]|\\["\\]){1,255}")$'

METADATA_SCHEMA: Final[Json] = {
    "type": "object",
    "propertyNames": {"pattern": NO_NUL},
    "additionalProperties": {"$ref": REF + "MetadataValue"},
}
METADATA_VALUE_SCHEMA: Final[Json] = {
    "description": "Any JSON value without U+0000.",
    "anyOf": [
        {"type": ["null", "boolean"]},
        {"type": "number", "minimum": INT64_MIN, "maximum": INT64_MAX},
        {"type": "string", "pattern": NO_NUL},
        {"type": "array", "items": {"$ref": REF + "MetadataValue"}},
        {
            "type": "object",
            "propertyNames": {"pattern": NO_NUL},
            "additionalProperties": {"$ref": REF + "MetadataValue"},
        },
    ],
}
PROBLEM_SCHEMA: Final[Json] = {
    "type": "object",
    "description": "RFC 9457 problem details. No member repeats an input value.",
    "required": ["type", "title", "status", "detail", "code", "request_id"],
    "properties": {
        "type": {"type": "string", "format": "uri", "description": f"{TYPE_PREFIX}<code>"},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "request_id": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {
                    "pointer": {
                        "type": "string",
                        "description": "RFC 6901 pointer into the body; `?name` is a query parameter, "
                        "`{name}` a path parameter, `Name:` a header field.",
                    },
                    "detail": {"type": "string"},
                },
            },
        },
    },
}
HEADERS: Final[Json] = {
    "X-Request-ID": {
        "description": "Id of this request, taken from it or made.",
        "schema": {"type": "string"},
    },
    "ETag": {"description": "The version, as a strong entity tag.", "schema": {"type": "string"}},
    "Idempotent-Replayed": {
        "description": "`true` if this is the remembered answer to the first request with the key.",
        "schema": {"type": "string", "const": "true"},
    },
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "string"}},
    "WWW-Authenticate": {"schema": {"type": "string", "const": "Bearer"}},
}
PARAMETERS: Final[Json] = {
    "X-Request-ID": {
        "name": "X-Request-ID",
        "in": "header",
        "required": False,
        "description": f"Taken over if it is 1-{REQUEST_ID_MAX} of `A-Za-z0-9._:-`; any other is replaced.",
        "schema": {"type": "string"},
    },
    "Idempotency-Key": {
        "name": "Idempotency-Key",
        "in": "header",
        "required": True,
        "description": "1-255 printable ASCII characters, bare or as a quoted string; the same request "
        "with the same key gets the first answer again for 24 h.",
        "schema": {"type": "string", "pattern": KEY_PATTERN},
    },
    "If-None-Match": {
        "name": "If-None-Match",
        "in": "header",
        "required": False,
        "description": "Entity tags of answers that the client has: 304 if it would be one of them.",
        "schema": {"type": "string"},
    },
    "If-Match": {
        "name": "If-Match",
        "in": "header",
        "required": False,
        "description": "The version that the change is meant for.",
        "schema": {"type": "string", "pattern": r'^(\*|"(0|[1-9][0-9]{0,15})"|0|[1-9][0-9]{0,15})$'},
    },
}


def _schema_hook(kind: type[Any]) -> Json:
    if issubclass(kind, Metadata):
        size = f"An object of the client's own, at most {kind.limit_bytes} bytes of JSON."
        return METADATA_SCHEMA | {"description": size}
    if kind is object:
        return {}
    message = f"{kind.__name__} has no JSON schema"
    raise NotImplementedError(message)


def portable(schema: Any) -> Any:
    r"""A schema with Python's `\Z` as the `$` of ECMA 262, which there matches at the very end only."""
    if isinstance(schema, dict):
        return {
            key: value.replace(r"\Z", "$") if key == "pattern" and isinstance(value, str) else portable(value)
            for key, value in schema.items()
        }
    if isinstance(schema, list):
        return [portable(item) for item in schema]
    return schema


def problems_of(route: Route) -> dict[int, list[str]]:
    """Status to codes of every refusal of a route: its own and those of the edge, in order of status."""
    pairs = [(500, "internal_error"), (431, "headers_too_large"), (400, "malformed_http")]
    if not route.open:
        pairs.append((401, "unauthorized"))
    if route.roles is not None:
        pairs.append((403, "forbidden"))
    if route.body is not None:
        pairs += [
            (400, "malformed_json"),
            (408, "request_timeout"),
            (413, "payload_too_large"),
            (415, "unsupported_media_type"),
            (422, "invalid_request"),
        ]
    if route.idempotent:
        pairs += [
            (400, "idempotency_key_missing"),
            (400, "idempotency_key_invalid"),
            (409, "idempotency_key_in_flight"),
            (422, "idempotency_key_reused"),
        ]
    if not route.any_query or route.path_fields or route.etag:
        pairs.append((422, "invalid_request"))
    codes: dict[int, list[str]] = {}
    for status, code in sorted({*pairs, *route.problems}):
        codes.setdefault(status, []).append(code)
    return codes


def _header_refs(names: Iterable[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _problem_response(status: int, codes: Sequence[str]) -> Json:
    names = ["X-Request-ID"]
    if status == 401:
        names.append("WWW-Authenticate")
    if status in {429, 503}:
        names.append("Retry-After")
    lines = [f"`{code}`: {TITLES.get(code, HTTPStatus(status).phrase)}." for code in codes]
    return {
        "description": "\n\n".join(lines),
        "headers": _header_refs(names),
        "content": {
            PROBLEM_JSON: {
                "schema": {
                    "allOf": [
                        {"$ref": REF + "Problem"},
                        {"properties": {"code": {"enum": list(codes)}, "status": {"const": status}}},
                    ]
                }
            }
        },
    }


def _answer_response(route: Route, status: int, schema: Json | None) -> Json:
    names = ["X-Request-ID"]
    if route.etag:
        names.append("ETag")
    if route.idempotent:
        names.append("Idempotent-Replayed")
    response: Json = {"description": HTTPStatus(status).phrase, "headers": _header_refs(names)}
    if schema is not None:
        response["content"] = {route.media_type: {"schema": schema}}
    elif status != 204 and route.media_type != JSON:
        response["content"] = {route.media_type: {"schema": {"type": "string"}}}
    return response


def _operation_id(route: Route) -> str:
    words = [part.strip("{}").partition(":")[0] for part in route.path.split("/") if part]
    return "_".join([route.method.lower(), *words]).replace(".", "_").replace("-", "_")


def _parameters(route: Route, schemas: Mapping[int, Json]) -> list[Json]:
    parameters: list[Json] = []
    for place, kinds in (("path", route.path_fields), ("query", route.query)):
        for name, kind in kinds.items():
            schema = dict(schemas[id(kind)])
            parameter: Json = {"name": name, "in": place, "required": place == "path"}
            if "description" in schema:
                parameter["description"] = schema.pop("description")
            parameters.append({**parameter, "schema": schema})
    names = ["X-Request-ID"]
    if route.idempotent:
        names.append("Idempotency-Key")
    if route.etag and (route.idempotent or route.method in {"PUT", "PATCH", "DELETE"}):
        names.append("If-Match")
    if 304 in route.answers:
        names.append("If-None-Match")
    parameters += [{"$ref": f"#/components/parameters/{name}"} for name in names]
    return parameters


def _operation(route: Route, schemas: Mapping[int, Json]) -> Json:
    operation: Json = {
        "operationId": _operation_id(route),
        "summary": route.summary,
        "tags": [route.tag],
        "parameters": _parameters(route, schemas),
    }
    if route.description:
        operation["description"] = route.description
    if route.body is not None:
        operation["requestBody"] = {
            "required": not route.body_optional,
            "content": {JSON: {"schema": schemas[id(route.body)]}},
        }
    responses: Json = {}
    for status, kind in sorted(route.answers.items()):
        responses[str(status)] = _answer_response(route, status, None if kind is None else schemas[id(kind)])
    for status, codes in problems_of(route).items():
        if str(status) not in responses:
            responses[str(status)] = _problem_response(status, codes)
    responses["default"] = {"$ref": "#/components/responses/Problem"}
    operation["responses"] = responses
    if route.open:
        operation["security"] = []
    elif route.key_field:
        operation["security"] = [{"bearer": []}, {KEY_SCHEMES[route.key_field]: []}]
    return operation


def _kinds(routes: Sequence[Route]) -> list[Any]:
    kinds: list[Any] = []
    for route in routes:
        kinds += [*route.path_fields.values(), *route.query.values()]
        kinds += [kind for kind in (route.body, *route.answers.values()) if kind is not None]
    return kinds


def _template(path: str) -> str:
    """The path as OpenAPI writes it: parameters without the pattern that aiohttp's router takes, `{rest:.+}`."""
    return re.sub(r"\{(\w+):[^}]*\}", r"{\1}", path)


def openapi(routes: Sequence[Route], *, title: str, version: str, description: str = "") -> Json:
    """The document, as a dictionary that `msgspec.json.encode` takes.

    faults  ValueError if two routes share method and path; TypeError for a type without a schema
    """
    kinds = _kinds(routes)
    found, components = msgspec.json.schema_components(kinds, schema_hook=_schema_hook, ref_template=REF + "{name}")
    schemas = {id(kind): portable(schema) for kind, schema in zip(kinds, found, strict=True)}
    paths: Json = {}
    for route in routes:
        item = paths.setdefault(_template(route.path), {})
        if route.method.lower() in item:
            message = f"{route.method} {route.path} is there twice"
            raise ValueError(message)
        item[route.method.lower()] = _operation(route, schemas)
    info = {"title": title, "version": version, "description": description}
    return {
        "openapi": "3.1.0",
        "info": {name: text for name, text in info.items() if text},
        "tags": [{"name": tag} for tag in dict.fromkeys(route.tag for route in routes)],
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": {
                **portable(components),
                "MetadataValue": METADATA_VALUE_SCHEMA,
                "Problem": PROBLEM_SCHEMA,
            },
            "responses": {
                "Problem": {
                    "description": "Any other refusal, e.g. 404 for an unknown path.",
                    "headers": _header_refs(["X-Request-ID"]),
                    "content": {PROBLEM_JSON: {"schema": {"$ref": REF + "Problem"}}},
                }
            },
            "parameters": PARAMETERS,
            "headers": HEADERS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                **{name: {"type": "apiKey", "in": "header", "name": field} for field, name in KEY_SCHEMES.items()},
            },
        },
    }
