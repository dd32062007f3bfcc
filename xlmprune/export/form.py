"""A form: one ONNX file of the model, in one number format. One class a file; `recipe/registry.py` lists them.

Whatever needs to know about forms (recipe, bundle, report, model card, `verify`, `bench`) asks here. Importing this
module and the forms is quick and needs numpy and onnxruntime only, since servers do it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xlmprune._version import __version__
from xlmprune.core.errors import BundleError
from xlmprune.export import runtime
from xlmprune.recipe import registry

if TYPE_CHECKING:
    import onnx
    import onnxruntime
    from tokenizers import Tokenizer
    from torch import nn

    from xlmprune.recipe.schema import Embeddings
    from xlmprune.training.outcome import Datasets


@dataclass(frozen=True)
class Tolerance:
    """How far logits may be from those they are compared with."""

    difference: float
    """Largest difference, as a share of the range of the logits."""
    agreement: float
    """Least share of equal labels."""


@dataclass(frozen=True)
class TextSource:
    """Where texts without labels are read."""

    pattern: str | None
    """Files with ``{language}`` in the name, or `task` for the task's own text; None for none."""
    languages: Sequence[str] | None
    """None for every language."""
    key: str = ""
    """The recipe's key that names them."""


@dataclass(frozen=True)
class Material:
    """What a form is made from and chosen by, beside the graph. No form reads the texts of a test set."""

    data: Datasets
    tokenizer: Tokenizer
    source: TextSource
    embeddings: Embeddings
    """Bits of word embeddings, for a form that quantizes them."""
    batch_size: int
    """Texts in a call."""
    folder: Path
    """Where temporary files go."""


@dataclass(frozen=True)
class Written:
    """A form's file as it was written."""

    dense_bytes: int
    """Bytes of the weights in this form, without packing."""
    reference_bytes: int
    """The same in the form that others are compared with."""
    packed: bool = False
    """Whether the file holds matrices as a mask and their non-zeros."""
    choice: dict[str, Any] = field(default_factory=dict)
    """How the form was chosen among several ways to make it, for the report; empty where there is one way."""


class Form(ABC):
    """One number format of the exported model, and the file that holds it."""

    name: ClassVar[str]
    """In recipes, on the command line, and behind ``onnx_`` in the report's keys."""
    file: ClassVar[str]
    """In the bundle."""
    title: ClassVar[str]
    """For people: a column's heading in a report."""
    tolerance: ClassVar[Tolerance]
    """Between the stored logits of this form and those of another machine."""
    parity: ClassVar[Tolerance | None]
    """Between this form and the PyTorch model, beyond which a run fails; None where the report's scores must tell."""
    calibrated: ClassVar[bool] = False
    """Whether making it reads unlabelled text."""
    serving_rank: ClassVar[int]
    """Of the shipped forms, the one of the lowest rank serves; see `form_to_serve`."""

    @property
    def key(self) -> str:
        """In report.json."""
        return f"onnx_{self.name}"

    @abstractmethod
    def convert(self, graph: onnx.ModelProto, material: Material) -> tuple[onnx.ModelProto, dict[str, Any]]:
        """Make this form of the dense fp32 graph, which is left as it is; and say how it was chosen."""

    def sample(self, graph: onnx.ModelProto, embeddings: Embeddings) -> onnx.ModelProto:
        """Make this form of a graph whose weights have no meaning, to learn its bytes and its speed.

        Forms that read text override it.
        """
        nothing: Any = None
        return self.convert(graph, nothing)[0]

    @abstractmethod
    def bytes_of(self, entries: int, matrix: bool) -> int:
        """Return the bytes of a parameter's values in this form; of a ``matrix`` or of a vector."""

    def write(
        self,
        graph: onnx.ModelProto,
        path: Path,
        material: Material,
        model: nn.Module,
        packed: bool,
        properties: Mapping[str, str],
    ) -> Written:
        """Convert the graph and write it to ``path``.

        Args:
            graph: dense fp32, from `graph.export_onnx`; it is left as it is.
            model: whose parameters are counted.
            packed: pruned matrices become a mask and their non-zeros.
            properties: facts to put into the file, for whoever meets it without its bundle.
        """
        from onnx.helper import set_model_props

        from xlmprune.export.graph import lowest_ir_version, save_onnx, weight_bytes, with_graph
        from xlmprune.export.packing import is_packed, pack

        proto, choice = self.convert(graph, material)
        dense_bytes = weight_bytes(proto) + self.merged_bytes(model, graph)
        proto = pack(proto) if packed else with_graph(proto)
        known = {entry.key: entry.value for entry in proto.metadata_props}
        ours = {"xlmprune_version": __version__, "form": self.name, **properties}
        set_model_props(proto, known | ours)
        proto.ir_version = lowest_ir_version(proto)
        save_onnx(proto, path)
        reference_bytes = weight_bytes(graph) + reference().merged_bytes(model, graph)
        return Written(dense_bytes, reference_bytes, is_packed(proto), choice)

    def merged_bytes(self, model: nn.Module, graph: onnx.ModelProto) -> int:
        """Count parameters that the graph does not hold: of several that are equal the exporter keeps one."""
        from xlmprune.export.graph import parameter_of

        held = {parameter_of(tensor.name) for tensor in graph.graph.initializer}
        absent = [parameter for name, parameter in model.named_parameters() if name not in held]
        return sum(self.bytes_of(parameter.numel(), parameter.ndim > 1) for parameter in absent)

    def open(self, path: Path, threads: int = 0) -> onnxruntime.InferenceSession:
        """Open this form's file."""
        return runtime.open_session(path, threads)


@cache
def all_forms() -> dict[str, Form]:
    """Every form by name, the one that others are compared with first."""
    return {name: registry.load("form", name)() for name in registry.FORMS}


def reference() -> Form:
    """Return the form that is nearest to the PyTorch model; sizes and speeds are compared with its dense file."""
    return next(iter(all_forms().values()))


def form_named(name: str) -> Form:
    """Return the form ``name``.

    Raises:
        BundleError: there is none of that name.
    """
    forms = all_forms()
    if name not in forms:
        raise BundleError(f"no form is called {name!r}; {registry.nearest(name, list(forms))}")
    return forms[name]


DENSE_MODEL = "dense fp32"
"""What reports and `bench` call the whole model before structures were removed, among the files that are timed."""


def form_to_serve(names: Iterable[str]) -> str:
    """Return the name of the form that serves best, of those given: INT8 where it is there; empty without any.

    `predict`, the model card and the Triton repository all take this form.
    """
    return min(names, key=lambda name: form_named(name).serving_rank, default="")


def forms_in(folder: Path) -> dict[str, Path]:
    """Return the file of every form that ``folder`` holds, by name."""
    return {name: folder / form.file for name, form in all_forms().items() if (folder / form.file).is_file()}


def expected_files() -> str:
    """Name the files a bundle may hold, for messages."""
    *first, last = (form.file for form in all_forms().values())
    return f"{', '.join(first)} or {last}"
