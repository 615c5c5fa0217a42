"""Hashes of files are remembered, whatever the files are called."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from finetune_trainer import hashing


def test_names_that_are_no_utf8_are_remembered_too(tmp_path, monkeypatch):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl"))
    plain = tmp_path / "Tür\\udce9.jsonl"
    odd.write_bytes(b"a")
    plain.write_bytes(b"b")
    cache = tmp_path / "reports" / "hashes.json"
    expected = {odd: hashlib.sha256(b"a").hexdigest(), plain: hashlib.sha256(b"b").hexdigest()}
    assert hashing.hashes_of([odd, plain], cache) == expected
    text = cache.read_text(encoding="utf-8")
    assert "caf\\udce9.jsonl" in text
    assert set(json.loads(text)) == {str(odd.resolve()), str(plain.resolve())}
    monkeypatch.setattr(hashing, "sha256_of", lambda _: "read again")
    assert hashing.hashes_of([odd, plain], cache) == expected
