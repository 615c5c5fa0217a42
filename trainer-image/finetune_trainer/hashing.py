"""Hashes of files, remembered, and writes that survive a crash."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from finetune_trainer.checkpoint import durable

CHUNK = 1 << 22


def sha256_of(path: Path) -> str:
    """Return the hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def hashes_of(files: list[Path], cache: Path) -> dict[Path, str]:
    """Return the sha256 of each file; one that did not change since ``cache`` knew it is not read.

    Unchanged means the same real path, size, modification time (ns) and inode.
    """
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    result, fresh = {}, dict(known)
    for path in files:
        key, stat = str(path.resolve()), path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        entry = known.get(key)
        if not entry or entry[:3] != stamp:
            fresh[key] = [*stamp, sha256_of(path)]
        result[path] = str(fresh[key][3])
    if fresh != known:
        write_json(cache, fresh)
    return result


def write_json(path: Path, data: Any) -> None:
    """Replace a JSON file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    # Names of files may be no UTF-8; what stands for such a byte is then JSON's own escape for it.
    durable.replace(path, text.encode("utf-8", "backslashreplace"))


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below ``folder``."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            durable.flush_file(Path(root, name))
        durable.flush_folder(Path(root))
