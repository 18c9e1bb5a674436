"""Build script: maps `kernels/` to `barlow_fast.kernels` and builds the native CPU kernels with
CMake.

Everything declarative lives in pyproject.toml. What stands here is what that file cannot say:

* `kernels/` must not install under its own name (a library on PyPI has it), so `package_dir` maps
    it.
* The native library is one file for every torch >= 2.10 and Python >= 3.10 (torch's stable ABI,
  loaded with `torch.ops.load_library`, not a Python extension module), hence the
  `py3-none-<platform>` wheel tag.
* Without a compiler, CMake or the headers, the install succeeds without the library, from a wheel
  for any platform; `barlow-fast doctor` reports what is missing. Set BARLOW_FAST_NATIVE=require to
  make that an error, or =skip not to build at all.
* Links of the long description are absolute, to the address in README.md.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Distribution, setup
from setuptools.command.build import build

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools < 70.1
    from wheel.bdist_wheel import bdist_wheel

ROOT = Path(__file__).parent.resolve()
LIBRARY = "barlow_fast_cpu"
SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
REASON_FILE = "native_build.txt"


def tool(name):
    """Path of a build tool: the wheel's copy when the build environment has one, else what PATH
    has."""
    spec = find_spec(name)
    if spec is not None and spec.submodule_search_locations:
        for folder in spec.submodule_search_locations:
            for candidate in (
                Path(folder) / "data" / "bin" / name,
                Path(sys.executable).parent / name,
            ):
                if candidate.exists():
                    return str(candidate)
    return shutil.which(name)


def failure_reason(output):
    """One line that says why CMake or the compiler failed."""
    if "CMAKE_CXX_COMPILER" in output:
        return "no working C++ compiler found"
    errors = [line.strip() for line in output.splitlines() if "error" in line.lower()]
    return (errors or ["cmake failed"])[0][:300]


class BuildNative(Command):
    """Builds the CPU kernels into barlow_fast/kernels/cpu; fails an install only if they are
    required."""

    description = "build the native CPU kernels"
    user_options: ClassVar = [
        ("build-lib=", "b", "directory the packages are built in"),
        ("inplace", "i", ""),
    ]
    boolean_options: ClassVar = ["inplace"]
    editable_mode = False

    def initialize_options(self):
        self.build_lib = None
        self.inplace = False

    def finalize_options(self):
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def target_folder(self):
        if self.inplace or self.editable_mode:
            return ROOT / "kernels" / "cpu"
        return Path(self.build_lib).resolve() / "barlow_fast" / "kernels" / "cpu"

    def get_outputs(self):
        names = [f"lib{LIBRARY}{SUFFIX}", REASON_FILE]
        return [str(self.target_folder() / n) for n in names if (self.target_folder() / n).exists()]

    def get_output_mapping(self):
        return {}

    def get_source_files(self):
        return [
            str(p.relative_to(ROOT)) for p in sorted((ROOT / "kernels" / "cpu").glob("*.[ch]*"))
        ]

    def run(self):
        mode = os.environ.get("BARLOW_FAST_NATIVE", "auto")
        target = self.target_folder()
        target.mkdir(parents=True, exist_ok=True)
        reason = (
            "skipped: BARLOW_FAST_NATIVE=skip" if mode == "skip" else self.build_with_cmake(target)
        )
        (target / REASON_FILE).write_text((reason or "built") + "\n")
        if reason:
            (target / f"lib{LIBRARY}{SUFFIX}").unlink(missing_ok=True)
            print(f"barlow_fast: installing without native CPU kernels ({reason})", file=sys.stderr)
            self.distribution.has_native_library = False
            if mode == "require":
                raise SystemExit(
                    f"BARLOW_FAST_NATIVE=require, but the native build failed: {reason}"
                )

    def build_with_cmake(self, target):
        """Returns None when the library was built, else the reason why not, in one line."""
        cmake, ninja = tool("cmake"), tool("ninja")
        if cmake is None:
            return "no cmake found"
        # find_package(Torch) of a CUDA build demands a CUDA toolkit; the folders are all we need.
        spec = find_spec("torch")
        if spec is None:
            return "torch is not installed in the build environment"
        torch_folder = Path(spec.submodule_search_locations[0])
        with tempfile.TemporaryDirectory() as work:
            return self.run_cmake(cmake, ninja, torch_folder, Path(work), target)

    @staticmethod
    def run_cmake(cmake, ninja, torch_folder, work, target):
        configure = [cmake, "-S", str(ROOT), "-B", str(work), "-DCMAKE_BUILD_TYPE=Release"]
        configure += [f"-DTORCH_FOLDER={torch_folder}", f"-DOUTPUT_FOLDER={target}"]
        if ninja is not None:
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        for command in (configure, [cmake, "--build", str(work), "--parallel", "2"]):
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
            except (OSError, subprocess.TimeoutExpired) as error:
                return f"{Path(command[0]).name}: {error}"
            if done.returncode:
                print(done.stdout + done.stderr, file=sys.stderr)
                return failure_reason(done.stdout + done.stderr)
        return None


class NativeDistribution(Distribution):
    """Installs among platform-dependent packages, as machine code does, until a build without the
    library has ended."""

    has_native_library = True

    def has_ext_modules(self):
        return self.has_native_library


class Build(build):
    sub_commands: ClassVar = [*build.sub_commands, ("build_native", None)]


class Wheel(bdist_wheel):
    """One wheel per platform for all Python versions, as the library binds to torch's stable ABI
    and not to CPython; one for all platforms where there is no library."""

    def run(self):
        if not self.skip_build:
            self.run_command("build")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()

    def get_tag(self):
        _, _, platform = super().get_tag()
        return "py3", "none", platform


def packages():
    found = ["barlow_fast"]
    for base, name in (("barlow_fast", "barlow_fast"), ("kernels", "barlow_fast.kernels")):
        for init in sorted((ROOT / base).rglob("__init__.py")):
            relative = init.parent.relative_to(ROOT / base)
            found.append(".".join([name, *relative.parts]))
    return sorted(set(found))


def repository():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.search(r"^    git clone (\S+)$", text, re.MULTILINE)[1]


def long_description():
    """README.md with absolute links: an index shows it beside none of the files that it names."""
    version = re.search(
        r'^__version__ = "(.+)"$', (ROOT / "barlow_fast" / "__init__.py").read_text(), re.MULTILINE
    )[1]

    def absolute(link):
        kind = "raw" if link["image"] else "blob"
        return f"{link['image']}[{link['text']}]({repository()}/{kind}/v{version}/{link['path']})"

    relative = r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?![a-z]+:|#)(?P<path>[^)\s]+)\)"
    return re.sub(relative, absolute, (ROOT / "README.md").read_text(encoding="utf-8"))


setup(
    long_description=long_description(),
    long_description_content_type="text/markdown",
    project_urls={
        "Repository": repository(),
        "Issues": f"{repository()}/issues",
        "Changelog": f"{repository()}/blob/main/CHANGELOG.md",
    },
    packages=packages(),
    package_dir={"barlow_fast": "barlow_fast", "barlow_fast.kernels": "kernels"},
    include_package_data=False,
    package_data={"barlow_fast": ["py.typed"], "barlow_fast.training.reporting": ["page.html"]},
    distclass=NativeDistribution,
    cmdclass={"build": Build, "build_native": BuildNative, "bdist_wheel": Wheel},
)
