"""Files of the Hugging Face Hub, from its local cache when the Hub cannot be reached."""

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
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        found = snapshot_download(
            repository, repo_type=repo_type, allow_patterns=patterns, etag_timeout=TIMEOUT_SECONDS
        )
    except (OSError, HTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"cannot get {repository!r} from the Hugging Face Hub ({reason}); {advice}") from None
    return Path(found)
