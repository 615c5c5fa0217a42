"""Random number generators of one process, as a document that torch loads without pickle code."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

State = dict[str, Any]


def file_name(rank: int) -> str:
    """Return the name of a rank's file in a checkpoint."""
    return f"rng_state_{rank}.pth"


def capture() -> State:
    """Return the state of python's, numpy's, torch's and the current device's generators.

    Waits for no device: the state of CUDA's generator is kept on the host.
    """
    import numpy
    import torch

    kind, keys, position, has_gauss, gauss = numpy.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    state: State = {
        "python": (version, list(internal), gauss_next),
        "numpy": (
            str(kind),
            [int(key) for key in keys],
            int(position),
            int(has_gauss),
            float(gauss),
        ),
        "torch": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore(state: State) -> None:
    """Set all generators to a state that ``capture`` returned."""
    import numpy
    import torch

    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, position, has_gauss, gauss = state["numpy"]
    numpy.random.set_state(
        (kind, numpy.array(keys, dtype=numpy.uint32), position, has_gauss, gauss)
    )
    torch.random.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def load(folder: Path, rank: int) -> None:
    """Restore the generators of a rank from a checkpoint that was verified."""
    import torch

    restore(torch.load(folder / file_name(rank), weights_only=True))


@contextmanager
def preserved() -> Iterator[None]:
    """Leave the generators as they were, whatever is drawn inside (evaluation, saving)."""
    state = capture()
    try:
        yield
    finally:
        restore(state)
