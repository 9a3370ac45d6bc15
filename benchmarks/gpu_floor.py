"""What a GPU's step must cost at least: operations, bytes, and the floor of both, reckoned from a shape alone.

    python benchmarks/gpu_floor.py [--device H200] [--sequences 64] [--micro-batch 8]

The shape is the first 13 layers of OpenLLaMA-3B, as `benchmarks/train.py` measures it on a GPU. Products of matrices
are taken at the device's peak; what is bound by memory is counted in bytes, kernel by kernel as the compiler fuses them
(residuals and norms in float32, everything else in bfloat16), at the peak of its memory. It leaves out what hides
behind other work, and everything that a real kernel loses: it says which part could matter, not what will be measured.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from training.shapes import SHAPES

SHAPE = "open-llama-3b-13"


@dataclass(frozen=True)
class Device:
    """Peaks of a data sheet."""

    flops: float
    """bfloat16 products, dense, FLOP/s."""
    bytes: float
    """Memory, bytes/s."""
    source: str


DEVICES = {
    "H200": Device(989.5e12, 4.8e12, "NVIDIA H200 data sheet, SXM"),
    "H100": Device(989.5e12, 3.35e12, "NVIDIA H100 data sheet, SXM"),
    "A100": Device(312e12, 2.039e12, "NVIDIA A100 80GB data sheet, SXM"),
    "RTX 4090": Device(165.2e12, 1.008e12, "NVIDIA Ada white paper"),
    "RTX A6000": Device(154.8e12, 0.768e12, "NVIDIA RTX A6000 data sheet"),
}


@dataclass(frozen=True)
class Part:
    """A part of a step."""

    name: str
    operations: float
    """FLOPs in matrix products."""
    bytes: float
    """To and from memory by kernels that do little else."""

    def seconds(self, device: Device) -> float:
        """At the device's peaks, one after the other."""
        return self.operations / device.flops + self.bytes / device.bytes


def parts(sequences: int, micro_batch: int) -> list[Part]:
    """A step of `sequences` sequences, `micro_batch` at a time."""
    shape = SHAPES[SHAPE]
    config, length = shape.config, shape.sequence_length
    width, inner, layers = (config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    vocabulary = config["vocab_size"]
    tokens, passes = sequences * length, -(-sequences // micro_batch)
    block = 4 * width**2 + 3 * width * inner
    parameters = layers * block + 2 * vocabulary * width
    # a value in bfloat16 takes 2 bytes, in float32 4; forward, and twice as much backward
    norm_and_residual = 3 * (2 * (4 + 2 + 4 + 2)) * width
    rotary = 3 * (4 + 4) * width
    activation = 3 * 6 * inner
    scores = (2 + 2 + 2 + 4) * vocabulary  # made, read by the loss, gradient written, and read by two products
    # a parameter and micro-batch: cast for products (4 + 2), gradient cast (2 + 4) and added to what is there (8 + 4)
    casting = passes * (6 + 6 + 12) * parameters
    # norm (4), clipping (8), AdamW: weight, gradient and two moments read, all but the gradient written
    optimiser = (4 + 8 + 4 * 4 + 3 * 4) * parameters
    return [
        Part("products of the blocks", 6.0 * layers * block * tokens, 0),
        Part("products of the head", 6.0 * vocabulary * width * tokens, 0),
        Part("attention", 12.0 * layers * width * (length + 1) / 2 * tokens, 0),
        Part("norms and residuals", 0, float(layers * norm_and_residual * tokens)),
        Part("rotary positions", 0, float(layers * rotary * tokens)),
        Part("SwiGLU", 0, float(layers * activation * tokens)),
        Part("loss", 0, float(scores * tokens)),
        Part("weights cast, gradients added", 0, float(casting)),
        Part("clipping and AdamW", 0, float(optimiser)),
    ]


def table(device_name: str, sequences: int, micro_batch: int) -> str:
    """The parts as Markdown."""
    device, found = DEVICES[device_name], parts(sequences, micro_batch)
    total = sum(part.seconds(device) for part in found)
    ideal = sum(part.operations for part in found) / device.flops
    lines = [
        f"{SHAPE}, {sequences} sequences of {SHAPES[SHAPE].sequence_length:,} a step, {micro_batch} at a time, on an "
        f"{device_name} ({device.flops / 1e12:,.1f} TFLOP/s, {device.bytes / 1e12:.2f} TB/s: {device.source}):",
        "",
        "| part | TFLOP | GB | at the peaks, ms | share |",
        "|---|---|---|---|---|",
    ]
    for part in found:
        seconds = part.seconds(device)
        work = f"{part.operations / 1e12:,.0f}" if part.operations else ""
        moved = f"{part.bytes / 1e9:,.0f}" if part.bytes else ""
        lines.append(f"| {part.name} | {work} | {moved} | {1e3 * seconds:,.0f} | {seconds / total:.1%} |")
    lines += [
        f"| together | {sum(part.operations for part in found) / 1e12:,.0f} | "
        f"{sum(part.bytes for part in found) / 1e9:,.0f} | {1e3 * total:,.0f} | |",
        "",
        f"So at most {ideal / total:.0%} of the peak, and {sequences * SHAPES[SHAPE].sequence_length / total:,.0f} "
        "tokens/s.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=DEVICES, default="H200")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--micro-batch", type=int, default=8)
    given = parser.parse_args()
    if given.sequences < 1 or not 1 <= given.micro_batch <= given.sequences:
        parser.error("--sequences: at least 1, and --micro-batch between 1 and it")
    print(table(given.device, given.sequences, given.micro_batch))


if __name__ == "__main__":
    main()
