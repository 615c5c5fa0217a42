"""``finetune version``."""

from __future__ import annotations

import argparse
from importlib.metadata import version
from typing import Any

from finetune_api import API_VERSION


def add_parser(subparsers: Any) -> None:
    """Add the verb."""
    subparsers.add_parser("version", help="print versions")


def main(arguments: argparse.Namespace) -> int:
    """Print the version of the client and of the API that it knows."""
    del arguments
    print(f"finetune {version('finetunejob')}")
    print(f"api      {API_VERSION}")
    return 0
