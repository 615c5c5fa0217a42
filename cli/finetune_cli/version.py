"""``finetune version``: the client, and what it can learn of operator and trainer."""

from __future__ import annotations

import argparse
from importlib.metadata import version
from typing import Any

from finetune_api import API_VERSION
from finetune_api.problem import Refused
from finetune_cli.cluster import connection
from finetune_cli.cluster.operator import Operator, operators


def add_parser(subparsers: Any) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "version",
        help="print versions",
        description="Print the versions of this client and, where a cluster can be reached, of its"
        " operator and trainer. What cannot be learnt is said, and is no failure.",
    )
    parser.add_argument("--client", action="store_true", help="ask no cluster")
    connection.add_arguments(parser)


def main(arguments: argparse.Namespace) -> int:
    """Print the versions."""
    print(f"finetune {version('finetunejob')}")
    print(f"api      {API_VERSION}")
    if arguments.client:
        return 0
    for line in _of_cluster(arguments):
        print(line)
    return 0


def _of_cluster(arguments: argparse.Namespace) -> list[str]:
    try:
        cluster = connection.connect(arguments)
        found = operators(cluster)
    except ModuleNotFoundError as error:
        return [f"operator not known: {error.name} is not installed (finetunejob[cli])"]
    except Refused as refused:
        return [f"operator not known: {refused.problems[0].message}", "trainer  not known"]
    if not found:
        return [f"operator not found: no Deployment of it in {cluster.place}", "trainer  not known"]
    return [line for one in found for line in lines(one)]


def lines(one: Operator) -> list[str]:
    """Return what is known of one operator and of the trainer that it starts."""
    said = one.version or "of an unknown version"
    trainer = one.trainer or "not known: the operator names none, profiles may"
    return [
        f"operator {said}  {one.image}  ({one.namespace}/{one.name})",
        f"trainer  {trainer}",
    ]
