"""`xlmprune init`: look at a user's files and write a commented recipe that validates.

What is found by looking (the pattern of the file names, the kind of task, labels, lengths) is written into the recipe as
a comment, so that a wrong guess is seen and corrected before anything is trained.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlmprune.core.errors import DataError, RecipeError, first_line
from xlmprune.core.files import explain_disk, write_atomically
from xlmprune.core.formatting import shorten
from xlmprune.core.languages import is_language, language_name
from xlmprune.data.lengths import most_tokens, whole_texts
from xlmprune.data.readers.files import fill, find_languages
from xlmprune.data.readers.guess import column_names, guess_columns
from xlmprune.data.readers.headers import KNOWN_NAMES
from xlmprune.data.readers.labels import LabelError, listed
from xlmprune.data.readers.lines import expand, find_file, read_lines
from xlmprune.data.readers.tables import Table, read_json_table, read_table
from xlmprune.data.unlabelled import languages_with_file
from xlmprune.recipe import registry
from xlmprune.recipe.loading import apply_overrides
from xlmprune.recipe.schema import TaskRecipe
from xlmprune.recipe.validation import validate_recipe, validate_task
from xlmprune.recipe.yaml_text import KeyPath, parse_yaml, plain_value
from xlmprune.tasks.metrics import require_scorable

if TYPE_CHECKING:
    from xlmprune.data.examples import Examples
    from xlmprune.tasks import Task

KINDS = ("pair_classification", "classification", "ranking", "tagging")
SPLITS = {"train": ("train", "training"), "dev": ("dev", "valid", "validation", "val"), "test": ("test",)}
SUFFIXES = (".tsv", ".csv", ".jsonl", ".json", ".ndjson", ".txt", ".conll", ".conllu", ".iob", ".iob2")
WORD = re.compile(r"[A-Za-z]+")
CODE = re.compile(r"(?<![A-Za-z])[a-z]{2,3}(?:[-_](?:[A-Z]{2}|[A-Z][a-z]{3}))?(?![A-Za-z])")
LIMIT = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|x|[kMG]?B)", re.IGNORECASE)
"""One limit of a budget: a number and its unit."""
KEY = re.compile(r"(?:`|--set )task\.(\w+)")
"""A key of `task` in a message; a path may have the same letters."""
MOST_FILES = 100_000
ROWS_TO_GUESS = 200
TEXT_LENGTH = 15
"""Characters that the cells of a column of texts have on average, at least; identifiers have fewer."""
SETTABLE = ("header", "delimiter", "quoting", "format", "labels")
"""Keys of `task` that say how files are read, and that have no option of their own."""

DENSE_UPDATES, PRUNED_UPDATES = 300, 200
"""Updates of a small data set, before and after pruning: about those of `quickstart` and `pos_small`."""
MOST_EPOCHS = 10.0


@dataclass(frozen=True)
class Layout:
    """How the names of data files are built."""

    pattern: str
    """A path with `{language}` and `{split}`."""
    splits: dict[str, str]
    """The word that stands for each split."""


@dataclass(frozen=True)
class Survey:
    """What was found in the files."""

    kind: str
    layout: Layout
    train_language: str
    languages: tuple[str, ...]
    """Languages with a test file, the train language first."""
    labels: tuple[str, ...]
    counts: dict[str, int]
    """Examples of train, dev, and the test sets together."""
    longest: int
    """Tokens of the longest of 99% of the examples, of the language where that is most; estimated from characters."""
    columns: dict[str, str | int] = field(default_factory=dict)
    """Column by role, where it was given or guessed; empty where the readers know the columns."""
    guessed: bool = False
    """Whether the columns were guessed from what they hold."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Values of other keys of `task` that were given."""
    untested: tuple[str, ...] = ()
    """Languages that have text without labels, and no test file."""
    without_text: tuple[str, ...] = ()
    """Languages with a test file that have no text without labels, where others have some; not the train language."""


def survey(
    path: str,
    kind: str | None = None,
    train_language: str = "en",
    languages: Sequence[str] = (),
    columns: Mapping[str, str | int] = {},
    overrides: Sequence[str] = (),
) -> Survey:
    """Look at data files.

    Args:
        path: a folder, or a pattern with `{language}` and `{split}`.
        kind: one of `KINDS`; by default the first that can read the files.
        languages: measure only these; by default all that have a test file.
        columns: name or position of a column, by role; by default known names, or a guess from what the columns hold.
        overrides: ``task.key=value`` each, of the keys in `SETTABLE`.

    Raises:
        DataError: no files, or files that no kind of task can read; says what was tried.
        RecipeError: an override of another key, or with a value that is not possible.
    """
    layout = Layout(path, {}) if "{" in path else find_layout(Path(path))
    _require_train_file(layout, train_language)
    values: dict[str, Any] = {"source": "files", "path": layout.pattern, "train_language": train_language}
    values |= {f"{split}_split": word for split, word in layout.splits.items()}
    if languages:
        values["languages"] = list(languages)
    settings, given = _settings(overrides)
    values |= {"name": "classification", "columns": dict(columns), **settings}
    recipe = validate_task(values, "init", given)
    kinds: Sequence[str] = (kind,) if kind else _likely_kinds(layout, train_language, columns)
    table = None if columns or kinds == ("tagging",) else _train_table(layout, recipe)
    if not kind and table is not None and _names_groups(table):
        kinds = ("ranking", *(other for other in kinds if other != "ranking"))
    guessed: Mapping[str, str | int] = {}
    if table is not None and "classification" in kinds:
        guessed = guess_columns(table, recipe.header) or {}
    if guessed:
        recipe, kinds = recipe.model_copy(update={"columns": guessed}), ("classification",)
    try:
        found = _look(recipe, kinds, layout)
    except DataError as error:
        said = [str(error)]
        if guessed:
            said.append(_how_guessed(guessed))
        elif (
            table is not None
            and not isinstance(error, LabelError)
            and not any(_trains(recipe, kind) for kind in kinds)
        ):
            said.append(_ask_for_columns(table))
        said.append(_where_keys_are("\n".join(said)))
        raise DataError("\n".join(filter(None, said))) from error
    return replace(found, columns=dict(columns or guessed), guessed=bool(guessed), settings=settings)


def _look(recipe: TaskRecipe, kinds: Sequence[str], layout: Layout) -> Survey:
    kind, task = _first_that_reads(recipe, kinds)
    train = task.examples(recipe.train_language, "train")
    tests = [task.examples(language, "test") for language in task.languages()]
    dev = task.examples(recipe.train_language, "dev") if _file(layout, recipe.train_language, "dev") else None
    counts = {"train": len(train), "dev": 0 if dev is None else len(dev), "test": sum(map(len, tests))}
    longest = max(map(_longest, (train, *tests)))
    return Survey(kind, layout, recipe.train_language, task.languages(), task.labels, counts, longest)


def _trains(recipe: TaskRecipe, kind: str) -> bool:
    """Whether this kind of task knows the columns of the training file, perhaps once it has `header: true`."""
    for header in (recipe.header, True):
        with suppress(DataError):
            task = registry.load("task", kind)(recipe.model_copy(update={"name": kind, "header": header}))
            task.examples(recipe.train_language, "train")
            return True
    return False


def _settings(overrides: Sequence[str]) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """Read ``task.key=value`` overrides as keys of `task`; return them, and the option that set each."""
    values: dict[str, Any] = {}
    given = apply_overrides(values, overrides)
    for path, option in given.items():
        if len(path) != 2 or path[0] != "task" or path[1] not in SETTABLE:
            known = ", ".join(f"task.{key}" for key in SETTABLE)
            raise RecipeError(
                f"{option}: init takes only {known}. Change other keys in the recipe that it writes"
            )
    return dict(values.get("task", {})), given


def _where_keys_are(said: str) -> str:
    """Say how keys of `task` that a message names are typed before there is a recipe; empty where it names none."""
    named = {match[1] for match in KEY.finditer(said)}
    if not named:
        return ""
    ways = []
    if "columns" in named:
        ways.append("`task.columns` as in --columns first=0,label=1 (counted from 0, or by name)")
    if "labels" in named:
        ways.append("`task.labels` as in --set 'task.labels=[good, bad]'")
    if named - {"columns", "labels", "path"}:
        ways.append("other keys of `task` as in --set task.header=true or --set 'task.delimiter=|'")
    if "path" in named:
        ways.append("`task.path` as the argument DATA")
    return f"There is no recipe yet. Give {'; '.join(ways)}"


# --- file names ------------------------------------------------------------------------------------------------------


def find_layout(folder: Path) -> Layout:
    """Find the pattern that most data files in a folder follow.

    Raises:
        DataError: no file has the name of a language and of a split in its path.
    """
    if not os.path.isdir(folder):  # noqa: PTH112 (`Path.is_dir` raises where a name is too long)
        raise DataError(
            f"{folder}: no such folder; give a folder, or a pattern such as data/{{language}}.{{split}}.tsv"
        )
    found: dict[str, Counter[str]] = {}
    for file in _data_files(folder):
        for pattern, word in _patterns(file.relative_to(folder).as_posix()):
            found.setdefault(pattern, Counter())[word] += 1
    complete = {
        pattern: words
        for pattern, words in found.items()
        if _split_of("train", words) and _split_of("test", words)
    }
    if not complete:
        raise DataError(
            f"{folder}: no training and test files found whose names contain a language and a split, such as en.train.tsv "
            "and de.test.tsv; rename the files, or give a pattern such as 'data/{language}/{split}.tsv'"
        )
    best = max(complete, key=lambda pattern: complete[pattern].total())
    words = {split: _split_of(split, complete[best]) for split in SPLITS}
    return Layout(
        (folder / best).as_posix(), {split: word for split, word in words.items() if word and word != split}
    )


def _data_files(folder: Path) -> Iterator[Path]:
    count = 0
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            count += 1
            if count > MOST_FILES:
                raise DataError(
                    f"{folder}: holds more than {MOST_FILES:,} files; give the folder of the data alone"
                )
            plain = name.removesuffix(".gz")
            if Path(plain).suffix.lower() in SUFFIXES or WORD.fullmatch(Path(plain).suffix[1:]):
                yield Path(parent) / plain


def _patterns(path: str) -> Iterator[tuple[str, str]]:
    """Every way to see one word of a path as a language and another as a split, with the split's word."""
    known = {word for spellings in SPLITS.values() for word in spellings}
    splits = [word for word in WORD.finditer(path) if word[0].lower() in known]
    languages = [word for word in CODE.finditer(path) if language_name(word[0]) != word[0]]
    for split, language in itertools.product(splits, languages):
        if split.start() != language.start():
            filled = sorted([(language.span(), "{language}"), (split.span(), "{split}")])
            (start, end), first = filled[0]
            (later, last), second = filled[1]
            yield path[:start] + first + path[end:later] + second + path[last:], split[0]


def _split_of(split: str, words: Counter[str]) -> str | None:
    """Return the word that stands for a split among those found."""
    return next((word for word in words if word.lower() in SPLITS[split]), None)


# --- what the files hold ---------------------------------------------------------------------------------------------


def _is_json(name: str) -> bool:
    return name.lower().endswith((".json", ".jsonl", ".ndjson"))


def _likely_kinds(layout: Layout, language: str, columns: Mapping[str, str | int] = {}) -> Sequence[str]:
    """Return the kinds to try. Only a token file has an empty line after every sentence; else a table may look like one.

    Raises:
        DataError: the training file is damaged, or is not text.
    """
    file = _file(layout, language, "train")
    lines = [] if file is None else read_lines(file)
    if "group" in columns:
        return ("ranking",)
    if file is None or _is_json(file.name.removesuffix(".gz")):
        return KINDS
    sentences = [bool(line.strip()) for line in lines[:300][:-1]]
    return ("tagging",) if not all(sentences) and sentences.count(False) > 1 else KINDS[:-1]


def _train_table(layout: Layout, recipe: TaskRecipe) -> Table | None:
    """Read the training file as a table; None where it cannot be read as one."""
    file = _file(layout, recipe.train_language, "train")
    if file is None:
        return None
    name = file.name.removesuffix(".gz")
    written_as = recipe.format or ("jsonl" if _is_json(name) else Path(name).suffix[1:].lower())
    with suppress(DataError):
        if written_as == "jsonl":
            return read_json_table(file)
        return read_table(file, written_as, recipe.delimiter, recipe.quoting)
    return None


def _names_groups(table: Table) -> bool:
    """Whether a column has a name that queries have."""
    known = {name for alternative in KNOWN_NAMES["group"] for name in alternative}
    return not known.isdisjoint(name.lower() for name in column_names(table))


def _ask_for_columns(table: Table) -> str:
    names = column_names(table)
    if len(names) == 1:
        return f"{table.path}: there is only one column, and a text and its label need one each{table.hint}"
    roles = ("first", "second", "label") if _ends_with_pair(table) else ("first", "label")
    example: dict[str, str | int] = dict(zip(roles, range(len(names))[-len(roles) :], strict=True))
    lowered = [name.lower() for name in names]
    for role in roles:  # a name says more than the place
        known = [lowered.index(name) for (name, *more) in KNOWN_NAMES[role] if not more and name in lowered]
        example |= {role: known[0]} if known and known[0] not in example.values() else {}
    if not _begins_with_example(table):
        example = {role: _typed(names, int(index)) for role, index in example.items()}
    counted = " (counted from 0)" if any(isinstance(column, int) for column in example.values()) else ""
    return (
        f"{table.path}: the columns are {listed([*map(_in_comment, names)])}. Say which hold the text and the label, as in "
        f"{_option(example)}{counted}; the second text of a pair is `second`, and the query of a ranking is `group`"
    )


def _ends_with_pair(table: Table) -> bool:
    """Whether both columns before the last one seem to hold texts, going by their length."""
    columns = list(zip(*table.cells[:ROWS_TO_GUESS], strict=True))[-3:-1]
    return len(columns) == 2 and all(
        sum(len(str(cell)) for cell in cells) >= TEXT_LENGTH * len(cells) for cells in columns
    )


def _begins_with_example(table: Table) -> bool:
    """Whether a cell of the first row stands in another row too, which a name seldom does."""
    first, *others = table.cells
    return table.names is None and any(cell in column for cell, *column in zip(first, *others, strict=True))


def _how_guessed(columns: Mapping[str, str | int]) -> str:
    listed = ", ".join(f"{role} is {column!r}" for role, column in columns.items())
    return (
        f"The columns were guessed from what they hold ({listed}). If this is wrong, say which hold the text and the label, "
        "as in --columns first=1,label=2, by name or by position from 0"
    )


def _typed(names: Sequence[str], index: int) -> str | int:
    """Return a column as --columns takes it: its name, or its position where the name is long or cannot be given there."""
    name = names[index]
    with suppress(RecipeError):
        can_be_typed = shorten(name) == name and read_columns(f"first={name}") == {"first": name}
        if can_be_typed and names.count(name) == 1:
            return name
    return index


def _option(columns: Mapping[str, str | int]) -> str:
    """Write columns as the option that a user types."""
    return f"--columns {shlex.quote(','.join(f'{role}={column}' for role, column in columns.items()))}"


def read_columns(text: str) -> dict[str, str | int]:
    """Read columns such as ``first=message,label=topic`` as `task.columns`; whole numbers are positions from 0.

    Raises:
        RecipeError: a part is not a role with a column, or a role is given twice.
    """
    found: dict[str, str | int] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        role, separator, column = map(str.strip, part.partition("="))
        if not separator or not role or not column or role in found:
            raise RecipeError(
                f"--columns {text}: expected each part of an example once, as in first=message,label=topic"
            )
        found[role] = int(column) if column.isascii() and column.isdigit() else column
    return found


def _first_that_reads(recipe: TaskRecipe, kinds: Sequence[str]) -> tuple[str, Task]:
    refused: dict[str, DataError] = {}
    for kind in kinds:
        task = registry.load("task", kind)(recipe.model_copy(update={"name": kind}))
        try:
            labels, languages = task.labels, task.languages()
            require_scorable(task, (task.examples(language, "test") for language in languages))
        except DataError as error:
            refused[kind] = error
            continue
        if len(labels) > 1:
            return kind, task
    # If a kind knows the columns, what the other kinds lack does not help.
    able = [kind for kind in refused if _trains(recipe, kind)]
    able = able or [kind for kind, error in refused.items() if isinstance(error, LabelError)]
    if len(able) == 1 and len(kinds) > 1:
        raise refused[able[0]]
    said = [f"{kind}: {first_line(refused[kind])}" for kind in able or refused]
    raise DataError("\n".join([f"{recipe.path}: no kind of task can read these files", *said]))


def _require_train_file(layout: Layout, language: str) -> None:
    """Raise DataError if other languages have a training file, and this one has none."""
    if _file(layout, language, "train") is not None:
        return
    if others := find_languages(expand(layout.pattern), layout.splits.get("train", "train")):
        raise DataError(
            f"{layout.pattern}: there is no training file in {language_name(language)} ({language}), but in "
            f"{', '.join(others)}. Say which language trains, as in --train-language {others[0]}"
        )


def _file(layout: Layout, language: str, split: str) -> Path | None:
    """Find the file of a language and a split, compressed or not."""
    return find_file(Path(fill(expand(layout.pattern), language, layout.splits.get(split, split))))


def _longest(examples: Examples) -> int:
    sizes = sorted(map(most_tokens, whole_texts(examples)))
    return math.ceil(sizes[int(0.99 * (len(sizes) - 1))]) if sizes else 0


# --- the recipe ------------------------------------------------------------------------------------------------------


def init(
    path: str,
    out: Path,
    kind: str | None = None,
    train_language: str = "en",
    languages: Sequence[str] = (),
    model: str = "FacebookAI/xlm-roberta-base",
    density: float = 0.5,
    unlabelled: str = "",
    budget: str = "",
    force: bool = False,
    columns: str = "",
    overrides: Sequence[str] = (),
) -> Survey:
    """Look at data files and write a recipe for them to ``out``; see `survey` and `recipe_text` for the arguments.

    Args:
        columns: see `read_columns`; empty for known names or a guess.
        overrides: see `survey`.
        budget: see `read_budget`; empty for none.
        force: replace ``out`` where it is a file.

    Raises:
        DataError: the files cannot be read.
        RecipeError: ``out`` exists, or an argument is not possible.
    """
    if not 0.01 <= density < 1:
        raise RecipeError(f"--density {density:g}: expected a share from 0.01 to below 1, such as 0.5")
    if unlabelled and "{language}" not in unlabelled:
        raise RecipeError(
            f"--text {unlabelled}: expected a pattern with {{language}}, such as text/{{language}}.txt"
        )
    if kind is not None and kind not in KINDS:
        raise RecipeError(f"--task {kind}: {registry.nearest(kind, KINDS)}")
    limits = read_budget(budget)
    found = survey(path, kind, train_language, languages, read_columns(columns), overrides)
    if unlabelled:
        found = _with_text(found, unlabelled, measures_all=not languages)
    with explain_disk(out.absolute().parent):
        if out.is_dir():
            raise RecipeError(f"{out}: is a folder; give a file with --out")
        if out.exists() and not force:
            raise RecipeError(
                f"{out}: exists already; choose another file with --out, or replace it with --force"
            )
    pattern = os.path.relpath(expand(found.layout.pattern), out.absolute().parent)
    near = (
        os.path.relpath(expand(unlabelled), out.absolute().parent).replace(os.sep, "/") if unlabelled else ""
    )
    text = recipe_text(found, pattern.replace(os.sep, "/"), model, density, near, limits)
    values, _ = parse_yaml(text, str(out))
    validate_recipe({"name": "mine", **values}, str(out))
    with explain_disk(out.absolute().parent):
        write_atomically(out, text)
    return found


def _with_text(found: Survey, pattern: str, measures_all: bool) -> Survey:
    """Say which languages have text without labels.

    Args:
        measures_all: whether languages were not chosen by name, so that text of others is read too.

    Raises:
        RecipeError: none has any.
    """
    having, measured = languages_with_file(pattern), set(found.languages)
    untested = sorted(filter(is_language, having - measured)) if measures_all else ()
    if not untested and not having & measured:
        raise RecipeError(
            f"--text {pattern}: no such file for any of the languages {', '.join(found.languages)}"
        )
    missing = [code for code in found.languages if code not in having and code != found.train_language]
    return replace(found, untested=tuple(untested), without_text=tuple(missing))


def recipe_text(
    found: Survey,
    pattern: str,
    model: str,
    density: float,
    unlabelled: str = "",
    budget: Mapping[str, str] = {},
) -> str:
    """Write a commented recipe.

    Args:
        pattern: of the data files, relative to the recipe.
        model: where to start; `quickstart` needs no hub and trains on a CPU.
        density: share of the attention heads and FFN neurons that remains, so about that of the encoder's weights.
        unlabelled: pattern of text files without labels, relative to the recipe; empty where there are none.
        budget: limits of the INT8 file, from `read_budget`; they replace the density.
    """
    small = model == "quickstart"
    batch = 16 if small else 32
    updates = -(-found.counts["train"] // batch)
    dense, pruned = (
        float(f"{min(MOST_EPOCHS, max(1.0, wanted / updates)):.2g}")
        for wanted in (DENSE_UPDATES, PRUNED_UPDATES)
    )
    length = next(size for size in (32, 64, 128, 256, math.inf) if size >= min(found.longest, 256))
    others = [language for language in found.languages if language != found.train_language]
    splits = [f"  {split}_split: {_scalar(word)}" for split, word in found.layout.splits.items()]
    shown = ", ".join(map(_in_comment, found.labels[:8])) + (", …" if len(found.labels) > 8 else "")
    text = json.dumps(unlabelled or "text/{language}.txt", ensure_ascii=False)
    off = "" if unlabelled else "# "
    # Without text of a language, trimming would take the pieces of this language away.
    keeps_all = "" if unlabelled and not found.without_text else "# "
    trained = _in_comment(language_name(found.train_language))
    keep = "best" if found.counts["dev"] else "last"
    lines = [
        f"# Task {found.kind}: trained in {trained}, measured in {len(others)} more "
        f"language{'s'[: len(others) != 1]}.",
        "#",
        "# Written by `xlmprune init`. Check it, then print the plan with its time and memory, and start:",
        "#   xlmprune compress THIS_FILE --dry-run",
        "#   xlmprune compress THIS_FILE",
        "#",
        f"# Found: {found.counts['train']:,} training examples, {found.counts['dev']:,} dev, {found.counts['test']:,} test.",
        f"# Labels ({len(found.labels)}): {shown}",
        "model:",
        f"  name: {_scalar(model)}",
        "  # Keep only the vocabulary that this text uses, for a much smaller file. Fewer pieces: `max_size: 30000`.",
        *([f"  # First give text of {_named(found.without_text)}."] if found.without_text else []),
        f"  {keeps_all}vocabulary: {{files: [{text}]}}",
        "task:",
        f"  name: {found.kind}",
        "  source: files",
        "  # Relative to this file.",
        f"  path: {_scalar(pattern)}",
        *splits,
        *_column_lines(found),
        *(f"  {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in found.settings.items()),
        f"  train_language: {_scalar(found.train_language)}",
        *_language_lines(found),
        "training:",
        f"  # About {round(dense * updates):,} updates before pruning and {round(pruned * updates):,} after it.",
        f"  dense_epochs: {dense:g}",
        f"  epochs_per_stage: {pruned:g}",
        f"  batch_size: {batch}",
        "  # Small data needs a higher learning rate than the paper's 5e-6, which is for millions of updates.",
        f"  dense_learning_rate: {'2.0e-4' if small else '2.0e-5'}",
        f"  learning_rate: {'1.0e-4' if small else '2.0e-5'}",
        f"  # 99% of a language's examples have at most about {found.longest} tokens. Shorter is faster and cuts texts.",
        f"  max_length: {length}",
        *([] if found.counts["dev"] else ["  # There is no dev file to choose the best epoch on."]),
        f"  keep: {keep}",
        "pruning:",
        *_structure_lines(density, budget),
        *_refit_lines(model, "the unlabelled text below" if unlabelled else TRAINING_TEXT_ALONE),
        "regularizer: none",
        "# The dense model teaches the pruned one its answers and hidden states.",
        "distillation:",
        "  temperature: 0.3",
        "  weight: 0.5",
        "  hidden: 1.0",
        *([] if unlabelled else ["  # Without such text the other languages lose most. Give some if you can:"]),
        "  # Unlabelled text of the languages you serve, one sentence per line. It preserves their accuracy.",
        f"  {off}unlabelled: {text}",
        "export:",
        "  onnx: [fp32, int8]",
        *([f"  calibration: {text}"] if unlabelled else []),
        "  # Do not ship a form that loses more points than this against the unquantized model:",
        "  # floor: {zero_shot_drop: 1.0, worst_language_drop: 5.0}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _language_lines(found: Survey) -> list[str]:
    listed = ", ".join(map(_scalar, found.languages))
    if not found.untested:
        return [f"  languages: [{listed}]"]
    return [
        f"  # Every language with a test file is measured: {listed}. Text is also read in {_named(found.untested)},",
        f"  # which {'is' if len(found.untested) == 1 else 'are'} served and not measured. A list of languages here leaves",
        "  # the text of all others unread.",
        "  languages: all",
    ]


def _named(languages: Sequence[str]) -> str:
    return ", ".join(_in_comment(language_name(code)) for code in languages)


def _column_lines(found: Survey) -> list[str]:
    if not found.columns:
        return []
    columns = ", ".join(
        f"{role}: {_scalar(column) if isinstance(column, str) else column}"
        for role, column in found.columns.items()
    )
    comment = ["  # Guessed from what the columns hold. Check it."] if found.guessed else []
    return [*comment, f"  columns: {{{columns}}}"]


TRAINING_TEXT_ALONE = "the training texts alone; give text of other languages below"


def _refit_lines(model: str, text: str) -> list[str]:
    """Ask for the refit on ``text``, unless the model is in a folder and is of a family that cannot be refitted."""
    with suppress(OSError, ValueError, TypeError, AttributeError):
        config = json.loads((Path(model).expanduser() / "config.json").read_text(encoding="utf-8"))
        family = config.get("model_type")
        if family in registry.FAMILIES and registry.load("family", family).norm_first:
            return [f"  # Models of type {family} cannot be refitted by least squares (`reconstruct`)."]
    return [
        f"  # Least squares then refits what remains, on {text}.",
        "  reconstruct: {texts: 1500}",
    ]


def _structure_lines(density: float, budget: Mapping[str, str]) -> list[str]:
    if not budget:
        return [
            f"  # {density:.0%} of the attention heads and FFN neurons remain in every layer. With `layers: 6`, half of",
            "  # twelve, the model is twice as fast again. It lost 0 to 7% of its zero-shot mean on the tasks of",
            "  # docs/results.md. Or let xlmprune choose the sizes:",
            "  # structure: {budget: {speedup: 4}}",
            "  pattern: structured",
            f"  structure: {{heads: {density:g}, neurons: {density:g}}}",
        ]
    limits = ", ".join(f"{key}: {value}" for key, value in budget.items())
    return [
        "  # Layers, heads and neurons are removed until the INT8 file meets the budget, for a call with one text of 64",
        "  # tokens on one thread of this machine. `--dry-run` shows the sizes. For another server see docs/choosing.md.",
        "  pattern: structured",
        f"  structure: {{budget: {{{limits}}}}}",
    ]


def read_budget(text: str) -> dict[str, str]:
    """Read limits such as ``5 ms``, ``10 MB`` and ``4x``, separated by commas, as keys of `pruning.structure.budget`.

    Raises:
        RecipeError: one is none of these, or is given twice.
    """
    limits: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        found = LIMIT.fullmatch(part)
        if found is None or float(found[1]) <= 0:
            raise RecipeError(
                f"--budget {part}: expected milliseconds (5 ms), a size (10 MB) or a speed over dense fp32 (4x)"
            )
        unit = found[2].lower()
        key = {"ms": "latency_ms", "x": "speedup"}.get(unit, "bytes")
        if key in limits:
            raise RecipeError(f"--budget {text}: {key} is given twice")
        limits[key] = f"{found[1]} {found[2]}" if key == "bytes" else found[1]
    return limits


def _in_comment(text: str) -> str:
    """Write a text such that it stays in the line of its comment."""
    return text if text.isprintable() else json.dumps(text)


def _scalar(text: str) -> str:
    """Write a text as YAML, with quotes where it needs them."""
    return text if re.fullmatch(r"[A-Za-z][\w./-]*", text) and plain_value(text) == text else json.dumps(text)
