"""What ``head/backends/tensorrt.py`` uses of TensorRT, read from its source, and whether a module has it.

What comes from TensorRT is annotated there with its class (``builder: trt.Builder``); from that, every attribute and call is
found. The bindings are made with pybind11, which writes each method's signatures into its docstring.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import sys
from dataclasses import asdict, dataclass

LOCAL = "trt"
# Functions that only some versions run.
ONLY = {"_strongly_typed": ("10", "11"), "_weakly_typed": ("8",), "_allow_precisions": ("8",)}
_SIGNATURE = re.compile(r"^(?:\d+\. )?\w+\((?P<parameters>.*)\) -> (?P<gives>[^\n]*)$", re.MULTILINE)


@dataclass(frozen=True)
class Use:
    """One use of the API.

    Attributes:
        function: of ours, where it is.
        owner: the dotted name of the class (or the module: empty).
        member: of it.
        how: ``get``, ``set`` or ``call``.
        arguments: how many a call has, without self.
        gives: the class that we take a call's result for; empty where we call nothing on it.
    """

    function: str
    owner: str
    member: str
    how: str
    arguments: int = 0
    gives: str = ""

    def applies_to(self, version: str) -> bool:
        """Whether a version's code path comes here."""
        return version.partition(".")[0] in ONLY.get(self.function, (version.partition(".")[0],))


def uses(source: str) -> list[Use]:
    """All uses in a module's source, each once.

    Raises:
        AssertionError: something from TensorRT is used in a way that this does not follow.
    """
    tree = ast.parse(source)
    found: dict[Use, None] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            kept: dict[str, str] = {}
            for function in node.body:
                _Reader(found, kept).function(function)
            for base in node.bases:
                _Reader(found, {}).visit(base)
        else:
            _Reader(found, {}).function(node)
    return list(found)


class _Reader(ast.NodeVisitor):
    """Follows annotated names through one function."""

    def __init__(self, found: dict[Use, None], kept: dict[str, str]) -> None:
        self.found = found
        self.kept = kept  # self's attributes
        self.names: dict[str, str] = {}
        self.name = "<module>"
        self.returns = ""

    def function(self, node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef):
            self.name = node.name
            self.returns = _class_of(node.returns)
            for argument in node.args.args:
                if kind := _class_of(argument.annotation):
                    self.names[argument.arg] = kind
            for statement in node.body:
                self.visit(statement)
        else:
            self.visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        kind = _class_of(node.annotation)
        if kind:
            self._bind(node.target, kind)
        if node.value is not None:
            self._value(node.value, kind)

    def visit_Assign(self, node: ast.Assign) -> None:
        self._value(node.value, "")
        for target in node.targets:
            self.visit(target)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None:
            self._value(node.value, self.returns)

    def visit_For(self, node: ast.For) -> None:
        self._loop(node.target, node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._loop(node.target, node.iter)
        self.generic_visit(node)

    def generic_visit(self, node: ast.AST) -> None:
        for generator in getattr(node, "generators", []):  # they bind the names of what stands before them
            self.visit(generator)
        super().generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        self._value(node, "")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        owner = self._kind(node.value)
        if owner is not None:
            how = "set" if isinstance(node.ctx, ast.Store) else "get"
            self._add(Use(self.name, owner, node.attr, how))
        self.visit(node.value)

    def _value(self, node: ast.expr, gives: str) -> None:
        """An expression whose result we take for a ``gives``."""
        if isinstance(node, ast.ListComp):
            for generator in node.generators:
                self.visit(generator)
            self._value(node.elt, gives.removeprefix("list:"))
            return
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            self.generic_visit(node) if isinstance(node, ast.Call) else self.visit(node)
            return
        owner = self._kind(node.func.value)
        if owner is not None:
            assert not node.keywords, f"{self.name}: names of arguments are not checked"
            explicit_self = owner[:1].isupper() and node.func.attr == "__init__"
            self._add(Use(self.name, owner, node.func.attr, "call", len(node.args) - explicit_self, gives))
        self.visit(node.func.value)
        for argument in node.args:
            self.visit(argument)

    def _add(self, use: Use) -> None:
        self.found[use] = None

    def _bind(self, target: ast.expr, kind: str) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = kind
        else:
            assert isinstance(target, ast.Attribute)
            self.kept[target.attr] = kind

    def _loop(self, target: ast.expr, over: ast.expr) -> None:
        lists = [
            self.names[n.id] for n in ast.walk(over) if isinstance(n, ast.Name) and "list:" in self.names.get(n.id, "")
        ]
        if lists:
            names = [n for n in ast.walk(target) if isinstance(n, ast.Name)]
            self.names[names[-1].id] = lists[0].removeprefix("list:")

    def _kind(self, node: ast.expr) -> str | None:
        """The class of an expression's value; the dotted name of a class or enumeration itself."""
        if isinstance(node, ast.Name):
            return "" if node.id == LOCAL else self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                return self.kept.get(node.attr)
            owner = self._kind(node.value)
            if owner is not None and node.attr[:1].isupper():  # a class in the module, or in a class
                return f"{owner}.{node.attr}".lstrip(".")
        return None


def _class_of(annotation: ast.expr | None) -> str:
    if isinstance(annotation, ast.Subscript) and (inner := _class_of(annotation.slice)):
        return f"list:{inner}"
    if isinstance(annotation, ast.Attribute) and isinstance(annotation.value, ast.Name):
        return annotation.attr if annotation.value.id == LOCAL else ""
    return ""


def problems(module: object, wanted: list[Use]) -> list[str]:
    """What a module lacks, a line each."""
    return [f"{use.function}: {trouble}" for use in wanted if (trouble := _problem(module, use))]


def _problem(module: object, use: Use) -> str | None:
    owner, path = module, f"{use.owner}.{use.member}".lstrip(".")
    for name in use.owner.split(".") if use.owner else []:
        if not hasattr(owner, name):
            return f"there is no {use.owner}"
        owner = getattr(owner, name)
    if not hasattr(owner, use.member):
        return f"there is no {path}"
    found = inspect.getattr_static(owner, use.member) if inspect.isclass(owner) else getattr(owner, use.member)
    if isinstance(found, property):
        if use.how == "call":
            return f"{path} is no method"
        return f"{path} cannot be set" if use.how == "set" and found.fset is None else None
    if use.how == "set":
        return f"{path} is no property"
    return None if use.how == "get" else _call_problem(getattr(owner, use.member), use, path)


def _call_problem(called: object, use: Use, path: str) -> str | None:
    if inspect.isclass(called):
        initialise = called.__init__  # type: ignore[misc]
        gives = use.gives in {"", called.__name__}
        return _arity_problem(initialise, use, path, method=True) if gives else f"{path} makes no {use.gives}"
    return _arity_problem(called, use, path, method=bool(use.owner))


def _arity_problem(called: object, use: Use, path: str, *, method: bool) -> str | None:
    signatures = _signatures(called)
    if not signatures:
        return f"{path} tells no signature"
    fitting = []
    for parameters, gives in signatures:
        own = parameters[1:] if method else parameters
        least = sum("=" not in parameter for parameter in own)
        if least <= use.arguments <= len(own) or any(p.startswith("*") for p in own):
            fitting.append(gives)
    if not fitting:
        return f"{path} takes no {use.arguments} arguments: {signatures}"
    # A result that we call nothing on may be a number or a word; one that we call something on is of the class we say.
    plain = r"(None|bool|int|str|object|List\[.*\]|list\[.*\]|.*\b(DataType|TensorIOMode|Dims|LayerType)|)"
    if use.member == "__init__" or (use.how == "call" and path[:1].isupper() and "." not in path):
        return None
    if use.gives and not any(re.search(rf"\b(nvonnxparser::)?I?{use.gives}$", gives) for gives in fitting):
        return f"{path} gives {fitting}, not {use.gives}"
    if not use.gives and not all(re.fullmatch(plain, gives) for gives in fitting):
        return f"{path} gives {fitting}, and the source does not say so"
    return None


def _signatures(called: object) -> list[tuple[list[str], str]]:
    """Parameters, self among them, and result."""
    found = [(_split(m["parameters"]), m["gives"]) for m in _SIGNATURE.finditer(called.__doc__ or "")]
    real = [entry for entry in found if entry[0] != ["*args", "**kwargs"]]
    if real or not callable(called):
        return real
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):
        return []
    parameters = [str(parameter) for parameter in signature.parameters.values()]
    gives = signature.return_annotation
    return [(parameters, "" if gives is inspect.Signature.empty else str(gives))]


def _split(parameters: str) -> list[str]:
    """At the commas that stand in no brackets."""
    parts, depth = [""], 0
    for letter in parameters:
        depth += (letter in "([<{") - (letter in ")]>}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


@dataclass(frozen=True)
class Checked:
    """What :func:`main` found."""

    version: str
    strong: bool
    checked: int
    problems: list[str]


def main() -> None:
    """For a process of its own: uses as JSON on stdin, a :class:`Checked` on stdout."""
    module = importlib.import_module(sys.argv[1])
    wanted = [Use(**use) for use in json.load(sys.stdin)]
    applying = [use for use in wanted if use.applies_to(module.__version__)]
    strong = hasattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    found = Checked(module.__version__, strong, len(applying), problems(module, applying))
    json.dump(asdict(found), sys.stdout)


def from_json(text: str) -> Checked:
    """What :func:`main` wrote."""
    return Checked(**json.loads(text))


def as_json(wanted: list[Use]) -> str:
    """For :func:`main`."""
    return json.dumps([asdict(use) for use in wanted])


if __name__ == "__main__":
    main()
