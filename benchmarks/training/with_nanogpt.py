"""Worker: nanoGPT's own train.py, going on from a checkpoint that holds the given weights.

A copy of the source is changed in four places, each of which must be there: the batches are the given ones, the loss is
noted, autocast is used on a CPU too, and AdamW is fused where the settings say so. Everything else is an override on
its command line.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from clock import Clock, Job, Rows, read_job
from safetensors.torch import load_file

TRANSPOSED = re.compile(r"(c_attn|c_proj|c_fc)\.weight$")
"""transformers keeps these as (inputs, outputs)."""

TRAIN_CHANGES = {
    "ctx = nullcontext() if device_type == 'cpu' else": "ctx =",
    "autocast(device_type=device_type, dtype=ptdtype)": (
        "autocast(device_type=device_type, dtype=ptdtype, enabled=ptdtype != torch.float32)"
    ),
    "    ix = torch.randint(len(data) - block_size, (batch_size,))\n": "    rows = next(BATCHES)\n",
    "    x = torch.stack([torch.from_numpy((data[i:i+block_size]).astype(np.int64)) for i in ix])\n": (
        "    x = rows[:, :-1].contiguous()\n"
    ),
    "    y = torch.stack([torch.from_numpy((data[i+1:i+1+block_size]).astype(np.int64)) for i in ix])\n": (
        "    y = rows[:, 1:].contiguous()\n"
    ),
    "        # immediately async prefetch next batch while": "        CLOCK.note(loss)\n        #",
}
"""What is changed in train.py, and into what; `BATCHES` and `CLOCK` are put into its globals."""


def main() -> None:
    """Train as the job says."""
    job = read_job()
    clock = Clock(job)
    source = Path(job.directory) / "nanogpt"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir()
    for file in Path(job.source).glob("*.py"):
        shutil.copy(file, source)
    os.chdir(source)
    sys.path.insert(0, str(source))
    fused = "fused_available" if job.settings["fused"] else "False"
    replace(source / "model.py", {"fused_available and device_type == 'cuda'": fused})
    replace(source / "train.py", TRAIN_CHANGES)
    write_checkpoint(job, source / "out")
    (source / "data" / "given").mkdir(parents=True)
    (source / "data" / "given" / "train.bin").symlink_to(job.stream)
    sys.argv = ["train.py", *overrides(job)]
    program = compile((source / "train.py").read_text(encoding="utf-8"), "train.py", "exec")
    clock.run(lambda: exec(program, {"__name__": "__main__", "CLOCK": clock, "BATCHES": batches(job)}))
    clock.finish()


def replace(path: Path, changes: dict[str, str]) -> None:
    """Change a file.

    Raises:
        SystemExit: it does not hold what is to be changed exactly once: another version of the source.
    """
    text = path.read_text(encoding="utf-8")
    for old, new in changes.items():
        if text.count(old) != 1:
            raise SystemExit(f"{path.name}: found {text.count(old)} times instead of once: {old.strip()}")
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def batches(job: Job) -> Any:
    """The micro-batches in their order, (micro-batch, T + 1) int64 each."""
    rows, micro = Rows(job), job.micro_batch_sequences
    for first in range(0, len(rows), micro):
        yield torch.stack([rows[index] for index in range(first, first + micro)])


def write_checkpoint(job: Job, directory: Path) -> None:
    """What `init_from=resume` reads: the weights, no moments yet, and a step after which no evaluation is due."""
    from model import GPT, GPTConfig

    config = job.config
    shape = {
        "n_layer": config["n_layer"], "n_head": config["n_head"], "n_embd": config["n_embd"],
        "block_size": config["n_positions"], "bias": True, "vocab_size": config["vocab_size"], "dropout": 0.0,
    }  # fmt: skip
    weights = load_file(f"{job.model}/model.safetensors")
    weights = {f"transformer.{name.removeprefix('transformer.')}": value for name, value in weights.items()}
    weights = {k: v.t().contiguous() if TRANSPOSED.search(k) else v for k, v in weights.items()}
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    model = GPT(GPTConfig(**shape))
    model.load_state_dict(weights)
    optimizer = model.configure_optimizers(
        job.weight_decay, job.learning_rate, (job.beta1, job.beta2), job.device
    ).state_dict()
    directory.mkdir()
    torch.save(
        {"model": weights, "optimizer": optimizer, "model_args": shape, "iter_num": 1, "best_val_loss": 1e9},
        directory / "ckpt.pt",
    )


def overrides(job: Job) -> list[str]:
    """The job in nanoGPT's words. Its AdamW has torch's default epsilon, 1e-8."""
    settings = {
        "init_from": "resume", "dataset": "given", "eval_interval": 10**9, "log_interval": 10**9,
        "batch_size": job.micro_batch_sequences, "gradient_accumulation_steps": job.accumulation,
        "block_size": job.sequence_length, "bias": True, "dropout": 0.0, "learning_rate": job.learning_rate,
        "decay_lr": False, "weight_decay": job.weight_decay, "beta1": job.beta1, "beta2": job.beta2,
        "grad_clip": job.gradient_clip, "max_iters": 10**9, "device": job.device, "dtype": job.dtype,
        "compile": job.settings["compile"],
    }  # fmt: skip
    return [f"--{name}={value}" for name, value in settings.items()]


if __name__ == "__main__":
    main()
