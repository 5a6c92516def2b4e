"""The calculator, a tool that every tenant has: numbers, brackets and + - * / // % ** of an expression. No I/O."""

import ast
import operator
from collections.abc import Callable
from typing import Final

MAX_CHARS: Final = 200
_LARGEST = 10**100
_MOST_POWER = 256

Number = int | float

_BINARY: Final[dict[type[ast.operator], Callable[[Number, Number], Number]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: Final[dict[type[ast.unaryop], Callable[[Number], Number]]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def compute(expression: str) -> str:
    """Return the value of an expression as text. Raises ValueError with a reason that a model can read."""
    if len(expression) > MAX_CHARS:
        raise ValueError(f"the expression has more than {MAX_CHARS} characters")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        return str(_value(tree.body))
    except SyntaxError:
        raise ValueError("the expression is not arithmetic: use numbers, brackets and + - * / // % **") from None
    except ZeroDivisionError:
        raise ValueError("the expression divides by zero") from None
    except (OverflowError, RecursionError, MemoryError):
        raise ValueError("the value is too large") from None


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            found: Number = number
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _UNARY:
            found = _UNARY[type(sign)](_value(operand))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _BINARY:
            found = _computed(sign, _value(left), _value(right))
        case _:
            raise ValueError("the expression may have numbers, brackets and + - * / // % ** alone")
    if isinstance(found, complex):
        raise ValueError("the value is no real number")
    if abs(found) > _LARGEST:
        raise ValueError("the value is too large")
    return found


def _computed(sign: ast.operator, left: Number, right: Number) -> Number:
    if isinstance(sign, ast.Pow) and abs(right) > _MOST_POWER:
        raise ValueError(f"an exponent is at most {_MOST_POWER}")
    return _BINARY[type(sign)](left, right)
