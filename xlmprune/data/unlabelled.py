"""Unlabelled text in the served languages, from files or from the task, without the texts that are measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from xlmprune.core.errors import DataError
from xlmprune.core.languages import is_language
from xlmprune.data.examples import Examples, normalize
from xlmprune.data.leaks import TestTexts, texts_of
from xlmprune.data.readers.files import find_languages
from xlmprune.data.readers.lines import expand, find_file, read_lines


def unmeasured_languages(task: Any, patterns: Iterable[str]) -> list[str]:
    """List the languages that have a text file and no test set, alphabetically: served without being measured.

    There is none where the recipe names the languages of its task.

    Args:
        patterns: file names with ``{language}``; others are left out.
    """
    found = {code for pattern in patterns for code in languages_with_file(pattern)}
    if not found or not task.measures_all:
        return []
    return sorted(filter(is_language, found - set(task.languages())))  # a name such as `notes` is none


def languages_with_file(pattern: str) -> set[str]:
    """Return all codes for which a file of this name exists; none if the name holds no ``{language}``."""
    return set(find_languages(expand(pattern), "")) if "{language}" in pattern else set()


def unlabelled_examples(
    task: Any,
    pattern: str,
    tests: Mapping[str, Examples],
    dev: Examples | None = None,
    languages: Sequence[str] | None = None,
    max_texts: int | None = None,
    key: str = "distillation.unlabelled",
) -> dict[str, Examples]:
    """Return the unlabelled text of every language that has some, each text once.

    The languages are those that are measured, and `unmeasured_languages`.

    Args:
        pattern: a file name with ``{language}``, one text a line; or `task` for the task's own text, without machine
            translations of its training set, or `task_with_translations`. A pair is two texts with a tab between; a
            line without a tab is paired with the next. Words of a tagging task are what spaces separate.
        tests: the test sets. Their texts are left out, those that a sample of a set leaves out too, whatever their spaces,
            case and punctuation; a pair, if either text is one of theirs.
        dev: its texts are left out likewise, since something is chosen on them.
        languages: read only these, measured or not; None for every language.
        max_texts: at most so many of a language, a sample that is the same at every call.
        key: of the recipe, which gave the pattern; errors name it.

    Returns:
        language to examples without labels; languages without text are absent.

    Raises:
        DataError: no language has any text, or one of ``languages`` is not measured and has no file.
    """
    strangers = sorted(set(languages or ()) - set(tests) - languages_with_file(pattern))
    if strangers:
        raise DataError(
            f"distillation.languages: {', '.join(strangers)} not among the measured languages: {', '.join(tests)}, and no "
            f"text of it at {pattern!r}"
        )
    if languages is None:
        languages = [*tests, *unmeasured_languages(task, [pattern])]
    measured = TestTexts([*tests.values(), *([] if dev is None else [dev])])
    found: dict[str, Examples] = {}
    for language in languages:
        lines = dict.fromkeys(_lines(task, pattern, language))
        free = [line for line in lines if not measured.has(line)]
        if task.kind == "pair":
            pairs = list(_paired(free))
            part = Examples(language, "unlabelled", [a for a, _ in pairs], [b for _, b in pairs])
        else:
            words = [text.split() for text in free] if task.kind == "tokens" else free
            part = Examples(language, "unlabelled", words)
        if len(part):
            found[language] = part if max_texts is None else part.sample(max_texts)
    if not found:
        raise no_text(key, tests, pattern)
    return found


def has_text(task: Any, pattern: str) -> bool:
    """Return whether any language has text at a pattern; test texts count too.

    Args:
        pattern: as of `unlabelled_examples`.

    Raises:
        DataError: a file cannot be read, or is not UTF-8.
    """
    languages = [*task.languages(), *unmeasured_languages(task, [pattern])]
    having = (bool(_lines(task, pattern, language)) for language in languages)
    # Every file is read now, but not the task's own text of every language, which can be large and is the task's.
    return any(list(having) if "{language}" in pattern else having)


def no_text(key: str, languages: Iterable[str], pattern: str) -> DataError:
    """Build the error that says that no language has text.

    Args:
        key: of the recipe, which gave the pattern.
    """
    return DataError(f"{key}: no text found for {', '.join(languages)} at {pattern!r}")


def _lines(task: Any, pattern: str, language: str) -> list[str]:
    if pattern == "task":
        return task.unlabelled(language)
    if pattern == "task_with_translations":
        return task.unlabelled(language, translations=True)
    path = find_file(Path(expand(pattern.replace("{language}", language))))
    return [] if path is None else [line for line in read_lines(path) if line.strip()]


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


def vocabulary_texts(
    task: Any, files: Sequence[str] | None = None, own: str | None = "task"
) -> dict[str, list[str]]:
    """Return the text of every language that its pieces are counted in, without the texts of test sets.

    The languages are those that are measured, and `unmeasured_languages`.

    Args:
        task: gives train and dev text of the train language, and unlabelled text.
        files: UTF-8, one text a line; ``{language}`` in a name is filled in with each language, and languages without such
            a file are skipped. A file without it counts for all.
        own: `task` to count the task's own text of other languages as well, `task_with_translations` to include machine
            translations of the training set; None for the files' alone.

    Raises:
        DataError: a file is missing or not UTF-8; names file and line.
    """
    train_language, *others = task.languages()
    texts = {language: _lines(task, own, language) if own else [] for language in others}
    texts = {train_language: _lines(task, "task", train_language), **texts}
    texts[train_language] += _train_texts(task, train_language)
    if files:
        tests = TestTexts(task.examples(language, "test") for language in texts)
        texts |= {language: [] for language in unmeasured_languages(task, files)}
        for pattern in files:
            for language, path in _files_of(pattern, texts).items():
                lines = [text for line in read_lines(path) if (text := line.strip())]
                texts[language] += [text for text in lines if not tests.has(text)]
    # The two texts of a pair stand apart elsewhere, and a text must not count twice.
    return {
        language: list(dict.fromkeys(part for text in mine for part in text.split("\t")))
        for language, mine in texts.items()
    }


def _files_of(pattern: str, languages: Iterable[str]) -> dict[str, Path]:
    """Return the file of each language that has one; a name without ``{language}`` is the file of all."""
    names = {language: Path(expand(pattern.replace("{language}", language))) for language in languages}
    if "{language}" not in pattern:
        return {language: find_file(plain) or plain for language, plain in names.items()}
    found = {language: path for language, plain in names.items() if (path := find_file(plain)) is not None}
    if not found:
        raise DataError(f"model.vocabulary.files: no file at {pattern!r} for any of {', '.join(names)}")
    return found


def _train_texts(task: Any, language: str) -> list[str]:
    """Return train and dev texts that are not in the test set as well, whatever their spaces, case and punctuation."""
    test = set(map(normalize, texts_of(task.examples(language, "test"))))
    mine = list(texts_of(task.examples(language, "train")))
    with suppress(DataError):  # not every source has a dev set
        mine += texts_of(task.examples(language, "dev"))
    return [text for text in mine if normalize(text) not in test]
