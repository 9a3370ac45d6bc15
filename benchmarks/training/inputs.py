"""Writes what all workers of a shape read: a model from seeded random init, and tokens in ours' form and as a stream.

    python inputs.py JOB

The tokens are random, low ids more frequent than high ones: what they say makes no step faster or slower.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clock import read_job
from transformers import AutoConfig, AutoModelForCausalLM

from inheritune.planning import training_flops_per_token
from inheritune.run_directory import write_json
from inheritune.tokens import TrainingBlocks, open_prepared

SEED = 0


def main() -> None:
    """Write model and data into the job's directory; the result is what the shape costs."""
    job = read_job()
    directory = Path(job.directory)
    keys: dict[str, Any] = dict(job.config)
    config = AutoConfig.for_model(keys.pop("model_type"), **keys)
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(directory / "model", max_shard_size="1TB")
    write_tokens(directory / "data", job.config["vocab_size"], job.sequence_length, job.all_steps * job.batch_sequences)
    blocks = TrainingBlocks(
        open_prepared(directory / "data").set("train"), job.sequence_length, 1, job.batch_sequences, SEED
    )
    order = [block for step in range(blocks.steps) for block in blocks.indices(step)]
    np.save(directory / "order.npy", np.array(order))
    write_json(
        Path(job.result),
        {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "flops_per_token": training_flops_per_token(model, job.sequence_length),
        },
    )


def write_tokens(directory: Path, vocabulary: int, sequence_length: int, blocks: int) -> None:
    """A training set of so many blocks in one document, as `inheritune prepare` would write it."""
    random = np.random.default_rng(SEED)
    tokens = (vocabulary * random.random(blocks * sequence_length + 1) ** 3).astype("<u2")
    folder = directory / "train"
    folder.mkdir(parents=True)
    tokens.tofile(folder / "00000.ds")
    np.array([len(tokens)], "<u8").tofile(folder / "00000.ds.index")
    np.array([3 * len(tokens)], "<u8").tofile(folder / "00000.ds.bytes")
    digest = hashlib.sha256(tokens.tobytes()).hexdigest()
    file = {"name": "00000.ds", "tokens": len(tokens), "documents": 1, "sha256": digest}
    train = {"tokens": len(tokens), "documents": 1, "files": [file]}
    tokenizer = {"vocabulary": vocabulary, "end_of_text": 0, "token_bytes": 2}
    write_json(directory / "manifest.json", {"sets": {"train": train}, "tokenizer": tokenizer})


if __name__ == "__main__":
    main()
