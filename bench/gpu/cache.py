"""The Triton kernels of tests and rows, compiled on all cores before anything waits for them.

    python -m bench.gpu.cache                              # for the device at hand
    python -m bench.gpu.cache --capability 90 --pack FILE  # on a machine without one

An archive holds the entries of Triton's cache on disk. They are found by the version of Triton, the
source, the types and the options of a kernel: where one differs, that kernel is compiled again.
An archive is code that the device runs: unpack only what was packed from this source tree.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from bench import cli, sources
from bench.cli import Option
from bench.inputs import CUDA_GRID, CUDA_VARIANTS

ARCHIVE = sources.ROOT / "build" / "gpu-kernels.tar.xz"
# An entry is a folder: what describes its kernel, and the code. What the compiler had in between
# stays behind.
MEMBER = re.compile(r"(?P<entry>[A-Z2-7]{52})/(?P<file>[\w.]+\.(?:json|cubin|ptx))")
GROUP = "__grp__"  # the file of an entry that lists the others, by their paths
MOST_BYTES = 1 << 30


def cases() -> list:
    """Steps whose kernels are compiled: the survey's, and those of the rows."""
    from barlow_fast.kernels.triton import inspection
    from barlow_fast.plan import choose_form

    rows = [
        inspection.Case(
            choose_form("auto", case.n, case.d, "triton"), case.n, case.d, case.variant.dtype,
            case.variant.gemm,
        )
        for case in CUDA_GRID.cases(list(CUDA_VARIANTS.values()))
    ]  # fmt: skip
    return [*inspection.cases(), *rows]


def compile_all(capability: int, workers: int) -> int:
    """Compiles what is not in the cache; the number of distinct kernels."""
    from barlow_fast.kernels.triton import inspection

    return len(inspection.for_each(_compile, cases(), capability, workers))


def _compile(launch, capability: int) -> None:
    from barlow_fast.kernels.triton import inspection

    inspection.compile_launch(launch, capability)


def folder() -> Path:
    """Triton's cache on disk."""
    from triton import knobs

    return Path(knobs.cache.dir)


def entries(cache: Path) -> set[str]:
    """Names of the entries of a cache."""
    return {path.name for path in cache.iterdir()} if cache.is_dir() else set()


def pack(cache: Path, archive: Path) -> int:
    """Writes the entries of a cache into an archive, at once; their number."""
    from barlow_fast.files import whole_file

    archive.parent.mkdir(parents=True, exist_ok=True)
    files = sorted(path.relative_to(cache).as_posix() for path in cache.glob("*/*"))
    found = [name for name in files if MEMBER.fullmatch(name)]
    with whole_file(archive) as temporary, tarfile.open(temporary, "w:xz") as tar:
        for name in found:
            tar.add(cache / name, name, recursive=False)
    return len({name.partition("/")[0] for name in found})


def unpack(archive: Path, cache: Path) -> int:
    """Adds the entries of an archive to a cache; their number. Lists of files get the paths that
    they have here.

    Raises:
        ValueError: it holds something else than entries, or more than a cache ever does.
    """
    from barlow_fast.files import write_whole

    names, size = set(), 0
    with tarfile.open(archive, "r:xz") as tar:
        for member in tar:
            match, size = MEMBER.fullmatch(member.name), size + member.size
            if match is None or not member.isfile() or size > MOST_BYTES:
                raise ValueError(f"{archive} is no archive of kernels: {member.name!r}")
            content = tar.extractfile(member).read()
            place = cache / match["entry"]
            if match["file"].startswith(GROUP):
                content = _relocated(content, place)
            place.mkdir(parents=True, exist_ok=True)
            write_whole(place / match["file"], content)
            names.add(match["entry"])
    return len(names)


def _relocated(listing: bytes, place: Path) -> bytes:
    """The list of an entry's files, of those that an archive holds, at their paths in `place`."""
    files = [Path(name).name for name in json.loads(listing)["child_paths"]]
    kept = [name for name in files if MEMBER.fullmatch(f"{place.name}/{name}")]
    return json.dumps({"child_paths": {name: str(place / name) for name in kept}}).encode()


def command(
    capability: Annotated[
        int | None, Option("Compute capability, such as 90. Default: of the device at hand.")
    ] = None,
    workers: Annotated[int, Option("Processes that compile.", least=1)] = os.cpu_count() or 1,
    pack_into: Annotated[
        Path | None, Option("Pack what is compiled, and nothing else, into this file.", "--pack")
    ] = None,
    archive: Annotated[Path, Option("Kernels to begin with, where the file exists.")] = ARCHIVE,
) -> None:
    """Compile the Triton kernels that the tests and rows of `make gpu` need."""
    import triton

    capability = _capability(capability)
    versions = f"Triton {triton.__version__}, Python {sys.version.split()[0]}"
    if pack_into is not None:
        with tempfile.TemporaryDirectory() as scratch:
            os.environ["TRITON_CACHE_DIR"] = scratch
            compile_all(capability, workers)
            count = pack(Path(scratch), pack_into)
        size = pack_into.stat().st_size / 2**20
        print(f"{pack_into}: {count} entries, {size:.1f} MiB, sm_{capability}, {versions}")
        return
    held = entries(folder())
    unpacked = unpack(archive, folder()) if archive.exists() else 0
    known = entries(folder())
    count = compile_all(capability, workers)
    compiled = len(entries(folder()) - known)
    print(
        f"sm_{capability}, {versions}: {count} kernels; {unpacked} entries of {archive.name} "
        f"({len(known - held)} new), {count - compiled} were on disk, {compiled} compiled"
    )


def _capability(given: int | None) -> int:
    from barlow_fast.kernels.triton import inspection
    from barlow_fast.kernels.triton.launch import REFERENCE_DEVICES

    given = inspection.capability_here() if given is None else given
    if given is None:
        raise cli.Refused("without a CUDA device, --capability is required")
    if given not in REFERENCE_DEVICES:
        known = ", ".join(map(str, sorted(REFERENCE_DEVICES)))
        raise cli.Refused(f"unknown capability {given}; known are {known}")
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; an exit status of `bench.exits`."""
    return cli.run(command, arguments, "python -m bench.gpu.cache", __doc__)


if __name__ == "__main__":
    sys.exit(main())
