"""BERT: mBERT and LaBSE with their WordPiece tokenizers, multilingual E5 small and MiniLM with XLM-R's tokenizer."""

from __future__ import annotations

from dataclasses import replace

from xlmprune.models.xlm_roberta import XLM_ROBERTA

BERT = replace(
    XLM_ROBERTA,
    model_type="bert",
    heads={
        "text": "BertForSequenceClassification",
        "pair": "BertForSequenceClassification",
        "tokens": "BertForTokenClassification",
    },
    backbone="bert",
    head_paths=("classifier", "bert.pooler"),
    positions_follow_padding=False,
    segments=True,
    licences={
        "google-bert/": "Apache-2.0",
        "sentence-transformers/LaBSE": "Apache-2.0",
        "intfloat/multilingual-e5": "MIT",
        "microsoft/Multilingual-MiniLM": "MIT",
    },
)
