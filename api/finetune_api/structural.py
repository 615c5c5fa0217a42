"""The structural schema of a model: no ``$ref``, no ``anyOf`` with null, everything bounded.

The API server bounds the cost of the rules by it. It carries no defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from finetune_api.job import JobSpec

Schema = dict[str, Any]

_KEPT = (
    "description",
    "type",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "maxProperties",
)
# What refuses every value of a type, for unions: a keyword that speaks of another type is ignored.
_NEVER: dict[str, Schema] = {
    "string": {"minLength": 1, "maxLength": 0},
    "array": {"minItems": 1, "maxItems": 0},
    "object": {"minProperties": 1, "maxProperties": 0},
    "number": {"minimum": 1, "maximum": 0},
    "boolean": {"not": {"enum": [True, False]}},
}


def structural(model: type[BaseModel]) -> Schema:
    """Return the structural schema of a model.

    Raises ``ValueError`` for a string, list or map without a bound.
    """
    whole = model.model_json_schema(by_alias=True, mode="validation")
    return _walk(whole, whole.get("$defs", {}), model.__name__)


def without_required(schema: Schema) -> Schema:
    """Return the schema with every field optional, for a part of an object."""
    return {
        key: _deep(value, without_required) for key, value in schema.items() if key != "required"
    }


def _deep(value: Any, change: Any) -> Any:
    if isinstance(value, dict):
        return change(value)
    return [_deep(item, change) for item in value] if isinstance(value, list) else value


def _walk(node: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> Schema:
    node = _inlined(node, definitions)
    if node.get("partial"):
        part = without_required(structural(JobSpec))
        return {**part, "description": node["description"]} if "description" in node else part
    if "anyOf" in node:
        return _union(node, definitions, path)
    found: Schema = {key: node[key] for key in _KEPT if key in node}
    if "description" in found:
        found["description"] = " ".join(found["description"].replace("``", "").split())
    if "const" in node:
        found["enum"] = [node["const"]]
    for side in ("Minimum", "Maximum"):
        if f"exclusive{side}" in node:
            found[side.lower()] = node[f"exclusive{side}"]
            found[f"exclusive{side}"] = True
    if node.get("x-kubernetes-int-or-string"):
        return _int_or_string(found)
    kind = node.get("type")
    if kind == "integer":
        found["format"] = "int64"
    elif kind == "string" and "enum" not in found and "maxLength" not in found:
        raise ValueError(f"{path}: a string needs a bound")
    elif kind == "array":
        if "maxItems" not in found:
            raise ValueError(f"{path}: a list needs a bound")
        found["items"] = _walk(node["items"], definitions, f"{path}[]")
    elif kind == "object":
        found.update(_members(node, definitions, path))
    return found


def _members(node: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> Schema:
    """Return properties and required ones of an object, or the values of a map."""
    values = node.get("additionalProperties")
    if "patternProperties" in node:  # the API server cannot hold keys to a pattern; resolve does
        (values,) = node["patternProperties"].values()
    if isinstance(values, Mapping):
        if "maxProperties" not in node:
            raise ValueError(f"{path}: a map needs a bound")
        walked = _walk(values, definitions, f"{path}{{}}")
        if "type" in walked or "x-kubernetes-int-or-string" in walked:
            return {"additionalProperties": walked}
        # A rule sees a map only where it knows the type of its values: one of several types is
        # left to ``resolve``, and the rules see an object whose members they cannot name.
        return {"x-kubernetes-preserve-unknown-fields": True}
    properties = node.get("properties", {})
    found: Schema = {}
    required = [
        name
        for name in node.get("required", [])
        if not _inlined(properties[name], definitions).get("filled")
    ]
    if required:
        found["required"] = required
    if properties:
        found["properties"] = {
            name: _walk(value, definitions, f"{path}.{name}") for name, value in properties.items()
        }
    return found


def _inlined(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a node with what it refers to in it; its own words win."""
    if "$ref" not in node:
        return node
    name = node["$ref"].rpartition("/")[2]
    return {**definitions[name], **{key: value for key, value in node.items() if key != "$ref"}}


def _union(node: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> Schema:
    """Return one schema for several: null alone means absent; other unions have no type."""
    members = [_inlined(part, definitions) for part in node["anyOf"]]
    members = [part for part in members if part.get("type") != "null"]
    around = {key: value for key, value in node.items() if key != "anyOf"}
    if len(members) == 1:
        return _walk({**members[0], **around}, definitions, path)
    found: Schema = {"x-kubernetes-preserve-unknown-fields": True}
    if "description" in node:
        found["description"] = node["description"]
    kinds = set()
    for part in members:
        walked = _walk(part, definitions, path) if part.get("type") != "string" else part
        if part["type"] == "string" and "maxLength" not in part:
            raise ValueError(f"{path}: a string needs a bound")
        kinds.add("number" if part["type"] == "integer" else part["type"])
        if "items" in walked:  # else an item could be anything, of any depth
            found["items"] = walked["items"]
        found.update(
            {k: v for k, v in walked.items() if k in _KEPT and k not in {"type", "description"}}
        )
    for kind, never in _NEVER.items():
        if kind not in kinds:
            found.update(never)
    return found


def _int_or_string(found: Schema) -> Schema:
    """Return the schema of a quantity, which may be written as a number."""
    kept = {key: value for key, value in found.items() if key != "type"}
    return {
        **kept,
        "minimum": kept.get("minimum", 0),  # the pattern speaks of text alone
        "x-kubernetes-int-or-string": True,
        "anyOf": [{"type": "integer"}, {"type": "string"}],
    }
