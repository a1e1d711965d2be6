"""Docstrings as plain text."""

import re

_ROLE = re.compile(r":[\w:]+:`(?:(?P<title>[^`<]+?)\s*<[^`]*>|(?P<short>~?)(?P<target>[^`]*))`")
_LITERAL = re.compile(r"(`+)([^`]+)\1_?")


def plain(text: str) -> str:
    """Text without Sphinx markup.

    Of roles, the title is shown where there is one, else the target, and its last name alone where it begins with a
    tilde. Literals lose their backticks.
    """
    return _LITERAL.sub(r"\2", _ROLE.sub(_shown, text))


def _shown(role: re.Match[str]) -> str:
    target = role["target"]
    return role["title"] or (target.rpartition(".")[2] if role["short"] else target)
