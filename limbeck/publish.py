"""Put a folder on the hub: private unless it is to be public, nothing secret in it, under licences that allow it."""

import os
import re
from pathlib import Path

from limbeck.errors import EndpointError, LimbeckError, RecipeError
from limbeck.files import UNDONE
from limbeck.privacy import SECRET, SHORTEST

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
KEYS = re.compile(r"hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{32,}|AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY-----")
"""How keys look that are known by their looks: of the hub, of providers of models, of clouds."""
TEXT = (".json", ".jinja", ".md", ".txt", ".yaml", ".py")
HEAD_BYTES = 2**24
"""Of a weights file so much is searched: its metadata stand there."""


def see_name(repository: str) -> None:
    """Raise RecipeError for what cannot be a repository's name."""
    if not REPOSITORY.fullmatch(repository):
        raise RecipeError(f"--push takes OWNER/NAME on the hub, found {repository!r}; give such a name")


def see_token() -> str:
    """The token of the hub. Raises EndpointError where there is none."""
    from huggingface_hub import get_token

    if token := get_token():
        return token
    raise EndpointError("to push to the hub was asked for, and there is no token; run `hf auth login`, or set HF_TOKEN")


def listed(folder: Path) -> list[tuple[str, int]]:
    """What would be uploaded, and its bytes."""
    return [(str(path.relative_to(folder)), path.stat().st_size) for path in sorted(folder.rglob("*")) if path.is_file()]


def see_no_secrets(folder: Path) -> None:
    """Raise LimbeckError for a file that holds a secret of this machine's environment, or what looks like a key."""
    hidden = [value for name, value in os.environ.items() if SECRET.search(name) and len(value) >= SHORTEST]
    for name, _ in listed(folder):
        path = folder / name
        with path.open("rb") as file:
            text = file.read(-1 if path.suffix in TEXT else HEAD_BYTES).decode(errors="ignore")
        if path.name.startswith(".") or path.name.endswith(UNDONE):
            raise LimbeckError(f"{name} is hidden and no part of a model; remove it from the student, then export again")
        if KEYS.search(text) or any(value in text for value in hidden):
            raise LimbeckError(f"{name} holds what looks like a secret, and nothing was uploaded; remove it from the student, then export again")


def push(folder: Path, repository: str, token: str, public: bool) -> str:
    """Upload a folder, and say where it is. A repository that is not there is made, private unless `public`.

    Raises EndpointError where the hub refuses or does not answer, or the repository is public and was not to be.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        if not public and not api.repo_info(repository).private:
            raise EndpointError(f"{repository} is there already, and public; {folder} is made: give --public, or another name, and another --to")
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Exported by Limbeck")
    except EndpointError:
        raise
    except Exception as error:  # the library raises many kinds
        said = " ".join(str(error).split())[:200].removesuffix(".")
        raise EndpointError(f"the hub did not take {repository} ({said or type(error).__name__}); {folder} is made: see to that, then "
                            f"`hf upload {repository} {folder}`") from None  # fmt: skip
    return f"{api.endpoint}/{repository}"
