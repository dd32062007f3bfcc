"""An installed wheel works away from the checkout, and what installs it agrees with itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
        "import xlmprune.report.pages, xlmprune.recipe\n"
        f"assert xlmprune.__file__.startswith({str(wheel)!r}), xlmprune.__file__\n"
        "print(xlmprune.recipe.find('quickstart'))\n"
        "print(xlmprune.report.pages.render_html({'name': 'outside'}))\n"
    )
    result = run_installed(wheel, tmp_path, "-c", code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(wheel / "xlmprune" / "recipes" / "quickstart.yaml"))
    assert "outside" in result.stdout


def test_the_command_of_the_wheel_lists_and_checks_the_shipped_recipes(wheel, tmp_path):
    listed = run_installed(wheel, tmp_path, "-m", "xlmprune", "recipes", "list")
    assert listed.returncode == 0, listed.stderr
    names = {line.split()[0] for line in listed.stdout.splitlines()}
    assert names == {file.stem for file in (ROOT / "recipes").glob("*.yaml")}
    checked = run_installed(wheel, tmp_path, "-m", "xlmprune", "recipes", "validate", "quickstart")
    assert checked.returncode == 0, checked.stderr


def test_the_constraints_pin_every_dependency_once():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    names = [canonicalize_name(pin.name) for pin in pins]
    assert len(names) == len(set(names))
    assert "xlmprune" not in names
    by_name = dict(zip(names, pins))
    assert str(by_name["torch"].specifier) == "==2.13.0"
    extras = PROJECT["project"]["optional-dependencies"]
    for line in PROJECT["project"]["dependencies"] + extras["quickstart"] + extras["test"]:
        wanted = Requirement(line)
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
    assert pip_lines("\n".join(dockerfile())) == pip_lines(section)


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
    user = max(place for place, line in enumerate(lines) if line.startswith("USER "))
    assert lines[user] == "USER xlmprune"
    assert user > max(place for place, line in enumerate(lines) if line.startswith("RUN "))


def test_the_makefile_and_ci_say_what_they_would_run():
    def plan(target: str) -> str:
        command = ["make", "--dry-run", "--always-make", target]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert ".venv/bin/xlmprune compress recipes/quickstart.yaml" in plan("quickstart")
    tests = plan("test")
    for step in ("ruff check .", "ruff format --check .", "mypy xlmprune", "pytest"):
        assert step in tests
    for text in (tests, plan("quickstart")):
        assert "install -c constraints.txt -e '.[quickstart,test]'" in text
        assert text.index("constraints.txt  torch") < text.index("-e '.[quickstart,test]'")
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    wanted = ["make test", "make quickstart", ".venv/bin/xlmprune verify runs/quickstart/bundle"]
    assert [line for line in script.read_text(encoding="utf-8").splitlines() if line in wanted] == wanted
    subprocess.run(["bash", "-n", script], check=True)
