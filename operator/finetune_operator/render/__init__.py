"""Kubernetes objects of a job as plain data: built from what is known, never read or written here."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]
"""One Kubernetes object, or a part of one, in the API's own spelling."""
