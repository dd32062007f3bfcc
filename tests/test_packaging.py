"""Check that an installed wheel works outside the checkout, and that the ways to install it agree."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import golden
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from xlmprune.core import packages

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, unpacked, with nothing of the checkout in reach."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("xlmprune", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    built = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "-w",
        built,
    ]
    subprocess.run([*command, source], check=True, env={**os.environ, "PIP_NO_INDEX": "1"})
    installed = tmp_path_factory.mktemp("installed")
    (file,) = built.glob("xlmprune-*.whl")
    zipfile.ZipFile(file).extractall(installed)
    return installed


def run_installed(wheel: Path, elsewhere: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(wheel), "PYTHONUTF8": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False
    )


def test_every_file_of_the_package_is_in_the_wheel(wheel):
    inside = {str(file.relative_to(ROOT)) for file in (ROOT / "xlmprune").rglob("*") if file.is_file()}
    inside = {name for name in inside if "__pycache__" not in name}
    packed = {str(file.relative_to(wheel)) for file in wheel.rglob("*") if file.is_file()}
    assert inside <= packed
    recipes = {f"xlmprune/{file.relative_to(ROOT)}" for file in (ROOT / "recipes").rglob("*.yaml")}
    assert recipes
    assert recipes <= packed
    assert any(name.endswith("licenses/LICENSE") for name in packed)


def test_recipes_and_templates_are_found_from_another_folder(wheel, tmp_path):
    code = (
        "import xlmprune.report.pages\n"
        "from xlmprune.recipe.catalog import find_recipe\n"
        f"assert xlmprune.__file__.startswith({str(wheel)!r}), xlmprune.__file__\n"
        "print(find_recipe('quickstart'))\n"
        "print(xlmprune.report.pages.render_html({'name': 'outside'}))\n"
    )
    result = run_installed(wheel, tmp_path, "-c", code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(wheel / "xlmprune" / "recipes" / "quickstart.yaml"))
    assert "outside" in result.stdout


@pytest.mark.slow
def test_the_command_of_the_wheel_lists_and_checks_the_shipped_recipes(wheel, tmp_path):
    listed = run_installed(wheel, tmp_path, "-m", "xlmprune", "recipes", "list")
    assert listed.returncode == 0, listed.stderr
    names = {line.split()[0] for line in listed.stdout.splitlines()}
    assert names == {file.stem for file in (ROOT / "recipes").glob("*.yaml")}
    checked = run_installed(wheel, tmp_path, "-m", "xlmprune", "recipes", "validate", "quickstart")
    assert checked.returncode == 0, checked.stderr


WITHOUT_TRAINING = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from xlmprune.cli import main
main()
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle that a run has left."""
    folder = tmp_path_factory.mktemp("served")
    golden.write_inputs(folder)
    golden.run_here(folder, "cosine")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "predict {bundle} hello",
        "evaluate {bundle} --predictions predicted",
        "verify {bundle}",
        "inspect {bundle}",
        "inspect model",
        "bench {bundle} --seconds 0.1 --batches 1 --lengths 8",
        "recipes list",
        "doctor",
    ],
)
def test_a_server_needs_the_base_dependencies_alone(served, command):
    result = run_without_training(served, command.format(bundle="runs/cosine/bundle"))
    assert result.returncode == 0, result.stderr
    assert result.stdout


@pytest.mark.slow
def test_training_without_its_packages_says_what_to_install(served):
    for command in ("compress cosine.yaml --out other", "compress cosine.yaml --dry-run"):
        result = run_without_training(served, command)
        assert result.returncode == 2, result.stderr
        assert "needs the package torch" in result.stderr
        assert "pip install 'torch>=" in result.stderr


def run_without_training(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    absent = [
        re.split("[^a-z0-9_-]", line)[0] for line in PROJECT["project"]["optional-dependencies"]["train"]
    ]
    code = WITHOUT_TRAINING.format(absent={name.replace("-", "_") for name in absent})
    return subprocess.run(
        [sys.executable, "-c", code, *command.split()],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_advice_to_install_an_extra_is_the_same_in_a_checkout_and_in_a_wheel(wheel, tmp_path):
    code = "from xlmprune.core import packages; print([packages.pip_install(e) for e in packages.EXTRAS])"
    installed = run_installed(wheel, tmp_path, "-c", code)
    assert installed.returncode == 0, installed.stderr
    assert ast.literal_eval(installed.stdout) == [packages.pip_install(extra) for extra in packages.EXTRAS]
    assert packages.extra_of("home_assistant_intents") == "quickstart"
    assert packages.extra_of("torch") == "train"
    assert packages.extra_of("numpy") is None


def test_the_constraints_pin_every_dependency_once():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    names = [canonicalize_name(pin.name) for pin in pins]
    assert len(names) == len(set(names))
    assert "xlmprune" not in names
    by_name = dict(zip(names, pins))
    assert str(by_name["torch"].specifier) == "==2.13.0"
    extras = PROJECT["project"]["optional-dependencies"]
    named = [
        *PROJECT["project"]["dependencies"],
        *extras["train"],
        *extras["quickstart"],
        *extras["test"],
    ]
    for wanted in map(Requirement, named):
        if wanted.name == "xlmprune":
            continue
        pin = by_name.get(canonicalize_name(wanted.name))
        assert pin is not None, f"{wanted.name} is not pinned"
        (exact,) = pin.specifier
        assert exact.operator == "=="
        assert "+" not in exact.version, "a local version fits one index only"
        assert wanted.specifier.contains(exact.version), f"{pin} is outside {wanted}"


def dockerfile() -> list[str]:
    """Instructions of the Dockerfile, continuation lines joined, comments left out."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    return [" ".join(line.split()) for line in lines.replace("\\\n", " ").splitlines() if line.strip()]


def test_every_path_that_the_image_copies_exists_and_is_sent_to_the_builder():
    sent = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line[:1] == "!"
    }
    copied = []
    for line in dockerfile():
        if line.startswith("COPY "):
            copied += line.split()[1:-1]
    assert len(copied) >= 5
    for source in copied:
        assert (ROOT / source).exists(), source
        assert source in sent, f".dockerignore keeps {source} from the builder"
    needed = {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    assert needed <= set(copied), "pip install . reads these"


def pip_lines(text: str) -> list[str]:
    return re.findall(r"pip install (.+)", text)


def test_the_image_installs_as_the_readme_says():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("## On a GPU", 1)[1].split("\n## ", 1)[0]
    index = "${TORCH_INDEX:+--extra-index-url $TORCH_INDEX} "
    assert pip_lines("\n".join(dockerfile()).replace(index, "")) == pip_lines(section)


def test_compose_compresses_with_this_image_and_then_serves_what_it_wrote():
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    compress, triton = compose["services"]["compress"], compose["services"]["triton"]
    arguments = {line.split()[1].partition("=")[0] for line in dockerfile() if line.startswith("ARG ")}
    assert set(compress["build"]["args"]) == arguments
    assert "cache:/cache" in compress["volumes"]
    assert triton["depends_on"] == {"compress": {"condition": "service_completed_successfully"}}
    recipe = re.fullmatch(r"\$\{RECIPE:-(.*)\}", compress["command"][1])
    assert recipe
    assert (ROOT / recipe[1]).is_file()
    assert "--model-repository=/app/${BUNDLE:-runs/quickstart/bundle}/triton" in triton["command"]


def test_the_image_is_fit_to_serve():
    lines = dockerfile()
    text = "\n".join(lines)
    assert lines[0] == "FROM python:3.11-slim"
    assert 'ENTRYPOINT ["xlmprune"]' in lines
    assert "LANG=C.UTF-8" in text
    assert "ORT_DISABLE_TELEMETRY=1" in text
    assert "VOLUME /cache" in lines
    assert "HF_HOME=/cache/" in text
    assert "XLMPRUNE_CACHE=/cache/" in text
    user = max(number for number, line in enumerate(lines) if line.startswith("USER "))
    assert lines[user] == "USER $UID"
    assert "ARG UID=1000" in lines[:user]
    assert user > max(number for number, line in enumerate(lines) if line.startswith("RUN "))


def plan(target: str, **environment: str) -> str:
    """What `make` would run."""
    command = ["make", "--dry-run", "--always-make", target]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return done.stdout


def test_torch_comes_without_cuda_where_there_is_no_nvidia_driver(tmp_path):
    index = "--extra-index-url https://download.pytorch.org/whl/cpu torch"
    if shutil.which("nvidia-smi") is None and not Path("/proc/driver/nvidia/version").exists():
        assert index in plan("quickstart")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n", encoding="utf-8")
    (tmp_path / "nvidia-smi").chmod(0o755)
    with_driver = plan("quickstart", PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert "index-url" not in with_driver
    assert "index-url" not in plan("quickstart", TORCH_INDEX="")
    assert "--extra-index-url file:///wheels torch" in plan("quickstart", TORCH_INDEX="file:///wheels")


def test_the_makefile_and_ci_say_what_they_would_run():

    assert ".venv/bin/xlmprune compress recipes/quickstart.yaml" in plan("quickstart")
    tests = plan("test")
    for step in ("ruff check .", "ruff format --check .", "mypy xlmprune", "pytest"):
        assert step in tests
    assert "-e '.[quickstart,test]'" in tests
    for text in (tests, plan("quickstart")):
        assert re.search("constraints.txt .*torch\n.*constraints.txt -e '.\\[quickstart]'", text), text
    assert "test]" not in plan("quickstart"), "the first run needs no linters"
    assert "--no-loadscope-reorder -m slow\n" in plan("test-slow")
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    wanted = [
        "make test",
        "make test-slow",
        "make quickstart",
        ".venv/bin/xlmprune verify runs/quickstart/bundle",
    ]
    assert [line for line in script.read_text(encoding="utf-8").splitlines() if line in wanted] == wanted
    subprocess.run(["bash", "-n", script], check=True)
