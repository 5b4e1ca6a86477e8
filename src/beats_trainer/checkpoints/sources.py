"""What a user may name as a model, and the file or folder that it stands for.

name | path | folder | "owner/name" -> [sources] -> path on disk -> read
"""

import logging
import os
import re
from pathlib import Path
from typing import Any

from beats_trainer.checkpoints.download import (
    ask_hub,
    cached_snapshot,
    choose_model,
    fetch,
    files_under,
    hub_is_offline,
    is_refusal,
    knock,
)
from beats_trainer.checkpoints.registry import get_model_info, list_available_models
from beats_trainer.errors import (
    CheckpointNotFoundError,
    DownloadError,
    UnknownCheckpointError,
)

__all__ = ["locate"]

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]

_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_OUR_FILES = ("config.json", "model.safetensors")


def locate(
    source: PathLike,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: PathLike | None = None,
    local_files_only: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """Find, or download, what a source names.

    A registry name comes first: a file or folder of the same name needs its path (``./openbeats``).

    Args:
        source: Registry name, path of a file or model folder, a hub repository ``"owner/name"``, or ``"auto"`` as
            for `choose_model`.
        revision: Branch, tag or commit, for what comes from the hub.
        token: For private repositories; ``None`` uses the stored login.
        cache_dir: Where downloads lie: see ``ensure_checkpoint``; for ``"owner/name"``, the hub's
            cache folder to use.
        local_files_only: Whether to use only what is on this machine.

    Returns:
        The path, and what is known of its origin: plain values that may be published.

    Raises:
        CheckpointNotFoundError: If a path is not there, or the hub is out of reach.
        UnknownCheckpointError: If it is neither a path nor a known name.
    """
    source = choose_model(source)
    known = list_available_models()
    if isinstance(source, str) and source in known:
        record = get_model_info(source)
        path = fetch(
            source,
            cache_dir,
            token=token,
            revision=revision,
            local_files_only=local_files_only,
        )
        return path, {"source": source, "licence": record["licence"], "paper": record["paper"]}
    path = Path(source).expanduser()
    if path.exists():
        return path, {}  # the file's name is noted when it is read; its folder is nobody's business
    if not isinstance(source, str) or _looks_like_path(source):
        raise CheckpointNotFoundError(f"There is no file or folder {path}.{_hint(path)}")
    if _HUB_NAME.fullmatch(source):
        folder = _fetch_repository(source, revision, token, cache_dir, local_files_only)
        return folder, {"source": source, "revision": revision or "main"}
    raise UnknownCheckpointError(source, known)


def _looks_like_path(source: str) -> bool:
    return (
        source.lower().endswith(_SUFFIXES)
        or source.startswith((".", "/", "~"))
        or "\\" in source
        or source.count("/") > 1
        or source.endswith("/")
    )


def _hint(path: Path) -> str:
    for name, record in list_available_models().items():
        if path.name in (record["filename"], f"{name}.pt"):
            return f" To find or download this checkpoint, pass its name: {name!r}."
    return ""


def _fetch_repository(
    repo: str,
    revision: str | None,
    token: str | bool | None,
    cache_dir: PathLike | None,
    local_files_only: bool,
) -> Path:
    """Bring a model folder, or a repository's only checkpoint with its settings, from the hub."""
    from huggingface_hub import list_repo_files, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    reason = "local_files_only is set" if local_files_only else "HF_HUB_OFFLINE is set"
    wanted: list[str] | None = None
    if not local_files_only and not hub_is_offline():
        try:
            knock(repo, "model", token)
            files = ask_hub(lambda: list_repo_files(repo, revision=revision, token=token))
            wanted = _wanted_files(repo, files)
        except DownloadError:
            raise
        except Exception as error:  # transport errors differ by the client's version
            if is_refusal(error):
                raise DownloadError(
                    f"The hub does not hand out {repo}: {error}. Is the name right, and do you need to "
                    f"log in? There is no folder {repo} here either."
                ) from error
            reason = f"the hub cannot be reached ({type(error).__name__}: {error})"
    if wanted is None:
        cached = cached_snapshot(repo, "model", revision, cache_dir)
        if cached is None:
            raise CheckpointNotFoundError(
                f"There is no file or folder {repo}, the hub's cache does not hold a repository of this "
                f"name, and {reason}."
            )
        return _within(cached, _wanted_files(repo, files_under(cached)))
    try:
        snapshot = snapshot_download(
            repo,
            revision=revision,
            token=token,
            cache_dir=None if cache_dir is None else os.fspath(cache_dir),
            allow_patterns=wanted,
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise DownloadError(f"The download of {repo} broke off: {error}. Try again.") from error
    return _within(Path(snapshot), wanted)


def _within(snapshot: Path, wanted: list[str]) -> Path:
    return snapshot if set(_OUR_FILES) <= set(wanted) else snapshot / wanted[0]


def _wanted_files(repo: str, files: list[str]) -> list[str]:
    """Our two files, or the repository's one foreign checkpoint and its ``config.yaml``."""
    if set(_OUR_FILES) <= set(files):
        return list(_OUR_FILES)
    checkpoints = [file for file in files if file.endswith(_SUFFIXES)]
    if len(checkpoints) != 1:
        listed = f": {', '.join(checkpoints[:5])}" if checkpoints else ""
        raise DownloadError(
            f"Expected a model folder ({' and '.join(_OUR_FILES)}) or one checkpoint in {repo}, found "
            f"{len(checkpoints)} checkpoints{listed}. Download the right one and pass its path."
        )
    folder = checkpoints[0].rpartition("/")[0]
    settings = f"{folder}/config.yaml" if folder else "config.yaml"
    return [*checkpoints, *([settings] if settings in files else [])]
