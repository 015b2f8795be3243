"""Checkpoint files: one safetensors file each, with a JSON state in its header. No pickle anywhere.

A file is written beside its final name and then renamed, so the name always holds a whole checkpoint. The
header carries a sha256 over the state and every tensor's name, type, shape and bytes; it is checked on load.

Where several processes train, blocks of tensors lie in files of their own (`gemkit.runs.parts`), which the state names.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from gemkit.errors import GemkitError
from gemkit.pieces import overlap
from gemkit.runs.files import replacing

FORMAT = "gemkit-checkpoint"
FORMAT_VERSION = 4

PARTS = "parts"
"""The folder of files with parts, and what a state says of them."""


def save(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Writes a checkpoint, or leaves an older one of that name as it was.

    Args:
        state: Anything that JSON can hold.

    Raises:
        GemkitError: The file cannot be written (disk full, read-only, ...).
    """
    stored = _separate({name: t.detach().cpu() for name, t in tensors.items()})
    text = json.dumps(dict(state))
    header = {"format": FORMAT, "version": str(FORMAT_VERSION), "state": text, "sha256": _digest(text, stored)}
    with replacing(path) as temporary:
        save_file(stored, temporary, metadata=header)


def load(path: Path) -> tuple[Stored, dict[str, Any]]:
    """The tensors (on the CPU) and the state of a checkpoint. Files of parts are read when something of them is.

    Raises:
        GemkitError: The file is missing, is not a checkpoint, is of another format version, or is damaged; or a file
            of its parts is missing.
    """
    tensors, state = load_file(path)
    return Stored(path, tensors, state.get(PARTS, {})), state


def load_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What one file holds, without its parts.

    Raises:
        GemkitError: As `load`.
    """
    with _opened(path) as (file, header, state):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    if _digest(header["state"], tensors) != header.get("sha256"):
        raise _unreadable(path, "its contents do not match its sha256")
    return tensors, state


class Stored(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name: whole, or block by block.

    Args:
        path: The checkpoint's file.
        tensors: Those that it holds itself.
        parts: What its state says of its other files: ``{"files": [name, ...], "tensors": {name: {"dtype", "shape",
            "blocks": [[file, key, start, size], ...]}}}``.

    Raises:
        GemkitError: A file is missing.
    """

    def __init__(self, path: Path, tensors: dict[str, Tensor], parts: Mapping[str, Any]) -> None:
        self.path, self._tensors = path, tensors
        self.files: list[str] = list(parts.get("files", ()))
        self._split: dict[str, Any] = dict(parts.get("tensors", {}))
        self._open: dict[int, dict[str, Tensor]] = {}
        for name in self.files:
            if Path(name).name != name:
                raise _unreadable(path, f"it names a part outside of its folder: {name!r}")
            if not self._file(name).is_file():
                raise _unreadable(path, f"its part {name} is missing")

    def __getitem__(self, name: str) -> Tensor:
        shape = self.shape(name)
        return self.block(name, (0,) * len(shape), shape)

    def __iter__(self) -> Iterator[str]:
        yield from self._tensors
        yield from self._split

    def __len__(self) -> int:
        return len(self._tensors) + len(self._split)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a whole tensor."""
        return tuple(self._tensors[name].shape if name in self._tensors else self._split[name]["shape"])

    def block(self, name: str, start: Sequence[int], size: Sequence[int]) -> Tensor:
        """A block of a tensor. Blocks of one shape and other places, as they were saved, are put together.

        Raises:
            GemkitError: A part is damaged, or the parts do not cover the block.
        """
        if name in self._tensors:
            return self._tensors[name][tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))]
        known = self._split[name]
        out = torch.empty(tuple(size), dtype=getattr(torch, known["dtype"]))
        missing = out.numel()
        for file, key, other, other_size in known["blocks"]:
            common = overlap(start, size, other, other_size)
            if common is not None:
                here, there = common
                out[here] = self._part(file)[key][there]
                missing -= out[here].numel()
        if missing:
            raise _unreadable(self.path, f"its parts hold no whole {name}: {missing:,} of its numbers are missing")
        return out

    def verify(self, share: int = 0, shares: int = 1) -> None:
        """Reads every `shares`-th file of parts.

        Raises:
            GemkitError: One is damaged.
        """
        for file in range(share, len(self.files), shares):
            load_file(self._file(self.files[file]))

    def _part(self, file: int) -> dict[str, Tensor]:
        if file not in self._open:
            self._open[file] = load_file(self._file(self.files[file]))[0]
        return self._open[file]

    def _file(self, name: str) -> Path:
        return self.path.parent / PARTS / name


class Summary(NamedTuple):
    """What a checkpoint's header says, its tensors unread.

    Attributes:
        tensors: Name -> (type as safetensors names it, shape).
    """

    state: dict[str, Any]
    tensors: dict[str, tuple[str, tuple[int, ...]]]


def summarise(path: Path) -> Summary:
    """Reads the header alone.

    Raises:
        GemkitError: As `load`, but for damage to the tensors, which it does not see.
    """
    with _opened(path) as (file, _, state):
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        tensors = {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
        for name, known in state.get(PARTS, {}).get("tensors", {}).items():
            tensors[name] = (known["dtype"], tuple(known["shape"]))
        return Summary(state, tensors)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, str], dict[str, Any]]]:
    """The file, its header, and the state in it."""
    if not path.is_file():
        raise GemkitError(f"there is no checkpoint {path.name}", where=str(path), fix=_others(path))
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            _check_format(header, path)
            yield file, header, _state(header)
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, str(error)) from error


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors of which no two share memory, as safetensors wants them."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone(memory_format=torch.contiguous_format) if storage in seen else tensor.contiguous()
        seen.add(storage)
    return result


def _state(header: Mapping[str, str]) -> dict[str, Any]:
    try:
        state = json.loads(header["state"])
    except KeyError:
        raise ValueError("its header has no state") from None
    if not isinstance(state, dict):
        raise ValueError("its state is not a mapping")
    return state


def _digest(state: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_format(header: Mapping[str, str], path: Path) -> None:
    if header.get("format") != FORMAT:
        raise GemkitError(f"{path.name} is not a checkpoint of gemkit", where=str(path))
    if header.get("version") != str(FORMAT_VERSION):
        raise GemkitError(
            f"{path.name} has format version {header.get('version')}",
            where=str(path),
            allowed=f"version {FORMAT_VERSION}",
            fix="read it with the version of gemkit that wrote it (see environment.json)",
        )


def _unreadable(path: Path, why: str) -> GemkitError:
    return GemkitError(
        f"{path.name} cannot be read: {why}", where=str(path), fix=_others(path) or "train again, or use another run"
    )


def _others(path: Path) -> str | None:
    folder = path.parent
    names = sorted(p.name for p in folder.glob(f"*{path.suffix}") if p != path) if folder.is_dir() else []
    return f"use another one: {', '.join(names)}" if names else None
