"""A local model as a writer: questions in, answers out, what they took in FLOPs."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from limbeck.answers import Answer, Bill, Given, Purse, Question, Told, parted
from limbeck.decoding import Request, Sampling, Written, compose
from limbeck.models import Model


@dataclass(frozen=True)
class _Draw:
    """One answer under way, and what was set aside for it."""

    question: Question
    sample: int
    worst: Bill


def answers(model: Model, questions: Iterable[Question], sampling: Sampling, purse: Purse, told: Told) -> Iterator[Given]:
    """Answer each question as often as it wants, in the order in which answers end; ends early when the purse refuses.

    FLOPs are 2 x parameters for each token that is read or written (arXiv 2408.16737, section 3), a prompt anew
    for each sample. Seconds are shares of the whole. A prompt that fills the context gets an answer of no token, cut by length.
    """
    each = 2.0 * model.parameters_total
    began = time.monotonic()
    for request, written in compose(model, _requests(model, questions, sampling, purse, each), sampling, told=told):
        draw: _Draw = request.tag
        took, began = time.monotonic() - began, time.monotonic()
        read, tokens = len(request.prompt), len(written.tokens)
        bill = Bill(read, tokens, flops=each * (read + tokens), seconds=took)
        purse.settle(draw.worst, bill)
        yield Given(draw.question, draw.sample, _answer(model, written), bill)


def _requests(model: Model, questions: Iterable[Question], sampling: Sampling, purse: Purse, each: float) -> Iterator[Request]:
    """What is still to be written, as long as it can be paid for."""
    for question in questions:
        prompt = model.vocabulary.prompt(question.row, question.data)
        worst = Bill(flops=each * (len(prompt) + sampling.max_tokens))
        for sample in question.samples:
            if not purse.take(worst):
                return
            yield Request(prompt, step=sample, row=question.seed, tag=_Draw(question, sample, worst))


def _answer(model: Model, written: Written) -> Answer:
    ended = bool(written.tokens) and written.tokens[-1] in model.vocabulary.end_ids
    reasoning, text = parted(model.vocabulary.text(written.tokens))
    return Answer(text, "end" if ended else "length", reasoning, tokens=written.tokens, logp=written.logp)
