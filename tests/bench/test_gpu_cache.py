"""Kernels that are compiled beforehand: an archive of them serves another folder, and holds nothing
else."""

from __future__ import annotations

import io
import os
import tarfile

import pytest
import torch

inspection = pytest.importorskip(
    "barlow_fast.kernels.triton.inspection", reason="Triton is not installed"
)
from bench.gpu import cache  # noqa: E402
from bench.inputs import CUDA_GRID  # noqa: E402

ENTRY = "A" * 52


def test_all_shapes_of_the_rows_are_compiled():
    found = {(case.n, case.d) for case in cache.cases()}
    assert {(case.n, case.d) for case in CUDA_GRID.cases([])} <= found
    assert {(169343, 256), (2048, 8192), (4096, 512)} <= found
    assert {case.precision for case in cache.cases()} == {"bf16", "fp16", "fp32", "tf32"}


def test_an_archive_serves_another_folder(tmp_path, monkeypatch, capsys):
    case = inspection.Case("gram", 8, 64, torch.bfloat16, "bf16")
    monkeypatch.setattr(cache, "cases", lambda: [case, case])
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "unused"))
    archive = tmp_path / "build" / "kernels.tar.xz"
    common = ["--capability", "90", "--workers", "1"]
    assert cache.main([*common, "--pack", str(archive)]) == 0
    assert ": 4 entries, " in capsys.readouterr().out
    with tarfile.open(archive) as tar:
        suffixes = {os.path.splitext(member.name)[1] for member in tar}
    assert suffixes == {".cubin", ".json", ".ptx"}
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "other"))
    assert cache.main([*common, "--archive", str(archive)]) == 0
    text = capsys.readouterr().out
    assert "4 kernels; 4 entries of kernels.tar.xz (4 new), 4 were on disk, 0 compiled" in text
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "third"))
    assert cache.main([*common, "--archive", str(tmp_path / "none")]) == 0
    assert "0 were on disk, 4 compiled" in capsys.readouterr().out


def link(member):
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"


def large(member):
    member.size = cache.MOST_BYTES + 1


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (f"../{ENTRY}/a.cubin", None),
        (f"/{ENTRY}/a.cubin", None),
        (f"{ENTRY}/../a.cubin", None),
        (f"{ENTRY}/launcher.so", None),
        ("a.cubin", None),
        (f"{ENTRY}/a.cubin", link),
        (f"{ENTRY}/a.cubin", large),
    ],
)
def test_what_is_no_entry_is_refused(tmp_path, name, change):
    archive = tmp_path / "kernels.tar.xz"
    member = tarfile.TarInfo(name)
    with tarfile.open(archive, "w:xz") as tar:
        (change or (lambda each: None))(member)
        tar.addfile(member, io.BytesIO(b"") if member.size == 0 else None)
    with pytest.raises(ValueError, match="is no archive of kernels"):
        cache.unpack(archive, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["kernels.tar.xz"]


def test_a_capability_is_needed_and_checked(capsys):
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            cache.main([])
        assert "--capability is required" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cache.main(["--capability", "70"])
    assert "unknown capability 70; known are 80, 89, 90, 100" in capsys.readouterr().err
