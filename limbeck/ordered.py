"""An order as the command line spells it: strings, numbers and paths in, parts out."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from limbeck.allocate import Pilot
from limbeck.config import build
from limbeck.corpus import Order
from limbeck.data import Data
from limbeck.decoding import Sampling
from limbeck.dialogue import Dialogues
from limbeck.endpoint import Endpoint
from limbeck.errors import RecipeError
from limbeck.instruct import Instruct
from limbeck.teachers import Local, Teacher
from limbeck.verifiers import Verifier


def order_of(**options: Any) -> Order:
    """The order that the options of `limbeck write` ask for, by their names. Raises RecipeError where some do not go together."""
    asked = SimpleNamespace(**options)
    _see(asked)
    return Order(
        [_teacher(name, asked) for name in asked.teacher],
        _data(asked.prompts, asked) if asked.prompts else None,
        asked.samples,
        Sampling(asked.max_tokens, asked.temperature, asked.top_p),
        asked.keep,
        _verifier(asked.verifier),
        asked.above,
        [Data(path) for path in asked.against or []],
        asked.similarity,
        asked.reasoning,
        asked.budget_usd,
        asked.budget_flops,
        asked.seed,
        asked.accept_license or [],
        instruct=Instruct(_data(asked.seeds, asked), asked.instruct, seed=asked.seed) if asked.seeds else None,
        dialogues=Dialogues(asked.turns, **({"persona": asked.persona} if asked.persona else {})) if asked.turns != 1 else None,
        user=_teacher(asked.user, asked) if asked.user else None,
        pilot=Pilot(asked.pilot, asked.pilot_samples, asked.measure, _verifier(asked.sound)) if len(asked.teacher) > 1 else None,
    )


def _see(asked: SimpleNamespace) -> None:
    """What the parts cannot see."""
    served = [name for name in [*asked.teacher, asked.user or ""] if _is_url(name)]
    if len(served) > 1 or bool(served) != (asked.model is not None):
        raise RecipeError('a server\'s URL and the name of a --model on it go together; give both, or each teacher as \'Endpoint("URL", "MODEL")\'')
    if (asked.seeds is None) == (asked.prompts is None) or (asked.seeds is None) != (asked.instruct is None):
        raise RecipeError("what is asked are --prompts, or so many as --instruct says of --seeds; give the one or the two")
    if asked.turns == 1 and (asked.user or asked.persona):
        raise RecipeError("a user speaks between two answers; give --turns 2 or more")
    if len(asked.teacher) == 1 and asked.sound:
        raise RecipeError("--sound looks at the right answers of a pilot, and one teacher has none; give several, or leave it out")


def _is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def _teacher(name: str, asked: SimpleNamespace) -> Teacher:
    if _is_url(name):
        return Endpoint(
            name, asked.model, key_env=asked.key_env, concurrency=asked.concurrency, usd_in=asked.usd_in, usd_out=asked.usd_out
        )  # fmt: skip
    if "(" in name and not Path(name).exists():
        return build(name, Teacher)  # pyright: ignore[reportAbstractUsage]
    return Local(name, dtype=asked.dtype)


def _verifier(text: str | None) -> Verifier | None:
    return None if text is None else build(text, Verifier)  # pyright: ignore[reportAbstractUsage]


def _data(path: str, asked: SimpleNamespace) -> Data:
    return Data(path, template=asked.template)
