"""What the processes of one run tell each other, as `torchrun` starts them. With one process, every function is trivial.

Every process makes the same run. The first one reads and writes: model, data, checkpoints, events and the bundle; the
others get from it what it read (`from_first`). A training batch is split over the processes as it is split over
micro-batches, and `sum_gradients` adds up what they found, before anybody looks at a gradient. From then on all of them
compute the same numbers: the criterion's, the clipped gradient, the update, the masks. Test texts are spread in whole
batches (`spread`).

There is no `DistributedDataParallel`. It averages over processes where shares are counted by labelled items; it adds up
gradients at each of the several backward passes of an update; and it wraps one model for good, where this one changes its
embedding table, loses layers, and has smaller models inside.

PyTorch is imported only where there are several processes: whoever serves a bundle imports this module too.
"""

from __future__ import annotations

import io
import os
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from xlmprune.core.errors import MachineError, ProcessesError, first_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")

PATIENCE = timedelta(hours=2)
"""How long a process waits for another: reading data and measuring sizes happen in the first one alone. A process that dies
closes its connections, which the others notice at once."""

BUCKET = 2**24
"""Entries of gradients that are added up in one message; larger parameters have a message of their own."""

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What `torchrun` sets."""


@dataclass(frozen=True)
class _Group:
    rank: int
    count: int
    device: torch.device


_group: _Group | None = None


# --- who we are -------------------------------------------------------------------------------------------------------


def launched() -> int:
    """Return the number of processes that `torchrun` started for this run; 1 without it."""
    if any(name not in os.environ for name in VARIABLES):
        return 1
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """Return the number of this process among those of the run, from 0."""
    return _number("RANK", 0) if launched() > 1 else 0


def is_first() -> bool:
    """Return whether this is the process that reads, writes and talks."""
    return rank() == 0


def local() -> tuple[int, int]:
    """Return this process's number on its host, and how many of the run are there."""
    return (_number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", 1)) if launched() > 1 else (0, 1)


def _number(variable: str, usual: int) -> int:
    text = os.environ.get(variable, str(usual))
    if not text.isdecimal():
        raise MachineError(f"the environment variable {variable} is {text!r}; torchrun sets it to a number")
    return int(text)


def require_one(command: str) -> None:
    """Raise ProcessesError if `torchrun` started a command that several processes cannot share."""
    if launched() > 1:
        raise ProcessesError(f"{command} runs in one process; start it without torchrun")


def count() -> int:
    """Return how many processes work together now: 1 before `joined`, after `leave`, and where the first works alone."""
    return 1 if _group is None else _group.count


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Work together inside the ``with``, if `torchrun` started several processes.

    Args:
        device: of this process.

    Raises:
        MachineError: the processes do not find each other.
        ProcessesError: inside, another process ended or cannot be reached.
    """
    global _group
    if launched() == 1:
        yield
        return
    _join(device)
    try:
        yield
    except BaseException as error:
        fails_itself = isinstance(error, Exception) and not isinstance(error, ProcessesError)
        if fails_itself or device.type == "cuda":
            # The others learn of it when this process ends, so that torchrun names it as the first. NCCL's goodbye could
            # wait for those that have ended.
            _group = None
        else:
            leave()  # no message is pending: whoever sends one waits for it
        raise
    leave()


def _join(device: torch.device) -> None:
    global _group
    import torch
    import torch.distributed.nn  # a later import would keep the group, and its threads, as a default argument
    from torch import distributed

    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError, OSError) as error:
        where = ":".join(os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise MachineError(
            f"the {launched()} processes of this run do not find each other at {where} ({_reason(error)}). Check that "
            "the hosts reach that address; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network interface to use"
        ) from error
    _group = _Group(distributed.get_rank(), distributed.get_world_size(), device)


def leave() -> None:
    """Stop working together. The first process may go on alone, the others have nothing left to do."""
    global _group
    if _group is None:
        return
    from torch import distributed

    _group = None
    distributed.destroy_process_group()


@contextmanager
def _alone() -> Iterator[None]:
    """Let this process work without the others inside the ``with``, while they wait for what it finds."""
    global _group
    before, _group = _group, None
    try:
        yield
    finally:
        _group = before


# --- sharing work -----------------------------------------------------------------------------------------------------


def own(items: Sequence[Item]) -> Sequence[Item]:
    """Return the items that this process works on; all of them together are ``items``."""
    return items if _group is None else items[_group.rank :: _group.count]


def spread(items: Sequence[Item], work: Callable[[Item], Result]) -> list[Result]:
    """Work on each item in one of the processes; return every result, in order, in all of them."""
    found = [work(item) for item in own(items)]
    if _group is None:
        return found
    results: list[Any] = [None] * len(items)
    for number, part in enumerate(_gather(found)):
        results[number :: _group.count] = part
    return results


def sum_gradients(parameters: Iterable[Tensor], loss: Tensor) -> Tensor:
    """Add up over the processes the gradients, in place, and the loss, which is returned.

    A parameter without a gradient in every process has none afterwards.
    """
    if _group is None:
        return loss
    import torch

    trained = [parameter for parameter in parameters if parameter.requires_grad]
    numbers = torch.tensor(
        [*(parameter.grad is not None for parameter in trained), float(loss)], dtype=torch.float64
    )
    *having, total = _reduce(numbers).tolist()
    gradients = []
    for parameter, processes in zip(trained, having, strict=True):
        if processes:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        _sum_bucket(bucket)
    return loss.new_tensor(total)


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield tensors in groups of one type that are worth a message."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and (
            tensor.dtype != bucket[0].dtype or sum(map(_entries, bucket)) + _entries(tensor) > BUCKET
        ):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _entries(tensor: Tensor) -> int:
    return tensor.numel()


def _sum_bucket(bucket: Sequence[Tensor]) -> None:
    import torch

    if len(bucket) == 1 and bucket[0].is_contiguous():
        _reduce(bucket[0])
        return
    flat = _reduce(torch.cat([tensor.reshape(-1) for tensor in bucket]))
    for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
        tensor.copy_(part.view_as(tensor))


# --- agreeing ---------------------------------------------------------------------------------------------------------


def either(*flags: bool) -> tuple[bool, ...]:
    """Return for each flag whether it is set in any of the processes."""
    if _group is None:
        return flags
    import torch

    return tuple(map(bool, _reduce(torch.tensor([int(flag) for flag in flags])).tolist()))


def from_first(make: Callable[[], Result]) -> Result:
    """Call ``make`` in the first process alone; return what it gives in all of them, tensors on each one's own device.

    An exception of ``make`` ends the first process, and that ends the others.
    """
    if _group is None:
        return make()
    if _group.rank:
        return _receive(_group)
    with _alone():
        value = make()
    _send(value)
    return value


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors, in place, by those of the first process."""
    if _group is None:
        return
    for tensor in tensors:
        held = tensor.detach()
        whole = held.contiguous()
        _broadcast(whole)
        if whole is not held and _group.rank:
            held.copy_(whole)


def require_same(what: str, value: Any) -> None:
    """Raise ProcessesError unless every process holds an equal ``value``.

    Args:
        what: names the value in the message; of dictionaries, it names the first key that differs.
    """
    if _group is None:
        return
    first, *others = _gather(value)
    for number, other in enumerate(others, start=1):
        if other != first:
            raise ProcessesError(
                f"process {number} differs from process 0 in its {what}: {_difference(first, other)}"
            )


def _difference(first: Any, other: Any) -> str:
    if isinstance(first, dict) and isinstance(other, dict):
        key = next(key for key in {**first, **other} if first.get(key) != other.get(key))
        return f"{key} {other.get(key)!r}, expected {first.get(key)!r}"
    return f"{other!r}, expected {first!r}"


def checksums(tensors: Iterable[Tensor]) -> list[int]:
    """Return a number for each tensor that changes when a bit of it does, or when two of its words change places."""
    import torch

    sums = []
    for tensor in tensors:
        data = tensor.detach().contiguous().view(-1).view(torch.uint8)
        words = torch.nn.functional.pad(data, (0, -len(data) % 8)).view(torch.int64)
        sums.append((words * torch.arange(1, 2 * len(words), 2, device=words.device)).sum())
    return torch.stack(sums).tolist() if sums else []


def wait() -> None:
    """Wait until every process is here."""
    either(False)


# --- messages ---------------------------------------------------------------------------------------------------------


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of no narrower type
        raise ProcessesError(
            f"another process of this run ended or cannot be reached ({_reason(error)}). Its message or torchrun's "
            "report says why; the same command resumes the run from its last checkpoint"
        ) from error


def _reason(error: BaseException) -> str:
    return re.sub(r"^\[\S+:\d+\] ", "", first_line(error)).partition(". ")[
        0
    ]  # without the place in the source of gloo


def _reduce(tensor: Tensor) -> Tensor:
    from torch import distributed

    with _explained():
        distributed.all_reduce(tensor)
    return tensor


def _broadcast(tensor: Tensor) -> None:
    """Overwrite a contiguous tensor by that of the first process."""
    import torch
    from torch import distributed

    if tensor.numel():
        with _explained():
            distributed.broadcast(tensor.view(-1).view(torch.uint8), src=0)


def _gather(value: Any) -> list[Any]:
    """Return the ``value`` of every process."""
    from torch import distributed

    found = [None] * count()
    with _explained():
        distributed.all_gather_object(found, value)
    return found


class _Pickler(pickle.Pickler):
    """Leaves tensors out, so that they travel as they are and are not copied into the message."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, value: Any) -> int | None:
        """Return the number of a tensor; None for everything else."""
        import torch

        if not isinstance(value, torch.Tensor):
            return None
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self.tensors)
            self.tensors.append(value)
        return self._numbers[id(value)]


class _Unpickler(pickle.Unpickler):
    """Puts the tensors back that were left out."""

    def __init__(self, file: io.BytesIO, tensors: Sequence[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, number: int) -> Tensor:
        """Return the tensor of this number."""
        return self._tensors[number]


def _send(value: Any) -> None:
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    _broadcast_objects([file.getvalue(), [_facts(tensor) for tensor in pickler.tensors]])
    copy_from_first(pickler.tensors)


def _receive(group: _Group) -> Any:
    pickled, facts = _broadcast_objects([None, None])
    tensors = [_room(group.device, *of_one) for of_one in facts]
    copy_from_first(tensors)
    return _Unpickler(io.BytesIO(pickled), tensors).load()


def _broadcast_objects(values: list[Any]) -> list[Any]:
    """Overwrite the values by those of the first process."""
    from torch import distributed

    with _explained():
        distributed.broadcast_object_list(values, src=0)
    return values


def _facts(tensor: Tensor) -> tuple[Any, ...]:
    import torch

    parameter = isinstance(tensor, torch.nn.Parameter)
    return tuple(tensor.shape), tensor.dtype, tensor.device.type, tensor.requires_grad, parameter


def _room(
    own: torch.device, shape: tuple[int, ...], dtype: torch.dtype, kind: str, trained: bool, parameter: bool
) -> Tensor:
    """Return a tensor to receive values in, on this process's own device of that kind."""
    import torch

    empty = torch.empty(shape, dtype=dtype, device=own if kind == own.type else kind)
    return torch.nn.Parameter(empty, trained) if parameter else empty.requires_grad_(trained)
