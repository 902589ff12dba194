"""
Which small lies can be told about a function: its source comes in, changed modules come out.

Comparisons are turned or moved by one, conditions negated or cut, numbers and bytes changed, arithmetic
exchanged, calls and raises left out, results replaced by None. Words meant for people (messages, and what a
report says was found) are left alone, for no decision depends on them; error codes and names that are
looked up are not.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

_COMPARE: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_FOR_PEOPLE = frozenset(
    {"message", "found", "wanted", "source", "name", "about", "why", "detail", "what", "where"}
)
_TELLING = frozenset({"passed", "not_asked", "not_applicable", "does_not_apply", "was_not_asked"})

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Mutant:
    """One changed function of a module."""

    function: str  # qualified name
    line: int
    lie: str
    lines: range  # of the statement; whoever runs none of them cannot notice
    place: int
    which: int

    def told(self, source: str) -> ast.Module:
        """The whole module, with the lie in it."""
        tree = ast.parse(source)
        twin = dict(functions(tree))[self.function]
        node, lies = next(islice(_places(twin), self.place, None))
        _replace(twin, node, lies[self.which][1])
        return ast.fix_missing_locations(tree)


def functions(tree: ast.Module) -> Iterator[tuple[str, Function]]:
    """Every function and method, by qualified name; functions within functions belong to the outer one."""

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, Function]]:
        for node in body:
            if isinstance(node, Function):
                yield prefix + node.name, node
            elif isinstance(node, ast.ClassDef):
                yield from walk(node.body, f"{prefix}{node.name}.")

    return walk(tree.body, "")


def mutants(source: str) -> Iterator[Mutant]:
    """Every lie that can be told about the functions of this source."""
    for name, function in functions(ast.parse(source)):
        statements = {id(node): lines for node, lines in _statements(function)}
        for place, (node, lies) in enumerate(_places(function)):
            for which, (lie, _) in enumerate(lies):
                line = getattr(node, "lineno", function.lineno)
                yield Mutant(name, line, lie, statements[id(node)], place, which)


def _statements(function: Function) -> Iterator[tuple[ast.AST, range]]:
    """Each node, with the lines of the innermost statement around it (of its head, if it has a body)."""

    def walk(node: ast.AST, lines: range) -> Iterator[tuple[ast.AST, range]]:
        if isinstance(node, ast.stmt):
            head = [one for one in ast.iter_child_nodes(node) if isinstance(one, ast.expr | ast.withitem)]
            ends = [one.end_lineno or 0 for top in head for one in ast.walk(top) if isinstance(one, ast.expr)]
            last = (node.end_lineno or 0) if not hasattr(node, "body") else max(ends, default=node.lineno)
            lines = range(node.lineno, max(last, node.lineno) + 1)
        yield node, lines
        for child in ast.iter_child_nodes(node):
            yield from walk(child, lines)

    for statement in function.body:
        yield from walk(statement, range(0))


Lies = list[tuple[str, ast.AST]]


def _places(function: Function) -> Iterator[tuple[ast.AST, Lies]]:
    spared = {id(node) for node in _spared(function)}
    for statement in function.body:
        for node in ast.walk(statement):
            if id(node) not in spared and (lies := _lies(node)):
                yield node, lies


def _spared(function: Function) -> Iterator[ast.AST]:
    """Annotations, docstrings, and words for people (those that are neither compared nor looked up)."""
    looked_up = {id(one) for node in ast.walk(function) for one in _looked_up(node)}
    for node in ast.walk(function):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in looked_up:
            yield node
        if isinstance(node, ast.AnnAssign):
            yield from ast.walk(node.annotation)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value
            yield node
        elif isinstance(node, ast.JoinedStr | ast.Assert):
            yield from ast.walk(node)
        elif isinstance(node, ast.keyword) and node.arg in _FOR_PEOPLE:
            yield from ast.walk(node.value)
        elif isinstance(node, ast.Call):
            told = isinstance(node.func, ast.Attribute) and node.func.attr in _TELLING
            for one in node.args if told else ():
                yield from ast.walk(one)
        elif isinstance(node, Function) and node is not function:
            for annotation in (node.returns, *(one.annotation for one in node.args.args)):
                if annotation is not None:
                    yield from ast.walk(annotation)


def _looked_up(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Compare():
            for side in (node.left, *node.comparators):
                yield from ast.walk(side)
        case ast.Subscript():
            yield node.slice
        case ast.Dict():
            yield from (key for key in node.keys if key is not None)
        case ast.keyword(arg="code"):
            yield from ast.walk(node.value)
        case ast.Call(
            func=ast.Attribute(attr="get" | "pop" | "startswith" | "endswith" | "partition" | "encode")
        ):
            yield from node.args[:1]


def _lies(node: ast.AST) -> Lies:
    match node:
        case ast.Compare(ops=[op]):
            return [
                (
                    f"{type(op).__name__} → {other.__name__}",
                    ast.Compare(left=node.left, ops=[other()], comparators=node.comparators),
                )
                for other in _COMPARE[type(op)]
            ]
        case ast.Compare():
            found: Lies = []
            for at, op in enumerate(node.ops):
                ops = [*node.ops]
                ops[at] = _COMPARE[type(op)][0]()
                found.append(
                    (
                        f"{type(op).__name__} → {type(ops[at]).__name__}",
                        ast.Compare(left=node.left, ops=ops, comparators=node.comparators),
                    )
                )
            return found
        case ast.BoolOp():
            other: ast.boolop = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            lies: Lies = [
                (
                    f"{type(node.op).__name__} → {type(other).__name__}",
                    ast.BoolOp(op=other, values=node.values),
                )
            ]
            for at in range(len(node.values)):
                rest = [value for place, value in enumerate(node.values) if place != at]
                left = rest[0] if len(rest) == 1 else ast.BoolOp(op=node.op, values=rest)
                lies.append((f"operand {at + 1} left out", left))
            return lies
        case ast.UnaryOp(op=ast.Not()):
            return [("not left out", node.operand)]
        case ast.If() | ast.While() | ast.IfExp() if isinstance(
            node.test, ast.Name | ast.Attribute | ast.Call
        ):
            changed = copy.copy(node)
            changed.test = ast.UnaryOp(op=ast.Not(), operand=node.test)
            return [("condition negated", changed)]
        case ast.BinOp() if type(node.op) in _ARITHMETIC and not _text(node):
            operator = _ARITHMETIC[type(node.op)]
            return [
                (
                    f"{type(node.op).__name__} → {operator.__name__}",
                    ast.BinOp(left=node.left, op=operator(), right=node.right),
                )
            ]
        case ast.Constant(value=bool() as old):
            return [(f"{old} → {not old}", ast.Constant(value=not old))]
        case ast.Constant(value=int() as old):
            return [(f"{old} → {old + 1}", ast.Constant(value=old + 1))]
        case ast.Constant(value=bytes() as old):
            return [("other bytes", ast.Constant(value=old + b"?"))]
        case ast.Constant(value=str() as old) if old:
            return [("another word", ast.Constant(value=old + "x"))]
        case ast.Expr(value=ast.Call(func=func)):
            if isinstance(func, ast.Attribute) and func.attr in _TELLING:
                return []
            return [("call left out", ast.Pass())]
        case ast.Raise() | ast.AugAssign():
            return [(f"{type(node).__name__.lower()} left out", ast.Pass())]
        case ast.Return(value=value) if value is not None and not (
            isinstance(value, ast.Constant) and value.value is None
        ):
            return [("returns None", ast.Return(value=ast.Constant(value=None)))]
        case ast.Continue():
            return [("continue → break", ast.Break())]
        case ast.Break():
            return [("break → continue", ast.Continue())]
    return []


def _text(node: ast.BinOp) -> bool:
    sides = (node.left, node.right)
    return any(isinstance(side, ast.Constant) and isinstance(side.value, str) for side in sides)


def _replace(root: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for parent in ast.walk(root):
        for field, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, field, ast.copy_location(new, old))
                return
            if isinstance(value, list):
                for at, one in enumerate(value):
                    if one is old:
                        value[at] = ast.copy_location(new, old)
                        return
    raise LookupError("the place of the lie is not in this function")
