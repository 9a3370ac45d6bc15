"""Put a finished run of `demo_reference` into the package as `packaged:demo`.

usage: python tools/package_reference.py runs/demo_reference
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from inheritune.run_directory import read_json, read_jsonl, write_atomic, write_json

DESTINATION = Path(__file__).resolve().parents[1] / "src" / "inheritune" / "packaged" / "demo"
STEPS_BETWEEN_RECORDS = 10

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [inheritune]
---

# inheritune's demo reference

A LLaMA-style model of {layers} layers and {parameters:,} parameters, with its own byte-level BPE of {vocabulary:,}
entries, trained from random init on {tokens:,} tokens of Python source in one pass by

    inheritune run demo_reference

It exists so that `inheritune run demo` has a reference that works offline; it completes Python poorly and nothing else
at all. Held-out loss: {loss:.3f} nats a token ({bits:.3f} bits a byte) on {documents} documents.

The text is what an installation of inheritune brings: the standard library of Python {python} and the packages
{packages}, without their tests.
Their licences (PSF and BSD) cover that text; none of it is in this directory.
`seen.txt` lists the content hashes of the {seen} documents it was trained on, `training.jsonl` is its training record.
"""


def main(run: Path) -> None:
    """Copy weights, tokenizer and records, and write the card."""
    result, manifest = read_json(run / "result.json"), read_json(run / "data" / "manifest.json")
    if result is None or result["state"] != "done":
        sys.exit(f"{run}: not a finished run")
    shutil.rmtree(DESTINATION, ignore_errors=True)
    DESTINATION.mkdir(parents=True)
    for name in (
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        shutil.copyfile(run / "model" / name, DESTINATION / name)
    shutil.copyfile(run / "data" / "train.hashes", DESTINATION / "seen.txt")
    records = [
        r for r in read_jsonl(run / "metrics.jsonl") if r["kind"] != "step" or r["step"] % STEPS_BETWEEN_RECORDS == 0
    ]
    write_atomic(DESTINATION / "training.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    write_json(
        DESTINATION / "inheritune.json",
        {
            "tokens_trained": result["tokens_trained"],
            "held_out_sha256": [file["sha256"] for file in manifest["sets"]["held-out"]["files"]],
            "environment": read_json(run / "environment.json"),
            "recipe": (run / "recipe.yaml").read_text(encoding="utf-8"),
        },
    )
    packages = {package["name"]: package["version"] for package in manifest["sources"][0]["packages"]}
    target = result["target"]
    card = CARD.format(
        layers=target["layers"],
        parameters=target["parameters"],
        vocabulary=manifest["tokenizer"]["vocabulary"],
        tokens=result["tokens_trained"],
        loss=target["validation_loss"],
        bits=target["bits_per_byte"]["held-out"],
        documents=result["sets"]["held-out"]["documents"],
        python=packages.pop("python"),
        packages=", ".join(f"{name} {version}" for name, version in packages.items()),
        seen=f"{result['sets']['train']['documents']:,}",
    )
    write_atomic(DESTINATION / "README.md", card)
    size = sum(path.stat().st_size for path in DESTINATION.iterdir())
    print(f"{DESTINATION}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
