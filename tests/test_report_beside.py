"""Several runs on one page, and what is written beside a page: tables and figures."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from inheritune.cli import main
from inheritune.errors import Refused
from inheritune.report import write_comparison, write_exports
from inheritune.report.beside import labels_of, panels, read_runs, runs_content, scores, settings, table, verdict
from inheritune.report.content import Limits
from report_runs import evaluation, full_run, with_speed
from test_report import MARKUP, Page, change, make_run


def losses(run: Path, above: float, spread: float = 0.05) -> None:
    """Record the target's loss of each of 100 documents: 2.5 and so much more, nats a token."""
    draw = np.random.default_rng(0)
    tokens = np.full(100, 64.0)
    shared, own = draw.normal(0, 0.3, 100), np.random.default_rng(int(above * 1000)).normal(0, spread, 100)
    nats = ((2.5 + above + shared + own) * tokens).tolist()
    record = {"sets": {"held-out": {"nats": nats, "tokens": tokens.tolist()}}}
    (run / "losses").mkdir()
    for name in ("target", "round-4"):  # a target that grew is one of its rounds
        (run / "losses" / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
    target = json.loads((run / "result.json").read_text(encoding="utf-8"))["target"]
    change(run, target=target | {"validation_losses": {"held-out": 2.5 + above}})


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    runs = [full_run(tmp_path / "one"), make_run(tmp_path / "two")]
    with_speed(runs[1])
    losses(runs[0], 0.2)
    losses(runs[1], 0.1)
    change(runs[1], name="deeper")
    (runs[1] / "recipe.yaml").write_text("name: deeper\ndata: {tokens: 1024000, passes: 8}\n", encoding="utf-8")
    return runs


def said(runs: list[Path]) -> str:
    read = read_runs(runs)
    return verdict(read, labels_of(read))


def test_the_verdict_says_which_is_ahead_and_by_how_much(two: list[Path]) -> None:
    found = re.fullmatch(
        r"deeper has the lowest loss of 2 runs, 2.600 nats a token, (.*) below demo .* "
        r"\(95% interval (.*) to (.*), paired over 100 documents\).",
        said(two),
    )
    assert found is not None
    value, low, high = map(float, found.groups())
    assert low < value < high
    assert value == pytest.approx(0.1, abs=0.03)


def test_a_difference_that_documents_do_not_tell_is_none(two: list[Path]) -> None:
    for run, above in zip(two, (0.11, 0.1), strict=True):
        shutil.rmtree(run / "losses")
        losses(run, above, spread=1.0)
    assert "but 100 documents do not tell it apart from" in said(two)


def test_other_text_is_not_compared(two: list[Path]) -> None:
    sizes = json.loads((two[0] / "result.json").read_text(encoding="utf-8"))["sets"]
    change(two[0], sets=sizes | {"held-out": {"documents": 9, "tokens": 9, "bytes": 9}})
    assert said(two).startswith("These runs were judged on different text")
    assert runs_content(read_runs(two), Limits(units=()))["comparable"] is False


def test_runs_without_losses_are_said_so(two: list[Path]) -> None:
    for run in two:
        change(run, target=None)
    assert said(two) == "None of 2 runs has a loss to compare yet."


def test_the_targets_stand_in_columns_with_what_they_were_held_against(two: list[Path]) -> None:
    read = read_runs(two)
    header, *rows = table(read, labels_of(read))
    cells = {row.label: row.cells for row in rows}
    assert header.cells[1] == "deeper"
    assert cells["Random init’s loss, held-out"] == ("3.391", "3.391")
    assert cells["Share of the gap closed"] == ("83.0%", "83.0%")
    assert cells["State"] == ("done", "done")


def test_only_what_differs_in_the_recipes_is_listed(two: list[Path]) -> None:
    read = read_runs(two)
    sheet = settings(read, labels_of(read))
    assert sheet is not None
    assert ("data.passes", "4", "8") in sheet.rows
    assert "data.tokens" not in [row[0] for row in sheet.rows]
    (two[1] / "recipe.yaml").write_text("a: &a {b: *a}\n", encoding="utf-8")
    assert settings(read_runs(two), ["one", "two"]) is None


def test_scores_of_the_targets_stand_beside_each_other(two: list[Path]) -> None:
    read = read_runs(two)
    sheet = scores(read, ["one", "two"])
    assert sheet is not None
    assert sheet.rows[0] == ("piqa", "acc", "0", "1,838", "50.0", "61.2±1.1", "–")


def test_scores_on_other_rows_stand_on_lines_of_their_own(two: list[Path]) -> None:
    for run, selection in zip(two, ("200 rows, drawn", "the first 200"), strict=True):
        record = evaluation()
        (line,) = [one for one in record["lines"] if one["name"] == "piqa"]
        line |= {"selection": selection, "rows": 200}
        (run / "evaluation.json").write_text(json.dumps(record), encoding="utf-8")
    sheet = scores(read_runs(two), ["one", "two"])
    assert sheet is not None
    assert [row[5:] for row in sheet.rows if row[0] == "piqa"] == [("61.2±1.1", "–"), ("–", "61.2±1.1")]


def test_sets_of_other_sources_alone_are_judged_by(two: list[Path]) -> None:
    for run, loss in zip(two, (2.7, 2.6), strict=True):
        target = json.loads((run / "result.json").read_text(encoding="utf-8"))["target"]
        losses = {"development": 2.0, "general": loss}
        change(run, share=None, target=target | {"validation_losses": losses}, sets={"general": {"documents": 9}})
    assert said(two).startswith("deeper has the lowest loss of 2 runs, 2.600 nats a token")


def test_a_curve_is_a_run_whatever_it_is_called(two: list[Path]) -> None:
    change(two[1], name="random")
    drawn, scales = panels(read_runs(two), ["one", "random"])
    assert [*drawn[0].lines] == ["run 1", "run 2"]
    assert drawn[0].title("run 2") == "random"
    assert drawn[0].reference == pytest.approx(2.412)
    assert {*scales} == {"steps", "FLOPs", "hours"}


def test_runs_of_one_name_are_called_by_their_directories(two: list[Path]) -> None:
    change(two[1], name=json.loads((two[0] / "result.json").read_text(encoding="utf-8"))["name"])
    assert labels_of(read_runs(two)) == ["one", "two"]


def test_one_page_of_all_is_whole_and_escaped(two: list[Path], tmp_path: Path) -> None:
    path = write_comparison(two, tmp_path / "both")
    again = path.read_bytes()
    page = Page(path)
    assert write_comparison(two, tmp_path / "both").read_bytes() == again
    assert len(again) < 1_000_000
    assert "<b>x" not in again.decode()
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert [tag for tag, _ in page.tags].count("h1") == 1
    for text in ("Where the recipes differ", "Do it again", "Inheritance account", "first:2+last:2 (chosen)", MARKUP):
        assert text in page.text
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}


def test_many_runs_stay_under_one_megabyte(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"run-{number}") for number in range(12)]
    assert write_comparison(runs, tmp_path / "all").stat().st_size < 1_000_000


def test_bad_input_is_one_line_and_writes_nothing(
    two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = map(str, two)
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.rglob("*"))
    for words, complaint in (
        ([one, one, "--out", "both"], "named twice"),
        ([one, other, "--out", one], "is one of the runs"),
        ([one, "--out", "/proc/none"], "--out /proc/none: cannot be made"),
        ([one, "--out", str(tmp_path / "loop")], "cannot be made"),
        ([one, str(tmp_path / "none")], "not a run directory"),
        ([one, other, "--out", str(tmp_path / "file")], "a file, not a directory"),
        ([one, "--watch", "--pdf"], "--watch writes nothing; leave out --pdf"),
        ([one, "--port", "80"], "--port belongs to --watch"),
        ([one, "--watch", "--port", "70000"], "--port 70000: cannot be had"),
    ):
        assert main(["report", *words]) == 2, words
        told = capsys.readouterr().err
        assert complaint in told
        assert told.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(Refused, match="not a run directory"):
        write_exports([tmp_path / "none"], tmp_path / "out", ["svg"])


def test_tables_and_figures_by_flags(two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    flags = ["--markdown", "--latex", "--svg", "--pdf"]
    change(two[0], differences={"random": {"value": 0.8, "low": 0.7, "high": 0.9, "documents": 9, "set": "held-out"}})
    assert main(["report", str(two[0]), "--out", str(out), *flags]) == 0
    printed = capsys.readouterr().out
    curves = [f"curves-{unit}.{kind}" for unit in ("tokens", "steps", "flops", "hours") for kind in ("svg", "pdf")]
    written = {path.name for path in out.iterdir()}
    assert written == {"report.html", "report.md", "report.tex", "curves.svg", "growth.svg", "growth.pdf", *curves}
    assert all(f"{out / name}" in printed for name in ("report.html", "report.md", "report.tex", *curves))
    assert (out / "curves-tokens.svg").read_bytes() == (out / "curves.svg").read_bytes()
    markdown = (out / "report.md").read_text(encoding="utf-8")
    assert "| Loss, held-out (nats a token) | 2.412 | 9.872 | 2.700 | 3.391 |" in markdown
    for title in ("Target against each control", "Table 4", "Attention by layer", "The plan against what happened"):
        assert f"**{title}**" in markdown
    assert "\\<b\\>" in markdown
    assert "<b>" not in markdown
    assert "\\begin{tabular}" in (out / "report.tex").read_text(encoding="utf-8")
    assert "Training FLOPs" in (out / "curves-flops.svg").read_text(encoding="utf-8")


def test_several_runs_as_tables(two: list[Path], tmp_path: Path) -> None:
    written = write_exports(two, tmp_path / "out", ["markdown"])
    text = written[0].read_text(encoding="utf-8")
    assert [path.name for path in written] == ["report.md"]
    assert "deeper has the lowest loss of 2 runs" in text
    assert "| data.passes | 4 | 8 |" in text
