"""Unlabelled text in the languages that a model will serve: read from files or from the task, what is measured left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from xlmprune.core.errors import DataError
from xlmprune.data.examples import Examples, fold
from xlmprune.data.readers.lines import expand, read_lines


def unlabelled_examples(
    task: Any,
    pattern: str,
    tests: Mapping[str, Examples],
    dev: Examples | None = None,
    languages: Sequence[str] | None = None,
    max_texts: int | None = None,
) -> dict[str, Examples]:
    """Unlabelled text of every language of the task that has some, each text once.

    Args:
        pattern: a file name with ``{language}``, one text a line; or `task`, for the task's own. A pair is two texts
            with a tab between; where a line has none, it is paired with the next. Words of a tagging task are what
            spaces separate.
        tests: the test sets. Their texts are left out, however they are spaced, cased or punctuated; a pair, if either
            of its texts is one of theirs.
        dev: its texts are left out likewise, since something is chosen on them.
        languages: read these only; None for every language of ``tests``.
        max_texts: at most so many of a language, the first ones.

    Returns:
        language to examples without labels; languages without text are absent.

    Raises:
        DataError: no language has any text, or one of ``languages`` is not measured.
    """
    strangers = sorted(set(languages or ()) - set(tests))
    if strangers:
        raise DataError(
            f"distillation.languages: {', '.join(strangers)} not among the languages measured, {', '.join(tests)}"
        )
    measured = {
        fold(text) for part in (*tests.values(), *([] if dev is None else [dev])) for text in _texts(part)
    }
    found: dict[str, Examples] = {}
    for language in tests if languages is None else languages:
        lines = dict.fromkeys(_lines(task, pattern, language))
        free = [line for line in lines if not measured & {fold(text) for text in line.split("\t")}]
        if task.kind == "pair":
            pairs = list(_paired(free))[:max_texts]
            first, second = [a for a, _ in pairs], [b for _, b in pairs]
            part = Examples(language, "unlabelled", first, second)
        else:
            texts = free[:max_texts]
            words = [text.split() for text in texts] if task.kind == "tokens" else texts
            part = Examples(language, "unlabelled", words)
        if len(part):
            found[language] = part
    if not found:
        raise DataError(f"distillation.unlabelled: no text found for {', '.join(tests)} at {pattern!r}")
    return found


def _texts(examples: Examples) -> Iterator[str]:
    for column in (examples.first, examples.second or ()):
        for text in column:
            yield text if isinstance(text, str) else " ".join(text)


def _lines(task: Any, pattern: str, language: str) -> list[str]:
    if pattern == "task":
        return task.unlabelled(language)
    path = Path(expand(pattern.replace("{language}", language)))
    return [line for line in read_lines(path) if line.strip()] if path.is_file() else []


def _paired(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    waiting: str | None = None
    for line in lines:
        first, tab, second = line.partition("\t")
        if tab:
            yield first, second
        elif waiting is None:
            waiting = line
        else:
            yield waiting, line
            waiting = None


def vocabulary_texts(task: Any, files: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Return the text of every language that its pieces are counted in: the task's own, without test sets, and the files'.

    Args:
        task: gives unlabelled text, and train and dev text of the train language.
        files: UTF-8, one text a line; ``{language}`` in a name is filled in with each language, a file without it
            counts for all.

    Raises:
        DataError: a file is missing or not UTF-8; names file and line.
    """
    train_language, *others = task.languages()
    texts = {language: list(task.unlabelled(language)) for language in (train_language, *others)}
    texts[train_language] += _train_texts(task, train_language)
    for pattern in files or ():
        for language in texts:
            path = Path(expand(pattern.replace("{language}", language)))
            # The train language has text of its own, by the recipe; the others may have nothing else.
            if language != train_language or path.is_file():
                texts[language] += [text for line in read_lines(path) if (text := line.strip())]
    # The two texts of a pair stand apart elsewhere, and a text must not count twice.
    return {
        language: list(dict.fromkeys(part for text in mine for part in text.split("\t")))
        for language, mine in texts.items()
    }


def _train_texts(task: Any, language: str) -> list[str]:
    """Return train and dev texts that are not in the test set as well."""
    test = set(_texts(task.examples(language, "test")))
    mine = list(_texts(task.examples(language, "train")))
    with suppress(DataError):  # not every source has a dev set
        mine += _texts(task.examples(language, "dev"))
    return [text for text in mine if text not in test]
