"""Rows: reading, formats and checks, with the texts that users see."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from finetune_api.job.dataset import DataSource
from finetune_api.problem import Problem, Refused
from finetune_trainer.data import read
from finetune_trainer.data.check import Checked, Settings, Source, scan, valid_rows, verdict
from finetune_trainer.data.formats import Conversation, Message, Pair

GOOD = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}
SETTINGS = Settings(loss_on=None, stanford=False, system_prompt=None)
DROP = "set dataset.invalidRows: Drop with maxInvalidFraction: 0.01"


def write(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def source_of(path: Path, **spec: object) -> Source:
    data = DataSource.model_validate({"uri": f"pvc://datasets/{path.name}"} | spec)
    return Source("spec.dataset.train[0]", data, (read.DataFile(path, path.name),))


def values(path: Path) -> list[tuple[int, object]]:
    return [(row.line, row.value) for row in read.rows(read.DataFile(path, path.name))]


def problems_of(path: Path, settings: Settings = SETTINGS, **spec: object) -> list[Problem]:
    return scan([source_of(path, **spec)], settings).findings.problems()


def told(problem: Problem) -> str:
    return f"{problem.place} {problem.severity} {problem.message} [{problem.code}] {problem.fix}"


# --- reading --------------------------------------------------------------------------------------


def test_lines_are_counted_with_blank_ones_and_a_byte_order_mark_is_none(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n  \r\n{"a": 2}\r\n{"a": 3}')
    assert values(path) == [(1, {"a": 1}), (4, {"a": 2}), (5, {"a": 3})]


def test_an_array_is_streamed_with_lines(tmp_path):
    path = tmp_path / "train.json"
    path.write_text('\n[\n  {"a": 1},\n  {"a":\n   [2, "]"]}, {"a": 3}\n]\n')
    assert values(path) == [(3, {"a": 1}), (4, {"a": [2, "]"]}), (5, {"a": 3})]


def test_an_array_larger_than_the_window(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "_CHUNK", 7)
    rows = [{"text": "x" * n, "n": n, "ü": "🙂"} for n in range(0, 60, 3)]
    path = tmp_path / "train.json"
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    assert [value for _, value in values(path)] == rows


def test_an_empty_array_has_no_rows(tmp_path):
    path = tmp_path / "train.json"
    path.write_text("[ ]")
    assert values(path) == []


def test_json_lines_under_the_name_json(tmp_path):
    assert values(write(tmp_path / "train.json", {"a": 1}, {"a": 2})) == [
        (1, {"a": 1}),
        (2, {"a": 2}),
    ]


def test_compressed_files(tmp_path):
    path = tmp_path / "train.jsonl.gz"
    with gzip.open(path, "wt") as handle:
        handle.write('{"a": 1}\n')
    assert values(path) == [(1, {"a": 1})]
    path.write_bytes(path.read_bytes()[:-10])
    (row,) = [r for r in read.rows(read.DataFile(path, path.name)) if r.problem]
    assert row.problem is not None
    assert (row.problem.code, row.end_of_file) == ("unreadable-file", True)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('[{"a": 1}\n{"a": 2}]', 2, "not valid JSON: expecting ',' between two rows"),
        ('[{"a": 1},\n{"a": 2', 2, "not valid JSON: expecting ',' delimiter"),
        ('[{"a": 1},\n\n{"a" 2}, {"b": "' + "x" * 99 + '"}]', 3, "not valid JSON: expecting ':' delimiter"),
        ('[{"a": 1}', 1, "not valid JSON: the array is not closed"),
        ('[{"a": 1},\n', 2, "not valid JSON: the array is not closed"),
        ('[{"a": 1}]\n\n[{"a": 2}]\n', 3, "not valid JSON: something follows the closing ]"),
        ('[{"a": 1}]\n{"a": 2}\n{"a": 3}', 2, "not valid JSON: something follows the closing ]"),
        ('[{"a": 1}] garbage {{{', 1, "not valid JSON: something follows the closing ]"),
    ],
)  # fmt: skip
def test_a_broken_array_ends_where_it_breaks(tmp_path, text, line, message):
    path = tmp_path / "train.json"
    path.write_text(text)
    *good, bad = list(read.rows(read.DataFile(path, "train.json")))
    assert [row.value for row in good] == [{"a": 1}]
    assert bad.problem is not None
    assert (bad.line, bad.problem.message, bad.end_of_file) == (line, message, True)


def test_rows_of_any_size_are_read_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "MAX_ROW_BYTES", 40)
    path = write(tmp_path / "train.jsonl", {"a": "x" * 50}, {"a": 1})
    rows = list(read.rows(read.DataFile(path, "train.jsonl")))
    assert rows[0].problem is not None
    assert rows[0].problem.code == "row-too-large"
    assert (rows[1].line, rows[1].value) == (2, {"a": 1})


def test_folders_are_read_in_sorted_order(tmp_path):
    for name in ("b.jsonl", "a/2.json", "a/10.jsonl", ".hidden/c.jsonl", "readme.txt"):
        write(tmp_path / "claim" / "data" / name, {"a": 1})
    found = read.locate("pvc://datasets/data", {"datasets": str(tmp_path / "claim")}, "x")
    assert [file.shown for file in found.files] == ["a/10.jsonl", "a/2.json", "b.jsonl"]
    assert found.unread == ()


def test_other_data_files_of_a_folder_are_named(tmp_path):
    for name in ("a.jsonl", "b.parquet", "sub/c.jsonl.zst", "D.CSV", "e.csv.gz", "LICENSE.txt"):
        write(tmp_path / "data" / name, GOOD)
    (tmp_path / "data" / "f.jsonl").symlink_to("gone.jsonl")
    found = read.locate("pvc://datasets/data", {"datasets": str(tmp_path)}, "x")
    assert [file.shown for file in found.files] == ["a.jsonl"]
    assert found.unread == ("D.CSV", "b.parquet", "e.csv.gz", "f.jsonl", "sub/c.jsonl.zst")


def test_a_folder_that_cannot_be_read_is_not_left_out(tmp_path, monkeypatch):
    for name in ("a.jsonl", "lost+found/b.jsonl", "sub/c.jsonl"):
        write(tmp_path / "d" / name, GOOD)
    scandir = os.scandir

    def closed(path):  # what others than root are told of a folder of mode 000
        if Path(path).name in {"lost+found", "sub"}:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    volumes = {"datasets": str(tmp_path)}
    with pytest.raises(PermissionError) as caught:
        read.locate("pvc://datasets/d", volumes, "f")
    assert caught.value.filename == str(tmp_path / "d" / "sub")
    # That of a volume's root belongs to the volume.
    (tmp_path / "d" / "sub").rename(tmp_path / "elsewhere")
    found = read.locate("pvc://datasets/d", volumes, "f")
    assert [file.shown for file in found.files] == ["a.jsonl"]


def test_linked_folders_are_read_and_none_twice(tmp_path):
    write(tmp_path / "elsewhere" / "e.jsonl", GOOD)
    write(tmp_path / "data" / "v1" / "a.jsonl", GOOD)
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "latest").symlink_to("v1")
    (tmp_path / "data" / "v1" / "round").symlink_to(tmp_path / "data")
    found = read.locate("pvc://datasets/data", {"datasets": str(tmp_path)}, "x")
    assert [file.shown for file in found.files] == ["again/e.jsonl", "v1/a.jsonl"]


@pytest.mark.parametrize(
    ("uri", "code", "message", "fix"),
    [
        (
            "pvc://datasets/support/trian.jsonl",
            "file-not-found",
            "pvc://datasets/support/trian.jsonl does not exist",
            "did you mean pvc://datasets/support/train.jsonl? (in it: train.jsonl, val.jsonl)",
        ),
        (
            "pvc://datasets/suport/train.jsonl",
            "file-not-found",
            "pvc://datasets/suport/train.jsonl does not exist",
            "did you mean pvc://datasets/support? (in it: notes.csv, support/)",
        ),
        (
            "pvc://other/train.jsonl",
            "claim-not-mounted",
            "claim other is not mounted (mounted: datasets)",
            "with finetune run: --volume other=FOLDER",
        ),
        (
            "pvc://datasets/notes.csv",
            "unknown-file-type",
            "pvc://datasets/notes.csv is neither JSON Lines nor JSON by its name",
            "files must end in .jsonl or .json, or these with .gz",
        ),
        (
            "hf://owner/rows",
            "source-not-supported",
            "rows of hf://owner/rows cannot be read yet",
            "copy the data to a claim and name it as pvc://claim/path",
        ),
    ],
)
def test_what_cannot_be_found_is_named_with_what_lies_nearby(tmp_path, uri, code, message, fix):
    for name in ("support/train.jsonl", "support/val.jsonl", "notes.csv"):
        write(tmp_path / name, GOOD)
    with pytest.raises(Refused) as caught:
        read.locate(uri, {"datasets": str(tmp_path)}, "spec.dataset.train[0].uri")
    (problem,) = caught.value.problems
    assert (problem.code, problem.message, problem.fix) == (code, message, fix)
    assert problem.place == "spec.dataset.train[0].uri"


# --- checks ---------------------------------------------------------------------------------------


def test_no_assistant_turn(tmp_path):
    bad = {"messages": [{"role": "user", "content": "hi"}]}
    path = write(tmp_path / "train.jsonl", GOOD, bad, GOOD, bad)
    (problem,) = problems_of(path)
    assert told(problem) == (
        "train.jsonl:2 error no assistant turn, nothing to learn from (2 rows: 2, 4) "
        f"[no-assistant-turn] add the answer, or {DROP}"
    )
    assert (problem.rows, problem.count) == ((2, 4), 2)


def test_a_row_that_is_no_json(tmp_path):
    path = write(tmp_path / "train.jsonl", GOOD, '{"messages": [')
    (problem,) = problems_of(path)
    assert told(problem) == (
        "train.jsonl:2 error not valid JSON: expecting value at column 15 [invalid-json] "
        f"correct the row, or {DROP}"
    )


def test_a_system_message_in_the_middle(tmp_path):
    turns = [*GOOD["messages"], {"role": "system", "content": "be kind"}]
    (problem,) = problems_of(write(tmp_path / "train.jsonl", {"messages": turns}))
    assert told(problem) == (
        "train.jsonl:1 error a system message at position 3; it must come first "
        f"[system-not-first] move it to the front, or {DROP}"
    )


def test_an_unknown_column(tmp_path):
    path = write(tmp_path / "train.jsonl", GOOD | {"id": 7})
    (problem,) = problems_of(path, columns={"messages": "mesages"})
    assert told(problem) == (
        "train.jsonl:1 error no column mesages (columns: id, messages) [unknown-column] "
        "did you mean messages?"
    )


def test_an_optional_column_may_be_missing_in_the_first_row(tmp_path):
    row = {"instruction": "a", "output": "b"}
    path = write(tmp_path / "train.jsonl", row, row | {"context": "c"}, row)
    spec = {"columns": {"input": "context"}}
    assert problems_of(path, **spec) == []
    found = [checked.example.messages[0].content for checked in examples(path, **spec)]
    assert found == ["a", "a\n\nc", "a"]
    (problem,) = problems_of(path, columns={"input": "contxt"})
    assert told(problem) == (
        "train.jsonl:1 error no column contxt (columns: instruction, output) [unknown-column] "
        "correct dataset columns.input"
    )
    path = write(tmp_path / "train.jsonl", row | {"context": "c"})
    (problem,) = problems_of(path, columns={"input": "contxt"})
    assert (problem.code, problem.fix) == ("unknown-column", "did you mean context?")
    (problem,) = problems_of(path, columns={"output": "outputs", "input": "contxt"})
    assert problem.message == "no column outputs (columns: context, instruction, output)"


def test_columns_that_no_format_has(tmp_path):
    (problem,) = problems_of(write(tmp_path / "train.jsonl", {"question": "a", "answer": "b"}))
    assert told(problem) == (
        "train.jsonl:1 error no format has these columns: answer, question [unknown-column] "
        "rename the columns, or map them with dataset columns (Messages: messages; "
        "ShareGPT: conversations; Alpaca: instruction, output)"
    )


def test_an_empty_file(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"")
    (problem,) = problems_of(path)
    assert told(problem) == (
        "train.jsonl error pvc://datasets/train.jsonl is empty [empty-file] write at least one row"
    )


@pytest.mark.parametrize("text", ["[]", " \n\n", "[\n]\n"])
def test_a_source_without_a_row_is_refused_beside_others(tmp_path, text):
    good = write(tmp_path / "a.jsonl", GOOD)
    empty = tmp_path / "train.json"
    empty.write_text(text)
    found = scan([source_of(good), source_of(empty)], SETTINGS)
    assert (found.valid, len(found.readers)) == (1, 2)
    with pytest.raises(Refused) as caught:
        verdict(found, "Drop", 1.0)
    (problem,) = caught.value.problems
    assert told(problem) == (
        "train.json error pvc://datasets/train.json is empty [empty-file] write at least one row"
    )


def test_files_without_a_row_among_others_are_named(tmp_path):
    files = [write(tmp_path / "a.jsonl", GOOD), write(tmp_path / "b.jsonl")]
    files.append(tmp_path / "c.jsonl.gz")
    files[2].write_bytes(gzip.compress(b""))
    spec = DataSource.model_validate({"uri": "pvc://datasets/data"})
    source = Source("spec.dataset.train[0]", spec, tuple(read.DataFile(f, f.name) for f in files))
    (warning,) = verdict(scan([source], SETTINGS), "Fail", None)
    assert told(warning) == (
        "spec.dataset.train[0] warning files of pvc://datasets/data without a row: "
        "b.jsonl, c.jsonl.gz [files-without-rows] copy them again, or remove them"
    )


def test_names_and_keys_that_are_no_utf8_are_shown(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl"))
    spec = DataSource.model_validate({"uri": "pvc://datasets/data"})
    source = Source("spec.dataset.train[0]", spec, (read.DataFile(path, path.name),))
    write(path, GOOD, "{bad")
    (problem,) = scan([source], SETTINGS).findings.problems()
    assert (problem.place, problem.code) == ("caf\\udce9.jsonl:2", "invalid-json")
    write(path, '{"\\ud800": 1}')
    (problem,) = scan([source], SETTINGS).findings.problems()
    assert (problem.code, problem.message) == (
        "unknown-column",
        "no format has these columns: \\ud800",
    )


def test_a_path_of_any_length_is_shown(tmp_path):
    path = write(tmp_path / "a.jsonl", "{bad")
    spec = DataSource.model_validate({"uri": "pvc://datasets/data"})
    shown = "/".join(["x" * 200] * 8 + ["a.jsonl"])
    source = Source("spec.dataset.train[0]", spec, (read.DataFile(path, shown),))
    (problem,) = scan([source], SETTINGS).findings.problems()
    assert (problem.code, problem.line, len(problem.file or "")) == ("invalid-json", 1, 1024)


@pytest.mark.parametrize(
    ("row", "code", "message"),
    [
        ("[1]", "not-an-object", "a row is a JSON object, not list"),
        ("null", "not-an-object", "a row is a JSON object, not null"),
        ({"messages": []}, "no-messages", "no messages"),
        ({"messages": "hi"}, "invalid-message", "messages is str, not a list"),
        ({"messages": [{"role": "user"}]}, "invalid-message", "messages[0] has no role and content"),
        ({"other": 1}, "missing-column", "no column messages (columns: other)"),
        (
            {"messages": [{"role": "bot", "content": "x"}]},
            "unknown-role",
            "messages[0] has the role 'bot'",
        ),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]},
            "roles-do-not-alternate",
            "two user messages in a row at position 2",
        ),
        (
            {"messages": [{"role": "user", "content": " \n"}]},
            "empty-content",
            "the user message at position 1 is empty",
        ),
        (
            {"messages": [{"role": "user", "content": None}]},
            "content-not-text",
            "messages[0].content is empty, not text",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]},
            "unsupported-message-field",
            "messages[0] has tool_calls, which is not supported",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "train_detail": [{"begin_offset": 0}]}]},
            "unsupported-message-field",
            "messages[0] has train_detail, which is not supported",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "x"},
                    {"role": "assistant", "reasoning_content": "first", "content": "y"},
                ]
            },
            "reasoning-not-supported",
            "messages[1] has reasoning_content, which is not supported",
        ),
        (
            '{"messages": [{"role": "user", "content": "\\ud83d"}]}',
            "invalid-unicode",
            "messages[0].content holds half of a surrogate pair",
        ),
        (GOOD | {"tools": [1]}, "unsupported-column", "column tools is filled, which is not supported"),
    ],
)  # fmt: skip
def test_every_kind_of_bad_row_has_its_code(tmp_path, row, code, message):
    (problem,) = problems_of(write(tmp_path / "train.jsonl", GOOD, row))
    assert (problem.code, problem.message, problem.place) == (code, message, "train.jsonl:2")
    assert problem.fix


def test_bytes_that_are_no_utf8(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"messages": "\xff"}\n')
    (problem,) = problems_of(path)
    assert told(problem) == (
        "train.jsonl:2 error not UTF-8 at byte 15 of the row [invalid-utf8] save the file as UTF-8"
    )


def test_a_million_offenders_stay_one_line(tmp_path):
    path = write(tmp_path / "train.jsonl", GOOD, *["{"] * 1200)
    (problem,) = problems_of(path)
    assert problem.count == 1200
    assert problem.rows == (2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
    assert problem.message == (
        "not valid JSON: expecting property name enclosed in double quotes at column 2 "
        "(1,200 rows: 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ...)"
    )


def test_dropping_rows_has_a_limit(tmp_path):
    path = write(tmp_path / "train.jsonl", *[GOOD] * 9, "{")
    found = scan([source_of(path)], SETTINGS)
    with pytest.raises(Refused):
        verdict(found, "Fail", None)
    (warning,) = verdict(found, "Drop", 0.1)
    assert (warning.code, warning.severity) == ("invalid-json", "warning")
    with pytest.raises(Refused) as caught:
        verdict(found, "Drop", 0.05)
    assert caught.value.problems[0].message == (
        "1 of 10 rows are invalid (10.0%), more than dataset.maxInvalidFraction 0.05"
    )


def test_nothing_left_after_dropping(tmp_path):
    found = scan([source_of(write(tmp_path / "train.jsonl", "{", "{"))], SETTINGS)
    with pytest.raises(Refused) as caught:
        verdict(found, "Drop", 1.0)
    assert [problem.code for problem in caught.value.problems] == ["no-rows", "invalid-json"]


def test_duplicates_are_counted_by_content(tmp_path):
    other = {
        "messages": [{"role": "user", "content": "h"}, {"role": "assistant", "content": "iyo"}]
    }
    path = write(tmp_path / "train.jsonl", GOOD, GOOD | {"id": 1}, other)
    found = scan([source_of(path)], SETTINGS)
    assert (found.rows, found.valid, found.duplicates) == (3, 3, 1)


def test_max_rows_reads_no_further(tmp_path):
    path = write(tmp_path / "train.jsonl", GOOD, GOOD, "{")
    found = scan([source_of(path, maxRows=2)], SETTINGS)
    assert (found.rows, found.valid, found.findings.problems()) == (2, 2, [])
    (reader,) = found.readers
    assert reader is not None
    assert reader.format.name == "Messages"


# --- formats --------------------------------------------------------------------------------------


def examples(path: Path, settings: Settings = SETTINGS, **spec: object) -> list[Checked]:
    return list(valid_rows(source_of(path, **spec), settings))


def test_three_formats_become_one(tmp_path):
    expected = Conversation((Message("user", "hi"), Message("assistant", "yo")))
    rows = {
        "Messages": GOOD,
        "ShareGPT": {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]},
        "Alpaca": {"instruction": "hi", "input": "", "output": "yo"},
    }  # fmt: skip
    trained = {"Messages": "Assistant", "ShareGPT": "Assistant", "Alpaca": "Completion"}
    for name, row in rows.items():
        path = write(tmp_path / f"{name}.jsonl", row)
        for spec in ({}, {"format": name}):
            (checked,) = examples(path, **spec)
            assert checked.example == expected
            assert checked.loss_on == trained[name]
        (reader,) = scan([source_of(path)], SETTINGS).readers
        assert reader is not None
        assert (reader.format.name, reader.detected) == (name, True)


def test_columns_are_mapped(tmp_path):
    path = write(tmp_path / "train.jsonl", {"chat": GOOD["messages"], "messages": "not these"})
    (checked,) = examples(path, columns={"messages": "chat"})
    assert checked.example == Conversation((Message("user", "hi"), Message("assistant", "yo")))


def test_the_system_prompt_is_for_rows_that_have_none(tmp_path):
    own = {"messages": [{"role": "system", "content": "own"}, *GOOD["messages"]]}
    path = write(tmp_path / "train.jsonl", GOOD, own)
    settings = Settings(loss_on=None, stanford=False, system_prompt="be kind")
    found = [checked.example.messages[0] for checked in examples(path, settings)]
    assert found == [Message("system", "be kind"), Message("system", "own")]


def test_alpaca_in_both_forms(tmp_path):
    path = write(tmp_path / "a.jsonl", {"instruction": "Add {x}.", "input": "2+2", "output": "4"})
    (chat,) = examples(path)
    assert chat.example == Conversation(
        (Message("user", "Add {x}.\n\n2+2"), Message("assistant", "4"))
    )
    (plain,) = examples(path, Settings(loss_on=None, stanford=True, system_prompt="unused"))
    assert plain.example == Pair(
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd {x}.\n\n### Input:\n2+2\n\n### Response:",
        "4",
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input": 0}, "input is int, not text"),
        ({"input": False}, "input is bool, not text"),
        ({"input": {}}, "input is dict, not text"),
        ({"system": 0}, "system is int, not text"),
        ({"input": None, "system": None}, None),
        ({"input": [], "system": ""}, None),
    ],
)
def test_what_is_no_text_is_never_taken_for_nothing(tmp_path, given, message):
    path = write(tmp_path / "a.jsonl", {"instruction": "double it", "output": "0"} | given)
    expected = [("content-not-text", message)] if message else []
    assert [(p.code, p.message) for p in problems_of(path)] == expected


def test_the_original_alpaca_prompt_has_no_place_for_a_system_column(tmp_path):
    row = {"instruction": "hi", "output": "yo", "system": ""}
    path = write(tmp_path / "a.jsonl", row, row | {"system": "be a pirate"})
    (problem,) = problems_of(path, Settings(loss_on=None, stanford=True, system_prompt=None))
    assert told(problem) == (
        "a.jsonl:2 error column system is filled, for which alpacaPrompt: Stanford has no place "
        "[system-not-in-stanford] remove the column, or set dataset.alpacaPrompt: ChatTemplate"
    )
    assert problems_of(path) == []


def test_message_fields_that_are_not_read_are_named_once(tmp_path):
    user, assistant = GOOD["messages"]
    odd = {"messages": [user | {"name": "Ann", "tool_calls": [], "id": None}, assistant]}
    path = write(tmp_path / "train.jsonl", GOOD, odd, odd | {"id": 7})
    found = scan([source_of(path)], SETTINGS)
    (warning,) = verdict(found, "Fail", None)
    assert told(warning) == (
        "train.jsonl:2 warning messages of pvc://datasets/train.jsonl have 'name', which is not "
        "read [ignored-message-field] remove the field, unless it holds nothing to learn from"
    )


def flagged(key: str, *values: object) -> dict[str, object]:
    """Return a conversation of two questions and two answers; None leaves the field out."""
    turns = []
    for number, value in enumerate(values):
        role = ("user", "assistant")[number % 2]
        turns.append({"role": role, "content": "x"} | ({} if value is None else {key: value}))
    return {"messages": turns}


@pytest.mark.parametrize(
    ("loss_on", "row", "message"),
    [
        (None, flagged("weight", None, 1, None, 1.0), None),
        (None, flagged("weight", 0, 1, 0.0, None), None),
        (None, flagged("train", False, True, False, True), None),
        ("Assistant", flagged("loss", False, True, False, True), None),
        ("LastAssistant", flagged("weight", 0, 0, 0, 1), None),
        ("All", flagged("train", True, 1, True, 1), None),
        (None, flagged("thinking", None, False, None, False), None),
        (
            None,
            flagged("weight", None, 0, None, 1),
            "messages[1] has weight 0, and with loss on Assistant it is trained",
        ),
        (
            None,
            flagged("weight", None, 0.5, None, 1),
            "messages[1] has weight 0.5, and with loss on Assistant it is trained",
        ),
        (
            None,
            flagged("train", True, True, None, None),
            "messages[0] has train True, and with loss on Assistant it is not trained",
        ),
        (
            "LastAssistant",
            flagged("weight", 0, 1, 0, 1),
            "messages[1] has weight 1, and with loss on LastAssistant it is not trained",
        ),
        (
            "All",
            flagged("loss", False, True, None, None),
            "messages[0] has loss False, and with loss on All it is trained",
        ),
        (
            None,
            flagged("weight", None, "1", None, None),
            "messages[1] has weight '1', and with loss on Assistant it is trained",
        ),
    ],
)
def test_flags_that_say_what_is_done_anyway_are_fine(tmp_path, loss_on, row, message):
    settings = Settings(loss_on=loss_on, stanford=False, system_prompt=None)
    found = scan([source_of(write(tmp_path / "train.jsonl", row))], settings)
    said = [(p.code, p.message) for p in found.findings.problems()]
    assert said == ([("unsupported-message-field", message)] if message else [])
    assert not found.ignored


def test_text_parts_are_joined(tmp_path):
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    row = {"messages": [{"role": "user", "content": parts}, GOOD["messages"][1]]}
    (checked,) = examples(write(tmp_path / "train.jsonl", row))
    assert checked.example.messages[0] == Message("user", "hi")


def test_rows_without_an_answer_are_fine_when_every_token_is_trained(tmp_path):
    path = write(tmp_path / "t.jsonl", {"messages": [{"role": "user", "content": "hi"}]})
    assert problems_of(path, Settings(loss_on="All", stanford=False, system_prompt=None)) == []
