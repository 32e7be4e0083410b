"""YAML files of settings: read so that a refusal can name its line, written so that they read back the same.

YAML is read safely, and in two things as people mean it: `1e-4` is a number (as in YAML 1.2, which editors read), and
a date stays text. What would be read otherwise than it looks is refused: a key twice, a key that is no text.
"""

# pyright: reportUnknownMemberType=false
# (PyYAML is half typed)

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from limbeck.errors import LimbeckError, RecipeError
from limbeck.storage import here

_TAG = "tag:yaml.org,2002:"
_EXPONENT = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+\Z")


class _Loader(yaml.SafeLoader):
    """Safe YAML 1.1 with the numbers of 1.2, and without dates."""


class _Dumper(yaml.SafeDumper):
    """Puts into quotes what would be read as something else: a number, or the end of a line."""


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(f"{_TAG}str", text, style='"' if set("\x85\u2028\u2029") & set(text) else None)


_Loader.yaml_implicit_resolvers = {
    first: [found for found in resolvers if found[0] != f"{_TAG}timestamp"] for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(f"{_TAG}float", _EXPONENT, list("-+.0123456789"))
_Dumper.add_representer(str, _text_node)


@dataclass(frozen=True)
class SettingsFile:
    """A file's settings as plain data, and where in the file each of them stands."""

    path: Path
    settings: dict[str, Any]
    root: yaml.MappingNode

    def place(self, steps: Sequence[str | int]) -> str:
        """The file and the line to which `steps` lead; of the file alone where they lead nowhere in it.

        Steps that the file does not spell out (a list of one, a setting inside a call or left out) are passed over.
        """
        node, mark = cast(yaml.Node, self.root), None
        for step in steps:
            if inner := _inside(node, step):
                node, mark = inner
        return _at(self.path, mark) if mark else str(self.path)


def _inside(node: yaml.Node, step: str | int) -> tuple[yaml.Node, yaml.Mark] | None:
    """What stands at a key or place of a node, and where: text at its own beginning, all else at its key."""
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and 0 <= step < len(node.value):
        return node.value[step], node.value[step].start_mark
    if isinstance(node, yaml.MappingNode):
        for key, value in reversed(node.value):  # what is merged from an anchor comes first, and gives way
            if key.value == str(step):
                return value, (value if isinstance(value, yaml.ScalarNode) else key).start_mark
    return None


def _at(path: Path, mark: yaml.Mark) -> str:
    return f"{path}, line {mark.line + 1}"


def open_settings(path: Path) -> SettingsFile:
    """Read a file of settings with its lines. Raises RecipeError for one that is missing, malformed, empty or no mapping."""
    text = _text(here(path))
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            raise RecipeError(f"{path} is empty; a recipe needs at least a student and a source")
        if not isinstance(root, yaml.MappingNode):
            raise RecipeError(f"{path} holds {_kind(root)} where a mapping of settings was expected; write them as name: value")
        _check(root, path, (), set())
        return SettingsFile(path, cast(dict[str, Any], loader.construct_document(root)), root)
    except LimbeckError:
        raise
    except yaml.YAMLError as error:
        raise RecipeError(_no_yaml(error, path, text)) from None
    except RecursionError:
        raise RecipeError(f"{path} nests deeper than any recipe; close the brackets that were left open") from None
    except ValueError as error:  # `!!int x`
        raise RecipeError(f"{path}: no YAML ({error}); write plain values") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings of a file as plain data. Raises RecipeError as `open_settings` does."""
    return open_settings(path).settings


def parsed_yaml(text: str) -> Any:
    """What YAML of our own writing says."""
    return yaml.load(text, _Loader)


def yaml_of(settings: object) -> str:
    """Plain data as YAML, the order of its keys kept."""
    return yaml.dump(settings, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _text(path: Path) -> str:
    if not path.is_file():
        raise RecipeError(f"there is no recipe file {path}; give a YAML file or a method's name")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None


def _check(node: yaml.Node, path: Path, above: tuple[yaml.Node, ...], seen: set[int]) -> None:
    """Refuse what YAML allows and settings cannot mean. Each node is looked at once, however often it is named."""
    if any(node is other for other in above):
        raise RecipeError(f"{_at(path, node.start_mark)}: an anchor that stands within itself has no end; write it out")
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        _check_keys(node, path)
        for _, value in node.value:
            _check(value, path, (*above, node), seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check(item, path, (*above, node), seen)


def _check_keys(node: yaml.MappingNode, path: Path) -> None:
    first = dict[str, yaml.Mark]()
    for key, _ in node.value:
        where = _at(path, key.start_mark)
        if key.tag not in (f"{_TAG}str", f"{_TAG}merge"):
            shown = f'the key "{key.value}"' if isinstance(key, yaml.ScalarNode) else "a key"
            raise RecipeError(f"{where}: {shown} is read as {_kind(key)}, and names of settings are text; put it in quotes")
        if key.value in first:
            raise RecipeError(f'{where}: "{key.value}" is given twice, first in line {first[key.value].line + 1}; keep one')
        first[key.value] = key.start_mark


def _kind(node: yaml.Node) -> str:
    """What YAML reads a node as, in words."""
    words = {"null": "null", "bool": "true or false", "int": "a number", "float": "a number", "seq": "a list", "map": "a mapping", "str": "text"}
    return words.get(node.tag.removeprefix(_TAG), node.tag.replace(_TAG, "!!"))


_HINTS = {
    "\\t": "indent with spaces",
    "mapping values are not allowed": 'put text that holds ": " in quotes, and indent like keys alike',
    "cannot start any token": "put the text in quotes",
    "special characters": "remove the character",
    "found another document": "keep one recipe a file",
    "the tag": "write plain values",
    "for merging": "let << name a mapping",
    "undefined alias": "name an anchor further up, or put the text in quotes",
}
"""What to do, by a piece of the parser's own words."""


def _no_yaml(error: yaml.YAMLError, path: Path, text: str) -> str:
    """The parser's report in one line: file, line, reason, what to do."""
    if isinstance(error, yaml.reader.ReaderError):
        line, reason = text.count("\n", 0, error.position) + 1, f"{error.reason}: #x{error.character:04x}"
    else:
        assert isinstance(error, yaml.MarkedYAMLError)
        mark = error.problem_mark or error.context_mark
        line, reason = (mark.line + 1 if mark else 1), _reason(error)
    hint = next((hint for words, hint in _HINTS.items() if words in reason), "mend brackets, quotes and indentation here or just above")
    return f"{path}, line {line}: no YAML ({reason}); {hint}"


def _reason(error: yaml.MarkedYAMLError) -> str:
    problem = str(error.problem)
    if problem.startswith("could not determine a constructor for"):
        return problem.removeprefix("could not determine a constructor for ").replace(_TAG, "!!") + " is unknown"
    if error.context is None or error.context_mark is None:
        return problem
    return f"{error.context} begun in line {error.context_mark.line + 1}, {problem}"
