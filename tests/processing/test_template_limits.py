"""What a chat template may take, and that within it Jinja's results stay."""

from __future__ import annotations

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mlx_speech import CheckpointError
from mlx_speech.processing import template_limits
from mlx_speech.processing.chat_template import render_chat

CHAT = [{"role": "user", "content": "Qui est là ? " * 20}, {"role": "assistant", "content": "Moi."}]

#: make something large at once
LARGE = [
    "{{ 'x' * 10**10 }}",
    "{{ 10000000000 * 'x' }}",
    "{{ 'x'.encode() * 10000000000 }}",
    "{{ [1] * 10000000000 }}",
    "{% if 'x' * 10000000000 %}{% endif %}",
    "{% autoescape 'x'|center(10000000000) %}{% endautoescape %}",
    "{{ 9**(9**9) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%.1000000000f' % 1.0 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ ['%1000000000d']|map('format', 1)|list }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "{{ ('{0}' * 1000).format('x' * 1000000) }}",
    "{{ 'x'.center(10**10) }}",
    "{{ 'x'['center'](10000000000) }}",
    "{{ ('x'|attr('center'))(10000000000) }}",
    "{{ 'x'|center(10000000000) }}",
    "{{ ['x']|map('center', 10000000000)|list }}",
    "{{ 'x'.ljust(10000000000) }}",
    "{{ 'x'.zfill(10000000000) }}",
    "{{ '\\t'.expandtabs(tabsize=1000000000) }}",
    "{{ (1).to_bytes(10000000000, 'big') }}",
    "{{ ('x' * 1000000).translate({120: 'y' * 1000000}) }}",
    "{{ ('x' * 1000000)|replace('x', 'y' * 1000000) }}",
    "{{ ('x' * 1000000).join(range(99999)|map('string')) }}",
    "{{ range(99999)|map('string')|join('x' * 1000000) }}",
    "{{ messages|tojson(indent=10**9) }}",
    "{{ messages|tojson(indent='x' * 1000000) }}",
    "{{ 'abc'|batch(1000000000, 'x')|list }}",
    "{{ 'abc'|slice(1000000000)|list }}",
    "{{ ('a\\n' * 1000)|indent(1000000000) }}",
    "{{ ('a' * 1000000)|wordwrap(1) }}",
    "{{ 1|round(100000000, 'ceil') }}",
    "{{ range(99999)|batch(1)|sum(start=[])|length }}",
    "{{ ('ab' * 1000000)|sort }}",
    "{{ lipsum(n=10000000) }}",
    "{{ strftime_now('%Y' * 1000000) }}",
    "{{ range(10**9)|list }}",
    "{{ 'x' }}" * 20000,
]
#: make it step by step; within `loop`, `ns.x` is what grows
GROWING = [
    "{% set ns.x = ns.x ~ ns.x %}",
    "{% set ns.x = ns.x + ns.x %}",
    "{% set ns.x = [ns.x, ns.x]|join %}",
    "{% set ns.x = ''.join([ns.x, ns.x]) %}",
    "{% set ns.x = ns.x.replace('x', 'xx') %}",
    "{% set ns.x = '{0}{0}'.format(ns.x) %}",
    "{% set ns.x = '%s%s' % (ns.x, ns.x) %}",
    "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}",
    "{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns.x = twice(ns.x) %}",
    "{% set ns.x = (ns.x|list) * 2 %}",
    "{% set ns.x = [ns.x, ns.x] %}{{ ns.x }}",
    "{% set ns.x = [ns.x, ns.x] %}{{ ns.x|tojson }}",
    "{% set ns.x = [ns.x, ns.x] %}{% set y = ns.x ~ '' %}",
    "{% set ns.x = (ns.x, ns.x) %}{% set y = {ns.x: 1} %}",
    "{% set ns.x = (ns.x, ns.x) %}{{ {}[ns.x] }}",
    "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{{ ns.x == ns.y }}",
    "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{{ ns.x is eq ns.y }}",
    "{% set ns.kept = ns.kept + [range(99999)|list] %}",
    "{% set ns.big = ns.big or 'x' * 1000000 %}{% set ns.kept = ns.kept + [ns.big[1:]] %}",
    "{% set ns.kept = ns.kept + [('x ' * 1000000).split()] %}",
    "{% set ns.x = [ns.x] %}{% for j in range(99) %}{{ ns.x|tojson(indent=9999) }}{% endfor %}",
    "text " * 9000,
]
#: go on and on
LONG = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) if j < 0 %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{{ range(99999)|list|length }}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% for i in [1] recursive %}{{ loop(range(99999)) if loop.depth < 5 }}{% endfor %}",
]


def refused(template: str) -> None:
    with pytest.raises(CheckpointError, match="the chat template") as caught:
        render_chat(template, CHAT)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("template", LARGE, ids=lambda template: template[:40])
def test_large_at_once(template):
    refused(template)


@pytest.mark.parametrize("step", GROWING, ids=lambda step: step[:70])
def test_growing(step):
    begin = "{% set ns = namespace(x='x', y='x', kept=[], big='') %}{% for i in range(99999) %}"
    refused(begin + step + "{% endfor %}")


@pytest.mark.parametrize("template", LONG)
def test_long(template, monkeypatch):
    monkeypatch.setattr(template_limits, "MAX_SECONDS", 0.05)
    refused(template)


@pytest.mark.parametrize(
    "template", ["{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}", "{{ " + "(" * 9000]
)
def test_deep(template):
    refused(template)


def test_a_namespace_does_not_show_what_it_holds():
    """Which may be itself."""
    template = "{% set a = namespace() %}{% set a.x = [a, a] %}{{ a }} {{ a.x }}"
    assert render_chat(template, CHAT) == "<Namespace> [<Namespace>, <Namespace>]"


@pytest.mark.parametrize(
    "expression",
    [
        "messages[0].content.replace('là', 'ici').split(' ')[-3:]|join('+')",
        "messages|map(attribute='role')|map('upper')|map('center', 12)|join('|')",
        "messages|selectattr('role', 'equalto', 'user')|list|length",
        "messages|rejectattr('role', 'in', ['user'])|map(attribute='content')|first",
        "messages|groupby('role')|map('first')|list",
        "messages[::-1]|sort(attribute='role')|map(attribute='role')|list",
        "(messages + [messages[0]])|unique(attribute='role')|list|length",
        "'%-12s|%5.1f|%d%%' % ('a', 2.5, 1700000000)",
        "'{:>12}|{a[0]:5.1f}|{{}}|{}'.format('a', 1700000000, a=[2.5])",
        "'%s and %s'|format('a', messages[0].content)",
        "'a' ~ 1 ~ none ~ [1, 'b'] ~ ('<' | safe) ~ (true)",
        "'x' * 3 + 'y'.ljust(4) ~ 'é'.encode().hex() ~ 'b'.center(5, '-')",
        "'one two three four'|wordwrap(9)|indent(4, first=true)",
        "range(10)|batch(3, '-')|list ~ range(10)|slice(3)|map('list')|list",
        "(2 ** 40) * 3 % 7 ~ 7 // 2 ~ 2.5 * 2 ~ 3.14159|round(2) ~ 1e3 ** 2",
        "messages[1].items()|list ~ messages[1]|dictsort ~ messages[1].get('name', 'x')",
        "'a' in messages[0].content and 'role' in messages[0] and messages[0] == messages[0]",
        "dict(a=1, **{'b': 2})|items|map('last')|sum ~ ({1: 2}[1]) ~ [3, 1]|max ~ (1, 2)",
        "namespace(a=1).a ~ cycler('x', 'y').next() ~ (nothing is undefined)",
        "messages|length ~ messages|last ~ ''|default('d', true) ~ '<b>'|e ~ 'ab'|reverse",
        "'Title case'|title ~ ' x '|trim ~ '1.5'|float ~ 'a b'|urlencode ~ 'abc'|truncate(3)",
    ],
)
def test_as_in_jinja(expression):
    template = "{% for i in [1, 2] %}{{ loop.last }}{{ " + expression + " }}{% endfor %}"
    template += "{% macro m(x, n=2) %}{{ varargs }}{{ caller() }}{{ x }}{% endmacro %}"
    template += "{% call m(messages[0], 1, 2) %}<{{ " + expression + " }}>{% endcall %}"
    expected = ImmutableSandboxedEnvironment().from_string(template).render(messages=CHAT)
    assert render_chat(template, CHAT) == expected
