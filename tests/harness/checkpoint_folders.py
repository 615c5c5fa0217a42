"""Checkpoints on disk without a trainer: real manifests over small files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from finetune_api.checkpoint import CheckpointRef, FileEntry, Manifest
from finetune_api.names import MANIFEST, Layout
from finetune_trainer.checkpoint import verify

EXPECTED = verify.Expected(
    job_uid="00000000-0000-4000-8000-000000000001",
    dataset_fingerprint="sha256:" + "1" * 64,
    model_digest="sha256:" + "2" * 64,
    tokenizer_digest="sha256:" + "3" * 64,
    engine="ddp",
    method="lora",
    precision="fp32",
    global_batch_size=4,
    seed=42,
)


def write_files(folder: Path, step: int, ranks: int = 2) -> tuple[FileEntry, ...]:
    """Write one small file a rank; returns their entries."""
    folder.mkdir(parents=True)
    entries = []
    for rank in range(ranks):
        data = f"step {step} of rank {rank}".encode()
        path = folder / f"rng_state_{rank}.pth"
        path.write_bytes(data)
        entries.append(
            FileEntry(
                path=path.name, size=len(data), sha256=hashlib.sha256(data).hexdigest(), rank=rank
            )
        )
    return tuple(entries)


def make_checkpoint(
    layout: Layout, claim: int, step: int, changes: dict[str, object] | None = None
) -> CheckpointRef:
    """Write a checkpoint of two ranks; ``changes`` are laid over its manifest."""
    folder = layout.checkpoint(claim, step)
    fields: dict[str, object] = {
        **vars(EXPECTED),
        "claim": claim,
        "attempt": claim,
        "step": step,
        "epoch": step / 10,
        "world_size": 2,
        "micro_batch_size": 1,
        "files": write_files(folder, step),
        "time": "2026-01-02T03:04:05Z",
        **(changes or {}),
    }
    manifest = Manifest.model_validate(fields)
    (folder / MANIFEST).write_text(json.dumps(manifest.to_json()), encoding="utf-8")
    return verify.reference(layout, folder, manifest)


def flip_byte(path: Path, index: int = 0) -> None:
    """Flip the lowest bit of one byte; the size stays."""
    data = bytearray(path.read_bytes())
    data[index] ^= 1
    path.write_bytes(bytes(data))


def contents(root: Path) -> dict[str, bytes]:
    """Return every file below a folder by its relative path."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
