"""`run`, `train`, `grow`, `plan`, `prepare`: what a recipe or its data says."""

from __future__ import annotations

from collections.abc import Callable

from inheritune.cli.parsing import SUMMARIES, config_parser, directory, quiet
from inheritune.errors import Refused


def run_until(name: str, until: str) -> Callable[[list[str]], None]:
    """`run`, `train` and `grow`: a recipe, overridden by flags, up to a stage."""

    def call(words: list[str]) -> None:
        from inheritune.config import Recipe
        from inheritune.recipe import dump, packaged_recipes, parse, read_recipe

        parser = config_parser(name, Recipe)
        parser.add_argument("recipe", type=str, help=f"a YAML file, or one of: {', '.join(packaged_recipes())}")
        parser.add_argument(
            "--print_config", action="store_true", help="print the recipe as it would be run, every key, and stop"
        )
        _, first = parse(parser, Recipe, words, {}, f"inheritune {name}", complete=False)
        values, where = read_recipe(first.recipe)
        if name == "grow" and values.get("grow") is None:
            values["grow"] = {}
        recipe, namespace = parse(parser, Recipe, words, values, where)
        if name == "grow" and recipe.grow is None:
            raise Refused(f"{where}: --grow null leaves nothing to grow by; leave it out for the defaults")
        if name == "train" and recipe.grow is not None:
            raise Refused(f"{where}: grows; give `inheritune grow`, or `inheritune run` for its controls, too")
        if namespace.print_config:
            print(dump(recipe), end="")
            return
        quiet()
        from inheritune import pipeline

        pipeline.run(recipe, directory(namespace.out) if namespace.out is not None else None, until=until)

    return call


def plan(words: list[str]) -> None:
    """`plan`: a recipe's cost, printed."""
    from inheritune.config import Recipe
    from inheritune.devices import MEASURED, NAMES
    from inheritune.recipe import build_parser, packaged_recipes, parse, read_recipe

    parser = build_parser(Recipe, "inheritune plan", SUMMARIES["plan"][1])
    parser.add_argument("recipe", type=str, help=f"a YAML file, or one of: {', '.join(packaged_recipes())}")
    parser.add_argument(
        "--device",
        type=str,
        default=MEASURED,
        help=f"{', '.join(NAMES)}: by a data sheet, by a stated figure a core, or this machine, measured (default)",
    )
    parser.add_argument("--devices", type=int, default=1, help="how many of it")
    parser.add_argument("--price", type=float | None, default=None, help="of an hour of one device, in any currency")
    parser.add_argument(
        "--claim",
        type=float | None,
        default=None,
        help="hours that the target's training is said to take; refused where no program could be so fast",
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    _, first = parse(parser, Recipe, words, {}, "inheritune plan", complete=False)
    values, where = read_recipe(first.recipe)
    recipe, given = parse(parser, Recipe, words, values, where)
    quiet()
    from inheritune import pipeline
    from inheritune.console import Console

    console = Console()
    asked = pipeline.Circumstances(given.device, given.devices, given.price, given.claim)
    plan = pipeline.make_plan(recipe, asked, console=console)
    if given.json:
        import json

        print(json.dumps(plan, indent=2))
        return
    from inheritune.report import render_plan

    console.table(render_plan(plan, width=console.width))


def prepare(words: list[str]) -> None:
    """`prepare`: text to token shards."""
    from inheritune.config import DataConfig, SourceConfig
    from inheritune.recipe import parse

    parser = config_parser("prepare", DataConfig)
    parser.add_argument("source", type=str, nargs="*", help="files, globs, directories, hub:ORG/NAME or python-source")
    parser.add_argument(
        "--tokenizer",
        type=str | None,
        default=None,
        help="the reference (a directory, a hub id or a GGUF file) whose tokenizer to use",
    )
    parser.add_argument(
        "--document_separator", type=str | None, default=None, help="what separates documents of plain-text SOURCEs"
    )
    config, namespace = parse(parser, DataConfig, words, {}, "inheritune prepare")
    if namespace.out is None or namespace.tokenizer is None:
        raise Refused(f"prepare: --{'out' if namespace.out is None else 'tokenizer'} is missing")
    # A shell passes '\\n' on as two characters; nobody separates documents by a backslash and an n.
    separator = namespace.document_separator
    separator = separator.replace("\\n", "\n") if separator is not None else None
    given = [SourceConfig(path=path, document_separator=separator) for path in namespace.source]
    import dataclasses

    quiet()
    from inheritune import pipeline

    pipeline.prepare(
        dataclasses.replace(config, sources=[*config.sources, *given]), namespace.tokenizer, directory(namespace.out)
    )
