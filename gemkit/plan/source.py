"""A run's workload: counted on its data set, or on hypothetical tables without any."""

from __future__ import annotations

from rich.console import Console
from torch._subclasses.fake_tensor import FakeTensorMode

from gemkit.config.run import RunConfig
from gemkit.cost.count import count, model_cost
from gemkit.model import GEM
from gemkit.plan.assumptions import Hypothetical
from gemkit.plan.hypothetical import hypothetical_batch, hypothetical_schema
from gemkit.plan.workload import Workload, workload
from gemkit.registry import Registry
from gemkit.runs.progress import Progress
from gemkit.session import open_dataset


def workload_of(run: RunConfig, registry: Registry, tables: Hypothetical, local_batch: int) -> Workload:
    """
    Args:
        local_batch: Examples to count with, as far as the data set has so many: the more there are, the more of them
            share a history.

    Raises:
        GemkitError: The run refuses its data.
    """
    local_batch = max(2, local_batch)
    if tables.embedding_params is None:
        with Progress(console=Console(stderr=True)) as progress:
            dataset = open_dataset(run, registry, progress)
        local_batch = min(local_batch, len(dataset.split("train")))
        return workload(run, *(model_cost(run, registry, dataset, size) for size in (local_batch, 1)))
    schema = hypothetical_schema(tables, run.size.dim, run.reads_events)
    with FakeTensorMode():  # on the meta device, a model that does not fit in this machine is refused
        dense = GEM(run, schema, registry)
    batches = (hypothetical_batch(schema, dense, size, run.data.max_history) for size in (local_batch, 1))
    return workload(run, *(count(run, schema, registry, batch) for batch in batches))
