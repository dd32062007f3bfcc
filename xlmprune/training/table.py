"""Train only the rows of the word embeddings that training reads.

Of a vocabulary of 250,000 pieces, English training text uses some thousands. The other rows never get a gradient, but
their zeros are filled, clipped, and walked through by the optimizer at every update. `CompactTable` gives the model a
table of the rows that occur. The result is the same bit for bit: a row without a gradient does not change, since the
embeddings have no weight decay. Whoever needs the whole table calls `expand`, which writes the trained rows back.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xlmprune.data.encoding import Encoded


class CompactTable:
    """The word embeddings of a model in two forms: all rows, or those that training reads.

    Args:
        model: with trainable word embeddings; it keeps all rows until `shrink`.
        rows: int64, ascending, the rows that occur.
    """

    def __init__(self, model: Any, rows: Tensor) -> None:
        self.model, self.rows = model, rows
        self.whole: nn.Embedding = model.get_input_embeddings()
        self.compact = _Rows(self.whole, rows)
        self.whole.weight.requires_grad_(False)

    @torch.no_grad()
    def shrink(self) -> None:
        """Let the model read the compact table."""
        if self.model.get_input_embeddings() is not self.compact:
            self.compact.weight.copy_(self.whole.weight[self.rows])
            self.model.set_input_embeddings(self.compact)

    @torch.no_grad()
    def expand(self) -> None:
        """Write the trained rows back, and let the model read all rows."""
        if self.model.get_input_embeddings() is not self.whole:
            self.whole.weight.index_copy_(0, self.rows, self.compact.weight)
            self.model.set_input_embeddings(self.whole)


class _Rows(nn.Embedding):
    """Some rows of a table, looked up by the ids of the whole one; another id is an error."""

    index: Tensor

    def __init__(self, whole: nn.Embedding, rows: Tensor) -> None:
        index = torch.full((whole.num_embeddings,), len(rows), dtype=torch.int64, device=rows.device)
        index[rows] = torch.arange(len(rows), device=rows.device)
        padding = None if whole.padding_idx is None else int(index[whole.padding_idx])
        super().__init__(len(rows), whole.embedding_dim, padding, _weight=whole.weight.detach()[rows].clone())
        self.register_buffer("index", index, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Look up ids of the whole table."""
        return super().forward(self.index[input])


def compact_table(model: Any, texts: Iterable[Encoded]) -> CompactTable | None:
    """Return a compact table of the rows that occur in ``texts``; None where the word embeddings are not trained."""
    table: nn.Embedding = model.get_input_embeddings()
    if not table.weight.requires_grad:
        return None
    parts = [np.unique(np.concatenate(text.input_ids)) for text in texts if len(text)]
    special = [text.special for text in texts]
    ids = {
        entry
        for tokens in special
        for entry in (tokens.pad, tokens.unknown, tokens.separator)
        if entry is not None
    }
    if table.padding_idx is not None:
        ids.add(table.padding_idx)
    rows = np.unique(np.concatenate([*parts, np.array(sorted(ids), dtype=np.int64)]))
    return CompactTable(model, torch.from_numpy(rows).to(table.weight.device))
