"""Kubernetes quantities and lengths of time as numbers, and back for people."""

from __future__ import annotations

import re
from decimal import Decimal

_SUFFIX = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{s: Decimal(1000) ** n for n, s in enumerate("kMGTPE", start=1)},
    **{s + "i": Decimal(1024) ** n for n, s in enumerate("KMGTPE", start=1)},
}
_QUANTITY = re.compile(r"^([0-9]+(?:\.[0-9]+)?)(m|[kMGTPE]|[KMGTPE]i)?$")
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_quantity(text: str) -> Decimal:
    """Return a Kubernetes quantity in its base unit (bytes, cores, pieces).

    Raises ``ValueError`` with the text in it when it is not one.
    """
    found = _QUANTITY.match(text)
    if not found:
        raise ValueError(f"{text!r} is not a quantity such as 80Gi, 500m or 32")
    return Decimal(found[1]) * _SUFFIX[found[2] or ""]


def parse_bytes(text: str) -> int:
    """Return a quantity of bytes as a whole number, rounded down."""
    return int(parse_quantity(text))


def parse_duration(text: str) -> float:
    """Return a length of time in seconds: ``1h30m`` is 5400.0.

    Raises ``ValueError`` with the text in it when it is not one.
    """
    parts = _PART.findall(text)
    if not parts or "".join(n + u for n, u in parts) != text:
        raise ValueError(f"{text!r} is not a length of time such as 90s, 10m or 1h30m")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def format_bytes(count: float) -> str:
    """Return bytes for people in powers of 1024: ``61.2 GiB``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


def format_duration(seconds: float) -> str:
    """Return seconds for people, in at most two units: ``45s``, ``22m``, ``3h12m``, ``2d4h``."""
    left = max(0, round(seconds))
    if left < 60:
        return f"{left}s"
    if left < 3600:
        minutes, rest = divmod(left, 60)
        return f"{minutes}m{rest:02d}s" if minutes < 10 and rest else f"{minutes}m"
    if left < 86400:
        hours, rest = divmod(left, 3600)
        return f"{hours}h{rest // 60:02d}m" if rest >= 60 else f"{hours}h"
    days, rest = divmod(left, 86400)
    return f"{days}d{rest // 3600}h" if rest >= 3600 else f"{days}d"
