"""The day that chat templates write as today's: the same for all preparations of a job."""

from __future__ import annotations

import json
from datetime import date, datetime, time
from pathlib import Path

from finetune_trainer.hashing import write_json


def day_of(record: Path) -> date:
    """Return the day that ``record`` holds; today's is written there where it holds none.

    Prepared data that is made again on another day has the same tokens then, and a checkpoint's
    position in it means the same rows. Nor does a midnight fall between two rows.
    """
    try:
        return date.fromisoformat(json.loads(record.read_text(encoding="utf-8"))["day"])
    except (OSError, ValueError, KeyError, TypeError):
        day = today()
    write_json(record, {"day": day.isoformat()})
    return day


def today() -> date:
    """Return the day by the clock of this machine, as the library that renders templates does."""
    return date.today()


def written(day: date, form: str) -> str:
    """Return a day in a form of ``strftime``; its hours are those of midnight."""
    return datetime.combine(day, time()).strftime(form)
