"""XLM-RoBERTa, the family of the paper, in its two builds: base and large, and the larger XL and XXL."""

from __future__ import annotations

from dataclasses import replace

from xlmprune.models.architecture import Architecture, Rows

XLM_ROBERTA = Architecture(
    model_type="xlm-roberta",
    heads={
        "text": "XLMRobertaForSequenceClassification",
        "pair": "XLMRobertaForSequenceClassification",
        "tokens": "XLMRobertaForTokenClassification",
    },
    backbone="roberta",
    roles={
        "query": Rows("attention.self.query"),
        "key": Rows("attention.self.key"),
        "value": Rows("attention.self.value"),
        "attention_output": Rows("attention.output.dense"),
        "ffn_in": Rows("intermediate.dense"),
        "ffn_out": Rows("output.dense"),
    },
    attention_norm="attention.output.LayerNorm",
    ffn_norm="output.LayerNorm",
    positions_follow_padding=True,
    licences={"FacebookAI/xlm-roberta": "MIT", "facebook/xlm-roberta": "MIT"},
)

XLM_ROBERTA_XL = replace(
    XLM_ROBERTA,
    model_type="xlm-roberta-xl",
    heads={
        "text": "XLMRobertaXLForSequenceClassification",
        "pair": "XLMRobertaXLForSequenceClassification",
        "tokens": "XLMRobertaXLForTokenClassification",
    },
    attention_norm="attention.self_attn_layer_norm",
    ffn_norm="LayerNorm",
    first_norm=None,
    norm_first=True,
)
