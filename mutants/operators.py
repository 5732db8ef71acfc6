"""The mutations: places in a file and their replacements."""

import ast
import dataclasses
import itertools
import re

Edit = tuple[int, int, str]  # start and end in bytes of the file, and the replacement

ARITHMETIC = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "//", ast.Pow: "*"}
COMPARISONS = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
NAMES = {
    "min": "max", "minimum": "maximum", "any": "all", "sum": "mean", "prod": "sum", "argmax": "argmin",
    "exp": "exp2", "expm1": "exp", "log": "log2", "sqrt": "square", "rsqrt": "sqrt", "sin": "cos", "ceil": "floor",
    "zeros": "ones", "zeros_like": "ones_like", "triu": "tril", "tile": "repeat", "float32": "bfloat16",
    "sigmoid": "tanh", "startswith": "endswith", "lstrip": "rstrip", "compute": "accumulate",
}  # fmt: skip
NAMES |= {new: old for old, new in NAMES.items() if new not in NAMES}
IDENTITIES = {"astype", "transpose", "swapaxes", "strip", "clip", "abs", "stop_gradient", "sorted", "reversed"}
UNORDERED = {"isinstance", "issubclass", "hasattr", "getattr", "setattr", "range", "open", "zip", "print", "max", "min"}
STYLE = {
    "alpha", "color", "colors", "cmap", "dpi", "figsize", "fontsize", "frameon", "lw", "linewidth", "labelpad", "loc",
    "markersize", "pad", "s", "width", "style", "justify", "help", "encoding",
}  # fmt: skip
TEXT = (ast.JoinedStr, ast.Constant, ast.List, ast.Tuple, ast.ListComp)


@dataclasses.dataclass(frozen=True, order=True)
class Mutant:
    """One mutation of one file.

    Attributes:
        file: relative to the repository.
        line: first line of the replaced text, counted from 1.
        column: the same in bytes of its line.
        before, after: the text replaced and what replaces it.
    """

    file: str
    line: int
    column: int
    before: str
    after: str

    @property
    def name(self) -> str:
        """Unique, readable, and the same while the file above and the line itself are the same."""
        return f"{self.file}:{self.line}:{self.column} {_brief(self.before)} -> {_brief(self.after)}"

    def apply(self, source: str) -> str:
        """The mutated file."""
        data = source.encode()
        start = sum(len(line) for line in data.splitlines(keepends=True)[: self.line - 1]) + self.column
        end = start + len(self.before.encode())
        assert data[start:end].decode() == self.before, f"{self.name} is of another version of the file"
        return (data[:start] + self.after.encode() + data[end:]).decode()

    def parses(self, source: str) -> bool:
        """Whether the mutated file is Python."""
        try:
            ast.parse(self.apply(source))
        except SyntaxError:
            return False
        return True


def mutants(file: str, source: str) -> list[Mutant]:
    """All mutations of one file; some do not parse, see :attr:`Mutant.parses`."""
    data, found = source.encode(), set()
    lines = list(itertools.accumulate((len(line) for line in data.splitlines(keepends=True)), initial=0))
    walk = _Walk(data, lines)
    walk.visit(ast.parse(source))
    for start, end, after in walk.edits:
        line = next(n for n, first in enumerate(lines[1:], 1) if start < first)
        mutant = Mutant(file, line, start - lines[line - 1], data[start:end].decode(), after)
        if mutant.before.strip() != after.strip():
            found.add(mutant)
    return sorted(found)


class _Walk(ast.NodeVisitor):
    """Collects the edits of everything that computes: no docstrings, annotations, messages or logging."""

    def __init__(self, data: bytes, lines: list[int]):
        self.data, self.lines, self.edits = data, lines, []
        self.foreign: set[str] = set()

    def span(self, node: ast.AST) -> tuple[int, int]:
        return (
            self.lines[node.lineno - 1] + node.col_offset,
            self.lines[node.end_lineno - 1] + node.end_col_offset,
        )

    def text(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.data[start:end].decode()

    def replace(self, node: ast.AST, after: str) -> None:
        self.edits.append((*self.span(node), after))

    def swap(self, first: ast.AST, second: ast.AST) -> None:
        """Exchanges two nodes and keeps the text between them."""
        (start, middle), (rest, end) = self.span(first), self.span(second)
        between = self.data[middle:rest].decode()
        if self.text(first) != self.text(second) and not (_only_fits_its_place(first) or _only_fits_its_place(second)):
            self.edits.append((start, end, self.text(second) + between + self.text(first)))

    def between(self, left: ast.AST, right: ast.AST, token: str, after: str) -> None:
        """Replaces the operator between two operands."""
        start, end = self.span(left)[1], self.span(right)[0]
        if match := re.search(rf"(?<![*/<>=!]){re.escape(token)}(?![*/=])", self.data[start:end].decode()):
            self.edits.append((start + match.start(), start + match.end(), after))

    # Nodes that are not mutated.

    def visit_Import(self, node):
        modules = {(name.asname or name.name).split(".")[0] for name in node.names}
        self.foreign |= modules - {"mhc_jax", "train", "configs"}

    def visit_ImportFrom(self, node):
        pass

    def visit_Raise(self, node):
        pass

    def visit_AnnAssign(self, node):
        if node.value is not None:
            self.visit(node.value)

    def visit_arg(self, node):
        pass

    def visit_keyword(self, node):
        if node.arg not in STYLE:
            self.generic_visit(node)

    def visit_ClassDef(self, node):
        for part in node.body:
            self.visit(part)

    def visit_FunctionDef(self, node):
        for part in (*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults), *node.body):
            self.visit(part)

    def visit_If(self, node):
        """A guard that raises or returns is also taken out."""
        if "TYPE_CHECKING" in self.text(node.test):
            return
        if isinstance(node.body[0], ast.Raise | ast.Return | ast.Continue | ast.Break):
            self.replace(node.test, "False")
        self.generic_visit(node)

    def visit_Expr(self, node):
        """A call for its effect is also left out."""
        if isinstance(node.value, ast.Constant):
            return
        if isinstance(node.value, ast.Call):
            if re.search(r"\b(log|logger|console|warnings|parser)\.|^print\(", self.text(node.value.func) + "("):
                return
            self.replace(node, "pass")
        self.generic_visit(node)

    # Nodes that are.

    def visit_BinOp(self, node):
        kind = type(node.op)
        texts = any(isinstance(side, TEXT) and not _number(side) for side in (node.left, node.right))
        if kind in ARITHMETIC and not texts:
            self.between(node.left, node.right, _token(node.op), ARITHMETIC[kind])
        self.generic_visit(node)

    def visit_AugAssign(self, node):
        if type(node.op) in ARITHMETIC and not (isinstance(node.value, TEXT) and not _number(node.value)):
            start, end = self.span(node.target)[1], self.span(node.value)[0]
            self.edits.append((start, end, f" {ARITHMETIC[type(node.op)]}= "))
        self.generic_visit(node)

    def visit_Compare(self, node):
        for left, op, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            self.between(left, right, _token(op), COMPARISONS[type(op)])
        self.generic_visit(node)

    def visit_BoolOp(self, node):
        token, after = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in itertools.pairwise(node.values):
            self.between(left, right, token, after)
        self.generic_visit(node)

    def visit_UnaryOp(self, node):
        if isinstance(node.op, ast.Not):
            self.replace(node, f"({self.text(node.operand)})")
        elif isinstance(node.op, ast.USub) and _number(node.operand):
            self.replace(node, "0" if self.text(node.operand) == "1" else self.text(node.operand))
            return
        elif isinstance(node.op, ast.USub | ast.Invert):
            self.replace(node, self.text(node.operand))
        self.generic_visit(node)

    def visit_Constant(self, node):
        if isinstance(node.value, bool):
            self.replace(node, str(not node.value))
        elif isinstance(node.value, int):
            self.replace(node, str(1 - node.value) if node.value in (0, 1) else str(node.value + 1))
        elif isinstance(node.value, float):
            self.replace(node, "1.0" if node.value == 0 else repr(node.value / 2))
        elif isinstance(node.value, str) and re.search(r"[a-z]{2,}->", node.value):
            self.replace(node, re.sub(r"([a-z])([a-z])(?=[,-])", r"\2\1", self.text(node), count=1))

    def visit_JoinedStr(self, node):
        pass

    def visit_Dict(self, node):
        """A row of a table gets the value of the next."""
        for value, following in zip(node.values, [*node.values[1:], *node.values[:1]], strict=True):
            if self.text(value) != self.text(following) and type(value) is type(following):
                self.replace(value, self.text(following))
        self.generic_visit(node)

    def visit_IfExp(self, node):
        self.swap(node.body, node.orelse)
        self.generic_visit(node)

    def visit_Break(self, node):
        self.replace(node, "continue")

    def visit_Continue(self, node):
        self.replace(node, "break")

    def visit_Attribute(self, node):
        _, end = self.span(node)
        if node.attr in NAMES:
            self.edits.append((end - len(node.attr), end, NAMES[node.attr]))
        if node.attr in ("T", "mT"):
            self.replace(node, self.text(node.value))
        self.generic_visit(node)

    def visit_Call(self, node):
        function = self.text(node.func)
        name, root = function.split(".")[-1], re.split(r"\W", function)[0]
        args = [arg for arg in node.args if not isinstance(arg, ast.Starred)]
        if isinstance(node.func, ast.Name) and name in NAMES:
            self.replace(node.func, NAMES[name])
        if name == "where" and len(args) == 3:
            self.swap(args[1], args[2])
        elif len(args) >= 2 and len(args) == len(node.args) and name not in UNORDERED:
            self.swap(args[0], args[1])
        if name in IDENTITIES:
            module = isinstance(node.func, ast.Name) or root in self.foreign
            self.replace(node, self.text(args[0]) if module else self.text(node.func.value))
        if root in self.foreign:  # an option that another library has a default for
            for keyword in node.keywords:
                if keyword.arg and keyword.arg not in STYLE:
                    self._drop(node, keyword)
        self.generic_visit(node)

    def _drop(self, call: ast.Call, keyword: ast.keyword) -> None:
        start, end = self.span(keyword)
        rest = re.match(rb"\s*,\s*", self.data[end : self.span(call)[1]])
        before = re.search(rb",\s*$", self.data[self.span(call)[0] : start])
        if rest:
            end += rest.end()
        elif before:
            start -= len(before.group())
        self.edits.append((start, end, ""))


def _only_fits_its_place(node: ast.AST) -> bool:
    """A name or a function among arguments: exchanged with a number it fails at once, which shows nothing."""
    text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return text or isinstance(node, ast.JoinedStr | ast.Lambda | ast.GeneratorExp)


def _number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def _token(op: ast.operator | ast.cmpop) -> str:
    """``"+"`` of ``ast.Add()``."""
    if isinstance(op, ast.operator):
        return ast.unparse(ast.BinOp(ast.Name("a"), op, ast.Name("b")))[2:-2]
    return ast.unparse(ast.Compare(ast.Name("a"), [op], [ast.Name("b")]))[2:-2]


def _brief(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 60 else flat[:57] + "..."
