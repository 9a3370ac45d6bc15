"""What every prefix scores, as a table for the terminal and as a picture."""

from __future__ import annotations

import io
import math
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from inheritune.report.scan import scan_svg, scan_table

MARKUP = '[b]<i>x</i>&"[/b]'


def record(
    losses: list[float | None], interval: bool = True, name: str = "held-out", positions: int = 1_774_000
) -> dict[str, Any]:
    """A scan's record as `layerwise.scan_record` gives it."""
    prefixes = [
        {
            "layers": index + 1,
            "parameters": 1_234_567 * (index + 1),
            "loss": loss,
            "low": loss - 0.125 if loss is not None and interval else None,
            "high": loss + 0.25 if loss is not None and interval else None,
            "bits_per_byte": None if loss is None else loss / 2,
            "accuracy": 0.1 * (index + 1),
        }
        for index, loss in enumerate(losses)
    ]
    sizes = {"documents": 1234, "tokens": 1_774_000, "bytes": 5_000_000, "positions": positions}
    return {"set": name, **sizes, "vocabulary": 4096, "uniform_guess": math.log(4096), "prefixes": prefixes}


def printed(shown: dict[str, Any], width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(scan_table(shown, width=width))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def row_of(text: str, start: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [start])


def test_the_table_has_a_row_a_prefix_and_the_guess() -> None:
    text = printed(record([9.0, 6.5, 3.25]))
    assert row_of(text, "2")[:-1] == ["2", "2.47M", "6.500", "6.375", "to", "6.750", "3.250", "20.0%"]
    assert row_of(text, "Uniform")[:2] == ["Uniform", "8.318"]
    assert "held-out, 1,234 documents, 1.77M tokens; the guess is among 4,096 tokens." in " ".join(text.split())


def test_a_sample_is_said_to_be_one() -> None:
    sampled = record([9.0, 6.5], positions=16_384)
    said = "held-out, 1,234 documents, 1.77M tokens, 16.4K scored"
    assert f"{said}; the guess" in " ".join(printed(sampled).split())
    assert said in [text for text, *_ in labels(picture(sampled))]


def test_bars_are_as_long_as_the_losses() -> None:
    text = printed(record([9.0, 4.5, 2.25]), width=120)
    lengths = [len(row_of(text, start)[-1]) for start in ("1", "2", "3", "Uniform")]
    whole = lengths[0]
    assert whole > 30
    for length, share in zip(lengths, (1, 1 / 2, 1 / 4, 8.318 / 9), strict=True):
        assert length == pytest.approx(whole * share, abs=1)


@pytest.mark.parametrize("width", [60, 75, 76, 80])
def test_no_number_is_cut_short_on_a_narrow_terminal(width: int) -> None:
    text = printed(record([9.0, 6.5, 3.25] * 12), width)
    assert "…" not in text
    assert ("6.375 to 6.750" in text) == (width >= 76)
    assert max(map(len, text.splitlines())) <= width


def test_what_is_missing_is_no_number() -> None:
    text = printed(record([None, 6.5], interval=False))
    assert row_of(text, "1") == ["1", "1.23M", "–", "–", "10.0%"]
    assert row_of(text, "2")[:-1] == ["2", "2.47M", "6.500", "3.250", "20.0%"]


def test_names_are_shown_as_they_are() -> None:
    assert MARKUP in printed(record([9.0], name=MARKUP))
    texts = [text for text, *_ in labels(picture(record([9.0], name=MARKUP)))]
    assert f"{MARKUP}, 1,234 documents, 1.77M tokens" in texts


def picture(shown: dict[str, Any]) -> ElementTree.Element:
    return ElementTree.fromstring(scan_svg(shown))


def elements(root: ElementTree.Element, tag: str) -> list[ElementTree.Element]:
    return root.findall(f"{{http://www.w3.org/2000/svg}}{tag}")


def labels(root: ElementTree.Element) -> list[tuple[str, float, float]]:
    return [
        (element.text or "", float(element.attrib["x"]), float(element.attrib["y"]))
        for element in elements(root, "text")
    ]


def points(element: ElementTree.Element) -> list[tuple[float, float]]:
    pairs = [pair.split(",") for pair in element.attrib["points"].split()]
    return [(float(x), float(y)) for x, y in pairs]


def test_the_curve_is_drawn_to_scale() -> None:
    """Heights are linear in the loss, on one scale with the rules and the axis."""
    root = picture(record([9.0, 7.0, 3.0]))
    (line,) = elements(root, "polyline")
    (x1, y1), (x2, y2), (x3, y3) = points(line)
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    scale = (y3 - y1) / 6
    assert y2 == pytest.approx(y1 + 2 * scale, abs=0.2)
    heights = {element.attrib["y1"] for element in elements(root, "line")}
    for loss in (math.log(4096), 3.0):
        assert f"{y1 + (9 - loss) * scale:.1f}" in heights
    ticks = [(float(text), y - 4) for text, x, y in labels(root) if x < x1 and re.fullmatch(r"[\d.]+", text)]
    assert len(ticks) >= 3
    for value, y in ticks:
        assert y == pytest.approx(y1 + (9 - value) * scale, abs=0.2)
    band = points(elements(root, "polygon")[0])
    assert (band[0][0], band[-1][0]) == (x1, x1)
    assert band[0][1] == pytest.approx(y1 - 0.25 * scale, abs=0.2)
    assert band[-1][1] == pytest.approx(y1 + 0.125 * scale, abs=0.2)


def test_the_two_losses_to_compare_with_are_named() -> None:
    texts = [text for text, *_ in labels(picture(record([9.0, 7.0, 3.0])))]
    assert "Uniform guess 8.32" in texts
    assert "Whole reference 3.00" in texts


@pytest.mark.parametrize(
    "losses",
    [
        [9.0],
        [math.log(4096)],
        [None, 5.0, None],
        [None],
        [8.3179, 8.3178],
        [2e4, 3.0],
        [10.0 - n / 20 for n in range(126)],
    ],
)
def test_everything_lies_within_the_picture(losses: list[float | None]) -> None:
    root = picture(record(losses, interval=len(losses) > 1))
    width, height = (float(x) for x in root.attrib["viewBox"].split()[2:])
    drawn = [point for tag in ("polyline", "polygon") for element in elements(root, tag) for point in points(element)]
    for x, y in [*drawn, *((x, y) for _, x, y in labels(root))]:
        assert 0 < x < width
        assert 0 < y < height


def test_a_name_that_is_too_long_is_cut() -> None:
    texts = [text for text, *_ in labels(picture(record([9.0], name="a" * 200)))]
    assert max(map(len, texts)) <= 58
    assert any(text.startswith("aaaa") and "a…, 1,234 documents" in text for text in texts)


def test_the_picture_stands_alone_and_says_in_words_what_it_shows() -> None:
    text = scan_svg(record([9.0, 3.0]))
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "color-scheme:light dark" in text, "light ink would be on light paper where dark is preferred"
    words = ElementTree.fromstring(text).attrib["aria-label"]
    assert "1: 9.000, 2: 3.000. Uniform guess: 8.318." in words
