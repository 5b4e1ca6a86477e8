"""Bring a checkpoint onto this machine, once, whole, and the right one.

name -> registry -> [find, else download and check] -> file -> read -> network

A name is what you get: a file counts only under the name's own file name, never because it is a checkpoint
too. Downloads go through ``huggingface_hub`` (its cache, progress bar, resume, tokens, ``HF_HUB_OFFLINE``);
what arrives is compared with the sha256 that the hub, or the original's users, published.
"""

import contextlib
import fnmatch
import logging
import os
import queue
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from beats_trainer._version import __version__
from beats_trainer.checkpoints import registry
from beats_trainer.checkpoints.checksums import file_sha256, note_published, published_sha256
from beats_trainer.checkpoints.registry import (
    AUTO,
    DEFAULT_MODEL,
    SMALL_MODEL,
    get_model_info,
    list_available_models,
)
from beats_trainer.errors import (
    CheckpointNotFoundError,
    DownloadError,
    InvalidCheckpointError,
)

__all__ = [
    "CHECKPOINT_DIRS",
    "ask_hub",
    "cached_snapshot",
    "choose_model",
    "download_beats_checkpoint",
    "ensure_checkpoint",
    "fetch",
    "files_under",
    "find_checkpoint",
    "hub_is_offline",
    "is_refusal",
    "knock",
]

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]
Answer = TypeVar("Answer")

CHECKPOINT_DIRS: list[Path] = [
    Path("checkpoints"),
    Path("../checkpoints"),
    Path("~/checkpoints"),
    Path("~/.cache/beats_trainer"),
]
"""Where files that users put there themselves are looked for, in this order."""

_PATIENCE_S = 4.0
_LISTED_PATTERNS = ("*epoch*.pt", "*model.safetensors")


def find_checkpoint(
    model_name: str | None = None, search_paths: Iterable[PathLike] | None = None
) -> Path | None:
    """Look for a checkpoint on this machine; nothing is downloaded.

    Args:
        model_name: A name that ``list_available_models`` gives; ``None`` is the default model.
        search_paths: Folders to look into. ``None`` means those of ``CHECKPOINT_DIRS``
            (``./checkpoints`` first), then the hub's cache.

    Returns:
        The file, or ``None``; of a model that comes with the package, its folder. Its content is not looked at: see ``validate_checkpoint``.

    Raises:
        UnknownCheckpointError: If there is no such name.

    Example:
        >>> find_checkpoint("openbeats", search_paths=["no/such/folder"]) is None
        True
    """
    name = model_name or DEFAULT_MODEL
    record = get_model_info(name)
    if record.get("bundled"):
        return registry.BUNDLED / name
    if search_paths is not None:
        return _find_in_folders(name, record, search_paths)
    return _find_in_folders(name, record, CHECKPOINT_DIRS) or _find_in_hub_cache(record)


def choose_model(source: PathLike) -> PathLike:
    """Put a name in the place of ``"auto"``, and say which; nothing is downloaded.

    Args:
        source: What a user names as a model.

    Returns:
        For ``"auto"`` the name of the first large model that is on this machine, encoders before classifiers and
        each in the registry's order (the default model comes first), or of the one that comes with this package.
        Anything else as it is.

    Example:
        >>> choose_model("openbeats")
        'openbeats'
    """
    if source != AUTO:
        return source
    records = list_available_models()
    for kind in ("encoder", "classifier"):
        for name, record in records.items():
            is_meant = record["kind"] == kind and not record.get("bundled")
            if is_meant and find_checkpoint(name) is not None:
                logger.info("Using %s, which is on this machine.", name)
                return name
    logger.warning(
        "Using %s, the small encoder that comes with this package, for none of the large ones is on this machine. "
        "They know far more sounds: beats-trainer models %s --download",
        SMALL_MODEL,
        DEFAULT_MODEL,
    )
    return SMALL_MODEL


def ensure_checkpoint(
    model_name: str = DEFAULT_MODEL, cache_dir: PathLike | None = None, search_first: bool = True
) -> Path:
    """Find a checkpoint on this machine, or download it.

    Args:
        model_name: A name that ``list_available_models`` gives.
        cache_dir: Folder in which a downloaded file shall lie, under its registry file name. ``None``
            leaves it in the hub's own cache, shared with other programs.
        search_first: Whether a file in one of ``CHECKPOINT_DIRS`` will do; it is used as it is.
            ``False`` looks into ``cache_dir`` and the hub's cache only.

    Returns:
        The file. A downloaded one has been checked against its published sha256. Of a model that comes with the
        package it is the folder in there, wherever ``cache_dir`` is.

    Raises:
        UnknownCheckpointError: If there is no such name.
        CheckpointNotFoundError: If the file is not here and the hub is out of reach, or no source is
            known; within 5 seconds, and saying which file to put where.
        InvalidCheckpointError: If the downloaded file is damaged and cannot be replaced now.
        DownloadError: If the transfer failed, or brought something else.
    """
    return fetch(model_name, cache_dir, search_first=search_first)


def download_beats_checkpoint(
    model_name: str = DEFAULT_MODEL,
    cache_dir: PathLike | None = None,
    force_download: bool = False,
) -> Path:
    """Download a checkpoint, unless it is here already.

    Args:
        model_name: A name that ``list_available_models`` gives.
        cache_dir: As for ``ensure_checkpoint``; when given, a file in another folder does not count.
        force_download: Whether to download anew what is here, for instance because it is damaged.

    Returns:
        The file.

    Raises:
        CheckpointError: As ``ensure_checkpoint``.
        DownloadError: As ``ensure_checkpoint``.

    Example:
        >>> path = download_beats_checkpoint("openbeats")  # doctest: +SKIP
        >>> extractor = BEATsFeatureExtractor(model_path=path)  # doctest: +SKIP
    """
    return fetch(model_name, cache_dir, search_first=cache_dir is None, force=force_download)


def fetch(
    name: str,
    cache_dir: PathLike | None = None,
    *,
    search_first: bool = True,
    force: bool = False,
    token: str | bool | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """Do what ``ensure_checkpoint`` says, with the hub's own options."""
    record = get_model_info(name)
    if record.get("bundled"):
        return registry.BUNDLED / name
    folder = None if cache_dir is None else Path(cache_dir).expanduser()
    folders = ([] if folder is None else [folder]) + (CHECKPOINT_DIRS if search_first else [])
    if revision is not None:
        folders = []  # of a file in a folder nobody knows the revision
    is_offline = local_files_only or hub_is_offline()
    if not force:
        found = _find_in_folders(name, record, folders)
        if found is not None:
            _require_intact(
                found, published_sha256(found), "download it anew with force_download=True"
            )
            return found
        cached = _find_in_hub_cache(record, revision)
        if cached is not None:
            try:
                _require_intact(
                    cached, _hub_sha256(cached, record), "go online, and it is replaced"
                )
            except InvalidCheckpointError as error:
                if is_offline:
                    raise
                logger.warning("%s Downloading it again.", error)
                force = True
            else:
                return cached if folder is None else _place(cached, folder / record["filename"])
    if record["hf_repo"] is None:
        raise CheckpointNotFoundError(
            _not_here(name, record, folders, "no source to download it from is known")
        )
    if is_offline:
        reason = "local_files_only is set" if local_files_only else "HF_HUB_OFFLINE is set"
        raise CheckpointNotFoundError(_not_here(name, record, folders, reason))
    return _download(name, record, folder, folders, force, token, revision)


def hub_is_offline() -> bool:
    """Whether the user has told the hub's client to stay offline."""
    from huggingface_hub import constants

    # The client reads the variable once, at import; a user may set it later.
    set_now = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    return set_now or bool(constants.HF_HUB_OFFLINE)


def ask_hub(question: Callable[[], Answer]) -> Answer:
    """Run a short question to the hub, and give up after a few seconds.

    Without this, a machine without network waits through the client's retries (23 s), or as long as its
    name server keeps silent. ``HF_HUB_ETAG_TIMEOUT`` lengthens the patience for slow connections.

    Raises:
        TimeoutError: If there was no answer in time; or whatever the question raises.
    """
    patience_s = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or _PATIENCE_S)
    answers: queue.Queue[tuple[Answer | None, Exception | None]] = queue.Queue(1)

    def ask() -> None:
        try:
            answers.put((question(), None))
        except Exception as error:  # handed to the asking thread, which raises it
            answers.put((None, error))

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer, error = answers.get(timeout=patience_s)
    except queue.Empty:
        raise TimeoutError(f"no answer within {patience_s:g} s") from None
    if error is not None:
        raise error
    return answer  # type: ignore[return-value]


def knock(repo: str, repo_type: str, token: str | bool | None) -> None:
    """Raise at once if the hub is out of reach: unlike a listing, this question is not retried.

    Raises:
        Exception: A transport error of the hub's client, or ``TimeoutError``.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    url = hf_hub_url(repo, "README.md", repo_type=repo_type)
    with contextlib.suppress(HfHubHTTPError):  # whatever it says: it is there
        ask_hub(lambda: get_hf_file_metadata(url, token=token, timeout=_PATIENCE_S))


def is_refusal(error: Exception) -> bool:
    """Whether the hub answered, and said no; a hub that is down, or out of reach, has said nothing."""
    from huggingface_hub.errors import HfHubHTTPError

    if not isinstance(error, HfHubHTTPError):
        return False
    status = getattr(error.response, "status_code", None)
    return status is not None and 400 <= status < 500


def _find_in_folders(name: str, record: dict[str, Any], folders: Iterable[PathLike]) -> Path | None:
    for folder in folders:
        for filename in dict.fromkeys((record["filename"], f"{name}.pt")):
            file: Path = Path(folder).expanduser() / filename
            if file.is_file():
                return file
    return None


def _find_in_hub_cache(record: dict[str, Any], revision: str | None = None) -> Path | None:
    if record["hf_repo"] is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    filename = record["hf_filename"] or _listed_in_cache(record, revision)
    if filename is None:
        return None
    cached = try_to_load_from_cache(
        record["hf_repo"], filename, repo_type=record["repo_type"], revision=revision
    )
    return Path(cached) if isinstance(cached, str) and os.path.isfile(cached) else None


def _listed_in_cache(record: dict[str, Any], revision: str | None) -> str | None:
    """The one checkpoint among a repository's cached files, for records without a path."""
    snapshot = cached_snapshot(record["hf_repo"], record["repo_type"], revision)
    matches = [] if snapshot is None else _matching(files_under(snapshot))
    return matches[0] if len(matches) == 1 else None


def cached_snapshot(
    repo: str, repo_type: str, revision: str | None = None, cache_dir: PathLike | None = None
) -> Path | None:
    """The folder with what the hub's cache holds of a repository, complete or not."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    name = repo_folder_name(repo_id=repo, repo_type=repo_type)
    folder = Path(cache_dir or constants.HF_HUB_CACHE) / name
    reference = folder / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else (revision or "main")
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def files_under(folder: Path) -> list[str]:
    """All files in a folder, as paths with ``/`` relative to it."""
    return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]


def _matching(files: Sequence[str]) -> list[str]:
    for pattern in _LISTED_PATTERNS:
        matches = [file for file in files if fnmatch.fnmatch(file, pattern)]
        if matches:
            return sorted(matches)
    return []


def _download(
    name: str,
    record: dict[str, Any],
    folder: Path | None,
    folders: Sequence[Path],
    force: bool,
    token: str | bool | None,
    revision: str | None,
) -> Path:
    from huggingface_hub import (
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        list_repo_files,
    )
    from huggingface_hub.errors import HfHubHTTPError

    repo, repo_type = record["hf_repo"], record["repo_type"]
    try:
        filename = record["hf_filename"]
        if filename is None:
            knock(repo, repo_type, token)
            files = ask_hub(
                lambda: list_repo_files(repo, repo_type=repo_type, revision=revision, token=token)
            )
            filename = _the_one_checkpoint(name, repo, files)
        url = hf_hub_url(repo, filename, repo_type=repo_type, revision=revision)
        published = ask_hub(lambda: get_hf_file_metadata(url, token=token, timeout=_PATIENCE_S))
    except DownloadError:
        raise
    except HfHubHTTPError as error:
        raise DownloadError(
            f"The hub does not hand out {name!r} from {repo}: {error}. Instead: {record['how_to_get']}."
        ) from error
    except (
        Exception
    ) as error:  # the client's transport errors differ by its version (requests, httpx)
        reason = f"the hub cannot be reached ({type(error).__name__}: {error})"
        raise CheckpointNotFoundError(_not_here(name, record, folders, reason)) from error

    expected = _published_sha256(name, record, published.etag)
    if record["size_mb"]:
        logger.info("Downloading %s (%s MB) from %s", filename, record["size_mb"], repo)
    unfinished = None if folder is None else folder / ".download"
    for attempt in (1, 2):
        try:
            cached = Path(
                hf_hub_download(
                    repo,
                    filename,
                    repo_type=repo_type,
                    revision=revision,
                    cache_dir=unfinished,
                    force_download=force or attempt == 2,
                    token=token,
                    library_name="beats_trainer",
                    library_version=__version__,
                )
            )
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise DownloadError(
                f"The download of {name!r} from {repo} broke off: {error}. Try again; what has arrived is "
                "kept where the hub's client can resume it."
            ) from error
        try:
            _require_intact(cached, expected, "downloading it again")
        except InvalidCheckpointError as error:
            if attempt == 2:
                raise DownloadError(
                    f"{repo} delivered {filename} damaged, twice: {error} Instead: "
                    f"{record['how_to_get']}."
                ) from error
            logger.warning("%s", error)
        else:
            break
    if folder is None or unfinished is None:
        note_published(cached, file_sha256(cached))
        return cached
    target: Path = folder / record["filename"]
    os.replace(cached.resolve(), target)  # same disk: the file moves, nothing is kept twice
    shutil.rmtree(unfinished, ignore_errors=True)
    note_published(target, file_sha256(target))
    return target


def _the_one_checkpoint(name: str, repo: str, files: Sequence[str]) -> str:
    matches = _matching(files)
    if len(matches) != 1:
        found = (
            f"{len(matches)} files that could be it ({', '.join(matches)})" if matches else "none"
        )
        raise DownloadError(
            f"Expected one checkpoint in {repo} ({' or '.join(_LISTED_PATTERNS)}), found {found}. "
            f"Download the right one yourself and pass its path instead of {name!r}."
        )
    return matches[0]


def _published_sha256(name: str, record: dict[str, Any], etag: str | None) -> str | None:
    """What the file must hash to. A hub etag of 64 digits is the sha256 of a large file."""
    on_hub = etag if etag is not None and _is_sha256(etag) else None
    known: str | None = record["sha256"]
    if on_hub is not None and known is not None and on_hub != known:
        raise DownloadError(
            f"{record['hf_repo']} now holds another file under the name of {name!r}: sha256 {on_hub} "
            f"instead of the published {known}. It is not used. Instead: {record['how_to_get']}."
        )
    return on_hub or known


def _hub_sha256(cached: Path, record: dict[str, Any]) -> str | None:
    """What a file in the hub's cache must hash to: its blob is named by it."""
    blob = os.path.basename(os.readlink(cached)) if cached.is_symlink() else ""
    return blob if _is_sha256(blob) else published_sha256(cached) or record["sha256"]


def _is_sha256(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{64}", text) is not None


def _require_intact(file: Path, expected: str | None, remedy: str) -> None:
    if expected is None:
        return  # nobody published a hash: reading it strictly is the check that is left
    actual = file_sha256(file)
    if actual != expected:
        raise InvalidCheckpointError(
            f"{file} is damaged, or is not the published file: its sha256 is {actual}, expected "
            f"{expected} ({file.stat().st_size:,} bytes). To mend it, {remedy}; to use it as it is, "
            "pass its path instead of a name."
        )


def _place(cached: Path, target: Path) -> Path:
    """Make a file of the hub's cache lie at ``target`` too, without a second copy where possible."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    source = cached.resolve()
    try:
        os.link(source, unfinished)
    except OSError:  # another disk, or one without hard links
        logger.info("Copying %s to %s (it then lies on disk twice)", source, target)
        shutil.copyfile(source, unfinished)
    os.replace(unfinished, target)
    note_published(target, file_sha256(target))
    return target


def _not_here(name: str, record: dict[str, Any], folders: Sequence[Path], reason: str) -> str:
    places = [os.path.abspath(folder.expanduser()) for folder in folders]
    remedy = f"{record['how_to_get']}."
    if record["hf_repo"] is not None:
        from huggingface_hub import constants

        places.append(f"the hub's cache {constants.HF_HUB_CACHE}")
        remedy = f"Go online; or: {remedy}"
    return (
        f"The checkpoint {name!r} (file {record['filename']}) is not on this machine, and {reason}. "
        f"Looked in: {'; '.join(places) or 'no folder'}. {remedy}"
    )
