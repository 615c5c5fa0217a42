"""What the process that ranks are forked from holds ready: imports are paid for once a node."""

from __future__ import annotations

import os

import finetune_trainer.train  # noqa: F401

if os.environ.get("FINETUNE_PRELOAD_DEEPSPEED"):
    import deepspeed  # noqa: F401
