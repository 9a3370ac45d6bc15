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
from inheritune.report.account import account_of
from inheritune.report.curves import draw_curves, panels_of
from inheritune.report.numbers import count, duration, flops
from inheritune.report.table import colour_names

MARKUP = '<b>x</b>&"'
LEDGER = {
    "prepare": {"seconds": 8.1, "tokens": 1_774_000},
    "inherit": {"seconds": 0.412},
    "train target": {"seconds": 92.4, "tokens": 4_096_000, "flops": 1.2345e15, "tokens_per_second": 44_300.0},
    "train random": {"seconds": 90.1, "tokens": 4_096_000, "flops": 1.2345e15, "tokens_per_second": 45_400.0},
}
TOTAL = {
    "arms": {
        "target": {"state": "finished", "steps": 1000, "flops": 1.2345e15, "wall_hours": 0.0281, "gaps": {}},
        "random": {"state": "finished", "steps": 1000, "flops": 1.2345e15, "wall_hours": None, "gaps": {}},
    },
    "training": {"steps": 2000, "flops": 2.469e15, "wall_hours": 0.0281, "gaps": {"wall_hours": ["train random"]}},
    "other_seconds": {"prepare": 8.1},
    "wall_hours": 0.0303,
    "gaps": {"wall_hours": ["train random"]},
}
SETS = ("held-out", "general text", "development")
SPENT = {"tokens_trained": 4_096_000, "unique_tokens": 1_024_000, "passes": 4, "flops": 1.2345e15}


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
    return {
        "name": f"demo {MARKUP}",
        "state": "done",
        "verdict": f"4 of 8 layers of {MARKUP}, trained on 1.02M tokens, close 0.83 of the gap to the reference.",
        "reference": model(8, 7_340_032, 2.412, name=f"packaged:demo {MARKUP}", tokens_trained=120_000_000),
        "target": model(4, 3_801_088, 2.583, **SPENT),
        "controls": {
            "random": model(4, 3_801_088, 3.391, **SPENT),
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
        "ledger": LEDGER | {"total": TOTAL},
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


CONTROLS = {"stack": 2.781, "attention+block_norms": 3.102}


@pytest.fixture
def six(run: Path) -> Path:
    """The run with two controls more, in all six models."""
    record = result()
    losses = {"random": 3.391} | CONTROLS
    record["controls"] |= {name: model(4, 3_801_088, loss, **SPENT) for name, loss in CONTROLS.items()}
    record["before"] |= {name: {"held-out": 9.1} for name in CONTROLS}
    record["differences"] = {
        name: {"value": loss - 2.583, "low": loss - 2.6, "high": loss - 2.56, "documents": 212, "set": "held-out"}
        for name, loss in losses.items()
    }
    (run / "result.json").write_text(json.dumps(record), encoding="utf-8")
    for name, loss in CONTROLS.items():
        (run / "controls" / name).mkdir()
        (run / "controls" / name / "metrics.jsonl").write_text(metrics(9.1, loss), encoding="utf-8")
    return run


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

    def tags_text(self, attribute: str) -> str:
        """What all tags say in one of their attributes."""
        return " ".join(attributes.get(attribute) or "" for _, attributes in self.tags)


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
        dict(re.findall(r"--([a-z1-9-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    ]
    light, dark = [theme for theme in themes if theme]
    for theme in (light, dark):
        for name in ("ink", "quiet", "target", "random", "cut", *(f"control-{number}" for number in range(1, 5))):
            assert contrast(theme[name], theme["paper"]) >= 4.5
        assert contrast(theme["ink"], theme["wash"]) >= 4.5
        assert contrast(theme["warn"], theme["warn-wash"]) >= 4.5


def test_the_figure_and_the_page_share_their_colours(six: Path) -> None:
    source = write_report(six).read_text(encoding="utf-8")
    fallbacks = set(re.findall(r"var\(--([a-z1-9-]+), (#[0-9a-f]{6})\)", source))
    assert {name for name, _ in fallbacks} == {"target", "random", "cut", "control-1", "control-2"}
    for name, colour in fallbacks:
        assert f"--{name}: {colour}" in source
    dark = re.findall(r"--([a-z1-9-]+):(#[0-9a-f]{6})", (six / "curves.svg").read_text(encoding="utf-8"))
    assert len(dark) == 7
    for name, colour in dark:
        assert f"--{name}: {colour}" in source


def test_every_control_has_its_column_colour_and_curve(six: Path) -> None:
    titles = ("Reference", "Cut", "Target", "Stack", "Attention + block norms", "Random init")
    rows = {row.label: row.cells for row in table_rows(json.loads((six / "result.json").read_text()), LEDGER)}
    assert rows[""] == titles
    assert rows["held-out"] == ("41.5%", "10.1%", "38.7%", "36.0%", "32.2%", "29.5%")
    assert rows["Initial loss, held-out"] == ("–", "–", "9.872", "9.100", "9.100", "8.349")
    page = Page(write_report(six))
    heads = [attributes.get("class") for tag, attributes in page.tags if tag == "th" and attributes["scope"] == "col"]
    assert heads[:6] == ["reference", "cut", "target", "control-1", "control-2", "random"]
    figure = (six / "curves.svg").read_text(encoding="utf-8")
    for text, name in (("Stack 2.78", "control-1"), ("Attention +", "control-2"), ("Random init 3.39", "random")):
        assert re.search(rf"fill: var\(--{name}, #\w+\)[^>]*>{re.escape(text)}<", figure), text
    assert "Stack: from 9.100 at 0 to 2.78" in page.tags_text("aria-label")
    assert "attention+block_norms inherited, the rest from random init; trained on the same tokens" in page.text
    assert "Gap:" not in page.text


def test_no_two_curves_look_the_same() -> None:
    """Nor do two in print without colours, up to five controls more than cut and random."""
    controls = ["stack", "attention", "mlp", "head", "embeddings", "final_norm", "block_norms"]
    names = ["target", *controls, "random"]
    points = [{"kind": "validation", "step": step, "tokens": step, "losses": {"held-out": 3.0}} for step in range(3)]
    colours = colour_names(names)
    assert [colours[name] for name in ("stack", "head", "embeddings")] == ["control-1", "control-4", "control-1"]
    figure = draw_curves(panels_of({}, dict.fromkeys(names, points)))
    looks = re.findall(
        r'<path d="[^"]*" clip-path[^>]*style="fill: none; (stroke-dasharray[^"]*|stroke: [^"]*)"', figure
    )
    curves = [look for look in looks if "stroke-width: 2" in look]
    assert len(curves) == len(set(curves)) == len(names)
    dashes = [re.sub(r"stroke: [^;]*;", "", look) for look in curves]
    assert len(set(dashes[:5] + dashes[-2:])) == 7  # the target is drawn last, over the others


def test_a_figure_grows_with_its_labels() -> None:
    point = [{"kind": "validation", "step": 0, "tokens": 0, "losses": {"held-out": 3.0}}]

    def height(controls: int) -> float:
        metrics = dict.fromkeys(["target", *(f"embeddings+{'x' * number}" for number in range(controls))], point)
        size = re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', draw_curves(panels_of({}, metrics)))
        assert size is not None
        return float(size[1])

    assert height(0) == height(3) == 340
    assert height(20) > 600


def test_the_target_is_set_against_each_control(six: Path) -> None:
    text = Page(write_report(six)).text
    rows = "Stack0.1980.181 to 0.221\nAttention + block norms0.5190.502 to 0.542\nRandom init0.8080.791 to 0.831"
    assert rows in text
    assert "Loss on held-out, nats a token, paired over 212 documents." in text


def test_without_differences_there_is_no_such_table(run: Path) -> None:
    assert "Target against each control" not in Page(write_report(run)).text


def test_a_control_whose_metrics_are_missing_is_a_gap_and_keeps_the_others_colours(six: Path) -> None:
    (six / "controls" / "stack" / "metrics.jsonl").unlink()
    assert "Gap: controls/stack/metrics.jsonl is not in the run directory." in Page(write_report(six)).text
    figure = (six / "curves.svg").read_text(encoding="utf-8")
    assert "--control-2," in figure
    assert "--control-1," not in figure


def test_an_unfinished_run_shows_the_curves_that_there_are(six: Path) -> None:
    (six / "result.json").write_text(json.dumps({"name": "x", "state": "running"}), encoding="utf-8")
    page = Page(write_report(six))
    description = page.tags_text("aria-label")
    order = [
        description.index(f" {title}: from") for title in ("Target", "Attention + block norms", "Stack", "Random init")
    ]
    assert order == sorted(order)
    assert "Gap:" not in page.text


def test_a_record_names_no_file_outside_the_run_directory(run: Path) -> None:
    (run.parent / "metrics.jsonl").write_text(metrics(1.234, 1.234), encoding="utf-8")
    change(run, controls={"random/../../..": model(4, 3_801_088, 3.0), f"x{MARKUP}": model(4, 3_801_088, 3.0)})
    page = Page(write_report(run))
    assert "1.234" not in page.text
    assert f"X{MARKUP}" in page.text


@pytest.mark.parametrize("name", ["demo", "stories"])
def test_records_of_earlier_runs_still_give_a_page(name: str, tmp_path: Path) -> None:
    records = Path(__file__).parent.parent / "docs" / "records" / name
    for file in records.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    kept = {
        "layers_kept": [0, 1],
        "tensors": [{"name": "w", "status": "tied", "source": "v"}],
        "proof": {"logits": None},
    }
    (tmp_path / "inheritance.json").write_text(json.dumps(kept), encoding="utf-8")
    recorded = json.loads((records / "result.json").read_text(encoding="utf-8"))
    page = Page(write_report(tmp_path))
    assert recorded["verdict"] in page.text
    assert "layers 0–1; 1 tied" in page.text
    for model_record in (recorded["target"], recorded["controls"]["random"]):
        assert f"{model_record['validation_loss']:.3f}" in page.text


def account(run: Path, **changes: Any) -> Page:
    """The page of the run with another account of the surgery."""
    record = json.loads((run / "inheritance.json").read_text(encoding="utf-8")) | changes
    (run / "inheritance.json").write_text(json.dumps(record), encoding="utf-8")
    return Page(write_report(run))


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"layers_word": "first:3+last:1", "layers_kept": [0, 1, 2, 7]}, "0–2, 7 (first:3+last:1)"),
        ({"layers_word": "0-2,7", "layers_kept": [0, 1, 2, 7]}, "0–2, 7"),
        ({"layers_word": 4, "layers_kept": [0, 1, 2, 3], "init": "inherit"}, "0–3 (4), init inherit"),
        ({"layers_word": "half", "layers_kept": [0, 1, 0, 1], "init": "stack"}, "0–1, 0–1 (half), init stack"),
        ({"layers_kept": None, "init": "random"}, "–, init random"),
    ],
)
def test_layers_kept_and_init(record: dict[str, Any], text: str) -> None:
    assert account_of(record)["layers"] == text


def test_layers_and_init_are_shown(run: Path) -> None:
    text = account(run, layers_word="first:3+last:1", layers_kept=[0, 1, 2, 7], init="attention").text
    assert "layers 0–2, 7 (first:3+last:1), init attention; 16 inherited; 1 tied" in text


def test_what_the_target_started_from_is_said(run: Path) -> None:
    text = account(run, init="stack").text
    assert "trained from init stack" in text
    assert "the target’s start (init stack), untrained" in text
    assert "those layers, trained" not in text


def test_the_proof_is_summed_up(run: Path) -> None:
    same = {"equal": True, "max_abs_difference": 0.0}
    proof = {
        "tokens": 128,
        "hidden_state_before_final_norm": same,
        "logits": None,
        "blocks": [
            {"block": 0, "source": 0, **same},
            {"block": 1, "source": 7, "equal": False, "max_abs_difference": 2e-3},
        ],
        "arguments_equal": True,
        "seconds": 1.23,
    }
    text = account(run, proof=proof).text
    assert "hidden state before final normequal, largest difference 0\nlogitsdoes not apply\n" in text
    assert "blocks1 of 2 equal, largest difference 0.002\narguments equalyes\nseconds1.2 s\n" in text


def test_names_in_the_module_and_ignored_names_are_shown(run: Path) -> None:
    experts = [f"experts.{number}" for number in range(5)]
    tensors = [
        {"name": "a", "module": ["a"], "source": "a", "status": "inherited"},
        {"name": "b", "module": ["packed"], "source": "b", "status": "inherited"},
        {"name": "c", "module": experts, "source": None, "status": "fresh"},
    ]
    text = account(run, tensors=tensors, ignored=[f"mask.{number}" for number in range(42)]).text
    assert "TensorIn the moduleStatus" in text
    for row in ("asame nameinheritedsame name", "bpackedinheritedsame name", "cexperts.0, experts.1 and 3 morefresh–"):
        assert row in text
    assert "mask.39 and 2 more." in text
    assert "In the module" not in account(run, tensors=tensors[:1]).text


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
    (tmp_path / "environment.json").touch()  # of a run that was killed at its very beginning
    text = Page(write_report(tmp_path)).text
    assert text.count("Gap:") == 8  # seven records, and the model
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


def test_six_models_fit_eighty_columns(six: Path) -> None:
    from rich.console import Console

    console = Console(width=80)
    with console.capture() as captured:
        console.print(render_table(json.loads((six / "result.json").read_text(encoding="utf-8")), LEDGER))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert any(re.search(r"^ +held-out +2\.412 +9\.872 +2\.583 +2\.781 +3\.102 +3\.391", line) for line in lines)
    assert any(line.startswith("   development ") for line in lines)


def test_terminal_table_takes_names_as_text() -> None:
    from rich.console import Console

    losses = {"[red]set[/red]": 2.5}
    record = {"target": {"validation_losses": losses}, "controls": {"[b]x[/b]": {"validation_losses": losses}}}
    console = Console(width=80)
    with console.capture() as captured:
        console.print(render_table(record))
    assert "[red]set[/red]" in captured.get()
    assert "[b]x[/b]" in captured.get()


def test_markdown_table_escapes_names() -> None:
    record = {"target": {"layers": 4, "validation_losses": {"a|<b>": 2.5}}}
    lines = markdown_table(record).splitlines()
    assert lines[0] == "|  | Target |"
    assert lines[1] == "| --- | ---: |"
    assert r"| Loss, a\|\<b\> (nats a token) | 2.500 |" in lines
    controls = {"controls": {"a|b": {"layers": 4}}}
    assert markdown_table(controls).startswith(r"|  | A\|b |")


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
