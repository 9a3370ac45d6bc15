"""The model card: what a saved model is, where it comes from, how it is used."""

from __future__ import annotations

from typing import Any

import yaml
from transformers import PreTrainedModel

from inheritune.reference import block_list, parameters

Record = dict[str, Any]


def model_card(model: PreTrainedModel, name: str, lineage: Record) -> str:
    """README.md as the hub reads it: front matter in YAML, then text.

    Args:
        model: what is saved.
        name: the directory's, and the title where no recipe has a name.
        lineage: as for `save`; its `recipe`, if any, is embedded whole.
    """
    front: Record = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["inheritune"]}
    if lineage.get("revision") is not None:
        # The hub takes only its own ids here and refuses a path; a reference from a directory is named in the text.
        front["base_model"] = lineage["reference"]
    if lineage.get("license"):
        front["license"] = lineage["license"]
    if datasets := _hub_datasets(lineage):
        front["datasets"] = datasets
    layers, size = len(block_list(model)[1]), parameters(model)
    lines = [
        f"# {lineage.get('recipe', {}).get('name') or name}",
        "",
        f"A language model of {layers} layers and {size:,} parameters ({model.config.model_type}), made by inheritune.",
        "",
        "## Lineage",
        "",
        *_lineage_lines(lineage),
        "",
        "## Use",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"model = AutoModelForCausalLM.from_pretrained({name!r})  # this directory",
        f"tokenizer = AutoTokenizer.from_pretrained({name!r})",
        "```",
    ]
    if "recipe" in lineage:
        recipe = yaml.safe_dump(lineage["recipe"], sort_keys=False, allow_unicode=True)
        lines += ["", "## Recipe", "", "```yaml", recipe.rstrip(), "```"]
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n" + "\n".join(lines) + "\n"


def _hub_datasets(lineage: Record) -> list[str]:
    """The hub's data sets among the sources that a recipe names, each once: `ORG/NAME`."""
    sources = lineage.get("recipe", {}).get("data", {}).get("sources", [])
    paths = [source["path"].removeprefix("hub:") for source in sources if source["path"].startswith("hub:")]
    return list(dict.fromkeys("/".join(path.split("/")[:2]) for path in paths))


def _lineage_lines(lineage: Record) -> list[str]:
    if "reference" not in lineage:
        return [f"- {key}: {value}" for key, value in lineage.items() if key != "recipe"]
    revision = f" at revision {lineage['revision']}" if lineage["revision"] else ""
    kept = ", ".join(map(str, lineage["layers_kept"]))
    return [
        f"- Reference: {lineage['reference']}{revision}",
        *_gguf_lines(lineage),
        f"- Its weights (SHA-256): {lineage['fingerprint']}",
        f"- Layers kept: {kept} of its {lineage['reference_layers']}, counted from 0",
        "- Kept with them: embeddings, final norm, head",
        *(_before(step) for step in lineage["chain"][::-1]),
    ]


def _before(step: Record) -> str:
    """What the reference itself came from."""
    if step.get("reference") is None:
        return f"- Before that: {step.get('initialisation', 'unknown')} init"
    kept = step.get("layers_kept")
    layers = f", layers {', '.join(map(str, kept))}" if isinstance(kept, list) else ""
    return f"- Before that: {step['reference']}{layers}"


def _gguf_lines(lineage: Record) -> list[str]:
    """Where the reference's weights were read from GGUF: the file, and that they were quantised."""
    if "gguf" not in lineage:
        return []
    file, kind = lineage["gguf"], lineage["dequantised_from"]
    dtype = file.get("dtype", "float32")  # lineages of an earlier version know no other
    read = f"dequantised from {kind}, to {dtype}" if kind else f"read into {dtype}"
    return [f"- Its weights were {read}: the GGUF file {file['file']} (SHA-256 {file['sha256']})"]
