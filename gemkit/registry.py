"""What is installed: plugins, found by their entry points, and the components that they bring.

Nothing registers itself. `load_registry` asks every plugin for its classes, one plugin at a time, so that
one that fails to import is kept in `Registry.failures` and is fatal only to a run that names a component
that cannot be found.
"""

from __future__ import annotations

import dataclasses
import functools
import traceback
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from gemkit import __version__, hookspecs
from gemkit.component import KINDS, NONE, OPTIONAL_KINDS, ComponentSpec, spec_of
from gemkit.config.fields import from_mapping, shown
from gemkit.config.memory import counted, sizes_of
from gemkit.errors import GemkitError, did_you_mean

if TYPE_CHECKING:
    from gemkit.interfaces import BuildContext
    from gemkit.plan.tables import TablePlanner

INTERFACES: dict[str, str] = {
    "data": "DataRecipe",
    "tokenizer": "Tokenizer",
    "interaction": "InteractionModule",
    "sequence": "SequenceEncoder",
    "cross": "CrossFeatureLayer",
    "domain": "DomainLayer",
    "head": "Head",
    "transfer": "TransferStrategy",
    "parallel": "ParallelBackend",
}
"""Kind -> its class in `gemkit.interfaces`."""

WITHOUT_CONTEXT = frozenset({"data", "parallel"})
"""Kinds that exist before there is a model: built as `Component(config)`."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a plugin is not there.

    Attributes:
        distribution: Installed package that declares the plugin.
        traceback: The traceback, or the reason if there is none.
    """

    distribution: str
    version: str
    traceback: str

    @property
    def reason(self) -> str:
        """The last line of the traceback: the error itself."""
        return self.traceback.strip().rpartition("\n")[2]


@dataclasses.dataclass(frozen=True)
class Plugin:
    """A plugin before it is loaded.

    Attributes:
        name: Name of its entry point.
        load: Imports it: returns a module or an object with hooks.
    """

    name: str
    distribution: str
    version: str
    load: Callable[[], Any]


class Registry:
    """The components of all plugins, by kind and name.

    Raises:
        GemkitError: Two plugins bring a component of the same kind and name.
    """

    def __init__(self, plugins: Iterable[Plugin]) -> None:
        self.failures: dict[str, Failure] = {}
        self.modules: dict[str, str] = {}
        """Plugin -> top-level package of its code."""
        self._specs: dict[tuple[str, str], ComponentSpec] = {}
        self._plugins: dict[tuple[str, str], Plugin] = {}
        self._folders: list[Path] = []
        self._manager = pluggy.PluginManager("gemkit")
        self._manager.add_hookspecs(hookspecs)
        for plugin in plugins:
            try:
                specs, folders = self._load(plugin)
            except (Exception, SystemExit) as error:
                quiet = isinstance(error, _RefusedError)
                text = str(error) if quiet else "".join(traceback.format_exception(error))
                self.failures[plugin.name] = Failure(plugin.distribution, plugin.version, text)
                continue
            self._folders += folders
            for spec in specs:
                self._add(spec, plugin)

    @classmethod
    def from_plugins(cls, plugins: Mapping[str, Any] | Iterable[Any]) -> Registry:
        """A registry of objects in memory instead of entry points, for tests.

        Args:
            plugins: Modules or objects with hooks, named by their `__name__` unless a mapping names them.
        """
        if not isinstance(plugins, Mapping):
            plugins = {getattr(p, "__name__", type(p).__name__): p for p in plugins}
        return cls(Plugin(n, n, "0", functools.partial(lambda x: x, p)) for n, p in plugins.items())

    def _load(self, plugin: Plugin) -> tuple[list[ComponentSpec], list[Path]]:
        loaded = plugin.load()
        if not self._manager.register(loaded, plugin.name):
            raise _RefusedError(f"the plugin name '{plugin.name}' is blocked")
        module = getattr(loaded, "__name__", type(loaded).__module__)
        self.modules[plugin.name] = module.partition(".")[0]
        self._manager.check_pending()
        if not self._manager.get_hookcallers(loaded):
            raise _RefusedError(f"'{module}' implements no gemkit hook; gemkit_components with @hookimpl is the least")
        for version in self._ask("gemkit_plugin_api", plugin.name):
            if version != hookspecs.PLUGIN_API_VERSION:
                raise _RefusedError(
                    f"{plugin.distribution} {plugin.version} was made for version {version} of gemkit's plugin API; "
                    f"gemkit {__version__} has version {hookspecs.PLUGIN_API_VERSION}"
                )
        specs = [_checked(cls) for classes in self._ask("gemkit_components", plugin.name) for cls in classes]
        folders = [Path(f) for found in self._ask("gemkit_config_folders", plugin.name) for f in found]
        return specs, folders

    def _ask(self, hook: str, plugin: str) -> list[Any]:
        """Calls a hook of one plugin only, so that its answer or its exception has an owner."""
        found = getattr(self._manager.hook, hook).get_hookimpls()
        return [impl.function() for impl in found if impl.plugin_name == plugin]

    def _add(self, spec: ComponentSpec, plugin: Plugin) -> None:
        key = (spec.kind, spec.name)
        if key in self._specs:
            first = self._plugins[key]
            raise GemkitError(
                f"{spec.kind} '{spec.name}' is there twice: from plugin '{first.name}' "
                f"({first.distribution} {first.version}) and from plugin '{plugin.name}' "
                f"({plugin.distribution} {plugin.version})",
                allowed="one component of each kind and name",
                fix=f"rename one, or: pip uninstall {plugin.distribution}",
            )
        self._specs[key] = spec
        self._plugins[key] = plugin

    # --- looking up -----------------------------------------------------------------------------------------

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(KINDS)

    def names(self, kind: str) -> list[str]:
        """Names of the components of a kind, in alphabetical order; without ``none``."""
        return sorted(n for k, n in self._specs if k == self._kind(kind))

    def specs(self, kind: str | None = None) -> list[ComponentSpec]:
        """Components in order of kind and name."""
        kinds = self.kinds if kind is None else (self._kind(kind),)
        return [self._specs[k, n] for k in kinds for n in self.names(k)]

    def get(self, kind: str, name: str) -> ComponentSpec:
        """Raises: GemkitError: There is no such component; the choices and the nearest are named."""
        spec = self._specs.get((self._kind(kind), name))
        if spec is None:
            raise self.unknown(kind, name)
        return spec

    def plugin_of(self, kind: str, name: str) -> tuple[str, str, str]:
        """Plugin, distribution and version that a component comes from."""
        self.get(kind, name)
        plugin = self._plugins[kind, name]
        return plugin.name, plugin.distribution, plugin.version

    def config_folders(self) -> list[Path]:
        """Folders of YAML files that plugins bring, laid out like `configs/`."""
        return list(self._folders)

    def table_planner(self) -> TablePlanner | None:
        """What places tables on a simulated cluster, of the first plugin by name that brings such a planner."""
        found = self._manager.hook.gemkit_table_planner.get_hookimpls()
        by_name = sorted(found, key=lambda impl: impl.plugin_name)
        planner: TablePlanner | None = by_name[0].function() if by_name else None  # type: ignore[assignment]
        return planner

    def unknown(self, kind: str, name: object, where: str | None = None, extra: Iterable[str] = ()) -> GemkitError:
        """The error for a choice that does not exist; names plugins that failed and may have had it.

        Args:
            extra: Choices beside the components: YAML files.
        """
        choices = sorted({*self.names(kind), *extra} - {NONE}) + ([NONE] if kind in OPTIONAL_KINDS else [])
        left_out = name in (None, NONE)
        fixes = ["choose one of them" if left_out else did_you_mean(str(name), choices)]
        if self.failures:
            fixes.append(f"plugins that failed to load: {', '.join(self.failures)} (`gemkit components` says why)")
        return GemkitError(
            f"{kind} cannot be left out" if left_out else f"unknown {kind} {shown(name)}",
            where=where or kind,
            allowed=", ".join(choices) or "(nothing is installed)",
            fix="; ".join(filter(None, fixes)),
        )

    def _kind(self, kind: str) -> str:
        if kind not in KINDS:
            raise GemkitError(f"unknown kind {shown(kind)}", allowed=", ".join(KINDS), fix=did_you_mean(kind, KINDS))
        return kind

    # --- configuring and building ---------------------------------------------------------------------------

    def config(self, kind: str, value: Any, where: str | None = None) -> Any:
        """The config dataclass of a component, or None for ``none``.

        Args:
            value: A name, a mapping with a `name`, None, or a config that is already made.
            where: Dotted path for error messages; the kind if not given.

        Raises:
            GemkitError: No such component, an unknown key or a refused value; with the full dotted path.
        """
        where = where or self._kind(kind)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            self._spec_of_config(kind, value)
            return value
        if isinstance(value, Mapping):
            if "name" not in value:
                allowed = ", ".join(self.names(kind))
                raise GemkitError(f"{where} has no name", where=f"{where}.name", allowed=allowed)
            name, values = value["name"], value
        else:
            name, values = value, {"name": value}
        if name in (None, NONE) and kind in OPTIONAL_KINDS:
            return None
        if not isinstance(name, str) or (kind, name) not in self._specs:
            raise self.unknown(kind, name, where)
        return from_mapping(self._specs[kind, name].config, values, where)

    def build(self, kind: str, config: Any, context: BuildContext | None = None) -> Any:
        """A component; None for ``none``. In `context.build`, the component can build others.

        Args:
            config: Whatever `Registry.config` takes.
            context: Its place in the model; data recipes and parallel backends have none.
        """
        config = self.config(kind, config)
        if config is None:
            return None
        spec = self._spec_of_config(kind, config)
        if kind in WITHOUT_CONTEXT:
            return spec.cls(config)
        if context is None:
            raise TypeError(f"a component of kind {kind!r} is built in a context")
        place = dataclasses.replace(context, build=self.context_build(context))
        sizes = {"size.dim": context.dim, "size.num_tokens": context.num_tokens_out or 1}
        what = f"{kind}={spec.name}, trained as layer {context.layer},"
        return counted(lambda: spec.cls(config, place), what, sizes_of(config, kind) | sizes)

    def context_build(self, context: BuildContext) -> Callable[..., Any]:
        """`build(kind, config, **changes)`: builds in this context, with `changes` to it."""

        def build(kind: str, config: Any, **changes: Any) -> Any:
            return self.build(kind, config, dataclasses.replace(context, **changes))

        return build

    def context(self, **fields: Any) -> BuildContext:
        """A `BuildContext` with these fields, whose `build` is this registry's."""
        from gemkit.interfaces import BuildContext

        context = BuildContext(build=self.build, **fields)
        return dataclasses.replace(context, build=self.context_build(context))

    def _spec_of_config(self, kind: str, config: Any) -> ComponentSpec:
        spec = self.get(kind, getattr(config, "name", ""))
        if not isinstance(config, spec.config):
            raise TypeError(
                f"{kind} '{spec.name}' is configured by {spec.config.__name__}, got {type(config).__name__}"
            )
        return spec


class _RefusedError(Exception):
    """A plugin breaks the rules; the message says which, and needs no traceback."""


def _checked(cls: Any) -> ComponentSpec:
    spec = spec_of(cls)
    if spec is None:
        raise _RefusedError(f"gemkit_components returned {cls!r}, which has no @component of its own")
    # By name, so that looking does not import torch.
    if not any(b.__module__ == "gemkit.interfaces" and b.__name__ == INTERFACES[spec.kind] for b in cls.__mro__):
        raise _RefusedError(
            f"{cls.__qualname__} is a component of kind '{spec.kind}' but no subclass of "
            f"gemkit.interfaces.{INTERFACES[spec.kind]}"
        )
    return spec


@functools.cache
def load_registry() -> Registry:
    """All installed plugins, once per process.

    Raises:
        GemkitError: Two plugins bring a component of the same kind and name.
    """
    found = metadata.entry_points(group=hookspecs.ENTRY_POINT_GROUP)
    plugins = []
    for point in sorted(found, key=lambda p: p.name):
        dist = point.dist
        name, version = (dist.name, dist.version) if dist else ("unknown distribution", "?")
        plugins.append(Plugin(point.name, name, version, point.load))
    return Registry(plugins)
