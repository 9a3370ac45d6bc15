"""Worker: litgpt's own `pretrain.main` on the given weights and rows.

Changed from outside: no validation, no logger; the loss is noted; without `compile` torch.compile is left out;
with `whole_loss` the cross-entropy is not taken in chunks of 128 tokens. AdamW decays every parameter: litgpt makes one
group of them.
"""

from __future__ import annotations

import functools
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import lightning
import torch
from clock import Clock, Job, Rows, read_job
from litgpt import pretrain
from litgpt.args import EvalArgs, TrainArgs
from litgpt.config import Config
from litgpt.data import DataModule
from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
from safetensors.torch import load_file
from torch.utils.data import DataLoader


class Stored(DataModule):
    """The rows as litgpt asks for data."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job

    def connect(self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int | None = None) -> None:
        """Everything is known already."""

    def train_dataloader(self) -> DataLoader[torch.Tensor]:
        """In the given order."""
        return DataLoader(
            Rows(self._job),
            batch_size=self._job.micro_batch_sequences,
            num_workers=self._job.settings["workers"],
            pin_memory=self._job.device == "cuda",
        )

    def val_dataloader(self) -> DataLoader[torch.Tensor]:
        """Never read: validation is left out."""
        return self.train_dataloader()


def main() -> None:
    """Train as the job says."""
    job = read_job()
    clock = Clock(job)
    if job.device == "cuda":
        torch.set_float32_matmul_precision("high")  # as litgpt's command line does
    plain_loss = pretrain.chunked_cross_entropy
    if job.settings["whole_loss"]:
        plain_loss = functools.partial(plain_loss, chunk_size=0)

    def noted_loss(logits: torch.Tensor, targets: torch.Tensor, **settings: Any) -> torch.Tensor:
        loss = plain_loss(logits, targets, **settings)
        if loss.device.type != "meta":  # where litgpt counts operations
            clock.note(loss / job.accumulation)
        return loss

    pretrain.chunked_cross_entropy = noted_loss
    pretrain.validate = lambda *_, **__: torch.zeros(())
    if not job.settings["compile"]:
        torch.compile = lambda model, *_, **__: model  # type: ignore[assignment]
    checkpoint = converted(job)
    with tempfile.TemporaryDirectory(dir=job.directory) as scratch:
        clock.run(lambda: train(job, checkpoint, Path(scratch)))
    clock.finish(litgpt=metadata.version("litgpt"), lightning=lightning.__version__)


def train(job: Job, checkpoint: Path, scratch: Path) -> None:
    """litgpt's pre-training, from Fabric on."""
    mixed = "bf16-mixed" if job.dtype == "bfloat16" else "32-true"
    fabric = lightning.Fabric(accelerator=job.device, devices=1, precision=mixed)
    fabric.launch()
    tokens = job.all_steps * job.batch_sequences * job.sequence_length
    pretrain.main(
        fabric=fabric,
        devices=1,
        seed=0,
        initial_checkpoint_dir=checkpoint,
        resume=False,
        config=shape(job.config, job.sequence_length),
        data=Stored(job),
        out_dir=scratch,
        tokenizer_dir=None,
        tokenizer=None,
        train=TrainArgs(
            save_interval=None,
            log_interval=10**9,
            global_batch_size=job.batch_sequences,
            micro_batch_size=job.micro_batch_sequences,
            lr_warmup_steps=0,
            max_tokens=tokens,
            max_seq_length=job.sequence_length,
            tie_embeddings=job.config["tie_word_embeddings"],
            max_norm=job.gradient_clip,
            min_lr=job.learning_rate,
        ),
        eval=EvalArgs(interval=10**9, initial_validation=False, final_validation=False),
        optimizer=optimizer(job),
    )


def optimizer(job: Job) -> dict[str, Any]:
    """AdamW as litgpt's configuration names it. litgpt sets `fused` on CUDA alone; here the settings say so."""
    pretrain.instantiate_torch_optimizer = functools.partial(_instantiate, fused=job.settings["fused"])
    return {
        "class_path": "torch.optim.AdamW",
        "init_args": {
            "lr": job.learning_rate,
            "betas": (job.beta1, job.beta2),
            "eps": job.epsilon,
            "weight_decay": job.weight_decay,
        },
    }


def _instantiate(settings: dict[str, Any], parameters: Any, *, fused: bool, **_: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, fused=fused, **settings["init_args"])


def shape(config: dict[str, Any], sequence_length: int) -> Config:
    """A transformers LLaMA config in litgpt's words; the vocabulary is not padded."""
    return Config(
        name="benchmark",
        block_size=sequence_length,
        n_layer=config["num_hidden_layers"],
        n_embd=config["hidden_size"],
        n_head=config["num_attention_heads"],
        n_query_groups=config["num_key_value_heads"],
        intermediate_size=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        padded_vocab_size=config["vocab_size"],
        rotary_percentage=1.0,
        rope_base=10000,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=1e-6,
        mlp_class_name="LLaMAMLP",
    )


def converted(job: Job) -> Path:
    """The directory with the weights in litgpt's form, written by litgpt's own conversion where it is not there yet."""
    directory = Path(job.directory) / "litgpt"
    if not (directory / "lit_model.pth").exists():
        directory.mkdir(exist_ok=True)
        weights: dict[str, torch.Tensor] = {}
        found = load_file(f"{job.model}/model.safetensors")
        copy_weights_hf_llama(shape(job.config, job.sequence_length), {}, weights, found)
        torch.save(weights, directory / "writing.pth")
        (directory / "writing.pth").rename(directory / "lit_model.pth")
    return directory


if __name__ == "__main__":
    main()
