"""What stands under terms of its own: the parts from whose text, marks or scores a student may learn."""

from collections.abc import Iterable
from typing import cast

from limbeck.config import Part, settings_of
from limbeck.licences import Licence


class Licensed(Part):
    """Base of those parts: sources and their data, teachers, verifiers."""

    @property
    def licences(self) -> list[Licence]:
        """Those of the parts that it is made of; a part that brings text or a model of its own says whose they are."""
        values = [getattr(self, name) for name in settings_of(type(self))]
        inside = [each for value in values for each in _several(value) if isinstance(each, Licensed)]
        return list(dict.fromkeys(found for each in inside for found in each.licences))


def _several(value: object) -> Iterable[object]:
    """What a setting holds: one thing, a list of them, or some by name."""
    if isinstance(value, dict):
        return cast(dict[str, object], value).values()
    return cast(list[object], value) if isinstance(value, list) else [value]
