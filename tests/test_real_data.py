"""Real sentences of every language, where they are there: each file is read, encoded and counted against its index."""

import json
from collections import Counter

import pytest
from real_data import require_data
from tiny import tiny_tokenizer

from xlmprune.data.encoding import encode, length_statistics, pad
from xlmprune.recipe import registry
from xlmprune.recipe.schema import TaskRecipe

FOLDERS = {
    "xnli": ("xnli", "{language}.{split}.tsv.gz", 15),
    "pos": ("pos", "{language}.{split}", 18),
    "ner": ("ner", "{language}.{split}", 18),
    "sib200": ("classification", "{language}.{split}.tsv", 21),
    "qam": ("qam", "{language}.{split}.tsv", 12),
}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_language_of_every_folder(folder):
    name, pattern, languages = FOLDERS[folder]
    path = require_data(folder)
    index = json.loads((path.parent / "index.json").read_text())["tasks"][folder]
    task = registry.load("task", name)(TaskRecipe(name=name, source="files", path=f"{path}/{pattern}"))
    assert len(task.languages()) == languages
    assert task.languages() == ("en", *sorted(set(index["languages"]) - {"en"}))
    assert set(index["labels"]) <= set(task.labels)
    for file, listed in index["files"].items():
        examples = task.examples(listed["language"], listed["split"])
        assert len(examples) == listed["examples"], file
        assert count(task, examples) == merged(listed["labels"]), file
        few = examples.sample(5)
        encoded = encode(tiny_tokenizer(), few, 32)
        batch = pad(encoded, range(len(few)))
        assert batch["labels"].max() < len(task.labels)
        assert length_statistics(encoded, few)["n"] == len(few)
        if task.kind == "tokens":
            assert (batch["labels"] >= 0).sum() == sum(len(words) for words in encoded.words)


def count(task, examples):
    labels = examples.labels if task.kind != "tokens" else [tag for tags in examples.labels for tag in tags]
    return merged(Counter(task.labels[label] for label in labels))


def merged(counts):
    """B- and I- of a type together, since reading may turn one into the other."""
    totals = Counter()
    for label, number in counts.items():
        totals[label[2:] if label[:2] in ("B-", "I-") else label] += number
    return totals
