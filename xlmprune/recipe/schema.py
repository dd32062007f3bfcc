"""The recipe as strict models: every key with its type, range, default, and a sentence that explains it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from xlmprune.recipe.registry import FORMS, IMPORTANCES, TRACKERS, USUAL_FORMS
from xlmprune.recipe.yaml_text import dump_yaml

STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

Effect = Literal["training", "measuring", "export", "conditions", "running"]
"""What a key changes; `effects` explains the words. Keys change training unless they, or their section, declare another."""


def _changes(effect: Effect) -> ConfigDict:
    return ConfigDict(json_schema_extra={"effect": effect})


CONDITIONS = Field(json_schema_extra={"effect": "conditions"})
RUNNING = Field(json_schema_extra={"effect": "running"})
MEASURING = Field(json_schema_extra={"effect": "measuring"})
EXPORT = Field(json_schema_extra={"effect": "export"})


class Named(BaseModel):
    """A part of a recipe that has a name. The name alone is enough: `criterion: magnitude`."""

    name: str

    @model_validator(mode="before")
    @classmethod
    def _accept_bare_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Component(Named):
    """An entry of one of the registry's tables, with its parameters next to the name."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @property
    def parameters(self) -> dict[str, Any]:
        """The keys beside the name."""
        return dict(self.model_extra or {})


TASK_TEXT = ("task", "task_with_translations")
"""Names for the task's own unlabelled text."""


class VocabularyRecipe(BaseModel):
    """Keep only the rows of the embedding table that the served languages use."""

    model_config = STRICT

    keep_languages_of: Literal["task", "task_with_translations"] | None = None
    """`task`: count pieces in the task's own text of every language it reports. Test text is never counted. On the hub,
    `task_with_translations` includes machine translations of the training set. The report marks both."""
    files: list[str] | None = None
    """Text files to count pieces in, one sentence per line. `{language}` is replaced by every measured language, which needs
    text of its own, and with `task.languages: all` by every other language that has such a file."""
    min_count: Annotated[int, Field(ge=1)] = 2
    """Drop pieces seen fewer than this many times. Single characters of the served scripts always stay."""
    max_size: Annotated[int, Field(ge=100)] | None = None
    """Keep at most this many pieces, the most frequent first."""

    @model_validator(mode="after")
    def _needs_text(self) -> VocabularyRecipe:
        if self.keep_languages_of is None and not self.files:
            raise ValueError("needs text to count pieces in: `keep_languages_of: task` or `files: […]`")
        return self


class ModelRecipe(Named):
    """The pretrained model to start from."""

    model_config = STRICT

    name: Annotated[str, Field(min_length=1)] = "FacebookAI/xlm-roberta-base"
    """A model of the hub, a local folder, or `quickstart`."""
    revision: str | None = None
    """A commit, tag or branch of the hub, to pin the model. A run fills it in."""
    vocabulary: Literal["keep"] | VocabularyRecipe = "keep"
    """`keep` every piece of the vocabulary, or trim it to the pieces that occur in text of your languages."""

    @property
    def trimmed(self) -> VocabularyRecipe | None:
        """How the vocabulary is trimmed; None where it is kept."""
        return None if self.vocabulary == "keep" else self.vocabulary

    @property
    def vocabulary_patterns(self) -> list[str]:
        """Files that the vocabulary is counted in and whose language is known; one without `{language}` may hold any."""
        files = self.trimmed and self.trimmed.files
        return [pattern for pattern in files or () if "{language}" in pattern]


CALIBRATION = "export.calibration"
VOCABULARY_FILES = "model.vocabulary.files"


class NamedText(NamedTuple):
    """Text without labels, and the key of the recipe that names it."""

    key: str
    pattern: str
    """Files with ``{language}`` in the name, or `task` for the task's own text."""


READ_FROM: Mapping[str, Collection[str]] = {
    "hub": ("revision",),
    "xglue": ("path",),
    "files": (
        *("path", "columns", "format", "delimiter", "quoting", "header"),
        *("train_split", "dev_split", "test_split"),
    ),
}
"""Keys of `task` that say where and how data are read, by the source that they are for."""


def unread_keys(task: Mapping[str, Any]) -> list[str]:
    """Return the keys of the section `task` that say how to read data, but not from where it comes."""
    fields = TaskRecipe.model_fields
    source = task.get("source", fields["source"].default)
    own = READ_FROM.get(source, ()) if isinstance(source, str) else ()
    others = dict.fromkeys(key for keys in READ_FROM.values() for key in keys if key not in own)
    if task.get("name") == "quickstart":  # it brings its data
        others = dict.fromkeys(("source", *others, *own, "labels"))
    return [key for key in others if task.get(key) not in (None, fields[key].default)]


class TaskRecipe(Named):
    """What the model learns, the files it learns from, and the languages it is measured in."""

    model_config = STRICT

    name: str
    """Name of the task; docs/methods.md lists them."""
    source: Literal["hub", "xglue", "files"] = "hub"
    """Where the data comes from: the hub, the official XGLUE folder, or your own files."""
    path: Annotated[str | None, RUNNING] = None
    """For `xglue`, the official folder. For `files`, a pattern with `{language}` and `{split}`. It is relative to the
    recipe's file; `~` is your home folder."""
    revision: str | None = None
    """A commit, tag or branch of the hub, to pin the data set. A run fills it in."""
    train_language: str = "en"
    """The language of the training examples. All choices are made on its dev set."""
    languages: Literal["all"] | list[str] = "all"
    """The languages to measure, or `all` that have test data. The train language is always measured."""
    max_train_examples: Annotated[int, Field(ge=1)] | None = None
    """Train on a sample of at most this many examples. The sample keeps the proportions of the labels and is the same in
    every run. The report says that the run was scaled down."""
    max_test_examples: Annotated[int, Field(ge=1)] | None = None
    """Measure on a sample of at most this many examples of each language and of dev. From files that are translations of one
    another, the same rows are taken. The report says that the run was scaled down."""
    labels: list[str] | None = None
    """Label names in the order of the model's outputs. By default the task's labels, or the sorted labels of the training
    file."""
    columns: dict[str, str | int] | None = None
    """Which column holds which part of an example, by name or by position from 0. Tables have the parts `first`, `second`,
    `label`, `group` and `language`; token files have `words` and `tags`. Names of nested JSON keys have dots. With
    `language`, one file may hold several languages."""
    format: Literal["tsv", "csv", "jsonl", "tokens"] | None = None
    """File format. By default it follows from the file's name and the task."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """The character between the columns of a table, such as `;`. By default a tab in TSV files and a comma in CSV files."""
    quoting: bool | None = None
    """Whether quotation marks enclose the fields of a table. By default they do in CSV files, and in TSV files only if all
    fields have them."""
    header: bool | None = None
    """Whether a table or token file begins with a line of column names. By default that line decides, if it is clear."""
    train_split: str = "train"
    """Replaces `{split}` in the path of the training file."""
    dev_split: str = "dev"
    """Replaces `{split}` in the path of the dev file."""
    test_split: Annotated[str, MEASURING] = "test"
    """Replaces `{split}` in the path of the test files."""
    metric: str | None = None
    """The metric to report first, for tasks that have several."""
    title: Annotated[str | None, Field(min_length=1, max_length=200), EXPORT] = None
    """What your data are called, in a few words, for the model card. By default the name of the task."""
    licence: Annotated[str | None, Field(min_length=1, max_length=200), EXPORT] = None
    """Licence of your data, for the model card. By default that of the source, which is unknown for your own files."""

    @field_validator("languages", mode="before")
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        return split_at_commas(value) if value != "all" else value

    @field_validator("labels", mode="before")
    @classmethod
    def _numbers_are_names(cls, value: Any) -> Any:
        """Accept `[0, 1]`, but not `true`, which files may spell in another way."""
        if not isinstance(value, list):
            return value
        return [str(name) if isinstance(name, int) and not isinstance(name, bool) else name for name in value]

    @field_validator("labels")
    @classmethod
    def _differ(cls, labels: list[str] | None) -> list[str] | None:
        if labels is None:
            return None
        if any(name != name.strip() or not name for name in labels):
            raise ValueError("a label is empty or has spaces around it; files are read without such spaces")
        if any("\n" in name or "\r" in name for name in labels):
            raise ValueError("a label has a line break; write it in one line")
        if twice := [name for name, count in Counter(labels).items() if count > 1]:
            raise ValueError(f"label {twice[0]!r} is listed twice")
        if len(labels) < 2:
            raise ValueError("at least two labels are needed; leave `labels` out to take the training file's")
        return labels

    @model_validator(mode="after")
    def _needs_path(self) -> TaskRecipe:
        if self.source != "hub" and self.path is None and self.name != "quickstart":
            wanted = {"xglue": "the official folder", "files": "a pattern with {language} and {split}"}
            raise ValueError(f"source {self.source!r} needs `path`: {wanted[self.source]}")
        if unread := unread_keys(vars(self)):
            keys = " and ".join(f"`{key}`" for key in unread)
            verb, them = ("is", "it") if len(unread) == 1 else ("are", "them")
            if self.name == "quickstart":
                raise ValueError(
                    f"{keys} {verb} not read with the task quickstart, which brings its own data. For yours, write "
                    "`name: classification` and `source: files`, or start with xlmprune init"
                )
            inherited = "" if "split" in unread[0] else f" (`{unread[0]}: null` where a base sets it)"
            raise ValueError(
                f"{keys} {verb} not read with `source: {self.source}`. Write `source: files` for your own files, "
                f"{'`source: xglue` for the official folder, ' if 'path' in unread else ''}or leave {them} out{inherited}"
            )
        if self.languages != "all" and not self.languages:
            raise ValueError("`languages` is empty; list at least one, or write `all`")
        return self


if TYPE_CHECKING:
    FormName = str
    ImportanceName = str
    TrackerName = str
else:
    FormName = Literal[tuple(FORMS)]
    ImportanceName = Literal[tuple(IMPORTANCES)]
    TrackerName = Literal[tuple(TRACKERS)]


class TrainingRecipe(BaseModel):
    """How the network is trained within a stage."""

    model_config = STRICT

    epochs_per_stage: Annotated[float, Field(ge=0, le=1_000_000)] = 15
    """Passes over the training set in each stage; fractions are allowed. 0: prune without training afterwards."""
    dense_epochs: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """Passes in stage 0, before any pruning. By default `epochs_per_stage`; required if that is 0."""
    last_epochs: Annotated[float, Field(ge=0, le=1_000_000)] | None = None
    """Passes in the last pruning stage, whose weights are exported. By default `epochs_per_stage`."""
    max_updates_per_stage: Annotated[int, Field(ge=1)] | None = None
    """End a stage after this many updates, for a scaled-down run. The report says so."""
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 32
    """Examples in one update."""
    gradient_accumulation: Annotated[int, Field(ge=1, le=1_000_000), CONDITIONS] = 1
    """Split each batch into this many micro-batches, to save memory; the gradient equals that of the whole batch,
    except for rounding and dropout's random numbers. Several processes share the micro-batches."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-6
    """Learning rate at the start of every stage. The default is the paper's, for millions of updates."""
    dense_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of stage 0. By default `learning_rate`."""
    lr_schedule: Literal["linear", "constant"] = "linear"
    """`linear`: the learning rate falls to zero within every stage. `constant`: it stays."""
    warmup_updates: Annotated[int, Field(ge=0)] = 0
    """Updates at the start of every stage in which the learning rate rises from zero; at most a tenth of the stage."""
    dense_warmup_updates: Annotated[int, Field(ge=0)] | None = None
    """The same in stage 0. By default `warmup_updates`."""
    max_length: Annotated[int, Field(ge=8, le=1_000_000)] = 256
    """Maximum tokens of an example, including special tokens. Longer examples are cut, and the report counts them."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay on weight matrices; never on biases, LayerNorm and embeddings."""
    gradient_clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Scale the gradient down to this norm if it is larger; `null` does not scale it."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`auto`: bf16 where the device computes it quickly, else fp32. Weights, optimizer and measurements are always fp32."""
    compile: Annotated[bool, CONDITIONS] = False
    """Compile the encoder's layers with `torch.compile` for training updates. The first updates take minutes, and it needs a
    C++ compiler, and triton on a GPU. Alone it makes no run faster where it was measured; with `cuda_graphs` it can. The
    result equals that without it except for rounding, but dropout draws other random numbers."""
    cuda_graphs: Annotated[bool, CONDITIONS] = False
    """Record the forward and backward pass as CUDA graphs, one for each shape of a batch. On a fast GPU an update takes a
    third of the time. Batches are padded to a multiple of 8 tokens, and each shape needs memory for gradients of its own. A
    run on the CPU or in several processes is refused."""
    fast_dropout: Annotated[bool, CONDITIONS] = False
    """On a CPU, draw 16 random bits for each number that dropout may drop, in place of PyTorch's float. An update takes 4 to
    10 % less time. The chance of a drop is the same to 1/65,536, but other numbers are dropped. A GPU is not affected."""
    frozen_weights: Annotated[Literal["fp32", "bf16", "cpu"], CONDITIONS] = "fp32"
    """How to keep the weights that do not train: the teacher's, the pretrained ones and those of stage 0, which
    regularizers, `eq6` and the report compare with. `fp32`: on the device. `bf16`: there too, rounded, in half of the
    memory. `cpu`: in the CPU's memory; results stay the same. With `bf16` and `cpu` they are copied, in fp32, whenever they
    are used, so updates take longer. A teacher is used twice in each micro-batch if there is unlabelled text."""
    gradient_checkpointing: Annotated[bool, RUNNING] = False
    """Keep only the inputs of each encoder layer for the backward pass, and compute the rest again. An update needs less
    memory and about a quarter more time. Results stay the same."""
    deterministic: bool = False
    """Repeat every result bit by bit on a GPU too, with PyTorch's deterministic algorithms, which are slower. A CPU repeats
    results in any case. Do not change this key when a run resumes."""
    regularize_dense: bool = False
    """Apply the regularizer in stage 0 too. By default it acts from the first pruning on, so that all methods prune the same
    dense model and can share it. The report says which."""
    freeze_embeddings: bool = False
    """Do not train the embeddings: the table, positions, token types and their LayerNorm. This saves memory, and languages
    without training text keep their embeddings."""
    keep: Literal["best", "last"] = "best"
    """Which weights to keep at the end of a stage. `best`: the epoch with the best English dev score, and the last one if
    several are equal. `last`: the last epoch. With `pruning.structure.smallest`, the mean score of the largest and the
    smallest size decides."""
    checkpoint_minutes: Annotated[float, Field(gt=0), RUNNING] = 10
    """Minutes between checkpoints within a stage. A checkpoint is also saved at the end of every stage."""
    report_to: Annotated[list[TrackerName], RUNNING] = []
    """Send losses and scores to these trackers too, each through its own package: `tensorboard`, `mlflow`, `wandb`. The run
    folder's `events.jsonl` has every value anyway."""


class ReconstructRecipe(BaseModel):
    """Refit the remaining weights by least squares on unlabelled text, so that the layers' outputs change least."""

    model_config = STRICT

    texts: Annotated[int, Field(ge=1)] = 3000
    """Total number of texts to measure activations on, drawn evenly over the languages."""
    ridge: Annotated[float, Field(ge=1e-5, le=1)] = 0.01
    """How strongly the weights are kept at their old values, relative to the mean square of an input. Use more for few
    texts."""
    correct_drift: bool = False
    """For single weights: then refit the output projections again, layer by layer, so that each makes up for what the layers
    before it have strayed by. The refit after structures always does this."""


Share = Annotated[float, Field(gt=0, le=1)]

UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}


class BudgetRecipe(BaseModel):
    """Limits for the served model. Give at least one of `latency_ms`, `speedup` and `bytes`; the model meets all of them."""

    model_config = STRICT

    latency_ms: Annotated[float, Field(gt=0)] | None = None
    """Maximum latency of one call of the ONNX file, in milliseconds."""
    speedup: Annotated[float, Field(gt=0)] | None = None
    """Minimum speedup over the dense fp32 ONNX file of the whole model."""
    bytes: Annotated[int, Field(ge=1)] | None = None
    """Maximum size of the ONNX file without packing, in bytes or with a unit, such as `10.5 MB`. Weights that `schedule`
    prunes later still count."""
    batch: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Texts in a call, for `latency_ms` and `speedup`."""
    tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 64
    """Tokens of each text in a call."""
    threads: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Threads of ONNX Runtime."""
    form: FormName = "int8"
    """The ONNX form that is measured."""
    table: Annotated[str | None, RUNNING] = None
    """A file that `xlmprune bench --latency-table` wrote on the machine you serve from. It is relative to the recipe's file.
    By default this machine is measured before training begins, which takes a minute or two."""

    @field_validator("bytes", mode="before")
    @classmethod
    def _read_unit(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmg]?b)\s*", value.lower())
        if found is None:
            raise ValueError(
                f"{value!r}: expected a number of bytes, or a size such as 10.5 MB (B, kB, MB, GB)"
            )
        count = float(found[1]) * UNITS[found[2]]
        return int(count) if math.isfinite(count) else count

    @model_validator(mode="after")
    def _limits_something(self) -> BudgetRecipe:
        if self.latency_ms is None and self.speedup is None and self.bytes is None:
            raise ValueError("nothing is limited; give `latency_ms`, `speedup` or `bytes`")
        return self


class StructureRecipe(BaseModel):
    """Remove whole layers, attention heads and FFN neurons, so that the model is faster in every runtime."""

    model_config = STRICT

    layers: Annotated[int, Field(ge=1)] | Annotated[list[int], Field(min_length=1)] | None = None
    """Layers to keep: how many, evenly spaced from the first, or a list of them, from 0. By default all."""
    heads: Share = 1.0
    """Share of the attention heads to keep in the layers that remain; at least one of a layer stays."""
    neurons: Share = 1.0
    """Share of the FFN neurons to keep in the layers that remain."""
    budget: BudgetRecipe | None = None
    """Limits for latency, speed and size, in place of `layers`, `heads` and `neurons`. xlmprune then chooses these before
    training: it prefers layers to width, and heads and neurons count equally."""
    multiple: Annotated[int, Field(ge=1)] = 32
    """The number of neurons that a layer keeps is a multiple of this, because kernels are slow at odd widths."""
    importance: ImportanceName = "fisher"
    """How heads and neurons are ranked. `fisher`: squared gradients of gates on unlabelled text, without labels. `gradient`
    and `taylor`: gradients of gates on English training text with its labels. `magnitude`: the weights alone. `obs`: what
    least squares on unlabelled text cannot compensate for. `criterion`: the scores of `pruning.criterion`, summed over the
    weights that a head or neuron owns."""
    scope: Literal["layer", "global"] = "layer"
    """`layer` keeps the same share of every layer. `global` ranks all layers together, so that widths differ."""
    rounds: Annotated[int, Field(ge=1, le=100)] = 1
    """Number of pruning stages. Each removes a part of the heads and neurons, and the model trains in between."""
    languages: Annotated[list[str], Field(min_length=1)] | None = None
    """Languages whose unlabelled text is used, here and in `reconstruct`; `null` uses all languages that have text. With one
    language, the result is a model for that language."""
    smallest: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Train every size at once, from all heads and neurons that `heads` and `neurons` leave down to this share of them. Each
    smaller model is a part of the larger ones. `export.sizes` says which sizes are exported. `null` trains one size."""

    @field_validator("languages", mode="before")
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        return split_at_commas(value)

    @field_validator("layers")
    @classmethod
    def _rising(cls, value: Any) -> Any:
        if isinstance(value, list) and (min(value) < 0 or value != sorted(set(value))):
            raise ValueError(f"layers {value}: expected rising numbers from 0, each once")
        return value

    @model_validator(mode="after")
    def _removes_something(self) -> StructureRecipe:
        unchanged = self.layers is None and self.heads == self.neurons == 1
        if unchanged and self.budget is None and self.smallest is None:
            raise ValueError(
                "nothing is removed; give `layers`, `heads` or `neurons`, a `budget`, or `smallest`"
            )
        if not unchanged and self.budget is not None:
            raise ValueError(
                "`budget` chooses `layers`, `heads` and `neurons`; give either these or the budget"
            )
        return self


class PruningRecipe(BaseModel):
    """Which weights are pruned, and when."""

    model_config = STRICT

    criterion: Component = Component(name="magnitude")
    """How the importance of weights is scored; docs/methods.md lists criteria and their parameters. `sparsegpt` is the score
    of SparseGPT with one inverse for each matrix, not its choice of masks block by block during the update."""
    scope: Literal["layer", "global", "row"] | None = None
    """Rank weights within each matrix (`layer`), over all of them (`global`), or within each row of a matrix (`row`), so
    that every output keeps as many inputs as any other, or one more. By default the criterion's own choice."""
    pattern: Literal["unstructured", "2:4", "4:8", "structured"] = "unstructured"
    """`unstructured`, or at most 2 of every 4 (4 of every 8) neighbouring weights in a row. `structured`: only what
    `structure` removes, and no single weights; `schedule` is ignored."""
    structure: StructureRecipe | None = None
    """Remove layers, heads and neurons in the first pruning stages. Give `pattern` or `schedule` too, and single weights of
    what remains are pruned in the stages that follow."""
    schedule: Component = Component(name="geometric")
    """How the density falls from stage to stage; docs/methods.md lists schedules and their parameters."""
    regrow: bool = False
    """Let pruned weights return until the final phase of the schedule `continuous` (PINS, PLATON, movement)."""
    observe_regularizer: bool = False
    """Criteria that use gradients also see the gradient of the regularizer. By default they see only those of the task and
    the teacher, clipped as they would be without a regularizer."""
    reconstruct: ReconstructRecipe | None = None
    """Refit the remaining weights whenever weights are removed. The text is that of `distillation.unlabelled`, else the
    vocabulary's files with `{language}` in the name, else only English training text, which preserves only English. It
    replaces the compensation of `obert`; `null` refits nothing."""

    @model_validator(mode="before")
    @classmethod
    def _structures_alone(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("structure") and not {"schedule", "pattern"} & set(values):
            return {**values, "pattern": "structured"}
        return values

    @model_validator(mode="after")
    def _needs_structure(self) -> PruningRecipe:
        if self.pattern == "structured" and self.structure is None:
            raise ValueError(
                "pattern structured needs `structure`, such as structure: {layers: 6, heads: 0.5}"
            )
        return self


class DistillationRecipe(BaseModel):
    """What the student learns from a teacher, and how much."""

    model_config = STRICT

    teacher: Literal["finetuned", "best_so_far", "best_at_current_sparsity"] = "finetuned"
    """`finetuned`: the dense network, in every stage. `best_so_far` (PINS): the weights with the best English dev score so
    far. `best_at_current_sparsity`: the same, but the search starts again whenever the density has fallen by `density_step`,
    because a sparser network seldom beats a denser one."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Softens the outputs of teacher and student; a higher value gives more weight to the labels that were not chosen."""
    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the teacher's answers in the loss on labelled text. The label has the rest."""
    hidden: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the distance between hidden states, summed over layers; 0 skips them and costs nothing."""
    confidence: bool = False
    """For each example, the student's own certainty sets the weights of teacher and label (PINS). It replaces `weight`."""
    unlabelled: str | None = None
    """Text files, one sentence per line, with `{language}` in the name, or `task` for the task's own text, or
    `task_with_translations` to include machine translations of the training set (hub). The student also learns the
    teacher's answers on them. Text like that which the model will read helps most. Measured languages without a file are
    skipped. With `task.languages: all`, files of other languages are read too, and the report says that nothing measures
    these languages. Texts of the test sets and of English dev are left out, even if their spaces, case or punctuation
    differ."""
    languages: Annotated[list[str], Field(min_length=1)] | None = None
    """Languages whose unlabelled text is read, measured or not; `null` reads all that have text. The report marks them as
    `seen_unlabelled`."""
    max_texts: Annotated[int, Field(ge=1)] | None = None
    """Read a sample of this many texts of each language, the same in every run; `null` reads all."""
    unlabelled_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the loss on unlabelled text, which is added to the loss on labelled text."""
    ask_every: Annotated[int, Field(ge=1)] | None = None
    """Number of updates between two measurements on English dev (PINS: 50). A student with the best score so far becomes the
    teacher at once. `null` measures at the end of each stage."""
    dense_defends: bool = True
    """The student must beat the dense network's own dev score to become the teacher. With `false`, as in PINS's code, the
    first student that is measured becomes the teacher."""
    density_step: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """For `best_at_current_sparsity`: how far the density must fall before the search starts again."""

    @property
    def teaches_on_unlabelled(self) -> bool:
        """Whether the student learns from unlabelled text."""
        return self.unlabelled is not None and self.unlabelled_weight > 0

    @property
    def teaches(self) -> bool:
        """Whether any part of the loss comes from the teacher."""
        return self.teaches_on_unlabelled or self.confidence or self.weight > 0 or self.hidden > 0

    @field_validator("languages", mode="before")
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        return split_at_commas(value)

    @field_validator("confidence")
    @classmethod
    def _replaces_weight(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("weight", 0.5) != 0.5:
            raise ValueError("`confidence` replaces `weight`; give one of them")
        return value

    @field_validator("unlabelled")
    @classmethod
    def _per_language(cls, value: str | None) -> str | None:
        if value is not None and value not in TASK_TEXT and "{language}" not in value:
            raise ValueError(
                f"{value!r} does not contain {{language}}; expected `task`, or a pattern such as text/{{language}}.txt"
            )
        return value

    @field_validator("languages", "max_texts")
    @classmethod
    def _of_unlabelled(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("unlabelled") is None:
            raise ValueError("there is no unlabelled text to choose from; give distillation.unlabelled")
        return value


class EvaluationRecipe(BaseModel):
    """How languages are measured."""

    model_config = STRICT | _changes("measuring")

    batch_size: Annotated[int, Field(ge=1, le=1_000_000), EXPORT] = 64
    """Examples in a forward pass. It changes speed and memory, and scores of INT8 by some tenths of a point, since a batch
    shares the scales of its activations; other scores stay."""
    max_stage_examples: Annotated[int, Field(ge=1)] | None = None
    """Test examples of each language in the curve over stages. Dense, pruned and ONNX models are measured on all."""
    stage_precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the scores after the stages between the dense and the last one. `bf16` is faster on devices that compute
    it quickly, and a score may differ by some tenths of a point. All other scores are of fp32."""
    stage_interval: Annotated[int, Field(ge=1)] = 1
    """Measure all languages once per this many pruning stages, and always after the dense stage and after the last stage."""
    sample_errors: Annotated[int, Field(ge=0, le=100), EXPORT] = 3
    """Number of errors of each language that the report shows with their texts. They are errors that pruning introduced.
    With 0 the report has no texts; `golden.safetensors` still has two texts of each language."""


class FloorRecipe(BaseModel):
    """How many points an exported form may lose against the pruned PyTorch model; a form that loses more is not shipped."""

    model_config = STRICT | _changes("export")

    zero_shot_drop: Annotated[float, Field(ge=0)] | None = None
    """Largest loss of the mean over the zero-shot languages, or of the train language if there are none."""
    worst_language_drop: Annotated[float, Field(ge=0)] | None = None
    """Largest loss of any language, the train language included."""
    on: Literal["test", "dev", "unlabelled"] = "test"
    """What a loss is measured on. `test`: scores on the test sets. The shipped files are then chosen on test scores. `dev`:
    the score on dev of the train language only. `unlabelled`: the percent of texts whose label changes, in every language
    with text for `calibration`, else for the teacher or the vocabulary; no test text is read. The report says which."""

    @property
    def limits(self) -> bool:
        """Whether anything is limited."""
        return self.zero_shot_drop is not None or self.worst_language_drop is not None


Embeddings = Literal["int8", "int4"]


class ExportRecipe(BaseModel):
    """Which files the bundle holds."""

    model_config = STRICT | _changes("export")

    safetensors: Literal["sparse", "dense"] = "sparse"
    """`sparse`: a bitmask and the remaining values of every pruned matrix. `dense`: every value."""
    onnx: list[FormName] = list(USUAL_FORMS)
    """ONNX forms to write. With an empty list, only the weights are written, as in the runs of a comparison."""
    onnx_layout: Literal["packed", "dense"] = "packed"
    """`packed`: a smaller file that rebuilds its matrices when it is opened. `dense`: ordinary matrices."""
    embeddings: Embeddings = "int8"
    """Word embeddings of the INT8 form: eight bits per value, or four bits with a scale for every 32 values."""
    opset: Annotated[int, Field(ge=18, le=25)] | Literal["auto"] = 20
    """Version of the ONNX operators. Use a lower one for an older runtime. `auto` measures versions 20 and 23 on this
    machine and uses the faster one."""
    floor: FloorRecipe = FloorRecipe()
    """How many points an exported form may lose."""
    calibration: str | None = None
    """Unlabelled text in the served languages to calibrate INT8: files with `{language}` in the name, or `task` for the
    task's own text. By default the text that the recipe names for distillation, else the vocabulary's files with
    `{language}` in the name, else only English training text."""
    triton: bool = True
    """Write a model repository for NVIDIA Triton."""
    sizes: Annotated[list[Share], Field(min_length=1)] | None = None
    """Sizes to export of a model that was trained with `pruning.structure.smallest`, from large to small, such as
    `[1, 0.5, 0.25]`. `bundle/` has the first size, and `bundle-0.5/` has size 0.5. `null` exports the largest and the
    smallest."""

    @field_validator("calibration")
    @classmethod
    def _per_language(cls, value: str | None) -> str | None:
        if value is not None and value != "task" and "{language}" not in value:
            raise ValueError(
                f"{value!r} does not contain {{language}}; expected `task`, or a pattern such as text/{{language}}.txt"
            )
        return value

    @field_validator("onnx", mode="before")
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        return split_at_commas(value)

    @field_validator("sizes")
    @classmethod
    def _falling(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and value != sorted(set(value), reverse=True):
            raise ValueError(f"sizes {value}: expected falling numbers, each once")
        return value

    @model_validator(mode="after")
    def _once_each(self) -> ExportRecipe:
        if len(set(self.onnx)) != len(self.onnx):
            raise ValueError("`onnx` lists a form twice")
        return self


def sha256_of(values: Mapping[str, Any]) -> str:
    """Hash the plain values of a resolved recipe."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Recipe(BaseModel):
    """Everything a run needs; the resolved recipe alone repeats it."""

    model_config = STRICT

    base: Annotated[str | None, Field(exclude=True)] = None
    """Another recipe to start from: a file, relative to this one, or the name of a shipped recipe. Keys given here replace
    the base's keys. A section that has another `name` than in the base replaces the base's whole section."""
    method: Annotated[str | None, Field(exclude=True)] = None
    """A pruning method by name: its criterion, scope and regularizer, and for a published training scheme its schedule,
    learning rate and teacher. It replaces these keys of the base. Keys given in this recipe override the method. See
    docs/methods.md."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=200), EXPORT]
    """Name of the run, in letters, digits and `_.-`. By default the file's name."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
    """Seed for all random numbers."""
    model: ModelRecipe = ModelRecipe()
    """The pretrained model to start from."""
    task: TaskRecipe
    """What the model learns and where it is measured."""
    training: TrainingRecipe = TrainingRecipe()
    """How the network is trained."""
    pruning: PruningRecipe = PruningRecipe()
    """Which weights are pruned, and when."""
    regularizer: Component = Component(name="cosine")
    """What keeps pruned weights close to the pretrained ones; docs/methods.md lists regularizers and their parameters."""
    distillation: DistillationRecipe | None = None
    """Learn from a teacher too; `null` learns only from labels."""
    evaluation: EvaluationRecipe = EvaluationRecipe()
    """How languages are measured."""
    export: ExportRecipe = ExportRecipe()
    """Which files the bundle holds."""

    @property
    def sizes(self) -> tuple[float, ...]:
        """The sizes that are exported, the largest first; none where one size is trained."""
        smallest = None if self.pruning.structure is None else self.pruning.structure.smallest
        return () if smallest is None else tuple(self.export.sizes or (1.0, smallest))

    @property
    def unlabelled_text(self) -> NamedText | None:
        """The text that the recipe names for calibration, else for the teacher, else for the vocabulary."""
        named = [NamedText(CALIBRATION, self.export.calibration)] if self.export.calibration else []
        if self.distillation is not None and self.distillation.unlabelled is not None:
            named.append(NamedText("distillation.unlabelled", self.distillation.unlabelled))
        named += [NamedText(VOCABULARY_FILES, pattern) for pattern in self.model.vocabulary_patterns]
        return named[0] if named else None

    def resolved(self) -> dict[str, Any]:
        """Return plain values with every default filled in."""
        return self.model_dump(mode="json")

    def sha256(self) -> str:
        """Hash the resolved recipe; equal recipes have equal hashes."""
        return sha256_of(self.resolved())

    def to_yaml(self) -> str:
        """Write the resolved recipe as YAML, which `load` reads back to an equal one."""
        return dump_yaml(self.resolved())

    def components(self) -> Iterator[tuple[str, str, Component]]:
        """Yield (table, path in the recipe, component) of every named component."""
        yield "criterion", "pruning.criterion", self.pruning.criterion
        yield "schedule", "pruning.schedule", self.pruning.schedule
        yield "regularizer", "regularizer", self.regularizer


def split_at_commas(value: Any) -> Any:
    """Read `en, de` as the list `[en, de]`."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value
