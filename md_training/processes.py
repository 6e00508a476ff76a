"""The processes of one training: this one alone, or those that torchrun started, on the GPUs or CPUs of any machines.

Several processes share each batch out; every gradient and every logged term is that of the whole batch.
"""

import os
import re
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator

LONGEST_WAIT = timedelta(hours=3)
"""How long the others wait while the first process evaluates; one that ends is noticed at once, by torchrun."""

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Processes:
    """What the training loop needs to know of the others. Without arguments: this process is alone.

    rank: number of this process, from 0. count: of all. device: what this one computes on.
    """

    def __init__(self, device: torch.device | str = "cpu", accelerator: "Accelerator | None" = None) -> None:
        self._accelerator = accelerator
        self.rank = 0 if accelerator is None else accelerator.process_index
        self.count = 1 if accelerator is None else accelerator.num_processes
        self.device = torch.device(device) if accelerator is None else accelerator.device

    @property
    def first(self) -> bool:
        """Whether this is the one that writes, logs and evaluates."""
        return self.rank == 0

    def share(self, batch_size: int) -> range:
        """Return the positions in a batch that are this process's. Raises ValueError where they cannot be equal."""
        size, rest = divmod(batch_size, self.count)
        if rest:
            raise ValueError(
                f"batch_size {batch_size} is that of all processes together, and cannot be shared equally among "
                f"{self.count}: make it a multiple of {self.count}"
            )
        return range(self.rank * size, (self.rank + 1) * size)

    def wrapped(self, network: nn.Module) -> nn.Module:
        """Return the network such that a backward pass leaves the mean gradient of all processes.

        Every parameter that requires a gradient has to get one in every step; PyTorch stops the next step otherwise.
        """
        return network if self._accelerator is None else self._accelerator.prepare_model(network)

    def normaliser(self, count: Tensor) -> Tensor:
        """Return what to divide a sum over this process's share by, where the whole batch's is divided by its count.

        count: of what is summed in the share, any shape. Divided by the result, the mean over the processes is the sum
        over the whole batch, divided by its count (but at least by 1).
        """
        count = count.detach().float()
        return count.clamp(min=1) if self._accelerator is None else self._sum(count).clamp(min=1) / self.count

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the processes, without gradient."""
        return values.detach() if self._accelerator is None else self._sum(values.detach()) / self.count

    def any(self, flag: bool) -> bool:
        """Say whether the flag is up in any process."""
        return flag if self._accelerator is None else bool(self._sum(torch.tensor(float(flag), device=self.device)) > 0)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()

    def _sum(self, values: Tensor) -> Tensor:
        assert self._accelerator is not None
        result: Tensor = self._accelerator.reduce(values, "sum")
        return result


ALONE = Processes()
"""One process."""


def join(device: str = "cpu") -> Processes:
    """Return the processes that torchrun started together with this one, or this process alone.

    device: `cpu`, `cuda`, or, for a process alone, `cuda:N`. Raises ValueError where it is not there, or Accelerate is
    not installed.
    """
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f"device {device}: use cpu, cuda or cuda:N")
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device}: PyTorch sees no CUDA GPU here; --device cpu, or look at its installation")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(place)
    if place.index is not None:
        raise ValueError(f"device {device}: several processes take one GPU each, name the device without a number")
    try:
        from accelerate import Accelerator, InitProcessGroupKwargs
    except ImportError as error:
        raise ValueError(f"several processes need Accelerate ({error}): pip install accelerate") from None
    # Not DistributedDataParallel's static_graph: with outputs in dataclasses it never averages the gradients.
    group = InitProcessGroupKwargs(timeout=LONGEST_WAIT)
    return Processes(accelerator=Accelerator(cpu=place.type == "cpu", kwargs_handlers=[group]))


def leave() -> None:
    """Part from the other processes, at the end of the program."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def with_batch_norm(network: AnyModule, kind: str, processes: Processes) -> AnyModule:
    """Return the network with batch normalisation over all processes where that is wanted (Optimisation.batch_norm).

    Raises ValueError for `synchronised` among several CPU processes, which PyTorch does not have.
    """
    if kind != "synchronised" or processes.count == 1:
        return network
    if processes.device.type != "cuda":
        raise ValueError(
            "batch_norm synchronised needs a GPU for each process: on CPUs use one process, or set batch_norm to local "
            "or frozen"
        )
    synchronised: AnyModule = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return synchronised
