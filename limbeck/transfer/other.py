"""Text of another kind than the data's: a file that the user gives, read as the data's text is."""

from dataclasses import replace

from limbeck.batch import Text
from limbeck.decoding import write
from limbeck.errors import CheckpointError
from limbeck.files import read_json, read_jsonl, write_json, write_jsonl
from limbeck.privacy import shareable
from limbeck.teachers import Local
from limbeck.transfer.measure import Transfer
from limbeck.transfer.rows import rows_of
from limbeck.transfer.subjects import TEACHER

OTHER = "other"


def other_texts(transfer: Transfer, path: str, text: str | None) -> tuple[list[Text], str | None]:
    """The other data's answers, of the same writer as the clean ones where it can be had, else of the other; and what is missing.

    text: whose answers the clean ones are. Raises CheckpointError where the folder holds figures of other data.
    """
    known = transfer.out / "robustness" / "other.json"
    if known.exists() and read_json(known)["data"] != shareable(path):
        raise CheckpointError(f"{transfer.out} holds figures of other data ({read_json(known)['data']}); give another --out, or remove it")
    assert transfer.vocabulary is not None
    rows = rows_of(replace(transfer.asked, data=path), transfer.vocabulary, transfer.context)
    if not known.exists():
        write_json(known, {"data": shareable(path)})
    if (text == TEACHER or not rows.given) and (written := _written(transfer, rows.prompts)):
        return written, None
    why = None if rows.given else f"{path}: no row has a completion, and no teacher here writes one"
    differ = f"{path}: its own text is read, beside the teacher's of the data" if text == TEACHER and rows.given else None
    return rows.given, why or differ


def _written(transfer: Transfer, prompts: list[list[int]]) -> list[Text]:
    """The teacher's answers, made once; none where it does not write."""
    file = transfer.out / "robustness" / "other-answers.jsonl"
    if not file.exists():
        if not isinstance(transfer.teacher, Local) or not (transfer.out / "texts" / f"{TEACHER}.jsonl").exists() or not prompts:
            return []
        answers = transfer.teacher.lend(lambda model: write(model, prompts, transfer.sampling, transfer.asked.seed, 1, range(len(prompts))))
        write_jsonl(file, [{"place": n, "completion_ids": new.tokens} for n, new in enumerate(answers)])
    return [Text.answered(prompts[row["place"]], row["completion_ids"], {"row": row["place"]}) for row in read_jsonl(file) if row["completion_ids"]]
