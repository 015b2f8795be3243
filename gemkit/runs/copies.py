"""Checkpoints of tables that several groups of processes hold once each, while these copies differ."""

from __future__ import annotations

import torch

from gemkit.interfaces import EmbeddingTables
from gemkit.pieces import Piece, Pieces, fill
from gemkit.runs.checkpoint import Stored


def pieces_of_tables(tables: EmbeddingTables, weights: str, squares: str) -> dict[str, Pieces]:
    """What this process holds of tables and of their optimiser's state; of the first copy, if there are several.

    Args:
        weights, squares: What stands before a table's name in a checkpoint.
    """
    named = {weights + name: held for name, held in tables.weight_pieces().items()}
    return named | {squares + name: held for name, held in tables.state_pieces().items()}


def pieces_of_copies(tables: EmbeddingTables, weights: str, squares: str) -> dict[str, Pieces]:
    """What the further copies hold that is not as in the first: ``copies.<number>.<name>``. Every process names all."""
    found = {}
    for name, held in pieces_of_tables(tables, weights, squares).items():
        if name.removeprefix(weights).removeprefix(squares) in tables.apart:
            for copy in range(1, tables.copies):
                found[_of(copy, name)] = Pieces(held.shape, held.pieces if copy == tables.copy else ())
    return found


def load_copies(tables: EmbeddingTables, stored: Stored, copies: int, weights: str, squares: str) -> None:
    """Goes on from a checkpoint of `copies` copies, of which the first has been loaded.

    As many groups go on with a copy each. All other layouts take the mean.

    Raises:
        ValueError: There cannot be as many.
    """
    if not 1 <= copies <= 1 + len(stored):  # the number is the file's own word
        raise ValueError(f"{copies} copies of tables")
    apart = set()
    for name, held in pieces_of_tables(tables, weights, squares).items():
        if _of(1, name) not in stored:
            continue
        if copies != tables.copies:
            _take_mean(held, stored, [_of(copy, name) for copy in range(1, copies)])
            continue
        apart.add(name.removeprefix(weights).removeprefix(squares))
        if tables.copy:
            fill(held, stored, _of(tables.copy, name))
    tables.apart = frozenset(apart)


def _of(copy: int, name: str) -> str:
    return f"copies.{copy}.{name}"


@torch.no_grad()
def _take_mean(first: Pieces, stored: Stored, others: list[str]) -> None:
    for start, values in first.pieces:
        total = values.to(torch.float32, copy=True)
        for name in others:
            fill(Pieces(first.shape, (Piece(start, values),)), stored, name)
            total += values
        values.copy_(total / (1 + len(others)))
