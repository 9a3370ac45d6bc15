"""The page: complete, escaped, self-contained, and whole where the run directory is not."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from inheritune import report
from inheritune.errors import Refused
from inheritune.report import markdown_table, render_table, table_rows, write_report
from inheritune.report.numbers import count, duration, flops

MARKUP = '<b>x</b>&"'
LEDGER = {
    "prepare": {"seconds": 8.1, "tokens": 1_774_000},
    "inherit": {"seconds": 0.412},
    "train target": {"seconds": 92.4, "tokens": 4_096_000, "flops": 1.2345e15, "tokens_per_second": 44_300.0},
    "train random": {"seconds": 90.1, "tokens": 4_096_000, "flops": 1.2345e15, "tokens_per_second": 45_400.0},
}
SETS = ("held-out", "general text", "development")


def model(layers: int, parameters: int, loss: float, **more: Any) -> dict[str, Any]:
    """A model's entry in `result.json`."""
    return {
        "name": "a model",
        "layers": layers,
        "parameters": parameters,
        "validation_loss": loss,
        "validation_losses": {name: loss + 0.3 * index for index, name in enumerate(SETS)},
        "bits_per_byte": {name: (loss + 0.3 * index) / 2.3 for index, name in enumerate(SETS)},
        "accuracy": {name: 1 / loss - 0.01 * index for index, name in enumerate(SETS)},
        "tokens_trained": None,
        **more,
    }


def result() -> dict[str, Any]:
    """A `result.json` as a low-data run writes it."""
    spent = {"tokens_trained": 4_096_000, "unique_tokens": 1_024_000, "passes": 4, "flops": 1.2345e15}
    return {
        "name": f"demo {MARKUP}",
        "state": "done",
        "verdict": f"4 of 8 layers of {MARKUP}, trained on 1.02M tokens, close 0.83 of the gap to the reference.",
        "reference": model(8, 7_340_032, 2.412, name=f"packaged:demo {MARKUP}", tokens_trained=120_000_000),
        "target": model(4, 3_801_088, 2.583, **spent),
        "controls": {
            "random": model(4, 3_801_088, 3.391, **spent),
            "cut": model(4, 3_801_088, 9.872, tokens_trained=0),
        },
        "before": {"target": {"held-out": 9.872}, "random": {"held-out": 8.349}},
        "share": {
            "value": 0.83,
            "low": 0.79,
            "high": 0.86,
            "shown": True,
            "set": "held-out",
            "text": "0.83 of the gap between control and reference closed (95% interval 0.79 to 0.86, 212 documents)",
        },
        "tokens_to_match": {
            "tokens": 512_000,
            "text": "The target matched the control’s final loss after 512K tokens.",
        },
        "tokens_trained": 4_096_000,
        "unique_tokens": 1_024_000,
        "passes": 4,
        "matched": None,
        "model": "model",
        "sets": {name: {"documents": 212, "tokens": 250_000, "bytes": 812_345} for name in SETS},
    }


def metrics(start: float, end: float) -> str:
    """A `metrics.jsonl`: a loss that falls from `start` to `end` in 1000 steps."""
    lines = []
    for step in range(0, 1001, 10):
        loss = end + (start - end) * math.exp(-step / 120)
        tokens = step * 4096
        if step:
            noise = 0.04 * math.sin(step * 1.7)
            lines.append(
                {
                    "kind": "step",
                    "step": step,
                    "tokens": tokens,
                    "pass": step // 250,
                    "loss": loss + noise,
                    "learning_rate": 3e-4,
                }
            )
        if step % 100 == 0:
            losses = {name: loss + 0.3 * index for index, name in enumerate(SETS)}
            lines.append({"kind": "validation", "step": step, "tokens": tokens, "losses": losses})
    return "".join(json.dumps(line) + "\n" for line in lines)


def make_run(run: Path) -> Path:
    """A run directory as a finished low-data run leaves it, with markup wherever a user's text may stand."""
    (run / "controls" / "random").mkdir(parents=True)
    (run / "model").mkdir()
    names = ["q_proj", "k_proj", "v_proj", "o_proj"]
    tensors = [
        {
            "name": name,
            "status": "inherited",
            "source": name,
            "shape": [256, 256],
            "dtype": "bfloat16",
            "sha256": "0f" * 32,
        }
        for name in [f"model.layers.{layer}.self_attn.{part}.weight" for layer in range(4) for part in names]
    ]
    tensors.append(
        {"name": "lm_head.weight", "status": "tied", "source": "model.embed_tokens.weight", "shape": [4096, 256]}
    )
    records = {
        "result": result(),
        "environment": {
            "python": "3.11.9",
            "versions": {"torch": "2.13.0", "transformers": "5.24.0"},
            "commit": "0123abc",
            "threads": 2,
            "note": MARKUP,
        },
        "reference": {
            "name": f"packaged:demo {MARKUP}",
            "model_type": "llama",
            "layers": 8,
            "tied": True,
            "revision": None,
        },
        "inheritance": {
            "layers_kept": [0, 1, 2, 3],
            "tensors": tensors,
            "proof": {"largest_difference": 0.0, "layers_compared": 4},
        },
        "ledger": LEDGER,
    }
    for name, record in records.items():
        (run / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
    (run / "recipe.yaml").write_text(
        f"name: demo\nreference: packaged:demo # {MARKUP}\ndata:\n  tokens: 1024000\n  passes: 4\n", encoding="utf-8"
    )
    (run / "metrics.jsonl").write_text(metrics(9.872, 2.583), encoding="utf-8")
    (run / "controls" / "random" / "metrics.jsonl").write_text(metrics(8.349, 3.391), encoding="utf-8")
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


class Page(HTMLParser):
    """The page's tags with attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def change(run: Path, **changes: Any) -> None:
    record = json.loads((run / "result.json").read_text(encoding="utf-8")) | changes
    (run / "result.json").write_text(json.dumps(record), encoding="utf-8")


def test_page_holds_verdict_table_and_records(run: Path) -> None:
    page = Page(write_report(run))
    expected = result()
    for text in (
        expected["verdict"],
        expected["tokens_to_match"]["text"],
        "3.80M",
        "1.2e15",
        "1 min 32 s",
    ):
        assert text in page.text
    assert "layers 0–3; 16 inherited; 1 tied" in page.text
    assert f"pipeline('text-generation', '{(run / 'model').resolve()}')" in page.text
    assert "recipe.yaml --out NEW" in page.text
    assert "Gap:" not in page.text


def test_user_text_is_escaped(run: Path) -> None:
    source = write_report(run).read_text(encoding="utf-8")
    assert "<b>" not in source
    assert source.count("&lt;b&gt;x&lt;/b&gt;&amp;&#34;") >= 6


def test_set_names_are_escaped_in_the_figure(run: Path) -> None:
    line = {"kind": "validation", "step": 0, "tokens": 0, "losses": {"<script>$x^2$ 数": 3.0, "held-out": 3.0}}
    (run / "metrics.jsonl").write_text(json.dumps(line), encoding="utf-8")
    page = Page(write_report(run))
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script>$x^2$ 数" in page.text
    figure = (run / "curves.svg").read_text(encoding="utf-8")
    assert ">&lt;script&gt;$x^2$ 数</text>" in figure


def test_page_is_self_contained_and_small(run: Path) -> None:
    path = write_report(run)
    source = path.read_text(encoding="utf-8")
    tags = Page(path).tags
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in tags}
    for _, attributes in tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", source)
    assert len(source.encode()) < 1_000_000


def test_a_large_run_stays_under_one_megabyte(run: Path) -> None:
    tensor = {
        "name": "model.layers.100.self_attn.q_proj.weight" * 2,
        "status": "inherited",
        "source": "x" * 80,
        "shape": [8192, 8192],
        "sha256": "0" * 64,
    }
    (run / "inheritance.json").write_text(
        json.dumps({"layers_kept": [0], "tensors": [tensor] * 5000}), encoding="utf-8"
    )
    steps = [json.dumps({"kind": "step", "step": step, "tokens": step * 100, "loss": 3.0}) for step in range(100_000)]
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n".join(steps))
    path = write_report(run)
    assert path.stat().st_size < 1_000_000
    assert "3500 more tensors are left out" in path.read_text(encoding="utf-8")


def test_same_records_give_the_same_bytes(run: Path) -> None:
    first = write_report(run).read_bytes(), (run / "curves.svg").read_bytes()
    assert (write_report(run).read_bytes(), (run / "curves.svg").read_bytes()) == first


def test_ids_are_unique_and_headings_and_tables_are_named(run: Path) -> None:
    tags = Page(write_report(run)).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert [tag for tag, _ in tags].count("h1") == 1
    assert all(
        attributes.get("scope") in ("row", "col", "rowgroup", "colgroup") for tag, attributes in tags if tag == "th"
    )
    for _, attributes in tags:
        assert attributes.get("aria-labelledby", ids[0]) in ids
        if attributes.get("role") in ("img", "region"):
            assert attributes.get("aria-label") or attributes.get("aria-labelledby")


def test_curves_take_the_pages_colours(run: Path) -> None:
    write_report(run)
    figure = (run / "curves.svg").read_text(encoding="utf-8")
    assert "currentColor" in figure
    assert "var(--target" in figure
    assert "DejaVu" not in figure
    assert "<!DOCTYPE" not in figure


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb`, by WCAG 2."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_every_colour_of_text_has_contrast_in_light_and_dark() -> None:
    style = (Path(report.__file__).parent.parent / "templates" / "report.css").read_text(encoding="utf-8")
    themes = [
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    ]
    light, dark = [theme for theme in themes if theme]
    for theme in (light, dark):
        for name in ("ink", "quiet", "target", "random", "cut"):
            assert contrast(theme[name], theme["paper"]) >= 4.5
        assert contrast(theme["ink"], theme["wash"]) >= 4.5
        assert contrast(theme["warn"], theme["warn-wash"]) >= 4.5


def test_the_figure_and_the_page_share_their_colours(run: Path) -> None:
    source = write_report(run).read_text(encoding="utf-8")
    fallbacks = set(re.findall(r"var\(--([a-z]+), (#[0-9a-f]{6})\)", source))
    assert {name for name, _ in fallbacks} == {"target", "random", "cut"}
    for name, colour in fallbacks:
        assert f"--{name}: {colour}" in source


def test_what_lies_above_the_frame_is_said(run: Path) -> None:
    assert "on held-out, Target from 9.87, Random init from 8.35, Cut 9.87;" in Page(write_report(run)).text


@pytest.mark.parametrize(
    "file",
    [
        "recipe.yaml",
        "environment.json",
        "reference.json",
        "inheritance.json",
        "metrics.jsonl",
        "controls/random/metrics.jsonl",
        "result.json",
        "ledger.json",
    ],
)
@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"[[3]]"])
def test_a_missing_or_broken_record_is_a_gap(run: Path, file: str, content: bytes | None) -> None:
    (run / file).unlink() if content is None else (run / file).write_bytes(content)
    text = Page(write_report(run)).text
    if content is None:
        assert f"Gap: {file} is not in the run directory" in text
    elif content == b"\xff\xfe" or file.endswith(".json"):
        assert f"Gap: {file}" in text


def test_an_empty_directory_is_all_gaps(tmp_path: Path) -> None:
    text = Page(write_report(tmp_path)).text
    assert text.count("Gap:") == 9  # eight records, and the model
    assert "No verdict yet" in text
    assert not (tmp_path / "curves.svg").exists()


def test_a_control_that_was_not_asked_for_is_no_gap(run: Path) -> None:
    (run / "controls" / "random" / "metrics.jsonl").unlink()
    change(run, controls={})
    assert "Gap:" not in Page(write_report(run)).text


def test_the_model_is_looked_for_in_the_run_directory(run: Path) -> None:
    (run / "model").rmdir()
    assert f"Gap: there was no model at {(run / 'model').resolve()}" in Page(write_report(run)).text


def test_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="not a run directory"):
        write_report(tmp_path / "absent")


def test_unfinished_runs_say_so(run: Path) -> None:
    change(run, state="preempted", verdict=None)
    text = Page(write_report(run)).text
    assert "This run was interrupted and can go on." in text
    assert "No verdict yet" in text


def test_a_share_that_is_not_shown_gives_its_reason(run: Path) -> None:
    reason = "the control is as good as the reference: this comparison shows nothing"
    change(run, share={"value": None, "low": None, "high": None, "shown": False, "text": reason})
    assert reason in Page(write_report(run)).text


def test_null_and_nan_are_dashes() -> None:
    record = result()
    record["target"] |= {
        "parameters": math.nan,
        "passes": None,
        "flops": math.inf,
        "validation_losses": {"held-out": math.nan},
    }
    column = {
        f"{row.within}, {row.label}" if row.within else row.label: row.cells[2]
        for row in table_rows(record)
        if row.cells
    }
    assert column[""] == "Target"
    for label in ("Parameters", "Passes", "Training FLOPs", "Loss, held-out", "Loss, general text"):
        assert column[label] == "–"
    assert column["Layers"] == "4"


def test_training_time_is_the_ledgers_and_nothing_costs_zero() -> None:
    record = result()
    record["controls"]["cut"] |= {"passes": 0, "flops": 0.0}
    record["target"] |= {"passes": 4.00098}
    cells = {row.label: row.cells for row in table_rows(record, LEDGER)}
    assert cells["Training time"] == ("–", "–", "1 min 32 s", "1 min 30 s")
    assert cells["Training FLOPs"] == ("–", "0", "1.2e15", "1.2e15")
    assert cells["Passes"] == ("–", "0", "4", "4")


def test_table_without_controls_and_with_one_set() -> None:
    record = {"reference": {"layers": 8, "validation_loss": 2.4}, "target": {"layers": 4, "validation_loss": 2.5}}
    rows = table_rows(record)
    assert rows[0].cells == ("Reference", "Target")
    assert [row.cells for row in rows if row.label.startswith("Loss")] == [("2.400", "2.500")]


def test_the_last_line_of_a_repeated_step_counts(run: Path) -> None:
    again = {"kind": "validation", "step": 1000, "tokens": 4_096_000, "losses": {"held-out": 2.222}}
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(again) + "\n")
    text = Page(write_report(run)).text
    assert "Target 2.22" in text
    assert "Target 2.58" not in text


def test_terminal_table_fits_eighty_columns() -> None:
    from rich.console import Console

    console = Console(width=80)
    with console.capture() as captured:
        console.print(render_table(result(), LEDGER, width=80))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if "…" in line]
    assert any(re.search(r"FLOPs.*–.*–.*1\.2e15.*1\.2e15", line) for line in lines)


def test_terminal_table_takes_names_as_text() -> None:
    from rich.console import Console

    record = {"target": {"layers": 4, "validation_losses": {"[red]set[/red]": 2.5}}}
    console = Console(width=80)
    with console.capture() as captured:
        console.print(render_table(record))
    assert "[red]set[/red]" in captured.get()


def test_markdown_table_escapes_names() -> None:
    record = {"target": {"layers": 4, "validation_losses": {"a|<b>": 2.5}}}
    lines = markdown_table(record).splitlines()
    assert lines[0] == "|  | Target |"
    assert lines[1] == "| --- | ---: |"
    assert r"| Loss, a\|\<b\> (nats a token) | 2.500 |" in lines


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (512, "512"),
        (9_999, "9,999"),
        (40_960, "41.0K"),
        (999_499, "999K"),
        (999_600, "1.00M"),
        (3_801_088, "3.80M"),
        (1.5e13, "15.0T"),
        (None, "–"),
        (True, "–"),
    ],
)
def test_count(number: float | None, text: str) -> None:
    assert count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3.21, "3.2 s"),
        (59.6, "1 min"),
        (92.4, "1 min 32 s"),
        (3599.7, "1 h"),
        (7500, "2 h 5 min"),
        (86_399, "1 d"),
        (273_600, "3 d 4 h"),
        (math.nan, "–"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(1.2345e15, "1.2e15"), (5e5, "5.0e5"), (None, "–")])
def test_flops(number: float | None, text: str) -> None:
    assert flops(number) == text
