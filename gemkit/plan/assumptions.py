"""What a plan assumes: each a field with its default, and an option of the command line."""

from __future__ import annotations

import dataclasses
from typing import Any

from gemkit.config.fields import Config, option
from gemkit.config.run import RunConfig
from gemkit.errors import GemkitError
from gemkit.plan.gpus import Gpu

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "run": 4}
"""Of a number; where no run has decided, of fp32."""

SYNC_EVERY = 10
"""Steps between averages of tables unless told otherwise."""

LARGEST_GROUP = 256
"""GPUs over which tables are sharded unless told otherwise: TorchRec's planner takes minutes for more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assumptions(Config):
    """How the cluster computes and communicates. Where the default is null, the GPU's facts or the run decide."""

    local_batch: int | None = option(
        None, "Examples of each GPU at a time; null: train.batch_size / GPUs / train.accumulate.", ge=1
    )
    local_mfu: float = option(0.35, "Share of the peak that forward and backward of the dense part reach.", gt=0, le=1)
    fixed_ms: float = option(
        0.0, "Milliseconds of a step that do not depend on the batch: launching many small operations.", ge=0
    )
    latency_us: float = option(0.0, "Microseconds that a collective takes, however few the bytes.", ge=0)
    overlap: float = option(
        1.0, "Share of the dense collectives and of table synchronisation that computing can hide.", ge=0, le=1
    )
    sparse_prefetch: str = option(
        "run",
        "What of the embedding all-to-all computing can hide: nothing; the ids, sent a batch ahead; or the vectors "
        "and their gradients too, which are then one step stale; run: as parallel.prefetch_ids says, ids if its "
        "backend has no such option.",
        choices=("run", "none", "ids", "vectors"),
    )
    units_ahead: int = option(1, "Blocks whose parameters are gathered before they are needed.", ge=0, le=16)
    reserve: float = option(
        0.1, "Share of the memory that is left to CUDA, NCCL and fragmentation of the allocator.", ge=0, lt=1
    )
    dp_shard: int | None = option(
        None,
        "GPUs over which the dense part is sharded; null: as parallel.dp_shard says, else those of a node. The rest "
        "are replicas.",
        ge=1,
    )
    table_group: int | None = option(
        None,
        f"GPUs over which the tables are sharded; null: all, in groups of {LARGEST_GROUP} if there are more and "
        "parallel.sparse_groups does not say how many groups. Groups are replicas.",
        ge=1,
    )
    table_groups: int | None = option(
        None, "Groups, in place of their size; null: as parallel.sparse_groups says, if there are several.", ge=1
    )
    table_neighbours: str = option(
        "run",
        "Which GPUs of a node belong together: those of a group of tables, or the replicas, which hold the same rows; "
        "run: as parallel.sparse_neighbours says, group if its backend has no such option.",
        choices=("run", "group", "replicas"),
    )
    sync_every: int | None = option(
        None,
        "Steps between averages of the tables of all groups; null: parallel.sparse_average_every, 10 if its backend "
        "has no such option.",
        ge=1,
    )
    table_dtype: str = option(
        "run",
        "Numbers of the embedding tables; run: of parallel.embedding_precision.",
        choices=("run", "fp32", "fp16"),
    )
    exchange_dtype: str = option(
        "run",
        "Numbers of embedding vectors and gradients on the network; run: of parallel.exchange_precision, fp32 if its "
        "backend has no such option.",
        choices=("run", "fp32", "bf16", "fp16"),
    )
    gather_dtype: str = option(
        "run",
        "Numbers in which dense parameters are gathered: those of train.precision, as with parallel=hsdp; with fp32 in "
        "a bf16 run autocast keeps copies of all weights until backward.",
        choices=("run", "fp32", "bf16"),
    )
    gradient_dtype: str = option("fp32", "Numbers in which dense gradients are reduced.", choices=("fp32", "bf16"))
    peak_tflop_per_s: float | None = option(None, "Matrix-product peak of a GPU.", gt=0)
    memory_gb: float | None = option(None, "Memory of a GPU, in 10^9 bytes.", gt=0)
    memory_gb_per_s: float | None = option(None, "Bandwidth of a GPU's memory.", gt=0)
    gpus_per_node: int | None = option(None, "GPUs that are connected directly.", ge=1)
    intra_gb_per_s: float | None = option(None, "A GPU to others of its node, in one direction.", gt=0)
    inter_gb_per_s: float | None = option(None, "A GPU to other nodes, in one direction.", gt=0)

    def for_run(self, run: RunConfig) -> Assumptions:
        """With what the run decides, where nothing else is assumed."""

        def said(name: str, otherwise: Any) -> Any:
            return getattr(run.parallel, name, otherwise)

        groups = said("sparse_groups", 1)
        decided = {
            "gather_dtype": run.train.precision,
            "table_dtype": said("embedding_precision", "fp32"),
            "exchange_dtype": "fp16" if said("exchange_precision", "fp32") == "half" else "fp32",
            "table_neighbours": said("sparse_neighbours", "group"),
            "sparse_prefetch": "ids" if said("prefetch_ids", True) else "none",
            "dp_shard": said("dp_shard", None),
            "table_groups": groups if groups > 1 and self.table_group is None else None,
            "sync_every": said("sparse_average_every", SYNC_EVERY),
        }
        return dataclasses.replace(self, **{n: v for n, v in decided.items() if getattr(self, n) in ("run", None)})

    @property
    def steps_between_syncs(self) -> int:
        """Where no run has decided, what it would by default."""
        return self.sync_every or SYNC_EVERY

    @property
    def gather_bytes(self) -> int:
        """Of a number that is gathered."""
        return BYTES[self.gather_dtype]

    def on(self, gpu: Gpu, precision: str) -> Gpu:
        """The GPU with what is assumed otherwise.

        Raises:
            GemkitError: A bandwidth is neither known nor said.
        """
        giga = {
            "memory_bytes": self.memory_gb,
            "memory_bytes_per_s": self.memory_gb_per_s,
            "intra_bytes_per_s": self.intra_gb_per_s,
            "inter_bytes_per_s": self.inter_gb_per_s,
        }
        changes: dict[str, float] = {name: 1e9 * value for name, value in giga.items() if value is not None}
        peaks = {"flop_per_s": {precision: 1e12 * self.peak_tflop_per_s}} if self.peak_tflop_per_s else {}
        gpu = dataclasses.replace(gpu, per_node=self.gpus_per_node or gpu.per_node, **changes, **peaks)  # type: ignore[arg-type]
        for name, flag in (("memory_bytes_per_s", "--memory-gb-per-s"), ("intra_bytes_per_s", "--intra-gb-per-s")):
            if not getattr(gpu, name):
                raise GemkitError(f"nobody prints {name} of gpu={gpu.name}", where=flag, allowed="gigabytes a second")
        return gpu if gpu.inter_bytes_per_s else dataclasses.replace(gpu, inter_bytes_per_s=gpu.intra_bytes_per_s)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hypothetical(Config):
    """Embedding tables in place of a data set's."""

    embedding_params: float | None = option(
        None, "Parameters of all embedding tables together; null: the tables of the run's data set.", ge=1, le=1e16
    )
    embedding_tables: int = option(100, "Tables, each read by one feature of one id.", ge=1, le=100_000)
    embedding_skew: float = option(
        1.0, "S: the i-th largest table has a share of the rows in proportion to i^-S; 0: all are equal.", ge=0, le=4
    )
    event_fields: int = option(2, "Ids of each event, in the largest tables, if the run reads histories.", ge=1)
