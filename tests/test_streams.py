"""A log that cannot be written stops nothing; an output that cannot be written is a sentence."""

import re
import subprocess
import sys

import pytest

from xlmprune.core import own_process

CODE = """
import sys
from pathlib import Path
from xlmprune.core import streams
streams.protect()
done = Path(sys.argv[1])
for number in range(2000):
    print("log ประตู", number, file=sys.stderr)
sys.stderr.flush()
try:
    print("result ประตู")
    sys.stdout.flush()
    said = "written"
except streams.OutputError as error:
    said = f"{error.reader_gone}: {error}"
with done.open("w") as file:
    file.write(said)
    assert file.fileno() > 2, "a file took the number of a closed stream"
print("more", flush=True)
"""


@pytest.mark.parametrize(
    ("redirection", "said"),
    [
        ("", "written"),
        ("2>&1 | head -1", "^True: the output cannot be written.*Broken pipe"),
        ("2>/dev/full", "written"),
        ("2>&-", "written"),
        (">&-", "written"),
        ("0<&- 1>&- 2>&-", "written"),
        (">/dev/full", "^False: the output cannot be written.*No space left"),
    ],
)
def test_streams_that_fail(tmp_path, redirection, said):
    done = tmp_path / "done"
    script = f'"$0" -c "$1" "$2" {redirection}; echo "code ${{PIPESTATUS[0]}}" >&3'
    ran = subprocess.run(
        ["bash", "-c", f"exec 3>{tmp_path}/code; {script}", sys.executable, CODE, str(done)],
        env=own_process.environment(),
        capture_output=True,
        text=True,
    )
    assert (tmp_path / "code").read_text() == "code 0\n", ran.stderr[-500:]
    assert re.search(said, done.read_text())
    assert "Traceback" not in ran.stderr
    assert "Exception ignored" not in ran.stderr


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_narrow_encoding_gets_escapes(tmp_path, encoding):
    ran = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "done")],
        env={**own_process.environment(), "PYTHONIOENCODING": encoding},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0
    assert ran.stdout.splitlines()[0] == r"result \u0e1b\u0e23\u0e30\u0e15\u0e39"
    assert r"log \u0e1b" in ran.stderr
