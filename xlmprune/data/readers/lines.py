"""Text files as lines, plain or gzipped, and words for messages about them."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from xlmprune.core.errors import DataError


def expand(path: str) -> str:
    """Replace a leading ``~`` by the home folder, as shells do.

    Raises:
        DataError: no such home.
    """
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError as error:
        raise DataError(f"{path}: no such home folder ({error})") from None


def read_text(path: Path) -> str:
    """Read a file's text, gunzipped if it begins as gzip does, without a byte order mark.

    Raises:
        DataError: unreadable, empty, damaged gzip, binary, or not UTF-8 (with the line).
    """
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
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
    return text


def read_lines(path: Path) -> list[str]:
    """Read lines without their ends. Only LF and CRLF end a line: U+2028, U+0085 and such occur inside texts."""
    lines = read_text(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    records, lines = [], []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON ({error.msg}); expected one object a line") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}:{number}: {type(record).__name__} found, expected a JSON object")
        if "\\u" in line:
            _refuse_halves(record, f"{path}:{number}")
        records.append(record)
        lines.append(number)
    return records, lines


def _refuse_halves(record: dict[str, Any], location: str) -> None:
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


def count_of(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
