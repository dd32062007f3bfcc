"""ModernBERT: mmBERT, with local attention in most layers, rotary positions and gated FFN neurons."""

from __future__ import annotations

from xlmprune.models.architecture import Architecture, Rows

MODERNBERT = Architecture(
    model_type="modernbert",
    heads={
        "text": "ModernBertForSequenceClassification",
        "pair": "ModernBertForSequenceClassification",
        "tokens": "ModernBertForTokenClassification",
    },
    backbone="model",
    roles={
        "query": Rows("attn.Wqkv", 0, 3),
        "key": Rows("attn.Wqkv", 1, 3),
        "value": Rows("attn.Wqkv", 2, 3),
        "attention_output": Rows("attn.Wo"),
        "ffn_in": Rows("mlp.Wi", 0, 2),
        "ffn_gate": Rows("mlp.Wi", 1, 2),
        "ffn_out": Rows("mlp.Wo"),
    },
    attention_norm="attn_norm",
    ffn_norm="mlp_norm",
    attention="attn",
    head_size="head_dim",
    expand=None,
    layers_path="layers",
    encoder_paths=("layers", "final_norm"),
    word_embeddings="embeddings.tok_embeddings",
    first_norm="embeddings.norm",
    norm_first=True,
    rotary=True,
    first_stays=True,  # it has no attn_norm: the norm of the embeddings stands before it
    per_layer=("layer_types",),
    head_paths=("head", "classifier"),
    licences={"jhu-clsp/mmBERT": "MIT", "answerdotai/ModernBERT": "Apache-2.0"},
)
