"""A small valid value for a JSON schema, for the examples of the reference."""

from collections.abc import Mapping
from typing import Any, Final

Json = dict[str, Any]

KNOWN: Final[Mapping[str, Any]] = {
    "tenant_id": "acme",
    "amount": 5,
    "reservation_id": "0199a2c4-5b1e-7c3a-9d20-4f6e8a1b2c3d",
    "transaction_id": "0199a2c4-5b1e-7c3a-9d20-4f6e8a1b2c3d",
}
DEPTH_MAX: Final = 6  # schemas that refer to themselves end here.


def resolve(schema: Json, document: Json) -> Json:
    """The schema that a local `$ref` names, or the schema itself."""
    while "$ref" in schema:
        target: Any = document
        for step in schema["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        schema = target
    return schema


def _text(schema: Json) -> str:
    if schema.get("format") == "date-time":
        return "2026-11-21T12:00:00Z"
    if schema.get("format") == "uuid":
        return str(KNOWN["transaction_id"])
    return "text"[: schema.get("maxLength", 4)] if "pattern" not in schema else "example"


def sample(schema: Json, document: Json, name: str = "", depth: int = 0) -> Any:
    """A value for `schema`: required members only, the first of alternatives, the lowest number in range."""
    schema = resolve(schema, document)
    if name in KNOWN and ("type" in schema and schema["type"] in {"string", "integer"}):
        return KNOWN[name]
    for word in ("const", "default"):
        if schema.get(word) is not None:
            return schema[word]
    if schema.get("enum"):
        return next(value for value in schema["enum"] if value is not None)
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        return sample(next(one for one in choices if one.get("type") != "null"), document, name, depth)
    return _of_type(schema, document, name, depth)


def _of_type(schema: Json, document: Json, name: str, depth: int) -> Any:
    """`sample` by the word that `type` is."""
    match schema.get("type"):
        case "object":
            required = schema.get("required", []) if depth < DEPTH_MAX else []
            members = schema.get("properties", {})
            return {key: sample(members[key], document, key, depth + 1) for key in required}
        case "array":
            count = max(1, schema.get("minItems", 1)) if depth < DEPTH_MAX else 0
            return [sample(schema.get("items", {}), document, name, depth + 1) for _ in range(count)]
        case "integer" | "number":
            return schema.get("minimum", 1)
        case kind:
            return {"boolean": True, "string": _text(schema)}.get(str(kind))
