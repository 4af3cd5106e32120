"""The text of a rule's expression: words, grammar, limits. Pure.

The grammar is a part of that of CEL (the Common Expression Language, langdef of cel-spec), so that people and editors
know it already; `app.shadow.expression` says what each form means and what is not there.

    expression = or ["?" or ":" expression]
    or         = and {"||" and}            and      = relation {"&&" relation}
    relation   = sum {("<" | "<=" | ">" | ">=" | "==" | "!=" | "in") sum}
    sum        = product {("+" | "-") product}
    product    = unary {("*" | "/" | "%") unary}
    unary      = {"!"} member | {"-"} member
    member     = primary {"." name | "." name "(" [expression {"," expression}] ")" | "[" expression "]"}
    primary    = name | name "(" [...] ")" | "(" expression ")" | "[" [...] "]" | "{" [expression ":" expression {...}] "}"
               | number | string | "true" | "false" | "null"
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

TEXT_MAX: Final = 4_096  # characters: a rule of more than a screen or two belongs into several rules
NODES_MAX: Final = 1_000  # parts of one expression; each costs a closure of about 0.5 KiB
DEPTH_MAX: Final = 24  # nested parts: each takes up to nine frames of Python here, of the 1,000 that there are
INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**63 - 1

RELATIONS: Final = frozenset({"<", "<=", ">", ">=", "==", "!=", "in"})
_RESERVED: Final = frozenset(
    ("as", "break", "const", "continue", "else", "false", "for", "function", "if", "import", "in", "let", "loop",
     "namespace", "null", "package", "return", "true", "var", "void", "while")
)  # fmt: skip
_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "'": "'", "`": "`", "?": "?"}
_token = re.compile(
    r"""(?P<space>\s+|//[^\n]*)
    |(?P<number>(?:[0-9]+\.[0-9]+(?:[eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+|[0-9]+)(?![A-Za-z0-9_.]))
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    |(?P<sign>&&|\|\||==|!=|<=|>=|[-+*/%!<>?:.,()\[\]{}])""",
    re.VERBOSE,
)
_escape = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)


class ExpressionRefused(Exception):
    """A text is no expression; `detail` says where and what was expected, and repeats nothing of it."""

    def __init__(self, at: int, detail: str) -> None:
        """`at` is the character, from 0."""
        self.at = at
        self.detail = f"{detail} (at character {at + 1})"
        super().__init__(self.detail)


class Node(NamedTuple):
    """One part of an expression.

    form   `literal`, `name`, `list`, `map`, `field`, `index`, `call`, `method`, or the sign of an operator
    at     where it begins, characters from 0
    value  of a literal; the name of a name, field, function or method
    parts  operands, in the order of the text; for a map key, value, key, value, ...
    """

    form: str
    at: int
    value: Any = None
    parts: tuple[Node, ...] = ()


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    at = 0
    while at < len(text):
        match = _token.match(text, at)
        if match is None:
            raise ExpressionRefused(at, "Expected a name, number, string or sign of the language")
        if match.lastgroup != "space":
            found.append(_Token(str(match.lastgroup), match.group(), at))
        at = match.end()
    return [*found, _Token("end", "", len(text))]


def parse(text: str) -> Node:
    """Return the tree of a text. Raises ExpressionRefused; linear in its length."""
    if len(text) > TEXT_MAX:
        raise ExpressionRefused(TEXT_MAX, f"Expected at most {TEXT_MAX} characters")
    return _Parser(_tokens(text)).whole()


class _Parser:
    """Recursive descent over the tokens; bounded in depth and in parts."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._next = 0
        self._depth = 0
        self._nodes = 0

    def whole(self) -> Node:
        node = self._expression()
        if self._here.kind != "end":
            raise ExpressionRefused(self._here.at, "Expected an operator or the end")
        return node

    @property
    def _here(self) -> _Token:
        return self._tokens[self._next]

    def _take(self, *texts: str) -> _Token | None:
        """Go past one of these signs or words, if it is next."""
        token = self._here
        if token.text in texts and token.kind in {"sign", "name"}:
            self._next += 1
            return token
        return None

    def _need(self, text: str) -> _Token:
        token = self._take(text)
        if token is None:
            raise ExpressionRefused(self._here.at, f"Expected {text}")
        return token

    def _node(self, form: str, at: int, value: Any = None, *parts: Node) -> Node:
        self._nodes += 1
        if self._nodes > NODES_MAX:
            raise ExpressionRefused(at, f"Expected an expression of at most {NODES_MAX} parts")
        return Node(form, at, value, parts)

    def _expression(self) -> Node:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise ExpressionRefused(self._here.at, f"Expected at most {DEPTH_MAX} nested parts")
        node = self._or()
        question = self._take("?")
        if question is not None:
            then = self._or()
            self._need(":")
            node = self._node("?", question.at, None, node, then, self._expression())
        self._depth -= 1
        return node

    def _or(self) -> Node:
        return self._chain("||", self._and)

    def _and(self) -> Node:
        return self._chain("&&", self._relation)

    def _chain(self, sign: str, part: Any) -> Node:
        """Operands of one sign as one node, so that a long chain is not a deep tree."""
        parts = [part()]
        at = self._here.at
        while self._take(sign):
            parts.append(part())
        return parts[0] if len(parts) == 1 else self._node(sign, at, None, *parts)

    def _left(self, signs: frozenset[str], part: Any) -> Node:
        """Operators of one rank, from the left; their tree is as deep as they are many, so they count as depth."""
        node: Node = part()
        before = self._depth
        while (token := self._take(*signs)) is not None:
            self._depth += 1
            if self._depth > DEPTH_MAX:
                raise ExpressionRefused(token.at, f"Expected at most {DEPTH_MAX} nested parts")
            node = self._node(token.text, token.at, None, node, part())
        self._depth = before
        return node

    def _relation(self) -> Node:
        return self._left(RELATIONS, self._sum)

    def _sum(self) -> Node:
        return self._left(frozenset("+-"), self._product)

    def _product(self) -> Node:
        return self._left(frozenset("*/%"), self._unary)

    def _unary(self) -> Node:
        token = self._take("!", "-")
        if token is None:
            return self._member()
        if token.text == "-" and self._here.kind == "number":
            return self._trailed(self._number(self._tokens_next(), -1))
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise ExpressionRefused(token.at, f"Expected at most {DEPTH_MAX} nested parts")
        operand = self._unary()
        self._depth -= 1
        return self._node("negate" if token.text == "-" else "!", token.at, None, operand)

    def _tokens_next(self) -> _Token:
        token = self._here
        self._next += 1
        return token

    def _member(self) -> Node:
        return self._trailed(self._primary())

    def _trailed(self, node: Node) -> Node:
        before = self._depth
        while (token := self._take(".", "[")) is not None:
            self._depth += 1
            if self._depth > DEPTH_MAX:
                raise ExpressionRefused(token.at, f"Expected at most {DEPTH_MAX} nested parts")
            if token.text == "[":
                node = self._node("index", token.at, None, node, self._expression())
                self._need("]")
                continue
            name = self._tokens_next()
            if name.kind != "name":
                raise ExpressionRefused(name.at, "Expected the name of a field or method")
            if self._take("("):
                node = self._node("method", name.at, name.text, node, *self._list(")"))
            else:
                node = self._node("field", name.at, name.text, node)
        self._depth = before
        return node

    def _primary(self) -> Node:
        token = self._tokens_next()
        match token.kind, token.text:
            case "number", _:
                return self._number(token, 1)
            case "string", _:
                return self._node("literal", token.at, _unescaped(token))
            case "name", "true" | "false" | "null":
                return self._node("literal", token.at, {"true": True, "false": False, "null": None}[token.text])
            case "name", _ if token.text not in _RESERVED:
                if self._take("("):
                    return self._node("call", token.at, token.text, *self._list(")"))
                return self._node("name", token.at, token.text)
            case "sign", "(":
                node = self._expression()
                self._need(")")
                return node
            case "sign", "[":
                return self._node("list", token.at, None, *self._list("]"))
            case "sign", "{":
                return self._node("map", token.at, None, *self._entries())
        raise ExpressionRefused(token.at, "Expected a value")

    def _list(self, end: str) -> list[Node]:
        """Expressions between commas, up to the sign that ends them."""
        parts: list[Node] = []
        while not self._take(end):
            if parts:
                self._need(",")
            parts.append(self._expression())
        return parts

    def _entries(self) -> list[Node]:
        parts: list[Node] = []
        while not self._take("}"):
            if parts:
                self._need(",")
            parts.append(self._expression())
            self._need(":")
            parts.append(self._expression())
        return parts

    def _number(self, token: _Token, sign: int) -> Node:
        if token.text.isdigit():
            whole = sign * int(token.text) if len(token.text) <= 20 else INT_MAX + 1
            if not INT_MIN <= whole <= INT_MAX:
                raise ExpressionRefused(token.at, "Expected an integer of 64 bits")
            return self._node("literal", token.at, whole)
        number = sign * float(token.text)
        if number in {float("inf"), float("-inf")}:
            raise ExpressionRefused(token.at, "Expected a number that a double holds")
        return self._node("literal", token.at, number)


def _unescaped(token: _Token) -> str:
    def one(match: re.Match[str]) -> str:
        code, letter = match.groups()
        if code is not None:
            number = int(code, 16)
            if number == 0 or 0xD800 <= number <= 0xDFFF:
                raise ExpressionRefused(token.at, "Expected no U+0000 and no half of a surrogate pair")
            return chr(number)
        if letter not in _ESCAPES:
            raise ExpressionRefused(token.at, "Expected one of the escapes \\n \\r \\t \\\\ \\\" \\' \\` \\? \\uXXXX")
        return _ESCAPES[letter]

    return _escape.sub(one, token.text[1:-1])
