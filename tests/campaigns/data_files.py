"""Write tricky data files with known content: each is read exactly, or a fault in it is refused with file and line.

python tests/campaigns/data_files.py --count 5000 --seed 0 --seconds 600
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlmprune.core.errors import DataError
from xlmprune.recipe import registry
from xlmprune.recipe.schema import TaskRecipe

WORDS = (
    "river bank Überraschung naïve ฝนตก 打开 ночь שלום مرحبا नमस्ते Ελλάδα 1,5 ; a;b x|y # ## -- “quoted” it's ﬁne 🙂 👩‍🚀 "
    "e\u0301 zero\u200bwidth soft\u00adhyphen 50% C:\\new \\u0041 <b> & a=b NaN null None true -1 0 +3 ( ] } ~ ` @user"
).split()
ODD = ("\u2028", "\x85", "\u00a0", "\u3000", "\x0b", "\x1c", "\ufeff", "\u200f")
LABELS = (
    ["pos", "neg"],
    ["0", "1", "2"],
    ["entailment", "neutral", "contradiction"],
    ["да", "нет"],
    ["A b", "c"],
)
TYPES = ("PER", "LOC", "ORG", "B", "x-y", "WORK_OF_ART")
KNOWN = {
    "first": "text sentence premise question",
    "second": "hypothesis sentence2 passage",
    "label": "label category",
}


@dataclass
class Case:
    """A file, the settings to read it with, and what must come of it."""

    kind: str
    content: bytes
    suffix: str
    fields: dict[str, Any] = field(default_factory=dict)
    texts: list[Any] = field(default_factory=list)
    second: list[str] | None = None
    labels: list[Any] = field(default_factory=list)
    refused: tuple[str, ...] = ()
    """Parts of the sentence that must refuse it; none: it is read."""
    tricks: list[str] = field(default_factory=list)


def text(draw: random.Random, *, lines: bool = False, empty: bool = True) -> str:
    """A text that any format can hold; with line breaks only for those that can."""
    if empty and draw.random() < 0.03:
        return ""
    words = draw.choices(WORDS, k=draw.randint(1, 9))
    if draw.random() < 0.2:
        words.insert(draw.randrange(len(words) + 1), draw.choice(ODD))
    if draw.random() < 0.2:
        words.insert(draw.randrange(len(words) + 1), draw.choice(('"', '""', '"a', 'b"', '"c"')))
    if lines and draw.random() < 0.2:
        words.insert(draw.randrange(len(words) + 1), draw.choice(("\n", "\n\n", "\t")))
    pad = draw.choice(("", "", "", " ", "  "))
    return pad + "x " * (draw.random() < 0.5) + " ".join(words) + pad + "y"


def table(draw: random.Random) -> Case:
    """A table of texts or pairs, in one of the formats."""
    pairs, names = draw.random() < 0.4, draw.choice(LABELS)
    count = draw.randint(2, 12) + len(names)
    style = draw.choice(("tsv", "quoted tsv", "csv", "semicolons", "sep", "bar", "jsonl", "array"))
    lines = style not in ("tsv",)
    first = [text(draw, lines=lines) for _ in range(count)]
    second = [text(draw, lines=lines) for _ in range(count)] if pairs else None
    labels = [*names, *names[:1], *draw.choices(names, k=count - len(names) - 1)]
    case = Case("pair_classification" if pairs else "classification", b"", style, {}, first, second, labels)
    columns = {"first": list(first), **({"second": list(second)} if second else {}), "label": list(labels)}
    if draw.random() < 0.2:
        _leave_out(draw, case, columns)
    if draw.random() < 0.15:
        _languages(draw, columns, case)
    render(draw, case, columns, style)
    return case


def _leave_out(draw: random.Random, case: Case, columns: dict[str, list[str]]) -> None:
    """Add rows without a label, which are left out."""
    case.tricks.append("no label")
    for _ in range(draw.randint(1, 3)):
        row = draw.randrange(1, len(columns["label"]) + 1)
        for role, values in columns.items():
            values.insert(row, "-" if role == "label" else "left out")


def _languages(draw: random.Random, columns: dict[str, list[str]], case: Case) -> None:
    """Add rows of another language to the file."""
    case.tricks.append("language column")
    columns["language"] = ["en"] * len(columns["label"])
    for _ in range(draw.randint(1, 4)):
        row = draw.randrange(len(columns["label"]) + 1)
        for role, values in columns.items():
            values.insert(row, {"language": "de", "label": draw.choice(case.labels)}.get(role, "anders"))


def render(draw: random.Random, case: Case, columns: dict[str, list[str]], style: str) -> None:
    """Write the columns in a format, with the settings that it needs."""
    roles = list(columns)
    if draw.random() < 0.3 or "language" in columns:
        columns["id"] = [str(number) for number in range(len(columns["label"]))]
        roles.append("id")
    usual = "id" not in columns
    if not usual or draw.random() < 0.2:
        draw.shuffle(roles)
    header = draw.choice(("known", "named", "none"))
    if style in ("jsonl", "array", "semicolons") and header == "none":
        header = "known"
    if header == "known":
        names = [draw.choice(KNOWN[role].split()) if role in KNOWN else role for role in roles]
        if "language" in columns:
            case.fields["columns"] = {"language": "language"}
    else:
        names = [f"Spalte {role}" for role in roles]
        at = {
            role: (f"Spalte {role}" if header == "named" else roles.index(role))
            for role in columns
            if role != "id"
        }
        case.fields["columns"] = at
        if header == "none":
            case.fields["header"] = False
    case.tricks += [style, f"header {header}"]
    rows = [list(row) for row in zip(*(columns[role] for role in roles), strict=True)]
    write = json_table if style in ("jsonl", "array") else delimited
    content = write(draw, case, names if header != "none" else None, names, rows, style)
    case.suffix = {"array": "json", "jsonl": "jsonl", "tsv": "tsv", "quoted tsv": "tsv"}.get(style, "csv")
    case.content = dress(draw, case, content)


def delimited(
    draw: random.Random, case: Case, header: list[str] | None, _: list[str], rows: list[list[str]], style: str
) -> str:
    """A TSV or CSV in one of its dialects."""
    end = draw.choice(("\n", "\r\n"))
    rows = [header, *rows] if header else rows
    if style == "tsv":
        _plain(case)
        columns = list(zip(*rows, strict=True))
        if all(any(cell.startswith('"') for cell in column) for column in columns):
            case.fields["quoting"] = False
        lines = ["\t".join(row) for row in rows]
        for _number in range(draw.choice((0, 0, 0, 1, 2))):
            lines.insert(draw.randrange(1, len(lines) + 1), "")
            case.tricks.append("empty line")
        return end.join(lines) + draw.choice(("", end))
    mark = {"semicolons": ";", "bar": "|", "quoted tsv": "\t", "sep": draw.choice(";,|\t")}.get(style, ",")
    quoting = csv.QUOTE_ALL if style == "quoted tsv" or draw.random() < 0.3 else csv.QUOTE_MINIMAL
    out = io.StringIO()
    csv.writer(out, delimiter=mark, lineterminator=end, quoting=quoting).writerows(rows)
    if style == "bar" or (style == "semicolons" and "Spalte" in "".join(header or [])):
        case.fields["delimiter"] = mark
    if style == "quoted tsv" and ("\n" in "".join(map("".join, rows)) or "\t" in "".join(map("".join, rows))):
        case.fields["quoting"] = True
    return (f"sep={mark}{end}" if style == "sep" else "") + out.getvalue()


def _plain(case: Case) -> None:
    """Say that quotation marks are characters, where a file might look quoted."""
    values = [*case.texts, *(case.second or []), *case.labels]
    if sum(value.startswith('"') for value in values) > 1:
        case.fields["quoting"] = False


def json_table(
    draw: random.Random, case: Case, _: list[str] | None, names: list[str], rows: list[list[str]], style: str
) -> str:
    """JSON lines or an array; keys in any order, perhaps nested, unused ones perhaps missing."""
    nested = draw.random() < 0.2 and "columns" not in case.fields
    records = []
    for row in rows:
        record: dict[str, Any] = dict(zip(names, row, strict=True))
        label = next(name for name in names if name in ("label", "category") or name.endswith("label"))
        if draw.random() < 0.1 and record[label] != "-":
            record[label] = [record[label]]
        elif record[label].isdecimal() and draw.random() < 0.3:
            record[label] = int(record[label])
        if draw.random() < 0.2:
            record["extra"] = draw.choice((None, 1, [1], {"a": 1}))
        items = list(record.items())
        draw.shuffle(items)
        records.append({"data": dict(items)} if nested else dict(items))
    if nested:
        case.tricks.append("nested")
        roles = {name: role for role, known in KNOWN.items() for name in known.split()}
        case.fields["columns"] = {roles[name]: f"data.{name}" for name in names if name in roles}
    ascii_only = draw.random() < 0.5
    if style == "array":
        return json.dumps(records, ensure_ascii=ascii_only, indent=draw.choice((None, 1)))
    return "\n".join(json.dumps(record, ensure_ascii=ascii_only) for record in records) + draw.choice(
        ("", "\n", "\n\n")
    )


def dress(draw: random.Random, case: Case, content: str) -> bytes:
    """Encode, perhaps with a byte order mark, perhaps gzipped under any name."""
    raw = content.encode("utf-8-sig" if draw.random() < 0.2 else "utf-8")
    if draw.random() < 0.2:
        case.tricks.append("gzip")
        raw = gzip.compress(raw, mtime=0)
    return raw


SPELLINGS = {
    "BIO": lambda letter, kind, _: f"{letter}-{kind}",
    "BIOES": lambda letter, kind, last: (
        f"{({'B': 'S', 'I': 'E'} if last else {}).get(letter, letter)}-{kind}"
    ),
    "BILOU": lambda letter, kind, last: (
        f"{({'B': 'U', 'I': 'L'} if last else {}).get(letter, letter)}-{kind}"
    ),
    "underscore": lambda letter, kind, _: f"{letter}_{kind}",
    "suffix": lambda letter, kind, _: f"{kind}-{letter}",
    "lower": lambda letter, kind, _: f"{letter.lower()}-{kind}",
}


def tokens(draw: random.Random) -> Case:
    """Sentences with entities in some scheme, or with plain tags, in a token file or as JSON."""
    words, tags = [], []
    for number in range(draw.randint(3, 8)):
        count = draw.randint(1, 9)
        words.append([text_of_a_word(draw) for _ in range(count)])
        tags.append(
            _entities(draw, count) if number else ["B-PER", "I-PER", "O", "B-PER", "B-LOC"][: max(count, 1)]
        )
        if not number:
            words[0] = [text_of_a_word(draw) for _ in tags[0]]
    words[0], tags[0] = [*words[0], "end", "it"], [*tags[0], "B-LOC", "I-LOC"]
    case = Case("tagging", b"", "txt", {}, words, None, tags)
    scheme = draw.choice(tuple(SPELLINGS))
    written = [[_spell(sentence, index, scheme) for index in range(len(sentence))] for sentence in tags]
    form = draw.choice(("tab", "space", "conllu", "json", "numbers"))
    case.tricks += [scheme, form]
    if form in ("json", "numbers"):
        case.suffix = "jsonl"
        if form == "numbers":
            case.fields["labels"] = sorted({tag for sentence in written for tag in sentence})
            numbered = [[case.fields["labels"].index(tag) for tag in sentence] for sentence in written]
        records = [
            {"tokens": own, "ner_tags": row}
            for own, row in zip(words, numbered if form == "numbers" else written, strict=True)
        ]
        case.content = dress(draw, case, "\n".join(json.dumps(record) for record in records))
        return case
    lines = []
    if draw.random() < 0.3:
        lines += ["-DOCSTART- -X- O O", ""]
    for own, row in zip(words, written, strict=True):
        if form == "conllu":
            lines += [f"# sent_id = {len(lines)}", "# text = a b"]
            own_lines = [
                f"{n}\t{w}\t_\t{t}" + "\t_" * 6 for n, (w, t) in enumerate(zip(own, row, strict=True), 1)
            ]
            own_lines.insert(0, "1-2\tx\t_\t_" + "\t_" * 6)
            lines += own_lines
        else:
            lines += [f"{w}{chr(9) if form == 'tab' else ' '}{t}" for w, t in zip(own, row, strict=True)]
        lines += [draw.choice(("", "", " "))] * draw.choice((1, 1, 2))
    if form == "conllu":
        case.fields["columns"] = {"words": 1, "tags": 3}
    case.content = dress(draw, case, draw.choice(("\n", "\r\n")).join(lines))
    return case


def text_of_a_word(draw: random.Random) -> str:
    """A word without spaces, which no reader takes for a comment."""
    return draw.choice([word for word in WORDS if not word.startswith("#")])


def _entities(draw: random.Random, count: int) -> list[str]:
    tags: list[str] = []
    while len(tags) < count:
        if draw.random() < 0.5:
            tags.append("O")
        else:
            kind = draw.choice(TYPES)
            tags += [f"B-{kind}", *[f"I-{kind}"] * draw.choice((0, 0, 1, 2))]
    return tags[:count]


def _spell(sentence: list[str], index: int, scheme: str) -> str:
    tag = sentence[index]
    if tag == "O":
        return "o" if scheme == "lower" else "O"
    last = index + 1 == len(sentence) or not sentence[index + 1].startswith("I-")
    return SPELLINGS[scheme](tag[0], tag[2:], last)


def fault(draw: random.Random) -> Case:
    """A file with one fault, whose line is known."""
    rows = [
        [f"text number {number} {text_of_a_word(draw)}", ("pos", "neg")[number % 2]] for number in range(8)
    ]
    bad = draw.randrange(2, 8)
    line = bad + 2  # below a header
    what = draw.choice(tuple(FAULTS))
    content, suffix, parts, fields = FAULTS[what](rows, bad, line)
    raw = content if isinstance(content, bytes) else content.encode()
    kind = "tagging" if suffix == "txt" else "classification"
    return Case(kind, raw, suffix, fields, refused=tuple(parts), tricks=[what])


def _tsv(rows: list[list[str]]) -> str:
    return "".join("\t".join(row) + "\n" for row in [["text", "label"], *rows])


def _csv(rows: list[list[str]]) -> str:
    return "".join(",".join(row).replace("1,5", "15") + "\n" for row in [["text", "label"], *rows])


def _jsonl(rows: list[list[str]]) -> list[str]:
    return [json.dumps({"text": text, "label": label}) for text, label in [["head", "pos"], *rows]]


def _with(rows: list[list[str]], bad: int, row: list[str]) -> list[list[str]]:
    return [*rows[:bad], row, *rows[bad + 1 :]]


def _json_fault(line_of_json: str) -> Any:
    def make(rows: list[list[str]], bad: int, line: int) -> Any:
        lines = _jsonl(rows)
        lines[line - 1] = line_of_json
        return "\n".join(lines), "jsonl", [f"jsonl:{line}:"], {}

    return make


FAULTS = {
    "not UTF-8": lambda rows, bad, line: (
        _tsv(_with(rows, bad, ["MARK", "pos"])).encode().replace(b"MARK", b"caf\xe9"),
        "tsv",
        [f"tsv:{line}: not UTF-8"],
        {},
    ),
    "binary": lambda rows, bad, line: (
        _tsv(_with(rows, bad, ["a\0b", "pos"])),
        "tsv",
        [f"tsv:{line}: binary"],
        {},
    ),
    "UTF-16": lambda rows, *_: (_tsv(rows).encode("utf-16"), "tsv", ["UTF-16"], {}),
    "cut gzip": lambda rows, *_: (gzip.compress(_tsv(rows).encode())[:-6], "tsv", ["damaged gzip"], {}),
    "wide row": lambda rows, bad, line: (
        _tsv(_with(rows, bad, ["a", "b", "pos"])),
        "tsv",
        [f"tsv:{line}: 3 columns found, 2 expected"],
        {},
    ),
    "narrow row": lambda rows, bad, line: (
        _csv(_with(rows, bad, ["a"])),
        "csv",
        [f"csv:{line}: 1 column found, 2 expected"],
        {},
    ),
    "empty label": lambda rows, bad, line: (
        _tsv(_with(rows, bad, ["a", " "])),
        "tsv",
        [f"tsv:{line}: the label is empty"],
        {},
    ),
    "unknown label": lambda rows, bad, line: (
        _tsv(_with(rows, bad, ["a", "other"])),
        "tsv",
        [f"tsv:{line}: label 'other' is not one of"],
        {"labels": ["pos", "neg"]},
    ),
    "twin label": lambda rows, bad, line: (
        _tsv(_with(rows, bad, ["a", "Pos"])),
        "tsv",
        [f"tsv:{line}: label 'Pos' is not 'pos', from which"],
        {"labels": ["pos", "neg"]},
    ),
    "open quote": lambda rows, bad, line: (
        _csv(_with(rows, bad, ['"open', "pos"])),
        "csv",
        [f"csv:{line}: not valid CSV"],
        {},
    ),
    "swallowed rows": lambda rows, bad, line: (
        _csv([*_with(rows, bad, ['"open', "pos"]), ["mid", "neg"], ['"', "pos"]]),
        "csv",
        [f"csv:{line}: a quotation mark opens a field that holds whole rows"],
        {},
    ),
    "columns twice": lambda rows, *_: (
        _tsv([[*row, "x"] for row in rows]).replace("text\tlabel\n", "text\tlabel\tLabel\n"),
        "tsv",
        ["several columns are called 'label'"],
        {},
    ),
    "fractions": lambda rows, *_: (
        _tsv([[text, f"{number}.5"] for number, (text, _) in enumerate(rows)]),
        "tsv",
        ["Regression is not supported"],
        {},
    ),
    "mixed languages": lambda rows, *_: (
        _tsv([["lang", "text", "label"], *([("en", "de")[n % 2], *row] for n, row in enumerate(rows))])[11:],
        "tsv",
        ["column 'lang' has several languages (en, de)"],
        {},
    ),
    "JSON cut": _json_fault('{"text": "a", "label": '),
    "JSON list": _json_fault('["a", "pos"]'),
    "key twice": _json_fault('{"text": "a", "label": "pos", "label": "neg"}'),
    "two labels": _json_fault('{"text": "a", "label": ["pos", "neg"]}'),
    "JSON number": _json_fault('{"text": 1.5, "label": "pos"}'),
    "lone surrogate": _json_fault('{"text": "a \\ud83d", "label": "pos"}'),
    "nested deep": _json_fault('{"text": ' + "[" * 60_000),
    "long number": _json_fault('{"text": ' + "9" * 5_000 + ', "label": "pos"}'),
    "key missing": _json_fault('{"text": "a"}'),
    "no empty lines": lambda rows, *_: (
        "".join(f"w{n} {('O', 'B-X')[n % 2]}\n" for n in range(700)),
        "txt",
        ["700 words and no empty line"],
        {},
    ),
    "mixed schemes": lambda rows, *_: (
        "a B-PER\nb I_PER\n\nc O\nd PER-B\n",
        "txt",
        ["mix several ways to mark entities"],
        {},
    ),
    "tag missing": lambda rows, bad, line: (
        "a O\nb B-X\n" * (line // 2) + "c\n\nd O\n",
        "txt",
        [f"txt:{2 * (line // 2) + 1}: no tag found"],
        {},
    ),
}


def make(seed: int) -> Case:
    """The case of a seed."""
    draw = random.Random(seed)
    return draw.choice((table, table, tokens, fault))(draw)


def check(case: Case, folder: Path) -> str:
    """Read the file of a case; what is wrong with the outcome, or nothing."""
    path = folder / f"en.train.{case.suffix}"
    path.write_bytes(case.content)
    recipe = TaskRecipe(
        name=case.kind, source="files", path=f"{folder}/{{language}}.{{split}}.{case.suffix}", **case.fields
    )
    try:
        task = registry.load("task", case.kind)(recipe)
        examples = task.examples("en", "train")
    except DataError as error:
        sentence = str(error)
        if not case.refused:
            return f"refused: {sentence}"
        missing = [part for part in (str(folder), *case.refused) if part not in sentence]
        if case.kind == "tagging" and str(folder) in missing:
            missing.remove(str(folder))  # what is odd about a set of tags is said of the set
        return f"the refusal lacks {missing}: {sentence}" if missing else ""
    finally:
        path.unlink()
    if case.refused:
        return f"read, but it has a fault ({case.refused})"
    labels = [
        [task.labels[tag] for tag in label] if isinstance(label, list) else task.labels[label]
        for label in examples.labels or []
    ]
    for name, found, expected in (
        ("texts", examples.first, case.texts),
        ("second texts", examples.second, case.second),
        ("labels", labels, case.labels),
    ):
        if found != expected:
            return f"{name} differ: {found!r} instead of {expected!r}"
    return ""


def run(count: int, seed: int = 0, seconds: float = float("inf")) -> tuple[Counter[str], list[str]]:
    """Try ``count`` files, or as many as fit in the time; count kinds, and list what failed with its seed."""
    counts: Counter[str] = Counter()
    failures = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(seed, seed + count):
            if time.monotonic() - started > seconds:
                break
            case = make(number)
            try:
                wrong = check(case, Path(folder))
            except Exception:
                wrong = traceback.format_exc()
            counts["tried"] += 1
            counts["refused" if case.refused else "read"] += 1
            if wrong:
                failures.append(f"seed {number} ({', '.join(case.tricks)}): {wrong}")
    return counts, failures


def main() -> None:
    """Run from the command line; the exit code is 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    options = parser.parse_args()
    counts, failures = run(options.count, options.seed, options.seconds)
    for failure in failures[:20]:
        print(failure, file=sys.stderr)
    wrong = {"wrong": len(failures)} if failures else {}
    held = counts["tried"] - len(failures)
    tally = {"campaign": "data_files", "seed": options.seed, **counts, "held": held, "failed": wrong}
    print(json.dumps(tally))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
