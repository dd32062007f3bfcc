"""Recipes: what is read, refused, and written back."""

import json
from pathlib import Path

import pytest
import yaml
from campaigns import recipes as campaign

from xlmprune.bundle.evaluate import task_of
from xlmprune.core.errors import RecipeError
from xlmprune.recipe.catalog import find_recipe, shipped_recipes
from xlmprune.recipe.editors import json_schema
from xlmprune.recipe.effects import differences, effect_of
from xlmprune.recipe.loading import load_recipe, recipe_of
from xlmprune.recipe.methods import METHODS
from xlmprune.recipe.schema import sha256_of
from xlmprune.recipe.validation import build_component
from xlmprune.recipe.yaml_text import parse_yaml

MINIMAL = "task: {name: xnli}\n"


def write(tmp_path, text, name="mine.yaml"):
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return str(file)


def refusal(tmp_path, text, *overrides):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, text), overrides)
    return str(caught.value)


def test_defaults_are_the_papers(tmp_path):
    recipe = load_recipe(write(tmp_path, MINIMAL))
    assert recipe.name == "mine"
    assert recipe.training.learning_rate == 5e-6
    assert recipe.training.epochs_per_stage == 15
    assert recipe.training.weight_decay == 0
    densities = build_component(recipe, "schedule").per_stage()
    assert len(densities) == 11
    assert densities[-1] == pytest.approx(0.9**11)
    assert build_component(recipe, "regularizer").strength == 100


def test_norwegian_is_a_language(tmp_path):
    recipe = load_recipe(write(tmp_path, "task: {name: xnli, languages: [en, no, on, yes]}\n"))
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
    parsed, _ = parse_yaml(f"key: {text}", "here")
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
        ("training: {batch_size: many}", "expected whole number, found 'many'"),
        ("training: {learning_rate: .inf}", "training.learning_rate: must be a finite number, found inf"),
        ("training: {batch_size: 0}", "training.batch_size: must be greater than or equal to 1, found 0"),
        ("training: {keep: first}", "training.keep: expected `best` or `last`, found 'first'"),
        ("training: {regularize_dense: 3}", "expected true/false, found 3"),
        ("training: 5", "training: expected keys, found 5"),
        ("model: {vocabulary: 5}", "model.vocabulary: expected `keep` or keys, found 5"),
        ("export: {onnx: [fp33]}", "export.onnx.0: expected `fp32` or `fp16` or `int8`, found 'fp33'"),
        ("distillation: {languages: []}", "distillation.languages: needs at least one entry, found []"),
        ("distillation: {teacher: best}", "distillation.teacher: expected `finetuned` or `best_so_far`"),
        ("max_length: 96", "unknown key 'max_length'; did you mean training.max_length?"),
        ("training: {stages: 3}", "unknown key 'training.stages'"),
        ("distillation: {teecher: best}", "unknown key 'distillation.teecher'; did you mean 'teacher'"),
        ("distillation: {teacher: best_so_far}\ntraining: {keep: last}", "best_so_far needs dev scores"),
        ("name: a/b", "name: use letters, digits and `_.-`, and begin with a letter or a digit, found 'a/b'"),
        ("seed: -1", "seed"),
        ("export: {onnx: [fp32, fp32]}", "`onnx` lists a form twice"),
        ("export: {opset: 12}", "export.opset"),
        ("pruning: {pattern: '3:4'}", "pruning.pattern"),
        ("pruning: {pattern: '2:4', scope: global}", "scope must be layer"),
        ("pruning: {pattern: '2:4', scope: row}", "scope must be layer"),
        (
            "pruning: {pattern: structured, structure: {heads: 0.5, importance: magnitude, languages: [de]}}",
            "importance magnitude reads no text",
        ),
        ("pruning: {observe_regularizer: true}", "the criterion magnitude sees no gradients"),
        ("distillation: {teacher: finetuned, ask_every: 5}", "never replaced, so ask_every is not read"),
        ("distillation: {teacher: finetuned, density_step: 0.2}", "so density_step is not read"),
        ("distillation: {teacher: finetuned, dense_defends: false}", "so dense_defends is not read"),
        (
            "training: {epochs_per_stage: 1, last_epochs: 0}\n"
            "pruning: {schedule: {name: continuous, final_density: 0.3}}",
            "prunes during training, but 0 epochs have no update",
        ),
        ("pruning: {pattern: '2:4', schedule: {name: geometric, stages: 2}}", "ends at density 0.5"),
        ("pruning: {schedule: {name: geometric, step_fraction: 1.5}}", "pruning.schedule.step_fraction"),
        ("model: {vocabulary: {min_count: 2}}", "keep_languages_of"),
        ("training: {batch_size: 2, gradient_accumulation: 4}", "more micro-batches"),
        ("training: {epochs_per_stage: 0}", "set dense_epochs to the length of stage 0"),
        ("training: {dense_epochs: 0}", "training.dense_epochs: must be greater than 0"),
        (
            "training: {epochs_per_stage: 0, dense_epochs: 2}\npruning: {criterion: l0}",
            "the criterion l0 learns what to prune in the stages after stage 0",
        ),
        (
            "training: {epochs_per_stage: 0, dense_epochs: 2}\npruning: {criterion: pins, pattern: unstructured, "
            "structure: {heads: 0.5}}",
            "the criterion pins starts anew when heads and neurons have been removed",
        ),
        (
            "training: {epochs_per_stage: 0, dense_epochs: 2}\npruning: {criterion: movement, "
            "structure: {heads: 0.5, rounds: 2, importance: criterion}}",
            "the criterion movement starts anew",
        ),
        (
            "pruning: {criterion: l0, structure: {heads: 0.5, importance: criterion}}",
            "the criterion l0 begins to learn when single weights have been pruned",
        ),
        ("pruning: {criterion: l0, observe_regularizer: true}", "leave observe_regularizer out"),
        ("distillation: {ask_every: 5}", "the teacher `finetuned` is never replaced"),
        (
            "training: {epochs_per_stage: 0, dense_epochs: 2}\npruning: {criterion: pins, schedule: {name: continuous}}",
            "the schedule `continuous` prunes during training",
        ),
        (
            "pruning: {schedule: {name: geometric, stages: 100000000}}",
            "stages: must be less than or equal to 1000",
        ),
        ("pruning: {schedule: {name: cubic, warm_up: 100000000}}", "must be less than or equal to 1000"),
        (
            "training: {batch_size: 0xfffffffffff}",
            "training.batch_size: must be less than or equal to 1000000",
        ),
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
        load_recipe(str(file))


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
    recipe = load_recipe(write(tmp_path, "task: {name: qam, labels: [0, 1]}\n"))
    assert recipe.task.labels == ["0", "1"]
    assert load_recipe(write(tmp_path, recipe.to_yaml())) == recipe


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
        load_recipe(file, [f"task.path={path}"])
    assert hint in str(caught.value)
    assert f"--set task.path={path}" in str(caught.value)
    recipe = load_recipe(file, ["task.source=files", f'task.path="{path}"'])
    assert recipe.task.path == str(Path.cwd() / path)


def test_overrides_reach_inside_and_are_checked(tmp_path):
    file = write(tmp_path, MINIMAL)
    recipe = load_recipe(
        file, ["training.batch_size=8", "task.languages=[de, no]", "regularizer.strength=10"]
    )
    assert recipe.training.batch_size == 8
    assert recipe.task.languages == ["de", "no"]
    assert recipe.regularizer.name == "cosine"
    with pytest.raises(RecipeError, match=r"'regularizer\.name' is missing"):
        load_recipe(file, ["regularizer={}"])
    with pytest.raises(RecipeError, match=r"--set training\.batchsize=8: unknown key"):
        load_recipe(file, ["training.batchsize=8"])
    with pytest.raises(RecipeError, match="expected key=value"):
        load_recipe(file, ["training.batch_size"])
    with pytest.raises(RecipeError, match=r"--set seed\.x=8: seed"):
        load_recipe(file, ["seed.x=8"])
    with pytest.raises(RecipeError, match="seed is 1 and has no keys"):
        load_recipe(file, ["seed=1", "seed.x=8"])


OWN_FILES = "task:\n  name: xnli\n  source: files\n  path: '{language}.{split}.tsv'\n"


@pytest.mark.parametrize("mark", [*"|,:;#-&*!?%@`'\"[]{}", "\t", " "])
def test_a_delimiter_may_be_given_as_it_is(tmp_path, mark):
    file = write(tmp_path, OWN_FILES)
    assert load_recipe(file, [f"task.delimiter={mark}"]).task.delimiter == mark


@pytest.mark.parametrize("written", [r"\t", r"'\t'", r'"\t"'])
def test_a_tab_may_be_written_with_a_backslash(tmp_path, written):
    assert load_recipe(write(tmp_path, OWN_FILES), [f"task.delimiter={written}"]).task.delimiter == "\t"
    file = write(tmp_path, f"{OWN_FILES}  delimiter: {written}\n")
    assert load_recipe(file).task.delimiter == "\t"


def test_a_tilde_in_an_option_is_null(tmp_path):
    file = write(tmp_path, "task: {name: xnli, delimiter: ';'}\n")
    assert load_recipe(file, ["task.delimiter=~"]).task.delimiter is None


def test_resolved_recipe_is_read_back_equal(tmp_path):
    recipe = load_recipe(
        write(tmp_path, MINIMAL + "pruning: {criterion: magnitude, schedule: {name: cubic, stages: 3}}\n")
    )
    again = load_recipe(write(tmp_path, recipe.to_yaml()))
    assert again == recipe
    assert again.sha256() == recipe.sha256()


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(RecipeError, match="'quickstart'"):
        load_recipe("quikstart")


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipes_are_valid_and_say_how_to_run(name):
    file = shipped_recipes()[name]
    recipe = load_recipe(name)
    assert recipe.name == name
    head = file.read_text(encoding="utf-8").splitlines()
    comment = head[: next(i for i, line in enumerate(head) if not line.startswith("#"))]
    assert any(f"xlmprune compress recipes/{name}.yaml" in line for line in comment)
    assert load_recipe(f"recipes/{name}.yaml") == recipe


@pytest.mark.parametrize(
    "name", sorted({n for n in shipped_recipes() if n.endswith("_small")} - {"xnli_small"})
)
def test_a_shipped_recipe_for_your_own_files_reads_files(name):
    task = load_recipe(str(shipped_recipes()[name])).task
    assert task.name == "quickstart" or (task.source, task.path is None) == ("files", False)


@pytest.mark.parametrize(
    ("source", "keys", "said"),
    [
        (
            "hub",
            "path: 'data/{language}.{split}.tsv'",
            "`path` is not read with `source: hub`. Write `source: files`",
        ),
        ("hub", "columns: {first: a, label: b}", "`columns` is not read with `source: hub`"),
        ("hub", "header: false", "`header` is not read with `source: hub`"),
        (
            "hub",
            "columns: {first: a}, header: true",
            "`columns` and `header` are not read with `source: hub`",
        ),
        ("hub", "train_split: mine", "`train_split` is not read with `source: hub`"),
        ("xglue", "path: folder, delimiter: ';'", "`delimiter` is not read with `source: xglue`"),
        ("xglue", "path: folder, test_split: mine", "`test_split` is not read with `source: xglue`"),
    ],
)
def test_a_key_that_would_not_be_read_is_refused(tmp_path, source, keys, said):
    """A section with another name keeps nothing of its base, so `source: files` may get lost."""
    text = f"base: pos_small\ntask: {{name: xnli, source: {source}, {keys}}}\n"
    assert said in refusal(tmp_path, text)
    if source == "hub":
        assert said in refusal(tmp_path, text.replace("source: hub, ", ""))
    mine = text.replace(
        f"source: {source}",
        "source: files, path: '{language}.{split}.tsv'" if "path" not in keys else "source: files",
    )
    assert load_recipe(write(tmp_path, mine)).task.source == "files"


def test_files_have_no_revision_and_the_quickstart_no_files(tmp_path):
    assert "`revision` is not read with `source: files`" in refusal(tmp_path, f"{OWN_FILES}  revision: abc\n")
    given = "task: {name: quickstart, source: files, path: '{language}.tsv', header: true}\n"
    assert "`source` and `path` and `header` are not read with the task quickstart" in refusal(
        tmp_path, given
    )
    inherited = refusal(tmp_path, "base: pos_small\ntask: {source: hub}\n")
    assert "(`path: null` where a base sets it)" in inherited
    assert load_recipe(write(tmp_path, "base: pos_small\ntask: {source: hub, path: null, format: null}\n"))


def test_a_recipe_that_a_run_saved_may_have_keys_that_were_never_read(tmp_path):
    """Older versions accepted them, and the run is still there."""
    saved = write(tmp_path, "task: {name: xnli, path: mine, format: tsv, train_split: train}\n")
    task = load_recipe(str(saved), saved=True).task
    assert (task.path, task.format) == (None, None)
    with pytest.raises(RecipeError, match="`path` and `format` are not read"):
        load_recipe(str(saved))
    with pytest.raises(RecipeError, match=r"task\.source"):
        load_recipe(str(saved), ["task.source=nowhere"], saved=True)


def test_a_bundle_of_an_older_version_is_evaluated(tmp_path):
    """The run folder's recipe has keys that are refused today, and the whole path that the report lacks."""
    values = {
        "name": "old",
        "task": {"name": "ner", "source": "xglue", "path": "/data/xglue", "format": "tokens"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "bundle").mkdir()
    report = {"recipe_sha256": sha256_of(values), "recipe": {"task": {**values["task"], "path": "xglue"}}}
    (tmp_path / "bundle" / "report.json").write_text(json.dumps(report))
    task = task_of(tmp_path / "bundle", [])
    assert (task.path, task.format) == ("/data/xglue", None)
    with pytest.raises(RecipeError, match="`header` is not read"):
        task_of(tmp_path / "bundle", ["task.header=true"])


def test_a_bundle_of_hub_data_is_evaluated_on_files(tmp_path):
    """The run pinned the data set's revision, which files do not have."""
    report = {"recipe": {"task": {"name": "xnli", "source": "hub", "revision": "abc"}}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert task_of(tmp_path, []).revision == "abc"
    task = task_of(
        tmp_path, ["task.source=files", "task.path=mine/{language}.{split}.tsv", "task.header=true"]
    )
    assert (task.revision, task.header) == (None, True)


def test_a_criterion_that_would_choose_nothing_is_refused(tmp_path):
    text = "task: xnli\npruning: {criterion: pins, pattern: structured, structure: {heads: 0.5}}\n"
    assert "the criterion pins chooses nothing" in refusal(tmp_path, text)
    assert load_recipe(write(tmp_path, text.replace("{heads: 0.5}", "{heads: 0.5, importance: criterion}")))
    assert load_recipe(write(tmp_path, text.replace("pattern: structured", "pattern: unstructured")))
    assert load_recipe(write(tmp_path, text.replace("criterion: pins, ", "")))
    assert load_recipe(write(tmp_path, text), saved=True), "an older version ran it"


def test_an_epoch_that_no_stage_has_is_not_judged(tmp_path):
    """With `continuous` the last stage is the only one after the dense one."""
    text = (
        "task: xnli\ntraining: {epochs_per_stage: 0, dense_epochs: 6, last_epochs: 5}\n"
        "pruning: {schedule: {name: continuous, final_density: 0.3}}\n"
    )
    assert load_recipe(write(tmp_path, text))


def test_a_comparison_is_not_compressed():
    with pytest.raises(RecipeError, match="is a comparison of several runs: xlmprune compare six_tasks"):
        load_recipe("six_tasks")


def test_schema_accepts_the_shipped_recipes():
    schema = json_schema()
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
    assert load_recipe(str(file)).name == "my_first_r_cipe_2_"


@pytest.mark.parametrize("text", ["seed: !!int abc", "seed: !!timestamp x", "seed: !mine 1"])
def test_tags_are_refused(text):
    with pytest.raises(RecipeError, match=r"x\.yaml, line 1: tags such as !\S+ are not allowed"):
        parse_yaml(text, "x.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 500,
        "a: " + "{b: " * 500,
        "seed: " + "9" * 5000,
        "seed: 0x" + "f" * 5000,
        "x: " + "y" * 2_000_000,
        "- a\n" * 400_000,
        'a: "\\0"',
        'a: "\\ud800"',
        'a: "\\UFFFFFFFF"',
        "a: 1\n---\nb: 2",
    ],
    ids=lambda text: text[:12],
)
def test_what_no_recipe_needs_is_refused_early(text):
    with pytest.raises(RecipeError, match="mine"):
        parse_yaml(text, "mine.yaml")


@pytest.mark.parametrize(
    "label",
    [
        "1e5",
        "no",
        "null",
        "true",
        "0x1f",
        "12",
        "1.5",
        "~",
        "",
        "😀",
        "2:4",
        ".nan",
        "a\x85b",
        "\u2028",
        "\n",
        " x ",
    ],
)
def test_text_that_looks_like_another_value_is_written_with_quotes(tmp_path, label):
    recipe = load_recipe(write(tmp_path, f"task: {{name: xnli, metric: {json.dumps(label)}}}"))
    assert recipe.task.metric == label
    assert load_recipe(write(tmp_path, recipe.to_yaml())) == recipe


def test_a_bare_name_is_enough_and_a_list_may_be_text(tmp_path):
    text = "task: quickstart\nmodel: quickstart\nregularizer: none\n"
    recipe = load_recipe(
        write(tmp_path, text), ["task.languages=en, de", "export.onnx=int8", "model.revision=x"]
    )
    assert (recipe.task.name, recipe.model.name, recipe.model.revision) == ("quickstart", "quickstart", "x")
    assert recipe.task.languages == ["en", "de"]
    assert recipe.export.onnx == ["int8"]


# --- methods ----------------------------------------------------------------------------------------------------------

PAPERS_TASKS = ("xnli", "nc", "ner", "pawsx", "pos", "qam", "qadsm", "wpr")


@pytest.mark.parametrize("task", PAPERS_TASKS)
@pytest.mark.parametrize("method", METHODS)
def test_every_task_has_every_method_by_one_key(task, method):
    base, recipe = load_recipe(f"{task}_cosine"), load_recipe(f"{task}_cosine", [f"method={method}"])
    wanted = METHODS[method].values
    assert recipe.name == f"{task}_cosine.{method}"
    assert recipe.pruning.criterion.name == wanted["pruning"]["criterion"]["name"]
    assert recipe.pruning.scope == wanted["pruning"]["scope"]
    assert recipe.regularizer.model_dump() == wanted["regularizer"]
    assert (recipe.task, recipe.model, recipe.export) == (base.task, base.model, base.export)
    dense = recipe.training.dense_learning_rate or recipe.training.learning_rate
    assert dense == base.training.learning_rate
    assert (recipe.training.dense_epochs or recipe.training.epochs_per_stage) == 15
    assert "method" not in recipe.resolved()


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if name.startswith("xnli_")])
def test_a_shipped_recipe_of_a_method_is_the_method(name):
    text = shipped_recipes()[name].read_text(encoding="utf-8")
    method = name.removeprefix("xnli_")
    if method not in METHODS:
        assert "method:" not in text
        return
    chosen = load_recipe("xnli_cosine", [f"method={method}", f"name={name}"])
    assert load_recipe(name) == chosen


def test_keys_beside_a_method_win_wherever_they_stand(tmp_path):
    text = "pruning: {scope: layer, criterion: {window: 3}}\nmethod: pins\ntraining: {learning_rate: 1.0}\n"
    recipe = load_recipe(write(tmp_path, "base: xnli_cosine\n" + text))
    assert recipe.pruning.scope == "layer"
    assert recipe.pruning.criterion.parameters == {"beta1": 0.85, "beta2": 0.99, "window": 3}
    assert (recipe.training.learning_rate, recipe.training.dense_learning_rate) == (1.0, 5e-6)
    for options in (["pruning.scope=layer", "method=pins"], ["method=pins", "pruning.scope=layer"]):
        assert load_recipe("xnli_cosine", options).pruning.scope == "layer"
    below = write(tmp_path, "base: xnli_pins\nmethod: l2\n", "below.yaml")
    assert load_recipe(below).pruning.criterion.name == "magnitude"
    assert load_recipe(below, ["method=lamp"]).pruning.criterion.name == "lamp"
    assert load_recipe(below, ["method=lamp", "name=mine"]).name == "mine"


def test_a_mapping_may_name_a_method_too():
    recipe = recipe_of({"method": "lamp", "task": {"name": "xnli"}, "pruning": {"scope": "layer"}}, {})
    assert (recipe.pruning.criterion.name, recipe.pruning.scope, recipe.regularizer.name) == (
        "lamp",
        "layer",
        "none",
    )
    assert recipe_of("xnli_cosine", {"method": "l2"}).name == "xnli_cosine.l2"


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("\nmethod: pinz", [], r"mine.yaml, line 2: method: no method is called 'pinz'; did you mean 'pins'"),
        ("\nmethod: [l2]", [], r"line 2: method: no method is called"),
        ("", ["method=lampp"], r"--set method=lampp: no method is called 'lampp'; did you mean 'lamp'"),
        ("", ["method={name: l2}"], r"--set method=.*no method is called"),
    ],
)
def test_methods_that_do_not_exist(tmp_path, text, options, said):
    with pytest.raises(RecipeError, match=said):
        load_recipe(write(tmp_path, MINIMAL.rstrip("\n") + text), options)


# --- base -------------------------------------------------------------------------------------------------------------


def test_a_recipe_may_start_from_another(tmp_path):
    (tmp_path / "below.yaml").write_text(
        "base: xnli_cosine\nname: below\nseed: 7\ntask: {name: pos, languages: [de]}\ntraining: {batch_size: 8}\n"
    )
    recipe = load_recipe(
        write(tmp_path, "base: below.yaml\ntraining: {max_length: 64}\nregularizer: {strength: 3}\n"),
        ["training.warmup_updates=5"],
    )
    assert recipe.name == "mine"
    assert recipe.seed == 7
    assert (recipe.task.name, recipe.task.languages, recipe.task.source) == ("pos", ["de"], "hub")
    training = recipe.training
    assert (training.batch_size, training.max_length, training.warmup_updates) == (8, 64, 5)
    assert recipe.regularizer.parameters == {"strength": 3, "reference": "pretrained"}
    assert "base" not in recipe.resolved()
    assert load_recipe(write(tmp_path, recipe.to_yaml())) == recipe


def test_a_section_with_another_name_keeps_nothing_of_the_base(tmp_path):
    (tmp_path / "below.yaml").write_text(
        "task: {name: nc, source: xglue, path: here}\npruning: {criterion: {name: gradient, batches: 3}}\n"
    )
    text = "base: below.yaml\ntask: xnli\npruning: {criterion: {name: gradient}, schedule: cubic}\nregularizer: none"
    recipe = load_recipe(write(tmp_path, text))
    assert (recipe.task.source, recipe.task.path) == ("hub", None)
    assert recipe.regularizer.parameters == {}
    assert recipe.pruning.criterion.parameters == {"batches": 3}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base: nowhere.yaml", r"line 1: base: no file .*nowhere\.yaml, and no shipped recipe is called"),
        ("\nbase: xnli_cosin", r"line 2: .* did you mean 'xnli_cosine'"),
        ("base: [a]", r"line 1: base: expected a file or the name of a shipped recipe, found \['a'\]"),
        ("base: mine.yaml", r"line 1: base 'mine\.yaml' leads back"),
        ("base: other.yaml", r"other\.yaml, line 1: base 'mine\.yaml' leads back"),
        ("base: wrong.yaml", r"wrong\.yaml, line 2: unknown key 'sead'"),
        ("base: list.yaml", r"list\.yaml: expected keys"),
        ("base: .", r"no file .*, and no shipped recipe"),
    ],
)
def test_bases_that_cannot_be_used_are_refused(tmp_path, text, expected):
    (tmp_path / "other.yaml").write_text("base: mine.yaml\n")
    (tmp_path / "wrong.yaml").write_text("task: xnli\nsead: 1\n")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(RecipeError, match=expected):
        load_recipe(write(tmp_path, text + "\n"))


def test_a_base_is_read_from_files_only(tmp_path):
    with pytest.raises(RecipeError, match="--set base=quickstart: "):
        load_recipe(write(tmp_path, MINIMAL), ["base=quickstart"])


def test_every_key_has_a_description():
    schema = json_schema()
    keys = [
        (name, key, facts)
        for name, part in {**schema["$defs"], "Recipe": schema}.items()
        if name.endswith("Recipe")
        for key, facts in part["properties"].items()
    ]
    assert len(keys) > 55
    for name, key, facts in keys:
        # pydantic leaves out a description that is also that of the section.
        section = schema["$defs"].get(facts.get("$ref", "").rpartition("/")[2], {})
        assert facts.get("description", section.get("description")), f"{name}.{key}"


# --- paths ------------------------------------------------------------------------------------------------------------


def test_paths_are_relative_to_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "models" / "small").mkdir(parents=True)
    (tmp_path / "mine" / "below.yaml").write_text(
        "task: {name: xnli, source: files, path: 'data/{language}.{split}.tsv'}\n"
        "model: {name: ../models/small, vocabulary: {files: ['../{language}.txt', /abs.txt]}}\n"
        "distillation: {unlabelled: '~/{language}.txt'}\nexport: {calibration: 'text/{language}.txt'}\n"
    )
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(write(tmp_path, "base: mine/below.yaml"))
    assert recipe.task.path == str(tmp_path / "mine/data/{language}.{split}.tsv")
    assert recipe.model.name == str(tmp_path / "models/small")
    assert recipe.model.vocabulary.files == [str(tmp_path / "{language}.txt"), "/abs.txt"]
    assert recipe.distillation.unlabelled == "~/{language}.txt"
    assert recipe.export.calibration == str(tmp_path / "mine/text/{language}.txt")
    given = load_recipe("mine.yaml", ["task.path=here/{language}.tsv", "model.name=models/small"])
    assert given.task.path == str(tmp_path / "here/{language}.tsv")
    assert given.model.name == str(tmp_path / "models/small")


def test_the_resolved_recipe_works_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("nc_cosine")
    assert recipe.task.path == str(tmp_path / "data/xglue_full_dataset")
    assert recipe.model.name == "FacebookAI/xlm-roberta-base"
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "recipe.yaml").write_text(recipe.to_yaml())
    monkeypatch.chdir("/")
    assert load_recipe(str(tmp_path / "runs" / "recipe.yaml")) == recipe


# --- what a key changes -----------------------------------------------------------------------------------------------


def test_every_key_says_what_it_changes():
    """Declared in the schema; a new key counts as training until it says otherwise."""
    found = {}
    for path, _, _ in _leaves(load_recipe("quickstart_paper").resolved()):
        found.setdefault(effect_of(path), set()).add(".".join(path))
    assert found["running"] == {
        "task.path",
        "training.checkpoint_minutes",
        "training.gradient_checkpointing",
        "training.report_to",
    }
    assert found["conditions"] == {
        "training.gradient_accumulation",
        "training.compile",
        "training.cuda_graphs",
        "training.fast_dropout",
        "training.frozen_weights",
    }
    assert found["measuring"] == {
        "task.test_split",
        "evaluation.max_stage_examples",
        "evaluation.stage_precision",
        "evaluation.stage_interval",
    }
    others = {"name", "task.title", "task.licence", "evaluation.batch_size", "evaluation.sample_errors"}
    assert found["export"] == others | {
        key for keys in found.values() for key in keys if key.startswith("export.")
    }
    assert {"seed", "pruning.criterion.name", "training.learning_rate", "pruning.schedule.stages"} <= found[
        "training"
    ]


def _leaves(values):
    return [(d.path, d.before, d.now) for d in differences(values, _none(values))]


def _none(values):
    return {key: _none(value) for key, value in values.items()} if isinstance(values, dict) else object()


def test_differences_name_every_key_with_both_values():
    one, other = (
        load_recipe("xnli_cosine"),
        load_recipe("xnli_cosine", ["export.opset=19", "regularizer=none"]),
    )
    found = list(differences(one.resolved(), other.resolved()))
    assert {(difference.path, difference.effect) for difference in found} == {
        (("export", "opset"), "export"),
        (("regularizer", "name"), "training"),
        (("regularizer", "strength"), "training"),
        (("regularizer", "reference"), "training"),
    }
    assert "export.opset is 20 there and 19 here" in map(str, found)
    assert list(differences(one.resolved(), one.resolved())) == []


# --- what others send -------------------------------------------------------------------------------------------------


def test_a_recipe_file_in_the_folder_is_suggested(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(RecipeError, match=r"no recipe at recipe\.yml, .*; did you mean recipe\.yaml\?"):
        find_recipe("recipe.yml")


def test_mutated_recipes_are_read_or_refused_with_a_sentence():
    """A slice of `tests/campaigns/recipes.py`."""
    counts, failures = campaign.run(count=150, seed=7)
    assert not failures, failures[0]
    assert counts.total() == 150
    assert counts["read"] > 2
    assert counts["refused"] > 50


def test_many_faults_are_cut_short(tmp_path):
    said = refusal(tmp_path, MINIMAL + "training:\n" + "".join(f"  key{i}: 1\n" for i in range(3000)))
    assert len(said.splitlines()) == 51
    assert said.endswith("and 2950 more errors")
