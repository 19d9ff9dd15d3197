"""Renders a checkpoint's own chat template within bounds: it is a program that somebody else wrote.

The template runs in Jinja's sandbox, as in transformers. What the sandbox leaves open is bounded here: how often loops
turn, and how large a text or list an operator can make of a small one. Whatever fails is one line.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.sandbox
from jinja2 import nodes

# Far above what a chat needs: templates of published models turn a few loops a message.
MAX_TURNS = 100_000
MAX_SIZE = 10_000_000
_TURNS = "_lvr_jax_turns"
MAX_WIDTH = 10_000
# They make a long text of a short one by a number.
_WIDENING_FILTERS = ("center", "indent", "truncate", "wordwrap", "batch", "slice")
_WIDE_FORMAT = re.compile(r"\*|\d{5}")


class TemplateError(ValueError):
    """A chat template that cannot be compiled or rendered; one line."""


class _Bounded(jinja2.sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**", "%"])

    def call_binop(self, context, operator: str, left, right):
        if operator == "%" and isinstance(left, str):
            _refuse_wide_format(left)
        if operator == "**" and (abs(right) > 64 or abs(left) > 2**64):
            raise TemplateError(f"raises {left} to the power of {right}")
        if operator == "*":
            for many, count in ((left, right), (right, left)):
                if hasattr(many, "__len__") and isinstance(count, int) and len(many) * count > MAX_SIZE:
                    raise TemplateError(f"repeats a value of length {len(many)} {count} times")
        return super().call_binop(context, operator, left, right)


@jinja2.pass_context
def _counted(context, items: Iterable) -> Iterator:
    turns = context[_TURNS]
    for item in items:
        turns[0] += 1
        if turns[0] > MAX_TURNS:
            raise TemplateError(f"its loops turn more than {MAX_TURNS:,} times")
        yield item


def _refuse_wide_format(text: str) -> None:
    if _WIDE_FORMAT.search(text):
        raise TemplateError(f"formats with {text[:40]!r}, expected widths below {MAX_WIDTH:,}")


def _narrow(name: str, apply: Callable) -> Callable:
    @functools.wraps(apply)
    def bounded(*arguments, **options):
        for number in (*arguments, *options.values()):
            if isinstance(number, int) and abs(number) > MAX_WIDTH:
                raise TemplateError(f"{name} of {number}, expected at most {MAX_WIDTH:,}")
        return apply(*arguments, **options)

    return bounded


def _format(text: object, *arguments, **options) -> str:
    _refuse_wide_format(str(text))
    return jinja2.filters.do_format(str(text), *arguments, **options)


def _raise(message: object):
    raise TemplateError(str(message))


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    environment = _Bounded(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals.pop("lipsum", None)
    environment.filters |= {name: _narrow(name, environment.filters[name]) for name in _WIDENING_FILTERS}
    environment.filters["format"] = _format
    environment.filters[_counted.__name__] = _counted
    environment.globals["raise_exception"] = _raise
    tree = environment.parse(template)
    for loop in tree.find_all(nodes.For):
        if loop.recursive:      # it calls itself with new items, which no filter sees
            raise TemplateError("has a recursive loop, whose turns cannot be counted")
        loop.iter = nodes.Filter(loop.iter, _counted.__name__, [], [], None, None)
    return environment.from_string(tree)


def render(template: str, messages: Sequence[Mapping[str, Any]], where: str) -> str:
    """The text of a conversation, with the opening of the assistant's turn. Raises TemplateError naming `where`."""
    try:
        return _compiled(template).render(messages=messages, add_generation_prompt=True, **{_TURNS: [0]})
    # Whatever the template computes can fail in any way: a division, a missing key, a method of a text.
    except Exception as error:
        said = " ".join(str(error).split()) or "without a message"
        raise TemplateError(f"chat template of {where}: {type(error).__name__}: {said}") from error
