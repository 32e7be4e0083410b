"""An objective between two models that are open: which layers of them are compared, and what is learnt for that beside the student."""

from limbeck.errors import RecipeError
from limbeck.insides import Opens
from limbeck.objective import Objective
from limbeck.student import Student
from limbeck.teachers import Teacher


def between(objective: Objective, student: Student, teacher: Teacher, seed: int) -> Objective:
    """The objective alive, the teacher told which layers to lay open, the student joined by projections that learn with it.

    Where nothing inside is compared, the objective as it is. Raises RecipeError or ModelError for layers that are not there,
    or cannot be compared.
    """
    if not objective.feature_terms:
        return objective
    from limbeck.hooks import see_attention

    mine, theirs = student.live, teacher.opened
    inside = theirs.build if theirs is not None else teacher.inside if isinstance(teacher, Opens) else None
    if inside is None or not isinstance(teacher, Opens):
        raise RecipeError(f"{type(teacher).__name__} has no model here whose layers could be laid open; give Local(model)")
    made = objective.load(mine.build, inside, seed)
    for model, layers in zip((mine, theirs), made.opens, strict=True):
        if model is not None:  # one that is elsewhere is seen there
            see_attention(model.causal, model.name, layers)
    teacher.lay_open(made.opens[1])
    student.join(made.projections)
    return made
