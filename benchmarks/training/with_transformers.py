"""Worker: transformers' Trainer on tokenised sequences, without logging, saving or progress bars."""

from __future__ import annotations

import tempfile
from typing import Any

import accelerate
import torch
import transformers
from clock import Clock, Job, Rows, read_job
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments


class Examples(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The rows as the model's arguments; labels come shifted, so that every input has one."""

    def __init__(self, job: Job) -> None:
        self._rows = Rows(job)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self._rows[index]
        return {"input_ids": row[:-1], "labels": row[1:], "shift_labels": row[1:]}


class Timed(Trainer):
    """The Trainer, with sequences in the given order and each loss noted."""

    clock: Clock

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def compute_loss(self, *arguments: Any, **settings: Any) -> Any:
        loss = super().compute_loss(*arguments, **settings)
        self.clock.note(loss)
        return loss


def main() -> None:
    """Train as the job says."""
    job = read_job()
    clock = Clock(job)
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    model.config.use_cache = False
    with tempfile.TemporaryDirectory(dir=job.directory) as scratch:
        trainer = Timed(model=model, args=arguments(job, scratch), train_dataset=Examples(job))
        trainer.clock = clock
        clock.run(trainer.train)
    clock.finish(transformers=transformers.__version__, accelerate=accelerate.__version__)


def arguments(job: Job, scratch: str) -> TrainingArguments:
    """The job in the Trainer's words."""
    cuda = job.device == "cuda"
    return TrainingArguments(
        output_dir=scratch,
        max_steps=job.all_steps,
        per_device_train_batch_size=job.micro_batch_sequences,
        gradient_accumulation_steps=job.accumulation,
        learning_rate=job.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=job.weight_decay,
        adam_beta1=job.beta1,
        adam_beta2=job.beta2,
        adam_epsilon=job.epsilon,
        max_grad_norm=job.gradient_clip,
        optim="adamw_torch_fused",
        bf16=job.dtype == "bfloat16",
        tf32=True if cuda else None,
        use_cpu=not cuda,
        torch_compile=job.settings["compile"],
        use_liger_kernel=job.settings.get("liger", False),
        dataloader_num_workers=job.settings["workers"],
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )


if __name__ == "__main__":
    main()
