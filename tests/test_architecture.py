"""The house stays as the design has it: who may import whom, and how large a thing may grow."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import samestep

ROOT = Path(samestep.__file__).parent
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "version", "torch_private", "words"),
    ("host",),
    ("plan",),
    ("data",),
    ("optim",),
    ("engine",),
    ("run",),
    ("measure",),
    ("report",),
    ("workloads",),
    ("demo",),
    ("cli", "__main__"),
)
"""A part imports only from its own floor and those above it in this list."""
LEVEL = {part: level for level, parts in enumerate(FLOORS) for part in parts}
LONGEST_FUNCTION, LONGEST_MODULE = 60, 420


@cache
def modules() -> dict[str, Path]:
    """Every module by its dotted name; a package by the package's name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        names = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(names[:-1] if names[-1] == "__init__" else names)] = path
    return found


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text(), str(modules()[name]))


def is_package(name: str) -> bool:
    return modules()[name].name == "__init__.py"


def imports(name: str) -> Iterator[tuple[str, int, bool]]:
    """What a module imports of ours: (module, line, whether it happens when the module itself is imported).

    ``from a import b`` is an import of ``a.b`` where that is a module, and of ``a`` otherwise.
    """
    module = tree(name)
    late = {id(inner) for outer in ast.walk(module) if _is_late(outer) for inner in ast.walk(outer)}
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} line {node.lineno}: a relative import"
            base = node.module or ""
            targets = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules() else base for alias in node.names]
        else:
            continue
        for target in targets:
            if target.split(".")[0] == "samestep":
                yield target, node.lineno, id(node) not in late


def _is_late(node: ast.AST) -> bool:
    """Whether what is inside runs later, or for a type checker only."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test).endswith("TYPE_CHECKING")
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def part(name: str) -> str:
    """The part of the house that a module is in; "" for the public names."""
    return [*name.split("."), ""][1]


def every_module() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", modules())


def test_every_part_has_a_floor() -> None:
    assert {part(name) for name in modules()} - {""} == set(LEVEL)


@every_module()
def test_imports_only_from_above(name: str) -> None:
    if part(name) == "":
        return  # the public names come from everywhere
    for target, line, _ in imports(name):
        assert target in modules(), f"{name} line {line}: {target} is no module"
        assert target != "samestep", f"{name} line {line}: takes a public name instead of a module"
        level = LEVEL[part(target)]
        assert level <= LEVEL[part(name)], f"{name} line {line}: {part(name)} must not know {target}"


@every_module()
def test_imports_no_name_of_a_package(name: str) -> None:
    for target, line, _ in imports(name):
        assert not is_package(target), f"{name} line {line}: takes a name from the package {target}"


def test_no_cycles() -> None:
    graph = {name: {target for target, _, is_at_once in imports(name) if is_at_once} for name in modules()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' -> '.join(error.args[1])}")


@every_module()
def test_packages_are_empty(name: str) -> None:
    if is_package(name) and name != "samestep":
        assert all(isinstance(node, ast.Expr) for node in tree(name).body), f"{name} holds more than a docstring"


def test_the_plan_needs_no_torch() -> None:
    allowed = {*sys.stdlib_module_names, "numpy", "samestep"}
    for name in modules():
        if part(name) == "plan":
            for node in ast.walk(tree(name)):
                found = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    found = [node.module or ""]
                assert {text.split(".")[0] for text in found} <= allowed, f"{name}: {found}"


def test_errors_and_version_import_nothing_of_ours() -> None:
    assert [*imports("samestep.errors"), *imports("samestep.version"), *imports("samestep.torch_private")] == []


@every_module()
def test_no_global_statements(name: str) -> None:
    lines = [node.lineno for node in ast.walk(tree(name)) if isinstance(node, ast.Global)]
    assert lines == []


@every_module()
def test_has_a_docstring(name: str) -> None:
    if not is_package(name) or modules()[name].stat().st_size:
        assert ast.get_docstring(tree(name)), f"{name} does not say what it is"


@every_module()
def test_sizes(name: str) -> None:
    num_lines = len(modules()[name].read_text().splitlines())
    assert num_lines <= LONGEST_MODULE, f"{name} has {num_lines} lines"
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or node.lineno) - node.lineno + 1 - _docstring_lines(node)
            assert size <= LONGEST_FUNCTION, f"{name}.{node.name} has {size} lines"


def _docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return (first.end_lineno or first.lineno) - first.lineno + 1
    return 0


def test_private_interfaces_of_torch_are_in_one_place() -> None:
    for name in modules():
        if name == "samestep.torch_private":
            continue
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
                is_private = node.attr.startswith("_") and not node.attr.endswith("__")
                assert not is_private, f"{name} line {node.lineno}: torch.{node.attr}"


def test_gpus_are_asked_in_one_place() -> None:
    allowed = ("samestep.engine.device.cuda", "samestep.host.facts")
    for name in modules():
        calls = [
            node.lineno
            for node in ast.walk(tree(name))
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.cuda"
        ]
        assert name in allowed or not calls, f"{name} lines {calls}: torch.cuda"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from samestep.engine import step", "samestep.engine.step"),
        ("from samestep.engine.step import Stepper", "samestep.engine.step"),
        ("from samestep import train", "samestep"),
        ("import samestep.run.train", "samestep.run.train"),
    ],
)
def test_the_tests_see_imports(source: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle itself, on planted modules."""
    path = tmp_path / "planted.py"
    path.write_text(source)
    monkeypatch.setitem(modules(), "samestep.planted", path)
    assert [target for target, _, _ in imports("samestep.planted")] == [expected]
    tree.cache_clear()
