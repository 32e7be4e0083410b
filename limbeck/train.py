"""The loop: someone writes tokens, someone scores them, the student moves toward the score."""

from pathlib import Path

from limbeck import distributed
from limbeck.batch import Batch
from limbeck.errors import is_out_of_memory
from limbeck.evaluate import evaluate
from limbeck.objective import Objective
from limbeck.recipe import Recipe
from limbeck.room import see_room
from limbeck.run import Run
from limbeck.selftest import self_test
from limbeck.sources import Source
from limbeck.student import Student
from limbeck.teachers import Teacher


def distill(recipe: Recipe, out: Path | str) -> Student:
    """Move the recipe's student toward what its teacher says of the text its source draws, from where `out` stopped.

    The finished student lies in `out/student`, a folder that transformers loads. Raises LimbeckError, in one line, for
    whatever is the user's to mend; Stopped where SIGINT or SIGTERM asked for the end, after saving.
    """
    with Run(out, recipe) as run:
        see_room(recipe)
        student, teacher, source, objective = recipe.load(run)
        if run.first == 0 and not run.finished:
            self_test(student, teacher, objective, drawn=_first(source, student) if teacher.needs_rows or student.live.needs_rows else None)
        look(run, student, teacher)  # before all, or where a stop left it
        for step in run.steps(recipe.steps):
            batch = source.draw(step, student)  # who writes
            learn(run, student, teacher, objective, batch)
            with run.undivided():
                run.log_step(step, student.step(step))
            look(run, student, teacher)
        look(run, student, teacher)  # where time ran out
        if not run.finished:
            run.export(student)
        run.take_kept(student)
        return student


def _first(source: Source, student: Student) -> Batch:
    """The first draw, taken without a trace."""
    state = source.state()
    drawn = source.draw(0, student)
    source.restore(state)
    return drawn


def learn(run: Run, student: Student, teacher: Teacher, objective: Objective, batch: Batch) -> None:
    """Gather the gradient of a step, pass by pass; where memory gives out, once more in passes of half the size."""
    total = run.count(batch)  # counted after writing, over every rank

    def passes() -> None:
        parts = distributed.evenly(batch.split(run.tokens_per_pass), batch)
        for place, (part, said) in enumerate(zip(parts, teacher.score(parts), strict=True)):  # who scores
            distributed.agree()  # to stop, if one was asked to: a step may be long
            last = place + 1 == len(parts)
            run.add(student.learn(part, said, objective, scale=run.ranks / total, last=last), part)  # how far

    while True:  # not again inside the handler, which holds what the first attempt had in memory
        try:
            return passes()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            run.cut_smaller(student, error)


def look(run: Run, student: Student, teacher: Teacher) -> None:
    """Evaluate and save, where it is due."""
    if run.due("evaluate"):
        run.log_evaluation(evaluate(student, teacher, run.recipe.evaluations))
    if run.due("save"):
        run.save(student)
