"""Textual bans: known errors, and words that the glossary of CONTRIBUTING.md replaces.

Run by `make lint` and pre-commit.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

BANS = (
    (r"tl\.make_block_ptr", "removed from Triton: use tensor descriptors or plain pointers"),
    (r"^\s*except\s*:", "a bare except hides KeyboardInterrupt and every bug"),
    (r"torch\.load\((?!.*weights_only=True)", "torch.load without weights_only=True runs pickles"),
    (r"\bpickle\.loads?\(", "nothing unpickles data here"),
    (r"-ffast-math", "NaN must stay NaN"),
    (r"torch\.distributed\.nn\.functional", "deprecated: use an autograd.Function of our own"),
    (r"SIGSTOP|SIGCONT", "a stopped process may never end: give it no work instead"),
)  # fmt: skip
# (what is replaced, by what), in code, comments and documents; an underscore ends a word. The
# glossary of CONTRIBUTING.md has the terms.
WORDS = (
    (r"(?<!\")companions?(?!\")", "centres (gram form) or squares (correlation form)"),
    (r"copy engines?|(?<!async\.)(?<!\")bulk", "TMA"),
    (r"processors", "num_sms, or streaming multiprocessors"),
    (r"(whole|split) tiles?", "full tiles, split-K tiles"),
    (r"without_memory", "_fake"),
    (r"given_precision", "precision_under_autocast"),
    (r"explained(?=\()", "communication_errors"),
    (r"trees(?=[=:]| is )", "use_all_reduce"),
    # `file.tell()` is Python's.
    (r"tells?(?!\(\))|told|telling", "report, state, show, distinguish, request"),
    (r"(go|goes|going|went|gone) on", "continue, resume"),
    (r"(stand|stands|standing|stood) still", "wait"),
    (r"ask(s|ed|ing)? for", "request, requested, need"),
    (r"of others", "of other libraries, ranks, ..."),
    (r"whoever", "any caller, reader, process, ..."),
    (r"a word", "a value, a name, a message"),
    (r"sees", "receives, reads, contains"),
    (r"steers?|steering", "control, change"),
    (r"speaks?|spoke|spoken", "log, print, use"),
    (r"seldom", "rarely"),
    (r"for ever", "forever, without end"),
    (r"daily bread|yardsticks?", "the plain term: expected, baseline"),
)  # fmt: skip
# In what users run: files and environment variables hold what others wrote.
PACKAGE_BANS = (
    (r"\b(int|float)\(\s*os\.(environ|getenv)", "environment.whole_number names the variable"),
    (r"OmegaConf|yaml\.(safe_)?load\(", "inputs.parse_yaml and read_yaml bound what they read"),
)
# The way out itself, and two programs of kernels/ that print what they compiled and tuned.
PRINTING = {
    "barlow_fast/terminal.py", "kernels/triton/inspection.py", "kernels/triton/tuning.py",
}  # fmt: skip
# In tests: a busy machine takes its time, and what a test starts must not outlive it.
TEST_BANS = (
    (r"time\.sleep\(", "wait for what is to happen: ended.until"),
    (r"timeout=\d", "a busy machine takes its time: ended.SECONDS"),
    (r"= subprocess\.Popen\(", "ended.running ends it with all that it starts"),
)
# Of the packages: what is written by hand follows links, or leaves halves and litter behind.
WRITING = r"os\.replace\(|delete=False|mkstemp|\.write_(text|bytes)\(|\.touch\("
WRITERS = {
    "barlow_fast/files.py",
    "barlow_fast/checkpoints/exporting.py",
    "barlow_fast/checkpoints/training.py",
    "kernels/hub/build.py",  # `make hub-kernel`, into a folder of its own
}
# Without `device=` these follow torch.set_default_device, whatever device the inputs are on.
FACTORIES = {
    "arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "linspace", "ones",
    "rand", "randint", "randn", "randperm", "scalar_tensor", "tensor", "tril_indices",
    "triu_indices", "zeros",
}  # fmt: skip
PACKAGES = ("barlow_fast/", "kernels/")
SUFFIXES = {".py", ".cpp", ".h", ".txt"}
WORD_SUFFIXES = {".py", ".cpp", ".h", ".md", ".toml", ".yml"}
# The changelog is history; the pages of bench/results are generated from code that is checked.
WORD_EXEMPT = ("CHANGELOG.md", "bench/results/", "tests/bans.py", "tests/test_structure.py")
# This file names what it bans; the others pickle losses, and read what they wrote themselves.
EXEMPT = {
    "tests/bans.py", "tests/loss/test_interface.py", "tests/loss/test_family_operators.py",
    "tests/adapters/test_pickles.py",
}  # fmt: skip
TEST_EXEMPT = {"tests/ended.py", "tests/versions.py", "tests/bench/test_turns.py"}


def offences(path: Path, name: str) -> list[str]:
    """'file:line: reason' for every banned line of one file."""
    if name in EXEMPT or path.suffix not in SUFFIXES:
        return []
    in_package = name.startswith(PACKAGES)
    in_tests = name.startswith("tests/") and name not in TEST_EXEMPT
    bans = BANS + TEST_BANS * in_tests + PACKAGE_BANS * in_package
    if in_package and name not in WRITERS:
        bans += ((WRITING, "barlow_fast.files has the one atomic write"),)
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        comment = line.lstrip().startswith(("#", "//"))
        for pattern, reason in bans:
            if not comment and re.search(pattern, line):
                found.append(f"{name}:{number}: {reason}")
    if in_package and path.suffix == ".py" and name not in PRINTING:
        found += [
            f"{name}:{line}: barlow_fast.terminal is the one way out, which escapes"
            for line in other_ways_out(path.read_text())
        ]
    if in_package and path.suffix == ".py":
        found += [
            f"{name}:{line}: torch.{factory} without device= follows torch.set_default_device"
            for line, factory in without_device(path.read_text())
        ]
    return found


def replaced_words(path: Path, name: str) -> list[str]:
    """'file:line: reason' for every word that the glossary replaces, each once a line."""
    if path.suffix not in WORD_SUFFIXES or name.startswith(WORD_EXEMPT):
        return []
    return [
        f"{name}:{number}: {found[0]!r} is: {term}"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for pattern, term in WORDS
        if (found := re.search(rf"(?<![A-Za-z])(?:{pattern})(?![A-Za-z])", line, re.IGNORECASE))
    ]


def other_ways_out(source: str) -> list[int]:
    """Lines of calls that print, past `barlow_fast.terminal`."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        node.lineno
        for node in calls
        if getattr(node.func, "id", "") in ("print", "Console")
        or getattr(node.func, "attr", "") in ("Console", "echo", "secho")
        or ast.unparse(node.func) in ("sys.stdout.write", "sys.stderr.write")
    ]


def without_device(source: str) -> list[tuple[int, str]]:
    """(line, function) of every call that makes a tensor and does not say on which device."""
    return [
        (node.lineno, node.func.attr)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "torch"
        and node.func.attr in FACTORIES
        and not any(keyword.arg in ("device", None) for keyword in node.keywords)
    ]


def main() -> int:
    root = Path(__file__).resolve().parent.parent
    tracked = subprocess.run(
        ["git", "-C", root, "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    present = [name for name in tracked if (root / name).is_file()]
    found = [
        offence
        for name in present
        for offence in (*offences(root / name, name), *replaced_words(root / name, name))
    ]
    print("\n".join(found) if found else f"no banned text in {len(tracked)} files")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
