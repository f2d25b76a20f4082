"""Price formulas: a parser and evaluator for the little language in the tariff editor.

    base * 1.19 + if(weight > 20, surcharge, 0)

Numbers, names, + - * / ^, comparisons, `and`, `or`, `not`, and calls of registered functions.
There is no assignment and no loop, so a formula always terminates.
"""

import math
import operator
from dataclasses import dataclass
from typing import Any, Callable, Mapping, Union


class FormulaError(Exception):
    """Something is wrong with a formula; `position` counts characters from zero."""

    def __init__(self, message: str, position: int):
        super().__init__(f"{message} (at character {position + 1})")
        self.position = position


# ---------------------------------------------------------------- tokens

@dataclass(frozen=True)
class Token:
    kind: str       # "number", "name", "op" or "end"
    text: str
    position: int


TWO_CHARACTER = {"<=", ">=", "!=", "=="}
ONE_CHARACTER = set("+-*/^(),<>")
KEYWORDS = {"and", "or", "not"}


def tokenize(source: str) -> list[Token]:
    tokens = []
    i = 0
    while i < len(source):
        c = source[i]
        if c.isspace():
            i += 1
        elif c.isdigit() or (c == "." and source[i + 1:i + 2].isdigit()):
            end = _end_of_number(source, i)
            tokens.append(Token("number", source[i:end], i))
            i = end
        elif c.isalpha() or c == "_":
            end = i
            while end < len(source) and (source[end].isalnum() or source[end] in "_."):
                end += 1
            word = source[i:end]
            tokens.append(Token("op" if word in KEYWORDS else "name", word, i))
            i = end
        elif source[i:i + 2] in TWO_CHARACTER:
            tokens.append(Token("op", source[i:i + 2], i))
            i += 2
        elif c in ONE_CHARACTER:
            tokens.append(Token("op", c, i))
            i += 1
        else:
            raise FormulaError(f"unexpected character {c!r}", i)
    tokens.append(Token("end", "", len(source)))
    return tokens


def _end_of_number(source, start):
    end = start
    seen_point = False
    while end < len(source):
        if source[end] == "." and not seen_point:
            seen_point = True
        elif not source[end].isdigit():
            break
        end += 1
    return end


# ---------------------------------------------------------------- tree

@dataclass(frozen=True)
class Number:
    value: float


@dataclass(frozen=True)
class Name:
    name: str
    position: int


@dataclass(frozen=True)
class Unary:
    op: str
    operand: "Node"


@dataclass(frozen=True)
class Binary:
    op: str
    left: "Node"
    right: "Node"
    position: int


@dataclass(frozen=True)
class Call:
    function: str
    arguments: tuple["Node", ...]
    position: int


Node = Union[Number, Name, Unary, Binary, Call]

# How tightly an operator holds its operands. `^` is right associative, the others left.
BINDING = {
    "or": 1, "and": 2,
    "<": 4, "<=": 4, ">": 4, ">=": 4, "==": 4, "!=": 4,
    "+": 5, "-": 5,
    "*": 6, "/": 6,
    "^": 8,
}
NOT_BINDING = 3
SIGN_BINDING = 7


class Parser:
    def __init__(self, source: str):
        self.tokens = tokenize(source)
        self.index = 0

    @property
    def current(self) -> Token:
        return self.tokens[self.index]

    def advance(self) -> Token:
        token = self.current
        self.index += 1
        return token

    def accept(self, op: str) -> bool:
        if self.current.kind == "op" and self.current.text == op:
            self.index += 1
            return True
        return False

    def expect(self, op: str) -> None:
        if not self.accept(op):
            found = self.current.text or "the end"
            raise FormulaError(f"expected {op!r}, found {found!r}", self.current.position)

    def parse(self) -> Node:
        tree = self.expression(0)
        if self.current.kind != "end":
            raise FormulaError(f"unexpected {self.current.text!r}", self.current.position)
        return tree

    def expression(self, minimum: int) -> Node:
        left = self.operand()
        while self.current.kind == "op":
            op = self.current.text
            binding = BINDING.get(op)
            if binding is None or binding < minimum:
                break
            position = self.advance().position
            right = self.expression(binding if op == "^" else binding + 1)
            left = Binary(op, left, right, position)
        return left

    def operand(self) -> Node:
        token = self.advance()
        if token.kind == "number":
            return Number(float(token.text))
        if token.kind == "name":
            if self.accept("("):
                return Call(token.text, self.arguments(), token.position)
            return Name(token.text, token.position)
        if token.text == "(":
            inner = self.expression(0)
            self.expect(")")
            return inner
        if token.text in ("-", "+"):
            return Unary(token.text, self.expression(SIGN_BINDING))
        if token.text == "not":
            return Unary("not", self.expression(NOT_BINDING))
        raise FormulaError(f"a value is missing before {token.text or 'the end'!r}", token.position)

    def arguments(self) -> tuple[Node, ...]:
        if self.accept(")"):
            return ()
        found = [self.expression(0)]
        while self.accept(","):
            found.append(self.expression(0))
        self.expect(")")
        return tuple(found)


# ---------------------------------------------------------------- evaluation

ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "^": operator.pow,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "==": operator.eq, "!=": operator.ne,
}

FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "ceil": math.ceil,
    "floor": math.floor,
    "round": lambda x, digits=0: round(x, int(digits)),
}


def evaluate(node: Node, values: Mapping[str, float]) -> float:
    match node:
        case Number(value):
            return value
        case Name(name, position):
            if name not in values:
                raise FormulaError(f"{name} is not defined", position)
            return values[name]
        case Unary("-", operand):
            return -evaluate(operand, values)
        case Unary("not", operand):
            return not evaluate(operand, values)
        case Unary(_, operand):
            return evaluate(operand, values)
        case Binary("and", left, right):
            return evaluate(left, values) and evaluate(right, values)
        case Binary("or", left, right):
            return evaluate(left, values) or evaluate(right, values)
        case Binary("/", left, right, position):
            divisor = evaluate(right, values)
            if divisor == 0:
                raise FormulaError("division by zero", position)
            return evaluate(left, values) / divisor
        case Binary(op, left, right, _):
            return ARITHMETIC[op](evaluate(left, values), evaluate(right, values))
        case Call("if", arguments, position):
            if len(arguments) != 3:
                raise FormulaError("if() takes a condition and two values", position)
            condition, then, otherwise = arguments
            return evaluate(then if evaluate(condition, values) else otherwise, values)
        case Call(function, arguments, position):
            if function not in FUNCTIONS:
                raise FormulaError(f"there is no function {function}()", position)
            try:
                return FUNCTIONS[function](*(evaluate(a, values) for a in arguments))
            except TypeError:
                raise FormulaError(f"wrong number of arguments for {function}()", position) from None
    raise AssertionError(f"unknown node {node!r}")


def names_in(node: Node) -> set[str]:
    """Every variable a formula reads; the editor greys out the others."""
    match node:
        case Name(name):
            return {name}
        case Unary(_, operand):
            return names_in(operand)
        case Binary(_, left, right):
            return names_in(left) | names_in(right)
        case Call(_, arguments):
            return set().union(*map(names_in, arguments))
    return set()


def calculate(source: str, **values: float) -> float:
    return evaluate(Parser(source).parse(), values)
