"""A chat template is somebody else's program: it renders what transformers renders, and cannot hang or exhaust us."""

import time

import pytest

from lvr_jax.data.chat_template import TemplateError, render

MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]}]


@pytest.mark.parametrize("template, says", [
    ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ("{{ 'a'.index('b') }}", "substring not found"),
    ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    ("{{ range(10**9)|list|length }}", "Range too big"),
    ("{{ 'a' * 10**30 }}", "repeats a value"),
    ("{{ [1] * 10**8 }}", "repeats a value"),
    ("{{ 2 ** (10**9) }}", "power"),
    ("{{ '%0999999999d' % 3 }}", "formats with"),
    ("{{ '%0999999999d'|format(3) }}", "formats with"),
    ("{{ 'x'|center(10**9) }}", "center of 1000000000"),
    ("{{ 'x'|indent(width=10**9, first=true) }}", "indent of 1000000000"),
    ("{{ lipsum(n=10**9) }}", "undefined"),
    ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "loops turn more than"),
    ("{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}", "recursive loop"),
    ("{{ raise_exception('one\ntwo') }}", "one two"),
    ("{% if", "unexpected"),
    ("{{ messages.append(1) }}", "SecurityError"),
])  # fmt: skip
def test_a_template_that_fails_or_does_not_end_is_one_line(template, says):
    started = time.monotonic()
    with pytest.raises(TemplateError, match=says) as raised:
        render(template, MESSAGES, "checkpoint")
    assert str(raised.value).startswith("chat template of checkpoint: ") and "\n" not in str(raised.value)
    assert time.monotonic() - started < 10


def test_loops_filters_and_operators_do_what_they_do_in_jinja():
    template = (
        "{% for m in messages %}{{ loop.index }}{{ loop.last }}{{ loop.length }}"
        "{% for part in m.content if part.type == 'text' %}{{ part.text|upper|center(10) }}"
        "{% else %}nothing{% endfor %}"
        "{% for part in [] %}{% else %}<none>{% endfor %}{% endfor %}{{ '%s-%d' % ('a', 3) }}{{ 'ab' * 2 }}{{ 2 ** 3 }}"
    )
    assert render(template, MESSAGES, "checkpoint") == "1True1  WHICH?  <none>a-3abab8"
