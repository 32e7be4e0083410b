"""The loop: someone writes tokens, someone scores them, the student moves toward the score."""

from pathlib import Path

from limbeck.evaluate import evaluate
from limbeck.recipe import Recipe
from limbeck.run import Run
from limbeck.student import Student


def distill(recipe: Recipe, out: Path | str) -> Student:
    """Move the recipe's student toward what its teacher says of the text its source draws, from where `out` stopped.

    The finished student lies in `out/student`, a folder that transformers loads. Raises LimbeckError, in one line, for
    whatever is the user's to mend.
    """
    with Run(out, recipe) as run:
        student, teacher, source, objective = recipe.load(run)
        if not run.evaluated(0):
            run.log_evaluation(0, evaluate(student, teacher, recipe.evaluations))
            if run.due("save", 0):
                run.save(0, student)
        for step in run.steps(recipe.steps):
            batch = source.draw(step, student)  # who writes
            total = run.sum(len(batch.places_N))  # counted after writing, over every rank
            parts = batch.split(recipe.tokens_per_pass)
            for part, said in zip(parts, teacher.score(parts), strict=True):  # who scores
                nats = student.learn(part, said, objective, scale=run.ranks / total)  # how far
                run.add(nats, part)
            run.log_step(step, student.step(step))
            if run.due("evaluate", step + 1):
                run.log_evaluation(step + 1, evaluate(student, teacher, recipe.evaluations))
            if run.due("save", step + 1):
                run.save(step + 1, student)
        if not run.finished:
            if not run.evaluated(run.first):
                run.log_evaluation(run.first, evaluate(student, teacher, recipe.evaluations))
            run.save(run.first, student)
            run.export(student)
        run.take_kept(student)
        return student
