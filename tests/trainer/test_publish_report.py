"""The page of a job: curves along the line of claims that led to the result, one file, no scripts."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from finetune_api.checkpoint import CheckpointRef
from finetune_api.names import Layout
from finetune_api.reports import CompletionManifest, Verification
from finetune_trainer.checkpoint import claim
from finetune_trainer.export import report

DIGEST = "sha256:" + "1" * 64


def job(root: Path) -> Layout:
    """Claim 1 logs to step 4; claim 2 goes on from step 2, logs 3 to 6."""
    layout = Layout(root)
    layout.reports.mkdir(parents=True)
    origin = CheckpointRef(step=2, path="checkpoints/1/step-2", digest=DIGEST)
    for resumes_from in (None, origin):
        claim.take(layout, job_uid="u", attempt=1, pod_uid="p", resumes_from=resumes_from)
    lines: list[Any] = [{"claim": 1, "step": 0, "evaluation": {"loss": 5.0, "tokens": 7}}]
    lines += [
        {"claim": 1, "step": n, "loss": 4.0 - n / 10, "learningRate": n / 1000} for n in range(1, 5)
    ]
    lines += [{"claim": 2, "step": n, "loss": 2.0 - n / 10} for n in range(3, 7)]
    lines += [{"claim": 2, "step": 6, "evaluation": {"loss": 1.25}}]
    lines += [{"claim": 2, "step": 6, "samples": "abc"}, {"claim": 9, "step": 1, "loss": 99.0}]
    text = "\n".join(json.dumps(line) for line in lines)
    layout.metrics.write_text(text + '\n{"claim": 2, "step": 7, "lo')
    return layout


def manifest(**changes: Any) -> CompletionManifest:
    return CompletionManifest(
        **{
            "job": "bot",
            "job_uid": "u",
            "uri": "pvc://models/bot",
            "base_model": "hf://acme/<tiny>",
            "base_digest": DIGEST,
            "method": "lora",
            "objective": "sft",
            "merged": True,
            "selected_step": 6,
            "steps": 6,
            "evaluation_before": {"loss": 5.0, "tokens": 7},
            "evaluation_after": {"loss": 1.25, "tokens": 7},
            "verification": Verification(
                prompts=16,
                max_difference=0.0012,
                tolerance=0.05,
                loaded_in_clean_process=True,
                stops=True,
            ),
            "files": (),
            "time": "2026-01-01T00:00:00Z",
            **changes,
        }
    )


def test_lost_steps_and_foreign_claims_are_left_out(tmp_path: Path) -> None:
    curves = report.read_curves(job(tmp_path))
    assert [(step, round(loss, 2)) for step, loss in curves.loss] == [
        (1, 3.9),
        (2, 3.8),
        (3, 1.7),
        (4, 1.6),
        (5, 1.5),
        (6, 1.4),
    ]
    assert curves.evaluation == [(0, 5.0), (6, 1.25)]
    assert curves.learning_rate == [(1, 0.001), (2, 0.002)]
    assert curves.resumes == [2]


def test_the_page_stands_alone(tmp_path: Path) -> None:
    page = report.render(manifest(), report.read_curves(job(tmp_path)), [("tokens", "1,234")])
    assert "<script" not in page
    assert "http" not in page
    assert "hf://acme/&lt;tiny&gt;" in page
    assert "5 → 1.25" in page
    assert "logits on 16 prompts differ by at most 0.0012 (allowed 0.05)" in page
    assert "resumed from step 2" in page
    root = ElementTree.fromstring(
        page.removeprefix("<!doctype html>\n").replace('<meta charset="utf-8">', "")
    )
    charts = list(root.iter("svg"))
    assert len(charts) == 2
    lines = [line.get("points") for line in charts[0].iter("polyline")]
    assert [len(points.split()) for points in lines if points] == [6, 2]
    # Steps 0 to 6 over the width: the first evaluation at the left edge, the last at the right.
    first, last = (lines[1] or "").split()
    assert (first.split(",")[0], last.split(",")[0]) == ("56.0", "704.0")


def test_nothing_was_logged(tmp_path: Path) -> None:
    page = report.render(manifest(verification=None), report.read_curves(Layout(tmp_path)))
    assert "Nothing was logged." in page


def test_one_point_and_equal_values_can_be_drawn() -> None:
    assert "<polyline" in report.chart({"loss": [(3, 2.0)]}, [])
    assert "<polyline" in report.chart({"loss": [(1, 0.0), (2, 0.0)]}, [1])
