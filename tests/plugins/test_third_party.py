"""The example plugin, once it is installed, is swapped in by name on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from gemkit.testing.runs import SMALL, table_config

installed = any(point.name == "gemkit_example" for point in metadata.entry_points(group="gemkit"))


@pytest.mark.skipif(not installed, reason="not installed: pip install --no-deps -e examples/third_party_plugin")
def test_it_trains_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "configs" / "data").mkdir(parents=True)
    values = yaml.safe_dump(table_config(tmp_path / "data"))
    (tmp_path / "configs" / "data" / "tiny.yaml").write_text(values, encoding="utf-8")
    command = [sys.executable, "-m", "gemkit.cli.main", "train", "--config-dir", str(tmp_path / "configs")]
    command += ["data=tiny", *SMALL, f"runs={tmp_path / 'runs'}", "train.max_steps=3"]

    def train(*words: str) -> Path:
        before = set((tmp_path / "runs").glob("*"))
        done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (folder,) = set((tmp_path / "runs").glob("*")) - before
        return folder

    teacher = train("interaction=cross_net", "sequence=nextitnet")
    log = tmp_path / "log"
    words = [str(teacher), "--log", str(log), "--codes", "4"]
    asked = [sys.executable, "-m", "gemkit.cli.main", "teach", *words]
    assert subprocess.run(asked, capture_output=True, check=False).returncode == 0
    student = train("transfer=similarity", f"transfer.log={log}")
    for folder in (teacher, student):
        assert json.loads((folder / "metrics.json").read_text())["test"]["click"]["auc"] is not None
        assert "gemkit_example" in (folder / "environment.json").read_text()
