"""Check that the documentation says what the code does."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from test_report import small_bundle
from typer.testing import CliRunner

from xlmprune import __version__
from xlmprune.cli import app
from xlmprune.core import errors
from xlmprune.recipe.catalog import shipped_recipes
from xlmprune.recipe.loading import load_recipe

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")

sys.path.insert(0, str(ROOT / "docs"))
import renew  # noqa: E402


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", renew.FILES)
def test_what_comes_from_the_code_is_current(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "<!-- from the code:" in text
    assert renew.renew(text) == text, "run `make docs`"


def test_every_component_recipe_and_command_is_in_the_documentation():
    from xlmprune.recipe.registry import TABLES

    methods = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    for name in [*(name for table in TABLES.values() for name in table), *shipped_recipes()]:
        assert f"| `{name}` |" in methods
    commands = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for command in renew.command_names():
        assert f"## {command}\n" in commands


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.M)
            known = {re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-") for line in headings}
            assert anchor in known, target


@pytest.mark.parametrize(
    "text",
    [
        block
        for page in PAGES
        for block in blocks(page.read_text(encoding="utf-8"), "yaml")
        if "task:" in block
    ],
)
def test_recipes_in_the_documentation_are_valid(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    load_recipe(str(file))


def test_three_lines_are_enough_for_your_own_data(tmp_path):
    """The README's shortest recipe reads files laid out as the README says."""
    from xlmprune.recipe import registry

    (tmp_path / "data").mkdir()
    for name, lines in {
        "en.train": ["good morning\tgreeting", "until tomorrow\tfarewell"],
        "en.dev": ["hello\tgreeting"],
        "en.test": ["hi\tgreeting"],
        "sw.test": ["habari za asubuhi\tgreeting", "kwaheri\tfarewell"],
    }.items():
        (tmp_path / "data" / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    shortest = next(block for block in blocks(README, "yaml") if "name: classification" in block)
    assert len(shortest.splitlines()) == 4
    file = tmp_path / "mine.yaml"
    file.write_text(shortest.replace("data/", f"{tmp_path.as_posix()}/data/"), encoding="utf-8")
    recipe = load_recipe(str(file))
    task = registry.load("task", recipe.task.name)(recipe.task)
    assert task.languages() == ("en", "sw")
    assert task.labels == ("farewell", "greeting")
    assert task.examples("sw", "test").labels == [1, 0]


OWN_DATA = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
SHAPES = re.findall(
    r"^`(\S+)`\n\n```\w+\n(.*?)^```\n\n```yaml\n(.*?)^```$", OWN_DATA, re.DOTALL | re.MULTILINE
)
READ = {
    "reviews": (3, ("negative", "positive")),
    "stars": (3, ("1", "3", "5")),
    "faq": (3, ("no", "yes")),
    "tickets": (3, ("account", "billing")),
    "entities": (2, ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")),
    "tags": (2, ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")),
    "search": (5, ("0", "1", "3")),
}
"""Examples and labels of each file of docs/data.md, by the name of its recipe."""


def test_every_shape_of_data_is_tried():
    assert [re.match(r"name: (\w+)", recipe)[1] for _, _, recipe in SHAPES] == list(READ)


@pytest.mark.parametrize(("file", "content", "recipe"), SHAPES, ids=list(READ))
def test_every_shape_of_data_that_the_page_shows_is_read(file, content, recipe, tmp_path, monkeypatch):
    from xlmprune.recipe import registry

    monkeypatch.chdir(tmp_path)
    for name in (file, file.replace("train", "dev"), file.replace("train", "test")):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(content, encoding="utf-8")
    shutil.copy(name, name.replace("en.", "de."))
    Path("mine.yaml").write_text(recipe, encoding="utf-8")
    resolved = load_recipe("mine.yaml")
    task = registry.load("task", resolved.task.name)(resolved.task)
    examples = task.examples("en", "train")
    assert (len(examples), task.labels) == READ[resolved.name]
    assert task.languages() == ("en", "de")
    assert "\n" not in str(examples.first[0])


def test_messages_that_the_troubleshooting_page_quotes_exist():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    said = [
        " ".join(node.value.split())
        for file in (ROOT / "xlmprune").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    quoted = re.findall(r'^\*\*"(.*?)"\*\*', page, re.MULTILINE)
    assert len(quoted) >= 5
    for part in (part.strip() for message in quoted for part in message.split("…")):
        assert any(part in text for text in said), f"no message says {part!r}"


def test_commands_in_the_documentation_exist():
    """Every `xlmprune …` line names a command, and options which that command has."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    lines = re.findall(r"(?:\$ |\.venv/bin/|`)xlmprune ([a-z][^`\n]*)", text)
    assert len(lines) > 20
    runner = CliRunner()
    for line in lines:
        words = line.split("#")[0].split()
        help_of = [words[0]] if words[0] != "recipes" else words[:2]
        result = runner.invoke(app, [*help_of, "--help"])
        assert result.exit_code == 0, line
        for option in re.findall(r"--[a-z][a-z-]*", line.split("#")[0]):
            assert option in result.output, f"{option} in {line!r}"


def test_make_targets_in_the_documentation_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = set(
        re.findall(r"(?:\$ |`)make ([a-z-]+)", "".join(page.read_text(encoding="utf-8") for page in PAGES))
    )
    assert {"quickstart", "test", "docs", "help"} <= named <= targets
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    assert set(phony[1].split()) == targets


def test_the_first_screen_says_what_it_is_and_what_to_try():
    first = README.split("\n## ", 1)[0]
    assert first.startswith("# xlmprune\n\nxlmprune makes ")
    assert blocks(first, "console") == ["$ make quickstart\n"]
    assert first.index("$ make quickstart") < 1200


PRIVATE = (
    *("goes on", "unbroken", "fault of ours", "mend", "at work in", "is said of", "pays", "the others pay"),
    *("Out comes", "holds for the while", "dots reach", "of which", "whatever stands", "tidings"),
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_use_words_that_one_can_search_for(page):
    text = " ".join(page.read_text(encoding="utf-8").split())
    assert [phrase for phrase in PRIVATE if re.search(rf"\b{phrase}\b", text)] == []


def test_the_readme_opens_with_the_two_commands_then_the_gpu():
    headings = re.findall(r"^## (.*)$", README, re.MULTILINE)
    assert headings[:2] == ["First run", "On a GPU"]
    first = README.split("## First run")[1].split("\n## ")[0]
    assert "make quickstart" in blocks(first, "console")[0]
    assert "make test" in blocks(first, "console")[0]
    gpu = README.split("## On a GPU")[1].split("\n## ")[0]
    assert "docker build" in gpu
    assert re.search(r"docker run .*--gpus all .* xlmprune compress recipes/xnli_cosine\.yaml", gpu)


def test_the_serving_code_of_the_readme_runs(tmp_path):
    bundle = tmp_path / "runs" / "quickstart" / "bundle"
    bundle.mkdir(parents=True)
    small_bundle(bundle, "text")
    shutil.copy(bundle / "model.onnx", bundle / "model.int8.onnx")
    (code,) = blocks(README, "python")
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.split()
    assert len(lines) == 2
    assert set(lines) <= {"nought", "one", "two"}


def test_exit_codes_are_those_of_the_error_tree():
    table = dict(re.findall(r"^\| (\d+) \| (.*) \|$", README, re.MULTILINE))
    assert set(table) == {"0", "1", "2", "3", "130"}
    assert errors.XlmpruneError.exit_code == 2
    assert errors.ShortfallError.exit_code == 3
    assert CliRunner().invoke(app, ["recipes", "show", "no_such_recipe"]).exit_code == 2


def test_the_figures_of_xlm_r_base_are_right():
    """278,045,955 parameters with a head of three labels, 84,934,656 of them prunable; 0.9 ** 11 of these remain."""
    text = " ".join(README.split())
    prunable, total, table = 84_934_656, 278_045_955, 192_001_536
    assert f"{100 * prunable / total:.1f}% of {total / 1e6:.0f} M parameters" in text
    assert f"{100 * table / total:.0f}% are the embedding table" in text
    assert f"{100 * (total - prunable * (1 - 0.9**11)) / total:.0f}% of the whole model remain" in text


def test_the_newest_change_is_this_version():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+)", changes, re.MULTILINE)
    assert newest
    assert newest[1] == __version__


def test_the_licence_is_apache():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert (
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["license"]
        == "Apache-2.0"
    )
