from __future__ import annotations

import pytest

from xlmprune.core.errors import first_line


@pytest.mark.parametrize(
    ("message", "expected"),
    [("full", "full"), ("\n  full: \nby 3 bytes\n", "full: "), ("", "ValueError"), (" \n ", "ValueError")],
)
def test_the_first_line_of_an_error_is_never_empty(message, expected):
    assert first_line(ValueError(message)) == expected
