"""Proof that a published model computes what was trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.exit_codes import ExitCode
from finetune_api.problem import Problem
from finetune_api.reports import Verification
from finetune_trainer.errors import StageError
from finetune_trainer.export import clean
from finetune_trainer.export.prompts import Proof

if TYPE_CHECKING:
    import torch

ROUNDING = {"float32": 1e-4, "float16": 4e-3, "bfloat16": 3e-2}
"""Largest difference of a logit that rounding weights to a type explains, as a part of the largest
logit: four times what was measured on SmolLM2-135M (0.1 % for fp16, 0.76 % for bf16); for fp32 it is
sums in another order."""
ARITHMETIC = 2.0
"""Times as much where the logits themselves are computed in 16 bits (2.7 % measured for bf16)."""
ANSWER = 128
"""Most tokens that an answer may take to stop."""
TRIED = 4
TIMEOUT = 3600.0
ENVIRONMENT = ("PATH", "HOME", "TMPDIR", "LANG", "OMP_NUM_THREADS", "VIRTUAL_ENV", "HF_HOME")


def dtype_name(dtype: torch.dtype) -> str:
    """Return ``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def difference(reference: dict[str, Any], found: dict[str, Any]) -> float:
    """Return the largest absolute difference; infinite where a number is none or a prompt lacks."""
    import torch

    if reference.keys() != found.keys():
        return float("inf")
    worst = 0.0
    for name, wanted in reference.items():
        if wanted.shape != found[name].shape:
            return float("inf")
        if not (torch.isfinite(wanted).all() and torch.isfinite(found[name]).all()):
            return float("inf")
        worst = max(worst, float((wanted - found[name]).abs().max()))
    return worst


def tolerance(reference: dict[str, Any], dtype: torch.dtype, working: torch.dtype) -> float:
    """Return the difference that rounding to ``dtype`` explains when computing in ``working``."""
    largest = max((float(logits.abs().max()) for logits in reference.values()), default=0.0)
    factor = 1.0 if dtype_name(working) == "float32" else ARITHMETIC
    return ROUNDING[dtype_name(dtype)] * factor * max(1.0, largest)


def check_merge(reference: dict[str, Any], merged: dict[str, Any], dtype: torch.dtype) -> None:
    """Raise ``StageError`` when the merged model, in the type of the merge, computes otherwise."""
    worst, allowed = difference(reference, merged), tolerance(reference, dtype, dtype)
    if worst > allowed:
        raise _wrong("the merged model differs from base and adapter", worst, allowed)


def check_published(
    folder: Path,
    reference: dict[str, Any],
    proof: Proof,
    *,
    dtype: torch.dtype,
    working: torch.dtype,
    attention: str,
    base: Path | None = None,
) -> Verification:
    """Load the published files in a clean process and compare their logits with the reference.

    ``base``: for an adapter that is published without its base. Raises ``StageError`` when the
    model cannot be loaded or its logits differ by more than rounding to ``dtype`` explains.
    """
    request = {
        "inputs": proof.inputs,
        "questions": proof.questions[:TRIED],
        "max_new_tokens": min(ANSWER, 2 * proof.answer_length + 16),
        "dtype": dtype_name(working),
        "attention": attention,
        "base": str(base) if base else None,
    }
    found, told = _in_clean_process(folder, request)
    worst, allowed = difference(reference, found), tolerance(reference, dtype, working)
    if worst > allowed:
        raise _wrong("the published model differs from what was trained", worst, allowed)
    return Verification(
        prompts=len(reference),
        max_difference=worst,
        tolerance=allowed,
        loaded_in_clean_process=True,
        stops=bool(told["stopped"]),
    )


def _in_clean_process(
    folder: Path, request: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the logits and the answer of a process that knows the folder only."""
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        (scratch / "request.json").write_text(json.dumps(request), encoding="utf-8")
        kept = {key: os.environ[key] for key in ENVIRONMENT if key in os.environ}
        try:
            done = subprocess.run(  # noqa: S603 - our own program with our own arguments
                [
                    sys.executable,
                    "-I",
                    clean.__file__,
                    str(folder),
                    str(scratch / "request.json"),
                    name,
                ],
                cwd=name,
                env={**kept, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise _too_slow(error.timeout) from error
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
            raise StageError(
                ExitCode.UNEXPECTED,
                Problem(
                    code="output-does-not-load",
                    message=f"the published model cannot be loaded: {lines[-1]}"[:1024],
                    fix="publish again; where it happens again, report it with the log",
                ),
            )
        answer = json.loads((scratch / "answer.json").read_text(encoding="utf-8"))
        return load_file(scratch / "logits.safetensors"), answer


def _too_slow(seconds: float) -> StageError:
    """Return the error of a proof that did not end; the process is gone by then."""
    return StageError(
        ExitCode.UNEXPECTED,
        Problem(
            code="output-not-verified-in-time",
            message=f"the published model was not loaded and asked within {seconds:g} s in a "
            "process of its own",
            fix="give publishing more processors (resources.publishing.cpu), or the workspace a "
            "faster volume; it is tried again",
            field="spec.resources.publishing",
        ),
    )


def _wrong(what: str, worst: float, allowed: float) -> StageError:
    """Return the error of a model that computes something else than what was trained."""
    return StageError(
        ExitCode.UNEXPECTED,
        Problem(
            code="merge-not-verified",
            message=f"{what}: logits are off by {worst:.3g}, and rounding explains {allowed:.3g}",
            fix="publish again; where it happens again, set output.merge: false and report it",
            field="spec.output.merge",
        ),
    )
