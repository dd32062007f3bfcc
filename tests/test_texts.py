"""Lines to predict, as they come."""

import gzip
import io
import os
import sys
from types import SimpleNamespace

import pytest

from xlmprune.bundle.texts import Arriving, read_texts
from xlmprune.core.errors import DataError


def test_lines_are_texts_pairs_or_json(tmp_path):
    file = tmp_path / "texts"
    content = (
        '\ufeffone\n\ntwo\tthree\r\n{"text": "a"}\n{"text": "a", "text_pair": "b"}\n{"words": ["a", "b"]}\n'
    )
    for raw in (content.encode(), gzip.compress(content.encode())):
        file.write_bytes(raw)
        assert list(read_texts(None, file)) == ["one", ("two", "three"), "a", ("a", "b"), ["a", "b"]]
    assert list(read_texts(["x", "y\tz"], None)) == ["x", ("y", "z")]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (b'{"text": "nice \\ud83d"}', "one half of a character"),
        (b'{"text": ' + b"[" * 100_000 + b"}", "nested too deep"),
        (b'{"text": 7}', "7 found, expected a text"),
        (b'{"words": ["a", 1]}', "expected a list of texts"),
        (b'{"tekst": "a"}', "has no key 'text' (found tekst)"),
        (b"{broken", "not JSON"),
        (b"\xff", "not UTF-8 text"),
    ],
)
def test_a_line_that_cannot_be_read_is_named_and_the_others_are_read(monkeypatch, capsys, line, part):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"one\n" + line + b"\ntwo\n")))
    texts = read_texts(None, None)
    assert [next(texts), next(texts)] == ["one", "two"]
    with pytest.raises(DataError, match="stdin: 1 line could not be read; all others are done"):
        next(texts)
    told = capsys.readouterr().err
    assert told.startswith("stdin:2: ")
    assert part in told


def test_damaged_gzip_is_named(tmp_path):
    file = tmp_path / "texts.gz"
    file.write_bytes(gzip.compress(b"one\n" * 1000)[:-9])
    with pytest.raises(DataError, match="damaged gzip"):
        list(read_texts(None, file))


def test_lines_of_a_pipe_are_given_as_they_arrive():
    reading, writing = os.pipe()
    arriving = Arriving(reading)
    lines = iter(arriving)
    assert not arriving.ready()
    os.write(writing, b"eins\nzw")
    assert arriving.ready()
    assert next(lines) == b"eins"
    assert not arriving.ready(), "half a line is no line"
    os.write(writing, b"ei\n\ndrei")
    os.close(writing)
    assert list(lines) == [b"zwei", b"", b"drei"]
    assert arriving.ready(), "at the end nothing is waited for"
    os.close(reading)
