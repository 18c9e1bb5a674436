"""The build for Hugging Face's Kernel Hub, and the package `kernels` that loads it, beside a folder
of the same name."""

from __future__ import annotations

import ast
import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from ended import completed

import barlow_fast

ROOT = Path(__file__).resolve().parents[1]
SHAPES = ((16, 40), (40, 16))  # one of each form
PRINTED = "import kernels, kernels.inner as inner; print(kernels.ANSWER, inner.ANSWER)"


def builder() -> ModuleType:
    """kernels/hub/build.py, which is not installed."""
    spec = importlib.util.spec_from_file_location("hub_build", ROOT / "kernels/hub/build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> list[Path]:
    """Two builds, of sources that differ in a comment."""
    module = builder()
    folders = [tmp_path_factory.mktemp("hub") / "barlow-fast" for _ in range(2)]
    module.build(folders[0])
    plain = module.sources
    module.sources = lambda: {path: b"# another\n" + text for path, text in plain().items()}
    module.build(folders[1])
    return folders


def variant(repository: Path) -> Path:
    return repository / "build" / "torch-universal"


@pytest.fixture(scope="module")
def loaded(repositories) -> list[ModuleType]:
    """Both builds as users load them, without a network."""
    kernels = pytest.importorskip("kernels", reason="Hugging Face's `kernels` is not installed")

    def refuse(*_: object) -> None:
        raise OSError("this test has no network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        return [kernels.get_local_kernel(repository) for repository in repositories]


def test_a_build_imports_relatively_and_holds_what_it_imports(repositories):
    folder = variant(repositories[0])
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}
    assert not [name for name in files if name.startswith(("kernels/cpu", "kernels/hub"))]
    assert {
        "losses/barlow_twins.py",
        "kernels/aten.py",
        "kernels/triton/gram.py",
        "distributed/rows.py",
    } <= files
    # The last for type checkers alone; torch depends on it.
    accepted = {*sys.stdlib_module_names, "torch", "triton", "typing_extensions"}
    for name in files:
        for node in ast.walk(ast.parse((folder / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= accepted, name
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert node.module.partition(".")[0] in accepted, name
            elif isinstance(node, ast.ImportFrom):
                base = (folder / name).parents[node.level - 1]
                target = base.joinpath(*(node.module or "").split("."))
                assert target.is_dir() or target.with_suffix(".py").is_file(), (name, node.module)


def test_a_build_is_named_after_its_sources(repositories, tmp_path):
    names = [builder().name_of(content_of(variant(folder))) for folder in repositories]
    assert names[0] != names[1]
    (tmp_path / "kept.txt").write_text("of somebody else")
    assert builder().build(tmp_path) == builder().build(tmp_path) == names[0]
    assert (tmp_path / "kept.txt").exists()
    assert content_of(variant(tmp_path)) == content_of(variant(repositories[0]))


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.py")}


def values(loss, n: int, d: int, **options) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    z_a, z_b = (torch.randn(n, d, generator=generator).requires_grad_() for _ in range(2))
    value, terms = loss(z_a, z_b, return_terms=True, **options)
    return [value.detach(), *terms, *torch.autograd.grad(value, (z_a, z_b))]


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_two_builds_equal_the_installed_package_bit_by_bit(loaded, n, d):
    expected = values(barlow_fast.barlow_twins_loss, n, d, backend="aten")
    for kernel in loaded:
        for found in (
            values(kernel.barlow_twins_loss, n, d),
            values(kernel.BarlowTwinsLoss(), n, d),
        ):
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_build_has_an_operator_namespace_of_its_own(loaded):
    first, second = loaded
    assert len({first.__name__, second.__name__, "barlow_fast"}) == 3
    for kernel, namespace in (
        (barlow_fast, "barlow_fast"),
        (first, first.__name__),
        (second, second.__name__),
    ):
        program = torch.export.export(Loss(kernel), tuple(torch.randn(2, 12, 20)))
        used = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        used = {name for name in used if "barlow_fast" in name}
        assert used, program
        assert all(name.startswith(f"{namespace}.") for name in used)


class Loss(torch.nn.Module):
    def __init__(self, kernel: ModuleType) -> None:
        super().__init__()
        self.criterion = kernel.BarlowTwinsLoss(backend="aten")

    def forward(self, z_a: torch.Tensor, z_b: torch.Tensor) -> torch.Tensor:
        return self.criterion(z_a, z_b)


def test_builds_compile_without_graph_breaks(loaded):
    expected = values(barlow_fast.barlow_twins_loss, 16, 40, backend="aten")
    for kernel in loaded:
        compiled = torch.compile(kernel.barlow_twins_loss, backend="aot_eager", fullgraph=True)
        found = values(compiled, 16, 40)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_build_reports_what_it_lacks(loaded):
    kernel = loaded[0]
    assert kernel.explain(16, 40).backend == "aten"
    with pytest.raises(RuntimeError, match=r"no native CPU kernels; pip install barlow-fast"):
        kernel.barlow_twins_loss(*torch.randn(2, 16, 40), backend="cpu")


def in_a_clone(code: str, *folders: Path) -> subprocess.CompletedProcess:
    """Python in the clone, without site-packages."""
    path = os.pathsep.join(map(str, folders))
    return completed(sys.executable, "-S", "-c", code, cwd=ROOT, PYTHONPATH=path)


def test_the_folder_of_a_clone_does_not_shadow_the_package(tmp_path):
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("from .inner import ANSWER\n")
    (package / "inner.py").write_text("ANSWER = 42\n")
    done = in_a_clone(PRINTED, tmp_path)
    assert done.stdout == "42 42\n", done.stderr
    done = in_a_clone(PRINTED, ROOT, tmp_path)  # twice in the path, as under `python -m pytest`
    assert done.stdout == "42 42\n", done.stderr


def test_a_clone_alone_has_no_package_of_that_name():
    done = in_a_clone(
        "import kernels", ROOT / "tests"
    )  # tests/kernels is a folder without __init__
    assert "ModuleNotFoundError: No module named 'kernels'" in done.stderr
