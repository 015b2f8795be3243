"""The doctor: versions that belong together, live checks, and what it says to type."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from gemkit import doctor, doctor_checks
from gemkit.cli.main import main

GOOD = {"torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm-gpu-cpu": "1.8.0", "lightning": "2.6.6"}


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({}, "ok", ["tested with gemkit"]),
        ({"torch": "2.13.0"}, "ok", []),
        ({"torch": "2.10.1", "torchrec": "1.5.0", "fbgemm-gpu-cpu": "1.5.0"}, "ok", ["not tested"]),
        ({"torch": "2.1.0"}, "doubt", ["not known to work together"]),
        ({"torch": "2.12.0"}, "doubt", ["not known to work together"]),
        ({"fbgemm-gpu-cpu": "1.7.0"}, "broken", ["not known to work together"]),
        ({"fbgemm-gpu": "1.8.0"}, "broken", ["overwrite each other", "pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu"]),
        ({"torchrec": None}, "absent", ["pip install --no-deps torchrec==1.8.0", "fbgemm-gpu-cpu==1.8.0"]),
        ({"torch": "2.13.0", "torchrec": None}, "absent", ["pip install fbgemm-gpu==1.8.0 torchrec==1.8.0"]),
        ({"torch": None}, "broken", ["pip install torch==2.13.0"]),
    ],
)
def test_versions(changes: dict[str, str | None], status: str, words: list[str]) -> None:
    check = doctor.check_versions(GOOD | changes)
    assert check["status"] == status
    text = doctor.render_check(check)
    assert [word for word in words if word not in text] == [], text


@pytest.mark.parametrize(
    ("version", "status"), [("2.6.1", "ok"), ("2.6.2", "broken"), ("2.6.3", "broken"), (None, "ok")]
)
def test_malicious_releases(version: str | None, status: str) -> None:
    check = doctor.check_malicious(GOOD | {"lightning": version})
    assert check["status"] == status
    if status == "broken":
        assert "MALICIOUS" in check["detail"] and "pip uninstall -y lightning" in check["fix"]


def test_nothing_is_imported_while_a_malicious_release_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("a live check ran")

    monkeypatch.setattr(doctor, "installed", lambda: GOOD | {"lightning": "2.6.3"})
    monkeypatch.setattr(doctor, "live_check", never)
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "XX releases" in shown and "not ready" in shown


def test_the_checks_that_every_machine_passes() -> None:
    check = doctor.live_check("cpu", GOOD)
    assert (check["status"], check["required"], check["fix"]) == ("ok", True, None)
    assert "threads" in check["detail"]


def test_fbgemm_is_really_run() -> None:
    pytest.importorskip("fbgemm_gpu")
    check = doctor.live_check("fbgemm", GOOD)
    assert check["status"] == "ok", check


def test_triton_is_really_run() -> None:
    pytest.importorskip("triton")
    check = doctor.live_check("triton", GOOD)
    assert check["status"] == "ok" and check["detail"].startswith("kernels run "), check
    assert "chunk_attention" in check["detail"], check


@pytest.mark.slow
def test_the_whole_report(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert [c["name"] for c in report["checks"]] == ["releases", "versions", *doctor_checks.CHECKS]
    assert report["ok"] == (code == 0)
    assert all(c["status"] == "ok" or c["fix"] or c["name"] == "cuda" for c in report["checks"])


def test_a_check_whose_process_dies_is_an_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 'last words' >&2\nkill -SEGV $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    check = doctor.live_check("compile", GOOD)
    assert check["status"] == "broken" and "-11" in check["detail"] and "g++" in check["fix"]


def test_a_check_that_hangs_is_an_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexec sleep 30\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(doctor, "TIMEOUT_S", 0.2)
    assert "no answer within" in doctor.live_check("compile", GOOD)["detail"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (doctor_checks.DoubtError("slow"), "doubt"),
        (doctor_checks.AbsentError("not installed"), "absent"),
        (RuntimeError("no compiler\n\n  on this machine"), "broken"),
    ],
)
def test_answers(error: Exception, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise error

    monkeypatch.setitem(doctor_checks.CHECKS, "bf16", fail)
    answer = doctor_checks.run("bf16")
    assert answer["status"] == status and "\n" not in answer["detail"]


@pytest.mark.parametrize("name", [n for n in doctor_checks.CHECKS if n != "cuda"])
def test_every_check_has_a_fix(name: str) -> None:
    assert doctor.fix_of(name, GOOD)


@pytest.mark.parametrize(("broken", "code"), [(None, 0), ("cuda", 0), ("cpu", 1), ("default run", 1)])
def test_only_what_a_cpu_run_needs_decides(
    broken: str | None, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(name: str, found: object) -> dict[str, Any]:
        status = "broken" if name == broken else "ok"
        return {"name": name, "status": status, "detail": "", "fix": None, "required": name in doctor.REQUIRED}

    monkeypatch.setattr(doctor, "live_check", answer)
    assert main(["doctor"]) == code
    shown = capsys.readouterr().out
    assert ("ready for training runs" in shown) == (code == 0)
    assert "2.13.0   1.8.0     1.8.0" in shown


def test_installed_versions_are_those_of_the_distributions() -> None:
    found = doctor.installed()
    assert found["torch"] and found["lightning"] and set(found) == set(doctor.PACKAGES)
