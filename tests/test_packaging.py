"""What is published: metadata, version, changelog, and what sdist and wheel hold."""

from __future__ import annotations

import re
import runpy
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from ended import completed, tracked

import barlow_fast

ROOT = Path(__file__).resolve().parents[1]
VERSION = r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?"
HEADING = re.compile(rf"^## ({VERSION}) \((unreleased|\d{{4}}-\d\d-\d\d)\)$")
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def changelog() -> list[tuple[str, str]]:
    """(version, date or 'unreleased') of every release, newest first."""
    found = []
    for line in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            heading = HEADING.match(line)
            assert heading, f"not '## VERSION (unreleased)' or '## VERSION (YYYY-MM-DD)': {line}"
            found.append((heading[1], heading[2]))
        elif line.startswith("### "):
            assert line[4:] in KINDS, f"{line!r} is none of {sorted(KINDS)}"
    return found


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.match(r"(\d+)\.(\d+)\.(\d+)", version).groups())


def test_the_changelog_leads_with_the_version_of_the_package():
    releases = changelog()
    assert releases[0][0] == barlow_fast.__version__
    assert all(date != "unreleased" for _, date in releases[1:]), "only the newest is unreleased"
    versions = [numbers(version) for version, _ in releases]
    assert versions == sorted(versions, reverse=True)
    assert len(set(versions)) == len(versions)


def test_the_citation_is_of_this_version_and_of_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert str(citation["version"]) == barlow_fast.__version__
    version, date = changelog()[0]
    if date != "unreleased":
        assert str(citation["date-released"]) == date, f"CITATION.cff is not of {version}"
    paper = citation["references"][0]
    assert "Barlow Twins" in paper["title"]
    assert paper["year"] == 2021


@pytest.mark.parametrize("name", ["ci.yml", "release.yml"])
def test_workflows_have_least_privileges_and_pinned_actions(name):
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for job_name, job in workflow["jobs"].items():
        for permission, level in job.get("permissions", {}).items():
            assert (permission, level) in {("contents", "read"), ("id-token", "write")}, job_name
        assert "timeout-minutes" in job, f"{job_name} may run for hours"
        for step in job["steps"]:
            if "uses" in step:
                assert re.search(r"@v?\d+(\.\d+)*$", step["uses"]), step["uses"]
            if "run" in step:
                # Text of other people, put into a shell, is how workflows are taken over.
                assert "${{ github.event" not in step["run"], step["run"]


def test_the_forms_for_bugs_ask_for_the_doctor():
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    form = yaml.safe_load((folder / "bug.yml").read_text(encoding="utf-8"))
    asked = {part.get("id"): part for part in form["body"]}
    assert "barlow-fast doctor" in asked["doctor"]["attributes"]["description"]
    assert asked["doctor"]["validations"]["required"] is True
    for path in folder.glob("*.yml"):
        assert yaml.safe_load(path.read_text(encoding="utf-8")), path.name


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """An sdist, and the wheel that its unpacked contents build, without the native kernels, whose
    building other tests and `make wheel-test` hold."""
    for library, version in (("build", "1.2"), ("setuptools", "77")):
        pytest.importorskip(library, minversion=version)
    folder = tmp_path_factory.mktemp("dist")
    # CMake is requested by pyproject.toml and not needed without the native kernels.
    options = ["--no-isolation", "--skip-dependency-check", "--outdir", folder]
    done = completed(sys.executable, "-m", "build", *options, ROOT, BARLOW_FAST_NATIVE="skip")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def test_the_sdist_holds_what_builds_and_tests_it(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {*tracked("barlow_fast", "kernels", "tests", "docs", "examples", "bench")}
    wanted |= {"pyproject.toml", "setup.py", "CMakeLists.txt", "LICENSE", "README.md"}
    wanted |= {"CHANGELOG.md", "CITATION.cff", "Makefile", "mkdocs.yml"}
    assert not wanted - names, sorted(wanted - names)
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_the_wheel_holds_the_packages_and_nothing_else(built):
    wheel = built[1]
    assert re.fullmatch(rf"barlow_fast-{VERSION}-py3-none-any\.whl", wheel.name)  # nothing native
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata_name = next(name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(metadata_name).decode()
    sources = {name for name in tracked("barlow_fast") if name.endswith(".py")}
    kernels = {name for name in tracked("kernels") if name.endswith(".py")}
    sources |= {f"barlow_fast/{name}" for name in kernels if not name.startswith("kernels/hub/")}
    assert not sources - names, sorted(sources - names)
    assert "barlow_fast/py.typed" in names
    tops = {name.split("/")[0] for name in names}
    assert tops == {"barlow_fast", metadata_name.split("/")[0]}
    assert re.search(rf"^Version: {re.escape(barlow_fast.__version__)}$", metadata, re.M)
    assert "Requires-Dist: torch>=2.10" in metadata
    extras = set(re.findall(r"^Provides-Extra: (.+)$", metadata, re.M))
    assert {"train", "dali", "bench", "test", "docs", "dev"} <= extras
    addresses = dict(re.findall(r"^Project-URL: (\w+), (.+)$", metadata, re.M))
    assert {"Repository", "Issues", "Changelog"} <= addresses.keys()
    assert all(address.startswith(addresses["Repository"]) for address in addresses.values())
    assert not [address for address in addresses.values() if "example" in address.lower()]
    description = metadata.partition("\n\n")[2]
    images = re.findall(r"!\[[^]]*\]\((.+?)\)|<img[^>]* src=\"(.+?)\"", description)
    assert images
    raw = f"{addresses['Repository']}/raw/v{barlow_fast.__version__}/"
    for address in map("".join, images):
        assert address.startswith(raw), address
        assert (ROOT / address.removeprefix(raw)).is_file(), address


def test_the_address_of_the_repository_is_in_one_place():
    """A fork replaces it there."""
    (address,) = re.findall(
        r"^    git clone https://(.+)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M
    )
    listed = completed("git", "-C", ROOT, "grep", "-lF", address, "--", ":!CHANGELOG.md")
    if listed.returncode > 1:
        pytest.skip("not a git checkout")
    assert listed.stdout.split() == ["README.md"]


@pytest.mark.parametrize("native", [True, False])
def test_a_wheel_is_for_one_platform_only_with_the_native_library(native, monkeypatch):
    setuptools = pytest.importorskip("setuptools", minversion="77")
    given: dict = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path(str(ROOT / "setup.py"))
    distribution = given["distclass"]({"name": "barlow_fast", "version": "1"})
    distribution.has_native_library = native
    wheel = given["cmdclass"]["bdist_wheel"](distribution)
    wheel.ensure_finalized()
    assert wheel.root_is_pure is not native
    python, abi, platform = wheel.get_tag()
    assert (python, abi, platform != "any") == ("py3", "none", native)


def test_classifiers_name_the_system_that_the_workflows_run_on():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r'"Operating System :: (.+)"', text) == ["POSIX :: Linux"]
    for workflow in (ROOT / ".github" / "workflows").glob("*.yml"):
        runners = re.findall(r"runs-on: (\S+)", workflow.read_text(encoding="utf-8"))
        assert all(runner.startswith("ubuntu-") for runner in runners), workflow.name
