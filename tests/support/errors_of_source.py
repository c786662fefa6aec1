"""What the source can refuse: the message of every error that a person can mend, found by AST.

A message's holes become "…". What is counted: each `InputError(…)`, each message that the command line ends with
(`_fail(…)`), and each `ValueError(…)` in a pydantic validator, which reaches the user as a line of a recipe's or a
principles file's problems.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.places import SOURCE

HOLE = "…"


class Refusal(NamedTuple):
    place: str  # file and line
    message: str


def refusals(source: Path = SOURCE) -> list[Refusal]:
    """Every message, with "…" for what is filled in; in the order of files and lines."""
    found = []
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(source.rglob("*.py"))}
    everywhere = {name: function for tree in trees.values() for name, function in _functions(tree).items()}
    for file, tree in trees.items():
        functions = everywhere | _functions(tree)
        for call in _calls(tree):
            place = f"{file.relative_to(source)}:{call.lineno}"
            found += [Refusal(place, message) for message in _messages(call.args[0], functions)]
    return found


def _functions(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def _calls(tree: ast.Module) -> Iterator[ast.Call]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    validators = [f for f in functions if any("validator" in ast.unparse(d) for d in f.decorator_list)]
    called = {ast.unparse(n.func) for f in validators for n in ast.walk(f) if isinstance(n, ast.Call)}
    validators += [f for f in functions if f.name in called]
    in_validators = {id(inner) for node in validators for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
            continue
        if node.func.id in ("InputError", "_fail") or (node.func.id == "ValueError" and id(node) in in_validators):
            yield node


def _messages(node: ast.expr, functions: dict[str, ast.FunctionDef]) -> list[str]:
    """The messages an argument can be; those of a function of ours are what it returns."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions:
        body = list(ast.walk(functions[node.func.id]))
        returned = [one.value for one in body if isinstance(one, ast.Return) and one.value]
        messages = [message for value in returned for message in _messages(value, functions)]
        return messages if HOLE not in messages else _sentences(functions[node.func.id])
    if isinstance(node, ast.IfExp):
        return _messages(node.body, functions) + _messages(node.orelse, functions)
    return [" ".join(re.sub(f"{HOLE}+", HOLE, _text(node)).split())]


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return HOLE


def _sentences(function: ast.FunctionDef) -> list[str]:
    """What a function puts together piece by piece: its texts of some words, without its docstring."""
    statements = function.body[1:] if ast.get_docstring(function) else function.body
    pieces, inside = [], set()
    for node in (inner for statement in statements for inner in ast.walk(statement)):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(value) for value in node.values}
        if isinstance(node, ast.JoinedStr | ast.Constant) and id(node) not in inside:
            pieces.append(" ".join(re.sub(f"{HOLE}+", HOLE, _text(node)).split()))
    return [piece for piece in pieces if len(re.findall(r"\w+", piece)) >= 4]
