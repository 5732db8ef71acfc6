"""Files of the Hugging Face Hub, from its local cache when the Hub cannot be reached."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from train.data.errors import DataError

TIMEOUT_SECONDS = 5


def hub_folder(repository: str, repo_type: str, patterns: list[str], advice: str) -> Path:
    """The local folder that holds the files of ``repository`` that match ``patterns``, downloaded if need be.

    Downloads by snapshot, because the loaders of `transformers` go on asking for most of a minute
    when there is no network.

    Raises:
        DataError: no such repository, or it is neither reachable nor cached. The message ends in ``advice``.
    """
    from huggingface_hub import snapshot_download

    with _one_line_faults(repository, advice):
        found = snapshot_download(
            repository, repo_type=repo_type, allow_patterns=patterns, etag_timeout=TIMEOUT_SECONDS
        )
    return Path(found)


def hub_revision(repository: str, repo_type: str, advice: str) -> str:
    """The commit that the main branch of ``repository`` is at now.

    Raises:
        DataError: no such repository, or it cannot be reached. The message ends in ``advice``.
    """
    from huggingface_hub import HfApi

    with _one_line_faults(repository, advice):
        return HfApi().repo_info(repository, repo_type=repo_type, timeout=TIMEOUT_SECONDS).sha


@contextlib.contextmanager
def _one_line_faults(repository: str, advice: str) -> Iterator[None]:
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        yield
    except (OSError, HTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"cannot get {repository!r} from the Hugging Face Hub ({reason}); {advice}") from None
