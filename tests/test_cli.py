"""Commands: what they write, what they refuse, and what help costs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import inheritune
from inheritune.arms import canonical_init
from inheritune.cli import COMMANDS, main
from inheritune.console import Console
from inheritune.surgery import spelled


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"{name} {command.arguments}" in said
        assert command.summary in said


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself_without_torch(name: str) -> None:
    code = (
        "import sys\nfrom inheritune.cli import main\n"
        f"try:\n    main([{name!r}, '--help'])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert 'torch' not in sys.modules, 'help imports torch'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: inheritune {name}" in done.stdout


def test_what_is_imported_says_nothing(tmp_path: Path) -> None:
    """Libraries that transformers takes up where it finds them may have something to say of themselves."""
    words = [
        sys.executable,
        "-m",
        "inheritune",
        "inherit",
        "packaged:demo",
        "--layers",
        "1",
        "--out",
        str(tmp_path / "one"),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stderr.startswith("packaged:demo: ")


def test_a_recipe_as_it_would_be_run_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "smollm2", "--train.learning_rate", "2e-3", "--print_config"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    again = tmp_path / "again.yaml"
    again.write_text(shown)
    assert main(["run", str(again), "--print_config"]) == 0
    assert capsys.readouterr().out == shown
    assert "name: smollm2" in shown
    assert "learning_rate: 0.002" in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("inheritune ")


@pytest.fixture(scope="module")
def shards(tokenizer_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared text of the tokenizer that the tiny references have: a training, a development and a validation set."""
    directory = tmp_path_factory.mktemp("prepared")
    prepare(tokenizer_directory, directory, directory / "shards")
    return directory / "shards"


def prepare(tokenizer: Path, directory: Path, out: Path, share: str = "0.1") -> None:
    text = directory / "text.txt"
    text.write_text("\n\n".join(f"This is document number {number}, and it is short." for number in range(300)))
    words = [str(text), "--tokenizer", str(tokenizer), "--document_separator", "\\n\\n", "--out", str(out)]
    shares = ["--validation_share", share, "--development_share", share]
    assert main(["prepare", *words, *shares, "--tokens", "2K", "--workers", "1"]) == 0


def record_of(out: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out / "inheritance.json").read_text())
    return record


# ---- inherit


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("3", [0, 1, 2]),
        ("half", [0, 1]),
        ("last:1", [3]),
        ("every:2", [0, 2]),
        ("0-1,3", [0, 1, 3]),
        ("first:1+last:1", [0, 3]),
        ("4", [0, 1, 2, 3]),
    ],
)
def test_inherit_writes_a_model_and_its_account(
    word: str, kept: list[int], llama_directory: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "small"
    assert main(["inherit", str(llama_directory), "--layers", word, "--out", str(out)]) == 0
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == len(kept)
    record = record_of(out)
    assert (record["layers_kept"], record["layers_word"], record["init"]) == (kept, word, "inherit")
    assert record["counts"]["fresh"] == 0
    said = capfd.readouterr()
    assert said.out == ""
    assert f"layers to keep: {spelled(tuple(kept))} of 0 to 3; init: inherit" in said.err.splitlines()
    assert [entry.name for entry in out.parent.iterdir()] == ["small"]


def test_an_empty_directory_and_a_link_to_one_will_do(llama_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert main(["inherit", str(llama_directory), "--layers", "1", "--out", str(tmp_path / "link")]) == 0
    assert record_of(tmp_path / "empty")["layers_kept"] == [0]


def test_layers_of_the_greatest_influence(shards: Path, llama_directory: Path, tmp_path: Path) -> None:
    words = ["inherit", str(llama_directory), "--layers", "influence:2", "--data", str(shards)]
    assert main([*words, "--out", str(tmp_path / "small")]) == 0
    record = record_of(tmp_path / "small")
    found = record["layer_choice"]
    greatest = sorted(range(4), key=lambda layer: -found["influence"][layer])[:2]
    assert record["layers_kept"] == found["layers"] == sorted(greatest)
    assert record["layers_word"] == "influence:2"
    assert (found["set"], found["tokens"]) == ("train", 2000 // 128 * 128)  # whole sequences of its 128 positions


def test_layers_outside_the_stretch_that_turns_least(
    shards: Path, llama_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["inherit", str(llama_directory), "--layers", "angular:3", "--data", str(shards)]
    assert main([*words, "--out", str(tmp_path / "small")]) == 0
    record = record_of(tmp_path / "small")
    found = record["layer_choice"]
    (dropped,) = set(range(4)) - set(record["layers_kept"])
    assert found["angular"][0][dropped] == min(found["angular"][0])
    assert record["layers_kept"] == found["layers"]
    assert (record["layers_word"], found["measure"]) == ("angular:3", "angular")
    assert f"angular on 1,920 tokens: layers {spelled(tuple(found['layers']))}, outside" in capsys.readouterr().err
    # of the other measure there is the same record, from the same pass
    assert main([*words[:3], "influence:3", *words[4:], "--out", str(tmp_path / "other")]) == 0
    other = record_of(tmp_path / "other")["layer_choice"]
    assert (other["angular"], other["influence"]) == (found["angular"], found["influence"])


@pytest.mark.parametrize(
    ("init", "inherited"),
    [
        ("random", set()),
        ("attention+block_norms", {"self_attn", "input_layernorm", "post_attention_layernorm"}),
        ("head+final_norm+embeddings+block_norms+mlp", {"mlp", "norm", "embed_tokens", "lm_head", "input_layernorm",
                                                        "post_attention_layernorm"}),
    ],
)  # fmt: skip
def test_an_init_of_parts_draws_the_rest(init: str, inherited: set[str], llama_directory: Path, tmp_path: Path) -> None:
    def made(seed: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        out = tmp_path / seed
        words = ["--layers", "first:1+last:1", "--init", init, "--seed", seed, "--out", str(out)]
        assert main(["inherit", str(llama_directory), *words]) == 0
        return record_of(out), load_file(out / "model.safetensors")

    (record, tensors), (_, other) = made("0"), made("1")
    source = load_file(llama_directory / "model.safetensors")
    for tensor in record["tensors"]:
        name = tensor["name"]
        part = next(word for word in reversed(name.split(".")) if word not in ("weight", *PROJECTIONS))
        assert (tensor["status"] == "inherited") == (part in inherited), name
        same = torch.equal(tensors[name], source[name.replace("layers.1", "layers.3")])
        if not name.endswith("norm.weight"):  # ones, wherever they come from
            assert same == (part in inherited), name
            assert torch.equal(tensors[name], other[name]) == (part in inherited), "another seed draws other numbers"
    assert record["init"] == canonical_init(init)
    assert record["lineage"]["seed"] == 0


PROJECTIONS = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]


def test_a_stack_repeats_the_first_half(llama_directory: Path, tmp_path: Path) -> None:
    out = tmp_path / "stacked"
    assert main(["inherit", str(llama_directory), "--layers", "3", "--init", "stack", "--out", str(out)]) == 0
    assert record_of(out)["layers_kept"] == [0, 1, 0]
    tensors = load_file(out / "model.safetensors")
    name = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(tensors[name.format(0)], tensors[name.format(2)])
    assert not torch.equal(tensors[name.format(0)], tensors[name.format(1)])


# ---- scan


def test_a_scan_shows_every_prefix(
    shards: Path, llama_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["inherit", str(llama_directory), "--scan", "--data", str(shards)]
    assert main(words) == 0
    table = capsys.readouterr().out
    rows = [line.split() for line in table.splitlines() if "%" in line]
    assert [row[0] for row in rows if row[0].isdigit()] == ["1", "2", "3", "4"]
    out = tmp_path / "new" / "scan"
    assert main([*words, "--layers", "2", "--sequence_length", "16", "--out", str(tmp_path / "cut")]) == 0
    assert main([*words, "--sequence_length", "16", "--out", str(out)]) == 0
    said = capsys.readouterr()
    record = json.loads((out / "scan.json").read_text())
    assert f"the first 2 layers, untrained: {record['prefixes'][1]['loss']:.3f} nats a token" in said.err
    assert record["sequence_length"] == 16
    assert (out / "scan.svg").read_text().lstrip().startswith("<")
    assert sorted(file.name for file in out.iterdir()) == ["scan.json", "scan.svg"]
    # with --layers and --out there are both, the model and the scan
    assert json.loads((tmp_path / "cut" / "scan.json").read_text()) == record
    assert record_of(tmp_path / "cut")["layers_kept"] == [0, 1]


def test_a_scan_of_a_sample_says_so(
    shards: Path, llama_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["inherit", str(llama_directory), "--scan", "--data", str(shards)]
    records: list[dict[str, Any]] = []
    for flags in (["--positions", "100"], ["--positions", "all"], []):
        out = tmp_path / str(len(records))
        assert main([*words, *flags, "--out", str(out)]) == 0
        records.append(json.loads((out / "scan.json").read_text()))
        assert ("100 scored" in capsys.readouterr().out) == (flags[-1:] == ["100"])
    few, whole, plain = records
    assert (few["positions"], few["sample_seed"]) == (100, 0)
    assert (whole["positions"], whole["sample_seed"]) == (whole["tokens"], None)
    assert plain == whole, "a set of fewer tokens than are sampled is scored whole"
    assert (few["tokens"], few["bytes"], few["documents"]) == (whole["tokens"], whole["bytes"], whole["documents"])
    assert (few["influence"], few["angular"]) == (whole["influence"], whole["angular"])


def test_a_scan_tells_which_layers_a_measure_means(
    shards: Path, llama_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inherit", str(llama_directory), "--scan", "--data", str(shards), "--layers", "angular:1"]) == 0
    assert "outside the stretch that turns least" in capsys.readouterr().err


def test_a_prefix_scans_as_its_cut_measures(shards: Path, llama_directory: Path, tmp_path: Path) -> None:
    """The scan of a cut ends with what the reference's scan says of that prefix."""
    scanned = inheritune.scan(str(llama_directory), shards, console=Console())
    inheritune.inherit(str(llama_directory), 2, tmp_path / "cut", console=Console())
    again = inheritune.scan(str(tmp_path / "cut"), shards, console=Console())
    assert len(again["prefixes"]) == 2
    for one, other in zip(again["prefixes"], scanned["prefixes"][:2], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)
        assert one["parameters"] == other["parameters"]


def test_the_library_gives_what_the_command_writes(shards: Path, llama_directory: Path, tmp_path: Path) -> None:
    words = ["inherit", str(llama_directory), "--layers", "influence:1", "--data", str(shards)]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    record = inheritune.inherit(str(llama_directory), "influence:1", tmp_path / "two", data=shards, console=Console())
    assert json.loads(json.dumps(record)) == record_of(tmp_path / "one") == record_of(tmp_path / "two")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    assert main([*words[:2], "--scan", "--data", str(shards), "--out", str(tmp_path / "scan")]) == 0
    scanned = inheritune.scan(str(llama_directory), shards, console=Console())
    assert json.loads((tmp_path / "scan" / "scan.json").read_text()) == scanned


# ---- what inherit refuses

SHARDS, UNJUDGED, OUT = "{shards}", "{unjudged}", ["--out", "{tmp}/new/out"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--layers", "2"], "--out is missing"),
        (OUT, "--layers is missing"),
        ([], "--layers is missing"),
        (["--layers"], "--layers"),
        (["--layers", "0", *OUT], "'0' is not possible"),
        (["--layers", "5", *OUT], "from 1 to 4"),
        (["--layers", "", *OUT], "'' is not possible"),
        (["--layers", "4,0", *OUT], "layers 0 to 3"),
        (["--layers", "1,0", *OUT], "ascending"),
        (["--layers", "first:2+last:3", *OUT], "layer 1 twice"),
        (["--layers", "influence:2", *OUT], "give --data"),
        (["--layers", "influence:5", "--data", SHARDS, *OUT], "influence:5"),
        (["--layers", "influence:2", "--data", "{tmp}/nowhere", *OUT], "nowhere: no manifest.json"),
        (["--layers", "angular:2", *OUT], "layers: angular:2 is measured on tokens; give --data"),
        (["--layers", "angular:5", "--data", SHARDS, *OUT], "angular:5"),
        (["--layers", "2", "--data", "{tmp}/nowhere", *OUT], "nowhere: no manifest.json"),
        (["--layers", "2", "--data", "", *OUT], "--data '': cannot name a directory"),
        (["--layers", "2", "--data", "{tmp}/file", *OUT], "Not a directory"),
        (["--layers", "2", "--init", "atention", *OUT], "did you mean 'attention'"),
        (["--layers", "2", "--init", "mlp+mlp", *OUT], "distinct parts"),
        (["--layers", "2", "--init", "", *OUT], "init: '' is not possible"),
        (["--layers", "2", "--init", "cut", *OUT], "init: 'cut' is not possible"),
        (["--layers", "2", "--seed", "-1", *OUT], "--seed must be 0 or more"),
        (["--layers", "2", "--seed", "x", *OUT], "--seed cannot be 'x'"),
        (["--layers", "2", "--seed", str(2**63), *OUT], "below 2**63"),
        (["--layers", "2", "--revision", "main", *OUT], "a directory has no revision"),
        (["--layers", "2", "--trust_remote_code", "maybe", *OUT], "--trust_remote_code cannot be 'maybe'"),
        (["--layers", "2", "--sequence_length", "16", *OUT], "belongs to --scan"),
        (["--layers", "2", "--positions", "16", *OUT], "belongs to --scan"),
        (["--layers", "2", "--scan", "--data", SHARDS, "--positions", "0", *OUT], "--positions must be a number of 1"),
        (["--layers", "2", "--scan", "--data", SHARDS, "--positions", "some", *OUT], "of 1 or more, or all"),
        (["--layers", "2", "--layer", "3", *OUT], "--layer"),
        (["--layers", "2", "more", *OUT], "more"),
        (["--layers", "2", "--out", ""], "--out '': cannot name a directory"),
        (["--layers", "2", "--out", "{tmp}/file"], "not an empty directory"),
        (["--layers", "2", "--out", "{tmp}/full"], "not an empty directory"),
        (["--layers", "2", "--out", "{tmp}/file/out"], "Not a directory"),
        (["--layers", "2", "--out", "/proc/nowhere"], "/proc/nowhere: cannot be made"),
        (["--scan"], "give --data"),
        (["--scan", "--layers", "2", *OUT], "give --data"),
        (["--scan", "--data", "{tmp}/nowhere"], "nowhere: no manifest.json"),
        (["--scan", "--data", "{tmp}/nowhere", "--layers", "2", *OUT], "nowhere: no manifest.json"),
        (["--scan", "--data", UNJUDGED], "holds no validation set"),
        (["--scan", "--data", UNJUDGED, "--layers", "2", *OUT], "holds no validation set"),
        (["--scan", "--data", SHARDS, "--sequence_length", "1"], "--sequence_length must be 2 or more"),
        (["--scan", "--data", SHARDS, "--sequence_length", "x"], "--sequence_length cannot be 'x'"),
        (["--scan", "--data", SHARDS, "--sequence_length", "129"], "128 positions"),
        (["--scan", "--data", SHARDS, "--sequence_length", "129", "--layers", "2", *OUT], "128 positions"),
        (["--scan", "--data", SHARDS, "--layers", "9"], "from 1 to 4"),
        (["--scan", "--data", SHARDS, "--layers", "2", "--out", "{tmp}/full"], "not an empty directory"),
        (["--scan", "--data", SHARDS, "--out", "{tmp}/file"], "a file, not a directory"),
    ],
)
def test_what_inherit_refuses_is_one_line_and_leaves_nothing(
    flags: list[str], said: str, places: dict[str, Path], llama_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(places["tmp"].rglob("*"))
    assert main(["inherit", str(llama_directory), *(flag.format_map(places) for flag in flags)]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("inheritune: ")
    assert said in line
    assert captured.out == ""
    assert sorted(places["tmp"].rglob("*")) == before


@pytest.fixture
def places(shards: Path, unjudged: Path, tmp_path: Path) -> dict[str, Path]:
    """What the flags above name; `tmp` holds a file and a directory that is not empty."""
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    return {"tmp": tmp_path, "shards": shards, "unjudged": unjudged}


@pytest.fixture(scope="module")
def unjudged(tokenizer_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared text without a validation set."""
    directory = tmp_path_factory.mktemp("unjudged")
    prepare(tokenizer_directory, directory, directory / "shards", share="0")
    return directory / "shards"


def test_shards_of_another_tokenizer_are_refused(
    shards: Path, llama_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "reference"
    shutil.copytree(llama_directory, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert main(["inherit", str(other), "--scan", "--data", str(shards)]) == 2
    assert "prepared with another tokenizer" in capsys.readouterr().err


def test_a_target_that_cannot_be_proven_is_not_written(
    llama_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(llama_directory, tmp_path / "reference")
    file = tmp_path / "reference" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"] *= float("nan")
    save_file(tensors, file, {"format": "pt"})
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "new" / "out"
    assert main(["inherit", str(tmp_path / "reference"), "--layers", "2", "--out", str(out)]) == 1
    assert "not finite" in capsys.readouterr().err.splitlines()[-1]
    assert sorted(tmp_path.rglob("*")) == before


def test_prepare_leaves_out_what_a_packaged_reference_saw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"This is document number {number}, and it is short." for number in range(300)))
    words = [str(text), "--document_separator", "\\n\\n", "--tokens", "2K", "--exclude_seen", "reference"]
    assert main(["prepare", *words, "--tokenizer", "packaged:demo", "--out", str(tmp_path / "out")]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["config"]["exclude_seen"].startswith("sha256:")
    assert main(["prepare", *words, "--tokenizer", str(tmp_path), "--out", str(tmp_path / "other")]) == 2
    assert "the reference ships no seen.txt" in capsys.readouterr().err


def test_prepare_writes_shards(tokenizer_directory: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"This is document number {number}, and it is short." for number in range(300)))
    out = tmp_path / "shards"
    words = [str(text), "--tokenizer", str(tokenizer_directory), "--document_separator", "\\n\\n", "--out", str(out)]
    assert main(["prepare", *words, "--tokens", "2K", "--validation_share", "0.1", "--workers", "1"]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["sets"]["train"]["tokens"] == 2000
    assert manifest["sets"]["held-out"]["documents"] > 5


def test_it_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "inheritune", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("inheritune ")
