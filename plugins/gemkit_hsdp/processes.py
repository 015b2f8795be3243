"""What backends of several processes share: how they start, and how they speak to each other."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gemkit.config.fields import option
from gemkit.config.run import RunConfig
from gemkit.errors import GemkitError
from gemkit.interfaces import ParallelBackend
from gemkit_hsdp.devices import PRECISIONS, uses_cuda
from gemkit_hsdp.meeting import join
from gemkit_hsdp.memory import MemoryConfig
from gemkit_hsdp.waiting import die_with_parent

if TYPE_CHECKING:
    from lightning.fabric.strategies.ddp import DDPStrategy


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessesConfig(MemoryConfig):
    """How many processes, where, and by what they speak to each other."""

    name: str = "processes"
    accelerator: str = option("auto", "Device.", choices=("auto", "cpu", "cuda"))
    devices: int | None = option(
        None, "Processes on each machine; null: as many as torchrun or SLURM started, else one for each GPU.", ge=1
    )
    num_nodes: int | None = option(None, "Machines; null: as many as torchrun or SLURM says, else 1.", ge=1)
    process_group: str = option(
        "auto", "What collectives run on; auto: nccl on GPUs, gloo on CPUs.", choices=("auto", "nccl", "gloo")
    )
    timeout_s: int = option(1800, "Seconds after which a process that waits for the others gives up.", ge=1)


class Processes(ParallelBackend):
    """Starts the processes through Fabric, and lets them agree. Under torchrun or SLURM they are there already."""

    config: ProcessesConfig

    def strategy(self, **options: Any) -> DDPStrategy:
        """The Fabric strategy that this backend runs in."""
        raise NotImplementedError

    def launch(self, run: RunConfig) -> None:
        from lightning.fabric import Fabric

        config, self.compiled = self.config, run.train.compile
        cuda = uses_cuda(config.accelerator)
        devices, self.num_nodes = self._size(cuda)
        backend = config.process_group if config.process_group != "auto" else "nccl" if cuda else "gloo"
        if backend == "nccl" and not cuda:
            raise GemkitError(
                "parallel.process_group = nccl, and this runs on CPUs",
                where="parallel.process_group",
                allowed="gloo, auto",
            )
        self.timeout = timeout = datetime.timedelta(seconds=config.timeout_s)
        if "TORCHELASTIC_RUN_ID" in os.environ and not dist.is_initialized():
            join(backend, timeout)
        self.fabric = Fabric(
            accelerator="cuda" if cuda else "cpu",
            devices=devices,
            num_nodes=self.num_nodes,
            strategy=self.strategy(process_group_backend=backend, timeout=timeout),
            precision=PRECISIONS[run.train.precision],  # type: ignore[arg-type]
        )
        self.fabric.launch()
        os.environ.setdefault("LOCAL_WORLD_SIZE", str(devices))  # TorchRec counts a machine's devices by it
        if self.fabric.global_rank and "TORCHELASTIC_RUN_ID" not in os.environ and "SLURM_PROCID" not in os.environ:
            die_with_parent()  # the first process has started this one
        # What the host wants to know must not wait for the device.
        self._host = dist.group.WORLD if backend == "gloo" else dist.new_group(backend="gloo", timeout=timeout)

    def _size(self, cuda: bool) -> tuple[int, int]:
        """Processes a machine, and machines."""
        started = os.environ.get("LOCAL_WORLD_SIZE") if "TORCHELASTIC_RUN_ID" in os.environ else None
        if started is None:
            started = os.environ.get("SLURM_NTASKS_PER_NODE")
            nodes = int(os.environ.get("SLURM_NNODES", "1")) if started else 1
        else:
            nodes = int(os.environ["WORLD_SIZE"]) // int(started)
        here = int(started) if started else torch.cuda.device_count() if cuda else 1
        # Without a launcher Fabric starts as many processes as are wanted here, and would wait for ever for machines.
        for what, wanted, found in (
            ("devices", self.config.devices if started else None, here),
            ("num_nodes", self.config.num_nodes, nodes),
        ):
            if wanted not in (None, found):
                raise GemkitError(
                    f"parallel.{what} = {wanted}, and {found} {'was' if found == 1 else 'were'} started",
                    where=f"parallel.{what}",
                    fix=f"leave it out (parallel.{what}=null), or start as many, with torchrun or SLURM",
                )
        return self.config.devices or here, nodes

    def all_gather(self, values: Tensor) -> Tensor:
        parts = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def broadcast(self, value: Any) -> Any:
        held = [value]
        dist.broadcast_object_list(held, src=0, group=self._host)
        return held[0]

    def gather_objects(self, value: Any) -> list[Any]:
        found: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        dist.gather_object(value, found, dst=0, group=self._host)
        return found or []

    def agree(self, flag: bool) -> bool:
        found = torch.tensor(float(flag))
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._host)
        return bool(found)

    def mean(self, values: Tensor) -> Tensor:
        values = values.detach().to(self.fabric.device, copy=True)
        dist.all_reduce(values)
        return values / self.world_size

    def accumulating(self, dense: nn.Module, more: bool) -> contextlib.AbstractContextManager[None]:
        return self.fabric.no_backward_sync(dense, enabled=more)  # type: ignore[arg-type]

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.world_size

    def alone(self) -> ParallelBackend:
        from gemkit_hsdp.single import SingleConfig, SingleProcess

        return SingleProcess(SingleConfig(accelerator=self.config.accelerator))

    @property
    def rank(self) -> int:
        return self.fabric.global_rank

    @property
    def world_size(self) -> int:
        return self.fabric.world_size
