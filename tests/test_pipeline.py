"""A whole run on a tiny reference: its records, going on, repeating, and what it refuses to touch."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BloomConfig, BloomForCausalLM

from inheritune import corpus, pipeline, recipe as recipes
from inheritune.config import Recipe
from inheritune.console import Console
from inheritune.errors import Failed, InherituneError, Interrupted, Refused
from inheritune.pipeline import models
from inheritune.run_directory import JsonlWriter, lock, read_json, read_jsonl
from inheritune.trained import Trained
from inheritune.training import Trainer

WORDS = [first + second for first in "bdgklmnprst" for second in ("a", "ein", "olu")]


class Silent(Console):
    """Keeps what a run says; sends SIGTERM to it after so many steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.steps_left = stop_after

    def line(self, text: str) -> None:
        self.lines.append(text)

    def stage(self, text: str) -> None:
        self.lines.append(text)

    def table(self, table: Any) -> None:
        self.lines.append(str(type(table)))

    def progress(self, step: Any, later: int = 0) -> None:
        if self.steps_left is not None:
            self.steps_left -= 1
            if self.steps_left == 0:
                os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 short documents, one a line."""
    import random

    made = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    lines = [json.dumps({"text": " ".join(made.choices(WORDS, k=60))}) for _ in range(200)]
    path.write_text("\n".join(lines))
    return path


def recipe(reference: Path, text: Path, *flags: str) -> Recipe:
    return recipes.parse(
        recipes.build_parser(Recipe),
        Recipe,
        flags,
        {
            "name": "tiny",
            "reference": str(reference),
            "data": {
                "sources": [str(text)],
                "tokens": 4000,
                "passes": 2,
                "sequence_length": 32,
                "validation_share": 0.1,
                "development_share": 0.1,
                "validation_tokens": 1500,
                "development_tokens": 800,
                "workers": 1,
            },
            "train": {
                "batch_sequences": 8,
                "micro_batch_sequences": 4,
                "learning_rate": 5e-3,
                "warmup_steps": 2,
                "validate_every_steps": 10,
                "checkpoint_every_steps": 5,
                "compute_dtype": "float32",
            },
            "controls": ["random", "cut"],
        },
        "test",
    )[0]


@pytest.fixture(scope="module")
def finished(llama_directory: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    pipeline.run(recipe(llama_directory, text), out, console=Silent())
    return out


def test_the_records_are_all_there(finished: Path) -> None:
    result = read_json(finished / "result.json")
    assert result["state"] == "done"
    assert (result["reference"]["layers"], result["target"]["layers"]) == (4, 2)
    assert result["unique_tokens"] == 3999 // 32 * 32
    assert result["tokens_trained"] == 2 * result["unique_tokens"]
    assert result["passes"] == 2
    assert result["matched"] is None
    assert set(result["controls"]) == {"random", "cut"}
    for name in (
        *("recipe.yaml", "environment.json", "reference.json", "inheritance.json", "metrics.jsonl", "ledger.json"),
        *("report.html", "data/manifest.json", "model/config.json"),
        *("controls/random/model/config.json", "controls/random/metrics.jsonl"),
    ):
        assert (finished / name).exists(), name
    account = read_json(finished / "inheritance.json")
    assert {record["status"] for record in account["tensors"]} == {"inherited"}
    assert "seconds" not in json.dumps(result), "times belong in the ledger: result.json must repeat"


def test_settings_of_the_training_may_change_until_it_begins(llama_directory: Path, text: Path, tmp_path: Path) -> None:
    def prepare(*flags: str) -> None:
        pipeline.run(recipe(llama_directory, text, *flags), tmp_path / "run", console=Silent(), until="prepare")

    prepare()
    prepared = (tmp_path / "run" / "data" / "manifest.json").stat().st_mtime_ns
    changed = ("--train.learning_rate", "1e-3", "--train.warmup_steps", "3", "--data.passes", "1")
    prepare(*changed)
    assert (tmp_path / "run" / "data" / "manifest.json").stat().st_mtime_ns == prepared
    for flags in (("--train.seed", "1"), ("--train.compute_dtype", "bfloat16"), ("--data.tokens", "3000")):
        with pytest.raises(
            Refused, match=f"{flags[0].removeprefix('--')}: .* there, {flags[1]!r}? here|{flags[1]} here"
        ):
            prepare(*changed, *flags)
    (tmp_path / "run" / "metrics.jsonl").touch()
    with pytest.raises(Refused, match=r"data.passes: 1 there, 2 here"):
        prepare()


def test_reported_losses_are_those_of_the_exported_model(finished: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished / "model")
    AutoTokenizer.from_pretrained(finished / "model")
    manifest = read_json(finished / "data" / "manifest.json")
    import numpy as np

    tokens = np.fromfile(finished / "data" / "held-out" / "00000.ds", "<u2").astype(np.int64)
    stream = np.concatenate([[manifest["tokenizer"]["end_of_text"]], tokens])
    total = 0.0
    for start in range(0, len(tokens), 32):
        piece = torch.from_numpy(stream[start : start + 33])[None]
        with torch.no_grad():
            logits = model(piece[:, :-1]).logits.float()
        total += float(torch.nn.functional.cross_entropy(logits[0], piece[0, 1:], reduction="sum"))
    reported = read_json(finished / "result.json")["target"]["validation_loss"]
    assert reported == pytest.approx(total / len(tokens), rel=1e-5)


def test_before_training_the_target_is_the_cut(finished: Path) -> None:
    result = read_json(finished / "result.json")
    first = next(r for r in read_jsonl(finished / "metrics.jsonl") if r["kind"] == "validation")
    assert first["step"] == 0
    assert first["losses"]["held-out"] == pytest.approx(result["controls"]["cut"]["validation_loss"], rel=1e-5)


def test_the_control_sees_the_same_tokens_in_the_same_order(finished: Path) -> None:
    records = [
        [(r["step"], r["tokens"], r["pass"]) for r in read_jsonl(path) if r["kind"] == "step"]
        for path in (finished / "metrics.jsonl", finished / "controls" / "random" / "metrics.jsonl")
    ]
    assert records[0] == records[1]
    random_init = AutoModelForCausalLM.from_pretrained(finished / "controls" / "random" / "model")
    target = AutoModelForCausalLM.from_pretrained(finished / "model")
    assert [p.shape for p in random_init.parameters()] == [p.shape for p in target.parameters()]


def test_done_is_skipped(finished: Path, llama_directory: Path, text: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    console = Silent()
    free = ("--data.workers", "2", "--data.relation", "other")
    pipeline.run(recipe(llama_directory, text, *free), finished, console=console)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")} == before
    assert any("already done" in line for line in console.lines)


def test_the_dumped_recipe_repeats_the_run(finished: Path, tmp_path: Path) -> None:
    again = recipes.load_recipe(str(finished / "recipe.yaml"))
    pipeline.run(again, tmp_path / "again", console=Silent())
    assert (tmp_path / "again" / "result.json").read_bytes() == (finished / "result.json").read_bytes()
    weights = "model/model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (finished / weights).read_bytes()
    card = "model/README.md"
    assert (tmp_path / "again" / card).read_bytes() == (finished / card).read_bytes()
    assert "## Results" in (finished / card).read_text(encoding="utf-8")


def test_a_stopped_run_says_so_and_goes_on(finished: Path, llama_directory: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for steps in (7, 30):  # in the target's training, then, after its other 24 steps, in the control's
        with pytest.raises(Interrupted) as stopped:
            pipeline.run(recipe(llama_directory, text), out, console=Silent(stop_after=steps))
        assert stopped.value.exit_code == 143
        assert read_json(out / "result.json") == {"name": "tiny", "state": "preempted"}
    assert (out / "model").exists()
    assert not (out / "controls" / "random" / "model").exists()
    pipeline.run(recipe(llama_directory, text), out, console=Silent())
    assert (out / "result.json").read_bytes() == (finished / "result.json").read_bytes()


def test_until_ends_early(llama_directory: Path, text: Path, tmp_path: Path) -> None:
    assert (
        pipeline.run(recipe(llama_directory, text), tmp_path / "r", console=Silent(), until="inherit")["state"]
        == "inherited"
    )
    assert not (tmp_path / "r" / "model").exists()
    assert (tmp_path / "r" / "inheritance.json").exists()


def test_a_further_validation_set_is_on_every_curve(llama_directory: Path, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("A text of another kind.\n\n" * 30 + "Unlike the others, this one ends.")
    flags = ("--data.validation_sets", json.dumps({"other": {"path": str(other), "document_separator": "\n\n"}}))
    result = pipeline.run(recipe(llama_directory, text, *flags), tmp_path / "r", console=Silent())
    for model in (result["reference"], result["target"], *result["controls"].values()):
        assert set(model["validation_losses"]) == {"development", "held-out", "other"}
    for metrics in (tmp_path / "r" / "metrics.jsonl", tmp_path / "r" / "controls" / "random" / "metrics.jsonl"):
        assert all("other" in r["losses"] for r in read_jsonl(metrics) if r["kind"] == "validation")


def test_prepared_data_is_used_as_it_is(llama_directory: Path, text: Path, tmp_path: Path) -> None:
    made = recipe(llama_directory, text)
    corpus.prepare(made.data, str(llama_directory), tmp_path / "data")
    flags = ("--data.sources", "[]", "--data.prepared", str(tmp_path / "data"))
    result = pipeline.run(recipe(llama_directory, text, *flags), tmp_path / "r", console=Silent())
    assert result["unique_tokens"] == 3999 // 32 * 32
    assert not (tmp_path / "r" / "data").exists()


def test_shards_of_another_tokenizer_are_refused(llama_directory: Path, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "reference"
    shutil.copytree(llama_directory, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    a, b = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)[40:42]
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    corpus.prepare(recipe(other, text).data, str(other), tmp_path / "data")
    flags = ("--data.sources", "[]", "--data.prepared", str(tmp_path / "data"))
    with pytest.raises(Refused, match="prepared with another tokenizer"):
        pipeline.run(recipe(llama_directory, text, *flags), tmp_path / "r", console=Silent())


@pytest.mark.slow
# dynamo looks into what it traces and into every module, which warns; an error there is taken for a failed compilation
@pytest.mark.filterwarnings("default")
def test_a_compiled_training_is_exported(llama_directory: Path, text: Path, tmp_path: Path) -> None:
    flags = ("--train.compile", "always", "--train.compute_dtype", "bfloat16", "--controls", "[]")
    console = Silent()
    result = pipeline.run(recipe(llama_directory, text, *flags), tmp_path / "r", console=console)
    assert result["state"] == "done"
    assert read_json(tmp_path / "r" / "ledger.json")["train target"]["compiled"], [
        line for line in console.lines if "Not compiled" in line
    ]


def test_a_half_line_is_dropped_before_going_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"a": 1}\n{"a": 2')
    writer = JsonlWriter(path)
    writer.append({"a": float("nan")})
    writer.close()
    assert read_jsonl(path) == [{"a": 1}, {"a": None}]
    path.write_text('{"a": 1}\nrubbish\n{"a": 2}\n')
    with pytest.raises(Failed, match=r"metrics\.jsonl:2: not JSON"):
        read_jsonl(path)


def test_a_directory_in_use_is_refused(llama_directory: Path, text: Path, tmp_path: Path) -> None:
    with lock(tmp_path / "r"), pytest.raises(Refused, match="in use by another run"):
        pipeline.run(recipe(llama_directory, text), tmp_path / "r", console=Silent())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--data.tokens", "1M"), "tokens"),
        (("--data.validation_share", "0"), "validation"),
        (("--data.sequence_length", "4096"), "128 positions"),
        (("--inherit.layers", "5"), "1 to 4"),
        (("--inherit.layers", "0"), "1 to 4"),
        (("--inherit.layers", "many"), "many"),
        (("--data.sources", "[]"), "data.sources is empty"),
        (("--reference", "null"), "give a reference"),
        (("--data.prepared", "{tmp}/nowhere"), "no manifest.json"),
        (("--data.exclude_seen", "reference"), "ships no seen.txt"),
        (("--data.tokens", "null", "--train.warmup_steps", "100000"), "steps would all be warm-up"),
        (("--data.development_share", "0", "--train.export", "best"), "development set"),
        (("--architecture.vocabulary", "300"), "or an architecture"),
    ],
)
def test_what_is_refused_leaves_nothing(
    flags: tuple[str, ...], said: str, llama_directory: Path, text: Path, tmp_path: Path
) -> None:
    made = recipe(llama_directory, text, *(flag.replace("{tmp}", str(tmp_path)) for flag in flags))
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "new", tmp_path / "empty"):
        with pytest.raises(Refused) as refused:
            pipeline.run(made, out, console=Silent())
        assert said in str(refused.value)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "new").exists()
    assert list((tmp_path / "empty").iterdir()) == []


def test_another_recipe_in_the_directory_is_refused(finished: Path, llama_directory: Path, text: Path) -> None:
    with pytest.raises(Refused, match=r"another recipe \(train\.seed: 0 there, 1 here\)"):
        pipeline.run(recipe(llama_directory, text, "--train.seed", "1"), finished, console=Silent())


def test_a_foreign_directory_is_refused(llama_directory: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(Refused, match="no run directory"):
        pipeline.run(recipe(llama_directory, text), tmp_path, console=Silent())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_from_an_architecture_a_reference_is_made(text: Path, tmp_path: Path) -> None:
    keys = {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
    flags = ["--reference", "null", "--controls", "[]", "--architecture.vocabulary", "300"]
    made = recipe(text, text, *flags, "--architecture.config", json.dumps(keys))
    result = pipeline.run(made, tmp_path / "r", console=Silent())
    assert result["reference"] is None
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "r" / "model")
    assert model.dtype == torch.bfloat16
    assert model.config.vocab_size == 300


# ---- other layers, other inits, controls

WIDE = ("--inherit.layers", "first:1+last:1", "--controls", "[cut, stack, attention+block_norms, random]")
SHORT = ("--train.max_steps", "6", "--train.validate_every_steps", "3", "--data.tokens", "2K")


@pytest.fixture(scope="module")
def wide(llama_directory: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of layers 0 and 3 with every kind of control."""
    out = tmp_path_factory.mktemp("wide") / "run"
    pipeline.run(recipe(llama_directory, text, *WIDE, *SHORT), out, console=Silent())
    return out


@pytest.fixture(scope="module")
def influential(llama_directory: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the two layers of greatest influence."""
    out = tmp_path_factory.mktemp("influential") / "run"
    pipeline.run(recipe(llama_directory, text, *INFLUENTIAL, *SHORT), out, console=Silent())
    return out


INFLUENTIAL = ("--inherit.layers", "influence:2", "--controls", "[cut]")


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(directory).state_dict())


def test_every_control_is_trained_on_the_same_steps_and_compared(wide: Path) -> None:
    result = read_json(wide / "result.json")
    assert list(result["controls"]) == ["random", "cut", "stack", "attention+block_norms"]
    assert set(result["differences"]) == {"random", "stack", "attention+block_norms"}
    steps = [
        [(r["step"], r["tokens"]) for r in read_jsonl(directory / "metrics.jsonl") if r["kind"] == "step"]
        for directory in (wide, *(wide / "controls").iterdir())
    ]
    assert len(steps) == 4
    assert all(one == steps[0] for one in steps)
    sizes = {model["parameters"] for model in (result["target"], *result["controls"].values())}
    assert len(sizes) == 1


def test_layers_that_are_no_prefix_are_cut_and_recorded(wide: Path, llama_directory: Path) -> None:
    record = read_json(wide / "inheritance.json")
    assert (record["layers_kept"], record["layers_word"], record["init"]) == ([0, 3], "first:1+last:1", "inherit")
    assert [block["source"] for block in record["proof"]["blocks"]] == [0, 3]
    start, reference = tensors(wide / "starts" / "inherit"), tensors(llama_directory)
    assert torch.equal(start["model.layers.1.mlp.up_proj.weight"], reference["model.layers.3.mlp.up_proj.weight"])


def test_exported_controls_reload_and_say_where_they_come_from(wide: Path) -> None:
    kept = {"stack": [0, 0], "attention+block_norms": [0, 3]}
    for directory in (wide / "controls").iterdir():
        model = AutoModelForCausalLM.from_pretrained(directory / "model")
        AutoTokenizer.from_pretrained(directory / "model")
        lineage = model.config.inheritune
        if directory.name == "random":
            assert lineage == {"initialisation": "random"}
        else:
            assert (lineage["init"], lineage["layers_kept"]) == (directory.name, kept[directory.name])
    lineage = AutoModelForCausalLM.from_pretrained(wide / "model").config.inheritune
    assert (lineage["init"], lineage["layers_kept"]) == ("inherit", [0, 3])


def test_controls_start_from_what_they_are_called(
    llama_directory: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: dict[str, dict[str, torch.Tensor]] = {}

    class Watched(Trainer):
        def run(self) -> Trained:
            starts[self.directory.name] = {name: value.clone() for name, value in self.model.state_dict().items()}
            return super().run()

    monkeypatch.setattr(models, "Trainer", Watched)
    out = tmp_path / "target"
    pipeline.run(recipe(llama_directory, text, *WIDE, *SHORT, "--train.max_steps", "3"), out, console=Silent())
    reference, first, last = tensors(llama_directory), "model.layers.0.", "model.layers.1."
    query, up = "self_attn.q_proj.weight", "mlp.up_proj.weight"
    for name in ("target", "stack", "attention+block_norms"):
        assert torch.equal(starts[name][first + query], reference[first + query])
    for part in (query, up):
        assert torch.equal(starts["target"][last + part], reference["model.layers.3." + part])
        assert torch.equal(starts["stack"][last + part], reference[first + part])
    partly, random = starts["attention+block_norms"], starts["random"]
    assert torch.equal(partly[last + query], reference["model.layers.3." + query])
    for name in (first + up, last + up, "model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(partly[name], random[name]), "what is not inherited is the random control's"
        assert not any(torch.equal(partly[name], value) for value in reference.values())
    assert not torch.equal(random[first + query], reference[first + query])


def test_a_run_with_controls_repeats(wide: Path, tmp_path: Path) -> None:
    pipeline.run(recipes.load_recipe(str(wide / "recipe.yaml")), tmp_path / "again", console=Silent())
    for name in ("result.json", "inheritance.json", "controls/stack/model/model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (wide / name).read_bytes(), name


def test_layers_of_the_greatest_influence_are_kept(influential: Path, llama_directory: Path) -> None:
    found = read_json(influential / "layer_choice.json")
    assert (found["measure"], len(found["angular"])) == ("influence", 4)
    assert found["layers"] == sorted(sorted(range(4), key=lambda layer: -found["influence"][layer])[:2])
    assert (found["set"], found["tokens"]) == ("train", 2000 // 32 * 32)
    record = read_json(influential / "inheritance.json")
    assert (record["layers_kept"], record["layers_word"]) == (found["layers"], "influence:2")
    assert (
        AutoModelForCausalLM.from_pretrained(influential / "model").config.inheritune["layers_kept"]
        == (found["layers"])
    )
    assert "layer_choice" in read_json(influential / "ledger.json")


@pytest.mark.parametrize(
    "lost",
    [
        *(["losses/reference.json"], ["losses/cut.json"], ["losses/target.json"], ["losses/stack.json"]),
        *(["inheritance.json"], ["reference.json"], ["starts/inherit"], ["starts/stack"], ["starts"], ["data.json"]),
        ["environment.json", "report.html", "controls/stack/checkpoints", "checkpoints"],
        ["starts", "inheritance.json", "losses", "controls/random/model", "controls/attention+block_norms/model"],
    ],
    ids=" ".join,
)
def test_a_run_that_lost_records_makes_them_again(
    lost: list[str], wide: Path, llama_directory: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(wide, out)
    for name in ("result.json", *lost):
        shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink()
    pipeline.run(recipe(llama_directory, text, *WIDE, *SHORT), out, console=Silent())
    for name in ("result.json", "inheritance.json", "losses/cut.json", "losses/stack.json", "reference.json"):
        assert (out / name).read_bytes() == (wide / name).read_bytes(), name
    assert (out / "starts" / "inherit").is_dir()


@pytest.mark.parametrize(
    "lost", [["layer_choice.json"], ["layer_choice.json", "inheritance.json", "starts"], ["starts"]]
)
def test_a_run_that_lost_what_its_layers_are_finds_them_again(
    lost: list[str], influential: Path, llama_directory: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(influential, out)
    for name in ("result.json", *lost):
        shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink()
    pipeline.run(recipe(llama_directory, text, *INFLUENTIAL, *SHORT), out, console=Silent())
    for name in ("result.json", "inheritance.json", "layer_choice.json"):
        assert (out / name).read_bytes() == (influential / name).read_bytes(), name


def test_a_run_that_an_earlier_version_began_keeps_the_layers_that_it_chose(
    influential: Path, llama_directory: Path, text: Path, tmp_path: Path
) -> None:
    """Its record has another name, and need not be what this version would choose."""
    out = tmp_path / "run"
    shutil.copytree(influential, out)
    kept = [1, 3] if read_json(influential / "layer_choice.json")["layers"] != [1, 3] else [0, 2]
    for name in ("result.json", "layer_choice.json", "inheritance.json", "starts", "losses", "model", "checkpoints"):
        shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink()
    earlier = {"layers": kept, "influence": [0.5, 0.75, 0.5, 0.75], "tokens": 1984, "set": "train"}
    (out / "influence.json").write_text(json.dumps(earlier))
    pipeline.run(recipe(llama_directory, text, *INFLUENTIAL, *SHORT), out, console=Silent(), until="inherit")
    assert read_json(out / "inheritance.json")["layers_kept"] == kept
    assert not (out / "layer_choice.json").exists()


def test_all_but_the_stretch_that_turns_least_is_kept(llama_directory: Path, text: Path, tmp_path: Path) -> None:
    flags = ("--inherit.layers", "angular:2", "--controls", "[]", *SHORT)
    out = tmp_path / "run"
    pipeline.run(recipe(llama_directory, text, *flags), out, console=Silent(), until="inherit")
    found = read_json(out / "layer_choice.json")
    first = min(range(3), key=lambda start: found["angular"][1][start])
    assert found["layers"] == [layer for layer in range(4) if not first <= layer < first + 2]
    assert (found["measure"], found["set"], found["tokens"]) == ("angular", "train", 2000 // 32 * 32)
    record = read_json(out / "inheritance.json")
    assert (record["layers_kept"], record["layers_word"]) == (found["layers"], "angular:2")


def test_an_init_of_parts_is_the_targets(llama_directory: Path, text: Path, tmp_path: Path) -> None:
    flags = (*SHORT, "--inherit.init", "mlp+attention", "--controls", "[inherit, random]")
    result = pipeline.run(recipe(llama_directory, text, *flags), tmp_path / "r", console=Silent())
    assert result["init"] == "attention+mlp"
    assert set(result["controls"]) == {"inherit", "random"}
    assert "init: attention+mlp" in result["verdict"]
    record = read_json(tmp_path / "r" / "inheritance.json")
    assert (record["init"], record["layers_kept"]) == ("attention+mlp", [0, 1])
    statuses = {tensor["name"]: tensor["status"] for tensor in record["tensors"]}
    assert {name for name, status in statuses.items() if status == "inherited"} == {
        name for name in statuses if "self_attn" in name or ".mlp." in name
    }
    assert record["counts"] == {"inherited": 14, "tied": 0, "fresh": 7}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "r" / "model").config.inheritune["init"] == "attention+mlp"
    assert (tmp_path / "r" / "report.html").exists()


def test_a_layer_word_that_the_family_cannot_express_is_refused_before_anything_is_prepared(
    gpt2_directory: Path, text: Path, tmp_path: Path
) -> None:
    """GPT-2 may divide attention by the block's index plus one, so that a block cannot move."""
    reference = tmp_path / "reference"
    shutil.copytree(gpt2_directory, reference)
    config = json.loads((reference / "config.json").read_text())
    (reference / "config.json").write_text(json.dumps({**config, "scale_attn_by_inverse_layer_idx": True}))
    for flags in (("--inherit.layers", "1,3"), ("--controls", "[stack]")):
        console = Silent()
        with pytest.raises(Refused) as refused:
            pipeline.run(recipe(reference, text, *flags), tmp_path / "new" / "run", console=console)
        assert console.lines == []
        assert "layers" in str(refused.value)
        assert "\n" not in str(refused.value)
        assert not (tmp_path / "new").exists()
    result = pipeline.run(
        recipe(reference, text, *SHORT, "--controls", "[]", "--data.development_share", "0"),
        tmp_path / "prefix",
        console=Silent(),
    )
    assert result["state"] == "done"


CODE = {
    "configuration_own.py": """
from transformers import LlamaConfig


class OwnConfig(LlamaConfig):
    model_type = "own_llama"
""",
    "modeling_own.py": """
from transformers import LlamaForCausalLM

from .configuration_own import OwnConfig


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
""",
}


def test_a_reference_with_code_of_its_own(llama_directory: Path, text: Path, tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    shutil.copytree(llama_directory, reference)
    for name, code in CODE.items():
        (reference / name).write_text(code)
    config = json.loads((reference / "config.json").read_text())
    places = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    own = {"model_type": "own_llama", "architectures": ["OwnForCausalLM"], "auto_map": places}
    (reference / "config.json").write_text(json.dumps(config | own))
    flags = (*SHORT, "--inherit.layers", "last:2", "--controls", "[random, mlp]")
    with pytest.raises(Refused, match="brings code of its own, which runs only on your word"):
        pipeline.run(recipe(reference, text, *flags), tmp_path / "run", console=Silent())
    assert not (tmp_path / "run").exists()
    out = tmp_path / "trusted"
    result = pipeline.run(recipe(reference, text, *flags, "--trust_remote_code", "true"), out, console=Silent())
    assert result["state"] == "done"
    for directory in (out / "model", out / "controls" / "mlp" / "model"):
        model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)
        assert type(model).__name__ == "OwnForCausalLM"
        assert model.config.num_hidden_layers == 2


def spoil_recipe(out: Path) -> str:
    (out / "recipe.yaml").write_text("[")
    return "recipe.yaml: damaged"


def spoil_ledger(out: Path) -> str:
    (out / "ledger.json").unlink()
    (out / "result.json").write_text("[]")
    return "ledger.json: has no entry of the target's training"


def spoil_ledgers_kind(out: Path) -> str:
    (out / "ledger.json").write_text("[1]")
    (out / "result.json").unlink()
    return "ledger.json: damaged, it is no record; restore it from a copy, or run the recipe into another --out"


def spoil_finished_ledger(out: Path) -> str:
    (out / "ledger.json").write_text("{")
    return "restore it from a copy, or run the recipe into another --out"


def spoil_data(out: Path) -> str:
    (out / "data.json").write_text("{}")
    (out / "result.json").unlink()
    return "data.json: damaged, it has no fingerprint; delete it and give the same command again"


def spoil_reference(out: Path) -> str:
    (out / "reference.json").write_text("[1]")
    (out / "result.json").unlink()
    return "reference.json: damaged, it is no record; delete it and give the same command again"


def spoil_model(out: Path) -> str:
    (out / "model" / "model.safetensors").unlink()
    (out / "losses" / "target.json").unlink()
    (out / "result.json").unlink()
    return "model: cannot be loaded"


def spoil_weights(out: Path) -> str:
    path = out / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    (out / "losses" / "target.json").unlink()
    (out / "result.json").unlink()
    return "model: cannot be loaded"


def spoil_start(out: Path) -> str:
    (out / "starts" / "inherit" / "inheritance.json").unlink()
    (out / "inheritance.json").unlink()
    (out / "result.json").unlink()
    return "starts/inherit: damaged"


def spoil_shard(out: Path) -> str:
    path = out / "data" / "train" / "00000.ds"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    (out / "result.json").unlink()
    return "00000.ds: damaged"


SPOILT = [
    *(spoil_recipe, spoil_ledger, spoil_ledgers_kind, spoil_finished_ledger, spoil_data, spoil_reference, spoil_model),
    *(spoil_weights, spoil_start, spoil_shard),
]


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_damaged_run_is_told_in_one_line(
    spoil: Callable[[Path], str], finished: Path, llama_directory: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    said = spoil(out)
    with pytest.raises(InherituneError) as error:
        pipeline.run(recipe(llama_directory, text), out, console=Silent())
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_that_cannot_keep_documents_apart_is_refused_before_anything_is_written(
    tokenizer_directory: Path, text: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=320, hidden_size=32, n_layer=4, n_head=4)
    BloomForCausalLM(config).save_pretrained(tmp_path / "bloom")
    shutil.copytree(tokenizer_directory, tmp_path / "bloom", dirs_exist_ok=True)
    with pytest.raises(Refused, match=r"data\.document_mask: BloomForCausalLM lets documents see each other"):
        pipeline.run(recipe(tmp_path / "bloom", text, "--data.document_mask", "true"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_lost_best_weights_are_told_and_training_goes_on(llama_directory: Path, text: Path, tmp_path: Path) -> None:
    asked = recipe(
        llama_directory, text, "--train.export", "best", "--controls", "[]", "--train.validate_every_steps", "4"
    )
    console = Silent(stop_after=12)
    with pytest.raises(Interrupted):
        pipeline.run(asked, tmp_path / "run", console=console)
    shutil.rmtree(tmp_path / "run" / "best")
    console = Silent()
    result = pipeline.run(asked, tmp_path / "run", console=console)
    assert result["state"] == "done"
    assert [line for line in console.lines if "What is best from here on is exported" in line]


def test_a_finished_runs_record_stays_as_it_is(finished: Path, llama_directory: Path, text: Path) -> None:
    before = (finished / "recipe.yaml").read_bytes()
    flags = ["--train.micro_batch_sequences", "2", "--train.activation_checkpointing", "true"]
    again = recipe(llama_directory, text, *flags, "--train.offload_optimizer", "true")
    assert pipeline.run(again, finished, console=Silent())["state"] == "done"
    assert (finished / "recipe.yaml").read_bytes() == before
