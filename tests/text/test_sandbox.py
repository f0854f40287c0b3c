"""What a hostile template may not do: each kind of multiplying is refused before anything large is made."""

from functools import partial
from typing import Any

import jinja2.filters
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.exceptions import SecurityError, UndefinedError

from muxd.text import budget
from muxd.text.budget import formatted, grown, start_budget
from muxd.text.sandbox import TemplateEnvironment

BIG = "{% set x = 'x' * 16000000 %}"
LOOP = "{% for i in range(99999) %}{% if BODY %}{% endif %}{% endfor %}"
HOSTILE = {
    "center": "{{ 'a' | center(3000000000) }}",
    "center of a number": "{{ 1 | center(3000000000) }}",
    "indent": "{{ ('\n' * 100000) | indent(100000) }}",
    "indent by a text": "{{ ('\n' * 100000) | indent('x' * 100000) }}",
    "tojson": "{{ [[1]] | tojson(indent=100000000) }}",
    "tojson by a text": "{{ [[1]] | tojson(indent='x' * 1000) }}",
    "slice": "{{ [1] | slice(100000000) | list }}",
    "batch": "{{ [1] | batch(100000000, 'x') | list }}",
    "round": "{{ 1 | round(-1000000000) }}",
    "sum of lists": BIG + "{{ (([[1] * 100000] * 100000)) | sum(start=[]) }}",
    "sum of lists by an attribute": "{{ ([{'a': [1] * 100000}] * 100000) | sum('a', []) }}",
    "replace": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "replace by name": "{{ ('a' * 100000) | replace(new='b' * 100000, old='a') }}",
    "replace method": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "replace of nothing": "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
    "join": "{{ (['a' * 100000] * 100000) | join }}",
    "join by a separator": "{{ range(10000) | join('a' * 100000) }}",
    "join of an attribute": "{{ ([{'a': 'a' * 100000}] * 100000) | join('', 'a') }}",
    "join method": "{{ ('a' * 100000).join(['b'] * 100000) }}",
    "wordwrap": "{{ ('a ' * 100000) | wordwrap(1, wrapstring='b' * 100000) }}",
    "percent": "{{ '%4000000000d' % 1 }}",
    "percent with a precision": "{{ '%.4000000000f' % 1 }}",
    "percent with a width given": "{{ '%*d' % (4000000000, 1) }}",
    "percent by name": "{{ '%(a)4000000000d' % {'a': 1} }}",
    "percent many times": "{{ ('%s' * 100000) % (('a' * 100000,) * 100000) }}",
    "format filter": "{{ '%4000000000d' | format(1) }}",
    "format": "{{ '{:3000000000d}'.format(1) }}",
    "format with a width given": "{{ '{:{}}'.format(1, 3000000000) }}",
    "format many times": "{{ ('{0}' * 100000).format('a' * 100000) }}",
    "format_map": "{{ '{a:3000000000d}'.format_map({'a': 1}) }}",
    "format by another way": "{{ '{:3000000000d}'['format'](1) }}",
    "translate": "{{ ('a' * 100000).translate({97: 'b' * 100000}) }}",
    "expandtabs": "{{ ('\t' * 100000).expandtabs(100000) }}",
    "zfill": "{{ '1'.zfill(3000000000) }}",
    "squares": "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "powers": "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x ** 9 %}{% endfor %}",
    "negative power of an integer": "{{ 7 ** -1000000 }}",
    "set block": BIG + "{% set y %}{% for i in range(2000) %}{{ x }}{% endfor %}{% endset %}",
    "set blocks again and again": "{% set n = namespace(s='x') %}{% for i in range(60) %}"
    "{% set y %}{{ n.s }}{{ n.s }}{% endset %}{% set n.s = y %}{% endfor %}",
    "macro": BIG + "{% macro f() %}{{ x }}{{ x }}{% endmacro %}{{ f() | length }}",
    "call block": BIG
    + "{% macro f() %}{{ caller() | length }}{% endmacro %}{% call f() %}{{ x }}{{ x }}{% endcall %}",
    "filter block": BIG + "{% filter length %}{{ x }}{{ x }}{% endfilter %}",
    "filter over and over": BIG + LOOP.replace("BODY", "x | upper"),
    "method over and over": BIG + LOOP.replace("BODY", "x.upper()"),
    "test over and over": BIG + LOOP.replace("BODY", "x is upper"),
    "in over and over": BIG + LOOP.replace("BODY", "'y' in x"),
    "not in over and over": BIG + LOOP.replace("BODY", "'xy' not in x"),
    "slices over and over": BIG + LOOP.replace("BODY", "x[1:]"),
    "lists over and over": LOOP.replace("BODY", "range(100000) | list"),
    "a filter through another": "{{ ['a'] | map('center', 3000000000) | list }}",
}


def render(source: str, **variables: Any) -> str:
    template = TemplateEnvironment().from_string(source)
    start_budget()
    return "".join(template.generate(variables))


@pytest.fixture(params=[10, pytest.param(1, marks=pytest.mark.slow)])
def part(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its steps a render has one in so many: what goes on and on uses up the few as it does the many."""
    monkeypatch.setattr(budget, "MAX_STEPS", budget.MAX_STEPS // request.param)


@pytest.mark.usefixtures("part")
@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_multiplies_is_refused(source: str) -> None:
    with pytest.raises(SecurityError, match=r"the template (asks for a size|takes more than)"):
        render(source)


def test_nothing_is_worked_out_when_a_template_is_loaded() -> None:
    start_budget()  # what an earlier render leaves must not make a difference
    code = TemplateEnvironment().compile("{{ 'b' | upper }}{{ 7 - 6 }}{{ 'c' ~ 'd' }}{{ 'e'[:9] }}", raw=True)
    assert "7 - 6" in code
    assert "'B'" not in code
    assert "'cd'" not in code
    assert render("{{ 'b' | upper }}{{ 7 - 6 }}{{ 'c' ~ 'd' }}{{ 'e'[:9] }}") == "B1cde"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ ['x'] | map(attribute='__class__') | list }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ '{a.__class__}'.format_map({'a': 1}) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ tojson.__globals__ }}",
        "{{ strftime_now.__wrapped__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ namespace.__init__ }}",
        "{{ messages.append(1) }}",
    ],
)
def test_attributes_do_not_lead_out(source: str) -> None:
    try:
        shown = render(source, messages=[])
    except (SecurityError, UndefinedError):
        return
    assert shown in ("", "[Undefined]")


pieces = st.sampled_from(["a", " ", "\n", "\t", "xy", "é"])
texts = st.lists(pieces, max_size=8).map("".join)
widths = st.integers(-3, 20)
METHODS: dict[str, st.SearchStrategy[tuple[Any, ...]]] = {
    "replace": st.tuples(texts, texts),
    "center": st.tuples(widths),
    "ljust": st.tuples(widths),
    "rjust": st.tuples(widths),
    "zfill": st.tuples(widths),
    "expandtabs": st.tuples(widths),
    "join": st.tuples(st.lists(texts, max_size=4)),
    "translate": st.tuples(st.dictionaries(st.sampled_from([97, 10, 32]), texts)),
    "format": st.tuples(texts, texts, widths),
}
FILTERS: dict[str, st.SearchStrategy[tuple[Any, ...]]] = {
    "indent": st.tuples(widths | texts, st.booleans()),
    "center": st.tuples(widths),
    "replace": st.tuples(texts, texts),
    "wordwrap": st.tuples(st.integers(1, 5), st.booleans(), texts),
}


@given(data=st.data(), text=texts)
def test_no_method_or_filter_makes_more_than_is_paid_for(data: st.DataObject, text: str) -> None:
    name = data.draw(st.sampled_from(sorted(METHODS)))
    given = data.draw(METHODS[name])
    form = text + "{}{0}{1:>9}{2}" if name == "format" else text
    form = form.replace("{}", "{1}")
    assert len(getattr(form, name)(*given)) <= grown(name, form, given)
    name = data.draw(st.sampled_from(sorted(FILTERS)))
    given = data.draw(FILTERS[name])
    assert len(_plain(name)(text, *given)) <= grown(name, text, given)


def _plain(name: str) -> Any:
    """Jinja's own filter, which no budget watches."""
    work = jinja2.filters.FILTERS[name]
    return partial(work, jinja2.Environment()) if hasattr(work, "jinja_pass_arg") else work


@given(width=st.integers(0, 30), text=texts, form=st.sampled_from(["%{}s|%s", "%-{}s%%%s", "a%(a){}s%(a)s"]))
def test_no_format_makes_more_than_is_paid_for(width: int, text: str, form: str) -> None:
    form = form.replace("{}", str(width or ""))
    values: Any = {"a": text} if "(" in form else (text, text)
    assert len(form % values) <= formatted(form, values.values() if isinstance(values, dict) else values)


def test_an_honest_template_over_long_messages_is_served() -> None:
    source = (
        "{% set ns = namespace(s='') %}{% for m in messages %}"
        "{% set ns.s = ns.s ~ (m | trim | replace('a', 'b')) %}"
        "{% if 'z' in m %}{{ m[1:] | indent(4) }}{% endif %}{% endfor %}{{ ns.s }}"
    )
    assert render(source, messages=["aB" * 500] * 500) == "bB" * 250_000
    long = "x" * 1_000_000
    assert render("{{ m.replace(m, '') }}{{ m | replace(new='', old=m) }}", m=long) == ""
    turns = (
        "{% for a in m %}{% for b in m[loop.index0:] %}{% if b is none %}{% endif %}{% endfor %}{% endfor %}"
    )
    assert render(turns + "end", m=["x"] * 800) == "end"
