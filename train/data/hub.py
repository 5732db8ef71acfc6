"""Files of the Hugging Face Hub, from its local cache when the Hub cannot be reached."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.data.errors import DataError

TIMEOUT_SECONDS = 5


def hub_folder(repository: str, repo_type: str, patterns: list[str], advice: str, revision: str | None = None) -> Path:
    """The local folder that holds the files of ``repository`` that match ``patterns``, downloaded if need be.

    Downloads by snapshot, because the loaders of `transformers` go on asking for most of a minute
    when there is no network.

    Raises:
        DataError: the repository does not exist, or is neither reachable nor cached. The message ends in ``advice``.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    options: dict[str, Any] = {"repo_type": repo_type, "revision": revision, "allow_patterns": patterns}
    with _one_line_faults(repository, advice):
        try:
            _head(repository, repo_type, revision)
        except (OSError, HTTPError) as error:
            # The cache is asked first, because a snapshot waits endlessly for a silent Hub.
            try:
                return Path(snapshot_download(repository, local_files_only=True, **options))
            except OSError:
                raise error from None
        return Path(snapshot_download(repository, etag_timeout=TIMEOUT_SECONDS, **options))


def _head(repository: str, repo_type: str, branch: str | None) -> str:
    from huggingface_hub import HfApi

    return HfApi().repo_info(repository, repo_type=repo_type, revision=branch, timeout=TIMEOUT_SECONDS).sha


def hub_file(repository: str, repo_type: str, name: str, advice: str, revision: str) -> Path:
    """The local copy of one file of ``repository`` at the commit ``revision``, downloaded if need be.

    Raises:
        DataError: see :func:`hub_folder`.
    """
    from huggingface_hub import hf_hub_download

    with _one_line_faults(repository, advice):
        found = hf_hub_download(repository, name, repo_type=repo_type, revision=revision, etag_timeout=TIMEOUT_SECONDS)
    return Path(found)


def hub_names(repository: str, repo_type: str, advice: str, revision: str) -> list[str]:
    """The names of all files of ``repository`` at the commit ``revision``.

    Raises:
        DataError: no such repository, or it cannot be reached. The message ends in ``advice``.
    """
    from huggingface_hub import HfApi

    with _one_line_faults(repository, advice):
        return HfApi().list_repo_files(repository, repo_type=repo_type, revision=revision)


def hub_revision(repository: str, repo_type: str, advice: str, branch: str | None = None) -> str:
    """The commit that a branch of ``repository``, or the main one, is at now.

    Raises:
        DataError: no such repository, or it cannot be reached. The message ends in ``advice``.
    """
    with _one_line_faults(repository, advice):
        return _head(repository, repo_type, branch)


@contextlib.contextmanager
def _one_line_faults(repository: str, advice: str) -> Iterator[None]:
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        yield
    except (OSError, HTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"cannot get {repository!r} from the Hugging Face Hub ({reason}); {advice}") from None
