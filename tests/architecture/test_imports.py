"""Who may import whom: the rules of the architecture page, checked on the source without running it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "numpy", "pyarrow", "hydra", "lightning", "matplotlib", "torchrec", "fbgemm_gpu", "triton"}
HYDRA_FILE = "gemkit/config/compose.py"
TORCHREC_FILES = {"gemkit/doctor_checks.py"}
TORCHREC_FOLDERS = ("plugins/gemkit_hsdp/",)
NOT_DATA = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
"""Modules that run code when they read a file."""


class Import(NamedTuple):
    """One imported module; `lazy` if inside a function or for type checkers only."""

    module: str
    line: int
    lazy: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


def imports_of(tree: ast.AST, lazy: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0 and node.module:  # a relative import stays inside its package
                yield Import(node.module, node.lineno, lazy)
        elif isinstance(node, ast.Call) and _name(node.func) in ("import_module", "__import__"):
            names = [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
            yield from (Import(str(name), node.lineno, lazy) for name in names)
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(node, ast.If) and _name(node.test) == "TYPE_CHECKING"
        yield from imports_of(node, lazy or function or typing_only)


def violations(file: str, source: str) -> list[str]:
    """What `file`, a path below the root, does that it may not."""
    tree = ast.parse(source)
    package = file.split("/")[0 if file.startswith("gemkit/") else 1]
    found = []
    for item in imports_of(tree):
        rule = _broken_rule(file, package, item)
        if rule:
            found.append(f"{file}:{item.line}: imports {item.module}: {rule}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in ("eval", "exec", "torch.load"):
                found.append(f"{file}:{node.lineno}: calls {name}: runs what it reads")
    return found


def _broken_rule(file: str, package: str, item: Import) -> str | None:
    ours = item.top == "gemkit" or item.top.startswith("gemkit_")
    if ours and item.top != package:
        if package == "gemkit":
            return "the core does not know plugins or kernels"
        if package == "gemkit_kernels":
            return "kernels stand alone"
        if item.top not in ("gemkit", "gemkit_kernels"):
            return "a plugin does not know other plugins"
    if item.top == "hydra" and file != HYDRA_FILE:
        return f"only {HYDRA_FILE} knows hydra"
    if item.top == "triton" and package != "gemkit_kernels":
        return "only kernels know triton"
    if item.top == "torchrec" or item.top.startswith("fbgemm"):
        if file not in TORCHREC_FILES and not file.startswith(TORCHREC_FOLDERS):
            return "torchrec and fbgemm are known in few places"
        if not item.lazy:
            return "import it where it is used: it costs seconds"
    if item.top in NOT_DATA:
        return "it runs code when it reads a file"
    return None


def _name(node: ast.expr) -> str | None:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None


def test_every_file_keeps_the_rules() -> None:
    files = {folder: sorted((ROOT / folder).rglob("*.py")) for folder in ("gemkit", "plugins", "kernels")}
    assert len(files["gemkit"]) > 25
    assert len(files["plugins"]) > 6
    assert len(files["kernels"]) > 0
    found = []
    for path in [path for paths in files.values() for path in paths]:
        found += violations(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    assert not found, "\n".join(found)


def test_the_allow_list_names_files_that_exist() -> None:
    for name in [HYDRA_FILE, *TORCHREC_FILES, *TORCHREC_FOLDERS]:
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("gemkit/model.py", "from gemkit_wukong.blocks import Wukong"),
        ("gemkit/model.py", "def f():\n    import gemkit_wukong"),
        ("gemkit/model.py", "import importlib\nimportlib.import_module('gemkit_wukong')"),
        ("gemkit/model.py", "if TYPE_CHECKING:\n    from gemkit_wukong import Wukong"),
        ("gemkit/model.py", "import gemkit_kernels"),
        ("gemkit/model.py", "import triton.language as tl"),
        ("gemkit/model.py", "from hydra import compose"),
        ("gemkit/model.py", "def f():\n    import torchrec"),
        ("gemkit/doctor_checks.py", "import torchrec"),
        ("plugins/gemkit_hsdp/tables.py", "from fbgemm_gpu.x import y"),
        ("plugins/gemkit_hsdp/tables.py", "class A:\n    import torchrec"),
        ("plugins/gemkit_wukong/blocks.py", "from gemkit_pyramid import Pyramid"),
        ("plugins/gemkit_wukong/blocks.py", "def f():\n    import torchrec"),
        ("plugins/gemkit_wukong/blocks.py", "import triton"),
        ("kernels/gemkit_kernels/gdpa/op.py", "def f():\n    from gemkit.errors import GemkitError"),
        ("kernels/gemkit_kernels/gdpa/op.py", "import gemkit_wukong"),
        ("gemkit/train.py", "import pickle"),
        ("gemkit/train.py", "import torch\ntorch.load('x')"),
        ("gemkit/train.py", "eval('1')"),
    ],
)
def test_the_linter_sees(file: str, source: str) -> None:
    assert violations(file, source)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("gemkit/model.py", "from gemkit.errors import GemkitError\nimport torch\nmodel.eval()"),
        ("gemkit/config/compose.py", "import hydra"),
        ("gemkit/doctor_checks.py", "def f():\n    import torchrec, fbgemm_gpu"),
        ("plugins/gemkit_hsdp/tables.py", "if TYPE_CHECKING:\n    import torchrec"),
        ("plugins/gemkit_wukong/blocks.py", "import gemkit_kernels, gemkit.interfaces, gemkit_wukong.config"),
        ("kernels/gemkit_kernels/gdpa/triton.py", "import triton\nfrom . import reference"),
    ],
)
def test_the_linter_allows(file: str, source: str) -> None:
    assert not violations(file, source)


def loaded_by(statement: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after `statement`."""
    code = f"import sys\n{statement}\nprint(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return HEAVY & set(done.stdout.split())


def config_modules() -> list[str]:
    return [f"gemkit.config.{path.stem}" for path in sorted((ROOT / "gemkit/config").glob("[a-z]*.py"))]


def test_light_modules_load_nothing_heavy() -> None:
    names = ["errors", "component", "registry", "hookspecs", "data.schema", "data.source"]
    modules = ["gemkit", *(f"gemkit.{name}" for name in names), *config_modules()]
    assert len(modules) > 9
    assert loaded_by(f"import {', '.join(modules)}") == set()


def test_the_command_line_starts_without_torch() -> None:
    assert loaded_by("import gemkit.cli.main") == set()


def test_what_is_loaded_is_seen() -> None:
    assert loaded_by("import gemkit.data.batch") >= {"torch"}


def test_kernels_import_without_triton() -> None:
    # None in sys.modules makes every import of it fail; the name itself is then seen as loaded.
    assert loaded_by("sys.modules['triton'] = None; import gemkit_kernels") <= {"torch", "numpy", "triton"}
