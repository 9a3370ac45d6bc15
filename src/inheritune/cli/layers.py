"""`inherit` and `depth`: a reference's layers."""

from __future__ import annotations

import re
from collections.abc import Callable

from inheritune.cli.parsing import add_reference_flags, bare_parser, directory, plain, quiet
from inheritune.errors import Refused


def inherit(words: list[str]) -> None:
    """`inherit`: a cut, the scan of every prefix, or both."""
    parser = bare_parser("inherit")
    parser.add_argument("reference", type=str, help="a directory, a GGUF file, a hub id or packaged:demo")
    parser.add_argument(
        "--layers",
        type=str | None,
        default=None,
        help="which layers to keep, counted from 0: 13 (the first 13), half, 0-11,25, every:2, last:13, "
        "first:12+last:1; measured on --data: influence:13 (the 13 that turn the hidden state most one by one) or "
        "angular:13 (all but the one stretch that turns it least)",
    )
    parser.add_argument("--out", type=str | None, default=None, help="the directory that is written")
    parser.add_argument(
        "--init",
        type=str,
        default="inherit",
        help="inherit; for controls: random, stack, or parts of the reference such as attention+block_norms, of "
        "attention, mlp, block_norms, embeddings, final_norm, head",
    )
    parser.add_argument("--seed", type=int, default=0, help="of what --init draws at random")
    parser.add_argument(
        "--scan", action="store_true", help="measure what every prefix scores on --data before any training"
    )
    parser.add_argument("--data", type=str | None, default=None, help="a directory that inheritune prepare wrote")
    parser.add_argument(
        "--sequence_length", type=int | None, default=None, help="--scan: tokens a sequence (default: at most 1024)"
    )
    parser.add_argument(
        "--positions",
        type=str | None,
        default=None,
        help="--scan: how many positions are scored, a sample, or all (default: 16384)",
    )
    add_reference_flags(parser)
    given = plain(parser, words)
    if given.layers is None and not given.scan:
        raise Refused("inherit: --layers is missing (see inheritune inherit --help)")
    if given.out is None and not given.scan:
        raise Refused("inherit: --out is missing (see inheritune inherit --help)")
    if given.scan and given.data is None:
        raise Refused(
            "inherit: --scan measures on prepared text; give --data, a directory that inheritune prepare wrote"
        )
    if given.sequence_length is not None and (given.sequence_length < 2 or not given.scan):
        raise Refused("inherit: --sequence_length must be 2 or more, and belongs to --scan")
    positions = given.positions
    if positions is not None and (not re.fullmatch("all|0*[1-9][0-9]{0,17}", positions, re.ASCII) or not given.scan):
        raise Refused("inherit: --positions must be a number of 1 or more, or all, and belongs to --scan")
    if not 0 <= given.seed < 2**63:
        raise Refused("inherit: --seed must be 0 or more, below 2**63")
    out = directory(given.out) if given.out is not None else None
    data = directory(given.data, "--data") if given.data is not None else None
    quiet()
    from inheritune import pipeline

    shared = ("sequence_length", "revision", "reference_file", "reference_dtype", "trust_remote_code")
    common = {name: getattr(given, name) for name in shared}
    if positions is not None:
        common["positions"] = None if positions == "all" else int(positions)
    if given.layers is not None and out is not None:
        own = {name: getattr(given, name) for name in ("init", "seed", "scan")}
        pipeline.inherit(given.reference, given.layers, out, data=data, **own, **common)
    elif data is not None:
        pipeline.scan(given.reference, data, layers=given.layers, out=out, **common)


def depth(words: list[str]) -> None:
    """`depth`: a choice of layers under a budget."""
    parser = bare_parser("depth")
    parser.add_argument("reference", type=str, help="a directory, a GGUF file, a hub id or packaged:demo")
    parser.add_argument(
        "--data", type=str, required=True, help="a directory that inheritune prepare wrote, with a development set"
    )
    parser.add_argument(
        "--max_parameters", "--max-parameters", type=str | None, default=None, help="of the target, such as 1.5B"
    )
    parser.add_argument(
        "--max_memory",
        "--max-memory",
        type=str | None,
        default=None,
        help="of a step of its training, one sequence at a time, such as 24GB or 80GiB",
    )
    parser.add_argument(
        "--probe_tokens",
        "--probe-tokens",
        type=str,
        default="2M",
        help="what the probe may cost, in tokens of training the deepest candidate (default: 2M); 0: no training",
    )
    parser.add_argument(
        "--sequence_length", type=int | None, default=None, help="tokens a sequence (default: at most 512)"
    )
    parser.add_argument("--batch_sequences", type=int, default=8, help="sequences a step of the probe (default: 8)")
    parser.add_argument("--learning_rate", type=float, default=3e-4, help="of the probe (default: 3e-4)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of blocks, and of the untrained network")
    parser.add_argument("--out", type=str | None, default=None, help="the directory that is written")
    add_reference_flags(parser)
    given = plain(parser, words)
    if given.sequence_length is not None and given.sequence_length < 2:
        raise Refused("depth: --sequence_length must be 2 or more")
    if not 0 <= given.seed < 2**63:
        raise Refused("depth: --seed must be 0 or more, below 2**63")
    from inheritune.config import TokenCount
    from inheritune.depth import parse_bytes

    amounts: dict[str, Callable[[str], int]] = {"max_parameters": TokenCount, "max_memory": parse_bytes}
    budget = {name: _amount(name, getattr(given, name), convert) for name, convert in amounts.items()}
    probe_tokens = _amount("probe_tokens", given.probe_tokens, TokenCount)
    data = directory(given.data, "--data")
    out = directory(given.out) if given.out is not None else None
    quiet()
    from inheritune import pipeline

    own = ("sequence_length", "batch_sequences", "learning_rate", "seed")
    shared = ("revision", "reference_file", "reference_dtype", "trust_remote_code")
    pipeline.choose_depth(
        given.reference,
        data,
        out=out,
        max_parameters=budget["max_parameters"],
        max_memory=budget["max_memory"],
        probe_tokens=probe_tokens or 0,
        **{name: getattr(given, name) for name in (*own, *shared)},
    )


def _amount(name: str, text: str | None, convert: Callable[[str], int]) -> int | None:
    """A flag's amount as a number."""
    if text is None:
        return None
    try:
        return int(convert(text))
    except ValueError:
        forms = "24GB or 80GiB" if name == "max_memory" else "500K, 90M or 1.5B"
        raise Refused(f"depth: --{name} cannot be {text!r}; give a number such as {forms}") from None
