"""Where a model is: the demo, a folder, or a Hugging Face id, which is downloaded or found in the hub's cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aios_kernel.engine import _checkpoint
from aios_kernel.engine._progress import download_bar
from aios_kernel.errors import ConfigError, UnknownModel, Unsupported

DEMO = Path(__file__).parent.parent / "models" / "demo"
"""Where the demo model is shipped."""

HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
_SMALL = ("*.json", "*.jinja", "*.model", "*.txt")
"""What a model has beside its weights: configuration, tokenizer, chat template."""


@dataclass(frozen=True, slots=True)
class Source:
    """A folder with everything that a model needs, checked, and the name to serve it under."""

    folder: Path
    name: str


def locate(spec: str, revision: str | None) -> Source:
    """Find a model and make sure that it is complete.

    Raises:
        UnknownModel: there is no such folder or id, or it cannot be downloaded.
        ConfigError: files are missing or damaged, or a revision is given for a folder.
        Unsupported: it is a single file, or quantised.
    """
    source = _find(spec, revision)
    _checkpoint.check_config(source.folder)
    _checkpoint.check_weights(source.folder)
    return source


def _find(spec: str, revision: str | None) -> Source:
    folder = Path(spec).expanduser()
    if revision is not None and (spec == "demo" or folder.is_dir()):
        raise ConfigError(f"{spec} is on this machine and has no revisions", fix=f'leave revision "{revision}" out')
    if spec == "demo":
        if not (DEMO / _checkpoint.CONFIG).is_file():
            raise UnknownModel(f"the demo model is not in {DEMO}", fix="install a complete aios-kernel")
        return Source(DEMO, "demo")
    if folder.is_dir():
        return Source(folder, folder.resolve().name)
    if folder.is_file():
        raise Unsupported(
            f"{folder} is a file; the torch engine loads folders with config.json and safetensors",
            fix=f"aios serve {folder.parent}, if that is the model's folder",
        )
    if spec.startswith((".", "~", "/")) or not HUB_ID.fullmatch(spec):
        raise UnknownModel(f"there is no folder {folder}", fix="check the path; `aios serve demo` needs none")
    return Source(_fetch(spec, revision), spec)


def _fetch(repository: str, revision: str | None) -> Path:
    """The snapshot of a repository: first the small files, and the weights only if the model can be served."""
    folder = download(repository, revision, _SMALL)
    _checkpoint.check_config(folder)
    missing = [name for name in _checkpoint.shards(folder) if not (folder / name).is_file()]
    return download(repository, folder.name, missing) if missing else folder


def download(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The snapshot of a repository with the files that match, of its top folder. Raises UnknownModel."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=["*/*"],  # other formats and precisions lie in folders of their own
            tqdm_class=download_bar(),
        )
    except Exception as error:  # the client raises its own, its transport's and the system's errors
        raise _unreachable(repository, revision, error) from error
    return Path(folder)


def _unreachable(repository: str, revision: str | None, error: Exception) -> UnknownModel:
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RevisionNotFoundError

    which = f'"{repository}"' if revision is None else f'"{repository}" at revision "{revision}"'
    if isinstance(error, GatedRepoError):
        return UnknownModel(
            f"the model {which} is given only to those who accepted its terms",
            fix=f"accept them on https://huggingface.co/{repository}, then run `hf auth login`",
        )
    if isinstance(error, RevisionNotFoundError):
        return UnknownModel(f"the model {which} does not exist", fix="check the revision; without one, main is taken")
    if isinstance(error, LocalEntryNotFoundError):
        return UnknownModel(
            f"the model {which} is not in the hub's cache, and the hub is offline or cannot be reached",
            fix="check id and network (HF_HUB_OFFLINE); or pass the folder of a downloaded model: aios serve PATH",
        )
    return UnknownModel(
        f"the model {which} cannot be downloaded: {str(error).strip().partition(chr(10))[0]}",
        fix="check the id; without a network pass the folder of a downloaded model: aios serve PATH",
    )
