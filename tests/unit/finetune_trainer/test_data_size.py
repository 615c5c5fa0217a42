"""How much room prepared data will take, by the text of the rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from finetune_api.job.dataset import Dataset
from finetune_trainer.data.check import Checked
from finetune_trainer.data.dataset import read_dataset
from finetune_trainer.data.formats import Conversation, LossOn, Message, Pair
from finetune_trainer.data.size import PreparedSize, texts
from harness.chat_rows import chats
from harness.stage_config import make_config, write_rows

TALK = Conversation(
    (
        Message("system", "s" * 10),
        Message("user", "u" * 100),
        Message("assistant", "a" * 20),
        Message("user", "ü" * 50),
        Message("assistant", "b" * 30),
    )
)


def sized(example: Conversation | Pair, loss_on: LossOn = "Assistant", **spec: object) -> int:
    dataset = Dataset.model_validate({"train": [{"uri": "pvc://d/x"}], **spec})
    size = PreparedSize(dataset)
    size.add(Checked("x", 1, example, loss_on))
    return size.bytes


@pytest.mark.parametrize(
    ("loss_on", "unroll", "expected"),
    [
        # 64 a document, 32 a turn: up to the first answer 64 + 42 + 132 + 52, then 132 + 62 more
        ("Assistant", False, [484]),
        ("Assistant", True, [290, 484]),
        ("LastAssistant", True, [484]),
        ("All", True, [484]),
    ],
)
def test_an_unrolled_turn_repeats_those_before_it(loss_on, unroll, expected):
    assert texts(Checked("x", 1, TALK, loss_on), unroll=unroll) == expected


def test_a_byte_and_a_half_for_a_byte_of_text_and_no_more_than_is_kept():
    assert sized(TALK) == 726
    assert sized(TALK, unrollTurns=True) == 435 + 726
    assert sized(Pair("p" * 100, "c" * 36)) == 300
    assert sized(Pair("p" * 9000, "c" * 936), maxLength=100) == 496  # 400 of tokens and 96
    assert sized(Pair("p" * 9000, "c" * 936), maxLength=100, overlong="Split") == 15000


def test_compressed_files_take_as_much_room_as_plain_ones(tmp_path: Path):
    folder = tmp_path / "volumes" / "datasets"
    write_rows(folder / "train.jsonl", chats(40))
    (folder / "array.json.gz").write_bytes(gzip.compress(json.dumps(chats(40)).encode()))
    found = []
    for source in (
        {"uri": "pvc://datasets/train.jsonl"},
        {"uri": "pvc://datasets/array.json.gz"},
        {"uri": "pvc://datasets/array.json.gz", "maxRows": 10},
    ):
        config = make_config(tmp_path, "prepare", {"dataset": {"train": [source]}})
        found.append(read_dataset(config).prepared_bytes)
    # rows 0 to 9: 128 of turns and document, "What is your name? 0" and "I am Otto 0.": 160 bytes
    assert found == [40 * 240 + 30 * 3, 40 * 240 + 30 * 3, 10 * 240]
