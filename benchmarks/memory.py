"""Peak memory of a training step, part by part: predicted for a large shape, and measured against it on a small one.

    python benchmarks/memory.py [--shapes llama gpt2 smollm2-15] [--out results/memory_1.json]

Without a GPU: the table predicted for the first 13 layers of OpenLLaMA-3B (1.8B parameters, sequence 2048), and, for
shapes that a CPU can train, each setting's step in a process of its own: its parts by the storages that are alive, its
total by torch's allocator and by the growth of the process (VmHWM), which know nothing of the predictor. The allocator
counts every tensor, and nothing of what libraries take for themselves; the process all of it, and pages that it keeps.
`llama` and `gpt2` have the large shape's structure; `smollm2-15`, half of SmolLM2's layers, is trained by the chunked
loss and by the plain one, in eager mode and compiled. A prediction that is off by more than 10% of the allocator's
total would refute it. On a GPU the large shape itself is trained for some steps, blocks compiled, and
`max_memory_allocated` stands beside what is predicted for eager blocks, which keep more.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from training.shapes import SHAPES

PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "working")
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "activation checkpointing": {"activation_checkpointing": True},
    "8-bit": {"optimizer": "adamw_8bit"},
    "offloaded": {"offload_optimizer": True},
    "activation checkpointing, 8-bit": {"activation_checkpointing": True, "optimizer": "adamw_8bit"},
    "activation checkpointing, offloaded": {"activation_checkpointing": True, "offload_optimizer": True},
}
LOSSES: dict[str, dict[str, Any]] = {
    "chunked loss": {},
    "plain loss": {"plain_loss": True},
    "chunked loss, activation checkpointing": {"activation_checkpointing": True},
    "plain loss, activation checkpointing": {"activation_checkpointing": True, "plain_loss": True},
    "chunked loss, compiled": {"compile": "always"},
}
"""`plain_loss` is no setting of a recipe: every score of a micro-batch at once (training/plain.py)."""
OPEN_LLAMA_13: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 3200, "intermediate_size": 8640, "num_hidden_layers": 13,
    "num_attention_heads": 32, "vocab_size": 32000, "max_position_embeddings": 2048, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_SMALL = {**OPEN_LLAMA_13, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6,
               "num_attention_heads": 8, "vocab_size": 8000}  # fmt: skip
GPT2_SMALL = {"model_type": "gpt2", "n_embd": 512, "n_layer": 6, "n_head": 8, "n_positions": 512, "vocab_size": 8000}
CARDS = (24, 48)
"""GiB."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A shape, and how it is trained."""

    shape: dict[str, Any]
    length: int
    micro_batch: int
    dtype: str
    device: str
    micro_batches: int = 2
    """Of a step; where there are several, gradients accumulate."""


LARGE = {str(count): Case(OPEN_LLAMA_13, 2048, count, "bfloat16", "cuda") for count in (1, 2, 4)}
SMALL = {
    "llama": Case(LLAMA_SMALL, 512, 2, "float32", "cpu"),
    "gpt2": Case(GPT2_SMALL, 512, 2, "float32", "cpu"),
}


def _smollm2_cases() -> dict[str, Case]:
    """The shape's step in two halves, as a whole, and as a whole in float32."""
    shape = SHAPES["smollm2-15"]
    cases = {}
    for dtype, count in (("bfloat16", 2), ("bfloat16", 1), ("float32", 1)):
        size = shape.batch_sequences // count
        title = f"smollm2-15, {dtype}, micro-batch {size}"
        cases[title] = Case(shape.config, shape.sequence_length, size, dtype, "cpu", count)
    return cases


CPU_CASES = SMALL | _smollm2_cases()
CPU_SHAPES = list(dict.fromkeys(title.split(",")[0] for title in CPU_CASES))


def main() -> None:
    """Predict, measure, print the tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=CPU_SHAPES, default=CPU_SHAPES, help="those a CPU trains")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        case, changes = json.loads(given.measure)
        print(json.dumps(measure(Case(**case), changes)))
        return
    import torch

    gpu = torch.cuda.is_available()
    predicted = {
        name: {count: predict(case, changes) for count, case in LARGE.items()} for name, changes in SETTINGS.items()
    }
    print("open-llama-3b-13, sequence 2048, bfloat16 products, GiB on the device at the peak of a step\n")
    print(predicted_table(predicted))
    large = {f"open-llama-3b-13, micro-batch {count}": case for count, case in LARGE.items()}
    chosen = {title: case for title, case in CPU_CASES.items() if title.split(",")[0] in given.shapes}
    cases = large if gpu else chosen
    measured: dict[str, dict[str, Any]] = {}
    for title, case in cases.items():
        measured[title] = {}
        for name, changes in (LOSSES if title.startswith("smollm2-15") else SETTINGS).items():
            found = in_a_process(case, changes)
            if found is None:
                print(f"{title}, {name}: not measured", file=sys.stderr)
            else:
                measured[title][name] = {"predicted": predict(case, changes), **found}
        print(f"\n{title}: predicted / measured, MiB\n")
        print(measured_table(measured[title]))
    if given.out:
        result = {
            "command": " ".join(["python", *sys.argv]),
            "commit": subprocess.run(
                ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
            ).stdout.strip(),
            "versions": {name: metadata.version(name) for name in ("torch", "transformers", "torchao") if there(name)},
            "device": torch.cuda.get_device_name() if gpu else processor(),
            "cases": {title: dataclasses.asdict(case) for title, case in cases.items()},
            "predicted": predicted,
            "measured": measured,
        }
        given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def config_of(case: Case) -> Any:
    """The transformers config of a case's shape."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**case.shape)


def settings(case: Case, changes: dict[str, Any]) -> Any:
    """The recipe's section."""
    from inheritune.config import TrainConfig

    known = {key: value for key, value in changes.items() if key != "plain_loss"}
    sizes = {"batch_sequences": case.micro_batches * case.micro_batch, "micro_batch_sequences": case.micro_batch}
    return TrainConfig(**sizes | {"compile": "never" if case.device == "cpu" else "always"} | known)


def loss_of(changes: dict[str, Any]) -> Any:
    """What puts a model together with its loss."""
    from training.plain import PlainLoss

    from inheritune.objective import Objective

    return PlainLoss if changes.get("plain_loss") else Objective


def predict(case: Case, changes: dict[str, Any]) -> dict[str, int]:
    """What the predictor says, part by part, in bytes."""
    import torch

    from inheritune.memory import predicted

    found = predicted(
        config_of(case),
        settings(case, changes),
        sequence_length=case.length,
        micro_batch=case.micro_batch,
        dtype=getattr(torch, case.dtype),
        device=case.device,
        loss=loss_of(changes),
        compiled_blocks=case.device == "cpu" and changes.get("compile") == "always",
    )
    return dataclasses.asdict(found) | {"total": found.total}


def in_a_process(case: Case, changes: dict[str, Any]) -> dict[str, Any] | None:
    """Measure one setting in a new process, whose allocator gives every large block back; None if it failed."""
    variables = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "HF_HUB_OFFLINE": "1",
                 "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, __file__, "--measure", json.dumps([dataclasses.asdict(case), changes])],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        print(done.stderr[-600:], file=sys.stderr)
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(case: Case, changes: dict[str, Any]) -> dict[str, Any]:
    """Train some steps from random init; the peak from outside, and the parts in a further step."""
    import torch

    from inheritune.memory import Live, forward_and_backward
    from inheritune.optimizer import gradient_norm, host_bytes, make_optimizer, take_step
    from inheritune.parallel import compile_blocks, place
    from inheritune.recomputation import recompute_blocks
    from inheritune.reference import fresh

    device, train = torch.device(case.device), settings(case, changes)
    before = resident("VmRSS:")
    model = fresh(config_of(case), 0).float().train()
    compiled = compile_blocks(model, train.compile, device, flops=0.0, report=print)
    place(model, device)
    if train.activation_checkpointing:
        recompute_blocks(model)
    objective = loss_of(changes)(model, getattr(torch, case.dtype))
    parameters = list(model.parameters())
    optimizer = make_optimizer(model, train, compiled=compiled)
    ids = torch.randint(case.shape["vocab_size"], (case.micro_batch, case.length), device=device)

    def passes(live: Live) -> None:
        for _ in range(case.micro_batches):
            forward_and_backward(objective, ids, live)

    def step(live: Live) -> None:
        passes(live)
        norm = gradient_norm(parameters)
        take_step(optimizer, torch.zeros((), device=device), norm, train.gradient_clip)

    idle = Live()
    step(idle)  # the moments are made, blocks compiled
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step(idle)
        torch.cuda.synchronize()
        return {"compiled": compiled, "allocated": torch.cuda.max_memory_allocated(),
                "reserved": torch.cuda.max_memory_reserved()}  # fmt: skip
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM begins anew
    step(idle)
    grown = resident("VmHWM:") - before
    live = Live()
    for tensor in (*model.parameters(), *model.buffers()):
        live.note(tensor, "weights")
    held = [tensor for state in optimizer.state.values() for tensor in state.values()]
    if not train.offload_optimizer:
        for tensor in [getattr(one, name, one) for one in held for name in ("codes", "scale")]:
            live.note(tensor, "optimizer")
    start = live.now["weights"] + live.now["optimizer"]
    parts = {}
    if not compiled:  # what runs within compiled code cannot be watched
        with live.watching(model):  # an offloaded step is the host's
            (passes if train.offload_optimizer else step)(live)
        optimizer.zero_grad()
        parts = {**live.peak, "total": sum(live.peak.values())}
    host = host_bytes(parameters, train)
    return {**parts, "host": host, "allocated": start + host + allocator_peak(lambda: step(idle)),
            "resident_growth": grown}  # fmt: skip


def allocator_peak(run: Callable[[], None]) -> int:
    """The most bytes that torch's CPU allocator gave out beyond those that were out when `run` began."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as made:
        run()
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "trace.json"
        made.export_chrome_trace(str(file))
        events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    now = most = 0
    for event in sorted((one for one in events if one.get("name") == "[memory]"), key=lambda one: one["ts"]):
        now += event["args"]["Bytes"]
        most = max(most, now)
    return most


def resident(field: str) -> int:
    """This process's resident memory by a field of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def fits(total: int, card: int) -> bool:
    """Whether a step fits a card of so many GiB: 5% for the allocator's rounding and fragments, 0.6 GiB for CUDA."""
    return total <= 0.95 * card * 2**30 - 0.6 * 2**30


def predicted_table(predicted: dict[str, dict[str, Any]]) -> str:
    """The large shape's predictions as Markdown, in GiB."""
    heads = ["setting", "micro-batch", *PARTS, "total", "host", *(f"fits {card}" for card in CARDS)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, counts in predicted.items():
        for count, parts in counts.items():
            fitting = ["yes" if fits(parts["total"], card) else "no" for card in CARDS]
            values = [f"{parts[part] / 2**30:.2f}" for part in (*PARTS, "total", "host")]
            lines.append("| " + " | ".join([name, count, *values, *fitting]) + " |")
    return "\n".join(lines)


def measured_table(found: dict[str, Any]) -> str:
    """Predicted / measured as Markdown, in MiB; allocator and process contain the host's part where device is host."""
    heads = ["setting", *PARTS, "total with host", "allocator", "predicted / allocator", "process"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, one in found.items():
        expected = one["predicted"]
        parts = [
            f"{mebi(expected[part])} / {mebi(one[part])}" if part in one else mebi(expected[part]) for part in PARTS
        ]
        on_gpu = "reserved" in one
        whole = expected["total"] + (0 if on_gpu else expected["host"])
        outside = one["reserved"] if on_gpu else one["resident_growth"]
        ratio = f"{whole / one['allocated']:.3f}"
        lines.append(
            "| " + " | ".join([name, *parts, mebi(whole), mebi(one["allocated"]), ratio, mebi(outside)]) + " |"
        )
    return "\n".join(lines)


def mebi(size: int) -> str:
    """Bytes in MiB."""
    return f"{size / 2**20:.0f}"


def there(package: str) -> bool:
    """Whether a package is installed."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def processor() -> str:
    """The processor's name and the number of its cores in use."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"{name}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
