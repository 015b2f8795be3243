"""The hooks of a plugin. A plugin is an installed package with an entry point in the group ``gemkit``.

In its pyproject.toml:

    [project.entry-points.gemkit]
    my_plugin = "my_plugin"

and in my_plugin/__init__.py:

    @gemkit.hookspecs.hookimpl
    def gemkit_components():
        from my_plugin.blocks import MyInteraction
        return [MyInteraction]
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from gemkit.plan.tables import TablePlanner

PLUGIN_API_VERSION = 1
"""Raised when a hook or an interface changes so that older plugins break."""

ENTRY_POINT_GROUP = "gemkit"

hookspec = pluggy.HookspecMarker("gemkit")
hookimpl = pluggy.HookimplMarker("gemkit")


@hookspec
def gemkit_components() -> list[type]:  # type: ignore[empty-body]
    """The plugin's component classes, each decorated with `@component`.

    Import them inside the hook: then a plugin costs nothing until somebody asks for its components.
    """


@hookspec
def gemkit_plugin_api() -> int:  # type: ignore[empty-body]
    """The `PLUGIN_API_VERSION` that the plugin was made for. Optional: without it, the current one is assumed."""


@hookspec
def gemkit_config_folders() -> list[Path]:  # type: ignore[empty-body]
    """Folders of YAML files laid out like `configs/`. Optional."""


@hookspec
def gemkit_table_planner() -> TablePlanner:  # type: ignore[empty-body]
    """What places embedding tables on a cluster that need not be there, for `gemkit plan`. Optional."""
