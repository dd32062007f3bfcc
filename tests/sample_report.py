"""A report as a run writes it, for tests of what people read. The figures are made up, the shapes are not."""

from __future__ import annotations

import hashlib
import random
from typing import Any

ZERO_SHOT = {
    # language: (dense accuracy, points lost at 31 % of the encoder weights)
    "de": (78.4, 1.6),
    "fr": (74.1, 1.1),
    "es": (72.9, 2.3),
    "it": (70.2, 1.9),
    "nl": (76.8, 0.4),
    "pl": (63.5, 3.1),
    "ru": (66.7, 4.2),
    "bg": (64.0, 2.8),
    "el": (58.3, 3.9),
    "tr": (55.9, 5.2),
    "ar": (51.4, 6.0),
    "hi": (54.8, 4.7),
    "ur": (48.6, 7.1),
    "th": (46.2, 9.4),
    "vi": (60.7, 2.6),
    "zh-CN": (62.3, 3.3),
    "sw": (41.5, -0.7),
}
MORE = [
    *(
        "af",
        "ca",
        "cs",
        "cy",
        "da",
        "et",
        "eu",
        "fa",
        "fi",
        "ga",
        "gl",
        "gu",
        "he",
        "hr",
        "hu",
        "hy",
        "id",
        "is",
    ),
    *(
        "ja",
        "ka",
        "kn",
        "ko",
        "lb",
        "lt",
        "lv",
        "ml",
        "mn",
        "ms",
        "nb",
        "ne",
        "pa",
        "pt",
        "pt-BR",
        "ro",
        "sk",
    ),
    *("sl", "sr", "sr-Latn", "sv", "ta", "te", "uk", "zh-TW"),
]

DENSITIES = [round(0.9**stage, 6) for stage in range(12)]
KINDS = {
    "attention.self.query": 147456,
    "attention.self.key": 147456,
    "attention.self.value": 147456,
    "attention.output.dense": 147456,
    "intermediate.dense": 589824,
    "output.dense": 589824,
}


def sample_report(zero_shot: int = 17, tests: int = 640) -> dict[str, Any]:
    """A full report with English and ``zero_shot`` (1 to 60) other languages."""
    draw = random.Random(7)
    pairs = list(ZERO_SHOT.items()) + [(code, (draw.uniform(35, 80), draw.uniform(0, 8))) for code in MORE]
    ends = {"en": (98.1, -0.2)} | dict(pairs[:zero_shot])
    curves = {code: curve(dense, lost, draw) for code, (dense, lost) in ends.items()}
    languages, paired = {}, {}
    for code, points in curves.items():
        dense, pruned = points[0], points[-1]
        lost = round(max(0, dense - pruned) * tests / 100) + draw.randint(4, 14)
        gained = lost - round((dense - pruned) * tests / 100)
        languages[code] = {
            "n": tests,
            "metric": "accuracy",
            "dense": dense,
            "pruned": pruned,
            "onnx_fp32": pruned,
            "onnx_int8": round(pruned - draw.uniform(-0.3, 0.9), 2),
            "delta": round(pruned - dense, 2),
            "ci95": [round(pruned - 3.8, 2), round(min(100.0, pruned + 3.7), 2)],
        }
        paired[code] = {
            "p_value": min(1.0, 10 ** (-abs(dense - pruned) * 0.9)),
            "gained": gained,
            "lost": lost,
        }
    away = [code for code in languages if code != "en"]
    worst = min(away, key=lambda code: languages[code]["delta"])
    shipped = shipped_form(languages, away, tests)
    return {
        "schema_version": 1,
        "name": "quickstart",
        "created": "2026-11-02T09:41:12Z",
        "recipe": recipe(),
        "environment": {
            "xlmprune": "0.1.0",
            "python": "3.11.9",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "onnxruntime": "1.31.1",
            "device": "cpu (2 threads)",
        },
        "scaled_down": [
            "training: 100 English sentences per intent",
            "test sets: at most 640 examples per language",
        ],
        "task": {
            "name": "quickstart",
            "kind": "text",
            "labels": ["HassTurnOn", "HassTurnOff", "HassGetWeather"],
            "licence": "Apache-2.0",
            "train_examples": 1600,
            "train_origin": "home-assistant-intents",
            "train_notes": [],
            "notes": {"th": ["3 sentences were empty and left out"]},
        },
        "model": {
            "name": "quickstart",
            "revision": None,
            "licence": "MIT",
            "max_length": 32,
            "parameters": 25_312_912,
            "prunable": 21_233_664,
            "encoder_density": 0.313811,
            "model_density": 0.424415,
        },
        "languages": languages,
        "summary": {
            "train_language": "en",
            "english": {form: languages["en"][form] for form in FORMS},
            "zero_shot_mean": mean_over(away, languages),
            "all_mean": mean_over(list(languages), languages),
            "worst": {"language": worst, "delta": languages[worst]["delta"]},
        },
        "stages": [
            {
                "stage": stage,
                "encoder_density": density,
                "seconds": 14.2 + stage / 10,
                "loss": round(0.62 * 0.7**stage + 0.03, 4),
                "alignment": round(1 - 0.035 * stage, 4),
                "languages": {code: points[stage] for code, points in curves.items()},
                "zero_shot_mean": round(sum(curves[code][stage] for code in away) / len(away), 2),
            }
            for stage, density in enumerate(DENSITIES)
        ],
        "layers": [
            {
                "name": f"roberta.encoder.layer.{layer}.{kind}.weight",
                "density": 0.3138,
                "weight_norm": round(12 + draw.uniform(-3, 3), 3),
                "pretrained_norm": round(17 + draw.uniform(-3, 3), 3),
                "alignment": round(0.62 + 0.2 * draw.random() - 0.006 * layer, 4),
            }
            for layer in range(12)
            for kind in KINDS
        ],
        "files": {
            name: {"bytes": size, "sha256": hashlib.sha256(name.encode()).hexdigest()}
            for name, size in {
                "model.onnx": 46_713_220,
                "model.int8.onnx": 14_120_845,
                "model.safetensors": 45_480_101,
                "tokenizer.json": 812_204,
                "config.json": 1_482,
            }.items()
        },
        "dense_bytes": {"onnx_fp32": 101_840_112, "onnx_int8": 25_761_300, "safetensors": 101_251_648},
        "bytes_by_part": {
            "embeddings": 15_572_992,
            "encoder": 29_607_318,
            "head": 616_512,
            "other": 916_398,
        },
        "speed": {
            "model.onnx": {
                "batch": 1,
                "tokens": 32,
                "median_ms": 9.82,
                "p95_ms": 11.4,
                "texts_per_second": 101.8,
                "speedup": 1.0,
                "load_seconds": 0.42,
                "peak_bytes": 310_000_000,
                "loaded_bytes": 130_000_000,
            },
            "model.int8.onnx": {
                "batch": 1,
                "tokens": 32,
                "median_ms": 2.61,
                "p95_ms": 3.05,
                "texts_per_second": 383.1,
                "speedup": 3.76,
                "load_seconds": 0.31,
                "peak_bytes": 190_000_000,
                "loaded_bytes": 52_000_000,
            },
        },
        "quantization": {
            "chosen": "smoothed",
            "reference": {"dev": 99.3, "agreement": 100.0},
            "margins": {"dev": 0.5, "agreement": 3.0},
            "tried": [{"name": "smoothed", "bytes": 25_761_300, "dev": 99.3, "agreement": 98.1}],
        },
        "parity": {
            "onnx_fp32": {"max_abs_diff": 3.1e-06, "relative_diff": 1.8e-07, "agreement": 1.0, "n": 11520},
            "onnx_int8": {
                "max_abs_diff": 0.411,
                "relative_diff": 0.024,
                "agreement": 0.9823,
                "n": 11520,
                "alone": {"max_abs_diff": 0.3, "relative_diff": 0.02, "agreement": 0.985, "n": 200},
            },
        },
        "paired": paired,
        "shipped": shipped,
        "vocabulary": {
            "pieces_before": 250002,
            "pieces": 10123,
            "special": 5,
            "single_characters": 4200,
            "counted": 5918,
            "scripts": ["ARABIC", "CYRILLIC", "LATIN", "THAI"],
            "parameters_removed": 92_113_536,
            "languages": {
                code: {
                    "texts": 1000,
                    "tokens_before": 8.4,
                    "tokens": round(8.4 + draw.random(), 3),
                    "identical": round(draw.uniform(0.6, 1), 3),
                    "characters_before": 0.02,
                    "characters": round(draw.uniform(0.02, 0.2), 3),
                    "unknown_before": 0.0,
                    "unknown": 0.0,
                }
                for code in languages
            },
        },
        "text": {
            code: {
                "n": tests,
                "tokens_mean": round(draw.uniform(7, 12), 3),
                "tokens_p95": float(draw.randint(14, 22)),
                "tokens_per_word": round(draw.uniform(1.2, 2.4), 3),
                "tokens_per_character": 0.3,
                "truncated": 0.0,
                "unknown": round(draw.uniform(0, 0.001), 5),
                "words_lost": None,
            }
            for code in languages
        },
        "answers": {
            code: {model: confusion(row[model], tests, draw) for model in ("dense", "pruned")}
            for code, row in languages.items()
        },
        "errors": {code: errors(paired[code]["lost"], tests) for code in languages},
        "classes": classes(list(languages), worst, draw),
    }


def shipped_form(languages: dict[str, Any], away: list[str], tests: int) -> dict[str, Any]:
    """What is known of the INT8 file: its differences from dense, intervals and paired tests."""
    rows, paired = {}, {}
    for code, row in languages.items():
        delta, value = round(row["onnx_int8"] - row["dense"], 2), row["onnx_int8"]
        rows[code] = {"delta": delta, "ci95": [round(value - 3.9, 2), round(min(100.0, value + 3.8), 2)]}
        lost = round(max(0, -delta) * tests / 100) + 5
        gained = lost + round(delta * tests / 100)
        paired[code] = {"p_value": min(1.0, 10 ** (-abs(delta) * 0.9)), "gained": gained, "lost": lost}
    worst = min(away, key=lambda code: rows[code]["delta"])
    return {
        "key": "onnx_int8",
        "file": "model.int8.onnx",
        "languages": rows,
        "paired": paired,
        "worst": {"language": worst, "delta": rows[worst]["delta"]},
    }


FORMS = ("dense", "pruned", "onnx_fp32", "onnx_int8")
LABELS = ("HassTurnOn", "HassTurnOff", "HassGetWeather")


def confusion(right: float, tests: int, draw: random.Random) -> dict[str, dict[str, int]]:
    """Answers of a model that is right on ``right`` percent of each label."""
    counts = {}
    for gold in LABELS:
        each = tests // len(LABELS)
        correct = round(each * right / 100)
        first, second = (label for label in LABELS if label != gold)
        wrong = draw.randint(0, each - correct)
        counts[gold] = {gold: correct, first: wrong, second: each - correct - wrong}
    return counts


def errors(introduced: int, tests: int) -> dict[str, Any]:
    texts = ("Schalte das Licht in der Küche ein", "เปิดไฟในครัว", "أطفئ ضوء المطبخ من فضلك")
    shown = [
        {"text": text, "gold": "HassTurnOn", "dense": "HassTurnOn", "pruned": "HassTurnOff"} for text in texts
    ]
    return {"introduced": introduced, "of": tests, "shown": shown[:introduced]}


def classes(codes: list[str], worst: str, draw: random.Random) -> dict[str, Any]:
    shares = {code: {"dense": draw.uniform(0.5, 0.8), "pruned": draw.uniform(0.2, 0.6)} for code in codes}
    labels = [LABELS[number % 3] for number in range(90)]

    def points(spread: float) -> list[list[float]]:
        centres = {"HassTurnOn": (0, 0), "HassTurnOff": (3, 1), "HassGetWeather": (1, 4)}
        return [[round(draw.gauss(value, spread), 3) for value in centres[label]] for label in labels]

    return {
        "shares": shares,
        "explained": {"dense": [0.41, 0.22], "pruned": [0.35, 0.18]},
        "points": {
            code: {"labels": labels, "dense": points(0.5), "pruned": points(1.0)} for code in ("en", worst)
        },
    }


def curve(dense: float, lost: float, draw: random.Random) -> list[float]:
    """Scores from stage 0 to 11 that end ``lost`` points below ``dense``."""
    wobble = [0.0, *(draw.uniform(-0.8, 0.8) for _ in DENSITIES[1:-1]), 0.0]
    return [round(dense - lost * (stage / 11) ** 1.6 + wobble[stage], 2) for stage, _ in enumerate(DENSITIES)]


def mean_over(codes: list[str], languages: dict[str, Any]) -> dict[str, float]:
    return {form: round(sum(languages[code][form] for code in codes) / len(codes), 2) for form in FORMS}


def recipe() -> dict[str, Any]:
    return {
        "name": "quickstart",
        "seed": 42,
        "model": {"name": "quickstart", "revision": None, "vocabulary": {"keep_languages_of": "task"}},
        "task": {
            "name": "quickstart",
            "source": "hub",
            "train_language": "en",
            "languages": "all",
            "max_test_examples": 640,
        },
        "training": {"epochs_per_stage": 1, "batch_size": 32, "learning_rate": 1e-4, "max_length": 32},
        "pruning": {
            "criterion": {"name": "magnitude"},
            "scope": "layer",
            "schedule": {"name": "geometric", "step_fraction": 0.1, "stages": 11},
        },
        "regularizer": {"name": "cosine", "strength": 100.0, "reference": "pretrained"},
        "export": {"onnx": ["fp32", "int8"], "onnx_layout": "packed"},
    }
