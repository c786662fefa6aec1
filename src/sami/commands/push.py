"""Uploading a trained model with its card to the Hugging Face hub.

The token is the one that huggingface_hub finds (HF_TOKEN, or `hf auth login`). It is not stored.
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

from sami.errors import InputError, one_line, quoted
from sami.loop import model_card
from sami.loop.context import Run
from sami.models import adapters


def push(run: Run, repo_id: str, *, iteration: int | None = None, private: bool = False) -> str:
    """Upload the model of an iteration and return the address of its repository.

    Args:
        repo_id: "name" or "owner/name"; the repository is created if it does not exist.
        iteration: by default the last one that is trained.
        private: whether a new repository is private.

    Raises:
        InputError: the model has no card or changed since it was trained, nobody else can load the base of its
            adapter, or the hub cannot be reached or refuses the token.
    """
    chosen = run.iteration(iteration)
    folder = run.directory.model(chosen)
    model_card.require(folder)
    _require_shared_base(folder)
    run.directory.require_intact_model(chosen)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(
            f"{quoted(repo_id)} is not a valid repository id: {one_line(error)} Give OWNER/NAME."
        ) from None
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
            "No token for the Hugging Face hub was found. Log in with `hf auth login`, or set HF_TOKEN to a token with "
            "write access."
        ) from None
    except OfflineModeIsEnabled:
        raise InputError("HF_HUB_OFFLINE is set, so nothing can be uploaded. Unset it and try again.") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "an error"
        raise InputError(
            f"The hub refused {repo_id} with {status}. Check that the token has write access and that you own the name."
        ) from None
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise InputError(
            f"The hub could not be reached ({type(error).__name__}). Check the network, or the address in HF_ENDPOINT."
        ) from None
    return str(made)


def _require_shared_base(folder: Path) -> None:
    """Refuse an adapter whose base model is a folder of this machine."""
    if not (folder / adapters.CONFIG).is_file():
        return
    base = json.loads((folder / adapters.CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    if Path(base).expanduser().is_absolute() or Path(base).exists():
        raise InputError(
            f"The adapter in {folder} needs the base model in {base}, a folder of this machine that nobody else can "
            f"load. Train from a hub id, or with adapter.merge=true, which saves the whole model."
        )
