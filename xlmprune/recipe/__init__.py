"""Recipe: load YAML, apply overrides, validate, write back what was resolved.

A recipe is data. Nothing in it is imported or executed; names are looked up in the tables of `registry`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from xlmprune.core.errors import RecipeError
from xlmprune.recipe import registry

STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

Fraction = Annotated[float, Field(ge=0, le=1)]


class Component(BaseModel):
    """A named entry of one of the registry's tables, with its parameters beside the name."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @model_validator(mode="before")
    @classmethod
    def _accept_bare_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def parameters(self) -> dict[str, Any]:
        """What stands beside the name."""
        return dict(self.model_extra or {})


class VocabularyRecipe(BaseModel):
    """Keep only the embedding rows that the served languages use."""

    model_config = STRICT

    keep_languages_of: Literal["task"] | None = None
    """`task`: count pieces in the task's own text of every language it reports (never its test text)."""
    files: list[str] | None = None
    """Text files, one sentence a line; `{language}` is filled in with every language of the task."""
    min_count: Annotated[int, Field(ge=1)] = 2
    """A piece met fewer times than this goes, unless it is a single character of a served script."""
    max_size: Annotated[int, Field(ge=100)] | None = None
    """At most this many pieces, the most frequent first."""

    @model_validator(mode="after")
    def _needs_text(self) -> VocabularyRecipe:
        if self.keep_languages_of is None and not self.files:
            raise ValueError("needs `keep_languages_of: task` or `files: […]`, text to count pieces in")
        return self


class ModelRecipe(BaseModel):
    """Which pretrained model to start from."""

    model_config = STRICT

    name: str = "FacebookAI/xlm-roberta-base"
    """Hub id, local folder, or `quickstart`."""
    revision: str | None = None
    """A commit of the hub, to pin it."""
    vocabulary: Literal["keep"] | VocabularyRecipe = "keep"


class TaskRecipe(BaseModel):
    """What is learnt, from which files, and in which languages it is measured."""

    model_config = STRICT

    name: str
    source: Literal["hub", "xglue", "files"] = "hub"
    path: str | None = None
    """For `xglue` the official folder; for `files` a pattern with `{language}` and `{split}`; `~` is your home folder."""
    train_language: str = "en"
    languages: Literal["all"] | list[str] = "all"
    max_train_examples: Annotated[int, Field(ge=1)] | None = None
    max_test_examples: Annotated[int, Field(ge=1)] | None = None
    labels: list[str] | None = None
    """Label names in the order of the model's outputs; otherwise the task's own, or the training file's, sorted."""
    columns: dict[str, str | int] | None = None
    """Where the parts of an example stand in a table: `first`, `second`, `label`, `group`; names or positions from 0.
    In a token file: `words`, `tags`."""
    format: Literal["tsv", "csv", "jsonl", "tokens"] | None = None
    """File format; otherwise told from the file's name and the task."""
    header: bool | None = None
    """Whether a table or token file opens with a line of column names; otherwise told from that line, where it is clear."""
    train_split: str = "train"
    dev_split: str = "dev"
    test_split: str = "test"
    metric: str | None = None
    """The metric to report first, where a task has several."""

    @field_validator("labels", mode="before")
    @classmethod
    def _numbers_are_names(cls, value: Any) -> Any:
        """`[0, 1]` are names too; `true` is none, since a file may spell it otherwise."""
        if not isinstance(value, list):
            return value
        return [str(name) if isinstance(name, int) and not isinstance(name, bool) else name for name in value]

    @field_validator("labels")
    @classmethod
    def _differ(cls, labels: list[str] | None) -> list[str] | None:
        if labels is None:
            return None
        if any(name != name.strip() or not name for name in labels):
            raise ValueError("a label is empty, or has spaces around it, which files are read without")
        if twice := [name for name, count in Counter(labels).items() if count > 1]:
            raise ValueError(f"label {twice[0]!r} is listed twice")
        if len(labels) < 2:
            raise ValueError("at least two labels are needed; leave `labels` out to take the training file's")
        return labels

    @model_validator(mode="after")
    def _needs_path(self) -> TaskRecipe:
        if self.source != "hub" and self.path is None and self.name != "quickstart":
            what = (
                "the official folder" if self.source == "xglue" else "a pattern with {language} and {split}"
            )
            raise ValueError(f"source {self.source!r} needs `path`: {what}")
        if self.languages != "all" and not self.languages:
            raise ValueError("`languages` is empty; list at least one, or write `all`")
        return self


class TrainingRecipe(BaseModel):
    """How the network is trained within a stage. Learning rate decays linearly to zero in every stage."""

    model_config = STRICT

    epochs_per_stage: Annotated[float, Field(gt=0)] = 15
    """Passes over the training set in each stage; a fraction is a part of a pass."""
    dense_epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes in stage 0, before any pruning; otherwise `epochs_per_stage`."""
    max_updates_per_stage: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 32
    gradient_accumulation: Annotated[int, Field(ge=1)] = 1
    """Split each batch into this many micro-batches, to save memory; the result is that of the whole batch."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-6
    dense_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of stage 0; otherwise `learning_rate`."""
    lr_schedule: Literal["linear", "constant"] = "linear"
    warmup_updates: Annotated[int, Field(ge=0)] = 0
    max_length: Annotated[int, Field(ge=8)] = 256
    """Tokens of an example, special ones included; what is longer is cut and counted in the report."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """On weight matrices; never on biases, LayerNorm and embeddings."""
    gradient_clip: Annotated[float, Field(gt=0)] | None = 1.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16 where the device computes it quickly, else fp32. Weights, optimizer and every measurement are fp32."""
    regularize_dense: bool = True
    """Apply the regularizer in stage 0 too. False gives every method the same dense model, so that they can share it."""
    freeze_embeddings: bool = False
    keep: Literal["best", "last"] = "best"
    """At the end of a stage: the weights of the epoch with the best English dev score, or the last."""
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 10
    """How often a long stage is saved in its middle; every stage is saved at its end."""


class PruningRecipe(BaseModel):
    """Which weights go, and when."""

    model_config = STRICT

    criterion: Component = Component(name="magnitude")
    scope: Literal["layer", "global"] | None = None
    """Rank within each matrix, or over all of them; otherwise the criterion's own (`layer` for most)."""
    pattern: Literal["unstructured", "2:4", "4:8"] = "unstructured"
    schedule: Component = Component(name="geometric")


class FloorRecipe(BaseModel):
    """How many points an exported form may lose against the pruned PyTorch model before it is not shipped."""

    model_config = STRICT

    zero_shot_drop: Annotated[float, Field(ge=0)] | None = None
    """Of the mean over the zero-shot languages; of the train language where there is no other."""
    worst_language_drop: Annotated[float, Field(ge=0)] | None = None
    """Of any language, the train language included."""


if TYPE_CHECKING:
    FormName = str
else:
    FormName = Literal[tuple(registry.FORMS)]


class ExportRecipe(BaseModel):
    """Which files the bundle holds."""

    model_config = STRICT

    safetensors: Literal["sparse", "dense"] = "sparse"
    onnx: list[FormName] = list(registry.USUAL_FORMS)
    """Empty: weights only, as for the runs of a comparison."""
    onnx_layout: Literal["packed", "dense"] = "packed"
    embeddings: Literal["int8", "int4"] = "int8"
    """Word embeddings of the INT8 form: eight bits a value, or four with a scale for every 32."""
    opset: Annotated[int, Field(ge=18, le=25)] = 20
    floor: FloorRecipe = FloorRecipe()
    triton: bool = True

    @model_validator(mode="after")
    def _once_each(self) -> ExportRecipe:
        if len(set(self.onnx)) != len(self.onnx):
            raise ValueError("`onnx` lists a form twice")
        return self


class EvaluationRecipe(BaseModel):
    """How languages are measured."""

    model_config = STRICT

    batch_size: Annotated[int, Field(ge=1)] = 64
    max_stage_examples: Annotated[int, Field(ge=1)] | None = None
    """Test examples a language in the curve over stages; dense, pruned and ONNX are always measured on all."""
    stage_interval: Annotated[int, Field(ge=1)] = 1
    """Languages are measured after every so many pruning stages, and always after the dense and the last one."""


class Recipe(BaseModel):
    """Everything a run needs; the resolved recipe alone repeats it."""

    model_config = STRICT

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
    model: ModelRecipe = ModelRecipe()
    task: TaskRecipe
    training: TrainingRecipe = TrainingRecipe()
    pruning: PruningRecipe = PruningRecipe()
    regularizer: Component = Component(name="cosine")
    distillation: Any = None
    evaluation: EvaluationRecipe = EvaluationRecipe()
    export: ExportRecipe = ExportRecipe()

    def resolved(self) -> dict[str, Any]:
        """Plain values, every default filled in."""
        return self.model_dump(mode="json")

    def sha256(self) -> str:
        """Identity of the resolved recipe."""
        text = json.dumps(self.resolved(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_yaml(self) -> str:
        """The resolved recipe as YAML, which `load` reads back to an equal one."""
        return yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True)

    def components(self) -> Iterator[tuple[str, str, Component]]:
        """(table, path in the recipe, component) of every named part."""
        yield "criterion", "pruning.criterion", self.pruning.criterion
        yield "schedule", "pruning.schedule", self.pruning.schedule
        yield "regularizer", "regularizer", self.regularizer


class _RecipeLoader(yaml.SafeLoader):
    """YAML 1.2's booleans and numbers: `no` is Norwegian, `3e-5` is a number; a key given twice is an error."""


def _narrow(loader: type[yaml.SafeLoader]) -> None:
    """Replace YAML 1.1's booleans, numbers and dates, which read `no` as false, `3e-5` as text and `2:4` as 124."""
    replaced = [f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "timestamp")]
    loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in replaced]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    decimal = r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?"
    exponent = r"[-+]?[0-9]+[eE][-+]?[0-9]+"
    loader.add_implicit_resolver(
        "tag:yaml.org,2002:int",
        re.compile("^(?:[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+)$"),
        list("-+0123456789"),
    )
    loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(f"^(?:{decimal}|{exponent}|[-+]?\\.inf|\\.nan)$"),
        list("-+0123456789."),
    )
    loader.add_implicit_resolver(
        "tag:yaml.org,2002:bool", re.compile("^(?:true|false)$", re.IGNORECASE), list("tTfF")
    )


_narrow(_RecipeLoader)

KeyPath = tuple[str | int, ...]


def _construct(
    node: yaml.Node, loader: _RecipeLoader, path: KeyPath, lines: dict[KeyPath, int], origin: str
) -> Any:
    """Plain values of a node; the line of every key goes into ``lines``."""
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise RecipeError(f"{origin}, line {line}: a key must be a word")
            if key in result:
                raise RecipeError(f"{origin}, line {line}: {key!r} is given twice")
            lines[(*path, key)] = line
            result[key] = _construct(value_node, loader, (*path, key), lines, origin)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_construct(child, loader, (*path, i), lines, origin) for i, child in enumerate(node.value)]
    try:
        return loader.construct_object(node)
    except yaml.YAMLError as error:
        raise RecipeError(f"{origin}, line {node.start_mark.line + 1}: {error}") from None


def parse_yaml(text: str, origin: str) -> tuple[Any, dict[KeyPath, int]]:
    """Values of a YAML text and the line on which each key stands.

    Raises:
        RecipeError: not YAML, or a key twice; names ``origin`` and the line.
    """
    lines: dict[KeyPath, int] = {}
    try:
        loader = _RecipeLoader(text)
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=_RecipeLoader)):
            raise RecipeError(
                f"{origin}: anchors and aliases (&, *) are not read in recipes; write the values out"
            )
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        hint = BRACE_HINT if any(BRACE.search(line) for line in _around(text, mark)) else ""
        raise RecipeError(
            f"{origin}{where}: not valid YAML: {getattr(error, 'problem', error)}{hint}"
        ) from None
    if node is None:
        return None, lines
    try:
        return _construct(node, loader, (), lines, origin), lines
    except ValueError as error:  # `!!int abc`
        raise RecipeError(f"{origin}: not valid YAML: {error}") from None


BRACE = re.compile(r"(?:^|[:\[,-]\s+|\[)\{\w+\}")
"""A value that opens as `{language}.{split}.tsv` does, which YAML takes for a mapping."""

BRACE_HINT = (
    """; a value that opens with { needs quotes: path: "{language}.{split}.tsv", """
    """or in a shell --set 'task.path="{language}.{split}.tsv"'"""
)


def _around(text: str, mark: yaml.Mark | None) -> list[str]:
    """The line a fault was met in and the one before it, where the fault may lie."""
    return text.splitlines()[max(0, mark.line - 1) : mark.line + 1] if mark else []


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[KeyPath, str]:
    """Put each ``a.b=value`` into ``values``; returns which option set which path, for messages."""
    given: dict[KeyPath, str] = {}
    for override in overrides:
        dotted, equals, text = override.partition("=")
        path = tuple(part.strip() for part in dotted.split("."))
        if not equals or not all(path):
            raise RecipeError(f"--set {override}: expected key=value, such as training.batch_size=16")
        value, _ = parse_yaml(text, f"--set {override}")
        inside = values
        for depth, part in enumerate(path[:-1]):
            below = inside.get(part)
            dotted_so_far = ".".join(path[: depth + 1])
            if dotted_so_far in _DEFAULT_COMPONENTS:
                below = {"name": _DEFAULT_COMPONENTS[dotted_so_far]} if below is None else below
                below = {"name": below} if isinstance(below, str) else below
            if below is None:
                below = {}
            if not isinstance(below, dict):
                raise RecipeError(
                    f"--set {override}: {'.'.join(path[: depth + 1])} is {below!r}, with nothing inside"
                )
            inside[part] = below
            inside = below
        inside[path[-1]] = value
        given[path] = override
    return given


_DEFAULT_COMPONENTS = {
    "pruning.criterion": "magnitude",
    "pruning.schedule": "geometric",
    "regularizer": "cosine",
}


def shipped() -> dict[str, Path]:
    """Name and file of every recipe that comes with the package."""
    here = Path(__file__).parents[1]
    folder = here / "recipes" if (here / "recipes").is_dir() else here.parent / "recipes"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def find(name: str) -> Path:
    """The file of a recipe given as a path or as the name of a shipped one.

    Raises:
        RecipeError: neither; names the nearest shipped recipe.
    """
    file = Path(name)
    if file.is_file():
        return file
    known = shipped()
    # `recipes/quickstart.yaml` is typed from the README also where there is no checkout.
    if name in known or (file.stem in known and file.parent == Path("recipes")):
        return known[file.stem]
    if file.is_dir():
        raise RecipeError(f"{name} is a folder; give a recipe file, or one of: {', '.join(known)}")
    raise RecipeError(
        f"no recipe at {name}, and none shipped is called so; {registry.nearest(file.stem, list(known))}"
    )


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        name: a file, or the name of a shipped recipe.
        overrides: ``a.b=value`` each, checked like the file.

    Raises:
        RecipeError: every fault found, one a line, each with its place, what was found and what is allowed.
    """
    file = find(name)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file}: not UTF-8 text (byte {error.start})") from None
    values, lines = parse_yaml(text, str(file))
    if not isinstance(values, dict):
        raise RecipeError(f"{file}: expected keys such as `task:`, found {type(values).__name__}")
    values.setdefault("name", re.sub(r"[^A-Za-z0-9_.-]+", "_", file.stem).lstrip("_.-") or "recipe")
    return validate(values, str(file), lines, apply_overrides(values, overrides))


def validate(
    values: dict[str, Any],
    origin: str,
    lines: dict[KeyPath, int] | None = None,
    given: dict[KeyPath, str] | None = None,
) -> Recipe:
    """A `Recipe` from plain values; names of components and their parameters are checked too."""
    where = _Where(origin, lines or {}, given or {})
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(error, Recipe, where))) from None
    faults: list[str] = []
    for table, dotted, component in recipe.components():
        path = tuple(dotted.split("."))
        try:
            kind = registry.load(table, component.name)
            TypeAdapter(kind).validate_python(component.parameters)
        except RecipeError as error:
            faults.append(f"{where(path)}: {error}")
        except ValidationError as error:
            faults.extend(_explain(error, kind, where, path))
    if recipe.distillation is not None:
        faults.extend(_distillation_faults(recipe.distillation, where))
    try:
        registry.load("task", recipe.task.name)
    except RecipeError as error:
        faults.append(f"{where(('task', 'name'))}: {error}")
    if not faults:
        faults.extend(f"{where(path)}: {fault}" for path, fault in _conflicts(recipe))
    if faults:
        raise RecipeError("\n".join(faults))
    return recipe


def validate_task(values: Any, origin: str, given: dict[KeyPath, str]) -> TaskRecipe:
    """The section `task` alone.

    Args:
        given: what `apply_overrides` returned.

    Raises:
        RecipeError: as `validate` has it.
    """
    try:
        return TaskRecipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(
            "\n".join(_explain(error, TaskRecipe, _Where(origin, {}, given), ("task",)))
        ) from None


def _distillation_faults(values: Any, where: _Where) -> list[str]:
    from xlmprune.training.distillation import Distillation

    try:
        TypeAdapter(Distillation).validate_python(values)
    except ValidationError as error:
        return _explain(error, Distillation, where, ("distillation",))
    return []


def build(recipe: Recipe, table: str) -> Any:
    """The component of ``table`` that the recipe names, built from its parameters."""
    for name, _, component in recipe.components():
        if name == table:
            return TypeAdapter(registry.load(table, component.name)).validate_python(component.parameters)
    raise KeyError(table)


def build_distillation(recipe: Recipe) -> Any:
    """The recipe's `Distillation`, or None."""
    if recipe.distillation is None:
        return None
    from xlmprune.training.distillation import Distillation

    return TypeAdapter(Distillation).validate_python(recipe.distillation)


def _conflicts(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    """Combinations of keys, each valid alone, that cannot work together."""
    densities = build(recipe, "schedule").densities()
    if recipe.pruning.pattern != "unstructured":
        keep, of = map(int, recipe.pruning.pattern.split(":"))
        if recipe.pruning.scope == "global":
            yield (
                ("pruning", "scope"),
                f"pattern {recipe.pruning.pattern} keeps {keep} of every {of} in each row: scope must be layer",
            )
        if densities and densities[-1] > keep / of:
            yield (
                ("pruning", "schedule"),
                f"pattern {recipe.pruning.pattern} ends at density {keep / of}, the schedule at {densities[-1]:.4g}",
            )
    if recipe.training.gradient_accumulation > recipe.training.batch_size:
        yield ("training", "gradient_accumulation"), "more micro-batches than examples in a batch"
    teacher = (
        recipe.distillation.get("teacher", "finetuned")
        if isinstance(recipe.distillation, dict)
        else "finetuned"
    )
    if teacher != "finetuned" and recipe.training.keep == "last":
        yield (
            ("distillation", "teacher"),
            f"{teacher} is judged on dev examples, and training.keep: last reads none",
        )
    if isinstance(recipe.task.languages, list) and len(set(recipe.task.languages)) != len(
        recipe.task.languages
    ):
        yield ("task", "languages"), "a language is listed twice"


@dataclasses.dataclass
class _Where:
    """Says where in the user's input a path of the recipe stands."""

    origin: str
    lines: dict[KeyPath, int]
    given: dict[KeyPath, str]

    def __call__(self, path: KeyPath) -> str:
        for given, override in self.given.items():
            if path and (given[: len(path)] == path or path[: len(given)] == given):
                return f"--set {override}"
        for end in range(len(path), -1, -1):
            if path[:end] in self.lines:
                return f"{self.origin}, line {self.lines[path[:end]]}"
        return self.origin


def _explain(error: ValidationError, model: Any, where: _Where, prefix: KeyPath = ()) -> list[str]:
    """One sentence for each fault that pydantic found."""
    sentences: dict[str, None] = {}
    for fault in error.errors():
        loc: KeyPath = tuple(fault["loc"])
        path = (*prefix, *(part for part in loc if not _is_union_tag(part)))
        if (
            fault["type"] == "literal_error"
            and loc[-1] == "literal['keep']"
            and isinstance(fault["input"], dict)
        ):
            continue  # `vocabulary` was given as a mapping; what is wrong inside it is said by the other faults
        dotted = ".".join(map(str, path))
        place = where(path)
        if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            known = _fields_at(model, tuple(part for part in loc[:-1] if not _is_union_tag(part)))
            sentences[f"{place}: unknown key {dotted!r}; {registry.nearest(str(path[-1]), known)}"] = None
        elif fault["type"] in ("missing", "missing_argument"):
            sentences[f"{place}: {dotted!r} is missing"] = None
        else:
            found = "" if isinstance(fault["input"], dict | None) else f", found {fault['input']!r}"
            message = fault["msg"].removeprefix("Value error, ")
            message = message[0].lower() + message[1:] if not message.startswith("`") else message
            if fault["type"] == "string_type" and isinstance(fault["input"], dict):
                message += BRACE_HINT
            sentences[f"{place}: {dotted}: {message}{found}" if dotted else f"{place}: {message}"] = None
    return list(sentences)


_UNION_TAGS = (
    "literal['keep']",
    "VocabularyRecipe",
    "literal['all']",
    "list[str]",
    "literal['task']",
    "str",
    "int",
)


def _is_union_tag(part: str | int) -> bool:
    """Whether pydantic put this into a path to say which alternative of a union it tried."""
    return part in _UNION_TAGS or str(part).startswith("function-after[")


def _fields_at(model: Any, path: KeyPath) -> list[str]:
    """Names of the keys allowed at ``path`` inside a pydantic model or dataclass."""
    for part in path:
        if isinstance(part, int):
            continue
        annotation = _annotations(model).get(part)
        model = next((m for m in _alternatives(annotation) if _annotations(m)), None)
    return list(_annotations(model))


def _annotations(model: Any) -> dict[str, Any]:
    if hasattr(model, "model_fields"):
        return {name: field.annotation for name, field in model.model_fields.items()}
    if dataclasses.is_dataclass(model):
        return {field.name: field.type for field in dataclasses.fields(model)}
    return {}


def _alternatives(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, UnionType):
        return list(get_args(annotation))
    return [annotation]


def json_schema() -> dict[str, Any]:
    """A JSON Schema (2020-12) of recipes, parameters of every component included."""
    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    definitions = schema["$defs"]
    definitions.pop("Component")
    for table in ("criterion", "schedule", "regularizer"):
        choices: list[dict[str, Any]] = []
        for name in registry.TABLES[table]:
            choice = TypeAdapter(registry.load(table, name)).json_schema()
            definitions.update(choice.pop("$defs", {}))
            choice["properties"] = {"name": {"const": name}, **choice.get("properties", {})}
            choice["required"] = ["name", *choice.get("required", [])]
            choice["additionalProperties"] = False
            choices.append(choice)
        bare = {"enum": list(registry.TABLES[table])}
        definitions[f"{table.capitalize()}"] = {"anyOf": [bare, *choices]}
    for owner, key in (
        (definitions["PruningRecipe"], "criterion"),
        (definitions["PruningRecipe"], "schedule"),
    ):
        owner["properties"][key] = {"$ref": f"#/$defs/{key.capitalize()}"}
    schema["properties"]["regularizer"] = {"$ref": "#/$defs/Regularizer"}
    definitions["TaskRecipe"]["properties"]["name"] = {"enum": list(registry.TASKS)}
    from xlmprune.training.distillation import Distillation

    distillation = TypeAdapter(Distillation).json_schema()
    definitions.update(distillation.pop("$defs", {}))
    schema["properties"]["distillation"] = {"anyOf": [distillation, {"type": "null"}], "default": None}
    schema["required"] = [key for key in schema["required"] if key != "name"]
    return schema
