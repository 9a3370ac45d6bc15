"""A run's outcome, computed from its records: `result.json`, the ledger's sums, the verdict in a sentence. No torch.

`result.json` holds nothing that differs between two runs of one recipe on one machine: times are in `ledger.json`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inheritune.comparison import resampled_means, share_of_gap, tokens_to_reach
from inheritune.config import PARTS
from inheritune.decision import Verdict, combined
from inheritune.growth import Growth, layers_in_words

Record = dict[str, Any]
_TITLES = {
    "reference": "Reference",
    "cut": "Cut",
    "target": "Target",
    "random": "Random init",
    "last": "Last layers",
    "every-other": "Every other layer",
    "distill": "Distilled",
    "half-width": "Half width",
    "other-data": "Other data",
}


@dataclass(frozen=True)
class OwnTraining:
    """What is known of the reference's own training."""

    name: str
    tokens: int | None
    metrics: list[Record]
    """Its metrics records, from random init; empty where they are not shipped with it."""
    same_documents: bool
    """Whether its held-out set held the very documents of this run's."""


def assemble(
    name: str,
    *,
    losses: dict[str, Record],
    ledger: Record,
    metrics: dict[str, list[Record]],
    own_training: OwnTraining | None,
    main_set: str,
    init: str = "inherit",
    growth: Growth | None = None,
) -> Record:
    """`result.json` from a finished run's records.

    Args:
        name: the recipe's.
        losses: for `reference`, `target` and the controls, as far as they were measured, their `losses/NAME.json`; the
            controls in the recipe's order.
        ledger: the run's `ledger.json`.
        metrics: the metrics records of `target` and of each control that was trained.
        own_training: the reference's; None without a reference.
        main_set: the validation set that the verdict is about.
        init: what the target started from, an init word.
        growth: what the rounds came to, where the target grew.
    """
    others = [key for key in losses if key not in ("reference", "target", "random", "cut")]
    # A record of random init and cut alone stays as it was before there were other controls.
    detailed = bool(others) or growth is not None
    trainings = {key: ledger.get(stage_of(key, growth)) for key in losses}
    models = {key: _model(key, record, trainings[key], detailed) for key, record in losses.items()}
    target = models["target"]
    if growth is not None:
        target |= _grown_through(growth, ledger)
    controls = [*(key for key in ("random", "cut") if key in losses), *others]
    result: Record = {
        "name": name,
        "state": "done",
        "verdict": "",
        "reference": None,
        "target": target,
        "controls": {key: models[key] for key in controls},
        "before": {key: _before(records) for key, records in metrics.items() if records},
        "tokens_trained": target["tokens_trained"],
        "unique_tokens": target["unique_tokens"],
        "passes": target["passes"],
        "matched": None,
    }
    if init != "inherit":
        result["init"] = init
    if others:  # the share says all of random init alone
        result["differences"] = {
            key: difference(key, losses[key]["sets"], losses["target"]["sets"], main_set)
            for key in controls
            if key != "cut"
        }
    if own_training is not None:
        own = {"name": own_training.name, **models["reference"], "tokens_trained": own_training.tokens}
        result["reference"] = own | ({"initialisation": "random"} if trainings.get("reference") else {})
        if "random" in losses:
            sets = {key: losses[key]["sets"] for key in ("random", "target", "reference")}
            result["share"] = share(sets["random"], sets["target"], sets["reference"], main_set)
        result["tokens_to_match"] = tokens_to_match(
            target["validation_loss"],
            validation_curve(metrics.get("random", []), main_set),
            validation_curve(own_training.metrics, main_set),
            own_training.same_documents,
            [validation_curve(metrics[key], main_set) for key in _for_longer(metrics)],
        )
    if growth is not None:
        result["matched"] = growth.matched is not None
        result["benchmark"] = models["reference"]["validation_loss"]
        result["growth"] = _rounds(growth)
    result["verdict"] = verdict(result)
    return result


def _for_longer(names: Iterable[str]) -> list[str]:
    """Among controls those that differ from `random` in their steps alone, the fewest first."""
    times = {name: int(found[1]) for name in names if (found := re.fullmatch(r"random:([0-9]+)x", name))}
    return sorted(times, key=lambda name: times[name])


def stage_of(name: str, growth: Growth | None) -> str:
    """What the ledger calls a model's training: of a target that grew, its round's."""
    if name == "target" and growth is not None and growth.best is not None:
        return f"train round-{growth.best['layers']}"
    return f"train {name}"


def _grown_through(growth: Growth, ledger: Record) -> Record:
    """What the target's weights were trained on where growth is warm: in every round up to its own."""
    best = growth.best
    if best is None or best.get("growth") != "warm":
        return {}
    layers = [one["layers"] for one in growth.records if one["round"] < best["round"] and not one["seed"]]
    through = [ledger.get(f"train round-{count}") for count in (*layers, best["layers"])]
    whole = [one for one in through if one is not None]
    if len(whole) < len(through):
        return {}
    tokens, unique = sum(one["tokens"] for one in whole), max(one["unique_tokens"] for one in whole)
    return {
        "tokens_trained": tokens,
        "unique_tokens": unique,
        "passes": tokens / unique,
        "flops": sum(one["flops"] for one in whole),
        "steps": sum(one["steps"] for one in whole),
    }


def _rounds(growth: Growth) -> Record:
    """The rounds without what takes room (their curves) or differs between repetitions (their time), and their sums."""
    rounds = [{key: value for key, value in one.items() if key not in ("seconds", "curve")} for one in growth.records]
    found: Record = {
        "rounds": rounds,
        "tokens": sum(one["tokens"] for one in rounds),
        "flops": sum(one["flops"] for one in rounds),
    }
    shown = growth.best["round"] if growth.best is not None else None
    seeds = [one for one in rounds if one["round"] == shown and one["verdict"] is not None]
    if len(seeds) > 1:
        together = combined([Verdict(**one["verdict"]) for one in seeds])
        found["seeds"] = {name: getattr(together, name) for name in ("matched", "difference", "spread", "text")}
    return found


def _before(metrics: list[Record]) -> Record:
    """Losses by set before the first step."""
    return next((r["losses"] for r in metrics if r.get("kind") == "validation" and r.get("step") == 0), {})


def _model(key: str, record: Record, trained: Record | None, detailed: bool) -> Record:
    """A model's row: size, scores, and what its training took; zeros for the cut, which has had none."""
    entry = {"layers": record["layers"], "parameters": record["parameters"], **scores(record["sets"])}
    if trained is not None:
        tokens, unique = trained["tokens"], trained["unique_tokens"]
        entry |= {
            "tokens_trained": tokens,
            "unique_tokens": unique,
            "passes": tokens / unique,
            "flops": trained["flops"],
        }
        wanted = ("steps", "learning_rate") if detailed else ("learning_rate",)
        entry |= {name: trained[name] for name in wanted if name in trained}
    elif key == "cut":
        entry |= {"tokens_trained": 0, "unique_tokens": 0, "passes": 0, "flops": 0.0}
    return entry


def bits_per_byte(nats: float, text_bytes: float) -> float | None:
    """Total code length in nats over the UTF-8 bytes it encodes, in bits a byte: comparable between tokenizers.

    None where there is no byte. End-of-text tokens count in `nats` (a document's end has to be told as well) and hold
    no bytes.
    """
    return nats / (math.log(2) * text_bytes) if text_bytes else None


def scores(losses: Record) -> Record:
    """A model's scores from its losses by document.

    Args:
        losses: for each set `{"nats": [...], "correct": [...], "tokens": [...], "bytes": [...]}`, a value a document.

    Returns:
        `validation_loss` (nats a token, the first validation set) and, by set, `validation_losses`, `bits_per_byte`,
        `accuracy`; the development set is among them.
    """
    sums = {name: {key: float(sum(values)) for key, values in record.items()} for name, record in losses.items()}
    by_loss = {name: value["nats"] / value["tokens"] for name, value in sums.items()}
    first = next((name for name in by_loss if name != "development"), None)
    return {
        "validation_loss": by_loss[first] if first is not None else None,
        "validation_losses": by_loss,
        "bits_per_byte": {name: bits_per_byte(value["nats"], value["bytes"]) for name, value in sums.items()},
        "accuracy": {name: value["correct"] / value["tokens"] for name, value in sums.items()},
    }


def share(control: Record, target: Record, reference: Record, validation_set: str) -> Record:
    """The share of the gap that the target closes on one set, with its interval (see `comparison.share_of_gap`)."""
    nats = [np.asarray(losses[validation_set]["nats"], np.float64) for losses in (control, target, reference)]
    found = share_of_gap(nats[0], nats[1], nats[2], np.asarray(target[validation_set]["tokens"], np.float64))
    return {**vars(found), "set": validation_set}


def difference(name: str, control: Record, target: Record, validation_set: str) -> Record:
    """How far the target's loss lies below a control's on one set, in nats a token.

    Both are measured on the same documents, so these are drawn once for both (a paired bootstrap over documents, as in
    `comparison`).

    Args:
        name: the control's.
        control: its losses by document, by set (see `scores`).
        target: the target's.
        validation_set: the set.

    Returns:
        `value` (control - target), the ends `low` and `high` of its 95% interval (None where one document leaves no
        spread to judge by), the number of `documents`, the `set`, and a `text`.
    """
    tokens = np.asarray(target[validation_set]["tokens"], np.float64)
    nats = [np.asarray(losses[validation_set]["nats"], np.float64) for losses in (control, target)]
    value, low, high = float((nats[0] - nats[1]).sum() / tokens.sum()), None, None
    interval = "one validation document leaves no spread to judge by"
    if len(tokens) > 1:
        drawn = resampled_means([nats[0] - nats[1]], tokens)[0]
        low, high = (float(end) for end in np.percentile(drawn, [2.5, 97.5]))
        interval = f"95% interval {low:.3f} to {high:.3f}, over {len(tokens)} documents"
    text = f"{title_of(name)} - target: {value:.3f} nats a token ({interval})."
    return {"value": value, "low": low, "high": high, "documents": len(tokens), "set": validation_set, "text": text}


def title_of(name: str) -> str:
    """What tables call a model: `Target`, `Random init, 2x steps`; a control from parts by what it inherits."""
    base, _, layers = name.partition("@")
    base, _, times = base.partition(":")
    suffix = (f", {times} steps" if times else "") + (f", {layers_in_words(layers)}" if layers else "")
    return _plain_title(base) + suffix


def _plain_title(name: str) -> str:
    """A title without what may follow a control's word."""
    if name in _TITLES:
        return _TITLES[name]
    if name.startswith("round-"):
        layers, _, seed = name.removeprefix("round-").partition("-seed-")
        return layers_in_words(layers) + (f", seed {seed}" if seed else "")
    parts = name.split("+")
    words = {part: "MLP" if part == "mlp" else part.replace("_", " ") for part in PARTS}
    missing = [words[part] for part in PARTS if part not in parts]
    if not set(parts) <= words.keys():
        text = name.replace("_", " ")
    elif len(parts) > len(PARTS) / 2 and missing:
        text = f"all but {', '.join(missing)}"
    else:
        text = " + ".join(words[part] for part in parts) + (" only" if len(parts) == 1 else "")
    return text[:1].upper() + text[1:]


def validation_curve(metrics: list[Record], validation_set: str) -> list[tuple[int, float]]:
    """(tokens trained, loss) from metrics records; where a resumed run measured a step again, the last one counts."""
    points = {
        record["step"]: (int(record["tokens"]), float(record["losses"][validation_set]))
        for record in metrics
        if record.get("kind") == "validation" and validation_set in record.get("losses", {})
    }
    return [points[step] for step in sorted(points)]


def tokens_to_match(
    loss: float,
    control_curve: list[tuple[int, float]],
    reference_curve: list[tuple[int, float]],
    same_documents: bool,
    longer_curves: Sequence[list[tuple[int, float]]] = (),
) -> Record:
    """How many tokens random init needs to reach the target's loss, from recorded curves.

    Args:
        loss: the target's validation loss.
        control_curve: of the control, the same architecture from random init; empty if there is none.
        reference_curve: of the reference's own training from random init; empty where it is not recorded.
        same_documents: whether the reference's curve was measured on the very documents of `loss`.
        longer_curves: of controls that differ from the first in more steps alone, the fewest first.
    """
    for curve in (control_curve, *longer_curves):
        tokens = tokens_to_reach(loss, curve)
        if tokens is not None:
            longer = "" if curve is control_curve else ", trained for more steps,"
            text = f"From random init the same network{longer} reached the target's loss after {tokens:,} tokens."
            return {"tokens": tokens, "source": "control", "text": text}
    seen = max((curve[-1][0] for curve in (control_curve, *longer_curves) if curve), default=None)
    behind = ""
    if seen is not None:
        behind = f"From random init the same network had not reached the target's loss after {seen:,} tokens"
    tokens = tokens_to_reach(loss, reference_curve)
    if tokens is not None:
        where = "on the same documents" if same_documents else "on its own held-out documents"
        own = f"the reference itself, from random init, needed {tokens:,} tokens for it ({where})"
        text = f"{behind}; {own}." if behind else f"{own[0].upper()}{own[1:]}."
        return {"tokens": tokens, "source": "reference", "text": text}
    return {
        "tokens": None,
        "source": None,
        "text": f"{behind}." if behind else "No recorded curve from random init reaches the target's loss.",
    }


def verdict(result: Record) -> str:
    """The outcome in a sentence."""
    target = result["target"]
    loss = target["validation_loss"]
    if result.get("reference") is None:
        trained = f"{layers_in_words(target['layers'])} trained from random init on {result['tokens_trained']:,} tokens"
        return f"{trained}: loss {loss:.3f} nats a token."
    if "growth" in result:
        return _growth_verdict(result)
    reference, control = result["reference"], result["controls"].get("random")
    kept = f"{target['layers']} of {reference['layers']} layers"
    if "init" in result:  # then the layers are not, or not all, the reference's
        has = f"the reference has {reference['layers']}"
        kept = f"{layers_in_words(target['layers'])} (init: {result['init']}; {has})"
    trained = f"{kept}, trained on {result['unique_tokens']:,} tokens"
    trained += f" in {_passes(result['passes'])},"
    if control is None:
        against = f"the reference has {reference['validation_loss']:.3f}"
        return f"{trained} reach {loss:.3f} nats a token on held-out text; {against}."
    losses = f"{loss:.3f} nats a token, against {control['validation_loss']:.3f} and {reference['validation_loss']:.3f}"
    found = result["share"]
    if not found["shown"]:
        return f"{found['text'][0].upper()}{found['text'][1:]}. {trained} reach {losses}."
    if found["value"] > 1:
        return f"{trained} end below the reference: {losses} (random init, reference)."
    share = f"{found['value']:.0%} of the gap between random init and the reference"
    return f"{trained} close {share} (95% interval {found['low']:.0%} to {found['high']:.0%}): {losses}."


def _growth_verdict(result: Record) -> str:
    """How a growth ended, in a sentence."""
    total = result["reference"]["layers"]
    rounds = result["growth"]["rounds"]
    layers = result["target"]["layers"]
    best = next(one for one in rounds if one["layers"] == layers and one["seed"] == 0)
    counted = f"{len({one['round'] for one in rounds})} rounds" if rounds[-1]["round"] > 1 else "the first round"
    if result["matched"]:
        seeds = f" {result['growth']['seeds']['text']}." if "seeds" in result["growth"] else ""
        matching = "layers match" if layers > 1 else "layers matches"
        whole = ": it is as deep as the reference, nothing was cut" if layers == total else ""
        text = f"{layers} of {total} {matching} the reference, after {counted}{whole}"
        return f"{text}{';' if whole else ':'} {plain_verdict(best)}.{seeds}"
    tried = ", ".join(str(one["layers"]) for one in rounds if one["seed"] == 0)
    text = f"No target matches the reference ({tried} of {total} layers were tried)"
    found = result["growth"]["seeds"]["text"] if "seeds" in result["growth"] else plain_verdict(best)
    return f"{text}; the best has {layers_in_words(layers)}: {found}."


def plain_verdict(record: Record) -> str:
    """A round's verdict in words, without the word that it begins with."""
    return str(record["verdict"]["text"]).removeprefix("not ").removeprefix("matched: ")


def _passes(passes: float) -> str:
    rounded = f"{passes:.1f}".removesuffix(".0")
    return f"{rounded} pass" if rounded == "1" else f"{rounded} passes"
