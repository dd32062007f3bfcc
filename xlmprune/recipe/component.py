"""What every component of a recipe shares: parameters that are checked, and refused when misspelt."""

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
"""For ``pydantic.dataclasses.dataclass(config=STRICT)``: unknown parameters, NaN and infinity are errors, and the
sentence under a field becomes its description in the schema."""
