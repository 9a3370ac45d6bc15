"""A model in llama.cpp: converted to GGUF, split into the same tokens, continued by the same greedy tokens.

    pip download llama-cpp-python==0.3.36 --no-deps --no-binary llama-cpp-python
    tar xf llama_cpp_python-0.3.36.tar.gz
    python -m venv llama && llama/bin/pip install ./llama_cpp_python-0.3.36.tar.gz    # compiles llama.cpp
    python studies/real_reference/loads_elsewhere.py MODEL --python llama/bin/python --work DIR [--out record.json] \
        --converter llama_cpp_python-0.3.36/vendor/llama.cpp/convert_hf_to_gguf.py

MODEL is a Hugging Face directory. The converter runs under this Python, llama-cpp-python under the other, each in a
process of its own. Both compute in float32, keys and values in the cache included, on one thread of a CPU. The greedy
tokens come from the same ids, whether or not both split the prompt alike. Where they part, the record has by how little
transformers preferred its token: sums in another order may turn a tie. Exit code 0: all the same; 1: not so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

Record = dict[str, Any]

PROMPTS = (
    "The old man opened the letter, read it twice, and said:",
    "In 1969, 2 men walked on the Moon, 384,400 km from home. They",
    'def mean(values):\n    """The arithmetic mean."""\n',
)
"""English, numbers, code: what pre-tokenizers split differently."""
NEW_TOKENS = 32


def convert(model: Path, converter: Path, outtype: str, gguf: Path) -> None:
    """Write a model as a GGUF file by llama.cpp's own script.

    Raises:
        RuntimeError: the script ends with an error.
    """
    command = [sys.executable, str(converter), str(model), "--outfile", str(gguf), "--outtype", outtype]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"{converter.name} {model}: {_last_line(ended)}")


def in_transformers(model: Path, prompts: list[list[int]]) -> list[Record]:
    """By prompt the greedy tokens, and at each how far the most likely token is ahead of the next (logits)."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    found = []
    for prompt in prompts:
        ids, margins = list(prompt), []
        for _ in range(NEW_TOKENS):
            with torch.inference_mode():
                logits = network(torch.tensor([ids])).logits[0, -1]  # (vocabulary,)
            best, second = torch.topk(logits, 2).values.tolist()
            ids.append(int(logits.argmax()))
            margins.append(best - second)
        found.append({"generated": ids[len(prompt) :], "margins": margins})
    return found


def in_llama_cpp(python: Path, gguf: Path, prompts: list[list[int]]) -> Record:
    """What `serve` gives, run by a Python that has llama-cpp-python.

    Raises:
        RuntimeError: it ends with an error.
    """
    asked = json.dumps({"gguf": str(gguf), "texts": PROMPTS, "prompts": prompts})
    ended = subprocess.run([python, __file__, "--serve"], input=asked, check=False, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"{python}, llama-cpp-python: {_last_line(ended)}")
    answer: Record = json.loads(ended.stdout.splitlines()[-1])
    return answer


def serve() -> None:
    """Answer one request from standard input: how texts are split, and how ids go on. Imports llama-cpp-python."""
    import itertools

    import llama_cpp

    asked = json.load(sys.stdin)
    room = max(map(len, asked["prompts"])) + NEW_TOKENS
    whole = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    model = llama_cpp.Llama(asked["gguf"], n_ctx=room, n_threads=1, n_threads_batch=1, verbose=False, **whole)
    greedy = [
        list(itertools.islice(model.generate(ids, temp=0.0, repeat_penalty=1.0), NEW_TOKENS))
        for ids in asked["prompts"]
    ]
    answer = {
        "version": llama_cpp.__version__,
        "pre_tokenizer": model.metadata.get("tokenizer.ggml.pre"),
        "tokens": [model.tokenize(text.encode()) for text in asked["texts"]],
        "generated": greedy,
    }
    print(json.dumps(answer))


def compared(text: str, tokens: list[int], here: Record, split: list[int], generated: list[int]) -> Record:
    """A prompt's record: whether both split it alike and continue it alike, and where they part."""
    parts = next(
        (at for at, pair in enumerate(zip(here["generated"], generated, strict=True)) if len({*pair}) > 1), None
    )
    return {
        "prompt": text,
        "tokens": tokens,
        "same_tokens": tokens == split,
        "transformers": here["generated"],
        "llama_cpp": generated,
        "parts_at": parts,
        "margin_there": None if parts is None else round(here["margins"][parts], 6),
        "least_margin": round(min(here["margins"]), 6),
    }


def compare(words: argparse.Namespace) -> Record:
    """Convert, continue every prompt in both, and say what came of it."""
    import torch
    import transformers

    gguf = words.work / f"{words.model.absolute().name}-{words.outtype}.gguf"
    convert(words.model, words.converter, words.outtype, gguf)
    tokenizer = transformers.AutoTokenizer.from_pretrained(words.model)
    tokens = [tokenizer(text)["input_ids"] for text in PROMPTS]
    there, here = in_llama_cpp(words.python, gguf, tokens), in_transformers(words.model, tokens)
    prompts = list(map(compared, PROMPTS, tokens, here, there["tokens"], there["generated"]))
    config = transformers.AutoConfig.from_pretrained(words.model)
    return {
        "model": words.model.absolute().name,
        "layers": config.num_hidden_layers,
        "outtype": words.outtype,
        "pre_tokenizer": there["pre_tokenizer"],
        "versions": {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "llama_cpp_python": there["version"],
        },
        "prompts": prompts,
        "same": all(one["same_tokens"] and one["parts_at"] is None for one in prompts),
    }


def table(record: Record) -> str:
    """The record as Markdown."""
    rows = [
        f"| {one['prompt'].splitlines()[0][:40]} | {len(one['tokens'])} | {'yes' if one['same_tokens'] else 'no'} "
        f"| {NEW_TOKENS if one['parts_at'] is None else one['parts_at']} of {NEW_TOKENS} | {one['least_margin']:.4f} |"
        for one in record["prompts"]
    ]
    head = "| prompt | tokens | split alike | greedy tokens the same | least margin |\n|---|---|---|---|---|"
    return "\n".join([f"pre-tokenizer: {record['pre_tokenizer']}", "", head, *rows])


def _last_line(ended: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (ended.stderr or "").splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {ended.returncode}"


def main() -> None:
    """Print the table; write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--converter", type=Path, required=True, help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--python", type=Path, required=True, help="a Python that has llama-cpp-python")
    parser.add_argument("--outtype", choices=("f32", "f16", "bf16"), default="f32", help="of the GGUF file's matrices")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the GGUF file")
    parser.add_argument("--out", type=Path, help="where the record goes")
    words = parser.parse_args()
    needed = {"MODEL": words.model / "config.json", "--converter": words.converter, "--python": words.python}
    for flag, file in needed.items():
        if not file.is_file():
            parser.error(f"{flag}: {file} is not there")
    words.work.mkdir(parents=True, exist_ok=True)
    try:
        record = compare(words)
    except RuntimeError as error:
        sys.exit(f"loads_elsewhere: {error}")
    print(table(record))
    if words.out is not None:
        words.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if record["same"] else 1)


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["--serve"] else main()
