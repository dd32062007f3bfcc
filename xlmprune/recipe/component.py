"""What the named components of a recipe share: the strict configuration of their parameters."""

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
"""For ``pydantic.dataclasses.dataclass(config=STRICT)``. Unknown parameters, NaN and infinity are errors. The sentence
under a field becomes its description in the schema."""
