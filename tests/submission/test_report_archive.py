import base64
import hashlib
import io
import subprocess
import sys
import tarfile

import pytest

from cpo_ray.errors import ArtifactError
from cpo_ray.run_directory import run_directory
from cpo_ray.submission import report_archive


@pytest.fixture
def report(tmp_path):
    folder = tmp_path / "runs" / "demo" / "report"
    (folder / "figures").mkdir(parents=True)
    (folder / "index.html").write_text("<p>ü</p>" * 5000)
    (folder / "figures" / "curve.bin").write_bytes(bytes(range(256)) * 100)
    return folder


def same(left, right):
    files = sorted(path.relative_to(left) for path in left.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(right) for path in right.rglob("*") if path.is_file())
    return all((left / name).read_bytes() == (right / name).read_bytes() for name in files)


def test_a_folder_is_restored_from_a_log_with_other_lines(report, tmp_path):
    log = f"Runtime env is setting up.\n{report_archive.pack(report)}\nbye\n"
    target = tmp_path / "here"
    target.mkdir()
    (target / "of the last run.html").write_text("old")
    report_archive.unpack(log, target)
    assert same(report, target)


def test_the_command_uses_the_jobs_run_directory(report, tmp_path, monkeypatch):
    command = [sys.executable, "-m", "cpo_ray.submission.report_archive", "demo", str(report.parent)]
    seen = subprocess.run(command, capture_output=True, text=True, check=True)
    report_archive.unpack(seen.stdout, tmp_path / "here")
    assert same(report, tmp_path / "here")
    monkeypatch.setenv("CPO_RAY_RUNS", str(tmp_path / "runs"))
    assert run_directory("demo", None) == report.parent


@pytest.mark.parametrize("cut", [10, -200])
def test_a_truncated_archive_is_refused(report, tmp_path, cut):
    with pytest.raises(ArtifactError, match="no complete report archive"):
        report_archive.unpack(report_archive.pack(report)[:cut], tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_an_archive_cannot_write_outside_its_folder(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../outside"), io.BytesIO(b""))
    content = buffer.getvalue()
    encoded = base64.b64encode(content).decode()
    text = f"BEGIN REPORT ARCHIVE {hashlib.sha256(content).hexdigest()}\n{encoded}\nEND REPORT ARCHIVE"
    with pytest.raises(tarfile.OutsideDestinationError):
        report_archive.unpack(text, tmp_path / "a" / "here")
    assert not (tmp_path / "a" / "outside").exists()


def test_a_missing_or_too_large_folder_is_refused(report, tmp_path, monkeypatch):
    with pytest.raises(ArtifactError, match="does not exist"):
        report_archive.pack(tmp_path / "no")
    monkeypatch.setattr(report_archive, "LARGEST", 10)
    with pytest.raises(ArtifactError, match="rsync-down"):
        report_archive.pack(report)
