"""Precision and compilation, and what is said where they cannot be had."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from inheritune import parallel
from inheritune.parallel import compile_blocks, compiler_missing, compute_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ({"avx512f"}, torch.float32),
        ({"avx512f", "avx512_bf16"}, torch.bfloat16),
        ({"amx_bf16"}, torch.bfloat16),
        (set(), torch.float32),
    ],
)
def test_auto_takes_bfloat16_where_the_processor_has_it(
    flags: set[str], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "_cpu_flags", lambda: flags)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert compute_dtype("auto", CPU) == dtype
    assert compute_dtype("float32", CPU) == torch.float32
    assert compute_dtype("bfloat16", CPU) == torch.bfloat16


def refuse(message: str, kind: type[Exception] = RuntimeError) -> Any:
    def compile_(_function: Any) -> Any:
        def call(*_arguments: Any) -> None:
            raise kind(message)

        return call

    return compile_


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("fatal error: Python.h: No such file or directory\nmore", "Python.h"),
        ("[Errno 13] Permission denied: '/tmp/torchinductor'", "TORCHINDUCTOR_CACHE_DIR"),
        ("No working C++ compiler found", "no C++ compiler is installed"),
        ("something else\nentirely", "RuntimeError: something else"),
    ],
)
def test_without_a_compiler_one_line_names_what_is_missing(
    message: str, said: str, monkeypatch: pytest.MonkeyPatch, llama_directory: Path
) -> None:
    monkeypatch.setattr(torch, "compile", refuse(message))
    lines: list[str] = []
    model = AutoModelForCausalLM.from_pretrained(llama_directory)
    assert not compile_blocks(model, "always", CPU, flops=1e18, report=lines.append)
    assert len(lines) == 1
    assert said in lines[0]
    assert "\n" not in lines[0]


def test_auto_leaves_short_runs_eager_and_never_is_never(llama_directory: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_directory)
    assert not compile_blocks(model, "auto", CPU, flops=1e9, report=pytest.fail)
    assert not compile_blocks(model, "never", CPU, flops=1e30, report=pytest.fail)


# dynamo looks into what it traces and into every module, which warns; an error there is taken for a failed compilation
@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
def test_a_compiled_model_computes_the_same(llama_directory: Path) -> None:
    assert compiler_missing(CPU) is None
    eager = AutoModelForCausalLM.from_pretrained(llama_directory)
    compiled = AutoModelForCausalLM.from_pretrained(llama_directory)
    assert compile_blocks(compiled, "always", CPU, flops=0, report=pytest.fail)
    ids = torch.arange(32)[None]
    torch.testing.assert_close(
        compiled(ids, use_cache=False).logits, eager(ids, use_cache=False).logits, rtol=1e-4, atol=1e-4
    )
