"""What kubectl makes of one plain YAML scalar.

kubectl and the API server read YAML 1.1 with Go's ``yaml.v2`` and write it as JSON, so that
``2e-4`` is a number, ``8.0`` is the whole number 8, ``017`` is 15 and ``yes`` is true. The same
rules here, so that one file is one object everywhere.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from typing import Any

_TRUE = frozenset(["y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"])
_FALSE = frozenset(["n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"])
_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_INFINITE = {
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INT = re.compile(r"[-+]?(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]+|0|[1-9][0-9]*)")
_CORE = "tag:yaml.org,2002:"


def plain(text: str) -> Any:
    """Return the value of a scalar without quotes and without a tag."""
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if text in _NULL:
        return None
    if text in _INFINITE:
        return _INFINITE[text]
    if text[0] == ".":
        return _as_json(float(text)) if _FLOAT.fullmatch(text) else text
    if text[0] not in "+-0123456789":
        return text
    digits = text.replace("_", "")
    if _INT.fullmatch(digits):
        number = _integer(digits)
        return number if -(2**63) <= number < 2**63 else float(number)
    return _as_json(float(digits)) if _FLOAT.fullmatch(digits) else text


def tagged(tag: str, text: str) -> Any:
    """Return the value of a scalar with a tag of YAML's own, such as ``!!str``.

    Raises ``ValueError`` where the tag is unknown, or the text is not of it.
    """
    kind = tag.removeprefix(_CORE).removeprefix("!!")
    if kind in {"str", "!"}:
        return text
    if kind == "binary":
        try:
            return base64.b64decode(text, validate=False).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise ValueError("!!binary has to be base64 of text") from error
    value = plain(text)
    wanted: dict[str, tuple[type, ...]] = {
        "int": (int,),
        "float": (int, float),
        "bool": (bool,),
        "null": (type(None),),
    }
    if kind not in wanted:
        raise ValueError(f"the tag {tag} means nothing to Kubernetes")
    if not isinstance(value, wanted[kind]) or (isinstance(value, bool) and kind != "bool"):
        raise ValueError(f"{text!r} is not what !!{kind} says")
    return value


def _integer(digits: str) -> int:
    """Return a whole number as Go reads it: a leading 0 means octal."""
    sign = -1 if digits[0] == "-" else 1
    body = digits.lstrip("+-").lower()
    for prefix, base in (("0x", 16), ("0b", 2), ("0o", 8)):
        if body.startswith(prefix):
            return sign * int(body[2:], base)
    return sign * int(body, 8 if len(body) > 1 and body[0] == "0" else 10)


def _as_json(number: float) -> int | float:
    """Return a number as it comes back from JSON: without a fraction it is a whole number."""
    if math.isfinite(number) and number.is_integer() and abs(number) < 2**63:
        return int(number)
    return number


def key_text(value: Any) -> str:
    """Return the key that a scalar becomes in JSON.

    Raises ``ValueError`` where it becomes none.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    raise ValueError("a name must be text")
