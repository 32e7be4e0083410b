"""A local model as a writer: questions in, answers out, what they took in FLOPs."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from limbeck.answers import Answer, Bill, Given, Purse, Question, Told, parted
from limbeck.generate import Request, Sampling, Written, compose
from limbeck.models import Model


@dataclass(frozen=True)
class _Draw:
    """One answer under way: what was set aside for it, and what reading its prompt takes, if that is its to pay."""

    question: Question
    sample: int
    worst: Bill
    read_tokens: int


def answers(model: Model, questions: Iterable[Question], sampling: Sampling, purse: Purse, told: Told) -> Iterator[Given]:
    """Answer each question as often as it wants, in the order in which answers end; ends early when the purse refuses.

    FLOPs are 2 x parameters for each token that is read or written (arXiv 2408.16737, section 3); the first sample of a
    question pays for its prompt. Seconds are shares of the whole. Prompts that leave no room in the context raise DataError.
    """
    each = 2.0 * model.parameters_total
    began = time.monotonic()
    for request, written in compose(model, _requests(model, questions, sampling, purse, each), sampling, told=told):
        draw: _Draw = request.tag
        took, began = time.monotonic() - began, time.monotonic()
        tokens = len(written.tokens)
        bill = Bill(draw.read_tokens, tokens, flops=each * (draw.read_tokens + tokens), seconds=took)
        purse.settle(draw.worst, bill)
        yield Given(draw.question, draw.sample, _answer(model, written), bill)


def _requests(model: Model, questions: Iterable[Question], sampling: Sampling, purse: Purse, each: float) -> Iterator[Request]:
    """What is still to be written, as long as it can be paid for."""
    for question in questions:
        prompt = model.vocabulary.prompt(question.row, question.data)
        for place, sample in enumerate(question.samples):
            read = 0 if place else len(prompt)
            worst = Bill(flops=each * (read + sampling.max_tokens))
            if not purse.take(worst):
                return
            yield Request(prompt, step=sample, row=question.seed, tag=_Draw(question, sample, worst, read))


def _answer(model: Model, written: Written) -> Answer:
    ended = bool(written.tokens) and written.tokens[-1] in model.vocabulary.end_ids
    reasoning, text = parted(model.vocabulary.text(written.tokens))
    return Answer(text, "end" if ended else "length", reasoning, tokens=written.tokens, logp=written.logp)
