"""Tools for tests of gemkit and of plugins: the contract suite, a synthetic data set, tiny runs."""

from __future__ import annotations

from gemkit.testing.contracts import contracts

__all__ = ["contracts"]
