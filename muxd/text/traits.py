"""What a chat template makes of a message, read off its syntax tree once when it is compiled.

Templates differ in the form they expect: some walk over a message's parts, others add its content to a text;
some know a call without content by ``content is none``. The tree tells, without rendering anything.
"""

from dataclasses import dataclass

from jinja2 import nodes


@dataclass(frozen=True)
class Traits:
    """``parts``: it walks over lists of parts. ``texts``: it takes a content that is text. ``null``: it asks
    whether content is none, and takes no parts: some of those write calls only where it is. ``developer``: it
    knows that role. ``tools``: it tells the model what tools there are.
    """

    parts: bool = False
    texts: bool = True
    null: bool = False
    developer: bool = False
    tools: bool = False


def traits_of(template: nodes.Template) -> Traits:
    """The traits of a parsed template."""
    names = _content_names(template)
    negated = {id(no.node) for no in template.find_all(nodes.Not)}
    tests = [test for test in template.find_all(nodes.Test) if _is_content(test.node, names)]
    parts = any(_walks_parts(loop, names) for loop in template.find_all(nodes.For))
    return Traits(
        parts=parts,
        texts=not parts or any(test.name == "string" for test in tests),
        null=not parts and any(test.name == "none" and id(test) not in negated for test in tests),
        developer=any(constant.value == "developer" for constant in template.find_all(nodes.Const)),
        tools=any(name.name == "tools" for name in template.find_all(nodes.Name)),
    )


def _content_names(template: nodes.Template) -> set[str]:
    """Variables and macro parameters that hold a message's content. A name counts as one thing in the whole
    template, whatever its scope."""
    macros = {macro.name: [arg.name for arg in macro.args] for macro in template.find_all(nodes.Macro)}
    given = [(assign.target, assign.node) for assign in template.find_all(nodes.Assign)]
    for call in template.find_all(nodes.Call):
        parameters = macros.get(call.node.name, []) if isinstance(call.node, nodes.Name) else []
        given += [
            (nodes.Name(name, "param"), value) for name, value in zip(parameters, call.args, strict=False)
        ]
    names: set[str] = set()
    known = -1
    while known != len(names):
        known = len(names)
        names |= {to.name for to, value in given if isinstance(to, nodes.Name) and _is_content(value, names)}
    return names


def _is_content(node: nodes.Node, names: set[str]) -> bool:
    if isinstance(node, nodes.CondExpr):
        return any(_is_content(side, names) for side in (node.expr1, node.expr2) if side is not None)
    if isinstance(node, nodes.Or):
        return _is_content(node.left, names)
    if isinstance(node, nodes.Filter):
        return node.node is not None and _is_content(node.node, names)
    return _look(node)[1] == "content" or (isinstance(node, nodes.Name) and node.name in names)


def _walks_parts(loop: nodes.For, names: set[str]) -> bool:
    """``for part in content`` with a look at the part's type or text."""
    if not isinstance(loop.target, nodes.Name) or not _is_content(loop.iter, names):
        return False
    looks = [_look(node) for node in loop.find_all((nodes.Getattr, nodes.Getitem, nodes.Call))]
    return any(
        key in ("type", "text") and isinstance(of, nodes.Name) and of.name == loop.target.name
        for of, key in looks
    )


def _look(node: nodes.Node) -> tuple[nodes.Node | None, object]:
    """``x`` and ``"k"`` of ``x.k``, of ``x["k"]`` and of ``x.get("k")``."""
    if isinstance(node, nodes.Getattr):
        return node.node, node.attr
    if isinstance(node, nodes.Getitem):
        return node.node, _constant(node.arg)
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr) and node.node.attr == "get":
        return node.node.node, _constant(node.args[0]) if node.args else None
    return None, None


def _constant(node: nodes.Node) -> object:
    return node.value if isinstance(node, nodes.Const) else None
