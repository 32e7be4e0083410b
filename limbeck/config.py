"""Parts as plain data: a class is its settings, and its fields are its constructor's arguments and its YAML keys.

A part is written in one of three ways that mean the same:

    ForwardKL(temperature=2)                     in Python
    "ForwardKL(temperature=2)"                   in YAML or on the command line
    {type: ForwardKL, temperature: 2}            in YAML, and in every file that we write
"""

import ast
import dataclasses
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, cast, dataclass_transform

import yaml
from pydantic import ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import CoreSchema, ErrorDetails, core_schema

from limbeck.errors import LimbeckError, RecipeError, did_you_mean
from limbeck.settings_file import open_settings, yaml_of
from limbeck.settings_file import read_yaml as read_yaml

T = TypeVar("T")
P = TypeVar("P", bound="Part")


class Part:
    """Base of everything that a recipe is made of. Abstract parts are fields' types; concrete ones are values."""

    registry: ClassVar[dict[str, type["Part"]]] = {}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type, handler: GetCoreSchemaHandler) -> CoreSchema:
        if inspect.isabstract(cls):
            return core_schema.no_info_plain_validator_function(lambda value: build(value, cls))
        schema = handler(source)
        return core_schema.no_info_before_validator_function(lambda value: unwrap(value, cls), schema)

    @classmethod
    def adopt(cls, value: object) -> object:
        """Turn another kind's value that may stand here into this kind's; by default none may."""
        return value

    def fresh(self) -> Self:
        """The same settings in a part of its own, with nothing alive in it."""
        return dataclasses.replace(self)  # pyright: ignore[reportArgumentType, reportUnknownVariableType]  # every concrete part is a dataclass

    @classmethod
    def known(cls) -> list[str]:
        """Names of the concrete parts that may stand where a `cls` is asked for."""
        return sorted(name for name, part in Part.registry.items() if issubclass(part, cls) and not inspect.isabstract(part))


def live() -> Any:
    """Declare an attribute of a part that is no setting: it is filled by `load` and never written to a file."""
    return dataclasses.field(init=False, repr=False, compare=False, default=None, kw_only=True)  # no place among those without a name


@dataclass_transform(field_specifiers=(dataclasses.field,))
def part(cls: type[T]) -> type[T]:
    """Make a class a part: validated fields, unknown keys refused, found by name in YAML.

    A class from outside that bears the name of one of ours is found as `module:Class` only.
    """
    made = pydantic_dataclass(cls, config=ConfigDict(extra="forbid", arbitrary_types_allowed=True))
    made.__init__ = _refusing(made.__init__, made)
    if issubclass(made, Part) and (_is_ours(made) or not _is_ours(Part.registry.get(made.__name__))):
        Part.registry[made.__name__] = made
    return cast(type[T], made)


def _is_ours(cls: type | None) -> bool:
    return cls is not None and cls.__module__.partition(".")[0] == "limbeck"


def _refusing(init: Callable[..., None], cls: type) -> Callable[..., None]:
    """Turn pydantic's report into one line of our own."""

    @wraps(init)
    def checked(self: object, /, *args: object, **kwargs: object) -> None:
        try:
            init(self, *args, **kwargs)
        except ValidationError as error:
            first = min(error.errors(), key=lambda found: found["type"] != "unexpected_keyword_argument")  # a slip explains what is missing
            cause, path = first.get("ctx", {}).get("error"), _path(first, cls)
            refused = cause if isinstance(cause, LimbeckError) else RecipeError(_report(first, path, cls))
            raise refused.within(*path) from None

    return checked


def _path(first: ErrorDetails, cls: type) -> tuple[str | int, ...]:
    """Where pydantic found the fault, a setting that was given by its position under its name."""
    loc, names = first["loc"], settings_of(cls)
    return (names[loc[0]], *loc[1:]) if loc and isinstance(loc[0], int) and loc[0] < len(names) else loc


def _report(first: ErrorDetails, path: tuple[str | int, ...], cls: type) -> str:
    names, where = settings_of(cls), ".".join(map(str, path))
    if first["type"] == "unexpected_keyword_argument":
        return f'{cls.__name__} has no setting "{where}"{did_you_mean(where, names)}'
    if first["type"] == "unexpected_positional_argument":
        return f"{cls.__name__} takes its settings by name ({', '.join(names)}), found {first['input']!r} without one"
    if first["type"].startswith("missing"):
        return f"{cls.__name__} needs {where}: give it a value"
    message = first["msg"].removeprefix("Value error, ")
    return f"{'.'.join([cls.__name__, where][: 2 if where else 1])}: {message[0].lower() + message[1:]}, found {first['input']!r}"


def settings_of(cls: type) -> list[str]:
    """The names a part can be given, those that may stand without a name first."""
    fields = [field for field in dataclasses.fields(cls) if field.init]
    return [field.name for field in sorted(fields, key=lambda field: bool(field.kw_only))]


def unwrap(value: object, cls: type[Part]) -> object:
    """Accept the spellings of one known class: an instance, its mapping with or without `type`, or its call."""
    adopted = _adopted(value, cls)
    return build(cast(object, adopted), cls) if isinstance(adopted, str | Mapping) else adopted


def _adopted(value: object, cls: type[Part]) -> object:
    """What a value stands for where a `cls` is asked for; a call of the class is never the name of a file or a model."""
    if isinstance(value, str) and value.lstrip().startswith(f"{cls.__name__}("):
        return evaluate_expression(value, cls)
    return cls.adopt(value)


def build(value: object, base: type[P]) -> P:
    """Make the part that `value` spells, and see that it is a `base`.

    Raises RecipeError for names that are not known, of another kind, or settings that do not exist.
    """
    value = _adopted(value, base)
    if isinstance(value, str):
        value = base.adopt(evaluate_expression(value, base))
    if isinstance(value, Mapping):
        value = _from_mapping(dict(cast(Mapping[str, Any], value)), base)
    if not isinstance(value, base):
        found = " ".join(repr(value).split())[:200]
        raise RecipeError(f"a {base.__name__} was asked for, found {found}; one of: {', '.join(base.known())}")
    return value


def _from_mapping(given: dict[Any, Any], base: type[Part]) -> Part:
    settings = {str(key): value for key, value in given.items()}
    name = settings.pop("type", None)
    if name is None and not inspect.isabstract(base):
        return base(**settings)
    if name is None:
        raise RecipeError(f"a {base.__name__} needs its type; one of: {', '.join(base.known())}")
    try:
        cls = find(str(name), base)
    except LimbeckError as error:
        raise error.within("type") from None
    return cls(**settings)


def build_file(path: Path, base: type[P]) -> P:
    """Make the part that a YAML file spells. Whatever is wrong with it is told with the file and, where there is one, the line."""
    file = open_settings(path)
    try:
        return build(file.settings, base)
    except LimbeckError as error:
        raise error.told_at(file.place(error.path)) from None


def find(name: str, base: type[P]) -> type[P]:
    """The class of that name below `base`; `module:Class` is a user's own."""
    name = " ".join(name.split())
    if ":" in name:
        found = import_object(name)
        if isinstance(found, type) and issubclass(found, base) and "__dataclass_fields__" in vars(found):
            return found
        raise RecipeError(f'"{name}" is no {base.__name__}; derive the class from limbeck.{base.__name__} and mark it @part')
    found = Part.registry.get(name)
    if found is None or not issubclass(found, base) or inspect.isabstract(found):
        raise RecipeError(f'there is no {base.__name__} "{name}"{did_you_mean(name, base.known())}')
    return found


def import_object(path: str) -> Any:
    """Import `module:name` of the user's, from the working folder too. Raises RecipeError where it is not there."""
    module, _, name = path.partition(":")
    if not name or not module or module.startswith("."):
        raise RecipeError(f'cannot import "{path}"; write it like my_module:my_function')
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f'cannot import "{path}": {reason}; the module must lie in the working folder or be installed') from None
    except Exception as error:  # a module may raise whatever it likes
        raise RecipeError(f'cannot import "{path}": it raised {type(error).__name__}: {error}; mend the module') from error


def evaluate_expression(text: str, base: type[Part]) -> Any:
    """Read `ReverseKL() + 0.5 * JSD(0.3)`: calls of parts, numbers, strings, lists, `+`, `*` and `.on(...)`. Nothing runs."""
    try:
        return _value(ast.parse(text.strip(), mode="eval").body, base, text)
    except LimbeckError:
        raise
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):  # TypeError: what is no number or term cannot be added
        raise RecipeError(f"cannot read {text[:200]!r} as a {base.__name__}; write it like Name(setting=value)") from None


def _value(node: ast.expr, base: type[Part], text: str) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id="true" | "false" | "null" as word):
            return {"true": True, "false": False, "null": None}[word]
        case ast.Name(id=name):
            return find(name, Part)()
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item, base, text) for item in items]
        case ast.Dict(keys=keys, values=values) if all(keys):
            return {_value(cast(ast.expr, k), base, text): _value(v, base, text) for k, v in zip(keys, values, strict=True)}
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_operand(operand, base, text)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _operand(left, base, text) + _operand(right, base, text)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _operand(left, base, text) - _operand(right, base, text)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _operand(left, base, text) * _operand(right, base, text)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            return find(name, Part)(*_arguments(args, base, text), **_settings(keywords, base, text))
        case ast.Call(func=ast.Attribute(value=inner, attr="on"), args=args, keywords=[]):
            return _operand(inner, base, text).on(*_arguments(args, base, text))
        case _:
            raise RecipeError(f"cannot read {ast.unparse(node)!r} in {text!r}; write it like Name(setting=value)")


def _operand(node: ast.expr, base: type[Part], text: str) -> Any:
    """A number or a part: what sums and products are made of (strings and lists would grow without end)."""
    value = _value(node, base, text)
    if not isinstance(value, int | float | Part):
        raise TypeError(f"{value!r} is neither a number nor a part")
    return value


def _arguments(args: list[ast.expr], base: type[Part], text: str) -> list[Any]:
    return [_value(item, base, text) for item in args]


def _settings(keywords: list[ast.keyword], base: type[Part], text: str) -> dict[str, Any]:
    names = [item.arg for item in keywords]
    if None in names or len(set(names)) < len(names):
        raise RecipeError(f"cannot read {text!r}: give each setting once, by its name")
    return {str(item.arg): _value(item.value, base, text) for item in keywords}


def plain(value: Any) -> Any:
    """A part as what YAML and JSON can hold; `build` takes it back."""
    if hasattr(value, "__plain__"):
        return value.__plain__()
    if isinstance(value, Part):
        cls = type(value)
        name = cls.__name__ if Part.registry.get(cls.__name__) is cls and _is_ours(cls) else f"{cls.__module__}:{cls.__name__}"
        return {"type": name, **{name: plain(getattr(value, name)) for name in settings_of(cls)}}
    if isinstance(value, Mapping):
        return {_text_key(key): plain(item) for key, item in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in cast(list[Any], value)]
    return str(value) if isinstance(value, Path) else value


def _text_key(key: object) -> str:
    if not isinstance(key, str):
        raise RecipeError(f"the key {key!r} is no text, and files of settings have no others; write {str(key)!r}")
    return key


def to_yaml(value: object) -> str:
    """The YAML of a part; the order of its fields is kept."""
    return yaml_of(plain(value))


def override(settings: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Apply `a.b=value` to nested plain data, values read as YAML. A part written as a call is opened first."""
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise RecipeError(f'cannot read the override "{assignment}"; write it like objective.temperature=2')
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        settings = cast(dict[str, Any], _assigned(settings, path.split("."), value, path))
    return settings


def _assigned(node: Any, steps: list[str], value: object, path: str) -> Any:
    """A copy of `node` with `value` at `steps`."""
    if not steps:
        return value
    if isinstance(node, str):
        node = plain(evaluate_expression(node, Part))
    step, rest = steps[0], steps[1:]
    if isinstance(node, list) and step.isdecimal() and int(step) < len(cast(list[Any], node)):
        items = cast(list[Any], node)
        return [_assigned(item, rest, value, path) if place == int(step) else item for place, item in enumerate(items)]
    if isinstance(node, list):
        raise RecipeError(f'cannot set {path}: there is no "{step}" in a list of {len(cast(list[Any], node))}; positions count from 0')
    if node is None or isinstance(node, dict):
        entries = cast(dict[str, Any], node or {})
        return {**entries, step: _assigned(entries.get(step), rest, value, path)}
    raise RecipeError(f'cannot set {path}: "{step}" stands below {node!r}, which has no settings')
