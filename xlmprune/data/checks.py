"""What is odd about the data of a task as a whole: texts in two splits, contradictions, a single class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from xlmprune.core.formatting import count_of
from xlmprune.core.languages import language_name
from xlmprune.data.examples import Examples

EXPECTED = 5
"""A label is missed in a set that should have this many examples of it."""

MOST_NAMED = 5
"""Labels that a sentence names."""

MUCH_MORE = 2
"""From how many times the next language's texts on a language has much more."""


def warnings_about(
    train: Examples, dev: Examples | None, tests: Mapping[str, Examples], labels: Sequence[str] = ()
) -> tuple[str, ...]:
    """Compare the splits, and give a sentence for everything that makes scores doubtful.

    Texts count as equal if they differ only in case and spaces; a pair, if both its texts are.

    Args:
        labels: names of the model's outputs, in order.
    """
    sets = {f"{language} test set": test for language, test in tests.items()}
    if dev is not None:
        sets = {f"{dev.language} dev set": dev, **sets}
    keys = {name: _keys(examples) for name, examples in sets.items()}
    trained = _keys(train)
    known = set(trained)
    warnings = [_in_both(own, known, name, "the training set") for name, own in keys.items()]
    if dev is not None and train.language in tests:
        chosen = set(keys[f"{dev.language} dev set"])
        name = f"{train.language} test set"
        warnings.append(_in_both(keys[name], chosen, name, "the dev set"))
    warnings += [_contradictions(train, trained), _untrained_labels(train, labels)]
    warnings += [_single_class(name, examples) for name, examples in sets.items()]
    warnings += [_absent_labels(name, examples, train) for name, examples in sets.items()]
    return tuple(warning for warning in warnings if warning)


def uneven_text(unlabelled: Mapping[str, Examples]) -> str:
    """Say if more than half of the texts that a teacher answers are of one language; empty if not.

    A batch takes texts in proportion to their number, so the other languages are seldom met.
    """
    counts = {language: len(part) for language, part in unlabelled.items()}
    if len(counts) < 2:
        return ""
    (language, most), (_, next_most) = sorted(counts.items(), key=lambda entry: -entry[1])[:2]
    total = sum(counts.values())
    if most <= total / 2 or most <= MUCH_MORE * next_most:
        return ""
    return (
        f"{most / total:.0%} of the unlabelled text is {language_name(language)} ({most:,} of {total:,} texts), so the "
        f"student learns mostly from this language. distillation.max_texts: {next_most} takes a sample where a language "
        "has more"
    )


def without_test(languages: Sequence[str]) -> str:
    """Say that text of these languages is read, and that nothing measures them; empty if there is none."""
    if not languages:
        return ""
    named = ", ".join(map(language_name, languages))
    which, wanted = ("this language", "it is") if len(languages) == 1 else ("these languages", "they are")
    return (
        f"there is text in {named}, and no test set: the model keeps pieces for this text or learns from it, but its "
        f"accuracy in {which} is not measured. If {wanted} not wanted, list the others in task.languages"
    )


def _keys(examples: Examples) -> list[str]:
    texts = [text if isinstance(text, str) else " ".join(text) for text in examples.first]
    if examples.second is not None:
        texts = [f"{a}\t{b}" for a, b in zip(texts, examples.second, strict=True)]
    return ["\t".join(" ".join(part.split()) for part in text.casefold().split("\t")) for text in texts]


def _in_both(own: list[str], other: set[str], name: str, where: str) -> str:
    count = sum(key in other for key in own)
    if not count:
        return ""
    what = "all" if count == len(own) else f"{count:,} of {len(own):,}"
    return (
        f"the {name} and {where} have texts in common ({what} of the {name}), so scores on it may be too high"
    )


def _contradictions(train: Examples, keys: list[str]) -> str:
    labels: dict[str, Any] = {}
    groups = train.groups or [""] * len(train)
    different = set()
    for key, group, label in zip(keys, groups, train.labels or (), strict=False):
        if labels.setdefault(f"{group}\t{key}", label) != label:
            different.add(key)
    if not different:
        return ""
    return f"the training set has {count_of(len(different), 'text')} more than once with different labels"


def _untrained_labels(train: Examples, labels: Sequence[str]) -> str:
    if not train.labels or train.groups is not None:
        return ""
    trained = set(_tags(train))
    absent = [name for number, name in enumerate(labels) if number not in trained]
    if not absent:
        return ""
    return (
        f"the training set has no example of {count_of(len(absent), 'label')} ({', '.join(absent[:MOST_NAMED])}"
        f"{', …' if len(absent) > MOST_NAMED else ''}), so the model cannot learn {'it' if len(absent) == 1 else 'them'}"
    )


def _absent_labels(name: str, examples: Examples, train: Examples) -> str:
    """Say which labels a set lacks though it should have several examples of each, by their share of the training set."""
    if not examples.labels or not train.labels or examples.groups is not None:
        return ""
    own, trained = set(_tags(examples)), Counter(_tags(train))
    share = len(list(_tags(examples))) / trained.total()
    absent = [count for label, count in trained.items() if label not in own and count * share >= EXPECTED]
    if not absent or len(own) == 1:
        return ""
    return (
        f"the {name} has no example of {count_of(len(absent), 'label')} of the training set "
        f"({count_of(sum(absent), 'example')} there), so its scores do not measure them"
    )


def _tags(examples: Examples) -> Iterator[int]:
    for label in examples.labels or ():
        yield from label if isinstance(label, list) else [label]


def _single_class(name: str, examples: Examples) -> str:
    if examples.labels is None or len(examples) < 2 or examples.groups is not None:
        return ""
    return (
        f"the {name} has only one label, so scores on it say little" if len(set(_tags(examples))) == 1 else ""
    )
