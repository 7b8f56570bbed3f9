"""Which names a cell reads. Source is parsed and never run."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import UsageError


def parse(source: str) -> ast.Module:
    """Parse a cell.

    Raises
    ------
    UsageError
        It is not plain Python; says what is wrong in which line.
    """
    try:
        return ast.parse(source)
    except SyntaxError as error:
        number = error.lineno or 1
        if magic := _magic(source.splitlines(), number):
            number, line = magic
            raise UsageError(
                f"Line {number} ({line}) is for IPython, and the devices run plain Python; "
                "move it to a cell of its own."
            ) from None
        raise UsageError(
            f"The code has a syntax error in line {number}: {error.msg}; correct it and run it again."
        ) from None
    except ValueError as error:
        raise UsageError(f"The code cannot be parsed: {error}; remove these characters.") from None


def _magic(lines: list[str], suspect: int) -> tuple[int, str] | None:
    """Number and text of the line that IPython alone understands, the suspected one first."""
    numbers = [suspect, *range(1, len(lines) + 1)]
    for number in numbers:
        line = lines[number - 1].strip() if number <= len(lines) else ""
        value = line.partition("=")[2].strip()
        if line.startswith(("%", "!", "?")) or line.endswith("?") or value.startswith(("%", "!")):
            return number, line if len(line) <= 60 else line[:57] + "..."
    return None


def names_read(source: str) -> set[str]:
    """Global names that a cell reads and has not defined before, built-in names included.

    A name counts as defined from the first statement that binds it, in whatever branch; what
    functions of the cell read counts unless the cell binds it anywhere, since they are called
    later.

    Raises
    ------
    UsageError
        The cell does not parse.
    """
    scope = _Scope()
    scope.block(parse(source).body)
    return scope.read | (scope.later - scope.bound)


class _Scope(ast.NodeVisitor):
    """Walks one scope in the order of execution.

    Attributes
    ----------
    read
        Names that were read while they were not bound here.
    later
        Names that functions within read, at a time that nobody knows.
    bound
        Every name that the scope binds, or a function within binds as `global`.
    """

    def __init__(self) -> None:
        self.read: set[str] = set()
        self.later: set[str] = set()
        self.bound: set[str] = set()
        self._now: set[str] = set()

    def block(self, nodes: Iterable[ast.AST]) -> None:
        for node in nodes:
            self.visit(node)

    def bind(self, name: str) -> None:
        self.bound.add(name)
        self._now.add(name)

    def need(self, name: str) -> None:
        if name not in self._now:
            self.read.add(name)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self.need(node.id)
        elif isinstance(node.ctx, ast.Store):
            self.bind(node.id)
        else:
            self.need(node.id)
            self._now.discard(node.id)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        self.block(node.targets)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self.need(node.target.id)
        self.visit(node.value)
        self.visit(node.target)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.annotation)
        if node.value is not None:
            self.visit(node.value)
            self.visit(node.target)
        elif not isinstance(node.target, ast.Name):
            self.visit(node.target)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit(node.value)
        self.visit(node.target)

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self.visit(node.iter)
        self.visit(node.target)
        self.block([*node.body, *node.orelse])

    visit_AsyncFor = visit_For  # noqa: N815  # ast's name

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.bind(alias.asname or alias.name.split(".")[0])

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            self.bind(alias.asname or alias.name)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.type is not None:
            self.visit(node.type)
        if node.name:
            self.bind(node.name)
        self.block(node.body)
        if node.name:
            self._now.discard(node.name)

    def visit_MatchAs(self, node: ast.MatchAs) -> None:
        self.generic_visit(node)
        if node.name:
            self.bind(node.name)

    def visit_MatchStar(self, node: ast.MatchStar) -> None:
        if node.name:
            self.bind(node.name)

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        self.generic_visit(node)
        if node.rest:
            self.bind(node.rest)

    # --- scopes within

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.block(node.decorator_list)
        self._arguments(node.args, annotations=True)
        if node.returns is not None:
            self.visit(node.returns)
        self.bind(node.name)
        self._function(node.args, node.body, _type_parameters(node))

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815  # ast's name

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._arguments(node.args, annotations=False)
        self._function(node.args, [node.body], set())

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.block([*node.decorator_list, *node.bases, *node.keywords])
        inner = _Scope()
        inner.block(node.body)
        own = _type_parameters(node)
        for name in inner.read - own:
            self.need(name)
        # Names of a class body are not seen by its methods.
        self.later |= inner.later - own
        self.bind(node.name)

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp) -> None:
        self._comprehend(node.generators, [node.elt])

    visit_ListComp = visit_SetComp = visit_GeneratorExp = _comprehension  # noqa: N815  # ast's

    def visit_DictComp(self, node: ast.DictComp) -> None:
        self._comprehend(node.generators, [node.key, node.value])

    def _comprehend(self, generators: list[ast.comprehension], results: list[ast.expr]) -> None:
        self.visit(generators[0].iter)
        inner = _Scope()
        for position, generator in enumerate(generators):
            if position:
                inner.visit(generator.iter)
            inner.visit(generator.target)
            inner.block(generator.ifs)
        inner.block(results)
        for name in inner.read:
            self.need(name)
        self.later |= inner.later - inner.bound
        # `:=` within a comprehension binds outside it.
        for part in ast.walk(ast.Tuple(elts=results + [c for g in generators for c in g.ifs])):
            if isinstance(part, ast.NamedExpr):
                self.visit(part.target)

    def _arguments(self, arguments: ast.arguments, *, annotations: bool) -> None:
        """What is evaluated when the function is made."""
        self.block([*arguments.defaults, *(part for part in arguments.kw_defaults if part)])
        if annotations:
            self.block(arg.annotation for arg in _parameters(arguments) if arg.annotation)

    def _function(self, arguments: ast.arguments, body: list[Any], parameters: set[str]) -> None:
        inner = _Scope()
        inner.block(body)
        outer = {
            name
            for node in _own_nodes(body)
            if isinstance(node, ast.Global | ast.Nonlocal)
            for name in node.names
        }
        local = (inner.bound | {arg.arg for arg in _parameters(arguments)} | parameters) - outer
        # `local` are bound throughout a function, so that a read before is an error, not a global.
        self.later |= (inner.read | inner.later) - local
        self.bound |= inner.bound & outer


def _parameters(arguments: ast.arguments) -> list[ast.arg]:
    star = [part for part in (arguments.vararg, arguments.kwarg) if part is not None]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *star]


def _type_parameters(node: ast.AST) -> set[str]:
    """Names in `def f[T]`, which Python has from 3.12 on."""
    return {parameter.name for parameter in getattr(node, "type_params", ())}


def _own_nodes(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Every node of a function, without those of functions and classes within it."""
    waiting = list(body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))
