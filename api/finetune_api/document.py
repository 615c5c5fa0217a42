"""The base of every model of the contract, and the one way to turn it into bytes and a digest."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel


class Document(BaseModel):
    """Frozen, closed and spelled in camelCase outside Python.

    Unknown fields are refused, so that a misspelt field can never be ignored.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data with camelCase keys; what is absent stays absent."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def canonical(data: Any) -> bytes:
    """Return the one byte form of JSON data: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(
        data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest_of(data: Any) -> str:
    """Return ``sha256:<64 hex>`` of the canonical form of JSON data."""
    return "sha256:" + hashlib.sha256(canonical(data)).hexdigest()


def filled(**kwargs: Any) -> Any:
    """Declare a field that a user may leave out because ``resolve`` always fills it.

    A field without a default is required of the user, unless it is declared so. A field with a
    default may be left out; the default is the built-in layer of ``resolve``.
    """
    return Field(json_schema_extra={"filled": True}, **kwargs)


def _spelled(value: Any) -> Any:
    """Accept an integer where a quantity is wanted, as Kubernetes does; a boolean is none."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$", max_length=71)]
_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
"""RFC 1123 subdomain: labels between single dots."""
Name = Annotated[
    str,
    StringConstraints(pattern=f"^{SUBDOMAIN}$", min_length=1, max_length=253),
]
"""The name of another object in the same namespace."""
Word = Annotated[str, StringConstraints(min_length=1, max_length=256)]
QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
Quantity = Annotated[
    str,
    BeforeValidator(_spelled),
    StringConstraints(pattern=QUANTITY_PATTERN, max_length=32),
    Field(json_schema_extra={"x-kubernetes-int-or-string": True, "pattern": QUANTITY_PATTERN}),
]
"""A Kubernetes quantity: ``80Gi``, ``500m``, ``32``."""
SIZE_PATTERN = (
    r"^([0-9]*[1-9][0-9]*(\.[0-9]+)?|0+\.[0-9]*[1-9][0-9]*)(k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
)
Size = Annotated[
    str,
    BeforeValidator(_spelled),
    StringConstraints(pattern=SIZE_PATTERN, max_length=32),
    Field(
        json_schema_extra={
            "x-kubernetes-int-or-string": True,
            "pattern": SIZE_PATTERN,
            "minimum": 1,
        }
    ),
]
"""A quantity of bytes that is more than none: no volume is made of ``0``."""
WHOLE_PATTERN = r"^[0-9]+(k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
Whole = Annotated[
    str,
    BeforeValidator(_spelled),
    StringConstraints(pattern=WHOLE_PATTERN, max_length=32),
    Field(json_schema_extra={"x-kubernetes-int-or-string": True, "pattern": WHOLE_PATTERN}),
]
"""A quantity without parts: of devices there are no halves."""
_PART = r"[0-9]+(\.[0-9]+)?(ms|s|m|h|d)"
Duration = Annotated[str, StringConstraints(pattern=rf"^({_PART})+$", max_length=32)]
"""A length of time: ``10m``, ``1h30m``, ``72h``, ``2d``."""
_SOME = r"([0-9]*[1-9][0-9]*(\.[0-9]+)?|0+\.[0-9]*[1-9][0-9]*)(ms|s|m|h|d)"
Period = Annotated[str, StringConstraints(pattern=rf"^({_PART})*{_SOME}({_PART})*$", max_length=32)]
"""A length of time that is more than none."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
