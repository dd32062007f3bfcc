"""Define the command line: parse, call, print. Heavy libraries are imported only when a command runs."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from xlmprune._version import __version__
from xlmprune.core import machine, own_process, processes, stopping, streams
from xlmprune.core.errors import DataError, RecipeError, ShortfallError, XlmpruneError
from xlmprune.core.formatting import count_of
from xlmprune.core.languages import language_name
from xlmprune.core.streams import OutputError
from xlmprune.recipe.registry import FORMS, USUAL_FORMS

if TYPE_CHECKING:
    from xlmprune.core.progress import Reporter
    from xlmprune.recipe.schema import Recipe


class _Group(TyperGroup):
    """Turn a user error into a sentence and an exit code; an internal error keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # here a full disk or a closed pipe behind stdout can still be reported
            return result
        except OutputError as error:
            if not error.reader_gone:  # as `head` is when it has enough
                typer.echo(f"xlmprune: {error}", err=True)
            raise typer.Exit(0 if error.reader_gone else error.exit_code) from None
        except XlmpruneError as error:
            raise _failed_somewhere(error) from None
        except ModuleNotFoundError as error:
            from xlmprune.core import packages

            extra = packages.extra_of(error.name)
            if extra is None:
                raise
            needed = f"this command needs the package {error.name}, which is not installed"
            raise _failed(f"{needed}. Run: {packages.pip_install(extra)}", XlmpruneError.exit_code) from None
        except KeyboardInterrupt:
            resumable = ctx.invoked_subcommand in ("compress", "compare")
            advice = "; run the same command again to resume from the last checkpoint" if resumable else ""
            if processes.is_first():
                typer.echo(f"xlmprune: interrupted{advice}", err=True)
            raise typer.Exit(130) from None


def _failed(message: str, exit_code: int) -> typer.Exit:
    """Print ``message`` and return the exception that ends the command."""
    for line in message.split("\n"):
        typer.echo(f"xlmprune: {line}", err=True)
    return typer.Exit(exit_code)


def _failed_somewhere(error: XlmpruneError) -> typer.Exit:
    """Print a user error, and of several processes which one had it; once, if all of them have it."""
    if processes.is_first():
        return _failed(str(error), error.exit_code)
    if error.raised_by_all:
        return typer.Exit(error.exit_code)
    return _failed(f"process {processes.rank()} of {processes.launched()}: {error}", error.exit_code)


app = typer.Typer(
    name="xlmprune",
    cls=_Group,
    help="Fine-tune and prune a multilingual model on English labels, measure every language, and export a small "
    "ONNX model with a report.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)
recipes_app = typer.Typer(cls=_Group, help="List, show and check recipes.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")


def _shipped_names(incomplete: str) -> list[str]:
    """Complete the name of a shipped recipe for the shell."""
    from xlmprune.recipe.catalog import shipped_recipes

    return [name for name in shipped_recipes() if name.startswith(incomplete)]


RECIPE = typer.Argument(
    metavar="RECIPE", help="A recipe file or the name of a shipped recipe.", autocompletion=_shipped_names
)
Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder of an exported bundle.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Set = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override one recipe value. Use dots for nested keys. Can be repeated.",
    ),
]
Form = Annotated[
    str,
    typer.Option(
        help=f"ONNX file to use: {', '.join(FORMS)}. Default: int8 if the bundle has it, else the first of these."
    ),
]
MeasuredForm = Annotated[
    str,
    typer.Option(
        help=f"ONNX file to measure: {', '.join(FORMS)}. Default: the first of these that the bundle has. "
        "predict uses int8 by default."
    ),
]
Threads = Annotated[
    int,
    typer.Option(
        min=0,
        max=machine.MOST_THREADS,
        help="Threads for ONNX Runtime. 0: as many as OMP_NUM_THREADS says, or one for each processor.",
    ),
]
Verify = Annotated[
    bool, typer.Option("--verify/--no-verify", help="Compare the files with the bundle's manifest first.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:n.")]
AllowChange = Annotated[
    bool,
    typer.Option(
        "--allow-change", help="Resume although device, precision, threads or library versions changed."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings and the result only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print more details about the run.")]


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
    """Accept options before the command."""


def _say(text: str) -> None:
    """Tell progress on stderr."""
    typer.echo(text, err=True)


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _print_json(value: Any) -> None:
    from xlmprune.core.formatting import plain

    typer.echo(json.dumps(plain(value), ensure_ascii=False, indent=1, allow_nan=False))


def _print_table(renderable: Any) -> None:
    from rich.console import Console

    console = Console()
    # A pipe has no width, so a table gets 160 columns there. Markup is off because names may contain [brackets].
    Console(width=None if console.is_terminal else 160, highlight=False, markup=False).print(renderable)


def _reporter(quiet: bool, verbose: bool) -> Reporter:
    from xlmprune.core.progress import Reporter

    if quiet and verbose:
        raise RecipeError("--quiet and --verbose exclude each other")
    return Reporter(level="quiet" if quiet else "verbose" if verbose else "normal")


def _print_next_steps(bundle: Path) -> None:
    """Say where the report is and what to type next."""
    lines, typed = [f"report:   {bundle / 'report.html'}"], shlex.quote(str(bundle))
    if any(bundle.glob("*.onnx")):
        lines.append(f'predict:  xlmprune predict {typed} "your text"')
        lines.append(f"check:    xlmprune verify {typed}")
        lines.append(f"serve:    xlmprune serve {typed}")
    typer.echo("\n".join(lines), err=True)


def _print(facts: Any, as_json: bool, render: Callable[[Any], Any]) -> None:
    """Print ``facts`` as JSON, or as the table that ``render`` makes of them."""
    _print_json(facts) if as_json else _print_table(render(facts))


def _print_kept(facts: Any, as_json: bool, render: Callable[[Any], Any], file: Path) -> None:
    """Print what is also in ``file``; hours of work do not fail because nobody can read the table here."""
    try:
        _print(facts, as_json, render)
        sys.stdout.flush()
    except OutputError as error:
        typer.echo(f"xlmprune: {error}. The results are in {file}", err=True)


@app.command()
def compress(
    recipe: Annotated[str, RECIPE],
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/<recipe name>.")] = None,
    set_: Set = [],
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Discard the run in the folder and restart.")
    ] = False,
    device: Device = "auto",
    start_from: Annotated[
        Path | None,
        typer.Option(
            "--start-from",
            metavar="RUN",
            help="Take stage 0 from this run folder and do not train it again. Its recipe must have the same stage 0 and "
            "pruning.schedule.stages: 0.",
        ),
    ] = None,
    allow_change: AllowChange = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan with its time and memory, and do not train.")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Fine-tune and prune on English, measure all languages, export.

    After a crash or Ctrl-C, run the same command again: the run resumes from its last checkpoint. Several GPUs train one
    model together: torchrun --nproc-per-node 4 -m xlmprune compress RECIPE
    """
    from xlmprune.recipe.loading import load_recipe

    resolved = load_recipe(recipe, set_)
    if dry_run:
        if processes.is_first():
            _print_plan(resolved, recipe, device, _reporter(quiet, verbose), as_json, start_from)
        return
    from xlmprune import pipeline
    from xlmprune.core.run_folder import report_file
    from xlmprune.report.pages import results_table

    folder = out or Path("runs") / resolved.name
    facts = pipeline.run(
        resolved, folder, device, fresh, _reporter(quiet, verbose), start_from, allow_change=allow_change
    )
    if not processes.is_first():
        return
    _print_kept(facts, as_json, results_table, report_file(folder))
    if not quiet:
        _print_next_steps(folder / "bundle")


def _print_plan(
    resolved: Recipe, source: str, device: str, reporter: Reporter, as_json: bool, start_from: Path | None
) -> None:
    """Plan a run and print the plan; say what is done, because the imports alone take seconds."""
    reporter.say(f"planning {source}")
    from xlmprune.export import sizing
    from xlmprune.training import planning

    with reporter:
        facts = sizing.plan(resolved, device, reporter, start_from)
    _print(facts, as_json, partial(planning.render, source=source))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    set_: Set = [],
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Export a finished run again with other export settings.

    Nothing is trained. Example: --set export.opset=18
    """
    from xlmprune import pipeline
    from xlmprune.core.run_folder import report_file
    from xlmprune.report.pages import results_table

    processes.require_one("xlmprune export")
    facts = pipeline.export_again(run, set_, device)
    _print_kept(facts, as_json, results_table, report_file(run))
    _print_next_steps(run / "bundle")


@app.command()
def evaluate(
    bundle: Bundle,
    form: MeasuredForm = "",
    set_: Set = [],
    languages: Annotated[str, typer.Option(help="Measure only these languages, separated by commas.")] = "",
    minimum: Annotated[
        list[str],
        typer.Option(
            "--min",
            metavar="NAME=SCORE",
            help="Lowest accepted score of zero_shot_mean, all_mean or a language. A lower score gives exit code 3.",
        ),
    ] = [],
    predictions: Annotated[
        Path | None, typer.Option(help="Write prediction files in the task's official format to this folder.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts in one call.")] = 64,
    threads: Threads = 0,
    verify: Verify = True,
    as_json: Json = False,
) -> None:
    """Measure a bundle with ONNX Runtime in every language.

    The task and its data come from the run. Use --set to read other data, for example
    --set task.path=data/{language}.tsv
    """
    from xlmprune.bundle import evaluate as scoring

    wanted = [code.strip() for code in languages.split(",") if code.strip()]
    facts = scoring.evaluate_bundle(bundle, form, set_, wanted, batch_size, threads, predictions, verify)
    _print(facts, as_json, scoring.render)
    scoring.require(facts, minimum)


@app.command()
def predict(
    bundle: Bundle,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT]...", help="Texts. For a pair, put a tab between the two texts."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="File with one text on each line, or JSON lines. - reads stdin.")
    ] = None,
    form: Form = "",
    batch_size: Annotated[int, typer.Option(min=1, help="Texts in one call.")] = 32,
    threads: Threads = 0,
    verify: Verify = True,
) -> None:
    """Print labels and probabilities for texts, as JSON lines.

    Texts come from the arguments, from --file or from stdin, one on each line. A line that starts with { is read as
    JSON with the keys text and, for pairs, text_pair. For tagging tasks, words may be a list.
    """
    from xlmprune.bundle import session
    from xlmprune.bundle.evaluate import open_bundle
    from xlmprune.bundle.texts import open_texts

    if not texts and file is None and sys.stdin.isatty():
        raise DataError(
            f'no text. Try: xlmprune predict {bundle} "your text", or --file FILE, or send texts through a pipe'
        )
    opened = open_bundle(bundle, form, threads, verify)
    form = form or opened.served
    waiting, ready = open_texts(texts, file)
    for result in session.predict(opened, waiting, form, batch_size, ready=ready):
        typer.echo(json.dumps(result, ensure_ascii=False))


@app.command()
def serve(
    bundle: Bundle,
    host: Annotated[
        str, typer.Option(help="Address to listen on. 0.0.0.0: all, as in a container.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on. 0: any free port.")] = 8080,
    form: Form = "",
    threads: Annotated[
        int,
        typer.Option(min=1, max=machine.MOST_THREADS, help="Threads of ONNX Runtime for one request."),
    ] = 1,
    verify: Verify = True,
) -> None:
    """Answer requests over HTTP: POST /predict, without PyTorch.

    As many requests as the machine has cores are computed at the same time. Ctrl-C or SIGTERM stops the server.
    """
    from xlmprune.bundle.predictor import Predictor
    from xlmprune.bundle.serve import Server

    predictor = Predictor(bundle, form, threads, verify=verify)
    server = Server(predictor, host, port, max(1, machine.processors() // threads))
    _say(f"{bundle} ({predictor.form}) is served on {server.url}. Stop with Ctrl-C. Try:")
    _say(f"curl -s {server.url}/predict -d '{server.example()}'")
    if unanswered := server.serve_until_stopped():
        _say(f"stopped; {count_of(unanswered, 'request')} had no answer yet")
        sys.stderr.flush()
        os._exit(1)  # a usual exit would wait for what they compute


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A checkpoint, model folder, file or bundle.")],
    verify: Verify = True,
    as_json: Json = False,
) -> None:
    """Show density, norms and bytes of a model or bundle by layer."""
    from xlmprune.bundle import inspect as inspection

    _print(inspection.inspect(path, verify), as_json, inspection.render)


@app.command()
def verify(bundle: Bundle, threads: Threads = 0, as_json: Json = False) -> None:
    """Check that a bundle is intact and computes the measured results.

    Checks the hash of every file, the ONNX graphs, and the stored sample inputs on this machine's ONNX Runtime.
    """
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
    out: Annotated[Path | None, typer.Option(help="Output folder. Default: <bundle>-unpacked.")] = None,
    layout: Annotated[
        str,
        typer.Option(
            help="bundle, or transformers.js: ONNX files in the folder onnx, for transformers.js and optimum."
        ),
    ] = "bundle",
    verify: Verify = True,
) -> None:
    """Write plain safetensors and plain ONNX from packed files.

    Use this for tools that cannot open the packed files.
    """
    from xlmprune.bundle.unpack import unpack_bundle

    folder = out or _beside(bundle, "-unpacked")
    for file in unpack_bundle(bundle, folder, verify, layout):  # type: ignore[arg-type]
        typer.echo(str(folder / file))


@app.command()
def push(
    bundle: Bundle,
    repository: Annotated[str, typer.Argument(metavar="REPO", help="The repository: owner/name.")],
    private: Annotated[
        bool, typer.Option("--private", help="Create a private repository, and refuse a public one.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch to upload to; it is created if needed. Default: main.")
    ] = None,
) -> None:
    """Upload a bundle to a repository of the Hugging Face hub.

    The files are compared with the manifest first. Log in with `hf auth login`, or set HF_TOKEN.
    """
    from xlmprune.bundle.push import push as upload
    from xlmprune.core.formatting import size

    pushed = upload(bundle, repository, private, revision)
    _say(f"{pushed.files} files, {size(pushed.bytes)}")
    typer.echo(pushed.url)


def _beside(folder: Path, ending: str) -> Path:
    """Return ``folder`` with ``ending`` appended to its name. `.` and `..` are resolved first."""
    named = folder if folder.name not in ("", "..") else folder.resolve()
    return named.with_name(named.name + ending)


@app.command()
def bench(
    bundle: Annotated[
        str,
        typer.Argument(
            metavar="BUNDLE", help="The folder of an exported bundle. With --latency-table: or a recipe."
        ),
    ],
    against: Annotated[
        Path | None,
        typer.Option(
            help="Another bundle or an ONNX file to compare with. Default: the whole dense fp32 model if layers, heads "
            "or neurons were removed (needs PyTorch), else the bundle's first form, unpacked."
        ),
    ] = None,
    batches: Annotated[
        str, typer.Option(help="Batch sizes, separated by commas. Default: 1,8; with --latency-table: 1.")
    ] = "",
    lengths: Annotated[
        str,
        typer.Option(
            help="Text lengths in tokens, separated by commas. Default: 64,128; with --latency-table: 64."
        ),
    ] = "",
    threads: Annotated[
        str,
        typer.Option(
            help="Threads for ONNX Runtime; several separated by commas. Default: OMP_NUM_THREADS, or all processors; with "
            "--latency-table: 1."
        ),
    ] = "",
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Time to measure each batch size, length and number of threads.")
    ] = 10.0,
    runtime: Annotated[
        str,
        typer.Option(help="'openvino' also measures the unpacked files in OpenVINO."),
    ] = "onnxruntime",
    latency_table: Annotated[
        Path | None,
        typer.Option(
            "--latency-table",
            metavar="FILE",
            help="Measure model sizes on this machine, and write a table to FILE for pruning.structure.budget.table.",
        ),
    ] = None,
    form: Annotated[
        str, typer.Option(help=f"With --latency-table: the form to measure, {', '.join(FORMS)}.")
    ] = USUAL_FORMS[-1],
    set_: Set = [],
    as_json: Json = False,
) -> None:
    """Measure latency, throughput, memory and bytes of each file.

    The files take turns, so the ratios are reliable on a busy machine too.
    """
    table = latency_table is not None
    counts = (
        _numbers(batches or ("1" if table else "1,8"), "--batches"),
        _numbers(lengths or ("64" if table else "64,128"), "--lengths"),
        # 0 has always stood for all cores.
        [] if threads in ("", "0") and not table else _numbers(threads or "1", "--threads"),
    )
    if runtime not in ("onnxruntime", "openvino"):
        raise RecipeError(f"--runtime {runtime}: expected onnxruntime or openvino")
    if latency_table is not None:
        if runtime == "openvino":
            raise RecipeError("--latency-table is measured with ONNX Runtime; leave out --runtime")
        _write_latency_table(bundle, latency_table, form, counts, seconds, set_, as_json)
        return
    if set_:
        raise RecipeError("--set changes a recipe; it needs --latency-table")
    from xlmprune.bundle import bench as benching
    from xlmprune.bundle.unpack import contenders, plain_forms

    with ExitStack() as stack:
        files = stack.enter_context(contenders(Path(bundle), against, _say))
        plain = stack.enter_context(plain_forms(Path(bundle))) if runtime == "openvino" else {}
        others = {f"{form}, OpenVINO": file for form, file in plain.items()}
        runtimes = dict.fromkeys(others, benching.OPENVINO)
        facts = benching.bench(files | others, *counts, seconds=seconds, say=_say, runtimes=runtimes)
    _print(facts, as_json, benching.render)


def _write_latency_table(
    name: str,
    file: Path,
    form: str,
    counts: tuple[list[int], list[int], list[int]],
    seconds: float,
    set_: list[str],
    as_json: bool,
) -> None:
    """Measure what sizes of the model of a bundle or a recipe cost."""
    from xlmprune.core.files import explain_disk, require_place_for_file
    from xlmprune.export import sizing

    require_place_for_file(file)
    source, exporting = sizing.model_to_size(name, form, set_)
    table = sizing.measure(source, exporting, list(product(*counts)), _say, seconds)
    with explain_disk(file.parent):
        sizing.write_table(table, file)
    if as_json:
        _print_json(table.record())
    else:
        typer.echo(str(file))


def _numbers(text: str, option: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise RecipeError(f"{option} {text}: expected whole numbers above 0, for example 1,8")
    return numbers


@app.command()
def compare(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="A recipe, a comparison file, or the name of a shipped one."),
    ],
    vary: Annotated[
        list[str],
        typer.Option("--vary", metavar="KEY=V1,V2", help="Run each of these values. Can be repeated."),
    ] = [],
    set_: Set = [],
    out: Annotated[
        Path | None, typer.Option(help="Folder of all runs. Default: runs/<name>-comparison.")
    ] = None,
    baseline: Annotated[str, typer.Option(help="Compare the other methods only with this one.")] = "",
    only: Annotated[
        list[str], typer.Option("--only", metavar="METHOD", help="Run only this method. Can be repeated.")
    ] = [],
    jobs: Annotated[int, typer.Option(min=1, help="Number of runs at the same time on this machine.")] = 1,
    executor: Annotated[str, typer.Option(help="local, or ray (needs the extra `ray`).")] = "local",
    gpus: Annotated[float | None, typer.Option(help="ray only: GPUs for each run, for example 0.5.")] = None,
    cpus: Annotated[float, typer.Option(help="ray only: CPU cores for each run.")] = 1,
    device: Device = "auto",
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard runs in the folder and restart.")] = False,
    allow_change: AllowChange = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the list of runs without running.")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Run several methods, seeds and tasks and compare them.

    Each run has its own run folder. Run the same command again to skip finished runs and resume the others.
    """
    from xlmprune.compare import pages, plan, results, running

    processes.require_one("xlmprune compare")
    laid_out = plan.read(recipe, vary, set_, baseline or None)
    if dry_run:
        chosen = laid_out.part(running.chosen_cells(laid_out, only))
        _print_json(pages.plan_entries(chosen)) if as_json else _print_table(pages.plan_table(chosen))
        return
    folder = out or Path("runs") / f"{laid_out.name}-comparison"
    runs = running.make_executor(executor, gpus, cpus, jobs)
    reporter = _reporter(quiet, verbose)
    facts = running.compare(
        laid_out, folder, runs, device, fresh, reporter, only=only, allow_change=allow_change
    )
    _print_kept(facts, as_json, pages.results_table, folder / "comparison.json")
    typer.echo(f"comparison: {folder / 'comparison.html'}", err=True)
    if code := results.exit_code(facts):
        raise typer.Exit(code)


@app.command()
def init(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="A folder of data files, or a pattern: 'data/{language}.{split}.tsv'."
        ),
    ] = "",
    out: Annotated[Path, typer.Option(help="The recipe file to write.")] = Path("recipe.yaml"),
    task: Annotated[
        str,
        typer.Option(
            help="classification, pair_classification, tagging or ranking. Default: from the files."
        ),
    ] = "",
    train_language: Annotated[str, typer.Option(help="Language of the training file.")] = "en",
    languages: Annotated[
        str, typer.Option(help="Languages to measure, separated by commas. Default: all.")
    ] = "",
    model: Annotated[
        str, typer.Option(help="Hub model, local folder, or quickstart (small, for a CPU).")
    ] = "FacebookAI/xlm-roberta-base",
    density: Annotated[
        float, typer.Option(help="Share of the attention heads and FFN neurons to keep; without --budget.")
    ] = 0.5,
    budget: Annotated[
        str,
        typer.Option(
            help="What the INT8 file may cost: '5 ms', '10 MB', '4x' (speed over dense fp32), or several with commas."
        ),
    ] = "",
    text: Annotated[
        str,
        typer.Option(help="Unlabelled text in the languages you serve: 'text/{language}.txt'."),
    ] = "",
    columns: Annotated[
        str,
        typer.Option(
            help="Which column holds what, by name or by position from 0: first=message,label=topic. Default: known names, "
            "or a guess from what the columns hold."
        ),
    ] = "",
    set_: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="How the files are read: task.header, task.delimiter, task.quoting, task.format or task.labels. Can be "
            "repeated.",
        ),
    ] = [],
    force: Annotated[bool, typer.Option("--force", help="Replace the recipe file if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Look at your data files and write a commented recipe for them.

    Without DATA, the command asks for it on a terminal.
    """
    from xlmprune.tasks import first_recipe

    if not data and _is_terminal():
        data = typer.prompt("Folder of your data files, or a pattern with {language} and {split}", err=True)
        task = typer.prompt(
            f"Task ({', '.join(first_recipe.KINDS)}; empty: from the files)", default=task, err=True
        )
        languages = typer.prompt("Languages to measure (empty: all)", default=languages, err=True)
        model = typer.prompt("Model (quickstart: small, for a CPU)", default=model, err=True)
        density = typer.prompt(
            "Share of the attention heads and FFN neurons to keep", default=density, err=True
        )
        budget = typer.prompt(
            "Budget of the INT8 file: 5 ms, 10 MB or 4x (empty: none)", default=budget, err=True
        )
    if not data:
        raise RecipeError(
            "init: give a folder of data files, or a pattern such as 'data/{language}.{split}.tsv'"
        )
    asked = [code.strip() for code in languages.split(",") if code.strip()]
    found = first_recipe.init(
        data, out, task or None, train_language, asked, model, density, text, budget, force, columns, set_
    )
    if as_json:
        _print_json(vars(found) | {"layout": vars(found.layout), "recipe": str(out)})
        return
    typer.echo(f"{out}: {found.kind}, {len(found.labels)} labels, {len(found.languages)} languages")
    if found.guessed:
        text_column, label_column = (found.columns[role] for role in ("first", "label"))
        counted = " (counted from 0)" if isinstance(text_column, int) else ""
        typer.echo(
            f"The text seems to be in column {text_column!r}, the label in {label_column!r}{counted}. If not, give "
            "--columns and --force",
            err=True,
        )
    if found.untested:
        listed = ", ".join(map(language_name, found.untested))
        which = "this language" if len(found.untested) == 1 else "these languages"
        typer.echo(
            f"Text without a test file: {listed}. The model will learn from it, and nothing measures {which}",
            err=True,
        )
    if found.without_text:
        listed = ", ".join(map(language_name, found.without_text))
        typer.echo(
            f"No text in {listed}, so the vocabulary is not trimmed. Add it, and write the recipe again with --force",
            err=True,
        )
    typer.echo(f"Next: xlmprune compress {shlex.quote(str(out))} --dry-run", err=True)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this machine: versions, devices, packages, model hub."""
    from xlmprune.core import doctor as diagnosis

    _print(diagnosis.diagnose(), as_json, diagnosis.render)


@recipes_app.command("list")
def list_recipes(as_json: Json = False) -> None:
    """List the shipped recipes with their first line."""
    from xlmprune.recipe.catalog import shipped_recipes

    found = {name: _headline(file) for name, file in shipped_recipes().items()}
    if as_json:
        _print_json(found)
        return
    width = max(map(len, found), default=0)
    for name, headline in found.items():
        typer.echo(f"{name:<{width}}  {headline}")


def _headline(file: Path) -> str:
    comments = (line[1:].strip() for line in file.read_text(encoding="utf-8").splitlines() if line[:1] == "#")
    skipped = ("xlmprune compress", "yaml-language-server")
    return next((text for text in comments if text and not text.startswith(skipped)), "")


@recipes_app.command("show")
def show_recipe(
    name: Annotated[str, typer.Argument(help="Name of a shipped recipe.", autocompletion=_shipped_names)],
) -> None:
    """Print a shipped recipe as it is written."""
    from xlmprune.recipe.catalog import find_recipe

    typer.echo(find_recipe(name).read_text(encoding="utf-8"), nl=False)


@recipes_app.command("validate")
def validate_recipe(recipe: Annotated[str, RECIPE], set_: Set = []) -> None:
    """Check a recipe and print it with all defaults filled in."""
    from xlmprune.recipe.loading import load_recipe

    typer.echo(load_recipe(recipe, set_).to_yaml(), nl=False)


@recipes_app.command("schema")
def print_schema() -> None:
    """Print a JSON Schema of recipes for editors."""
    from xlmprune.recipe.editors import json_schema

    _print_json(json_schema())


def main() -> None:
    """Run the `xlmprune` command."""
    streams.protect()
    own_process.end_with_parent()
    machine.limit_threads()
    try:
        # A run that still reads its recipe or imports PyTorch ends as one that trains.
        with stopping.interruptible():
            app()
    finally:
        streams.let_go()


if __name__ == "__main__":
    main()
