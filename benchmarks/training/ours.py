"""Worker: this project's Trainer, blocks compiled, on a prepared directory. Nothing is validated or saved."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import transformers
from clock import Clock, Job, read_job
from inputs import SEED
from kinds import by_kind
from transformers import AutoModelForCausalLM

from inheritune.config import TrainConfig
from inheritune.distributed import joined
from inheritune.run_directory import read_jsonl
from inheritune.tokens import open_prepared
from inheritune.training import Trainer


def main() -> None:
    """Train as the job says."""
    job = read_job()
    clock = Clock(job)
    said: list[str] = []
    # on one rank no launcher is there, and the world is this process
    with joined() as world, tempfile.TemporaryDirectory(dir=job.directory) as own:
        assert world.device.type == job.device
        scratch = world.gathered(own)[0]
        trainer = Trainer(
            model=AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32),
            prepared=open_prepared(Path(job.data)),
            config=config(job),
            directory=Path(scratch),
            sequence_length=job.sequence_length,
            passes=1,
            report=said.append,
            progress=lambda _: None,
            world=world,
        )
        if job.settings.get("profile"):
            torch._inductor.config.cpp.enable_kernel_profile = True
        profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
        clock.run(trainer.run, profiler if job.settings.get("profile") else None)
        if not world.main:
            return
        steps = [record for record in read_jsonl(Path(scratch) / "metrics.jsonl") if record["kind"] == "step"]
    profiled = {"profile": by_kind(profiler, job.steps)} if job.settings.get("profile") else {}
    losses = [step["loss"] for step in steps]
    clock.finish(losses=losses, said=said, transformers=transformers.__version__, **profiled)


def config(job: Job) -> TrainConfig:
    """The recipe's part that says how to train: everything else at its default."""
    return TrainConfig(
        batch_sequences=job.batch_sequences,
        micro_batch_sequences=job.micro_batch_sequences,
        learning_rate=job.learning_rate,
        final_learning_rate=job.learning_rate,
        warmup_steps=0,
        weight_decay=job.weight_decay,
        beta1=job.beta1,
        beta2=job.beta2,
        epsilon=job.epsilon,
        gradient_clip=job.gradient_clip,
        max_steps=job.all_steps,
        validate_every_steps=10**9,
        checkpoint_every_steps=10**9,
        compute_dtype=job.dtype,
        compile="always",
        parallel=job.settings.get("parallel", "auto"),
        seed=SEED,
    )


if __name__ == "__main__":
    main()
