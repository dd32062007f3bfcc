"""Define the user errors as one tree. The command line prints the message and exits with `exit_code`.

XlmpruneError             2   user error
├── RecipeError               a recipe, or an option that overrides it
├── DataError                 a data file, or a source of data
├── ModelError                a pretrained model, or a checkpoint
├── BundleError               an exported bundle, or a file in one
├── MachineError              device, disk, memory, network, a missing package
├── TrainingError             training failed: NaN, divergence
├── ProcessesError            the processes of one run cannot work together
└── ShortfallError        3   a check of `verify`, `evaluate --min` or `export.floor` failed

Any other exception is an internal error. It keeps its traceback and gives exit code 1.
"""


class XlmpruneError(Exception):
    """Carries a message for the user: what was found, what was expected, what to try."""

    exit_code = 2
    raised_by_all = False
    """Whether every process of a run raises it, so that the first one's message is enough."""


class RecipeError(XlmpruneError):
    """Says that a recipe, or an option that overrides it, cannot be used."""


class DataError(XlmpruneError):
    """Says that a data file or data source cannot be used. Names the file and the line if there is one."""


class ModelError(XlmpruneError):
    """Says that a pretrained model or a checkpoint cannot be used."""


class BundleError(XlmpruneError):
    """Says that a file of a bundle is missing, damaged or not part of the bundle."""


class MachineError(XlmpruneError):
    """Says what the machine lacks: a device, disk space, memory, a network, a package."""


class TrainingError(XlmpruneError):
    """Says that training cannot continue, for example because the loss is not a number."""

    raised_by_all = True


class ProcessesError(XlmpruneError):
    """Says that another process of the same run ended, cannot be reached, or differs."""

    raised_by_all = True


class ShortfallError(XlmpruneError):
    """Says that a check failed."""

    exit_code = 3
    raised_by_all = True


def first_line(error: BaseException) -> str:
    """Return the first line of the error's message, or the name of its type if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
