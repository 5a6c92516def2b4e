"""Makes mutants of one file: small, plausible mistakes in Python, in the SQL inside it, in Lua and in C++."""

import ast
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

_SWAPS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"), ast.And: ("and", "or"), ast.Or: ("or", "and"),
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.FloorDiv: ("//", "*"),
}  # fmt: skip
_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
_LOGS = re.compile(r"^\s*(await )?_?log(ger)?\.")
_SQL = re.compile(r"\b(SELECT|UPDATE|DELETE FROM|INSERT INTO|WHERE|CASE WHEN|ORDER BY|RETURNING|EXISTS)\b")
_TIME = re.compile(r"now\(|_at\b|_until\b|_since\b|timestamp")
_ORDER = {r"(?<= )<(?= )": "<=", r"(?<= )<=(?= )": "<", r"(?<= )>(?= )": ">=", r"(?<= )>=(?= )": ">"}
_SUMS = {r"(?<= )\+(?= )": "-", r"(?<= )-(?= )": "+", r"\btrue\b": "false", r"\bfalse\b": "true"}
_SUMS |= {r"\bmin\(": "max(", r"\bmax\(": "min("}
# Behind SET, "=" assigns; see _assigns.
_PIECES = _ORDER | _SUMS | {
    r"(?<= )=(?= (?!EXCLUDED))": "<>", r"(?<= )<>(?= )": "=", r"\bWHERE(?= )": "WHERE true OR",
    r"\bIS NOT NULL\b": "IS NULL", r"\bIS NULL\b": "IS NOT NULL", r"\bAND [\w.]+ IS (NOT )?NULL\b": "",
    r"\bAND [\w.]+ (=|<>|<|>|<=|>=) [\w.:']+(?=[\s)\"])": "", r"\bAND [\w.]+(?=\s)(?! [=<>I+*-])": "AND true",
    r"\bOR(?= )": "AND", r"\bNOT (?!NULL)": "", r"\bLIMIT [:\w.()]+": "", r" DESC\b": "", r"\bDISTINCT ": "",
    r"\bORDER BY [\w., ]+?(?= LIMIT|\)|\n| FOR )": "", r" SKIP LOCKED\b": "", r"\bLEFT JOIN\b": "JOIN",
    r"\bGREATEST\(": "LEAST(", r"\bLEAST\(": "GREATEST(",
}  # fmt: skip
_CODE = _ORDER | {
    r"==": "!=", r"(?<= )[!~]=(?= )": "==", r"&&": "||", r"\|\|": "&&", r"\band\b": "or", r"(?<= )\+(?= )": "-",
    r"(?<= )-(?= )": "+", r"(?<= )\*(?= \w)": "+", r"\bmax\(": "min(", r"\bmin\(": "max(",
    r"\btrue\b": "false", r"\bfalse\b": "true", r"(?<=[ (])(\d+)(?=[;,) ])": r"\1 + 1",
}  # fmt: skip


Change: TypeAlias = tuple[int, int, str, str]
"""Start and end in the file, the new text, and the kind of the change."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change: the characters from ``start`` to ``end`` of the file become ``new``.

    ``function`` is the qualified name of the function around it, "" at module level. ``names``: the names that the
    statement at module level defines.
    """

    path: str
    line: int
    kind: str
    start: int
    end: int
    new: str
    function: str
    names: tuple[str, ...] = ()

    def applied(self, source: str) -> str:
        """Return the changed file."""
        return source[: self.start] + self.new + source[self.end :]

    def diff(self, source: str) -> str:
        """Return the changed lines, old and new, in one line."""
        first, last = source.rfind("\n", 0, self.start) + 1, (source + "\n").find("\n", self.end)
        new = source[first : self.start] + self.new + source[self.end : last]
        return f"{' '.join(source[first:last].split())}  ->  {' '.join(new.split())}"


def mutants(root: Path, path: str) -> list[Mutant]:
    """Return all mutants of a file that compile."""
    source = (root / path).read_text()
    if not path.endswith(".py"):
        return list(_of_text(path, source, (0, len(source)), _CODE, ("", ())))
    found = list(_Walk(path, source).module(ast.parse(source)))
    return sorted({mutant for mutant in found if _compiles(mutant.applied(source))}, key=lambda m: (m.start, m.new))


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec")
    except (SyntaxError, ValueError):
        return False
    return True


def _of_text(
    path: str, source: str, span: tuple[int, int], pieces: dict[str, str], place: tuple[str, tuple[str, ...]]
) -> Iterator[Mutant]:
    start, end = span
    for pattern, replacement in pieces.items():
        for match in re.compile(pattern).finditer(source, start, end):
            before = source[source.rfind("\n", 0, match.start()) + 1 : match.start()]
            if pieces is _PIECES:
                # Inside braces is Python.
                is_other = before.count("{") > before.count("}")
                is_other |= pattern.startswith("(?<= )=") and _assigns(source[start : match.start()])
                # No two times are equal: < or <= is the same.
                beside = source[match.start() - 12 : match.end() + 12]
                is_other |= replacement in ("<", "<=", ">", ">=") and bool(_TIME.search(beside))
            else:
                is_other = before.lstrip().startswith(("--", "//", "*", "/*", "#"))
            if not is_other:
                line = source.count("\n", 0, match.start()) + 1
                kind = "SQL" if pieces is _PIECES else "code"
                yield Mutant(path, line, kind, match.start(), match.end(), match.expand(replacement), *place)


def _assigns(before: str) -> bool:
    words = re.findall(r"\b(SET|WHERE|ON|AND|OR|WHEN|SELECT|FILTER)\b", before)
    return not words or words[-1] == "SET"


class _Walk:
    """One walk over a module."""

    def __init__(self, path: str, source: str) -> None:
        self._path, self._source = path, source
        self._lines = source.splitlines(keepends=True)
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))

    def module(self, tree: ast.Module) -> Iterator[Mutant]:
        for statement in tree.body:
            names = tuple(
                node.id
                for node in ast.walk(statement)
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            )
            if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                names = (statement.name,)
            yield from self._node(statement, "", names)

    def _node(self, node: ast.AST, function: str, names: tuple[str, ...]) -> Iterator[Mutant]:
        if isinstance(node, ast.Import | ast.ImportFrom) or self._is_text(node):
            return
        inner = function
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            inner = f"{function}.{node.name}" if function else node.name
        for start, end, new, kind in self._changes(node):
            yield Mutant(self._path, self._source.count("\n", 0, start) + 1, kind, start, end, new, function, names)
        if isinstance(node, ast.Constant | ast.JoinedStr):
            start, end = self._span(node)
            if isinstance(getattr(node, "value", ""), str) and _SQL.search(self._source, start, end):
                yield from _of_text(self._path, self._source, (start, end), _PIECES, (function, names))
            return
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from self._node(child, inner, names)

    @staticmethod
    def _is_text(node: ast.AST) -> bool:
        return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)

    def _changes(self, node: ast.AST) -> Iterator[Change]:
        """Yield the changes of one node, without those of the nodes in it."""
        yield from self._of_operators(node)
        yield from self._of_values(node)
        yield from self._of_statements(node)
        for test in self._tests(node):
            if not isinstance(test, ast.Compare):  # another operator negates it
                yield *self._span(test), f"(not ({self._text(test)}))", "condition negated"

    def _of_operators(self, node: ast.AST) -> Iterator[Change]:
        match node:
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _SWAPS:
                yield self._between(left, right, op, "comparison")
            case ast.BoolOp(op=op, values=values):
                for left, right in itertools.pairwise(values):
                    yield self._between(left, right, op, "and/or")
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _SWAPS:
                yield self._between(left, right, op, "arithmetic")
            case ast.AugAssign(target=left, op=op, value=right) if type(op) in _SWAPS:
                yield self._between(left, right, op, "arithmetic")
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield *self._span(node), self._text(operand), "not removed"

    def _of_values(self, node: ast.AST) -> Iterator[Change]:
        match node:
            case ast.Constant(value=bool() as value):
                yield *self._span(node), str(not value), "constant"
            case ast.Constant(value=int() | float() as value):
                yield *self._span(node), f"{self._text(node)} + 1", "constant"
                if value > 1:
                    yield *self._span(node), f"{self._text(node)} - 1", "constant"
            case ast.Call(func=ast.Name(id=name) as called) if name in _NAMES:
                yield *self._span(called), _NAMES[name], "name"
            case ast.Call(args=[ast.Name() | ast.Attribute() as one, ast.Name() | ast.Attribute() as two, *_]):
                start, end = self._span(one)[0], self._span(two)[1]
                middle = self._source[self._span(one)[1] : self._span(two)[0]]
                yield start, end, self._text(two) + middle + self._text(one), "arguments swapped"

    def _of_statements(self, node: ast.AST) -> Iterator[Change]:
        match node:
            case ast.Expr(value=ast.Call() | ast.Await()) if not _LOGS.match(self._text(node)):
                yield *self._span(node), "pass", "statement removed"
            case ast.Raise() | ast.Delete():
                yield *self._span(node), "pass", "statement removed"
            case ast.Assign(targets=[ast.Subscript()]):
                yield *self._span(node), "pass", "statement removed"
            case ast.Continue() | ast.Break():
                yield *self._span(node), "break" if isinstance(node, ast.Continue) else "continue", "loop"
            case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
                yield *self._span(value), "None", "returned constant"
            case ast.ExceptHandler(body=[first, *_]) if not isinstance(first, ast.Raise):
                yield self._span(first)[0], self._span(node.body[-1])[1], "raise", "except removed"

    @staticmethod
    def _tests(node: ast.AST) -> list[ast.expr]:
        match node:
            case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
                return [] if isinstance(test, ast.Constant) else [test]
            case ast.comprehension(ifs=ifs):
                return ifs
        return []

    def _between(self, left: ast.AST, right: ast.AST, op: ast.AST, kind: str) -> Change:
        start, end = self._span(left)[1], self._span(right)[0]
        old, new = _SWAPS[type(op)]
        return start, end, self._source[start:end].replace(old, new, 1), kind

    def _text(self, node: ast.AST) -> str:
        start, end = self._span(node)
        return self._source[start:end]

    def _span(self, node: Any) -> tuple[int, int]:
        return self._at(node.lineno, node.col_offset), self._at(node.end_lineno, node.end_col_offset)

    def _at(self, line: int, column: int) -> int:
        # The parser counts bytes.
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:column].decode())
