"""Where models, adapters and data come from: the URIs of the contract."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import StringConstraints

from finetune_api.document import SUBDOMAIN, Document, Name

Scheme = Literal["hf", "modelscope", "pvc", "job"]

_SEGMENT = r"(\.?[^/\\.\x00-\x1f][^/\\\x00-\x1f]*|\.\.[^/\\\x00-\x1f]+)"
"""One part of a path, never ``.`` or ``..``: a path cannot climb out of its claim."""
_CLAIM = rf"pvc://{SUBDOMAIN}(/{_SEGMENT})*/?"
CLAIM_PATTERN = f"^{_CLAIM}$"
URI_PATTERN = (
    r"^((hf|modelscope)://[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*"
    rf"|{_CLAIM}"
    r"|job://[a-z]([-a-z0-9]*[a-z0-9])?)$"
)
Uri = Annotated[str, StringConstraints(pattern=URI_PATTERN, min_length=6, max_length=1024)]


class SecretKeyRef(Document):
    """One key of a secret in the job's own namespace; there is no namespace field."""

    name: Name
    key: Annotated[
        str, StringConstraints(pattern=r"^\.?[-_a-zA-Z0-9][-._a-zA-Z0-9]*$", max_length=253)
    ] = "token"
    """As Kubernetes names keys: never ``.`` or ``..``, which are no files."""


@dataclass(frozen=True)
class Source:
    """A parsed URI: ``name`` is the repository, claim or job; ``path`` is inside a claim."""

    scheme: Scheme
    name: str
    path: str = ""

    def __str__(self) -> str:
        """Return the URI again."""
        return f"{self.scheme}://{self.name}" + (f"/{self.path}" if self.path else "")


def parse_uri(text: str) -> Source:
    """Split a URI of the contract.

    Raises ``ValueError`` with the fix in it when the text is none, or when a path in a claim
    tries to climb out of it.
    """
    scheme, _, rest = text.partition("://")
    if scheme == "pvc" and {".", ".."} & set(rest.split("/")[1:]):
        raise ValueError(f"{text!r} must not contain . or .. in its path")
    if not re.fullmatch(URI_PATTERN, text):
        raise ValueError(
            f"{text!r} is not hf://owner/name, modelscope://owner/name, pvc://claim/path "
            "or job://name"
        )
    if scheme == "pvc":
        claim, _, path = rest.partition("/")
        return Source("pvc", claim, path.rstrip("/"))
    return Source("job" if scheme == "job" else "hf" if scheme == "hf" else "modelscope", rest)
