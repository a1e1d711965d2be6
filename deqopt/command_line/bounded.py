"""Settings of bounded size: text and data that would fill the memory, or nest without end, are refused in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import yaml

from deqopt.errors import DeqoptError

MAX_CHARACTERS = 64 * 1024
MAX_VALUES = 2_000
"""Keys and values together, where a value that is referred to twice counts twice. The parser's time is quadratic."""
MAX_DEPTH = 40
MAX_DIGITS = 300
"""Of an integer. More is no setting, and Python takes long over it or refuses."""
TOO_DEEP = f"settings are nested more than {MAX_DEPTH} deep, or within themselves"


class NotYamlError(DeqoptError, ValueError):
    """Text that is not YAML, or too much of it."""


class ExcessError(yaml.YAMLError):  # type: ignore[misc]  # PyYAML has no types
    """More than the bounds of this module allow, or a value that cannot be read; a YAMLError, as its readers expect."""


def load_yaml(text: str) -> Any:
    """The value that YAML text stands for: mappings, lists and plain values, within the bounds of this module.

    Raises:
        NotYamlError: in one line.
    """
    try:
        return yaml.load(text, Loader=bounded(yaml.SafeLoader))
    except ExcessError as error:
        raise NotYamlError(str(error)) from error
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise NotYamlError(f"not valid YAML: {where}{error.problem}") from error
    except yaml.YAMLError as error:
        raise NotYamlError(f"not valid YAML: {' '.join(str(error).split())}") from error


@lru_cache(maxsize=4)
def bounded(base: Any) -> Any:
    """A safe loader of PyYAML that raises ExcessError in place of building more than the bounds allow."""

    class Bounded(base):  # type: ignore[misc]
        def __init__(self, stream: str) -> None:
            _refuse_length(stream)
            self._depth = self._nodes = 0
            super().__init__(stream)

        def compose_node(self, parent: Any, index: Any) -> Any:
            """As written; PyYAML's loader in C composes without it, which is fast and has a bound of its own."""
            self._depth, self._nodes = self._depth + 1, self._nodes + 1
            _refuse(depth=self._depth, values=self._nodes)
            node = super().compose_node(parent, index)
            self._depth -= 1
            return node

        def get_single_data(self) -> Any:
            try:
                node = self.get_single_node()
                if node is None:
                    return None
                refuse_excess(node, _below_node)
                return self.construct_document(node)
            except RecursionError as error:
                raise ExcessError(TOO_DEEP) from error
            except (ValueError, ArithmeticError, AttributeError, LookupError, TypeError) as error:
                # what PyYAML lets through: dates with a 13th month, tags such as !!bool before other text
                reason = " ".join(str(error).split())[:200]
                raise ExcessError(f"not valid YAML: a value cannot be read: {reason}") from error

    return Bounded


def refuse_excess_in(text: str) -> None:
    """Raise ExcessError where a text would be too much, should the parser read it as YAML; what is no YAML passes."""
    _refuse_length(text)
    if text.lstrip()[:1] in ("[", "{", "&", "*", "!", "?", "-") or "\n" in text or len(text) > MAX_DIGITS:
        try:
            yaml.load(text, Loader=bounded(yaml.SafeLoader))
        except ExcessError:
            raise
        except yaml.YAMLError:
            return


def refuse_excess(root: Any, below: Callable[[Any], Iterable[Any]] | None = None) -> None:
    """Raise ExcessError where there are too many values, they nest too deeply, or one of them is too long.

    Args:
        root: the settings.
        below: what a value consists of. By default the keys and values of mappings, and the items of lists.
    """
    parts = below or _below_value
    seen, left = 0, [(root, 1)]
    while left:
        value, depth = left.pop()
        left.extend((one, depth + 1) for one in parts(value))
        seen += 1
        _refuse(depth=depth, values=seen + len(left))


def _refuse(depth: int, values: int) -> None:
    if depth > MAX_DEPTH:
        raise ExcessError(TOO_DEEP)
    if values > MAX_VALUES:
        raise ExcessError(f"more than {MAX_VALUES} values, or references that unfold to more, are no settings")


def _below_node(node: Any) -> Iterable[Any]:
    if isinstance(node, yaml.MappingNode):
        return (one for pair in node.value for one in pair)
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if node.tag == "tag:yaml.org,2002:int" and len(node.value) > MAX_DIGITS:
        raise ExcessError(f"line {node.start_mark.line + 1}: an integer of {len(node.value)} digits is no setting")
    return ()


def _below_value(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, int) and value.bit_length() > 3 * MAX_DIGITS:
        raise ExcessError(f"an integer of {value.bit_length()} bits is no setting")
    if isinstance(value, str):
        refuse_excess_in(value)
    return ()


def _refuse_length(text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise ExcessError(f"{len(text)} characters are too much for settings: at most {MAX_CHARACTERS} are read")
