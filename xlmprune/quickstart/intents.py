"""Voice commands in many languages, from the package `home-assistant-intents`: which command is this?

Native speakers wrote the package's sentence templates (Apache-2.0), such as ``turn on [the] light[s] in {area}``. Here
commands of distinct meaning are chosen, and sentences drawn from the tree of each template. Devices, rooms and timers
get names that belong to no language, numbers are digits, so that only the words around them tell the command. What is
drawn depends on the package's version and on nothing else: not on the machine, the other languages or a recipe's seed.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from itertools import accumulate
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from xlmprune.core.errors import DataError, MachineError
from xlmprune.core.packages import pip_install

if TYPE_CHECKING:
    from hassil.expression import Expression

PACKAGE = "home-assistant-intents"
LICENCE = "Apache-2.0"
SEED = "xlmprune quickstart 1"


@dataclass(frozen=True)
class Command:
    """Which templates of the package mean one command."""

    intent: str
    """The package's name."""
    domain: str | None = None
    """Only templates that speak of this kind of device and name no single one."""
    slots: str = ""
    """Only templates whose combination of slots matches this pattern."""


COMMANDS = MappingProxyType(
    {
        "turn_on_light": Command("HassTurnOn", domain="light"),
        "turn_off_light": Command("HassTurnOff", domain="light"),
        "set_brightness": Command("HassLightSet", slots="brightness"),
        "set_color": Command("HassLightSet", slots="color"),
        "get_temperature": Command("HassClimateGetTemperature"),
        "set_temperature": Command("HassClimateSetTemperature"),
        # Without "... in five minutes", where a timer starts another command.
        "start_timer": Command("HassStartTimer", slots="^(?!command)"),
        "cancel_timer": Command("HassCancelTimer"),
        "timer_status": Command("HassTimerStatus"),
        "next_track": Command("HassMediaNext"),
        "pause_media": Command("HassMediaPause"),
        "resume_media": Command("HassMediaUnpause"),
        "get_weather": Command("HassGetWeather"),
        # Without "start {name} in {area}", which may start anything.
        "clean_room": Command("HassVacuumCleanArea", slots="^(area_only|context_area)$"),
    }
)
"""Label -> templates."""

LANGUAGES = (
    "ar", "bg", "de", "el", "es", "fi", "fr", "he", "hi", "it",
    "ko", "ml", "nl", "pl", "pt", "ru", "th", "uk", "vi", "zh-CN",
)  # fmt: skip
"""What ``languages: all`` stands for beside English: 20 languages of 8 families in 10 scripts."""

NAMES = (
    "Apollo", "Atlas", "Aurora", "Cosmo", "Delta", "Domino", "Electra", "Galaxia", "Kappa", "Leonardo", "Luna", "Milano",
    "Mira", "Mozart", "Nova", "Omega", "Orion", "Oslo", "Pluto", "Polaris", "Sigma", "Sonata", "Tango", "Titan", "Vega",
    "Zorro",
)  # fmt: skip
"""Of devices, rooms, floors and timers alike, so that no name betrays the command."""

NAMED = ("name", "area", "floor", "timer_name")
"""The package's free slots that take a name."""

NUMBERS = MappingProxyType(
    {
        "temperature": range(16, 27),
        "timer_hours": range(2, 13),
        "timer_minutes": range(2, 60),
        "timer_seconds": range(2, 60),
    }
)
"""What people say of the package's ranges (0 to 100 degrees, for one). All others are taken for percentages."""
PERCENTAGES = range(5, 100, 5)

OPTIONAL = 0.5
"""How often an optional part of a template is spoken."""
TRIES = 3
"""Draws for each sentence wanted."""


@dataclass(frozen=True)
class Sentences:
    """What one language has: for every label, its distinct sentences in the order drawn, varied wordings first."""

    language: str
    by_label: dict[str, tuple[str, ...]]
    wordings: dict[str, int]
    """How many different wordings, names and numbers aside, the sentences of each label have."""


@lru_cache(maxsize=256)
def draw(language: str, per_label: int) -> Sentences:
    """Draw up to `per_label` sentences of every command in a language; fewer where the templates give fewer.

    A wording that two commands share, such as "set {name} to {number}", is left out of both.

    Raises:
        MachineError: the package, or the parser of its templates, is not installed.
        DataError: the package has no such language.
    """
    templates = _Templates(language, load_language(language))
    pools = {label: templates.draw(label, per_label) for label in COMMANDS}
    form_of = {wording: _form(wording) for pool in pools.values() for wording in pool.values()}
    # "Set Luna to 20" may mean its temperature or its light: what two commands share tells neither.
    shared = Counter(
        form for pool in pools.values() for form in {form_of[wording] for wording in pool.values()}
    )
    by_label, wordings = {}, {}
    for label, pool in pools.items():
        clear = [text for text, wording in pool.items() if shared[form_of[wording]] == 1][:per_label]
        by_label[label], wordings[label] = tuple(clear), len({pool[text] for text in clear})
    return Sentences(language, by_label, wordings)


def languages() -> tuple[str, ...]:
    """Codes of all languages of the package, whether or not they have every command."""
    return tuple(_package().get_languages())


def version() -> str:
    """Return the data's name and version, such as ``home-assistant-intents 2026.10.27``."""
    _package()
    return f"{PACKAGE} {metadata.version(PACKAGE)}"


def load_language(language: str) -> dict[str, Any]:
    """Return the package's templates, lists and rules of a language.

    Raises:
        DataError: there is no such language; names those that are near, or all.
    """
    known = languages()
    content = _package().get_intents(language) if language in known else None
    if content is None:
        base = re.split("[-_]", language.lower())[0]
        near = [code for code in known if re.split("[-_]", code.lower())[0] == base]
        hint = f"it has {' and '.join(near)}" if near else f"it has {', '.join(known)}"
        raise DataError(f"{version()} has no language {language!r}; {hint}")
    return content


def _package() -> Any:
    try:
        import hassil.parse_expression  # noqa: F401
        import home_assistant_intents
    except ImportError as error:
        raise MachineError(
            f"the quickstart's sentences come with the Python packages {PACKAGE} and hassil; {error.name} is not "
            f"installed. Try: {pip_install('quickstart')}"
        ) from error
    return home_assistant_intents


class _Unfillable(Exception):
    """The wording asks for free text, such as a message, which nothing here can fill."""


class _Templates:
    """The templates of one language, parsed as far as they are drawn from."""

    def __init__(self, language: str, content: dict[str, Any]) -> None:
        self.language = language
        self.intents, self.lists = content["intents"], content["lists"]
        self.rules = content["expansion_rules"]
        self.parsed: dict[str, Expression] = {}

    def draw(self, label: str, count: int) -> dict[str, str]:
        """Sentence -> its wording, where slots are not filled; ends after a number of tries in proportion to `count`.

        No two sentences are equal. The first of every wording come first.
        """
        templates = list(self._of(COMMANDS[label]))
        # Seeded with text, which Python takes through SHA-512: the same in every process.
        source = random.Random(f"{SEED}/{self.language}/{label}")
        seen: set[str] = set()
        wordings: set[str] = set()
        fresh: dict[str, str] = {}
        again: dict[str, str] = {}
        for _ in range(TRIES * count if templates else 0):
            try:
                wording = self._wording(source.choice(templates), source)
            except _Unfillable:
                continue
            text = self._fill(wording, source)
            # "Luna 20 %" is a command in some languages, but says nothing.
            if (plain := normalize_wording(text)) not in seen and any(
                map(str.isalpha, _without_slots(wording))
            ):
                seen.add(plain)
                (again if wording in wordings else fresh)[text] = wording
                wordings.add(wording)
        return fresh | again

    def _of(self, command: Command) -> Iterator[str]:
        for block in self.intents.get(command.intent, {}).get("data", ()):
            domain = block.get("slots", {}).get("domain")
            slots = block.get("metadata", {}).get("slot_combination", "")
            if command.domain in (None, domain) and re.search(command.slots, slots):
                yield from block["sentences"]

    def _parse(self, template: str) -> Expression:
        if template not in self.parsed:
            from hassil.parse_expression import parse_sentence

            self.parsed[template] = parse_sentence(template).expression
        return self.parsed[template]

    def _wording(self, template: str, source: random.Random) -> str:
        """One random way through a template; slots for names and numbers stay ``{slot}``.

        Templates can have billions of expansions, so none is ever enumerated.
        """
        spoken: list[str] = []
        self._expand(self._parse(template), source, spoken)
        return _tidy("".join(spoken))

    def _expand(self, part: Any, source: random.Random, spoken: list[str]) -> None:
        # By name, since the classes come from a package that may be absent when this module is read.
        kind = type(part).__name__
        if kind == "TextChunk":
            spoken.append(part.original_text)
        elif kind == "Sequence":
            for item in part.items:
                self._expand(item, source, spoken)
        elif kind == "Alternative":
            # The parser ends the items of an optional part with an empty one.
            items = part.items[:-1] if part.is_optional else part.items
            if items and not (part.is_optional and source.random() >= OPTIONAL):
                self._expand(_usual_first(items, source), source, spoken)
        elif kind == "RuleReference":
            self._expand(self._parse(self.rules[part.rule_name]), source, spoken)
        elif kind == "Permutation":
            for item in source.sample(part.items, len(part.items)):
                self._expand(item, source, spoken)
        elif kind == "ListReference":
            self._expand_list(part.list_name, source, spoken)
        else:
            raise TypeError(f"a template of {self.language!r} has a {kind}, which is not known here")

    def _expand_list(self, name: str, source: random.Random, spoken: list[str]) -> None:
        content = self.lists.get(name, {})
        if values := content.get("values"):
            value = _usual_first(values, source)
            self._expand(self._parse(value["in"] if isinstance(value, dict) else value), source, spoken)
        elif name in NAMED or "range" in content:
            spoken.append(f"{{{name}}}")
        else:
            raise _Unfillable(name)

    def _fill(self, wording: str, source: random.Random) -> str:
        slots = re.findall(r"\{(\w+)\}", wording)
        names = source.sample(NAMES, len(slots))
        values = iter([n if slot in NAMED else self._number(slot, source) for slot, n in zip(slots, names)])
        return re.sub(r"\{\w+\}", lambda _: next(values), wording)

    def _number(self, slot: str, source: random.Random) -> str:
        limits = self.lists[slot]["range"]
        usual = NUMBERS.get(slot, PERCENTAGES)
        possible = [number for number in usual if limits["from"] <= number <= limits["to"]]
        return str(source.choice(possible or range(limits["from"], limits["to"] + 1, limits.get("step", 1))))


def _usual_first(items: list[Any], source: random.Random) -> Any:
    """One of the items, the n-th with weight 1/n: authors write the usual word first and the odd one last."""
    return source.choices(items, cum_weights=_harmonic_numbers(len(items)))[0]


@lru_cache
def _harmonic_numbers(count: int) -> tuple[float, ...]:
    return tuple(accumulate(1 / rank for rank in range(1, count + 1)))


def _form(wording: str) -> str:
    """Return a wording as it counts when those of two commands are compared: all slots alike."""
    return normalize_wording(_without_slots(wording, "0"))


def _without_slots(wording: str, instead: str = "") -> str:
    return re.sub(r"\{\w+\}", instead, wording)


def _tidy(text: str) -> str:
    return " ".join(text.split())


def normalize_wording(text: str) -> str:
    """Return a sentence as it counts when two are compared: case, spaces and punctuation do not.

    `data.examples.normalize` also tells vowel signs apart. This one does not, because it decides which Hindi and Malayalam
    sentences are drawn, and so every score measured on them.
    """
    return "".join(filter(str.isalnum, text.casefold()))
