"""The command line: parse, call, print. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from xlmprune._version import __version__
from xlmprune.core.errors import RecipeError, ShortfallError, XlmpruneError
from xlmprune.recipe.registry import FORMS


class _Group(TyperGroup):
    """Turns what the user can mend into a sentence and an exit code; our own faults keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except XlmpruneError as error:
            for line in str(error).split("\n"):
                typer.echo(f"xlmprune: {line}", err=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            goes_on = ctx.invoked_subcommand in ("compress", "compare")
            advice = "; the same command goes on from the last checkpoint" if goes_on else ""
            typer.echo(f"xlmprune: interrupted{advice}", err=True)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # The reader of our output went away, as `head` does; nothing is wrong.
            sys.stderr.close()
            raise typer.Exit(0) from None


app = typer.Typer(
    name="xlmprune",
    cls=_Group,
    help="Prune XLM-RoBERTa on English labels, keep it cross-lingual, and ship a small ONNX model with the truth about "
    "every language.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
recipes_app = typer.Typer(
    cls=_Group, help="The recipes: list | show NAME | validate FILE | schema.", no_args_is_help=True
)
app.add_typer(recipes_app, name="recipes")

Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of an exported bundle.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Set = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override one recipe value; dots reach inside. May be repeated."
    ),
]
Form = Annotated[
    str,
    typer.Option(help=f"Which ONNX file: {', '.join(FORMS)}; otherwise the first the bundle has."),
]
Threads = Annotated[int, typer.Option(help="Threads of ONNX Runtime; 0 lets it choose.")]


def _version(show: bool) -> None:
    if show:
        typer.echo(f"xlmprune {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command."""


def _print_json(value: Any) -> None:
    from xlmprune.core.formatting import plain

    typer.echo(json.dumps(plain(value), ensure_ascii=False, indent=1, allow_nan=False))


def _print_table(renderable: Any) -> None:
    from rich.console import Console

    console = Console()
    # Piped, a table must not be folded to 80 columns; on a terminal it takes the terminal's width. Labels and names are
    # shown as they are: [brackets] in them are no markup.
    Console(width=None if console.is_terminal else 160, highlight=False, markup=False).print(renderable)


@app.command()
def compress(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped recipe.")
    ],
    out: Annotated[Path | None, typer.Option(help="Run folder; otherwise runs/<recipe name>.")] = None,
    set_: Set = [],
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over in a folder that holds a run.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:n.")] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and train nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Fine-prune on English, measure every language, export, report.

    Run again with the same recipe and folder after a crash or Ctrl-C: it goes on where it stopped.
    """
    from xlmprune import recipe as recipes

    resolved = recipes.load(recipe, set_)
    if dry_run:
        from xlmprune.training import planning

        plan = planning.plan(resolved, device)
        _print_json(plan) if as_json else _print_table(planning.render(plan))
        return
    from xlmprune import pipeline
    from xlmprune.report.pages import results_table

    folder = out or Path("runs") / resolved.name
    facts = pipeline.run(resolved, folder, device, fresh)
    _print_json(facts) if as_json else _print_table(results_table(facts))
    typer.echo(f"bundle: {folder / 'bundle'}   report: {folder / 'bundle' / 'report.html'}", err=True)


@app.command()
def evaluate(
    bundle: Bundle,
    form: Form = "",
    set_: Set = [],
    languages: Annotated[str, typer.Option(help="Only these, comma-separated.")] = "",
    minimum: Annotated[
        list[str],
        typer.Option(
            "--min", metavar="WHAT=SCORE", help="zero_shot_mean, all_mean or a language; less is exit code 3."
        ),
    ] = [],
    predictions: Annotated[
        Path | None, typer.Option(help="Write the official prediction files here.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Score an exported bundle with ONNX Runtime, per language.

    The task and its data are those of the run; point elsewhere with --set, as in --set task.path=data/{language}.tsv
    """
    from xlmprune.bundle import evaluate as scoring

    facts = scoring.evaluate_bundle(
        bundle,
        form,
        set_,
        [code.strip() for code in languages.split(",") if code.strip()],
        batch_size,
        threads,
        predictions,
    )
    _print_json(facts) if as_json else _print_table(scoring.render(facts))
    scoring.require(facts, minimum)


@app.command()
def predict(
    bundle: Bundle,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT]...", help="Texts; for a pair put a tab between the two."),
    ] = None,
    file: Annotated[Path | None, typer.Option(help="One text a line, or JSON lines; - is stdin.")] = None,
    form: Form = "",
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    threads: Threads = 0,
) -> None:
    """Labels and probabilities for texts, as JSON lines.

    Texts come from the arguments, from --file, or from stdin, one a line. A line that opens with { is read as JSON with
    the keys text and, for pairs, text_pair; for taggers words may be a list.
    """
    from xlmprune.bundle import evaluate as scoring

    opened = scoring.open_bundle(bundle, form, threads)
    for result in scoring.predict(opened, scoring.read_texts(texts, file), form, batch_size):
        typer.echo(json.dumps(result, ensure_ascii=False))


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A checkpoint, model folder, file or bundle.")],
    as_json: Json = False,
) -> None:
    """What a checkpoint or bundle holds: density, norms and bytes by layer and kind of module."""
    from xlmprune.bundle import inspect as inspection

    facts = inspection.inspect(path)
    _print_json(facts) if as_json else _print_table(inspection.render(facts))


@app.command()
def verify(bundle: Bundle, threads: Threads = 0, as_json: Json = False) -> None:
    """Hashes, ONNX checker, stored golden inputs: is this what was measured, on this runtime?"""
    from xlmprune.bundle import verify as verification

    checks = verification.verify(bundle, threads=threads)
    if as_json:
        _print_json([vars(check) for check in checks])
    else:
        _print_table(verification.render(checks))
    failed = [check for check in checks if not check.passed]
    if failed:
        raise ShortfallError(
            f"{bundle}: {len(failed)} of {len(checks)} checks failed, first: {failed[0].name}: {failed[0].detail}"
        )


@app.command()
def unpack(
    bundle: Bundle,
    out: Annotated[Path | None, typer.Option(help="Where to write; otherwise <bundle>-unpacked.")] = None,
) -> None:
    """Write the dense form of every packed file (plain safetensors, plain ONNX), for tools that want it."""
    from xlmprune.bundle.unpack import unpack_bundle

    folder = out or _beside(bundle, "-unpacked")
    for file in unpack_bundle(bundle, folder):
        typer.echo(str(folder / file))


def _beside(folder: Path, ending: str) -> Path:
    """``folder`` with ``ending`` behind its name; `.` and `..` have none of their own."""
    named = folder if folder.name not in ("", "..") else folder.resolve()
    return named.with_name(named.name + ending)


@app.command()
def bench(
    bundle: Bundle,
    against: Annotated[
        Path | None, typer.Option(help="Another bundle, or an ONNX file, to compare with.")
    ] = None,
    batches: Annotated[str, typer.Option(help="Texts in a call, comma-separated.")] = "1,8",
    lengths: Annotated[str, typer.Option(help="Tokens of every text, comma-separated.")] = "64,128",
    threads: Annotated[int, typer.Option(min=0, help="Threads of ONNX Runtime; 0 takes every core.")] = 0,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="How long to measure each batch and length.")
    ] = 10.0,
    as_json: Json = False,
) -> None:
    """Latency, throughput, memory and bytes of every form, side by side with the dense file.

    Forms take turns, so that the ratios hold on a busy machine too.
    """
    from xlmprune.bundle import bench as benching
    from xlmprune.bundle.unpack import contenders

    with contenders(bundle, against) as files:
        facts = benching.bench(
            files,
            batches=_numbers(batches, "--batches"),
            lengths=_numbers(lengths, "--lengths"),
            threads=threads or None,
            seconds=seconds,
            say=lambda text: typer.echo(text, err=True),
        )
    _print_json(facts) if as_json else _print_table(benching.render(facts))


def _numbers(text: str, option: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise RecipeError(f"{option} {text}: expected whole numbers above 0, such as 1,8")
    return numbers


@app.command()
def compare(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe, a comparison file, or a shipped one's name.")
    ],
    vary: Annotated[
        list[str], typer.Option("--vary", metavar="KEY=V1,V2", help="Run every value; may be repeated.")
    ] = [],
    set_: Set = [],
    out: Annotated[
        Path | None, typer.Option(help="Folder of all runs; otherwise runs/<name>-comparison.")
    ] = None,
    baseline: Annotated[str, typer.Option(help="Test the other methods against this one alone.")] = "",
    only: Annotated[
        list[str], typer.Option("--only", metavar="METHOD", help="Run this row alone; may be repeated.")
    ] = [],
    jobs: Annotated[int, typer.Option(help="Runs at once on this machine.")] = 1,
    executor: Annotated[str, typer.Option(help="local, or ray (extra `ray`).")] = "local",
    gpus: Annotated[float | None, typer.Option(help="For ray: the share of a GPU each run gets.")] = None,
    cpus: Annotated[float, typer.Option(help="For ray: the cores each run gets.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:n.")] = "auto",
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over in folders that hold runs.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the runs and make none.")] = False,
    as_json: Json = False,
) -> None:
    """Several methods, seeds and tasks under one budget, one table with its spread.

    Every run is an ordinary run folder; run again, finished ones are left alone and broken ones go on.
    """
    from xlmprune.compare import pages, plan, running, table

    laid_out = plan.read(recipe, vary, set_, baseline or None)
    if dry_run:
        _print_json(pages.plan_facts(laid_out)) if as_json else _print_table(pages.plan_table(laid_out))
        return
    folder = out or Path("runs") / f"{laid_out.name}-comparison"
    runs = running.make_executor(executor, gpus, cpus, jobs)
    facts = running.compare(laid_out, folder, runs, device, fresh, only=only)
    _print_json(facts) if as_json else _print_table(pages.results_table(facts))
    typer.echo(f"comparison: {folder / 'comparison.html'}", err=True)
    if code := table.exit_code(facts):
        raise typer.Exit(code)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Versions, devices, what is installed, what can be reached."""
    from xlmprune.core import doctor as diagnosis

    facts = diagnosis.diagnose()
    _print_json(facts) if as_json else _print_table(diagnosis.render(facts))


@recipes_app.command("list")
def list_recipes(as_json: Json = False) -> None:
    """Names of the shipped recipes, with the first line of each."""
    from xlmprune import recipe as recipes

    found = {name: _headline(file) for name, file in recipes.shipped().items()}
    if as_json:
        _print_json(found)
        return
    width = max(map(len, found), default=0)
    for name, headline in found.items():
        typer.echo(f"{name:<{width}}  {headline}")


def _headline(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    comments = (
        line[1:].strip() for line in lines if line.startswith("#") and "yaml-language-server" not in line
    )
    skipped = ("xlmprune compress", "yaml-language-server")
    return next((text for text in comments if text and not text.startswith(skipped)), "")


@recipes_app.command("show")
def show_recipe(name: str) -> None:
    """Print a shipped recipe as it is written."""
    from xlmprune import recipe as recipes

    typer.echo(recipes.find(name).read_text(encoding="utf-8"), nl=False)


@recipes_app.command("validate")
def validate_recipe(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A recipe file, or the name of a shipped recipe.")
    ],
    set_: Set = [],
) -> None:
    """Check a recipe and print it with every default filled in."""
    from xlmprune import recipe as recipes

    typer.echo(recipes.load(file, set_).to_yaml(), nl=False)


@recipes_app.command("schema")
def print_schema() -> None:
    """A JSON Schema of recipes, for editors."""
    from xlmprune import recipe as recipes

    _print_json(recipes.json_schema())


def main() -> None:
    """Entry point of the `xlmprune` command."""
    app()


if __name__ == "__main__":
    main()
