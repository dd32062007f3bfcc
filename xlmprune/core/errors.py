"""Everything a user can cause, as one tree. The command line prints the sentence and exits with `exit_code`.

XlmpruneError             2   the user can mend it
├── RecipeError               a recipe, or an option that overrides it
├── DataError                 a data file, or a source of data
├── ModelError                a pretrained model, or a checkpoint
├── BundleError               an exported bundle, or a file in one
├── MachineError              device, disk, memory, network, a missing package
├── TrainingError             training went wrong: NaN, divergence
└── ShortfallError        3   `verify`, `evaluate --min` or `export.floor` found less than promised

Any other exception is a fault of ours and keeps its traceback (exit code 1).
"""


class XlmpruneError(Exception):
    """A sentence for the user: what was found, what was expected, what to try."""

    exit_code = 2


class RecipeError(XlmpruneError):
    """The recipe, or an option that overrides it, cannot be used."""


class DataError(XlmpruneError):
    """A data file or source cannot be used; names file and line where there is one."""


class ModelError(XlmpruneError):
    """The pretrained model or checkpoint cannot be used."""


class BundleError(XlmpruneError):
    """A file of an exported bundle is missing, damaged or foreign."""


class MachineError(XlmpruneError):
    """The machine lacks something: a device, disk space, memory, a network, a package."""


class TrainingError(XlmpruneError):
    """Training cannot go on, such as after a loss that is not a number."""


class ShortfallError(XlmpruneError):
    """A check found less than was promised."""

    exit_code = 3
