"""What the process that ranks are forked from holds ready: imports are paid for once a node."""

from __future__ import annotations

import os
import signal

# Whoever signals the process group must not take away what collects the ranks' exit codes. A rank
# hears signals as soon as it runs.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)

from finetune_trainer.start import leave_out  # noqa: E402

leave_out()
import finetune_trainer.train  # noqa: E402, F401

if os.environ.get("FINETUNE_PRELOAD_DEEPSPEED"):
    import deepspeed  # noqa: F401
