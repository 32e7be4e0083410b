"""A local model as a writer: questions in, answers out, what they took in FLOPs."""

import time
from collections.abc import Iterable, Iterator

from limbeck.answers import Answer, Bill, Draw, Given, Purse, Question, Told, arithmetic, parted
from limbeck.decoding import Request, Sampling, Written, compose
from limbeck.models import Model


def answers(model: Model, questions: Iterable[Question], sampling: Sampling, purse: Purse, told: Told) -> Iterator[Given]:
    """Answer each question as often as it wants, in the order in which answers end; ends early when the purse refuses.

    A prompt that several samples share is read, and paid, with the first of them. Seconds are shares of the whole. A prompt
    that fills the context gets an answer of no token, cut by length.
    """
    began = time.monotonic()
    for request, written in compose(model, purse.afford(_requests(model, questions, sampling)), sampling, told=told):
        draw: Draw = request.tag
        took, began = time.monotonic() - began, time.monotonic()
        tokens = len(written.tokens)
        bill = Bill(written.read, tokens, flops=arithmetic(model.parameters_total, written.read + tokens), seconds=took)
        purse.settle(draw.worst, bill)
        yield Given(draw.question, draw.sample, _answer(model, written), bill)


def _requests(model: Model, questions: Iterable[Question], sampling: Sampling) -> Iterator[tuple[Request, Bill]]:
    """What is to be written, and what it may take."""
    for question in questions:
        prompt = model.vocabulary.prompt(question.row, question.data)
        worst = Bill(flops=arithmetic(model.parameters_total, len(prompt) + sampling.max_tokens))
        for sample in question.samples:
            yield Request(prompt, step=sample, row=question.seed, tag=Draw(question, sample, worst)), worst


def _answer(model: Model, written: Written) -> Answer:
    ended = bool(written.tokens) and written.tokens[-1] in model.vocabulary.end_ids
    reasoning, text = parted(model.vocabulary.text(written.tokens))
    return Answer(text, "end" if ended else "length", reasoning, tokens=written.tokens, logp=written.logp)
