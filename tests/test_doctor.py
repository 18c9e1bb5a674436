"""The report names what is there and what is missing, and its self-test can fail."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

import torch
from ended import completed

from barlow_fast import doctor
from barlow_fast.kernels import aten, why_unusable


def test_report_of_this_machine(capsys):
    assert doctor.report() == 0
    text = capsys.readouterr().out
    parts = ("barlow-fast", torch.__version__, "Kernel sets", "aten     usable on cpu", "Self-test")
    for words in parts:
        assert words in text
    assert "WRONG" not in text
    if why_unusable("cpu", torch.device("cpu")) is None:
        assert "cpu      usable on cpu (instruction set" in text
    if not torch.cuda.is_available():
        assert "triton   not usable" in text


def test_what_serves_image_files(monkeypatch):
    """The decoder and the kernels in use; without them what takes their place."""
    installed = {"pillow": "13.0.0", "simplejpeg": "1.9.0"}
    native = [None]
    monkeypatch.setattr(doctor, "_version", lambda name: installed.get(name, ""))
    monkeypatch.setattr(doctor, "why_unusable", lambda *_: native[0])

    def found() -> list[str]:
        return [line.split(None, 1)[1] for line in doctor.images()]

    assert found() == ["simplejpeg, other formats Pillow", "native kernels", "native kernels"]
    native[0] = "not built"
    assert found()[1:] == ["Pillow", "plain torch"]
    del installed["simplejpeg"]
    assert found()[0] == "Pillow"
    installed.clear()
    assert found()[0].startswith("not possible")


def test_a_wrong_kernel_is_noticed(monkeypatch, capsys):
    right = aten.gram_pair

    def wrong(*arguments):
        grams, centres, inner = right(*arguments)
        return grams, centres, inner * 1.01

    monkeypatch.setattr(aten, "gram_pair", wrong)
    assert doctor.report() == 1
    text = capsys.readouterr().out
    assert "WRONG" in text
    assert "SELF-TEST FAILED" in text


def test_a_kernel_that_returns_nan_is_noticed(monkeypatch, capsys):
    right = aten.correlation_gradients
    monkeypatch.setattr(
        aten, "correlation_gradients", lambda *a: tuple(g * float("nan") for g in right(*a))
    )
    assert doctor.report() == 1
    assert "inf" in capsys.readouterr().out


def test_missing_native_kernels_are_reported(monkeypatch, capsys):
    from barlow_fast.kernels import cpu

    monkeypatch.setattr(
        cpu, "_problem", lambda: "the native CPU kernels were not built (no cmake found)"
    )
    assert doctor.report() == 0
    text = capsys.readouterr().out
    assert "cpu      not usable: the native CPU kernels were not built (no cmake found)" in text
    assert "runs on plain torch" in text


def test_importing_the_loss_needs_torch_only():
    """No optional library is imported before it is needed."""
    optional = {
        "triton", "nvidia", "torchvision", "numpy", "sklearn", "matplotlib", "rich", "typer"
    }  # fmt: skip
    code = (
        "import sys, torch\nbefore = set(sys.modules)\nimport barlow_fast, barlow_fast.doctor\n"
        f"print(sorted({optional} & (set(sys.modules) - before)))"
    )
    assert completed(sys.executable, "-c", code).stdout.strip() == "[]"


def test_every_library_of_an_extra_is_listed():
    """With its version, or with what is lost and how to get it."""
    root = Path(__file__).parent.parent
    text = (root / "pyproject.toml").read_text()
    for extra in ("train", "triton", "timm", "export"):
        (listed,) = re.findall(rf"^{extra} = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
        for library in re.findall(r'"([\w-]+)>=', listed):
            assert doctor.OPTIONAL[library][0] == f"barlow-fast[{extra}]"
    assert f'"{doctor.DALI[0]}>=' in text


def test_a_missing_library_is_named_with_what_is_lost(monkeypatch):
    def version(name: str) -> str:
        if name in ("timm", *doctor.DALI):
            raise metadata.PackageNotFoundError(name)
        return f"version of {name}"

    monkeypatch.setattr(doctor.metadata, "version", version)
    lines = doctor.optional()
    assert "numpy                  version of numpy" in lines
    lost = "not installed: without it no encoders of timm (pip install 'barlow-fast[timm]')"
    assert f"timm                   {lost}" in lines
    assert lines[-1].startswith("nvidia-dali            not installed: without it no decoding")
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "1")
    assert f"{doctor.DALI[0]:<22} 1" == doctor.optional()[-1]
