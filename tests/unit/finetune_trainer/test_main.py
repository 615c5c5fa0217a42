from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune_trainer.main import main
from harness.stage_config import make_config, write_config


@pytest.fixture
def message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "termination.json"
    monkeypatch.setenv("FINETUNE_TERMINATION_LOG", str(path))
    return path


def test_a_missing_configuration(
    tmp_path: Path, message: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "job.json"
    assert main(["train", "--config", str(path)]) == 10
    assert capsys.readouterr().err == (
        f"{path} error the configuration cannot be read: No such file or directory"
        " [config-unreadable]\n"
        "    fix: start the stage with the configuration that was written for it\n"
    )
    report = json.loads(message.read_text())
    assert (report["stage"], report["exitCode"]) == ("train", 10)


def test_a_misspelt_field_is_named(
    tmp_path: Path, message: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_config(tmp_path, "train").to_json()
    data["mounts"]["workspaces"] = "x"
    path = tmp_path / "job.json"
    path.write_text(json.dumps(data))
    assert main(["train", "--config", str(path)]) == 10
    assert "mounts.workspaces: Extra inputs are not permitted [config-invalid]" in (
        capsys.readouterr().err
    )


def test_the_configuration_of_another_stage_is_refused(
    tmp_path: Path, message: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(make_config(tmp_path, "prepare"), tmp_path / "job.json")
    assert main(["train", "--config", str(path)]) == 10
    assert "it is the configuration of prepare [config-of-another-stage]" in capsys.readouterr().err


def test_another_digest_is_refused(
    tmp_path: Path, message: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tmp_path, "train")
    path = write_config(config, tmp_path / "job.json")
    other = "sha256:" + "0" * 64
    assert main(["train", "--config", str(path), "--config-digest", other]) == 10
    assert f"its digest is {config.digest}, and this process was started for {other}" in (
        capsys.readouterr().err
    )
