"""Words for controls, and the layers that they mean."""

from __future__ import annotations

import pytest

from inheritune.arms import Arm, chosen_layers, control_arm, control_names


@pytest.mark.parametrize(
    ("word", "arm"),
    [
        ("random", Arm("random", "random")),
        ("random:2x", Arm("random:2x", "random", times=2)),
        ("random@4", Arm("random@4", "random", layers=4)),
        ("random:3x@04", Arm("random:3x@4", "random", times=3, layers=4)),
        ("stack", Arm("stack", "stack")),
        ("last", Arm("last", "inherit", choice="last")),
        ("every-other:2x", Arm("every-other:2x", "inherit", choice="every-other", times=2)),
        ("distill", Arm("distill", "random", distilled=True)),
        ("half-width", Arm("half-width", "random", half_width=True)),
        ("mlp+attention:2x", Arm("attention+mlp:2x", "attention+mlp", times=2)),
        ("inherit@2", Arm("inherit@2", "inherit", layers=2)),
    ],
)
def test_a_word_is_an_arm(word: str, arm: Arm) -> None:
    assert control_arm(word) == arm


@pytest.mark.parametrize(
    "word",
    [
        *("", "cut", "rnd", "mlp+mlp", "random 2x", "../random", "last+random", "half-width@2"),
        *("random:", "random:1x", "random:0x", "random:101x", "random:2", "random:2x:2x"),
        *("random@", "random@0", "random@4:2x", "last@"),
    ],
)
def test_no_such_word(word: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        control_arm(word)


def test_every_word_that_is_named_is_one() -> None:
    for word in control_names():
        if word != "cut":
            assert control_arm(word).name == word


@pytest.mark.parametrize(
    ("choice", "count", "total", "layers"),
    [
        ("last", 2, 6, (4, 5)),
        ("every-other", 3, 6, (0, 2, 4)),
        ("every-other", 4, 6, (0, 1, 3, 4)),
        ("every-other", 6, 6, (0, 1, 2, 3, 4, 5)),
        ("every-other", 1, 6, (0,)),
    ],
)
def test_chosen_layers(choice: str, count: int, total: int, layers: tuple[int, ...]) -> None:
    assert chosen_layers(choice, count, total) == layers


def test_a_directory_holds_no_colon() -> None:
    assert control_arm("random:2x@4").directory == "random-2x@4"
