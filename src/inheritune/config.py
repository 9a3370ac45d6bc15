"""The recipe: one frozen dataclass a stage, and how it is loaded, overridden, validated and dumped.

Precedence, in one sentence: defaults < the recipe's YAML < command-line flags. The YAML keys and the flags are the same
names (`data: {passes: 4}` is `--data.passes 4`). Unknown keys are refused. This module imports no torch.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal

_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}

PARTS = ("attention", "mlp", "block_norms", "embeddings", "final_norm", "head")
"""The parts of a model that can be inherited by themselves, in the order in which an init word names them."""


class TokenCount(int):
    """A number of tokens, written `131072`, `131_072`, `500K`, `100M`, `1B` or `1.5T` (decimal suffixes)."""

    def __new__(cls, value: int | float | str) -> TokenCount:
        if isinstance(value, bool):
            raise ValueError("a token count is a number such as 131072, 100M or 1B")
        if isinstance(value, float):
            if not value.is_integer():
                raise ValueError("a token count is a whole number")
            value = int(value)
        if isinstance(value, str):
            match = re.fullmatch(r"([0-9][0-9_]*(?:\.[0-9]+)?)\s*([KMBT]?)", value.strip(), re.IGNORECASE)
            if match is None:
                raise ValueError("a token count is a number such as 131072, 100M or 1B")
            whole, _, fraction = match.group(1).replace("_", "").partition(".")
            # Exact decimal arithmetic: float("1.1") * 10**9 would be 1100000000.0000001.
            scaled = int(whole + fraction) * _SUFFIXES[match.group(2).upper()]
            value, remainder = divmod(scaled, 10 ** len(fraction))
            if remainder:
                raise ValueError("a token count is a whole number")
        return super().__new__(cls, value)


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Where text comes from, and what share of the training tokens it gives."""

    path: str
    """A file, glob or directory of .jsonl/.json (also .gz, .zst), .parquet, .txt, .md; `hub:ORG/NAME` for a data set of
    the Hugging Face hub (or of a local mirror), `hub:ORG/NAME/data/*.jsonl` for files in it; or `python-source`."""
    weight: float = 1.0
    """Share of the training tokens, relative to the other sources' weights."""
    text_field: str = "text"
    """The field of a JSONL or Parquet record that holds the text."""
    document_separator: str | None = None
    """Plain text and Markdown: what separates documents (`"\\n\\n"` for blank lines). Unset: a file is one document."""
    repeat: bool = False
    """Whether the source may be repeated when it holds fewer tokens than its share; otherwise that is an error."""
    subset: str | None = None
    """Whole hub data sets: the configuration's name."""
    split: str = "train"
    """Whole hub data sets: the split."""


@dataclasses.dataclass(frozen=True)
class SlurmConfig:
    """The jobs of `executor: slurm`, of one core each.

    What is not here (account, quality of service) sbatch takes from its own variables, such as SBATCH_ACCOUNT.
    """

    partition: str
    """Where the jobs run."""
    time_limit_minutes: int = 240
    """Of each job; what it did not finish in time, the same command, given again, goes on with."""
    memory_gigabytes: int = 4
    """Of each job."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Text to token shards: `inheritune prepare`."""

    sources: list[SourceConfig] = dataclasses.field(default_factory=list)
    """What to train on; documents of the held-out sets come from here too, by a hash of their content."""
    tokens: TokenCount | None = None
    """Training tokens, end-of-text included, exactly; unique, but for sources that may `repeat`. Unset: all there are
    (only with a single source)."""
    passes: int = 1
    """How many times every training block is seen, each time in a new order."""
    sequence_length: int = 1024
    """Tokens of input a sequence; labels are the next tokens."""
    validation_share: float = 0.02
    """Share of documents, by hash of content, set apart to judge by."""
    validation_tokens: TokenCount = TokenCount(1_000_000)
    """At most this many tokens of them make the validation set `held-out`, evaluated whole."""
    development_share: float = 0.02
    """Share of documents, by hash of content, set apart to choose by (learning rates, best checkpoint)."""
    development_tokens: TokenCount = TokenCount(1_000_000)
    """At most this many tokens of them make the development set."""
    document_tokens: int | None = None
    """Training documents are cut to their first so many tokens: where they are long (books) more of them are seen for
    the same tokens. Unset: they stay whole."""
    held_out_document_tokens: int | None = None
    """Held-out documents are cut to their first so many tokens: more documents, a tighter interval, at the same
    cost."""
    validation_sets: dict[str, SourceConfig] = dataclasses.field(default_factory=dict)
    """Further validation sets by name (general text, say, to see what is forgotten): every document, up to
    `validation_tokens`."""
    exclude_seen: str | None = None
    """A file of content hashes, one in hexadecimal a line, that must not be in any validation or development set: what
    the reference was trained on. `reference` takes the list that a packaged reference ships."""
    add_bos: Literal["auto", "always", "never"] = "auto"
    """Begin each document with the beginning-of-sequence token; `auto`: if the tokenizer itself does."""
    on_bad_line: Literal["error", "skip"] = "error"
    """A malformed record or undecodable text ends with its file and line, or is skipped and counted."""
    exact_duplicates: Literal["keep", "drop"] = "keep"
    """What to do with documents whose content occurred before. Either way all copies fall into the same set."""
    seed: int = 0
    """Which documents are sampled, and in which order."""
    workers: int = 0
    """Processes that read and tokenise; 0: one a core. With `executor: slurm` the number of jobs, up to 1000. The bytes
    written do not depend on it."""
    executor: Literal["local", "slurm", "ray"] = "local"
    """Where they run: on this machine, as jobs of a Slurm cluster, or on Ray (the cluster that RAY_ADDRESS names, else
    one that runs here, else one started for the occasion). The sources, the directory that is written and this
    installation must be on a file system that all nodes share. The bytes written do not depend on it."""
    slurm: SlurmConfig | None = None
    """With `executor: slurm`, and only then: `{partition: NAME}`, and if need be `time_limit_minutes` (of each job,
    default 240) and `memory_gigabytes` (default 4)."""
    document_mask: bool = False
    """Keep documents from seeing each other: attention stays within a document, positions begin anew with each. Off:
    sequences are cut from one stream, and a token sees what stands before it in its sequence."""
    relation: Literal["subset", "other", "unknown"] = "unknown"
    """How the sources relate to what the reference was pre-trained on, as far as you know: a `subset` of it, `other`
    text, or `unknown`. Nothing is computed from it; model card and report say it."""
    prepared: str | None = None
    """A directory that `inheritune prepare` wrote: use it as it is, instead of `sources`."""


@dataclasses.dataclass(frozen=True)
class ArchitectureConfig:
    """A model from random init, where there is no reference yet: how the packaged reference was made."""

    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keys of a transformers config, `model_type` among them."""
    vocabulary: int = 4096
    """Entries of the byte-level BPE that is trained on the sources."""
    tokenizer: str | None = None
    """An existing tokenizer's directory or hub id, instead of training one."""


@dataclasses.dataclass(frozen=True)
class InheritConfig:
    """Surgery: which layers of the reference the target keeps, and what of them it starts from."""

    layers: int | str = "half"
    """Which of the reference's N layers to keep, counted from 0: `13` (the first 13), `half` (the first N/2, rounded
    down), `0-11,25` (these), `every:2` (every second), `last:13`, `first:12+last:1`. Measured on tokens of the training
    set: `influence:13` (the 13 that turn the hidden state most one by one; Men et al. 2024, arXiv 2403.03853) or
    `angular:13` (all but the one contiguous stretch of N - 13 that turns it least; Gromov et al. 2024, arXiv
    2403.17887). `probe:13`: several choices of 13 are trained a little, the better half of them goes on, and so forth,
    until one is left, by the loss on the development set; `probe:1.5B`: of the most layers that leave at most so many
    parameters."""
    probe_tokens: TokenCount | None = None
    """With `layers: probe:N`, and only then: tokens that its candidates are trained on, all together. Unset: half as
    many as the target is."""
    init: str = "inherit"
    """What the target starts from: `inherit` (the layers kept, with embeddings, final norm and head), `random` (random
    init), `stack` (the first ceil(n/2) layers repeated, cut to n, with embeddings, final norm and head), or parts
    alone, the rest from random init: a sum such as `attention+block_norms` of `attention`, `mlp`, `block_norms` (in
    the layers kept), `embeddings`, `final_norm`, `head`."""


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """Learning from the reference's predictions beside the text (Hinton, Vinyals and Dean 2015, arXiv 1503.02531)."""

    temperature: float = 1.0
    """What both models' scores are divided by before they are compared; the term is multiplied by its square."""
    weight: float = 0.6
    """Share of the reference's predictions (forward KL divergence) in what is minimised; the rest is the text's."""


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What training minimises: next-token cross-entropy, or that and the distance to the reference's predictions."""

    distill: DistillConfig | None = None
    """`{temperature: 1, weight: 0.6}`: distillation from the reference. Unset: next-token cross-entropy alone."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Optimisation of the target; the controls are trained by the same settings."""

    batch_sequences: int = 64
    """Sequences a step, all micro-batches together."""
    micro_batch_sequences: int | Literal["auto"] = 8
    """Sequences a forward pass of one rank; gradients are accumulated, averaged by tokens, up to `batch_sequences`.
    `auto`: the most that fit into memory, found once and kept in the run directory."""
    learning_rate: float | list[float] = 3e-4
    """Peak learning rate, reached after the warm-up. A list: every model, target and controls, is trained whole with
    each, and keeps what ends with the lowest loss on the development set, so that none is tuned more than another."""
    final_learning_rate: float = 0.0
    """Learning rate at the end of the cosine."""
    warmup_steps: int = 100
    """Steps of linear warm-up; fewer than the run's steps."""
    weight_decay: float = 0.1
    """Decoupled weight decay, on matrices alone (not on norms, biases)."""
    beta1: float = 0.9
    """AdamW's decay of the first moment."""
    beta2: float = 0.95
    """AdamW's decay of the second moment."""
    epsilon: float = 1e-8
    """AdamW's denominator term."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """`adamw_8bit`: AdamW with its moments quantised in blocks, 2 bytes a parameter instead of 8; needs torchao, and
    ranks that each hold the whole training state."""
    offload_optimizer: bool = False
    """Keep AdamW's moments in the host's memory and compute its step there: nothing of them on the GPU, for the time
    that weights and gradients take to the host and back. The same training."""
    activation_checkpointing: bool = False
    """Let each layer keep its input alone for the backward pass and compute the rest again there: the same training
    with less memory, for about a third more time."""
    gradient_clip: float = 1.0
    """Largest global gradient norm; 0: no clipping."""
    spike_factor: float = 10.0
    """A step whose gradient norm is not finite, or above this many times its running median, is skipped; 0: only those
    that are not finite."""
    skipped_in_a_row: int = 10
    """So many skipped steps in a row end the run; the last checkpoint is kept."""
    max_steps: int | None = None
    """Stop after so many steps; the schedule ends there too. Unset: all passes."""
    validate_every_steps: int | Literal["auto"] = "auto"
    """Steps between evaluations of the development and the validation sets during training; before the first step and
    after the last they are evaluated anyway. `auto`: as often as takes a twenty-fifth of the training's time."""
    checkpoint_every_steps: int = 200
    """Steps between checkpoints; one is always written at the end and when interrupted."""
    keep_checkpoints: int | Literal["all"] = 2
    """How many of the last checkpoints are kept; `all`: every one, with 12 bytes a parameter each."""
    export: Literal["last", "best"] = "last"
    """Which weights go to `model/`: the last, or those with the lowest loss on the development set."""
    compute_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """What matrix products are computed in; weights and optimiser stay float32. `auto`: bfloat16 where the hardware
    gains."""
    compile: Literal["auto", "always", "never"] = "auto"
    """torch.compile of the blocks; `auto`: where a compiler works and the run is long enough to repay it."""
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    """What is minimised."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """Under torchrun: every rank holds the whole training state (`ddp`), or a share of it (`fsdp`); `auto`: `ddp` where
    the state takes less than half of a device's memory."""
    fsdp_ranks: int | None = None
    """Ranks that share one copy of the training state, where there are several copies (hybrid sharding), such as the
    GPUs of a node; it divides the number of ranks. Unset: one copy over all ranks."""
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Also log metrics to a tracker."""
    seed: int = 0
    """Order of the blocks, and the controls' random init."""

    @property
    def learning_rates(self) -> list[float]:
        """The peak learning rates that a model is trained with, one after the other."""
        return self.learning_rate if isinstance(self.learning_rate, list) else [self.learning_rate]

    @property
    def peak_learning_rate(self) -> float:
        """The only one of them, or the first."""
        return self.learning_rates[0]


@dataclasses.dataclass(frozen=True)
class GrowConfig:
    """The full-data recipe: inherit, train, compare with the reference, inherit more layers, until it is matched."""

    start: int | Literal["half"] = "half"
    """Layers of the first round; `half`: the reference's N divided by 2, rounded down."""
    step: int = 2
    """Layers that each round has more than the one before."""
    most: int | None = None
    """Layers of the last round that is planned. Unset: the most that the steps reach within the reference's."""
    choice: Literal["first", "last", "every-other"] = "first"
    """Which of the reference's layers a round inherits: the first, the last, or as many spread evenly."""
    tolerance_nats: float = 0.01
    """How far above the reference's loss, in nats a token, still counts as a match."""
    margin: Literal["non-inferior", "superior"] = "non-inferior"
    """What a match is: the upper bound of target - reference below `tolerance_nats`, or (`superior`) below 0."""
    alpha: float = 0.05
    """How probable a false match may be, over all planned rounds together: each bound is at alpha / rounds."""
    decision_seeds: int = 1
    """With how many seeds of the training a round that matches is trained, the first included, before it counts: every
    one must match. Fewer matches by luck, and more good targets missed (studies/decision_rule)."""
    pilot_steps: int = 50
    """Before the first round a target of the middle depth is trained for so many steps (at most a round's), and thrown
    away, to foresee what difference the validation set can resolve; a smaller tolerance is refused. 0: nothing is
    foreseen."""
    abandon: Literal["off", "auto"] = "off"
    """`auto`: stop a round early whose loss, extrapolated under the learning-rate schedule, cannot match any more."""
    growth: Literal["cold", "warm"] = "cold"
    """`cold`: every round inherits afresh from the reference. `warm`: it keeps what the round before trained (with its
    first seed), with the reference's next layers above."""
    warm_steps: int | None = None
    """Steps of the rounds after the first where growth is warm. Unset: half as many as the first has."""


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """Other data for the target, trained for the same steps: fresh tokens instead of repeated ones, or the reverse."""

    tokens: TokenCount | None = None
    """Unique training tokens, as `data.tokens`."""
    passes: int = 1
    """How many times every training block is seen."""
    prepared: str | None = None
    """Where `data.prepared` is used, the other directory that `inheritune prepare` wrote."""


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """What the target scores on tasks of lm-evaluation-harness while it trains; a growth's every round does."""

    every_tokens: TokenCount | None = None
    """Evaluated after each step that brings the tokens trained to a multiple of so many, and after the last. Unset:
    after the last alone."""
    suite: str = "quick"
    """`table2`, `table4`, `quick`, or the harness's task names, each with its shots (`piqa:0,mmlu:5`)."""
    datasets: str | None = None
    """A directory that holds the tasks' data sets, `ORG/NAME/...`. Unset: the hub, or its cache."""
    limit: int | None = None
    """At most so many rows of each task; what comes of it is marked as such. Unset: all."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """An experiment, whole: everything a run needs to be repeated."""

    name: str = "run"
    """Names the default output directory `runs/NAME`."""
    reference: str | None = None
    """The large model: a directory, a GGUF file, a hub id, or `packaged:demo`."""
    reference_file: str | None = None
    """Of a hub id or a directory that holds GGUF files: which one is the reference, such as `model.Q4_1.gguf`."""
    reference_dtype: Literal["float32", "bfloat16"] | None = None
    """Of a GGUF file: what it is dequantised to. float32 (unset) holds every value as it comes; bfloat16 takes half of
    the room, in memory and in the target's files, and rounds."""
    revision: str | None = None
    """The reference's revision on the hub."""
    trust_remote_code: bool = False
    """Whether code that comes with the reference may be run."""
    architecture: ArchitectureConfig | None = None
    """Instead of a reference: train this from random init (how a reference is made)."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    """Text to token shards."""
    inherit: InheritConfig = dataclasses.field(default_factory=InheritConfig)
    """Which layers are kept, and what the target starts from."""
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    """How the target is trained."""
    grow: GrowConfig | None = None
    """The full-data recipe instead of one target: `{}` for its defaults. With an `architecture` the reference is
    trained first, by the same settings. `grow` says the layers, so `inherit.layers` is left out."""
    compare: CompareConfig | None = None
    """`{tokens: 10B, passes: 1}`: the target once more, trained for the same steps on so many tokens; not with
    `grow`."""
    evaluate: EvaluateConfig | None = None
    """`{every_tokens: 1M, suite: quick}`: evaluate the target on tasks between its steps. Training does not change by
    it, to the bit."""
    controls: list[str] = dataclasses.field(default_factory=list)
    """What stands beside the target. `cut`: its start, untrained: the reference cut to its layers, with an
    `inherit.init` of `stack` repeated (with parts or `random` there is none). The others are trained on the same
    tokens in the same order: any init word of `inherit.init` but the target's own (the share of the gap needs
    `random`); `last` and `every-other` (the same, of other layers of the reference); `distill` (random init that
    learns from the reference's predictions); `half-width` (as deep as the reference, half as wide, random init).
    Each may end in `:2x` (twice the steps) and `@4` (of 4 layers). A target that grew is compared at its last depth."""
