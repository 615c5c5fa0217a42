"""What a rank says of its attempt at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Facts:
    """What a rank knows of its attempt; filled as it goes, told at the end."""

    values: dict[str, Any] = field(default_factory=dict)

    def know(self, **values: Any) -> None:
        """Add or replace fields of the report."""
        self.values |= values
