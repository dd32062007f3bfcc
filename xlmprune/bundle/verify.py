"""Is this bundle what was measured, and does it say the same on this machine? Hashes, structure, stored answers.

Every check is a name, whether it passed, and a sentence. A damaged file fails its checks; it does not stop the others.
PyTorch is not needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xlmprune.bundle import golden
from xlmprune.bundle.session import Bundle
from xlmprune.core.errors import BundleError, MachineError, XlmpruneError, first_line
from xlmprune.core.files import REPORT_FILE, SAFETENSORS_FILE, sha256_of
from xlmprune.core.tables import rich_table, tabulate
from xlmprune.data.encoding import encode, pad
from xlmprune.export import manifest
from xlmprune.export.form import all_forms, expected_files, form_named
from xlmprune.export.runtime import INPUTS, forward_of, open_session
from xlmprune.export.sparse import read_config
from xlmprune.export.triton import MODEL_FILE

if TYPE_CHECKING:
    import onnx

SLOWEST_PACKED = 1.5
"""Times the latency of the dense graph that a packed one may take. They are the same once loaded; a runtime that rebuilds
the matrices at every call takes about 200 times as long."""

ROUNDS = 7
"""Calls of each graph, of which the fastest counts."""


@dataclass(frozen=True)
class Check:
    """One question about a bundle, answered."""

    name: str
    passed: bool
    detail: str
    warning: bool = False
    """Passed, yet something should be known: it was slow here, or could not be compared on this machine."""


def verify(bundle: str | Path, threads: int = 0) -> list[Check]:
    """Check everything a bundle holds.

    Raises:
        BundleError: there is no such folder. Anything else is a check that did not pass.
    """
    path = Path(bundle)
    if not path.is_dir():
        raise BundleError(f"{path}: no such folder; expected a bundle written by xlmprune")
    return list(_checks(path, threads))


def _checks(path: Path, threads: int) -> Iterator[Check]:
    yield from _guarded(manifest.FILE, partial(_check_files, path))
    yield from _guarded("provenance", partial(_check_provenance, path))
    yield _attempt("weights", partial(_check_weights, path))
    try:
        opened = Bundle(path, threads, verify=False)  # the files were checked above
    except Exception as error:
        yield Check("config.json", False, _sentence(error))
        return
    yield _attempt("tokenizer", partial(_check_tokenizer, opened))
    if not opened.forms:
        yield _attempt("forms", partial(_check_without_forms, path))
    yield from _guarded("forms", partial(_check_measured_forms, opened))
    for form in opened.forms:
        file = form_named(form).file
        yield _attempt(f"{file}: graph", partial(_check_graph, opened, form))
        yield _attempt(f"{file}: golden logits", partial(_check_golden, opened, form))
        yield from _guarded(f"{file}: packed", partial(_check_packed, opened, form))
    yield from _guarded("triton", partial(_check_triton, opened))


def _attempt(name: str, question: Callable[[], str]) -> Check:
    """Ask ``question``: the sentence it returns is a pass, and whatever it raises is not.

    A machine that lacks something says nothing of the bundle: that is a pass with a warning.
    """
    try:
        return Check(name, True, question())
    except _Slow as warning:
        return Check(name, True, str(warning), warning=True)
    except MachineError as error:
        return Check(name, True, f"was not checked on this machine: {error}", warning=True)
    except Exception as error:
        return Check(name, False, _sentence(error))


def _guarded(name: str, checks: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """Yield ``checks``; where they break off, a last one of that name says why."""
    try:
        yield from checks()
    except Exception as error:
        yield Check(name, False, _sentence(error))


class _Slow(Exception):
    """What runs is right, and slower than it should be."""


def _sentence(error: Exception) -> str:
    """Say what a check raised. Damage takes more forms than readers foresee, and none of them may hide the other checks."""
    if isinstance(error, XlmpruneError):
        return str(error)
    return (
        f"could not be checked ({type(error).__name__}: {first_line(error)}); it may be damaged or unreadable"
    )


def _check_files(path: Path) -> Iterator[Check]:
    for found in manifest.check(path):
        yield Check(found.file, found.passed, found.detail)


def _check_provenance(path: Path) -> Iterator[Check]:
    """Check that manifest, report and weights name one recipe, and that the report's environment is the manifest's.

    Nothing protects the manifest itself; whoever edits it has to edit them all.
    """
    from xlmprune.export.sparse import read_facts

    try:
        sealed = manifest.read(path)
    except BundleError as error:
        raise BundleError("was not checked, since the manifest cannot be read") from error
    named = {SAFETENSORS_FILE: read_facts(path / SAFETENSORS_FILE).get("recipe_sha256")}
    if (path / REPORT_FILE).is_file():
        report = manifest.read_json(path / REPORT_FILE)
        named[REPORT_FILE] = report.get("recipe_sha256")
        environment = {name: str(fact) for name, fact in report.get("environment", {}).items()}
        changed = sorted(name for name, fact in environment.items() if sealed["versions"].get(name) != fact)
        changed += sorted(sealed["versions"].keys() - environment.keys())
        detail = f"{manifest.FILE} and report.json disagree on {', '.join(changed)}"
        yield Check("versions", not changed, detail if changed else f"{len(environment)} as in report.json")
        yield from _check_labels(path, report.get("task", {}).get("labels"))
    others = [file for file, found in named.items() if found not in (None, sealed["recipe_sha256"])]
    detail = f"{manifest.FILE} names another recipe than {', '.join(others)}"
    yield Check("recipe", not others, detail if others else f"SHA-256 {sealed['recipe_sha256'][:12]}…")


def _check_labels(path: Path, reported: list[str] | None) -> Iterator[Check]:
    """Check that the labels stand in the order of the report; with others, or another order, every answer would be wrong."""
    found = read_config(path).get("xlmprune", {}).get("labels")
    if reported is not None:
        detail = f"config.json names {found}, and report.json {reported}"
        yield Check(
            "labels", found == reported, detail if found != reported else f"{len(reported)} as in report.json"
        )


def _check_weights(path: Path) -> str:
    """Every mask of the sparse file can be read and marks as many weights as there are values."""
    from safetensors import safe_open

    from xlmprune.export.sparse import MASK, decode_mask, read_facts

    file = path / SAFETENSORS_FILE
    matrices = read_facts(file).get("matrices", {})
    if not matrices:
        return f"{SAFETENSORS_FILE} is dense"
    kept = total = 0
    with safe_open(file, "np") as opened:
        for name, entry in matrices.items():
            kept += int(decode_mask(file, name, entry, opened.get_tensor(name + MASK)).sum())
            total += int(np.prod(entry["shape"]))
    return f"{len(matrices)} pruned matrices, {kept / total:.2%} of their {total:,} weights remain"


def _check_without_forms(path: Path) -> str:
    """Check a bundle of weights only: it must hold whatever its manifest lists."""
    listed = {form.file for form in all_forms().values()} & set(manifest.read(path)["files"])
    if listed:
        raise BundleError(f"has no {expected_files()}, and its manifest lists {', '.join(sorted(listed))}")
    return "none was shipped: this bundle has weights for PyTorch only"


def _check_measured_forms(bundle: Bundle) -> Iterator[Check]:
    """Every form whose answers are stored must be there: without it, another form would answer in its place."""
    answered = set(golden.read(bundle.path).logits) & set(all_forms())
    for form in sorted(answered - set(bundle.forms)):
        detail = f"is missing, but {golden.FILE} has answers of it"
        yield Check(f"{form_named(form).file}: golden logits", False, detail)


def _check_tokenizer(bundle: Bundle) -> str:
    pieces, rows = bundle.tokenizer.get_vocab_size(), bundle.config.get("vocab_size")
    if not isinstance(rows, int):
        raise BundleError(f"config.json: vocab_size is {rows!r}, expected the number of the model's rows")
    if pieces > rows:
        raise BundleError(
            f"the tokenizer has {pieces:,} pieces and the model rows for {rows:,}; they belong to different models"
        )
    return f"{pieces:,} pieces{_check_numbering(bundle)}"


def _check_numbering(bundle: Bundle) -> str:
    """Check that the tokenizer gives the golden texts the token ids that the model was measured with."""
    stored = golden.read(bundle.path)
    if stored.texts is None:
        return f"; {golden.FILE} has no texts, so the token ids were not checked"
    found = pad(encode(bundle.tokenizer, stored.texts, bundle.max_length), range(len(stored.texts.first)))
    for number, ids in enumerate(stored.input_ids, 1):
        real, ours = ids[stored.attention_mask[number - 1] == 1], found["input_ids"][number - 1]
        if not np.array_equal(real, ours[found["attention_mask"][number - 1] == 1]):
            raise BundleError(
                f"gives golden text {number} other token ids than the model was measured with; it belongs to another model"
            )
    return ", token ids of the golden texts as measured"


def _check_graph(bundle: Bundle, form: str) -> str:
    """Run the ONNX checker, and look at inputs, output and operator set."""
    import onnx

    path = bundle.file(form)
    try:
        onnx.checker.check_model(path, full_check=True)
        graph = onnx.load(path, load_external_data=False)
    except Exception as error:  # the checker raises errors of several unrelated kinds
        raise BundleError(f"the ONNX checker rejects it: {first_line(error)}") from error
    opsets = {entry.domain or "ai.onnx": entry.version for entry in graph.opset_import}
    named = ", ".join(f"{domain} {version}" for domain, version in sorted(opsets.items()))
    return f"{len(graph.graph.node)} nodes, opset {named}"


def _check_golden(bundle: Bundle, form: str) -> str:
    """Compare this machine's logits with the stored ones, as far as there are tokens."""
    stored = golden.read(bundle.path)
    if form not in stored.logits:
        raise BundleError(
            f"{golden.FILE} has no logits of {form}; it has {', '.join(stored.logits) or 'none'}"
        )
    begin = time.perf_counter()
    session = bundle.session(form)
    seconds = time.perf_counter() - begin
    found = forward_of(session)(stored.input_ids, stored.attention_mask)
    return f"{compare(stored, form, found)}; loaded in {seconds:.1f} s"


def compare(stored: golden.Golden, form: str, found: np.ndarray) -> str:
    """Say how near ``found`` is to the stored logits of ``form``.

    Raises:
        BundleError: too far, or labels differ that were no near ties.
    """
    expected, tolerance = stored.logits[form], form_named(form).tolerance
    if found.shape != expected.shape:
        raise BundleError(
            f"logits have shape {list(found.shape)}; the stored logits have shape {list(expected.shape)}"
        )
    if not np.isfinite(expected).all():
        raise BundleError(f"{golden.FILE} is damaged: its logits of {form} are not finite")
    if expected.ndim == 3:  # what a tagger says of padding means nothing
        tokens = stored.attention_mask.astype(bool)
        found, expected = found[tokens], expected[tokens]
    if not np.isfinite(found).all():
        raise BundleError("logits are not finite")
    width = max(float(expected.max() - expected.min()), 1e-12)
    allowed = tolerance.difference * width
    largest = float(np.abs(found - expected).max())
    best = np.sort(expected, axis=1)[:, -2:]
    clear = (
        best[:, -1] - best[:, 0] > allowed if expected.shape[1] > 1 else np.ones(len(expected), dtype=bool)
    )
    same = (found.argmax(1) == expected.argmax(1))[clear]
    agreement = float(same.mean()) if same.size else 1.0
    share = f"{largest / width:.2%} of their range"
    sentence = f"differ by at most {largest:.2g} ({share}), {agreement:.1%} of the labels agree"
    if largest > allowed or agreement < tolerance.agreement:
        raise BundleError(
            f"{sentence}; at most {tolerance.difference:.1%} difference and at least {tolerance.agreement:.0%} agreement "
            "are allowed. The file or the runtime differs from what was measured"
        )
    return sentence


def _check_packed(bundle: Bundle, form: str) -> Iterator[Check]:
    """Compare a packed file with its dense form: the same logits, bit for bit, in about the same time."""
    from xlmprune.export.graph import load_onnx
    from xlmprune.export.packing import is_packed

    graph = load_onnx(bundle.file(form))
    try:
        bundle.session(form)
    except BundleError:
        return  # the checks before have said so
    if is_packed(graph):
        yield _attempt(
            f"{form_named(form).file}: packed equals dense", partial(_compare_packed, bundle, form, graph)
        )


def _compare_packed(bundle: Bundle, form: str, graph: onnx.ModelProto) -> str:
    from xlmprune.core.files import temporary_folder
    from xlmprune.export.graph import save_onnx
    from xlmprune.export.packing import unfolded, unpack

    stored = golden.read(bundle.path)
    feed = (stored.input_ids, stored.attention_mask)
    remaining = unfolded(bundle.file(form), dict(zip(INPUTS, feed, strict=True)))
    if remaining:
        raise BundleError(
            f"this runtime rebuilds matrices at every call ({len(remaining)} of its nodes, such as {remaining[0]}); "
            "ship the dense graph (xlmprune unpack), or use a version of ONNX Runtime that folds constants"
        )
    packed = bundle.forward(form)
    with temporary_folder() as folder:
        path = folder / "dense.onnx"
        save_onnx(unpack(graph), path)
        dense = forward_of(open_session(path, bundle.threads))
        if not np.array_equal(packed(*feed), dense(*feed)):
            raise BundleError(
                "its logits differ from those of the dense graph; ship the dense graph (xlmprune unpack)"
            )
        ratio = _time_ratio(packed, dense, feed)
    sentence = f"logits equal those of the dense graph bit for bit, latency {ratio:.2f} times that of the dense graph"
    if ratio > SLOWEST_PACKED:
        raise _Slow(
            f"{sentence}; expected at most {SLOWEST_PACKED:g} times. If a quiet machine gives the same, ship the dense "
            "graph (xlmprune unpack)"
        )
    return sentence


def _time_ratio(one: Any, other: Any, feed: tuple[np.ndarray, np.ndarray]) -> float:
    """Fastest time of ``one`` over that of ``other``, taken in turns so that a busy machine hurts both."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for forward, times in zip((one, other), seconds, strict=True):
            begin = time.perf_counter()
            forward(*feed)
            times.append(time.perf_counter() - begin)
    return min(seconds[0]) / min(seconds[1])


def _check_triton(bundle: Bundle) -> Iterator[Check]:
    """Check that the model Triton serves is one of the bundle's files."""
    folder = bundle.path / "triton"
    if not folder.is_dir():
        return
    hashes = {sha256_of(bundle.file(form)) for form in bundle.forms}
    models = sorted(model for model in folder.glob(f"*/{MODEL_FILE}") if model.is_file())
    if not models:
        yield Check("triton", False, f"the repository holds no <name>/{MODEL_FILE}")
    for model in models:
        name = model.relative_to(bundle.path).as_posix()
        same = sha256_of(model) in hashes
        config = (model.parents[1] / "config.pbtxt").is_file()
        if same and config:
            yield Check(f"{name} serves", True, "is one of the bundle's forms, with its config.pbtxt")
        else:
            yield Check(
                f"{name} serves",
                False,
                "is not one of the bundle's forms" if config else "has no config.pbtxt",
            )


def render(checks: list[Check]) -> Any:
    """Return the checks as a table for the terminal."""
    columns: dict[str, Callable[[Check], str]] = {
        "check": lambda check: check.name,
        "result": lambda check: "FAILED" if not check.passed else "warning" if check.warning else "ok",
        "detail": lambda check: check.detail,
    }
    style = lambda check: "" if check.passed else "failed"  # noqa: E731
    return rich_table(tabulate("", columns, checks, texts=3, style=style), wrap=True)
