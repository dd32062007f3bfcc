"""Map language codes to English names for tables and reports."""

from __future__ import annotations

from functools import cache


def is_language(code: str) -> bool:
    """Tell whether a code, with or without script and region, begins with a language that has an English name."""
    return language_name(code) != code


@cache
def language_name(code: str) -> str:
    """Return the English name: ``"Portuguese (Brazil)"`` for ``"pt-BR"``. An unknown code comes back unchanged.

    A code is a language with a script (ISO 15924) or a region after it, joined by ``-`` or ``_``.
    """
    from babel import Locale

    english = Locale("en")
    base, *rest = code.replace("_", "-").split("-")
    name = english.languages.get(base.lower())
    if name is None:
        return code
    qualifiers = [
        english.scripts.get(part.title()) or english.territories.get(part.upper(), part) for part in rest
    ]
    return f"{name} ({', '.join(qualifiers)})" if qualifiers else name
