"""Test the command line as a user types it."""

import json
import os
import resource
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from xlmprune import __version__
from xlmprune.cli import app

run = CliRunner().invoke


def test_help_names_every_command():
    result = run(app, ["--help"])
    assert result.exit_code == 0
    commands = "compress evaluate predict inspect verify unpack bench compare recipes doctor"
    for command in commands.split():
        assert command in result.output


def test_version():
    assert run(app, ["--version"]).output.strip() == f"xlmprune {__version__}"


def test_help_imports_nothing_heavy_and_is_quick():
    script = (
        "import sys; sys.argv = ['xlmprune', '--help']\n"
        "from xlmprune.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'datasets', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    took = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # The time of the processor, since others may keep it busy: about 0.2 s, and 0.3 s on the clock of an idle machine.
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0, done.stderr
    assert min(took) < 0.5


def test_a_misspelt_key_exits_2_with_a_sentence(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("task: {name: xnli}\nprunning: {density: 0.1}\n")
    result = run(app, ["recipes", "validate", str(recipe)])
    assert result.exit_code == 2
    assert "prunning" in result.stderr
    assert "line 2" in result.stderr
    assert "Traceback" not in result.output


def test_validate_prints_a_recipe_that_validates(tmp_path):
    result = run(app, ["recipes", "validate", "quickstart", "--set", "seed=7"])
    assert result.exit_code == 0
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(result.stdout)
    assert run(app, ["recipes", "validate", str(resolved)]).stdout == result.stdout


def test_recipes_are_listed_and_shown():
    listed = json.loads(run(app, ["recipes", "list", "--json"]).stdout)
    assert "quickstart" in listed
    assert all(listed.values()), "every recipe opens with a line that says what it is"
    assert "name: quickstart" in run(app, ["recipes", "show", "quickstart"]).stdout


def test_schema_is_json_schema():
    schema = json.loads(run(app, ["recipes", "schema"]).stdout)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert schema["properties"]["training"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compress", "quikstart"], "quickstart"),
        (["compress", "quickstart", "--device", "cuda:9", "--dry-run"], "--device cpu"),
        (["compress", "quickstart", "--device", "tpu", "--dry-run"], "expected auto, cpu, cuda"),
        (["compress", "quickstart", "--device", "cpu:", "--dry-run"], "expected auto, cpu, cuda"),
        (["compress", "quickstart", "--device", "cuda:", "--dry-run"], "expected auto, cpu, cuda"),
        (["verify", "nowhere"], "nowhere"),
        (["evaluate", "nowhere"], "nowhere"),
        (["predict", "nowhere", "text"], "nowhere"),
        (["inspect", "nowhere"], "nowhere"),
        (["unpack", "nowhere"], "nowhere"),
    ],
)
def test_what_the_user_can_mend_exits_2(arguments, said):
    result = run(app, arguments)
    assert result.exit_code == 2, result.output
    assert said in result.stderr


def test_h_is_short_for_help():
    for command in ([], ["compress"], ["recipes"], ["recipes", "validate"]):
        assert run(app, [*command, "-h"]).output == run(app, [*command, "--help"]).output


def test_the_list_of_commands_is_not_cut_at_80_columns():
    listed = run(app, ["--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).output
    assert "..." not in listed.partition("Commands:")[2]


def test_the_shell_completes_commands_and_shipped_recipes():
    def complete(words: str) -> list[str]:
        script = "import sys; sys.argv = ['xlmprune']; from xlmprune.cli import main; main()"
        asked = {
            "_XLMPRUNE_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        }
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            env={**os.environ, **asked},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert complete("xlmprune com") == ["compress", "compare"]
    assert complete("xlmprune compress quickstart_s") == ["quickstart_small"]
    assert "--dry-run" in complete("xlmprune compress quickstart --d")


def test_usage_errors_exit_2():
    assert run(app, ["compress"]).exit_code == 2
    assert run(app, ["frobnicate"]).exit_code == 2


EARLY = """
import os, signal, sys
sys.argv = ["xlmprune", "compress", "quickstart", "--out", sys.argv[1]]
from xlmprune.recipe import loading
loading.load_recipe = lambda *_, **__: os.kill(os.getpid(), int(signal.SIGTERM))
from xlmprune.cli import main
main()
"""


def test_sigterm_before_the_run_begins_ends_as_later(tmp_path):
    """PyTorch alone takes seconds to import on a busy machine."""
    done = subprocess.run(
        [sys.executable, "-c", EARLY, str(tmp_path / "run")], capture_output=True, text=True
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.startswith("xlmprune: interrupted; run the same command again")
    assert not (tmp_path / "run").exists()


def test_ctrl_c_while_the_command_is_imported_is_no_internal_error():
    script = (
        "import builtins, sys\n"
        "from xlmprune.__main__ import main\n"
        "usual = builtins.__import__\n"
        "def stopped(name, *rest):\n"
        "    if name == 'typer': raise KeyboardInterrupt\n"
        "    return usual(name, *rest)\n"
        "builtins.__import__ = stopped\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "xlmprune: interrupted\n")


def test_a_base_cannot_be_set():
    result = run(app, ["compress", "quickstart", "--set", "base=nli_small", "--dry-run"])
    assert result.exit_code == 2
    assert "write `base` in the recipe file" in result.stderr
