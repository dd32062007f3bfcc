"""Recipes: what is read, refused, and written back."""

import json

import pytest
import yaml

from xlmprune import recipe as recipes
from xlmprune.core.errors import RecipeError

MINIMAL = "task: {name: xnli}\n"


def write(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    return str(file)


def refusal(tmp_path, text, *overrides):
    with pytest.raises(RecipeError) as caught:
        recipes.load(write(tmp_path, text), overrides)
    return str(caught.value)


def test_defaults_are_the_papers(tmp_path):
    recipe = recipes.load(write(tmp_path, MINIMAL))
    assert recipe.name == "mine"
    assert recipe.training.learning_rate == 5e-6
    assert recipe.training.epochs_per_stage == 15
    assert recipe.training.weight_decay == 0
    densities = recipes.build(recipe, "schedule").densities()
    assert len(densities) == 11
    assert densities[-1] == pytest.approx(0.9**11)
    assert recipes.build(recipe, "regularizer").strength == 100


def test_norwegian_is_a_language(tmp_path):
    recipe = recipes.load(write(tmp_path, "task: {name: xnli, languages: [en, no, on, yes]}\n"))
    assert recipe.task.languages == ["en", "no", "on", "yes"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-5", 3e-5),
        ("5.0e-6", 5e-6),
        ("1", 1),
        ("true", True),
        ("no", "no"),
        ("2:4", "2:4"),
        ("007", "007"),
        ("-3", -3),
        ("2024-01-01", "2024-01-01"),
        (".5", 0.5),
    ],
)
def test_yaml_values_mean_what_they_look_like(text, value):
    parsed, _ = recipes.parse_yaml(f"key: {text}", "here")
    assert parsed == {"key": value}
    assert type(parsed["key"]) is type(value)


def test_misspelt_key_is_named_with_line_and_nearest(tmp_path):
    said = refusal(tmp_path, "task: {name: xnli}\ntraining:\n  batch_sise: 16\n")
    assert "line 3" in said
    assert "'training.batch_sise'" in said
    assert "'batch_size'" in said


def test_misspelt_section(tmp_path):
    said = refusal(tmp_path, "task: {name: xnli}\nprunning: {density: 0.1}\n")
    assert "line 2" in said
    assert "'prunning'" in said
    assert "'pruning'" in said


def test_misspelt_parameter_of_a_component(tmp_path):
    said = refusal(tmp_path, MINIMAL + "regularizer:\n  name: cosine\n  strenght: 3\n")
    assert "line 4" in said
    assert "'regularizer.strenght'" in said
    assert "'strength'" in said


def test_unknown_component(tmp_path):
    said = refusal(tmp_path, MINIMAL + "pruning:\n  criterion: {name: magnitud}\n")
    assert "line 3" in said
    assert "did you mean 'magnitude'" in said


def test_unknown_task(tmp_path):
    assert "did you mean 'xnli'" in refusal(tmp_path, "task: {name: xnly}\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training: {batch_size: many}", "training.batch_size"),
        ("training: {learning_rate: .inf}", "training.learning_rate"),
        ("training: {batch_size: 0}", "found 0"),
        ("seed: -1", "seed"),
        ("export: {onnx: [fp32, fp32]}", "`onnx` lists a form twice"),
        ("export: {opset: 12}", "export.opset"),
        ("pruning: {pattern: '3:4'}", "pruning.pattern"),
        ("pruning: {pattern: '2:4', scope: global}", "scope must be layer"),
        ("pruning: {pattern: '2:4', schedule: {name: geometric, stages: 2}}", "ends at density 0.5"),
        ("pruning: {schedule: {name: geometric, step_fraction: 1.5}}", "pruning.schedule.step_fraction"),
        ("model: {vocabulary: {min_count: 2}}", "keep_languages_of"),
        ("training: {batch_size: 2, gradient_accumulation: 4}", "more micro-batches"),
    ],
)
def test_impossible_values_are_refused(tmp_path, text, expected):
    said = refusal(tmp_path, MINIMAL + text + "\n")
    assert expected in said
    assert "line 2" in said


def test_every_fault_is_told_at_once(tmp_path):
    said = refusal(tmp_path, "task: {name: xnli}\nseeed: 1\ntraining: {batch_size: 0}\n")
    assert len(said.splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected keys"),
        ("- a\n- b\n", "expected keys"),
        ("task: {name: xnli\n", "not valid YAML"),
        ("task: {name: xnli}\ntask: {name: pos}\n", "given twice"),
        ("seed: 1\n", "'task' is missing"),
        ("task: !!python/object/apply:os.system ['true']\n", "line 1"),
    ],
)
def test_files_that_are_no_recipe(tmp_path, text, expected):
    assert expected in refusal(tmp_path, text)


def test_binary_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not UTF-8"):
        recipes.load(str(file))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("[a, b, b]", "label 'b' is listed twice"),
        ("[0, b, '0']", "label '0' is listed twice"),
        ("[a, '']", "a label is empty"),
        ("[a, ' b']", "spaces around it"),
        ("[a]", "at least two labels"),
        ("[]", "at least two labels"),
        ("[true, false]", "task.labels.0"),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(tmp_path, labels, expected):
    said = refusal(tmp_path, f"task: {{name: xnli, labels: {labels}}}\n")
    assert expected in said
    assert "line 1" in said


def test_numbers_are_label_names(tmp_path):
    recipe = recipes.load(write(tmp_path, "task: {name: qam, labels: [0, 1]}\n"))
    assert recipe.task.labels == ["0", "1"]
    assert recipes.load(write(tmp_path, recipe.to_yaml())) == recipe


@pytest.mark.parametrize(
    "path", ["{language}.{split}.tsv", "{language}/{split}.tsv", "{split}", "{split} {language}"]
)
def test_a_value_that_opens_with_a_brace_needs_quotes(tmp_path, path):
    hint = 'needs quotes: path: "{language}.{split}.tsv"'
    for text in (
        f"task:\n  source: files\n  path: {path}\n  name: xnli\n",
        f"task:\n  name: xnli\n  path: {path}\n",
    ):
        said = refusal(tmp_path, text)
        assert hint in said
        assert "line" in said
    file = write(tmp_path, MINIMAL)
    with pytest.raises(RecipeError) as caught:
        recipes.load(file, [f"task.path={path}"])
    assert hint in str(caught.value)
    assert f"--set task.path={path}" in str(caught.value)
    recipe = recipes.load(file, [f'task.path="{path}"'])
    assert recipe.task.path == path


def test_overrides_reach_inside_and_are_checked(tmp_path):
    file = write(tmp_path, MINIMAL)
    recipe = recipes.load(
        file, ["training.batch_size=8", "task.languages=[de, no]", "regularizer.strength=10"]
    )
    assert recipe.training.batch_size == 8
    assert recipe.task.languages == ["de", "no"]
    assert recipe.regularizer.name == "cosine"
    with pytest.raises(RecipeError, match=r"'regularizer\.name' is missing"):
        recipes.load(file, ["regularizer={}"])
    with pytest.raises(RecipeError, match=r"--set training\.batchsize=8: unknown key"):
        recipes.load(file, ["training.batchsize=8"])
    with pytest.raises(RecipeError, match="expected key=value"):
        recipes.load(file, ["training.batch_size"])
    with pytest.raises(RecipeError, match=r"--set seed\.x=8: seed"):
        recipes.load(file, ["seed.x=8"])
    with pytest.raises(RecipeError, match="with nothing inside"):
        recipes.load(file, ["seed=1", "seed.x=8"])


def test_resolved_recipe_is_read_back_equal(tmp_path):
    recipe = recipes.load(
        write(tmp_path, MINIMAL + "pruning: {criterion: magnitude, schedule: {name: cubic, stages: 3}}\n")
    )
    again = recipes.load(write(tmp_path, recipe.to_yaml()))
    assert again == recipe
    assert again.sha256() == recipe.sha256()


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(RecipeError, match="'quickstart'"):
        recipes.load("quikstart")


@pytest.mark.parametrize("name", sorted(recipes.shipped()))
def test_shipped_recipes_are_valid_and_say_how_to_run(name):
    file = recipes.shipped()[name]
    recipe = recipes.load(name)
    assert recipe.name == name
    head = file.read_text(encoding="utf-8").splitlines()
    comment = head[: next(i for i, line in enumerate(head) if not line.startswith("#"))]
    assert any(f"xlmprune compress recipes/{name}.yaml" in line for line in comment)
    assert recipes.load(f"recipes/{name}.yaml") == recipe


def test_schema_accepts_the_shipped_recipes():
    schema = recipes.json_schema()
    json.dumps(schema)
    names = schema["$defs"]["Regularizer"]["anyOf"][0]["enum"]
    assert "cosine" in names
    assert (
        "strength"
        in next(
            choice
            for choice in schema["$defs"]["Regularizer"]["anyOf"][1:]
            if choice["properties"]["name"]["const"] == "cosine"
        )["properties"]
    )


def test_a_misspelt_key_of_the_vocabulary(tmp_path):
    said = refusal(tmp_path, MINIMAL + "model:\n  vocabulary: {files: [a], min_cout: 3}\n")
    assert "'model.vocabulary.min_cout'" in said
    assert "'min_count'" in said
    assert len(said.splitlines()) == 1
    assert "function-after" not in said


@pytest.mark.parametrize(
    ("text", "expected"), [("a: \x07", "not valid YAML"), ("task: &a {name: *a}", "aliases")]
)
def test_strange_yaml(tmp_path, text, expected):
    assert expected in refusal(tmp_path, text)


def test_a_file_name_that_is_no_name_becomes_one(tmp_path):
    file = tmp_path / "my first récipe (2).yaml"
    values = {"task": {"name": "quickstart"}}
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert recipes.load(str(file)).name == "my_first_r_cipe_2_"


def test_a_yaml_tag_that_does_not_fit_is_a_sentence():
    with pytest.raises(RecipeError, match=r"x\.yaml: not valid YAML: invalid literal"):
        recipes.parse_yaml("seed: !!int abc", "x.yaml")
