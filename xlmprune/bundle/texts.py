"""Texts to predict: arguments, a file or stdin, one on each line, plain or as JSON."""

from __future__ import annotations

import contextlib
import gzip
import os
import select
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from xlmprune.core.errors import DataError
from xlmprune.core.formatting import count_of
from xlmprune.data.readers.lines import parse_json


class Arriving:
    """The lines of a stream of the system, as they arrive."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: deque[bytes] = deque()
        self._rest = b""
        self._ended = False

    def __iter__(self) -> Iterator[bytes]:
        """Wait for lines and yield each as soon as it is there."""
        while self._lines or not self._ended:
            if self._lines:
                yield self._lines.popleft()
            else:
                self._read()

    def ready(self) -> bool:
        """Read what has arrived, and tell whether a whole line is among it or the stream has ended."""
        while not self._lines and not self._ended and select.select([self._descriptor], [], [], 0)[0]:
            self._read()
        return bool(self._lines) or self._ended

    def _read(self) -> None:
        found = os.read(self._descriptor, 1 << 20)
        *lines, self._rest = (self._rest + found).split(b"\n")
        self._lines.extend(lines)
        if not found:
            self._ended = True
            self._lines.extend([self._rest] if self._rest else [])


def open_texts(
    arguments: Sequence[str] | None, file: Path | None
) -> tuple[Iterator[Any], Callable[[], bool]]:
    """Return what `read_texts` does, and a function that tells whether the next text can be had without waiting."""
    if not arguments and (file is None or str(file) == "-"):
        with contextlib.suppress(OSError, ValueError):  # where stdin is an object of Python's
            arriving = Arriving(sys.stdin.fileno())
            return _lines(arriving, "stdin"), arriving.ready
    return read_texts(arguments, file), lambda: True


def read_texts(arguments: Sequence[str] | None, file: Path | None) -> Iterator[Any]:
    """Read the texts of the arguments, of ``file`` (plain or gzipped), or of stdin.

    A line that cannot be read is named on stderr, and the others are read on.

    Raises:
        DataError: both were given; an argument cannot be read; or, after all others, some lines could not be read.
    """
    if arguments and file is not None:
        raise DataError("give texts as arguments or with --file, not both")
    if arguments:
        yield from (_parse_line(text, f"argument {number}") for number, text in enumerate(arguments, 1))
    elif file is None or str(file) == "-":
        yield from _lines(sys.stdin.buffer, "stdin")
    else:
        try:
            with file.open("rb") as opened:
                yield from _lines(_unzipped(opened), str(file))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{file}: damaged gzip file ({error}); copy or download it again") from None
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror})") from None


def _unzipped(file: BinaryIO) -> Iterable[bytes]:
    magic = file.read(2)
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if magic == b"\x1f\x8b" else file


def _lines(stream: Iterable[bytes], origin: str) -> Iterator[Any]:
    empty = refused = 0
    for number, raw in enumerate(stream, 1):
        try:
            line = _decode(raw, number, f"{origin}:{number}")
            text = _parse_line(line, f"{origin}:{number}") if line else None
        except DataError as error:
            refused += 1
            print(f"{error}; this line is left out", file=sys.stderr)
            continue
        if text is None:
            empty += 1
        else:
            yield text
    if empty:
        print(f"{origin}: {count_of(empty, 'empty line')} left out", file=sys.stderr)
    if refused:
        raise DataError(f"{origin}: {count_of(refused, 'line')} could not be read; all others are done")


def _decode(raw: bytes, number: int, location: str) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise DataError(f"{location}: not UTF-8 text") from None


def _parse_line(line: str, location: str) -> Any:
    """Return a text, a pair of texts, or a list of words."""
    if not line.startswith("{"):
        first, tab, second = line.partition("\t")
        return (first, second) if tab else line
    values = parse_json(line, location)
    if "words" in values:
        words = values["words"]
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise DataError(f"{location}: 'words' is {str(words)[:40]}, expected a list of texts")
        return words
    if "text" not in values:
        raise DataError(f"{location}: has no key 'text' (found {', '.join(values) or 'none'})")
    texts = [values["text"], *([values["text_pair"]] if values.get("text_pair") is not None else [])]
    for text in texts:
        if not isinstance(text, str):
            raise DataError(f"{location}: {str(text)[:40]} found, expected a text")
    return texts[0] if len(texts) == 1 else tuple(texts)
