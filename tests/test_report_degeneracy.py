"""The degeneracy of attention, as a table for the terminal and as a picture."""

from __future__ import annotations

import io
import math
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from inheritune.report.degeneracy import degeneracy_svg, degeneracy_table

MARKUP = '[b]<i>x</i>&"[/b]'
Heads = list[list[float] | None]
RANKS: Heads = [[1.0, 3.0, 8.0], None, [16.0, 64.0, 256.0]]


def record(ranks: Heads = RANKS, name: str = "held-out", length: int = 256) -> dict[str, Any]:
    """A record as `layerwise.degeneracy_record` gives it; a head's share of columns is half its rank's."""
    shares = [None if heads is None else [max(1, rank / 2) / length for rank in heads] for heads in ranks]
    sizes = {"sequences": 8, "sequence_length": length, "tokens": 8 * length}
    return {"set": name, **sizes, "seed": None, "held": 0.9, "rank": ranks, "column_share": shares}


UNTRAINED = record([[6.0, 7.0, 8.0], None, [6.0, 6.0, 6.0]])


def printed(shown: dict[str, Any], untrained: dict[str, Any] | None = None, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(degeneracy_table(shown, untrained, width=width))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def row_of(text: str, layer: int) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [str(layer)])


def test_the_table_has_a_row_a_layer_with_the_untrained_network_beside_it() -> None:
    text = printed(record(), UNTRAINED)
    first = ["0", "4.0", "1.0", "to", "8.0", "0.8%", "0.4%", "to", "1.6%", "7.0", "1.4%"]
    assert row_of(text, 0)[:-1] == first
    assert row_of(text, 2)[:-1] == ["2", "112.0", "16.0", "to", "256.0", "21.9%", "3.1%", "to", "50.0%", "6.0", "1.2%"]
    said = " ".join(text.split())
    assert "over 8 sequences of 256 tokens of held-out. Rank: how many of 256 singular values hold 90%" in said


def test_without_an_untrained_network_nothing_is_said_of_one() -> None:
    text = printed(record())
    assert row_of(text, 0)[:-1] == ["0", "4.0", "1.0", "to", "8.0", "0.8%", "0.4%", "to", "1.6%"]
    assert "Untrained" not in text
    assert "random init" not in degeneracy_svg(record())


def test_a_layer_without_attention_says_so() -> None:
    assert row_of(printed(record(), UNTRAINED), 1) == ["1", "–", "–", "–", "–", "no", "attention"]


def test_bars_are_as_long_as_the_ranks() -> None:
    text = printed(record([[8.0], [32.0], [64.0]]), width=120)
    lengths = [len(row_of(text, layer)[-1]) for layer in range(3)]
    assert lengths[2] > 30
    for length, share in zip(lengths, (1 / 8, 1 / 2, 1), strict=True):
        assert length == pytest.approx(lengths[2] * share, abs=1)


@pytest.mark.parametrize("width", [60, 93, 94, 100])
def test_no_number_is_cut_short_on_a_narrow_terminal(width: int) -> None:
    ranks: Heads = [[1024.25, 2047.75]] * 126
    text = printed(record(ranks, length=2048), record(ranks, length=2048), width)
    assert "…" not in text
    assert ("1024.2 to 2047.8" in text) == (width >= 94)
    assert max(map(len, text.splitlines())) <= width


def picture(shown: dict[str, Any], untrained: dict[str, Any] | None = None) -> ElementTree.Element:
    return ElementTree.fromstring(degeneracy_svg(shown, untrained))


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


def dots(root: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in elements(root, "circle")]


def test_names_are_shown_as_they_are() -> None:
    assert MARKUP in printed(record(name=MARKUP))
    texts = [text for text, *_ in labels(picture(record(name=MARKUP)))]
    assert f"Attention on 8 sequences of 256 tokens of {MARKUP}" in texts


def test_every_head_is_drawn_to_a_logarithmic_scale_that_the_axis_has() -> None:
    root = picture(record())
    found = dots(root)
    ranks, shares = found[:6], found[6:]
    assert len(shares) == 6
    assert [x for x, _ in ranks] == [x for x, _ in shares] == sorted(x for x, _ in ranks)
    values = [value for heads in RANKS for value in heads or ()]
    bottom, top = ranks[0][1], ranks[-1][1]
    for (_, y), rank in zip(ranks, values, strict=True):
        assert y == pytest.approx(bottom + (top - bottom) * math.log(rank) / math.log(256), abs=0.2)
    ticks = [(text, y - 4) for text, x, y in labels(root) if x < ranks[0][0] and text.isdigit() and y < bottom + 10]
    assert [text for text, _ in ticks] == ["1", "3", "10", "30", "100"]
    for text, y in ticks:
        assert y == pytest.approx(bottom + (top - bottom) * math.log(int(text)) / math.log(256), abs=0.2)


def test_shares_of_columns_have_an_axis_in_percent() -> None:
    root = picture(record([[2.0, 512.0]]))  # one of 256 columns, and all
    bottom, top = (y for _, y in dots(root)[2:])
    ticks = {text: y - 4 for text, x, y in labels(root) if x < 40 and y > top}
    assert [text for text in ticks if text.isdigit()] == ["1", "3", "10", "30", "100"]
    assert ticks["100"] == pytest.approx(top, abs=0.2)
    share = math.log(0.1 * 256) / math.log(256)
    assert ticks["10"] == pytest.approx(bottom + (top - bottom) * share, abs=0.2)


def test_lines_are_the_means_and_end_where_a_layer_has_no_attention() -> None:
    ranks: Heads = [[2.0, 4.0], [9.0], None, [27.0], [81.0]]
    root = picture(record(ranks), record(ranks[::-1]))
    lines = elements(root, "polyline")
    dashed = [line for line in lines if "stroke-dasharray" in line.attrib]
    solid = [points(line) for line in lines if line not in dashed]
    assert (len(dashed), len(solid)) == (4, 4)
    (low, nine), (more, most) = solid[:2]
    assert low[1] - nine[1] == pytest.approx(nine[1] - more[1], abs=0.2)  # 3, 9, 27, 81
    assert nine[1] - more[1] == pytest.approx(more[1] - most[1], abs=0.2)
    assert more[0] - nine[0] == pytest.approx(2 * (nine[0] - low[0]), abs=0.2)
    assert [y for _, y in points(dashed[0])] == [most[1], more[1]]


def test_a_layer_between_two_without_attention_is_a_stroke() -> None:
    root = picture(record([None, [8.0], None, None]))
    ((x1, y1), (x2, y2)) = points(elements(root, "polyline")[0])
    ((x, y), *_) = dots(root)
    assert (x1 + x2) / 2 == pytest.approx(x, abs=0.1)
    assert x1 < x2
    assert (y1, y2) == (y, y)


@pytest.mark.parametrize(
    ("ranks", "length"),
    [
        ([[1.0]], 2),
        ([[1.0, 256.0]], 256),
        ([None, [5.0]], 256),
        ([[1.0, 2.0], [2.0]], 2),
        ([[1.0 + n, 2.0 * n + 1] for n in range(126)], 4096),
    ],
)
def test_everything_lies_within_the_picture(ranks: Heads, length: int) -> None:
    root = picture(record(ranks, length=length), record(ranks, length=length))
    width, height = (float(x) for x in root.attrib["viewBox"].split()[2:])
    drawn = [point for element in elements(root, "polyline") for point in points(element)]
    for x, y in [*drawn, *dots(root), *((x, y) for _, x, y in labels(root))]:
        assert 0 < x < width
        assert 0 < y < height


def test_a_name_that_is_too_long_is_cut() -> None:
    texts = [text for text, *_ in labels(picture(record(name="a" * 200)))]
    assert any(text.endswith("aaa…") for text in texts)
    assert max(map(len, texts)) <= 70


def test_the_picture_stands_alone_and_says_in_words_what_it_shows() -> None:
    text = degeneracy_svg(record(), UNTRAINED)
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "color-scheme:light dark" in text, "light ink would be on light paper where dark is preferred"
    words = ElementTree.fromstring(text).attrib["aria-label"]
    assert "0: 4.0, 0.8%; 1: –, –; 2: 112.0, 21.9%." in words
    assert "From random init: 0: 7.0, 1.4%; 1: –, –; 2: 6.0, 1.2%." in words
