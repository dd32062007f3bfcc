"""Text files as lines, plain or gzipped, and words for messages about them."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xlmprune.core.errors import DataError
from xlmprune.core.files import keys_once, whole_number
from xlmprune.core.formatting import count_of

LARGEST_EXPANSION = 100
"""Bytes for each byte of a gzipped file at most. Text has about 4; lines that repeat again and again have 1,000."""
SMALL = 10_000_000
"""Bytes that any gzipped file may have."""


def expand(path: str) -> str:
    """Replace a leading ``~`` by the home folder, as shells do.

    Raises:
        DataError: no such home.
    """
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError as error:
        raise DataError(f"{path}: no such home folder ({error})") from None


def find_file(plain: Path) -> Path | None:
    """Return the file of this name, or the gzipped one with ``.gz`` behind it; None where neither is there.

    Raises:
        DataError: nobody may look there, or the name is too long for the disk.
    """
    try:
        return next((path for path in (plain, plain.with_name(plain.name + ".gz")) if path.is_file()), None)
    except OSError as error:
        raise DataError(f"{plain}: cannot be read ({error.strerror or error})") from error


def read_text(path: Path) -> str:
    """Read a file's text, gunzipped if it begins as gzip does, without a byte order mark.

    Raises:
        DataError: unreadable, empty, damaged gzip, binary, not UTF-8 (with the line), or with CR alone between lines.
    """
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = _gunzip(raw, path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file ({error}); copy or download it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path}: UTF-16 text; save it as UTF-8")
    if b"\0" in raw:
        line = raw.count(b"\n", 0, raw.index(b"\0")) + 1
        raise DataError(f"{path}:{line}: binary data, expected text in UTF-8 (plain or gzipped)")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 (byte 0x{raw[error.start]:02x}); convert it, for instance with iconv"
        ) from error
    if not text.strip():
        raise DataError(f"{path}: empty file")
    if "\n" not in text and text.strip().count("\r") > 1:
        raise DataError(
            f"{path}: its lines end with CR alone, expected LF; convert it, for instance with tr '\\r' '\\n'"
        )
    return text


def _gunzip(raw: bytes, path: Path) -> bytes:
    limit = max(SMALL, LARGEST_EXPANSION * len(raw))
    with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
        found = file.read(limit + 1)
    if len(found) > limit:
        raise DataError(
            f"{path}: its {len(raw):,} bytes expand to more than {limit:,}, and text does not compress that well. If the "
            "file is right, unzip it (gunzip) and give the plain file"
        )
    return found


def read_lines(path: Path) -> list[str]:
    """Read lines without their ends."""
    return split_lines(read_text(path))


def split_lines(text: str) -> list[str]:
    """Split a text at LF and CRLF, and nothing else: U+2028, U+0085 and such occur inside texts."""
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Read one JSON object a line, or one array of objects, and the line in which each begins.

    Raises:
        DataError: not JSON, not objects, or a key is given twice; names file and line.
    """
    text = read_text(path)
    parts = _array_parts(text, path) if re.match(r"\s*\[\s*\{", text) else enumerate(text.split("\n"), 1)
    records, lines = [], []
    for number, part in parts:
        if not part.strip():
            continue
        record = parse_json(part, f"{path}:{number}")
        if not isinstance(record, dict):
            raise DataError(f"{path}:{number}: {type(record).__name__} found, expected a JSON object")
        records.append(record)
        lines.append(number)
    return records, lines


def parse_json(text: str, location: str) -> Any:
    """Read one JSON value.

    Raises:
        DataError: it is not JSON, a key is given twice, or half a character is left in it.
    """
    try:
        value = json.loads(text, object_pairs_hook=keys_once, parse_int=whole_number)
    except json.JSONDecodeError as error:
        raise DataError(f"{location}: not JSON ({error.msg}); expected one object a line") from error
    except ValueError as error:  # of the two functions above
        raise DataError(f"{location}: {error}") from error
    except RecursionError:
        raise DataError(f"{location}: JSON is nested too deep") from None
    if "\\u" in text:
        refuse_halves(value, location)
    return value


def _array_parts(text: str, path: Path) -> Iterator[tuple[int, str]]:
    """Give the line and the text of every object of an array."""
    decoder, line = json.JSONDecoder(), 1
    end = text.index("[") + 1
    while True:
        start = re.compile(r"[\s,]*").match(text, end).end()  # type: ignore[union-attr]
        line += text.count("\n", end, start) if end > 1 else text.count("\n", 0, start)
        if text[start : start + 1] == "]" and not text[start + 1 :].strip():
            return
        try:
            _, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{line}: not a JSON array of objects ({error})") from error
        yield line, text[start:end]
        line += text.count("\n", start, end)


def refuse_halves(record: Any, location: str) -> None:
    """Refuse a text, or a record with texts, that no tokenizer and no file can take.

    Raises:
        DataError: it has half of a character. The message begins with ``location``.
    """
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise DataError(
            f"{location}: {half} is one half of a character (a lone surrogate), left when a text was cut; "
            "remove it, or write the texts again from their source"
        ) from None


def count_columns(count: int) -> str:
    return count_of(count, "column")
