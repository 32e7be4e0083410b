"""Writing with a draft, for people: text from a target and its draft, what was proposed in colour, and whether a pair pays."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.data import Data, asked_of
from limbeck.decoding import Decoder, Round, Sampling, write
from limbeck.errors import DataError, RecipeError
from limbeck.files import write_json, write_text
from limbeck.machine import Opening, Precision
from limbeck.progress import warn
from limbeck.storage import here
from limbeck.vocabulary import Vocabulary

if TYPE_CHECKING:
    from rich.text import Text

    from limbeck.evaluate.acceptance import Acceptance
    from limbeck.models import Model

SHOWN = 4
"""Texts that are shown in colour."""

LEGEND = "green: the draft's, accepted; red, struck through: refused; yellow: the target's own"

MOST = 8
"""Tokens that are proposed at the most, where nobody says how many."""


@dataclass(frozen=True)
class Completion:
    """A text that was written: its tokens, the nats of each under the target, and what became of each proposal, where a draft made any."""

    text: str
    tokens: list[int]
    logp: list[float]
    rounds: list[Round]


def generate(
    target: "str | Model", prompts: Sequence[str | list[int] | list[dict[str, Any]]], draft: "str | Model | None" = None,
    sampling: Sampling | None = None, gamma: int | None = None, seed: int = 0, at_once: int = 32, dtype: Precision = "auto",
) -> list[Completion]:  # fmt: skip
    """Complete prompts with a model; with a draft, by lossless speculation: the same distribution, sooner where it pays.

    target, draft: hub names, folders, GGUF files, or open models. prompts: what a user says, token ids, or messages. gamma: how many
    tokens the draft proposes; None measures what either costs and follows the acceptance seen, and says so where it does not pay.
    Raises VocabularyError for a pair that does not mean the same by a token, RecipeError for one that cannot speculate.
    """
    chosen, writer = sampling or Sampling(), opened(target, dtype)
    ids = [_ids(prompt, writer.vocabulary) for prompt in prompts]
    if empty := [n for n, each in enumerate(ids) if not each]:
        raise RecipeError(f"prompt {empty[0]} has no token; say something, or give the token that a text begins with")
    decoder = _decoder(writer, opened(draft, dtype), chosen, gamma, ids, at_once) if draft is not None and ids else None
    found = write(writer, ids, chosen, seed, 0, range(len(ids)), at_once, decoder=decoder)
    return [Completion(writer.vocabulary.text(each.tokens), each.tokens, each.logp, each.rounds) for each in found]


def opened(model: "str | Model", dtype: Precision = "auto") -> "Model":
    """A model by its name, or itself."""
    from limbeck.models import open_model

    return open_model(model, Opening(dtype)) if isinstance(model, str) else model


def _ids(prompt: str | list[int] | list[dict[str, Any]], vocabulary: Vocabulary) -> list[int]:
    if isinstance(prompt, str):
        return vocabulary.prompt({"prompt": prompt}, Data("prompts"))
    if prompt and isinstance(prompt[0], dict):
        return vocabulary.prompt({"messages": prompt}, Data("prompts"))
    return [int(token) for token in prompt]  # pyright: ignore[reportArgumentType]  # of ids


def _decoder(target: "Model", draft: "Model", sampling: Sampling, gamma: int | None, ids: Sequence[list[int]], at_once: int) -> Decoder:
    """How a pair writes: by speculation, as far as it pays."""
    from limbeck.evaluate.acceptance import costs
    from limbeck.speculative import Lossless, Pace, Speculative

    if draft.parameters_total > target.parameters_total:
        warn(f"the draft {draft.name} has {draft.parameters_total:,} parameters and its target {target.parameters_total:,}: it will not pay")
    decoder = Speculative(target, draft, sampling, Lossless(), 0 if gamma is None else gamma)
    if gamma is None:
        fitting = [each for each in ids if len(each) + 2 * MOST < min(target.context, draft.context)]
        if fitting:
            cost = costs(target, draft, fitting[:at_once], min(at_once, len(fitting)))
            decoder.pace = Pace(MOST, cost.cost, cost.row_cost)
            if not decoder.pace.now:
                warn(f"a token of the draft costs {cost.cost:.2f} of the target's here: speculation does not pay, the target writes alone")
    return decoder


def shown(completion: Completion, vocabulary: Vocabulary) -> "Text":
    """A text in colour: accepted tokens green, refused ones red and struck through, the target's own in their place yellow."""
    from rich.text import Text

    line, place = Text(), 0
    for each in completion.rounds:
        own = min(each.kept, each.took)
        line.append(vocabulary.text(completion.tokens[place : place + own]), "green")
        if each.took > each.kept:  # else the text ended before
            line.append(vocabulary.text(each.proposed[each.kept :]), "red strike")
        line.append(vocabulary.text(completion.tokens[place + own : place + each.took]), "bold yellow")
        place += each.took
    line.append(vocabulary.text(completion.tokens[place:]))
    return line


@dataclass(frozen=True)
class Shown:
    """What an evaluation of a pair has to show: figures, what they mean in words, and prompts with text in colour."""

    rows: list[list[str]]
    words: list[str]
    texts: "list[tuple[str, Text]]"


def evaluate_pair(
    target_name: str, draft_name: str, data: str, rows: int, sampling: Sampling, dtype: Precision = "auto", gamma: int | None = None,
    measured: bool = True, show: bool = False, out: Path | None = None,
) -> Shown:  # fmt: skip
    """Measure a pair on the prompts of some rows, or show its text. out: JSON; a page with the plot goes beside it.

    Raises DataError where no prompt leaves room to answer.
    """
    from limbeck.evaluate.acceptance import acceptance

    target, draft = opened(target_name, dtype), opened(draft_name, dtype)
    source = Data(data)
    asked = [(row, target.vocabulary.prompt(row, source)) for row, _ in zip(source.rows(), range(rows), strict=False)]
    room = min(target.context, draft.context) - sampling.max_tokens - MOST - 1
    if not (fitting := [(row, ids) for row, ids in asked if 0 < len(ids) <= room]):
        raise DataError(f"{data}: none of {len(asked)} prompts is within {room} tokens, which leave room for an answer; lower max_tokens")
    texts: list[tuple[str, Text]] = []
    if show:
        some = fitting[:SHOWN]
        written = generate(target, [ids for _, ids in some], draft, sampling, gamma)
        texts = [(asked_of(row) or "", shown(each, target.vocabulary)) for (row, _), each in zip(some, written, strict=True)]
    if not measured:
        return Shown([], [LEGEND], texts)
    found = acceptance(target, draft, [ids for _, ids in fitting], sampling)
    if out:
        out = here(out)
        write_json(out, found.plain())
        draw(found, out.with_suffix(".html"))
    figures, words = told(found)
    return Shown(figures, [*words, *([LEGEND] if show else [])], texts)


def told(found: "Acceptance") -> tuple[list[list[str]], list[str]]:
    """Figures of a pair as rows of a table, and in words whether it pays at each batch size."""
    low, high = found.on_target_text_interval
    rows = [["acceptance on the target's text", f"{found.on_target_text:.3f}", f"{low:.3f} to {high:.3f}"]]
    low, high = found.on_draft_text_interval
    rows.append(["acceptance on the draft's text", f"{found.on_draft_text:.3f}", f"{low:.3f} to {high:.3f}"])
    words = list[str]()
    for cost in found.costs:
        rows.append([f"batch of {cost.rows}: a draft's step, in the target's", f"{cost.cost:.2f}", f"{1e3 * cost.target_seconds:.1f} ms"])
        rows.append([f"batch of {cost.rows}: another verified place", f"{cost.row_cost:.2f}", ""])
        for speed in found.speeds[cost.rows]:
            if speed.measured is not None:
                kept = f"{speed.tokens_per_verification:.2f} tokens a verification, {speed.expected_tokens:.2f} foretold"
                rows.append(
                    [
                        f"batch of {cost.rows}, {speed.gamma} proposed: times as fast",
                        f"{speed.measured:.2f}",
                        f"{speed.predicted:.2f} foretold; {kept}",
                    ]
                )
        best = found.best_gamma[cost.rows]
        words.append(f"at a batch of {cost.rows} " + (f"propose {best} tokens" if best else "speculation does not pay: decode plainly"))
    return rows, words


def draw(found: "Acceptance", path: Path) -> None:
    """A page with the predicted speed-up against the length of a proposal, and what the clock said."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for rows, speeds in found.speeds.items():
        figure.add_scatter(x=[each.gamma for each in speeds], y=[each.predicted for each in speeds], mode="lines", name=f"batch of {rows}, formula")
        clock = [each for each in speeds if each.measured is not None]
        figure.add_scatter(x=[each.gamma for each in clock], y=[each.measured for each in clock], mode="markers", name=f"batch of {rows}, measured")
    figure.add_hline(1.0, line_dash="dot")
    figure.update_layout(xaxis_title="tokens proposed", yaxis_title="times as fast as plain decoding",
                         title=f"acceptance {found.on_target_text:.2f} on the target's text, temperature {found.sampling.temperature:g}")  # fmt: skip
    write_text(path, figure.to_html(include_plotlyjs=True))
