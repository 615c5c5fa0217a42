"""The operator as another release would be: other defaults, other pods, another trainer image."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = (ROOT / "api/finetune_api", ROOT / "operator/finetune_operator")
IMAGE = "registry.example/trainer@sha256:" + "d" * 64
CHANGES = {
    # A job that is resolved again would train at another rate, under another digest.
    "finetune_operator/resolve/builtin.py": ('"sft": 2e-4,', '"sft": 9e-4,'),
    # A child that is rendered again would not be what runs.
    "finetune_operator/render/environment.py": (
        '"USER": "finetune",',
        '"USER": "finetune",\n    "FINETUNE_RELEASE": "another",',
    ),
}


def other_version(folder: Path) -> Path:
    """Write the packages of another release into a folder; it goes first in ``PYTHONPATH``."""
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(package, folder / package.name, ignore=ignored)
    for path, (old, new) in CHANGES.items():
        file = folder / path
        text = file.read_text()
        if old not in text:
            raise RuntimeError(f"{path} does not hold {old!r} any more: change another line")
        file.write_text(text.replace(old, new))
    return folder
