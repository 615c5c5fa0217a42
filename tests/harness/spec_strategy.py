"""Random data that a structural schema accepts, for hypothesis."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import strategies as st

_ASCII = st.characters(codec="ascii")


def from_schema(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return values of a schema; what is optional is left out about as often as not."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema.get("x-kubernetes-int-or-string"):
        words = [word for word in ("80Gi", "500m", "1.5T") if re.search(schema["pattern"], word)]
        return st.integers(schema["minimum"], 10**6) | st.sampled_from(words)
    kind = schema.get("type")
    if kind == "object" and "properties" in schema:
        return _object(schema)
    if kind == "object":
        values = schema.get("additionalProperties")
        if not values and "x-kubernetes-preserve-unknown-fields" not in schema:
            return st.just({})
        inner = from_schema(values) if values else st.just(1)
        return st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3)
    if kind == "array":
        least, most = schema.get("minItems", 0), schema["maxItems"]
        return st.lists(from_schema(schema["items"]), min_size=least, max_size=min(most, least + 2))
    if kind == "integer":
        least, most = schema.get("minimum", -1000), schema.get("maximum", 10**9)
        return st.integers(least, min(most, least + 40)) | st.integers(least, most)
    if kind == "number":
        return st.floats(
            schema.get("minimum", -1000.0),
            schema.get("maximum", 1000.0),
            exclude_min=schema.get("exclusiveMinimum", False),
            exclude_max=schema.get("exclusiveMaximum", False),
        ) | st.just(schema.get("maximum", 1.0) / 2)
    if kind == "boolean":
        return st.booleans()
    if "pattern" in schema:
        return st.from_regex(schema["pattern"], fullmatch=True, alphabet=_ASCII).filter(
            lambda text: (
                schema.get("minLength", 0) <= len(text) <= schema["maxLength"]
                and not text.endswith("\n")
            )
        )
    if kind == "string":
        return st.text(min_size=schema.get("minLength", 0), max_size=8)
    # A union has no type: lists of module names, or one expression.
    return st.just("all-linear") | st.just(["q_proj", "v_proj"])


def _object(schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    members = {name: from_schema(child) for name, child in schema["properties"].items()}
    required = {name: members.pop(name) for name in schema.get("required", [])}
    return st.fixed_dictionaries(required, optional=members)
