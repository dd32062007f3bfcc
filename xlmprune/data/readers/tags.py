"""Tags of entities in their many spellings, rewritten to BIO.

BIOES, BILOU and BMES mark the end of an entity and entities of one word as well; their letters are replaced by B and I,
which changes no entity. Tags may also be written B_PER, PER-B, b-per, or B without a type.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

LETTERS = {"B": "B", "I": "I", "M": "I", "E": "I", "L": "I", "S": "B", "U": "B", "W": "B"}
"""The letter of BIO for that of any scheme."""

SCHEMES = ("BI", "BIES", "BILU", "BMES", "BMEW")


@dataclass(frozen=True)
class Style:
    """One way to write a tag."""

    outside: str
    pattern: re.Pattern[str]

    def parse(self, tag: str) -> tuple[str, str] | None:
        """Give letter and type, an empty letter outside entities; None for a tag that is not written so."""
        if tag == self.outside:
            return "", ""
        found = self.pattern.fullmatch(tag)
        return (found["letter"].upper(), found.groupdict().get("type") or "") if found else None

    def fits(self, tags: Collection[str]) -> bool:
        """Tell whether all tags are written so, with the letters of one scheme and at least one entity."""
        parsed = [self.parse(tag) for tag in tags]
        letters = {part[0] for part in parsed if part and part[0]}
        if None in parsed or not letters or not any(letters <= set(scheme) for scheme in SCHEMES):
            return False
        if self is STYLES[0] and letters <= {"B", "I"}:
            return True
        # Plain tags may look like these by chance, a single letter above all.
        if self in UNTYPED:
            return "B" in letters and bool(letters & set("IMEL"))
        return bool(letters & set("BSU")) and (len(letters) > 1 or self.outside in tags)


def _styles(lower: bool) -> list[Style]:
    letter = "(?P<letter>[bimelsuw])" if lower else "(?P<letter>[BIMELSUW])"
    forms = (
        f"{letter}-(?P<type>.+)",
        f"{letter}_(?P<type>.+)",
        f"(?P<type>.+)-{letter}",
        f"(?P<type>.+)_{letter}",
    )
    return [Style("o" if lower else "O", re.compile(form, re.DOTALL)) for form in (*forms, letter)]


STYLES = (*_styles(False), *_styles(True))
UNTYPED = (STYLES[4], STYLES[9])


def style_of(tags: Collection[str]) -> Style | None:
    """Find the style in which all tags are written; None for plain tags."""
    return next((style for style in STYLES if style.fits(tags)), None)


def to_bio(tag: str, style: Style) -> str:
    """Rewrite a tag of that style, as `S-PER` to `B-PER`."""
    letter, kind = style.parse(tag) or ("", "")
    return (f"{LETTERS[letter]}-{kind}" if kind else LETTERS[letter]) if letter else "O"


def respell(tag: str, labels: Collection[str]) -> str | None:
    """Find the one of ``labels`` that a tag means, in whatever style it is written; None if there is none."""
    for style in STYLES:
        if style.parse(tag) is not None:
            written = to_bio(tag, style)
            for name in (written, written[:2] + written[2:].upper()):
                if name in labels:
                    return name
    return None


def bio_labels(tags: Collection[str], style: Style) -> tuple[str, ...]:
    """List O, and B and I of every type among the tags, types in alphabetical order."""
    types = sorted({parsed[1] for tag in tags if (parsed := style.parse(tag)) and parsed[0]})
    return ("O", *(f"{letter}-{kind}" if kind else letter for kind in types for letter in "BI"))


def is_bio(tags: Iterable[str]) -> bool:
    """Whether all tags are O, B-… or I-… (or, without types, B and I), and not all are O."""
    entities = {tag for tag in tags if tag != "O"}
    return entities == {"B", "I"} or (
        bool(entities) and all(tag[:2] in ("B-", "I-") and len(tag) > 2 for tag in entities)
    )


def strays(tags: Collection[str]) -> list[str]:
    """Return the one or two tags that keep a set from being tags of entities; none if more do, or too few others are."""
    found: list[str] = []
    entities = 0
    for style in STYLES:
        parsed = {tag: style.parse(tag) for tag in sorted(set(tags))}
        others = [tag for tag, part in parsed.items() if part is None]
        if style not in UNTYPED and (not entities or len(others) < len(found)):
            found, entities = others, sum(bool(part and part[0]) for part in parsed.values())
    return found if len(found) <= min(2, entities) else []


def is_mixed(tags: Collection[str]) -> bool:
    """Whether every tag is one of an entity in some style, but not all in the same, or in no known scheme."""
    entities = set(tags) - {"O"}
    parsed = [[style.parse(tag) for style in STYLES if style not in UNTYPED] for tag in entities]
    return (
        len(entities) > 1 and all(any(p and p[0] for p in parts) for parts in parsed) and not style_of(tags)
    )
