"""Worker: what a good engineer writes in forty lines over a transformers model: compiled, fused AdamW, autocast."""

from __future__ import annotations

import torch
import transformers
from clock import Clock, Job, Rows, read_job
from torch.nn import functional as F
from transformers import AutoModelForCausalLM


def main() -> None:
    """Train as the job says."""
    job = read_job()
    clock = Clock(job)
    if job.device == "cuda":
        torch.set_float32_matmul_precision("high")
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32).to(job.device).train()
    clock.run(lambda: train(job, model, clock))
    clock.finish(transformers=transformers.__version__)


def train(job: Job, model: torch.nn.Module, clock: Clock) -> None:
    """The loop."""

    def loss_of(ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(job.device, torch.bfloat16, enabled=job.dtype == "bfloat16"):
            logits = model(input_ids=ids, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())

    if job.settings["compile"]:
        loss_of = torch.compile(loss_of)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": job.weight_decay},
            {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=job.learning_rate, betas=(job.beta1, job.beta2), eps=job.epsilon, fused=True,
    )  # fmt: skip
    rows, micro = Rows(job), job.micro_batch_sequences
    for start in range(0, len(rows), job.batch_sequences):
        for first in range(start, start + job.batch_sequences, micro):
            batch = torch.stack([rows[index] for index in range(first, first + micro)])
            if job.device == "cuda":
                batch = batch.pin_memory().to(job.device, non_blocking=True)
            loss = loss_of(batch[:, :-1].contiguous(), batch[:, 1:].contiguous()) / job.accumulation
            loss.backward()
            clock.note(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), job.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    main()
