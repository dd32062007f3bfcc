"""Follow docs/architecture.md: add the components it shows, run the tests that should pick them up, and run a recipe."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import golden
import pytest
import transformers
import yaml
from test_rooms import FLOORS
from tiny import tiny_tokenizer

from xlmprune.models.loading import save_tokenizer

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
CODE = [textwrap.dedent(block) for block in re.findall(r"^ *```python\n(.*?)^ *```$", PAGE, re.S | re.M)]

PLUGIN = """
import importlib, sys
from pathlib import Path
from xlmprune.recipe import registry

# The tables first: the schema of recipes reads the names of forms when it is imported.
for table, entries in {tables!r}.items():
    getattr(registry, table).update(entries)
here = Path(__file__).parent
for file in {files!r}:
    package = importlib.import_module(str(Path(file).parent).replace("/", "."))
    package.__path__.append(str(here / Path(file).parent))
"""


def files_of_the_page() -> dict[str, str]:
    """Return each file that the page tells its reader to write."""
    found = {}
    for block in CODE:
        if match := re.match(r"# (xlmprune/\S+\.py)\n", block):
            found[match[1]] = block
    return found


def lines_of_the_page() -> dict[str, dict[str, str]]:
    """Return the lines that the page tells its reader to add to each table of the registry."""
    found: dict[str, dict[str, str]] = {}
    for block in CODE:
        if match := re.match(r"# xlmprune/recipe/registry\.py: (\w+)\n(.*)", block, re.S):
            found.setdefault(match[1], {}).update(ast.literal_eval(f"{{{match[2]}}}"))
    return found


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """Write the page's files beside the package and return the folder; importing `additions` there joins them to it."""
    folder = tmp_path_factory.mktemp("extended")
    files = {name: code for name, code in files_of_the_page().items() if "registry" not in name}
    for name, code in files.items():
        assert not (ROOT / name).exists(), f"{name} is no example any more"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code, encoding="utf-8")
    plugin = PLUGIN.format(files=list(files), tables=lines_of_the_page())
    (folder / "additions.py").write_text(plugin, encoding="utf-8")
    return folder


def execute(folder: Path, *arguments: str, cwd: Path = ROOT) -> str:
    paths = [str(folder), str(ROOT), str(ROOT / "tests")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_kind_of_component_has_its_steps():
    assert set(lines_of_the_page()) == {
        "CRITERIA",
        "REGULARIZERS",
        "TASKS",
        "FAMILIES",
        "FORMS",
        "IMPORTANCES",
    }
    assert len(files_of_the_page()) >= len(lines_of_the_page())


@pytest.mark.slow
def test_the_tests_of_its_kind_pick_up_a_new_component(extended):
    names = {name for entries in lines_of_the_page().values() for name in entries}
    chosen = " or ".join([*sorted(names), "every_task_has_its_line"])
    modules = ("test_criteria", "test_regularizers", "test_tasks")
    told = execute(
        extended,
        *("-m", "pytest", "-p", "additions", "-p", "no:cacheprovider", "-vv", "-k", chosen),
        *(f"tests/{module}.py" for module in modules),
    )
    assert told.count("[steady") >= 5
    assert told.count("[pseudo_huber") == 2
    assert "test_every_task_has_its_line_and_a_docstring PASSED" in told


GRADIENT = """
import additions, torch
from xlmprune.recipe import registry
term = registry.load("regularizer", "pseudo_huber")(strength=0.5)
weights = {"a": torch.randn(4, 3, dtype=torch.float64, requires_grad=True)}
reference = {"a": torch.randn(4, 3, dtype=torch.float64)}
term(weights, reference).backward()
expected, weights["a"].grad = weights["a"].grad, None
term.add_gradient(weights, reference, None)
assert torch.allclose(weights["a"].grad, expected), (weights["a"].grad, expected)
"""


def write_model(folder: Path) -> None:
    """Write a small random RoBERTa with the tokenizer of the other tests."""
    config = transformers.RobertaConfig(
        vocab_size=tiny_tokenizer().get_vocab_size(),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=66,
        type_vocab_size=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    transformers.RobertaModel(config).save_pretrained(folder)
    save_tokenizer(tiny_tokenizer(), folder, 40)


@pytest.mark.slow
def test_a_recipe_uses_all_of_them_and_the_gradient_is_that_of_autograd(extended, tmp_path):
    golden.write_inputs(tmp_path)
    values: dict = {}
    for key, text in re.findall(r"^3\. Use it in a recipe: `(\w+): (.*)`\.$", PAGE, re.M):
        value = yaml.safe_load(text)
        values[key] = {**values.get(key, {}), **value} if key == "pruning" else value
    assert {"pruning", "regularizer", "task", "model", "export"} <= set(values)
    write_model(tmp_path / values["model"]["name"])
    for language, sentences in golden.SENTENCES.items():
        rows = [f"{text}\t{('negative', 'positive')[n % 2]}\n" for n, text in enumerate(sentences)]
        for split in ("train", "dev", "test") if language == "en" else ("test",):
            file = tmp_path / values["task"]["path"].format(language=language, split=split)
            file.parent.mkdir(exist_ok=True)
            file.write_text("".join(rows), encoding="utf-8")
    recipe = {
        "name": "extended",
        **values,
        "training": {"epochs_per_stage": 1, "batch_size": 4, "learning_rate": 1e-3, "max_length": 32},
    }
    recipe["pruning"] |= {"schedule": {"name": "geometric", "step_fraction": 0.3, "stages": 1}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    code = GRADIENT + "from xlmprune.cli import main; main()"
    report = json.loads(execute(extended, "-c", code, "compress", "mine.yaml", "--json", cwd=tmp_path))
    assert report["recipe"]["pruning"]["criterion"]["name"] == "steady"
    assert report["recipe"]["regularizer"]["name"] == "pseudo_huber"
    assert set(report["parity"]) == {"onnx_fp32", "onnx_rounded"}
    assert (tmp_path / "runs" / "extended" / "bundle" / "model.rounded.onnx").is_file()
    assert Path(report["model"]["name"]) == Path(values["model"]["name"])
    assert report["task"]["labels"] == ["negative", "positive"]
    assert [layer["heads"] for layer in report["model"]["structure"]["layers"]] == [1, 1]
    assert report["stages"][-1]["encoder_density"] == pytest.approx(0.7 * 0.75, abs=0.01)


def test_the_table_of_rooms_is_the_floor_plan_that_imports_obey():
    rows = re.findall(r"^\| (\d+) \| `(\w+)(?:/|\.py)` \| .* \| `(.+?)` \|$", PAGE, re.M)
    floors: dict[int, set[str]] = {}
    for floor, room, first in rows:
        floors.setdefault(int(floor), set()).add(room)
        assert (ROOT / "xlmprune" / first).is_file(), first
    assert [floors[height] for height in sorted(floors)] == [set(floor) for floor in FLOORS]


def test_files_named_on_the_page_exist():
    shown = files_of_the_page()
    for name in re.findall(r"`(xlmprune/[\w/]+\.py)`", PAGE):
        assert name in shown or (ROOT / name).is_file(), name
    for name in re.findall(r"`(tests/\w+\.py)`", PAGE):
        assert (ROOT / name).is_file(), name
