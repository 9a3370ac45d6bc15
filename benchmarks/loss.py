"""The loss in chunks of tokens against the plain one: time and peak memory of a forward and backward pass, in turns.

    python benchmarks/loss.py MODEL [--sequences 4 8] [--sequence_length 256] [--dtype bfloat16] [--out FILE.json]

MODEL is whatever a recipe takes as reference, a directory, a hub id or a GGUF file, or a shape of train.py from random
init: `demo`, `wide-vocabulary`, `gpt2-small`, `smollm2-15`. Both losses are put on the same model in one process and
take turns on the same random tokens, with the same precision and attention; the decoder alone, its hidden state's
gradient given, has a turn too, so that a loss's own time is a pass less the decoder's in the same turn. Blocks are not
compiled. Peaks are what torch's allocator gave out beyond weights, in a pass of their own that is not timed. On a CPU
freed memory is kept, as in training. The losses and their gradients are compared as well: if they differed by more than
rounding, it would be other work.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from training.shapes import SHAPES

ON_CPU = [name for name, shape in SHAPES.items() if shape.device == "cpu"]
DTYPES = ("float32", "bfloat16")
PASSES = ("chunked", "plain", "decoder")
WARM_TURNS = 2
Record = dict[str, Any]


class Parser(argparse.ArgumentParser):
    """Says what is wrong with an option in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def options(words: list[str] | None = None) -> argparse.Namespace:
    """Read and check the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--sequences", type=int, nargs="+", default=[8], help="of a pass; default 8")
    parser.add_argument("--sequence_length", type=int, default=256, help="tokens; default 256")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="of products; default what training takes here")
    parser.add_argument("--turns", type=int, default=7, help="default 7")
    parser.add_argument("--out", metavar="FILE.json", type=Path)
    given = parser.parse_args(words)
    for option, values in (
        ("--sequences", given.sequences), ("--sequence_length", [given.sequence_length]), ("--turns", [given.turns])
    ):  # fmt: skip
        if min(values) < 1:
            parser.error(f"{option}: {min(values)}; at least 1")
    if given.out and not given.out.parent.is_dir():
        parser.error(f"--out: no directory {given.out.parent}")
    return given


def main() -> None:
    """Measure, print the table, write JSON."""
    given = options()
    import torch

    from inheritune.environment import describe
    from inheritune.errors import InherituneError
    from inheritune.hardware import keep_freed_memory
    from inheritune.parallel import compute_dtype

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model = loaded(given.model, device)
    except InherituneError as error:
        print(f"loss.py: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    text = model.config.get_text_config()
    record: Record = {
        "command": command(sys.argv, given.model),
        "environment": describe() | {"command": None},
        "model": {
            "type": model.config.model_type,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "vocabulary": text.vocab_size,
            "width": text.hidden_size,
            "layers": text.num_hidden_layers,
        },
        "sequence_length": given.sequence_length,
        "freed_memory_kept": device.type == "cpu" and keep_freed_memory(),
        "measurements": [],
    }
    best = str(compute_dtype("auto", device)).removeprefix("torch.")
    for dtype, sequences in itertools.product(given.dtype or [best], given.sequences):
        print(f"{dtype}, {sequences} sequences", file=sys.stderr, flush=True)
        found = compare(model, getattr(torch, dtype), sequences, given.sequence_length, given.turns)
        record["measurements"].append({"dtype": dtype, "sequences": sequences} | found)
        if given.out:
            given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(record))


def command(words: list[str], model: str) -> str:
    """The command line as it may be published: files and directories by what they are, not where."""
    hidden = {} if model in ON_CPU else {model: "MODEL"}
    shown = ["FILE.json" if before == "--out" else hidden.get(word, word) for before, word in itertools.pairwise(words)]
    return " ".join(["python benchmarks/loss.py", *shown])


def loaded(name: str, device: Any) -> Any:
    """A shape of train.py from random init, or a reference, in float32 on the device.

    Raises:
        InherituneError: it is neither, or cannot be read.
    """
    from transformers import AutoConfig

    from inheritune import reference as references
    from inheritune.parallel import place

    if name in ON_CPU:
        model = references.fresh(AutoConfig.for_model(**SHAPES[name].config), 0)
    else:
        model = references.load(references.find(name))
    return place(model.float(), device).train()


def compare(model: Any, dtype: Any, sequences: int, length: int, turns: int) -> Record:
    """Time both losses and the decoder alone in turns, then each one's memory and what it computes."""
    import torch

    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    rows = torch.randint(vocabulary, (sequences, length + 1), generator=generator).to(model.device)
    passes = passes_of(model, dtype, rows[:, :-1], rows[:, 1:])
    seconds: dict[str, list[float]] = {name: [] for name in PASSES}
    for turn in range(WARM_TURNS + turns):
        # nobody always comes behind the same one
        for name in PASSES if turn % 2 == 0 else PASSES[::-1]:
            model.zero_grad()
            took = timed(passes[name], model.device)
            if turn >= WARM_TURNS:
                seconds[name].append(took)
    peaks, losses, gradients = {}, {}, {}
    for name in PASSES:
        model.zero_grad()
        peaks[name] = peak_bytes(passes[name], model.device)
        model.zero_grad()
        losses[name] = float(passes[name]())
        gradients[name] = [one.grad for one in model.parameters() if one.grad is not None]
    model.zero_grad()
    del losses["decoder"], gradients["decoder"]
    return {
        "seconds": seconds,
        "peak_bytes": peaks,
        "losses": losses,
        "gradient_difference": relative_difference(gradients["chunked"], gradients["plain"]),
        **ratios(seconds, peaks),
    }


def passes_of(model: Any, dtype: Any, ids: Any, labels: Any) -> dict[str, Callable[[], Any]]:
    """What is timed, by name; each gives its loss, in nats a token, and leaves the gradients in the model."""
    import torch
    from training.plain import PlainLoss

    from inheritune.attention import banded
    from inheritune.objective import Objective
    from inheritune.parallel import autocast

    def loss(objective: Callable[[Any, Any], Any]) -> Any:
        found = objective(ids, labels)
        (found.minimised * (1.0 / ids.numel())).backward()
        return found.nats / ids.numel()

    def decoder() -> Any:
        with autocast(dtype, ids.device), banded(ids.device):
            hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        hidden.backward(torch.full_like(hidden, 1e-3))
        return hidden.new_zeros(())

    chunked, plain = Objective(model, dtype), PlainLoss(model, dtype)
    return {"chunked": lambda: loss(chunked), "plain": lambda: loss(plain), "decoder": decoder}


def timed(run: Callable[[], Any], device: Any) -> float:
    """Seconds that a pass takes."""
    import torch

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    finish()
    began = time.perf_counter()
    run()
    finish()
    return time.perf_counter() - began


def peak_bytes(run: Callable[[], Any], device: Any) -> int:
    """The most that torch's allocator gave out during a pass, beyond what was out before it."""
    import torch

    if device.type != "cuda":
        from memory import allocator_peak

        return allocator_peak(run)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before


def relative_difference(ours: list[Any], theirs: list[Any]) -> float:
    """The norm of the difference of two gradients by the second's norm."""
    pairs = list(zip(ours, theirs, strict=True))
    difference = sum(float((one.double() - other.double()).square().sum()) for one, other in pairs)
    return float((difference / sum(float(other.double().square().sum()) for _, other in pairs)) ** 0.5)


def ratios(seconds: dict[str, list[float]], peaks: dict[str, int]) -> Record:
    """Plain over chunked: of the whole pass, of the loss alone (a pass less the decoder's), turn by turn; of memory."""
    turns = list(zip(*(seconds[name] for name in PASSES), strict=True))
    own = {"chunked": [a - c for a, _, c in turns], "plain": [b - c for _, b, c in turns]}
    return {
        "own_seconds": own,
        "pass_ratio": spread([plain / chunked for chunked, plain, _ in turns]),
        # by the medians: a single turn's difference of two passes can be next to nothing
        "own_ratio": statistics.median(own["plain"]) / statistics.median(own["chunked"]),
        "memory_ratio": peaks["plain"] / peaks["chunked"],
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def table(record: Record) -> str:
    """The record as Markdown, a row a dtype and number of sequences."""
    model = record["model"]
    heads = [
        "sequences", "pass, ms: chunked, plain, decoder alone", "plain / chunked (range)",
        "loss alone, ms: chunked, plain", "plain / chunked",
        "peak beyond the weights, MiB: chunked, plain, decoder alone", "plain / chunked", "loss", "gradients differ",
    ]  # fmt: skip
    lines = [
        f"{model['type']}, {model['parameters'] / 1e6:.1f}M parameters, {model['layers']} layers, width "
        f"{model['width']}, vocabulary {model['vocabulary']:,}; sequences of {record['sequence_length']}.",
        "",
        "| " + " | ".join(heads) + " |",
        "|---" * len(heads) + "|",
    ]
    for one in record["measurements"]:
        passes = ", ".join(f"{1e3 * statistics.median(one['seconds'][name]):,.0f}" for name in PASSES)
        own = ", ".join(f"{1e3 * statistics.median(one['own_seconds'][name]):,.0f}" for name in PASSES[:2])
        peaks = ", ".join(f"{one['peak_bytes'][name] / 2**20:,.0f}" for name in PASSES)
        ratio = one["pass_ratio"]
        lines.append(
            f"| {one['sequences']}, {one['dtype']} | {passes} "
            f"| {ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}) | {own} | {one['own_ratio']:.1f} "
            f"| {peaks} | {one['memory_ratio']:.2f} | {one['losses']['chunked']:.5f}, {one['losses']['plain']:.5f} "
            f"| {one['gradient_difference']:.1e} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
