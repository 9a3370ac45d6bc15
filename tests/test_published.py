"""The poster's tables and outside baselines: every figure as printed, and what figures say of the rows behind them."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, strategies as st

from inheritune.published import (
    BASELINES,
    MMLU,
    NINE,
    OUTSIDE_BASELINES,
    REFERENCE,
    TABLE1,
    TABLE2,
    TABLE3,
    TABLE4,
    TABLE4_COLUMNS,
    TARGET,
    Column,
    Reported,
    agreement,
    column_of,
    figure1,
    fit,
    share_error,
)

# The print, a line a model, as it is read there; the module has it a column at a time. A dash is a gap.
PRINTED_HEADINGS = "Winograd PIQA Boolq WinoGrande Logiqa MMLU(5) WNLI QNLI MNLI TruthfulQA"
PRINTED = {
    "OpenLLaMA-3B (1T)": "63.46 74.97 67.18 62.27 28.4 27.21 50.7 51.3 37.3 35",
    "OPT-1.3B (300B)": "38.46 71.82 57.83 59.51 27.04 24.96 42.25 51.29 - 38.67",
    "Pythia-1.4B (300B)": "36.54 70.89 63.12 56.99 27.65 25.56 53.52 49.48 - 38.66",
    "MPT-1.3B (200B)": "63.46 71.44 50.89 58.09 28.26 25.82 40.85 50.52 - 38.68",
    "Sheared LLaMA-1.3B (50B)": "36.54 73.45 62.02 58.17 27.34 25.71 49.3 50.98 - 37.14",
    "Ours-1.5B (1B)": "50.96 56.47 61.68 51.69 25.19 25.67 43.66 49.41 34.42 48.61",
}
PRINTED_TABLE4 = """
GPT-2 Large  | 36 | rand init | 100K | 2.85 | 34.84 | 34.14
GPT-2 Large  | 18 | rand init | 100K | 2.97 | 37.63 | 30.97
GPT-2 Large  | 18 | rand init | 200K | 2.84 | -     | -
GPT-2 Large  | 18 | Ours      | 100K | 2.80 | 35.38 | 34.64
GPT-2 Medium | 24 | rand init | 100K | 2.81 | 31.93 | 36.54
GPT-2 Medium | 16 | rand init | 100K | 2.86 | 33.67 | 34.60
GPT-2 Medium | 16 | rand init | 200K | 2.83 | -     | -
GPT-2 Medium | 12 | Ours      | 100K | 2.87 | -     | -
GPT-2 Medium | 14 | Ours      | 100K | 2.84 | -     | -
GPT-2 Medium | 16 | Ours      | 100K | 2.81 | 32.04 | 35.96
"""


def text(figure: Decimal | None) -> str:
    return "-" if figure is None else str(figure)


def column(task: str) -> Column:
    found = column_of(task)
    assert found is not None
    return found


def test_table_1_is_as_printed() -> None:
    assert [(line.model, line.tokens, line.gpus, line.gpu, line.days) for line in TABLE1] == [
        ("MPT-1.3B (200B)", 200_000_000_000, 440, "A100", "half"),
        ("Pythia-1.4B (300B)", 300_000_000_000, 64, "A100", "4.6"),
        ("TinyLLaMA-1.1B (3T)", 3_000_000_000_000, 16, "A100", "90"),
        ("OPT-1.3B (300B)", 300_000_000_000, 992, "A100", None),
        ("Sheared LLaMA-1.3B (50B)", 50_000_000_000, 16, "A100", None),
        ("OpenLLaMA-3B (1T)", 1_000_000_000_000, 256, "TPU v4", "10"),
        ("Our-1.5B (1B)", 1_000_000_000, 1, "A6000", "~half"),
    ]


def test_table_2_is_as_printed() -> None:
    assert [each.heading for each in TABLE2] == PRINTED_HEADINGS.split()
    assert all(each.models == tuple(PRINTED) == (REFERENCE, *BASELINES, TARGET) for each in TABLE2)
    for model, line in PRINTED.items():
        assert " ".join(text(each.by_model[model]) for each in TABLE2) == line
    assert [each.task for each in TABLE2 if each.shots] == ["mmlu"]
    assert MMLU.shots == 5


def test_table_3_is_as_printed() -> None:
    assert [(line.model, line.data, str(line.mmlu)) for line in TABLE3] == [
        ("Ours-1.5B (1B)", "10 epochs", "24.95"),
        ("Ours-1.5B (50B)", "10B fresh", "23.62"),
        ("Ours-1.5B (1B)", "20 epochs", "25.46"),
        ("Ours-1.5B (50B)", "20B fresh", "24.96"),
    ]


def test_table_4_is_as_printed() -> None:
    printed = [[cell.strip() for cell in line.split("|")] for line in PRINTED_TABLE4.strip().splitlines()]
    ours = [
        [line.family, str(line.layers), line.initialisation, line.steps, str(line.loss)]
        + [text(each.by_model[line.name]) for each in TABLE4_COLUMNS]
        for line in TABLE4
    ]
    assert ours == printed
    assert [line.name for line in TABLE4 if line.final] == ["GPT-2 Medium, 16 layers, Ours, 100K steps"]
    assert len({line.name for line in TABLE4}) == len(TABLE4)


def test_winograd_is_wsc_and_two_of_its_scores_are_the_constant_answers() -> None:
    wsc = column("wsc")
    counts = {model: fit.counts for model, fit in agreement(wsc).fits.items()}
    assert counts == {
        REFERENCE: (66,),
        "OPT-1.3B (300B)": (40,),
        "Pythia-1.4B (300B)": (38,),
        "MPT-1.3B (200B)": (66,),
        "Sheared LLaMA-1.3B (50B)": (38,),
        TARGET: (53,),
    }
    # Always no and always yes: what one has right, the other has wrong.
    assert wsc.rows == 66 + 38
    assert not agreement(wsc, 273).holds  # the schemas that are called Winograd elsewhere, wsc273
    assert [model for model, fit in agreement(wsc, 273).fits.items() if fit.how != "none"] == ["OPT-1.3B (300B)"]


@pytest.mark.parametrize(
    ("task", "luck"),
    [
        ("wsc", 1e-11),
        ("piqa", 1e-4),
        ("boolq", 0.017),
        ("winogrande", 0.0002),
        ("logiqa", 1e-5),
        ("wnli", 1e-9),
        ("qnli", 0.049),
        ("lambada_openai", 0.019),
    ],
)
def test_figures_agree_with_the_rows_of_the_split(task: str, luck: float) -> None:
    found = agreement(column(task))
    assert found.holds
    assert found.luck < luck


def test_two_figures_are_cut_off_rather_than_rounded() -> None:
    """2197 / 3270 = 67.187% and 655 / 1267 = 51.697%: no count rounds to what was printed."""
    cut_off = {
        (each.task, model): fit.counts
        for each in TABLE2
        for model, fit in agreement(each).fits.items()
        if fit.how == "cut off" and each.task != "truthfulqa_mc2"
    }
    assert cut_off == {("boolq", REFERENCE): (2197,), ("winogrande", TARGET): (655,)}


def test_figures_with_fewer_decimals_fit_only_as_such() -> None:
    """28.4 is 185 of 651, 28.42%: no count gives 28.40. The same of QNLI's 51.3."""
    assert fit(Decimal("28.4"), 651).counts == (185,)
    assert fit(Decimal("28.40"), 651).how == "none"
    assert fit(Decimal("51.3"), 5463).counts == tuple(range(2800, 2806))
    assert fit(Decimal("51.30"), 5463).how == "cut off"


def test_what_the_figures_do_not_tell() -> None:
    """What the reasons of `unknown` claim."""
    assert agreement(MMLU).luck == 1.0  # a step of 1 / 14042 is finer than two decimals
    mnli = column("mnli")
    for rows in (9815, 9832):  # matched, mismatched
        assert all(fit.how == "rounded" for fit in agreement(mnli, rows).fits.values())
    truthful = agreement(column("truthfulqa_mc2"))
    misfits = [model for model, fit in truthful.fits.items() if fit.how == "none"]
    assert misfits == ["Pythia-1.4B (300B)", "Sheared LLaMA-1.3B (50B)", TARGET]


def test_a_column_is_identified_only_where_its_figures_agree_and_its_metric_is_known() -> None:
    identified = [each for each in (*TABLE2, *TABLE4_COLUMNS) if each.unknown is None]
    assert [each.task for each in identified] == ["wsc", "boolq", "winogrande", "wnli", "qnli"]
    for each in identified:
        assert agreement(each).holds
        assert each.metric == "acc"
    assert all(each.unknown for each in TABLE2 if each.metric is None)


def test_a_wrong_figure_would_be_seen() -> None:
    assert fit(Decimal("63.47"), 104).how == "none"
    assert fit(Decimal("100.01"), 104) == fit(Decimal(101), 104)
    assert fit(Decimal(100), 104).counts == (104,)
    assert fit(Decimal(0), 1000).counts == tuple(range(6))  # 0.5% is half-way


def test_perplexities_are_no_counts() -> None:
    with pytest.raises(ValueError, match="Wikitext: its figures are no shares"):
        agreement(column("wikitext"))


@given(rows=st.integers(1, 20_000), share=st.floats(0, 1), decimals=st.integers(0, 3))
def test_every_count_is_found_in_its_print(rows: int, share: float, decimals: int) -> None:
    right = round(share * rows)
    exact = Fraction(100 * right, rows)
    places = Decimal(1).scaleb(-decimals)
    rounded = Decimal(round(exact * 10**decimals)) * places
    cut = Decimal(exact * 10**decimals // 1) * places
    assert right in fit(rounded, rows).counts
    assert fit(rounded, rows).how == "rounded"
    assert fit(cut, rows).how != "none"


@given(rows=st.integers(1, 3000))
def test_counts_round_to_what_they_were_found_in(rows: int) -> None:
    for figure in (Decimal("33.33"), Decimal("50.9"), Decimal(7)):
        found = fit(figure, rows)
        step = Fraction(1, 10 ** len(str(figure).partition(".")[2]))
        for right in found.counts:
            off = Fraction(100 * right, rows) - Fraction(figure)
            assert abs(off) <= step / 2 if found.how == "rounded" else 0 <= off < step


def test_luck_is_the_chance_of_as_many_fits() -> None:
    """Of 4 rows 0, 25, 50, 75 and 100 can be printed: 5 of 101 whole figures."""
    three = Column(2, "", "", ("a", "b", "c"), (Decimal(25), None, Decimal(50)), "", 0, "acc", 4)
    assert agreement(three).luck == pytest.approx((5 / 101) ** 2)
    one_wrong = Column(2, "", "", ("a", "b"), (Decimal(25), Decimal(51)), "", 0, "acc", 4)
    assert agreement(one_wrong).luck == pytest.approx(1 - (96 / 101) ** 2)
    assert not agreement(one_wrong).holds
    # That many fits are luck, and that one figure fits not at all, are each enough.
    assert not agreement(MMLU).holds
    six = Column(2, "", "", tuple("abcdef"), tuple(map(Decimal, (25, 50, 75, 0, 100, 51))), "", 0, "acc", 4)
    assert agreement(six).luck < 1e-5
    assert not agreement(six).holds
    # A figure that was cut off counts as no fit.
    assert agreement(column("winogrande")).luck > 1e-4


def test_figure_1_is_the_mean_of_nine_and_leaves_out_models_with_gaps() -> None:
    averages = figure1()
    assert len(NINE) == 9
    assert averages[REFERENCE].nine == pytest.approx(470.58 / 9)
    assert averages[TARGET].nine == pytest.approx(422.09 / 9)
    assert averages[TARGET].mmlu == 25.67
    for name in BASELINES:
        assert averages[name].nine is None
        assert averages[name].reason == "table 2 has no figure of it for MNLI"


def test_without_the_column_with_gaps_every_model_has_an_average() -> None:
    averages = figure1([each for each in NINE if each.task != "mnli"])
    assert averages["OPT-1.3B (300B)"].nine == pytest.approx(386.87 / 8)
    assert all(average.reason is None for average in averages.values())


def test_values_are_in_the_unit_of_scores() -> None:
    assert column("wsc").value(REFERENCE) == 0.6346
    assert column("mnli").value(BASELINES[0]) is None
    assert column("wikitext").value(TABLE4[0].name) == 34.84
    assert column_of("hellaswag") is None


# As the sources have them: figure, metric, then the harness's task.
REPORTED = {
    "smollm2-70m": """
        54.84 acc_norm piqa, 50.04 acc winogrande, 39.66 acc boolq, 33.00 acc_norm arc_easy,
        22.35 acc_norm arc_challenge, 26.14 acc_norm hellaswag, 45.20 acc_norm sciq, 27.60 acc_norm openbookqa,
        48.02 acc truthfulqa_mc2, 22.96 acc mmlu
    """,
    "smollm2-135m-instruct": """
        66.92 acc_norm piqa, 54.12 acc arc_easy, 27.73 acc_norm arc_challenge, 42.99 acc_norm hellaswag
    """,
}


@pytest.mark.parametrize("name", OUTSIDE_BASELINES)
def test_outside_baselines_are_as_their_sources_have_them(name: str) -> None:
    found = OUTSIDE_BASELINES[name].scores
    assert [f"{score.figure} {score.metric} {score.task}" for score in found] == " ".join(REPORTED[name].split()).split(
        ", "
    )


def test_what_outside_baselines_took() -> None:
    assert {name: (one.parameters, one.tokens, one.harness) for name, one in OUTSIDE_BASELINES.items()} == {
        "smollm2-70m": (69_200_000, 30_600_000_000, "0.4.11"),
        "smollm2-135m-instruct": (134_515_008, 2_000_000_000_000, None),
    }


def test_outside_scores_are_counts_of_the_rows_of_their_splits() -> None:
    """All but mc2, a mean of probabilities; and where it can be told they are no counts of another split."""
    scores = [score for baseline in OUTSIDE_BASELINES.values() for score in baseline.scores]
    no_count = {score.task for score in scores if fit(score.figure, score.rows).how == "none"}
    assert no_count == {"truthfulqa_mc2"}
    others = {"arc_easy": 570, "arc_challenge": 299, "winogrande": 1767, "piqa": 3084}  # validation or test
    for task, rows in others.items():
        figures = [score.figure for score in scores if score.task == task]
        assert any(fit(figure, rows).how != "rounded" for figure in figures), task


def test_a_reported_score_has_the_error_of_its_rows() -> None:
    rows = [1.0] * 452 + [0.0] * 548
    mean = sum(rows) / 1000
    deviation = math.sqrt(sum((row - mean) ** 2 for row in rows) / 999)
    sciq = OUTSIDE_BASELINES["smollm2-70m"].score_of("sciq")
    assert sciq is not None
    assert sciq.value == 0.452
    assert sciq.standard_error == pytest.approx(deviation / math.sqrt(1000))
    assert replace(sciq, rows=250).standard_error > 1.9 * sciq.standard_error
    assert OUTSIDE_BASELINES["smollm2-70m"].score_of("wsc") is None


@given(st.lists(st.floats(0, 1), min_size=2, max_size=60))
def test_the_error_of_shares_is_at_most_that_of_right_and_wrong(rows: list[float]) -> None:
    """What `Reported.standard_error` says of mc2."""
    mean = math.fsum(rows) / len(rows)
    deviation = math.sqrt(math.fsum((row - mean) ** 2 for row in rows) / (len(rows) - 1))
    assert deviation / math.sqrt(len(rows)) <= share_error(min(mean, 1.0), len(rows)) + 1e-9
    assert Reported("", Decimal(0), "", "acc", 5).standard_error == 0
