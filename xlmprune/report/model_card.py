"""README.md of a bundle: what the model is, what it does in every language, its limits, how to serve it.

The code in it is complete: run inside the bundle's folder with onnxruntime, tokenizers and numpy installed, it prints
labels.
"""

from __future__ import annotations

from typing import Any

from xlmprune.core.formatting import plain
from xlmprune.core.languages import language_name
from xlmprune.export.runtime import OLDEST_RUNTIME
from xlmprune.report.findings import HUB_IDS, Report, describe_read_text, served_form, train_language
from xlmprune.report.method import describe_method, lost_weights, packed_files
from xlmprune.report.tables import file_table, language_table
from xlmprune.report.templating import sections, squeeze, template_environment

PIPELINE_TAGS = {
    "text": "text-classification",
    "pair": "text-classification",
    "tokens": "token-classification",
}

LICENCE_IDS = {"mit", "apache-2.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"}
"""Licences that the hub knows under their own lower-case names; others are ``other`` there, and named in the text."""

TEXTS = {"quickstart": '["turn on the kitchen light", "schalte das Licht in der Küche ein"]'}
ANY_TEXTS = '["Where can I see the stars tonight?", "Wo kann ich heute Nacht die Sterne sehen?"]'
"""What the serving code asks about: by task, and for every other."""

UNKNOWN = "unknown; ask the publisher before you ship"


def render(report: Report) -> str:
    """Render the model card of a report; without the key ``task`` it has no section on serving.

    Args:
        report: as `report.render_markdown` takes it.
    """
    report = plain(report)
    task, model = report.get("task", {}), report.get("model", {})
    train, served = train_language(report), served_form(report)
    base = model.get("name") or report.get("recipe", {}).get("model", {}).get("name")
    names = sections(report) | {
        "metadata": metadata(report),
        "tables": [table for table in (language_table(report), file_table(report)) if table is not None],
        "base": HUB_IDS.get(base, base),
        "revision": model.get("revision"),
        "train_name": language_name(train) if train else None,
        "task": task,
        "read_text": describe_read_text(report),
        "method": describe_method(report),
        "has_zeros": lost_weights(report),
        "packed": packed_files(report),
        "max_length": model.get("max_length"),
        "served": "" if served is None else served.file,
        "opset": report.get("opset"),
        "oldest_runtime": OLDEST_RUNTIME.get(report.get("opset", 0)),
        "texts": TEXTS.get(task.get("name", ""), ANY_TEXTS),
        "model_licence": model.get("licence") or UNKNOWN,
        "data_licence": task.get("licence") or UNKNOWN,
        "version": report.get("environment", {}).get("xlmprune"),
    }
    return squeeze(template_environment(autoescape=False).get_template("model_card.md.j2").render(**names))


def metadata(report: Report) -> str:
    """Return the YAML that model hubs read, between the two lines of dashes: languages, licence, scores per language."""
    from huggingface_hub import EvalResult, ModelCardData

    task, model, name = report.get("task", {}), report.get("model", {}), report.get("name", "xlmprune run")
    tag = PIPELINE_TAGS.get(task.get("kind", ""))
    licence = (model.get("licence") or "").lower()
    served = served_form(report)
    results = [
        EvalResult(
            task_type=tag or "other",
            dataset_type=task.get("name", "other"),
            dataset_name=task.get("title") or task.get("name", "other"),
            dataset_config=code,
            dataset_split="test",
            metric_type=entry.get("metric", "score"),
            metric_value=round(value, 2),
        )
        for code, entry in report.get("languages", {}).items()
        if (value := entry.get(served.key if served else "pruned", entry.get("pruned"))) is not None
    ]
    card: dict[str, Any] = {
        "language": list(
            dict.fromkeys(code.split("-")[0].split("_")[0] for code in report.get("languages", {}))
        ),
        "license": licence if licence in LICENCE_IDS else "other",
        "library_name": "onnx" if served else "transformers",
        "pipeline_tag": tag,
        "tags": [*filter(None, [model.get("type")]), "pruned", "cross-lingual"],
        "base_model": _hub_id(model.get("name")),
    }
    if results:
        card |= {"model_name": name, "eval_results": results}
    return ModelCardData(**{key: value for key, value in card.items() if value}).to_yaml()


def _hub_id(name: str | None) -> str | None:
    """``owner/name`` as it is; a local folder or the quickstart's model is no id of a hub."""
    name = HUB_IDS.get(name or "", name)
    return name if name and name.count("/") == 1 and not name.startswith((".", "/")) else None
