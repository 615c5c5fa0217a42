"""``python -m finetune_trainer.check_data CONFIG REPORT``: every row checked, nothing prepared.

For ``finetune validate --data``. Needs no model; writes REPORT (a ``PrepareReport``) and nothing
else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from finetune_api.resolved import StageConfig
from finetune_trainer import prepare


def main(arguments: Sequence[str]) -> int:
    """Check the rows of a configuration; 0 whatever is wrong with them."""
    config, report = map(Path, arguments)
    found = prepare.check(StageConfig.model_validate_json(config.read_bytes()))
    report.write_text(json.dumps(found.to_json(), ensure_ascii=False), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
