"""Token counts, recipes, and every mistake in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, strategies as st

from inheritune import recipe as recipes
from inheritune.arms import canonical_init, init_parts
from inheritune.config import PARTS, DataConfig, EvaluateConfig, Recipe, SourceConfig, TokenCount, TrainConfig
from inheritune.errors import Refused


@pytest.mark.parametrize(
    ("written", "count"),
    [
        ("1B", 10**9),
        ("100M", 10**8),
        ("131072", 131072),
        ("131_072", 131072),
        ("1.5K", 1500),
        ("2t", 2 * 10**12),
        (7, 7),
        (7.0, 7),
    ],
)
def test_token_counts(written: str | int | float, count: int) -> None:
    assert TokenCount(written) == count


@pytest.mark.parametrize("written", ["", "B", "1Q", "-1", "1e9", "1.2345K", 1.5, True, "١K"])
def test_impossible_token_counts(written: str | float) -> None:
    with pytest.raises(ValueError, match="token count"):
        TokenCount(written)


@given(st.integers(0, 10**6), st.sampled_from("KMBT"))
def test_suffixes_are_exact(number: int, suffix: str) -> None:
    assert TokenCount(f"{number}{suffix}") == number * {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}[suffix]


def load(text: str, *flags: str, tmp: Path) -> Recipe:
    path = tmp / "r.yaml"
    path.write_text(text)
    return recipes.load_recipe(str(path), flags)


def test_flags_override_yaml_overrides_defaults(tmp_path: Path) -> None:
    text = "data: {passes: 3, sequence_length: 64}"
    recipe = load(text, "--data.passes", "5", tmp=tmp_path)
    assert (recipe.data.passes, recipe.data.sequence_length, recipe.train.beta2) == (5, 64, TrainConfig().beta2)
    assert load(text, "--data.passes=5", tmp=tmp_path) == recipe


def test_a_source_may_be_its_path_alone(tmp_path: Path) -> None:
    recipe = load("data: {sources: [a.txt, {path: b.txt, weight: 2}], validation_sets: {wiki: w.txt}}", tmp=tmp_path)
    assert [(source.path, source.weight) for source in recipe.data.sources] == [("a.txt", 1.0), ("b.txt", 2.0)]
    assert recipe.data.validation_sets["wiki"].path == "w.txt"


@pytest.mark.parametrize(
    "flags", [["--data.sources", "a.txt"], ["--data.sources=[a.txt]"], ["--data.sources", '[{"path": "a.txt"}]']]
)
def test_so_it_may_on_the_command_line(flags: list[str], tmp_path: Path) -> None:
    assert [source.path for source in load("", *flags, tmp=tmp_path).data.sources] == ["a.txt"]


EXPLODING = "architecture:\n  config:\n    a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"    {name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in ("ab", "bc", "cd", "de")
)


def test_sources_of_a_flag_take_nothing_from_the_recipe(tmp_path: Path) -> None:
    text = "data: {sources: [{path: a.txt, weight: 2, document_separator: '--', repeat: true}]}"
    assert load(text, "--data.sources", "b.txt", tmp=tmp_path).data.sources == [SourceConfig("b.txt")]


def test_merge_keys_and_aliases_are_read(tmp_path: Path) -> None:
    text = "data: {sources: [&a {path: a, weight: 2}, {<<: *a, path: b}]}"
    assert load(text, tmp=tmp_path).data.sources == [SourceConfig("a", 2.0), SourceConfig("b", 2.0)]


BAD = [
    # text, flags, and what the one line must say: where, key, value or nearest name, what is allowed
    ("data: {tokenz: 1B}", [], ["r.yaml", "data.tokenz", "did you mean 'tokens'"]),
    ("dat: {}", [], ["r.yaml", "'dat'", "did you mean 'data'"]),
    ("data: {sources: [{pth: a}]}", [], ["data.sources[0].pth", "did you mean 'path'"]),
    ("data: {sources: [{weight: 1}]}", [], ["data.sources[0]", "lacks 'path'"]),
    ("data: {tokens: 1Q}", [], ["r.yaml", "data.tokens", "'1Q'", "131072, 100M or 1B"]),
    ("data: {tokens: 0}", [], ["data.tokens", "above 0"]),
    ("data: {passes: 0}", [], ["data.passes", "0", "1 or more"]),
    ("data: {passes: 1.5}", [], ["data.passes", "1.5", "a whole number"]),
    ("data: 3", [], ["data is 3", "a mapping"]),
    ("data: {validation_share: 0.6, development_share: 0.5}", [], ["data.validation_share", "below 1"]),
    ("data: {validation_sets: {train: a.txt}}", [], ["data.validation_sets", "'train'", "other than train"]),
    ("data: {sources: [{path: a, weight: -1}]}", [], ["data.sources[0].weight", "above 0"]),
    ("data: {sources: [{path: a, document_separator: ''}]}", [], ["document_separator"]),
    ("train: {learning_rate: 0}", [], ["train.learning_rate", "above 0"]),
    ("train: {learning_rate: .nan}", [], ["train.learning_rate", "nan", "above 0"]),
    ("train: {learning_rate: fast}", [], ["train.learning_rate", "'fast'", "a number"]),
    ("train: {learning_rate: 1e-4, final_learning_rate: 1e-3}", [], ["train.final_learning_rate", "at most"]),
    ("train: {optimizer: adam}", [], ["train.optimizer", "'adam'", "adamw or adamw_8bit"]),
    (
        "train: {optimizer: adamw_8bit, offload_optimizer: true}",
        [],
        ["train.offload_optimizer", "True", "false with optimizer adamw_8bit"],
    ),
    (
        "train: {optimizer: adamw_8bit, parallel: fsdp}",
        [],
        ["train.parallel", "'fsdp'", "ddp with optimizer adamw_8bit"],
    ),
    ("train: {activation_checkpointing: maybe}", [], ["train.activation_checkpointing", "'maybe'"]),
    ("train: {export: lst}", [], ["train.export", "'lst'", "last or best"]),
    ("train: {compile: true}", [], ["train.compile", "True", "auto or always or never"]),
    ("controls: [radnom]", [], ["controls", "'radnom'", "cut, random, stack, last", "did you mean 'random'"]),
    ("controls: [attention+mpl]", [], ["controls", "distinct parts", "block_norms", "did you mean 'attention+mlp'"]),
    ("controls: [random, random]", [], ["controls", "'random'", "each control once"]),
    ("controls: [mlp+head, cut, head+mlp]", [], ["controls", "'head+mlp'", "each control once; 'mlp+head'"]),
    (
        "controls: [inherit]",
        [],
        ["controls", "'inherit'", "allowed: cut, random, stack, last", "inherit is what the target"],
    ),
    (f"controls: [{'+'.join(PARTS)}]", [], ["controls", "inherit is what the target itself starts from"]),
    ("inherit: {init: mlp+head}\ncontrols: [head+mlp]", [], ["controls", "mlp+head is what the target itself starts"]),
    (
        "inherit: {init: random}\ncontrols: [stack, cut]",
        [],
        ["'cut'; allowed: stack, inherit, last", "init is random"],
    ),
    ("", ["--controls", "[stak]"], ["--controls", "'stak'", "did you mean 'stack'"]),
    ("evaluate: {every: 1M}", [], ["r.yaml", "evaluate.every", "did you mean 'every_tokens'"]),
    ("evaluate: {every_tokens: 0}", [], ["evaluate.every_tokens", "0", "above 0, or null"]),
    ("evaluate: {every_tokens: often}", [], ["evaluate.every_tokens", "'often'", "131072, 100M or 1B"]),
    ("evaluate: {limit: 0}", [], ["evaluate.limit", "0", "1 or more, or null"]),
    ("evaluate: {suite: ' '}", [], ["evaluate.suite", "a suite's name"]),
    ("evaluate: {suite: null}", [], ["evaluate.suite is null", "text"]),
    ("", ["--evaluate.limit", "-3"], ["--evaluate.limit", "-3", "1 or more"]),
    ("train: {keep_checkpoints: 0}", [], ["train.keep_checkpoints", "0", "1 or more, or all"]),
    ("train: {keep_checkpoints: every}", [], ["train.keep_checkpoints", "'every'", "a whole number or all"]),
    ("inherit: {init: cut}", [], ["inherit.init", "'cut'", "inherit, random, stack, or"]),
    ("", ["--inherit.init", "norms"], ["--inherit.init", "'norms'", "did you mean 'block_norms'"]),
    ("name: a/b", [], ["name", "'a/b'"]),
    ("x: [", [], ["r.yaml:1", "not valid YAML"]),
    ("- 1", [], ["a mapping"]),
    ("", ["--data.passes", "x"], ["--data.passes", "'x'", "a whole number"]),
    ("", ["--data.passes", "0"], ["--data.passes", "1 or more"]),
    ("", ["--data.pases", "3"], ["--data.pases", "did you mean 'data.passes'"]),
    ("", ["--data.passes"], ["--data.passes", "needs a value"]),
    ("", ["--train.learning_rate", "nan"], ["--train.learning_rate", "'nan'", "a number"]),
    ("", ["--config", "other.yaml"], ["--config", "unknown flag"]),
    ("", ["--grow.grwoth", "warm"], ["--grow.grwoth", "unknown key; did you mean 'grow.growth'?", "start, step"]),
    ("", ["--train.objective.distill.heat=2"], ["unknown key", "train.objective.distill has temperature, weight"]),
    ("", ["--data.pass", "3"], ["--data.pass", "did you mean 'data.passes'"]),
    ("", ["more"], ["more", "one argument too many"]),
    ("data:", [], ["data is null", "a mapping"]),
    ("name: null", [], ["name is null", "text"]),
    ("train: {seed: null}", [], ["train.seed is null", "a whole number"]),
    ("data: {sources: [{path: a, weight: null}]}", [], ["data.sources[0].weight is null", "a number"]),
    ("", ["--controls", "null"], ["--controls", "null", "a list"]),
    ("train: {seed: 1}\nname: a\ntrain: {export: best}", [], ["r.yaml:3", "'train' stands twice"]),
    ("name: a\0b", [], ["r.yaml", "not valid YAML"]),
    ('name: "\\ud800"', [], ["r.yaml", "'\\ud800' holds half a character"]),
    ('{data: {sources: [{"\\udfff": x}]}}', [], ["r.yaml", "holds half a character"]),
    ("x: " + "[" * 1500, [], ["r.yaml", "nested too deeply"]),
    (EXPLODING, [], ["r.yaml:7", "more than 100,000 values"]),
    ("data: {validation_sets: {1: a.txt}}", [], ["data.validation_sets", "the name 1", "in quotes"]),
    ("", ["--data.sources", "[{path: a, weight: 0}]"], ["--data.sources", "weight is 0", "above 0"]),
]


@pytest.mark.parametrize(("text", "flags", "said"), BAD)
def test_a_mistake_is_one_line(text: str, flags: list[str], said: list[str], tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        load(text, *flags, tmp=tmp_path)
    line = str(refused.value)
    assert "\n" not in line
    for part in said:
        assert part in line


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(Refused, match="did you mean 'demo'"):
        recipes.load_recipe("dmeo")


def test_an_init_word_stands_for_parts() -> None:
    assert init_parts("inherit") == init_parts("stack") == set(PARTS)
    assert init_parts("random") == set()
    assert init_parts("mlp+attention") == init_parts("attention+mlp") == {"attention", "mlp"}


@pytest.mark.parametrize("word", ["", "cut", "mlp+", "mlp+mlp", "mlp + head", "MLP", "inherit+mlp", "random+stack"])
def test_other_words_are_no_init(word: str) -> None:
    with pytest.raises(ValueError, match="inherit, random, stack, or distinct parts joined by '\\+': attention, mlp"):
        init_parts(word)


def test_an_init_has_one_name() -> None:
    assert canonical_init("head+mlp+attention") == "attention+mlp+head"
    assert canonical_init("+".join(reversed(PARTS))) == "inherit"
    assert [canonical_init(word) for word in ("inherit", "random", "stack")] == ["inherit", "random", "stack"]


@pytest.mark.parametrize(
    "text",
    [
        "controls: [cut, stack, attention, mlp+block_norms, random]",
        "inherit: {init: stack}\ncontrols: [cut, inherit, random]",
        "inherit: {init: random}\ncontrols: [inherit, stack, embeddings+final_norm+head]",
        "inherit: {init: attention+mlp}\ncontrols: [attention, random]",
    ],
)
def test_possible_controls(text: str, tmp_path: Path) -> None:
    assert load(text, tmp=tmp_path).controls == yaml.safe_load(text)["controls"]


@pytest.mark.parametrize(
    "word", ["25", "0-11,25", "0,2", "every:2", "last:13", "first:12+last:1", "influence:13", "angular:13"]
)
def test_layer_words_are_read_as_they_are_written(word: str, tmp_path: Path) -> None:
    recipe = load("", "--inherit.layers", word, tmp=tmp_path)
    assert str(recipe.inherit.layers) == word
    assert load(f"inherit:\n  layers: {word}", tmp=tmp_path) == recipe
    assert load(recipes.dump(recipe), tmp=tmp_path) == recipe


@pytest.mark.parametrize("name", recipes.packaged_recipes())
def test_packaged_recipes_are_valid(name: str) -> None:
    assert recipes.load_recipe(name).name == name


def test_the_dump_is_complete_and_reads_back(tmp_path: Path) -> None:
    recipe = recipes.load_recipe("demo", ["--train.seed", "3"])
    dumped = recipes.dump(recipe)
    assert load(dumped, tmp=tmp_path) == recipe
    assert set(yaml.safe_load(dumped)["train"]) == set(recipes.as_dict(TrainConfig()))


def test_dumped_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    recipe = recipes.resolve_paths(
        load("reference: packaged:demo\ndata: {sources: [text.txt, python-source, '*.md']}", tmp=tmp_path)
    )
    assert recipe.reference == "packaged:demo"
    assert [s.path for s in recipe.data.sources] == [
        str(tmp_path / "text.txt"),
        "python-source",
        str(tmp_path / "*.md"),
    ]


def test_a_home_is_spelled_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "shards").mkdir()
    recipe = recipes.resolve_paths(load("data: {sources: ['~/books/*.txt'], prepared: ~/shards}", tmp=tmp_path))
    assert recipe.data.sources[0].path == f"{tmp_path}/books/*.txt"
    assert recipe.data.prepared == f"{tmp_path}/shards"


def test_data_sets_of_an_evaluation_are_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hub").mkdir()
    monkeypatch.chdir(tmp_path)
    recipe = load("evaluate: {every_tokens: 1M, datasets: hub}", "--evaluate.suite", "piqa:0", tmp=tmp_path)
    assert recipe.evaluate == EvaluateConfig(TokenCount("1M"), "piqa:0", "hub")
    resolved = recipes.resolve_paths(recipe)
    assert resolved.evaluate == EvaluateConfig(TokenCount("1M"), "piqa:0", str(tmp_path / "hub"))
    assert load(recipes.dump(recipe), tmp=tmp_path) == resolved
    assert load("", tmp=tmp_path).evaluate is None
    assert load("evaluate: {}", tmp=tmp_path).evaluate == EvaluateConfig()


def test_first_difference_names_the_key() -> None:
    one, other = recipes.as_dict(Recipe()), recipes.as_dict(Recipe(data=DataConfig(passes=2)))
    assert recipes.first_difference(one, other) == ("data.passes", 1, 2)
    assert recipes.first_difference(one, one) is None


@pytest.mark.parametrize(
    ("flag", "value", "key"),
    [
        ("--train.objective", "{distil: {}}", "distil"),
        ("--train", "{learning_rat: {}}", "learning_rat"),
        ("--train.objective.distill", "{warmth: {}}", "warmth"),
        ("--data", "{passe: null}", "passe"),
    ],
)
def test_an_unknown_key_in_a_mapping_flag_is_refused(flag: str, value: str, key: str) -> None:
    with pytest.raises(Refused, match=f"{flag}: unknown key '{key}'"):
        recipes.load_recipe("demo", [flag, value])


@pytest.mark.parametrize(
    "distill",
    ["{temperature: 1e300}", "{temperature: 0}", "{temperature: .nan}", "{weight: 0}", "{weight: 1.5}"],
)
def test_distillation_within_its_bounds(distill: str) -> None:
    with pytest.raises(Refused, match=r"train\.objective\.distill\."):
        recipes.load_recipe("demo", ["--train.objective.distill", distill])


def test_a_directory_does_not_hide_a_packaged_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    (tmp_path / "other").mkdir()
    assert recipes.load_recipe("demo").name == "demo"
    with pytest.raises(Refused, match="other: a directory"):
        recipes.load_recipe("other")
