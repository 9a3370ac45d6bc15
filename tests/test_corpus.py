"""Sources to shards: no token lost, none invented, none twice; exact budgets; the same bytes however it is run."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from inheritune.config import DataConfig, SourceConfig, TokenCount
from inheritune.corpus import (
    build,
    check_sources,
    hub,
    iterate_training_texts,
    plan,
    prepare,
    shards,
    steps,
    tokenizing,
)
from inheritune.corpus.selection import split_budget
from inheritune.errors import Failed, Refused
from inheritune.tokens import open_prepared

WORDS = ["the", "layer", "keeps", "<|endoftext|>", "</s>", "naïve", "漢字", "🙂", "x = 1\n", "  "]


def make_texts(count: int, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    return [f"{seed}-{i} " + " ".join(generator.choices(WORDS, k=generator.randint(1, 60))) for i in range(count)]


def write_jsonl(path: Path, texts: list[str]) -> SourceConfig:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return SourceConfig(str(path))


@pytest.fixture
def texts() -> list[str]:
    return make_texts(300)


@pytest.fixture
def data(tmp_path: Path, texts: list[str]) -> DataConfig:
    """Three hundred documents, a tenth of them for each held-out set, one worker."""
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    return DataConfig(sources=[source], validation_share=0.1, development_share=0.1, workers=1)


@functools.cache
def load_tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


class Shards:
    """A prepared directory read by other means than the package's own, and its documents decoded."""

    def __init__(self, directory: Path, tokenizer_directory: Path) -> None:
        self.directory = directory
        self.manifest = json.loads((directory / "manifest.json").read_text())
        self.tokenizer = Tokenizer.from_file(str(tokenizer_directory / "tokenizer.json"))
        self.end = self.tokenizer.token_to_id("<|endoftext|>")

    def documents(self, name: str) -> list[list[int]]:
        found: list[list[int]] = []
        for file in self.manifest["sets"][name]["files"]:
            path = self.directory / name / file["name"]
            tokens = np.fromfile(path, "<u2").tolist()
            ends = np.fromfile(f"{path}.index", "<u8").tolist()
            assert ends[-1] == len(tokens) == file["tokens"]
            found += [tokens[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        return found

    def texts(self, name: str) -> list[str]:
        """Whole documents' text; each must end with end-of-text, and hold it nowhere else."""
        decoded = []
        for tokens in self.documents(name):
            assert tokens[-1] == self.end
            assert self.end not in tokens[:-1]
            decoded.append(self.tokenizer.decode(tokens[:-1], skip_special_tokens=False))
        return decoded

    def sizes(self, name: str) -> list[int]:
        files = self.manifest["sets"][name]["files"]
        return [int(n) for file in files for n in np.fromfile(self.directory / name / f"{file['name']}.bytes", "<u8")]


def run(data: DataConfig, tokenizer_directory: Path, out: Path) -> Shards:
    manifest = prepare(data, load_tokenizer(tokenizer_directory), out)
    shards = Shards(out, tokenizer_directory)
    assert shards.manifest == json.loads(json.dumps(manifest))
    return shards


def refused(data: DataConfig, tokenizer_directory: Path, out: Path) -> str:
    """The one line that refuses `data`; nothing may be left behind."""
    with pytest.raises(Refused) as caught:
        prepare(data, load_tokenizer(tokenizer_directory), out)
    assert not out.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=strategies.lists(strategies.text("ab <|endoftext|>\n漢🙂\r", max_size=30), min_size=1, max_size=30),
    separated=strategies.booleans(),
)
def test_no_token_is_lost_none_invented_none_twice(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_directory: Path, texts: list[str], separated: bool
) -> None:
    directory = tmp_path_factory.mktemp("property")
    if separated:
        (directory / "a.txt").write_bytes("##".join(texts).encode())
        source, texts = SourceConfig(str(directory / "a.txt"), document_separator="##"), "##".join(texts).split("##")
    else:
        source = write_jsonl(directory / "a.jsonl", texts)
    expected = Counter(text for text in texts if text.strip())
    data = DataConfig([source], validation_share=0.3, development_share=0.3, workers=1)
    try:
        found = run(data, tokenizer_directory, directory / "out")
    except Refused:  # so few documents that a set is empty
        return
    sets = {name: found.texts(name) for name in ("train", "development", "held-out")}
    assert sum((Counter(part) for part in sets.values()), Counter()) == expected
    for name, part in sets.items():
        assert found.sizes(name) == [len(text.encode()) for text in part]
    assert not set(sets["train"]) & set(sets["held-out"])
    assert not set(sets["train"]) & set(sets["development"])


def test_a_budget_is_exact_and_a_smaller_one_is_its_beginning(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig
) -> None:
    streams = []
    for tokens in (1, 777, 5000):
        found = run(dataclasses.replace(data, tokens=TokenCount(tokens)), tokenizer_directory, tmp_path / str(tokens))
        documents = found.documents("train")
        streams.append([token for document in documents for token in document])
        assert len(streams[-1]) == tokens == found.manifest["sets"]["train"]["tokens"]
        cut = [document for document in documents if document[-1] != found.end]
        assert cut in ([], documents[-1:])
        assert found.manifest["sets"]["train"]["cut_documents"] == len(cut)
        assert found.sizes("train")[-1] == len(found.tokenizer.decode(documents[-1]).encode()) or cut == []
    assert streams[2][:777] == streams[1]
    assert streams[2][:1] == streams[0]


def test_only_what_is_needed_is_tokenised(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inheritune.corpus.selection._PROBE_TOKENS", 300)
    source = write_jsonl(tmp_path / "many.jsonl", make_texts(5000))
    data = dataclasses.replace(
        data,
        sources=[source],
        tokens=TokenCount(20_000),
        validation_tokens=TokenCount(500),
        development_tokens=TokenCount(500),
    )
    lines: list[str] = []
    prepare(data, load_tokenizer(tokenizer_directory), tmp_path / "out", report=lines.append)
    tokenised = sum(
        int(line.split(" bytes, ")[1].split(" tokens")[0].replace(",", "")) for line in lines if "tokenised" in line
    )
    assert 21_000 <= tokenised <= 23_000


def test_another_seed_takes_other_documents_but_judges_by_the_same(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig
) -> None:
    first = run(data, tokenizer_directory, tmp_path / "0")
    second = run(dataclasses.replace(data, seed=1), tokenizer_directory, tmp_path / "1")
    assert first.texts("train") != second.texts("train")
    assert sorted(first.texts("train")) == sorted(second.texts("train"))
    for name in ("held-out", "development"):
        assert first.documents(name) == second.documents(name)


def test_a_budget_larger_than_the_data_says_how_much_there_is(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig
) -> None:
    there = run(data, tokenizer_directory, tmp_path / "all").manifest["sets"]["train"]["tokens"]
    line = refused(dataclasses.replace(data, tokens=TokenCount("1B")), tokenizer_directory, tmp_path / "out")
    assert f"hold {there:,} tokens, data.tokens asks 1,000,000,000" in line
    exact = dataclasses.replace(data, tokens=TokenCount(there))
    assert run(exact, tokenizer_directory, tmp_path / "exact").manifest["sets"]["train"]["cut_documents"] == 0


def test_a_source_that_may_repeat_fills_its_share(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig, texts: list[str]
) -> None:
    there = run(data, tokenizer_directory, tmp_path / "all").manifest["sets"]["train"]["tokens"]
    source = dataclasses.replace(data.sources[0], repeat=True)
    data = dataclasses.replace(data, sources=[source], tokens=TokenCount(3 * there))
    found = run(data, tokenizer_directory, tmp_path / "out")
    assert set(Counter(found.texts("train")).values()) == {3}
    assert found.manifest["sets"]["train"]["unique_tokens"] == there
    assert open_prepared(tmp_path / "out").unique_training_tokens == there
    assert open_prepared(tmp_path / "all").unique_training_tokens is None


@given(
    tokens=strategies.integers(1, 10**12),
    weights=strategies.lists(strategies.floats(1e-3, 1e3), min_size=1, max_size=9),
)
def test_shares_sum_to_the_budget_and_are_within_a_token(tokens: int, weights: list[float]) -> None:
    shares = split_budget(tokens, weights)
    assert sum(shares) == tokens
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - tokens * weight / sum(weights)) <= 1 + tokens * 1e-12


def test_weights_are_shares_of_tokens_all_along(tmp_path: Path, tokenizer_directory: Path, data: DataConfig) -> None:
    sources = [
        dataclasses.replace(write_jsonl(tmp_path / "a.jsonl", make_texts(400, 1)), weight=3),
        dataclasses.replace(write_jsonl(tmp_path / "b.jsonl", make_texts(900, 2)), weight=1),
    ]
    data = dataclasses.replace(data, sources=sources, tokens=TokenCount(20_001))
    found = run(data, tokenizer_directory, tmp_path / "out")
    assert [source["tokens_selected"]["train"] for source in found.manifest["sources"]] == [15_001, 5_000]
    documents = found.documents("train")
    first = [document for document in documents if found.tokenizer.decode(document).startswith("1-")]
    assert sum(map(len, first)) == 15_001
    half = documents[: len(documents) // 2]
    share = sum(len(document) for document in half if document in first) / sum(map(len, half))
    assert 0.7 < share < 0.8


def test_weights_without_a_budget_are_refused(tmp_path: Path, tokenizer_directory: Path, data: DataConfig) -> None:
    several = dataclasses.replace(data, sources=[*data.sources, *data.sources])
    assert "weights are shares of a budget" in refused(several, tokenizer_directory, tmp_path / "out")


@pytest.mark.parametrize("policy", ["keep", "drop"])
def test_copies_of_a_document_fall_into_one_set(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig, texts: list[str], policy: Any
) -> None:
    source = write_jsonl(tmp_path / "twice.jsonl", [*texts, *texts])
    found = run(
        dataclasses.replace(data, sources=[source], exact_duplicates=policy), tokenizer_directory, tmp_path / "out"
    )
    sets = [Counter(found.texts(name)) for name in ("train", "development", "held-out")]
    assert all(set(part.values()) == {2 if policy == "keep" else 1} for part in sets)
    assert sum(len(part) for part in sets) == len(texts)
    assert found.manifest["duplicates"] == len(texts)


def test_held_out_documents_are_cut_to_their_beginning(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig
) -> None:
    full = run(data, tokenizer_directory, tmp_path / "full")
    limited = dataclasses.replace(data, held_out_document_tokens=20, validation_tokens=TokenCount(333))
    found = run(limited, tokenizer_directory, tmp_path / "out")
    documents = found.documents("held-out")
    assert sum(map(len, documents)) == 333
    expected = [document[:20] for document in full.documents("held-out")][: len(documents)]
    assert documents[:-1] == expected[:-1]
    assert documents[-1] == expected[-1][: len(documents[-1])]
    assert found.documents("train") == full.documents("train")
    cut = sum(document[-1] != found.end for document in documents)
    assert 0 < cut == found.manifest["sets"]["held-out"]["cut_documents"]
    for document, size in zip(documents, found.sizes("held-out"), strict=True):
        text = found.tokenizer.decode([token for token in document if token != found.end]).replace("�", "").encode()
        assert len(text) <= size <= len(text) + 4  # a character that is cut counts whole


def test_training_documents_are_cut_to_their_beginning(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig
) -> None:
    full = run(data, tokenizer_directory, tmp_path / "full")
    limited = dataclasses.replace(data, document_tokens=20, tokens=TokenCount(700))
    found = run(limited, tokenizer_directory, tmp_path / "out")
    documents = found.documents("train")
    assert sum(map(len, documents)) == 700
    expected = [document[:20] for document in full.documents("train")][: len(documents)]
    assert documents[:-1] == expected[:-1]
    assert documents[-1] == expected[-1][: len(documents[-1])]
    assert found.documents("held-out") == full.documents("held-out")
    line = refused(dataclasses.replace(limited, tokens=TokenCount("1M")), tokenizer_directory, tmp_path / "more")
    assert "at 20 a document" in line
    assert "raise data.document_tokens" in line


def test_an_empty_validation_set_is_refused_with_what_to_do(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig
) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    data = dataclasses.replace(data, sources=[SourceConfig(str(tmp_path / "a.txt"))])
    line = refused(data, tokenizer_directory, tmp_path / "out")
    assert "held-out: the validation set is empty" in line or "all its documents fall into the held-out sets" in line
    assert "data.validation_share" in line
    assert "document_separator" in line


def test_no_share_no_set(tmp_path: Path, tokenizer_directory: Path, data: DataConfig, texts: list[str]) -> None:
    data = dataclasses.replace(data, validation_share=0, development_share=0)
    found = run(data, tokenizer_directory, tmp_path / "out")
    assert list(found.manifest["sets"]) == ["train"]
    assert sorted(found.texts("train")) == sorted(texts)


def test_seen_documents_leave_the_held_out_sets(tmp_path: Path, tokenizer_directory: Path, data: DataConfig) -> None:
    first = run(data, tokenizer_directory, tmp_path / "first")
    listed = sorted(hashlib.blake2b(text.encode(), digest_size=16).hexdigest()[:16] for text in first.texts("train"))
    assert (tmp_path / "first" / "train.hashes").read_text().split() == listed
    judged = first.texts("held-out")
    for width in (16, 32):
        seen = [hashlib.blake2b(text.encode(), digest_size=16).hexdigest()[:width] for text in judged[:5]]
        (tmp_path / "seen").write_text("\n".join(seen))
        data = dataclasses.replace(data, exclude_seen=str(tmp_path / "seen"))
        found = run(data, tokenizer_directory, tmp_path / f"out{width}")
        assert found.texts("held-out") == judged[5:]
        assert found.manifest["seen_removed"] == {"held-out": 5, "development": 0}
    (tmp_path / "seen").write_text("no hash at all")
    assert "seen:1: no content hash" in refused(data, tokenizer_directory, tmp_path / "out")


def test_a_further_validation_set_is_taken_out_of_the_training_set(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig, texts: list[str]
) -> None:
    trained = run(data, tokenizer_directory, tmp_path / "first").texts("train")
    general = write_jsonl(tmp_path / "general.jsonl", [*make_texts(20, 9), *trained[:7]])
    found = run(dataclasses.replace(data, validation_sets={"general": general}), tokenizer_directory, tmp_path / "out")
    assert found.texts("train") == trained[7:]
    assert sorted(found.texts("general")) == sorted([*make_texts(20, 9), *trained[:7]])
    assert found.manifest["validation_removed_from_train"] == 7


def test_a_bad_line_deep_in_a_file_leaves_nothing_or_is_counted(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig, texts: list[str]
) -> None:
    path = Path(data.sources[0].path)
    path.write_text(path.read_text() + "{\n" + json.dumps({"text": " \n"}) + "\n")
    assert f"{path}:{len(texts) + 1}: not JSON" in refused(data, tokenizer_directory, tmp_path / "out")
    found = run(dataclasses.replace(data, on_bad_line="skip"), tokenizer_directory, tmp_path / "out")
    (source,) = found.manifest["sources"]
    assert (source["bad_lines"], source["empty"], source["documents"]) == (1, 1, len(texts))
    assert source["first_bad_line"].startswith(f"{path}:{len(texts) + 1}")


def test_begin_of_sequence_follows_the_tokenizer_or_the_setting(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig
) -> None:
    from transformers import PreTrainedTokenizerFast

    assert "no beginning-of-sequence" in refused(
        dataclasses.replace(data, add_bos="always"), tokenizer_directory, tmp_path / "none"
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_directory / "tokenizer.json"), eos_token="<|endoftext|>", bos_token="!"
    )
    plain = run(data, tokenizer_directory, tmp_path / "plain")
    assert plain.manifest["add_bos"] is False
    manifest = prepare(dataclasses.replace(data, add_bos="always"), tokenizer, tmp_path / "bos")
    assert manifest["add_bos"] is True
    found = Shards(tmp_path / "bos", tokenizer_directory)
    for name in ("train", "held-out"):
        assert found.documents(name) == [[tokenizer.bos_token_id, *document] for document in plain.documents(name)]


def test_a_tokenizer_without_end_of_text_is_refused(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig
) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_directory / "tokenizer.json"))
    with pytest.raises(Refused, match="no end-of-text token"):
        prepare(data, tokenizer, tmp_path / "out")
    with pytest.raises(Refused, match="no tokenizer can be loaded"):
        prepare(data, tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_finished_work_is_skipped_and_never_overwritten(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig
) -> None:
    out = tmp_path / "out"
    first = run(data, tokenizer_directory, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    source = Path(data.sources[0].path)
    source.rename(tmp_path / "moved")
    again = dataclasses.replace(data, workers=2, passes=5)
    assert prepare(again, load_tokenizer(tokenizer_directory), out)["fingerprint"] == first.manifest["fingerprint"]
    with pytest.raises(Refused, match=r"different preparation \(data.seed: 0 there, 1 here\)"):
        prepare(dataclasses.replace(data, seed=1), load_tokenizer(tokenizer_directory), out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    (tmp_path / "moved").rename(source)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(Refused, match="not empty"):
        prepare(data, load_tokenizer(tokenizer_directory), foreign)


def test_the_manifest_proves_the_files(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig, monkeypatch: Any
) -> None:
    monkeypatch.setattr(shards.write_set, "__defaults__", (1000,))
    found = run(data, tokenizer_directory, tmp_path / "out")
    entry = found.manifest["sets"]["train"]
    assert len(entry["files"]) > 3
    for file in entry["files"]:
        assert file["tokens"] <= 1000
        path = tmp_path / "out" / "train" / file["name"]
        for ending, key in (("", "sha256"), (".index", "index_sha256"), (".bytes", "bytes_sha256")):
            assert hashlib.sha256(Path(f"{path}{ending}").read_bytes()).hexdigest() == file[key]
    for key in ("documents", "tokens", "bytes", "cut_documents"):
        assert entry[key] == sum(file[key] for file in entry["files"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".lock", "development", "held-out", "manifest.json", "train", "train.hashes",
    ]  # fmt: skip


def test_datatrove_reads_the_shards(tmp_path: Path, tokenizer_directory: Path, data: DataConfig) -> None:
    from datatrove.utils.dataset import DatatroveFileDataset

    found = run(data, tokenizer_directory, tmp_path / "out")
    stream = [token for document in found.documents("train") for token in document]
    dataset = DatatroveFileDataset(str(tmp_path / "out" / "train" / "00000.ds"), seq_len=31, token_size=2)
    assert dataset[3]["input_ids"].tolist() == stream[3 * 32 : 4 * 32]
    assert len(dataset) == len(stream) // 32


def test_threads_of_this_process_write_the_same(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_TOKENISE_TASK_BYTES", 4000)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    names: set[str] = set()
    tokenise = steps.Tokenise.__call__

    def noted(step: steps.Tokenise, _: Any, rank: int, world_size: int) -> None:
        names.add(threading.current_thread().name)
        tokenise(step, None, rank, world_size)

    monkeypatch.setattr(steps.Tokenise, "__call__", noted)
    found = {}
    for workers in (1, 4):
        names.clear()
        one = dataclasses.replace(data, workers=workers)
        found[workers] = run(one, tokenizer_directory, tmp_path / str(workers)).manifest["fingerprint"]
        assert len(names) == 1 if workers == 1 else len(names) > 1
    assert found[1] == found[4]


def test_killed_it_goes_on_where_it_was(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_TOKENISE_TASK_BYTES", 4000)
    expected = run(data, tokenizer_directory, tmp_path / "whole").manifest["fingerprint"]
    done: list[int] = []
    tokenise = steps.Tokenise.__call__

    def stops(step: steps.Tokenise, _: Any, rank: int, world_size: int) -> None:
        if len(done) >= 3:
            raise KeyboardInterrupt
        tokenise(step, None, rank, world_size)
        done.append(rank)

    monkeypatch.setattr(steps.Tokenise, "__call__", stops)
    with pytest.raises(KeyboardInterrupt):
        prepare(data, load_tokenizer(tokenizer_directory), tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()

    def counts(step: steps.Tokenise, _: Any, rank: int, world_size: int) -> None:
        tokenise(step, None, rank, world_size)
        done.append(rank)

    monkeypatch.setattr(steps.Tokenise, "__call__", counts)
    assert run(data, tokenizer_directory, tmp_path / "out").manifest["fingerprint"] == expected
    assert len(done) == len(set(done)) > 4


def test_unfinished_work_with_other_settings_is_thrown_away(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def stops(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build.Build, "_source_record", stops)
        with pytest.raises(KeyboardInterrupt):
            prepare(data, load_tokenizer(tokenizer_directory), out)
    assert (out / "development" / "00000.ds").exists()
    changed = dataclasses.replace(data, development_share=0)
    assert sorted(run(changed, tokenizer_directory, out).manifest["sets"]) == ["held-out", "train"]
    assert not (out / "development").exists()


def test_a_source_that_changes_meanwhile_is_no_silent_loss(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = steps.Scan.__call__

    def meddles(step: steps.Scan, _: Any, rank: int, world_size: int) -> None:
        scan(step, None, rank, world_size)
        path = Path(data.sources[0].path)
        path.write_text(path.read_text().replace("layer", "lay3r"))

    monkeypatch.setattr(steps.Scan, "__call__", meddles)
    with pytest.raises(Failed, match="changed while it was being prepared"):
        prepare(data, load_tokenizer(tokenizer_directory), tmp_path / "out")


def test_rows_that_went_while_it_was_prepared_are_missed(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    scan = steps.Scan.__call__

    def meddles(step: steps.Scan, _: Any, rank: int, world_size: int) -> None:
        scan(step, None, rank, world_size)
        pyarrow.parquet.write_table(pyarrow.table({"text": texts[:3]}), path)

    monkeypatch.setattr(steps.Scan, "__call__", meddles)
    data = dataclasses.replace(data, sources=[SourceConfig(str(path))])
    with pytest.raises(Failed, match=r"rows\.parquet: changed while it was being prepared"):
        prepare(data, load_tokenizer(tokenizer_directory), tmp_path / "out")


def test_what_was_fetched_stays_when_the_next_data_set_cannot_be_had(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow
    import pyarrow.parquet

    for name in ("one", "other"):
        (tmp_path / "org" / name).mkdir(parents=True)
        part = texts[::2] if name == "one" else texts[1::2]
        pyarrow.parquet.write_table(pyarrow.table({"text": part}), tmp_path / "org" / name / "train.parquet")
    sources = [SourceConfig(f"hub:{tmp_path}/org/{name}") for name in ("one", "other")]
    out, real = tmp_path / "out", hub.fetch
    data = dataclasses.replace(data, sources=sources, tokens=TokenCount("1K"))
    fetched: list[str] = []

    def fetch(source: SourceConfig, target: Path, *, skip_bad: bool) -> Any:
        if source.path.endswith("other") and len(fetched) == 1:
            raise Refused(f"{source.path}: cannot be loaded; check name and network")
        if not target.exists():
            fetched.append(source.path)
        return real(source, target, skip_bad=skip_bad)

    monkeypatch.setattr(build, "fetch", fetch)
    with pytest.raises(Failed, match="check name and network; what was fetched before is kept"):
        prepare(data, load_tokenizer(tokenizer_directory), out)
    fetched.append("the network is back")
    prepare(data, load_tokenizer(tokenizer_directory), out)
    assert [path for path in fetched if path.endswith("one")] == [sources[0].path]


@pytest.mark.parametrize("suffix", ["", ".index", ".bytes"])
def test_a_damaged_file_of_a_set_is_found(
    suffix: str, tmp_path: Path, tokenizer_directory: Path, data: DataConfig
) -> None:
    run(data, tokenizer_directory, tmp_path / "out")
    prepared = open_prepared(tmp_path / "out")
    prepared.verify()
    path = next((tmp_path / "out" / "train").glob(f"*.ds{suffix}"))
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(Failed, match=f"{path.name}: damaged .its checksum differs"):
        prepared.verify()


def test_a_mask_changes_nothing_that_is_written(tmp_path: Path, tokenizer_directory: Path, data: DataConfig) -> None:
    first = run(data, tokenizer_directory, tmp_path / "out").manifest
    masked = dataclasses.replace(data, document_mask=True)
    assert run(masked, tokenizer_directory, tmp_path / "out").manifest == first


def test_a_hub_mirror_is_read(tmp_path: Path, tokenizer_directory: Path, data: DataConfig, texts: list[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "org" / "name").mkdir(parents=True)
    table = pyarrow.table({"body": texts})
    pyarrow.parquet.write_table(table, tmp_path / "org" / "name" / "train-00000-of-00001.parquet")
    hub = SourceConfig(f"hub:{tmp_path}/org/name", text_field="body")
    expected = run(data, tokenizer_directory, tmp_path / "file").manifest["fingerprint"]
    found = run(dataclasses.replace(data, sources=[hub]), tokenizer_directory, tmp_path / "out")
    assert found.manifest["fingerprint"] == expected
    for wrong in (dataclasses.replace(hub, text_field="text"), dataclasses.replace(hub, split="nosuch")):
        refused(dataclasses.replace(data, sources=[wrong]), tokenizer_directory, tmp_path / "refused")


def test_training_texts_are_the_training_sets(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig, texts: list[str]
) -> None:
    expected = run(data, tokenizer_directory, tmp_path / "out").texts("train")
    assert sorted(iterate_training_texts(data, 10**9)) == sorted(expected)
    some = list(iterate_training_texts(data, 5000))
    assert 5000 <= sum(len(text.encode()) for text in some) < 6000


def test_bad_settings_are_refused_before_anything_is_read(data: DataConfig) -> None:
    check_sources(data)
    source = data.sources[0]
    for changes, reason in [
        ({"sources": []}, "none given"),
        ({"tokens": TokenCount(0)}, "at least 1"),
        ({"validation_share": 1.0}, "no share"),
        ({"validation_share": 0.5, "development_share": 0.5}, "no training documents"),
        ({"validation_tokens": TokenCount(0)}, "set data.validation_share to 0"),
        ({"held_out_document_tokens": 0}, "at least 1"),
        ({"document_tokens": 0}, "at least 1"),
        ({"validation_sets": {"train": source}}, "cannot name a set"),
        ({"sources": [dataclasses.replace(source, weight=0.0)]}, "weight"),
        ({"sources": [dataclasses.replace(source, document_separator="")]}, "separator is empty"),
        ({"sources": [SourceConfig("nowhere.txt")]}, "no such file"),
        ({"exclude_seen": "nowhere"}, "cannot be read"),
        ({"exclude_seen": "~nobodyhere/x"}, "cannot be read"),
        ({"exclude_seen": "a\0b"}, "cannot be read"),
    ]:  # fmt: skip
        with pytest.raises(Refused, match=reason):
            check_sources(dataclasses.replace(data, **changes))  # type: ignore[arg-type]


SCRIPT = """
import dataclasses, json, sys
from pathlib import Path
from inheritune.config import DataConfig, SourceConfig
from inheritune.corpus import build, prepare
build._SMALL_SCAN_BYTES = build._SMALL_TOKENISE_BYTES = 0
build._TOKENISE_TASK_BYTES = 20_000
build.divide.__defaults__ = (20_000,)
source, tokenizer, out, workers = sys.argv[1:]
data = DataConfig([SourceConfig(source)], validation_share=0.1, development_share=0.1, workers=int(workers))
print(prepare(data, tokenizer, Path(out))["fingerprint"])
"""


@pytest.fixture
def big(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "big.jsonl", make_texts(1500))
    return tmp_path / "big.jsonl"


def script(big: Path, tokenizer_directory: Path, out: Path, workers: int) -> subprocess.Popen[str]:
    """A script without `if __name__ == "__main__"`, which a pool of processes must not run again."""
    arguments = [sys.executable, "-c", SCRIPT, str(big), str(tokenizer_directory), str(out), str(workers)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.slow
def test_the_bytes_are_the_same_however_many_workers_and_whenever_killed(
    tmp_path: Path, tokenizer_directory: Path, big: Path
) -> None:
    alone, errors = script(big, tokenizer_directory, tmp_path / "1", 1).communicate()
    assert len(alone.strip()) == 64, errors
    killed = script(big, tokenizer_directory, tmp_path / "2", 2)
    while not list((tmp_path / "2").glob(".work/*/waves/000/completions/*")):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    together, errors = script(big, tokenizer_directory, tmp_path / "2", 2).communicate()
    assert together == alone
    assert not errors  # neither datatrove's lines nor a warning of the tokenizer's
    assert (tmp_path / "2" / "train" / "00000.ds").read_bytes() == (tmp_path / "1" / "train" / "00000.ds").read_bytes()


@pytest.mark.slow
def test_what_a_worker_refuses_is_refused(tmp_path: Path, tokenizer_directory: Path, big: Path) -> None:
    big.write_text(big.read_text() + "{\n")
    _, errors = script(big, tokenizer_directory, tmp_path / "out", 2).communicate()
    assert f"inheritune.errors.Refused: {big}:1501: not JSON" in errors
    assert not (tmp_path / "out").exists()


def test_parts_of_a_file_are_tasks_whatever_the_workers(tmp_path: Path, big: Path) -> None:
    from inheritune.corpus.sources import resolve

    tasks = plan.divide(resolve(SourceConfig(str(big))), 20_000)
    assert len(tasks) > 5
    assert tasks[0][0][1] == 0
    assert all(before[-1][2] == after[0][1] for before, after in itertools.pairwise(tasks))
    assert tasks[-1][-1][2] == big.stat().st_size


def test_a_tokenizer_without_a_vocabulary_is_refused() -> None:
    empty = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="</s>")
    with pytest.raises(Refused, match="turns text into nothing"):
        tokenizing.load_tokenizer(empty)
