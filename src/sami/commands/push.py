"""Uploading a trained model with its card to the Hugging Face hub.

The token is the one that huggingface_hub finds (HF_TOKEN, or `hf auth login`); it is neither asked for nor kept.
"""

import json
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils._validators import validate_repo_id

from sami.errors import InputError
from sami.loop import model_card
from sami.loop.context import Run
from sami.models import adapters


def push(run: Run, repo_id: str, *, iteration: int | None = None, private: bool = False) -> str:
    """Upload the model of an iteration, by default the last one; returns the address of its repository.

    Args:
        repo_id: "name" or "owner/name"; the repository is made if there is none.
        private: whether a new repository is private.

    Raises:
        InputError: no card, an adapter whose base nobody else has, no token, no network, or no right to write.
    """
    folder = run.directory.model(run.iteration(iteration))
    model_card.require(folder)
    _require_shared_base(folder)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"{repo_id!r} is no name of a repository: {error}") from None
    api = HfApi()
    try:
        api.whoami()
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            commit_message=f"Upload {folder.parent.name}, trained with SAMI",
        )
    except LocalTokenNotFoundError:
        raise InputError(
            "There is no token of the Hugging Face hub. Log in with `hf auth login`, or set HF_TOKEN to a token that "
            "may write."
        ) from None
    except OfflineModeIsEnabled:
        raise InputError("HF_HUB_OFFLINE is set, so nothing can be uploaded. Unset it and try again.") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "an error"
        raise InputError(
            f"The hub refused {repo_id} with {status}. Check that the token may write there and the name is yours."
        ) from None
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise InputError(
            f"The hub could not be reached ({type(error).__name__}). Check the network, or the address in HF_ENDPOINT."
        ) from None
    return str(made)


def _require_shared_base(folder: Path) -> None:
    """An adapter names its base; a folder of this machine helps nobody else."""
    if not (folder / adapters.CONFIG).is_file():
        return
    base = json.loads((folder / adapters.CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    if Path(base).expanduser().is_absolute() or Path(base).exists():
        raise InputError(
            f"The adapter in {folder} belongs to a base model in a folder of this machine, where nobody else can load "
            f"it. Train from a hub id, or with adapter.merge=true, which saves the whole model."
        )
