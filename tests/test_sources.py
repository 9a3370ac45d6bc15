"""Strict reading: every kind of source, every kind of damage, and parts that hold exactly what the whole holds."""

from __future__ import annotations

import errno
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from huggingface_hub import constants
from hypothesis import HealthCheck, given, settings, strategies

from inheritune.config import SourceConfig
from inheritune.corpus import python_source, reading
from inheritune.corpus.files import SourceFile
from inheritune.corpus.hub import fetch
from inheritune.corpus.plan import divide
from inheritune.corpus.reading import place_of, read_again, scan
from inheritune.corpus.sources import resolve, split_hub
from inheritune.errors import Failed, Refused

TEXTS = ["one", "two\nlines", "drei: äöü 漢字 🙂", "four " * 50]


def jsonl(texts: list[str]) -> bytes:
    return "".join(
        json.dumps({"id": i, "text": text}, ensure_ascii=i % 2 == 0) + "\n" for i, text in enumerate(texts)
    ).encode()


def zstd_frames(content: bytes) -> bytes:
    half = len(content) // 2
    return zstandard.compress(content[:half]) + zstandard.compress(content[half:])


def write_parquet(path: Path, texts: list[str | None], field: str = "text") -> None:
    pyarrow.parquet.write_table(pyarrow.table({"id": range(len(texts)), field: texts}), path, row_group_size=2)


def whole(source: SourceConfig) -> list[str | None]:
    return [record.text for file in resolve(source) for record in scan(file, 0, file.size)]


@pytest.mark.parametrize(
    ("name", "encode"),
    [("a.jsonl", bytes), ("a.json", bytes), ("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstd_frames)],
)
def test_json_lines_are_read_whatever_their_compression(
    tmp_path: Path, name: str, encode: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / name
    path.write_bytes(encode(b"\xef\xbb\xbf" + jsonl(TEXTS) + b"\r\n"))
    assert whole(SourceConfig(str(path))) == TEXTS


def test_parquet_is_read_row_group_by_row_group(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [*TEXTS], "body")
    source = SourceConfig(str(tmp_path / "a.parquet"), text_field="body")
    assert whole(source) == TEXTS
    (file,) = resolve(source)
    pieces = [piece for task in divide([file], 1) for piece in task]
    assert len(pieces) == 2
    assert [record.text for _, start, end in pieces for record in scan(file, start, end)] == TEXTS


def test_a_text_file_is_one_document_unless_a_separator_says_otherwise(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\n\n\nthree\n")
    (tmp_path / "b.md").write_text("# four\n\nfive")
    assert whole(SourceConfig(str(tmp_path / "*.txt"))) == ["one\n\ntwo\n\n\n\nthree\n"]
    assert whole(SourceConfig(str(tmp_path / "*.*"), document_separator="\n\n")) == [
        "one", "two", "three\n", "# four", "five",
    ]  # fmt: skip


@pytest.mark.parametrize("compress", [gzip.compress, zstd_frames])
def test_compressed_text_is_split_too(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    path = tmp_path / ("a.txt.gz" if compress is gzip.compress else "a.txt.zst")
    path.write_bytes(compress(b"one\n\ntwo"))
    assert whole(SourceConfig(str(path), document_separator="\n\n")) == ["one", "two"]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=strategies.text("ab\n", max_size=40),
    separator=strategies.sampled_from(["\n\n", "\n", "aba", "aa"]),
    size=strategies.integers(1, 9),
    chunk=strategies.integers(1, 5),
)
def test_parts_hold_the_records_of_the_whole_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, separator: str, size: int, chunk: int
) -> None:
    monkeypatch.setattr(reading, "_CHUNK", chunk)
    path = tmp_path / "a.txt"
    path.write_text(text, newline="")
    file = SourceFile(str(path), "a.txt", "text", "", len(text), "text", separator)
    found = [record for task in divide([file], size) for _, start, end in task for record in scan(file, start, end)]
    assert [record.text for record in found] == [part for part in text.split(separator) if part]
    again = read_again(file, [record.position for record in found], [record.length for record in found])
    assert list(again) == [record.text for record in found]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_records_are_read_again_by_their_position(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".parquet"):
        write_parquet(path, [*TEXTS])
    else:
        encoders: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstd_frames, ".jsonl": bytes}
        path.write_bytes(encoders[path.suffix](jsonl(TEXTS)))
    (file,) = resolve(SourceConfig(str(path)))
    records = list(scan(file, 0, file.size))[1::2]
    assert list(read_again(file, [r.position for r in records], [r.length for r in records])) == TEXTS[1::2]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": "cut sho', "not JSON"),
        (b'{"body": "x"}', "no field 'text'"),
        (b'["x"]', "no field 'text'"),
        (b'{"text": null}', "is not text"),
        (b'{"text": "\\ud800"}', "half a surrogate pair"),
        (b'{"text": "\xff"}', "byte 0xff is not UTF-8"),
    ],
)
@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, problem: str, ending: str) -> None:
    content = jsonl(["a", "b"]) + line + b"\n" + jsonl(["c"])
    path = tmp_path / f"a.{ending}"
    path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    (file,) = resolve(SourceConfig(str(path)))
    bad = [record for record in scan(file, 0, len(content)) if record.text is None]
    assert len(bad) == 1
    assert problem in bad[0].problem
    assert place_of(file, bad[0]) == f"{path}:3"


def test_undecodable_text_is_named_by_the_line_of_its_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\nthr\xe9e\nfour")
    (file,) = resolve(SourceConfig(str(tmp_path / "a.txt")))
    (record,) = scan(file, 0, file.size)
    assert place_of(file, record).endswith("a.txt:3")
    assert "0xe9" in record.problem


def test_damaged_pages_of_parquet_are_named_by_their_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, [f"text {number} " * 50 for number in range(40)])
    content = bytearray(path.read_bytes())
    content[200:800] = b"\xff" * 600  # the footer, which says where things are, stays
    path.write_bytes(bytes(content))
    (file,) = resolve(SourceConfig(str(path)))
    with pytest.raises(
        Refused, match=r"a\.parquet: damaged, it cannot be read as Parquet .*; fetch or write it"
    ) as error:
        list(scan(file, 0, file.size))
    assert "\n" not in str(error.value)


def test_a_null_in_parquet_is_named_by_its_row(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", ["x", "y", None])
    (file,) = resolve(SourceConfig(str(tmp_path / "a.parquet")))
    *good, bad = scan(file, 0, file.size)
    assert [record.text for record in good] == ["x", "y"]
    assert place_of(file, bad).endswith("a.parquet: row 2")


@pytest.mark.parametrize(("ending", "compress"), [("gz", gzip.compress), ("zst", zstandard.compress)])
def test_a_compressed_file_that_breaks_off_is_refused(
    tmp_path: Path, ending: str, compress: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"a.jsonl.{ending}"
    path.write_bytes(compress(jsonl([f"{i * 7919}" for i in range(50_000)]))[:-20])
    (file,) = resolve(SourceConfig(str(path)))
    with pytest.raises(Refused, match="damaged"):
        list(scan(file, 0, file.size))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b"", "empty"),
        ("a.jsonl.gz", b'{"text": "x"}', "its ending says gz"),
        ("a.jsonl.zst", b'{"text": "x"}', "its ending says zst"),
        ("a.jsonl", gzip.compress(b'{"text": "x"}'), "gz-compressed"),
        ("a.parquet", b'{"text": "x"}', "its ending says Parquet"),
        ("a.parquet", b"PAR1 and then nothing", "damaged Parquet"),
        ("a.txt", b"\x7fELF\0\0\1", "binary"),
        ("a.txt", "text".encode("utf-16"), "binary"),
        ("a.json", b'\n [{"text": "x"}]', "one JSON array"),
        ("a.csv", b"text\nx\n", "unknown ending"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Refused, match=reason) as caught:
        resolve(SourceConfig(str(tmp_path / name)))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_names_nothing_is_refused(tmp_path: Path) -> None:
    for path in ("missing.txt", "*.txt", "hub:"):
        with pytest.raises(Refused, match=r"no such file|no data set"):
            resolve(SourceConfig(path if path == "hub:" else str(tmp_path / path)))
    (tmp_path / "notes.rst").write_text("x")
    with pytest.raises(Refused, match="a directory without"):
        resolve(SourceConfig(str(tmp_path)))


def test_a_directory_is_read_in_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b/1.txt", "a/2.txt", ".git/3.txt", "a/.4.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    assert whole(SourceConfig(str(tmp_path))) == ["a/2.txt", "b/1.txt"]


def test_a_readme_beside_data_does_not_become_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(["x"]))
    (tmp_path / "README.md").write_text("about it")
    with pytest.raises(Refused, match="several kinds"):
        resolve(SourceConfig(str(tmp_path)))


def test_settings_that_do_not_fit_the_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(["x"]))
    with pytest.raises(Refused, match="document_separator is for plain text"):
        resolve(SourceConfig(str(tmp_path / "a.jsonl"), document_separator="\n"))
    write_parquet(tmp_path / "a.parquet", ["x"])
    with pytest.raises(Refused, match="no column 'body'; set text_field to one of id, text"):
        resolve(SourceConfig(str(tmp_path / "a.parquet"), text_field="body"))
    with pytest.raises(Refused, match="holds int64, not text"):
        resolve(SourceConfig(str(tmp_path / "a.parquet"), text_field="id"))


def test_python_source_is_the_library_without_its_tests() -> None:
    packages = python_source.list_python_source()
    assert [package.name for package in packages] == ["python", *python_source.PACKAGES]
    names = [file.name for package in packages for file in package.files]
    assert len(names) == len(set(names))
    assert {"python/json/decoder.py", "torch/nn/modules/linear.py", "numpy/__init__.py"} <= set(names)
    assert not [name for name in names if "/tests/" in name or "/test/" in name or "site-packages" in name]
    for package in packages:
        assert package.files == sorted(package.files, key=lambda file: file.name)
        assert package.record()["bytes"] == sum(Path(file.path).stat().st_size for file in package.files)


def test_python_source_needs_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_source, "PACKAGES", ("numpy", "no_such_package"))
    with pytest.raises(Refused, match="no_such_package is not installed"):
        python_source.list_python_source()


def test_python_files_are_decoded_by_their_encoding_line(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes("# -*- coding: latin-1 -*-\nx = 'é'\n".encode("latin-1"))
    (tmp_path / "b.py").write_bytes(b"# -*- coding: utf-8 -*-\nx = '\xff'\n")
    good, bad = (SourceFile(str(tmp_path / name), name, "python", "", 1) for name in ("a.py", "b.py"))
    assert [record.text for record in scan(good, 0, 1)] == ["# -*- coding: latin-1 -*-\nx = 'é'\n"]
    assert [record.text for record in scan(bad, 0, 1)] == [None]


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set in the hub's cache, with a loading script and rows that differ in their other fields."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "cache" / "datasets--org--sample"
    directory = cached / "snapshots" / commit
    (directory / "more").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    (directory / "sample.py").write_text("raise RuntimeError('a loading script was run')")
    (directory / "cc_2.jsonl").write_text(
        '{"text": "three", "meta": {"year": 2020}}\n{"text": "four", "meta": "none"}\n'
    )
    (directory / "cc_1.jsonl").write_text('{"text": "one", "meta": null}\n{"text": "two"}\n')
    (directory / "book.jsonl").write_text('{"body": "five"}\n')
    (directory / "more" / "cc_3.jsonl.gz").write_bytes(gzip.compress(jsonl(["six"])))
    (directory / "more" / "bad.jsonl").write_text('{"text": "seven"}\n{"text": 8}\n')
    write_parquet(directory / "more" / "rows.parquet", ["nine", "ten"], "body")
    return directory


def fetched(source: SourceConfig, target: Path, *, skip_bad: bool = False) -> tuple[list[str | None], int]:
    assert resolve(source) == []
    file, bad = fetch(source, target, skip_bad=skip_bad)
    return [record.text for record in scan(file, 0, file.size)], bad


@pytest.mark.parametrize("data_set", ["org/sample", "{mirror}"])
@pytest.mark.parametrize(
    ("files", "field", "texts"),
    [
        ("cc_*.jsonl", "text", ["one", "two", "three", "four"]),
        ("cc_1.jsonl", "text", ["one", "two"]),
        ("book.jsonl", "body", ["five"]),
        ("**/cc_*.jsonl.gz", "text", ["six"]),
        ("more/rows.parquet", "body", ["nine", "ten"]),
    ],
)
def test_files_within_a_hub_data_set_are_read(
    mirror: Path, tmp_path: Path, data_set: str, files: str, field: str, texts: list[str]
) -> None:
    source = SourceConfig(f"hub:{data_set.format(mirror=mirror)}/{files}", text_field=field)
    assert fetched(source, tmp_path / "texts.jsonl") == (texts, 0)


def test_a_bad_line_within_a_hub_data_set_is_named_or_counted(mirror: Path, tmp_path: Path) -> None:
    source = SourceConfig("hub:org/sample/more/bad.jsonl")
    with pytest.raises(Refused, match=r"more/bad\.jsonl:2: field 'text' is not text; set data.on_bad_line"):
        fetched(source, tmp_path / "refused.jsonl")
    assert not (tmp_path / "refused.jsonl").exists()
    assert fetched(source, tmp_path / "texts.jsonl", skip_bad=True) == (["seven"], 1)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("hub:org/sample/wiki*.jsonl", "the data set has no such files"),
        ("hub:{mirror}/wiki.jsonl", "the data set has no such files"),
        ("hub:org/nosuch/cc_1.jsonl", "cannot be loaded .* check name and network"),
        ("hub:org/sample/sample.py", "'sample.py' names no files of a data set; .* of .jsonl"),
        ("hub:org/sample/more", "'more' names no files"),
        ("hub:org/sample/../../other/cc_1.jsonl", "names no files"),
    ],
)
def test_what_names_no_files_within_a_hub_data_set_is_refused(
    mirror: Path, tmp_path: Path, path: str, reason: str
) -> None:
    with pytest.raises(Refused, match=reason) as caught:
        fetched(SourceConfig(path.format(mirror=mirror)), tmp_path / "texts.jsonl")
    assert str(caught.value).startswith(path.format(mirror=mirror))
    assert "\n" not in str(caught.value)


def test_a_disk_that_is_full_is_no_fault_of_the_data_set(mirror: Path, tmp_path: Path, monkeypatch: Any) -> None:
    class Full(io.StringIO):
        name = "texts.jsonl"

        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    real = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *_, **__: Full() if path.name.startswith(".texts") else real(path))
    with pytest.raises(Failed, match=r"texts\.jsonl: No space left on device; mend it, then start again to go on"):
        fetch(SourceConfig("hub:org/sample/cc_1.jsonl"), tmp_path / "texts.jsonl", skip_bad=False)


@pytest.mark.parametrize("extra", [{"subset": "default"}, {"split": "validation"}])
def test_files_within_a_hub_data_set_have_neither_subset_nor_split(extra: dict[str, str]) -> None:
    with pytest.raises(Refused, match="subset and split are of a whole data set"):
        resolve(SourceConfig("hub:org/sample/cc_1.jsonl", **extra))  # type: ignore[arg-type]


def test_a_hub_path_is_a_data_set_and_files_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert split_hub("hub:name") == ("name", "")
    assert split_hub("hub:org/name/") == ("org/name", "")
    assert split_hub("hub:org/name/data/*.jsonl") == ("org/name", "data/*.jsonl")
    assert split_hub(f"hub:{tmp_path}/a/*.jsonl") == (str(tmp_path), "a/*.jsonl")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mirrors" / "org" / "name").mkdir(parents=True)
    assert split_hub("hub:mirrors/org/name") == ("mirrors/org/name", "")
    assert split_hub("hub:mirrors/org/name/a.jsonl") == ("mirrors/org/name", "a.jsonl")
