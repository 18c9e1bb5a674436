"""The model of GPUs: its arithmetic, its tables, and the committed rows and figure."""

from __future__ import annotations

import pytest
from invoked import invoke

from bench import report, results
from bench.plots import figures
from bench.plots.figure import marked
from bench.suites import scaling


def without_provenance(rows):
    return [{k: v for k, v in row.items() if k != "provenance"} for row in rows]


@pytest.fixture(scope="module")
def modelled():
    return scaling.modelled()


def test_all_reduce_by_hand():
    """On 8 GPUs at N = 2048, D = 8192: 256 samples each, C of 128 MiB in two bytes."""
    step = scaling.all_reduce(8, 2048, 8192)
    matrix = 2 * 8192**2
    assert step["flops"] == 6 * 256 * 8192**2
    assert step["sent"] == 2 * 7 / 8 * matrix
    bandwidth = scaling.network(8).bandwidth
    expected = step["flops"] / 790e12 + 26 * matrix / 3e12 + step["sent"] / bandwidth
    expected += 5 * (1 + 3) * 15e-6  # steps of trees
    assert step["seconds"] == pytest.approx(expected, rel=1e-4)


def test_three_matrices_of_two_bytes_in_80_gigabytes():
    fits = {d: scaling.all_reduce(8, 2048, d)["fits"] for d in scaling.DIMENSIONS}
    assert fits == {d: 3 * 2 * d * d <= 80e9 for d in scaling.DIMENSIONS}
    assert fits[65536]
    assert not fits[131072]


def test_groups_have_at_least_32_samples_a_gpu_or_the_papers_batch():
    for gpus, n in scaling.GROUPS:
        assert n == 2048 or n // gpus >= 32
    assert {gpus for gpus, n in scaling.GROUPS if n // gpus >= 32} == {8, 64, 512}


def test_ours_is_the_choice_of_the_package(modelled):
    layouts = {row["ours"]["layout"] for row in modelled}
    assert layouts <= {"features", "rows", "correlation"}
    # N x N is the larger matrix there.
    wide = next(row for row in modelled if (row["n"], row["d"]) == (16384, 8192))
    assert wide["ours"]["layout"] == "correlation"


def test_tables_state_modelled_and_where_ours_is_slower(modelled):
    text = scaling.tables(modelled)
    assert text.count(": modelled**") == len(scaling.GROUPS)
    for words in ("790 TFLOP/s", "data sheets, not measured", "does not fit", "SyncBatchNorm"):
        assert words in text
    assert all(r["ours"]["seconds"] <= r["all_reduce"]["seconds"] for r in modelled)
    assert "nowhere slower" in text
    row = modelled[0]
    slower = dict(row, ours=dict(row["ours"], seconds=3 * row["all_reduce"]["seconds"]))
    text = scaling.tables([slower, *modelled[1:]])
    assert f"slower on {row['ranks']} GPUs at N = {row['n']}, D = {row['d']} (3.0× the" in text


def test_the_command_writes_rows_whose_page_has_a_figure(tmp_path, modelled):
    out = tmp_path / "rows.jsonl"
    result = invoke(["scaling", "--out", str(out)])
    assert result.exit_code == 0, result.output
    rows = results.read(out)
    assert without_provenance(rows) == modelled
    text = report.page("scaling", report.machine_files(tmp_path))
    assert "Modelled, not measured" in text
    assert "modelled, not measured. Embeddings in bfloat16" in text
    assert "](figures/modelled-rows.svg)" in text


def test_a_figure_changes_only_with_its_rows(modelled):
    changed = [dict(row, n=row["n"] + (i == 0)) for i, row in enumerate(modelled)]
    (one,), (same,), (other,) = (
        figures.pictures({"scaling.jsonl": rows}) for rows in (modelled, modelled, changed)
    )
    assert one.svg() == same.svg()
    assert marked(one.svg()) == one.mark == same.mark
    assert other.mark != one.mark


def test_the_committed_rows_are_those_of_this_model(modelled):
    """test_plots.py holds the committed figure against the committed rows."""
    rows = results.read(results.FOLDER / "scaling.jsonl")
    again = "run: python -m bench scaling && python -m bench report"
    assert without_provenance(rows) == modelled, again
