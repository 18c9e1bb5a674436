"""The tests of kernels and loss on ARM: on an x86 machine under an emulator, on an ARM machine as
they are.

    make test-arm

On x86 an environment is made in the user's cache (~/.cache/barlow_fast/arm, or below
XDG_CACHE_HOME; 2 GB, two minutes, used again by later runs, may be deleted at any time): the
distribution's own Python, emulator (QEMU in user mode) and cross compiler, as apt downloads them
from the machine's own sources, and torch's wheel for ARM, as pip does. They are unpacked there;
nothing is installed, and no rights are needed. The CPU kernels of this clone are then compiled
with the flags of CMakeLists.txt, and the tests run with them, two processes at a time.

Which tests run is decided by `is_selected`, by the kernels and types that a test is given and by
the marker `large`. Every primitive runs in every precision, with
and without products of bfloat16. With --quick, as `make test-all` runs it, the contract of the
kernels alone, without loss, views and crops. Emulated times mean nothing: what is held is that
results are right. Prints what ran, and ends with a table, and with status 1 when a test failed or
the environment cannot be made; the latter is no failure with --or-skip. Needs nothing beyond the
standard library, apt and CMake.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import versions
from versions import MATRIX, ONE_THREAD, ROOT, Failure, Tier

if TYPE_CHECKING:
    import pytest

MACHINES = ("aarch64", "arm64")
ROW = MATRIX[0]._replace(triton="none")
TOOLS = ("qemu-user-static", "g++-aarch64-linux-gnu")
# Plain torch multiplies by SVE where it can: vectors of 2048 bits, ten times slower to emulate.
CPU = "max,sve=off"
SYSTEM = ("python3", "libgomp1", "libstdc++6")
# All that torch's wheel and the tests import; pip would add what torch needs on x86.
WHEELS = (
    f"torch=={ROW.torch}", "filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx",
    "sympy", "typing_extensions", "numpy", "pytest", "iniconfig", "packaging", "pluggy", "pygments",
)  # fmt: skip
WHEEL_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
# What the copy of the clone holds beside the library for ARM.
SOURCES = ("barlow_fast", "kernels", "tests", "bench/gpu/startup", "pyproject.toml")

# In the order that keeps two processes busy to the end.
TIERS = (
    Tier("loss", ("tests/loss/test_numerics.py", "tests/loss/test_interface.py"), ONE_THREAD),
    Tier("contract", ("-k", "not neon_bf16", "tests/kernels/test_contract.py"), ONE_THREAD),
    Tier(
        "family, views, crops",
        (
            "tests/loss/test_family.py", "tests/loss/test_family_numerics.py",
            "tests/kernels/test_photometric.py", "tests/kernels/test_resize.py",
        ),
        ONE_THREAD,
    ),
    Tier(
        "contract, bfloat16", ("-k", "neon_bf16", "tests/kernels/test_contract.py"), ONE_THREAD
    ),
)  # fmt: skip
# `arm` is this file, whose hooks below refuse a run without the kernels, and select tests.
PYTEST = ("-o", "addopts=", "-p", "arm")


def pytest_configure() -> None:
    """Ends pytest where the native kernels cannot run: their tests would be skipped."""
    import torch

    from barlow_fast.kernels import why_unusable

    problem = why_unusable("cpu", torch.device("cpu"))
    if problem or platform.machine() not in MACHINES:
        raise SystemExit(problem or f"the machine is {platform.machine()}, not {MACHINES[0]}")


def is_selected(item: pytest.Item) -> bool:
    """Whether a test runs under an emulator.

    Left out is what is marked `large`, plain torch alone, matrix tiles, which ARM does not have,
    and with `neon_bf16` what has no bfloat16: it is the code of `neon`.
    """
    given = item.callspec.params if hasattr(item, "callspec") else {}
    kernels = given.get("kernels", given.get("instruction_set", given.get("backend")))
    values = {str(value).removeprefix("torch.") for value in given.values()}
    return not (
        item.get_closest_marker("large")
        or kernels in ("aten", "amx_bf16", "amx_bf16_emulated")
        or (kernels == "neon_bf16" and values.isdisjoint(("bf16", "bfloat16")))
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what takes an emulator long."""
    left_out = [item for item in items if not is_selected(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if is_selected(item)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What ran: passed parametrisations and seconds of each test."""
    found: dict[str, list[float]] = {}
    for report in terminalreporter.stats.get("passed", ()):
        found.setdefault(report.nodeid.partition("[")[0], []).append(report.duration)
    for name, seconds in found.items():
        terminalreporter.write_line(f"{len(seconds):4} passed {sum(seconds):6.1f} s  {name}")


def unpack(folder: Path, packages: Sequence[str], *options: str) -> None:
    """Unpacks Debian packages, with those that they need, into a folder."""
    state = folder / "apt"
    for part in ("lists/partial", "archives/partial"):
        (state / part).mkdir(parents=True)
    (state / "nothing").touch()
    places = (f"Dir::State={state}", f"Dir::Cache={state}", "Debug::NoLocking=1")
    apt = ["apt-get", "-qq"]
    for option in (
        *places,
        "APT::Sandbox::User=root",
        *(option.format(state) for option in options),
    ):
        apt += ["-o", option]
    versions.run([*apt, "update"], {})
    download = ("install", "--yes", "--download-only", "--no-install-recommends")
    versions.run([*apt, *download, *packages], {})
    for package in sorted(state.glob("archives/*.deb")):
        versions.run(["dpkg", "-x", package, folder], {})
    shutil.rmtree(state)


class Environment:
    """Compiler, emulator and Python for ARM, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tools, self.system, self.site = (folder / n for n in ("tools", "system", "site"))

    @property
    def path(self) -> str:
        """PATH with the tools that the machine lacks."""
        return f"{self.tools / 'usr' / 'bin'}{os.pathsep}{os.environ['PATH']}"

    @property
    def libraries(self) -> dict[str, str]:
        """Environment variables with which the tools find their libraries."""
        found = (self.tools / "usr" / "lib").glob(f"{platform.machine()}-*")
        return {"LD_LIBRARY_PATH": os.pathsep.join(map(str, found))}

    def make(self) -> None:
        """Downloads all of it.

        Raises:
            Failure: a download or an unpacking that did not succeed.
        """
        unpack(self.tools, TOOLS)
        native = ("APT::Architecture=arm64", "APT::Architectures=arm64")
        unpack(self.system, SYSTEM, *native, "Dir::State::status={}/nothing")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-cache-dir", "--no-compile"]
        pip += ["--no-deps", "--only-binary=:all:", "--target", str(self.site)]
        pip += ["--python-version", self.version, "--implementation", "cp"]
        for name in WHEEL_PLATFORMS:
            pip += ["--platform", name]
        settings = {"PIP_CONSTRAINT": os.devnull, "TMPDIR": str(self.folder)}
        versions.run([*pip, *WHEELS], settings)

    @property
    def interpreter(self) -> Path:
        """The one Python of the unpacked system."""
        (found,) = self.system.glob("usr/bin/python3.*[0-9]")
        return found

    @property
    def version(self) -> str:
        return self.interpreter.name.removeprefix("python")

    def tool(self, name: str) -> str:
        """The path of a tool.

        Raises:
            Failure: it is neither here nor on PATH.
        """
        found = shutil.which(name, path=self.path)
        if found is None:
            raise Failure(f"no {name} here: delete {self.folder}")
        return found

    def build(self, clone: Path) -> None:
        """Compiles the CPU kernels of a clone and leaves the library among them."""
        system = f"-Wl,--sysroot={self.tools}" if (self.tools / "usr").exists() else ""
        settings = {
            "CMAKE_SYSTEM_NAME": "Linux",
            "CMAKE_SYSTEM_PROCESSOR": MACHINES[0],
            "CMAKE_CXX_COMPILER": self.tool("aarch64-linux-gnu-g++"),
            "CMAKE_EXE_LINKER_FLAGS": system,
            # torch's own dependencies are found when the library is loaded.
            "CMAKE_SHARED_LINKER_FLAGS": f"{system} -Wl,--unresolved-symbols=ignore-all",
            "TORCH_FOLDER": self.site / "torch",
            "OUTPUT_FOLDER": clone / "kernels" / "cpu",
        }
        beside = Path(sys.executable).parent
        cmake = shutil.which("cmake", path=f"{beside}{os.pathsep}{os.environ['PATH']}") or "cmake"
        with tempfile.TemporaryDirectory() as work:
            define = [f"-D{name}={value}" for name, value in settings.items()]
            quiet = ["--log-level=WARNING"]
            versions.run([cmake, *quiet, "-S", ROOT, "-B", work, *define], self.libraries)
            versions.run([cmake, "--build", work, "--parallel", "2"], self.libraries)

    def python(self) -> list[str]:
        """The command of the emulated Python."""
        libraries = f"{self.site}/torch/lib:{self.site}/torch.libs"
        qemu = [self.tool("qemu-aarch64-static"), "-cpu", CPU, "-L", str(self.system)]
        return [*qemu, "-E", f"LD_LIBRARY_PATH={libraries}", str(self.interpreter)]


def environment() -> Environment:
    """The environment of the cache, made when there is none for these requirements.

    Raises:
        Failure: it cannot be made here.
    """
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise Failure("ARM is emulated on Linux on x86-64 alone")
    for name in ("apt-get", "dpkg"):
        if shutil.which(name) is None:
            raise Failure(f"no {name} here: the environment is made of Debian packages")
    release = Path("/etc/os-release").read_text(encoding="utf-8")
    requirements = (*TOOLS, *SYSTEM, *WHEELS, release)
    key = hashlib.sha256("\n".join(requirements).encode()).hexdigest()[:8]
    cache = versions.cache("arm")
    folder = cache / f"torch{ROW.torch}-{key}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        print(f"making an ARM environment in {folder}", flush=True)
        with tempfile.TemporaryDirectory(prefix="incomplete-", dir=cache) as work:
            # Renamed when complete, so that an interrupted one is never used.
            made = Environment(Path(work) / "environment")
            made.make()
            made.folder.rename(folder)
    return Environment(folder)


def copied(folder: Path) -> Path:
    """A copy of what the tests need of this clone, without what was built in it."""
    built = shutil.ignore_patterns("*.so", "native_build.txt", "__pycache__")
    for name in SOURCES:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=built)
        else:
            shutil.copyfile(ROOT / name, target)
    return folder


def run_tests(
    python: Sequence[str], version: str, clone: Path, path: Sequence[Path], quick: bool
) -> int:
    """Exit status 0 when every tier passed with the library of that copy or clone."""
    startup = clone / "bench" / "gpu" / "startup"
    found = os.pathsep.join(map(str, (startup, clone / "tests", *path)))
    variables = {"PYTHONPATH": found, "PYTHONDONTWRITEBYTECODE": "1"}
    work = []
    for tier in TIERS:
        if quick and not tier.name.startswith("contract"):
            continue
        paths = (str(clone / part) if part.startswith("tests/") else part for part in tier.paths)
        work.append((ROW, version, python, tier._replace(
            paths=(*PYTEST, *paths), environment=tier.environment | variables
        )))  # fmt: skip
    results = list(versions.run_tiers(work, 2))
    print(f"\n{versions.table(results)}")
    return int(any(result.failed for result in results))


def main() -> int:
    """Exit status 0 when the tests passed, or with --or-skip cannot run here."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the kernels' contract alone")
    parser.add_argument("--or-skip", action="store_true", help="status 0 without an environment")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    if platform.machine() in MACHINES:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        return run_tests([sys.executable], version, ROOT, (), arguments.quick)
    try:
        emulated = environment()
    except Failure as failure:
        print(f"ARM is not tested: {failure}")
        return 0 if arguments.or_skip else 1
    with tempfile.TemporaryDirectory() as work:
        clone = copied(Path(work))
        try:
            emulated.build(clone)
        except Failure as failure:
            print(f"the CPU kernels do not compile for ARM: {failure}")
            return 1
        path, python = (emulated.site,), emulated.python()
        return run_tests(python, emulated.version, clone, path, arguments.quick)


if __name__ == "__main__":
    sys.exit(main())
