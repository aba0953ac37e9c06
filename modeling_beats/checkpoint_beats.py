"""Checkpoints and their configurations: where they are, in a folder or on the Hub, and how they are read."""

import pickle
import re
import reprlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import yaml
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,  # of the client in use
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file


SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")
# Files beside a checkpoint that are less likely meant, the least likely first: other tensors, as original checkpoints
# are pickled; states of the optimizer; weights with the state of the training run.
LESS_LIKELY = (r"\.safetensors$", r"(optim|scheduler)[^/]*$", r"model_states\.pt$|(^|/)checkpoint\.pth$")
# Levels above a checkpoint file in which its configuration may be, as in
# exp/lightning_logs/version_0/checkpoints/last.ckpt/checkpoint/mp_rank_00_model_states.pt.
LEVELS = 6
SECONDS_TO_ANSWER = 30.0


def read_checkpoint(path: str | Path) -> Any:
    """Load a checkpoint file, as written by torch or safetensors, without running any code in it.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not a checkpoint, is damaged, or contains Python objects that could run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint file {path}.")
    with path.open("rb") as file:
        start = file.read(512)
    is_safetensors = start[8:9] == b"{"
    if not is_safetensors and not start.startswith((b"PK\x03\x04", b"\x80")):
        kinds = {b"<": "a web page", b"version https://git-lfs": "a Git LFS pointer", b"RIFF": "a WAV file"}
        text = start.removeprefix(b"\xef\xbb\xbf").strip()
        kind = next((kind for magic, kind in kinds.items() if text.startswith(magic)), "a file of another format")
        raise ValueError(f"{path} is not a checkpoint but {kind if text else 'empty'}: download it again.")
    try:
        return load_file(path) if is_safetensors else torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # the loaders raise many types for damaged files
        if isinstance(error, pickle.UnpicklingError) and "nsupported" in str(error):
            raise ValueError(
                f"{path} contains Python objects besides tensors, which could run code, and was not loaded: save the "
                "state dict alone."
            ) from None
        raise ValueError(f"{path} is a damaged or incomplete checkpoint: download it again.") from None


def remove_prefix(state_dict: dict[str, torch.Tensor], first_key: str) -> dict[str, torch.Tensor]:
    """Remove what wrappers of a network (Lightning, `DataParallel`, `torch.compile`) put before its keys.

    Keys of other networks beside it are left out.

    Args:
        state_dict (`dict[str, torch.Tensor]`): State dict with a prefix or without.
        first_key (`str`): A key of the network without the prefix.

    Raises:
        ValueError: If there is no such network, or more than one.
    """
    state_dict = {str(key).replace("_orig_mod.", ""): value for key, value in state_dict.items()}
    ends = [key for key in state_dict if key == first_key or key.endswith(f".{first_key}")]
    usual = [key for key in ends if set(key.removesuffix(first_key).split(".")) <= {"", "backbone", "model", "module"}]
    keys = usual if len(usual) == 1 else ends
    if len(keys) != 1:
        found = f"several networks ({', '.join(keys)})" if keys else f"only the keys {reprlib.repr(list(state_dict))}"
        raise ValueError(
            f"has no single key that ends in {first_key}, but {found}: save the state dict of the network alone."
        )
    prefix = keys[0].removesuffix(first_key)
    return {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}


def read_yaml(path: Path) -> dict[str, Any]:
    """Load a YAML file with a mapping, without running any code in it.

    Raises:
        ValueError: If the file is damaged or contains anything else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.constructor.ConstructorError as error:
        raise ValueError(
            f"{path} contains a value that is not plain YAML ({error.problem}): replace it by text, a number, a list "
            "or a mapping."
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError):  # a ValueError for text or dates that do not exist
        raise ValueError(f"{path} is not a valid YAML file: download it again.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not contain a mapping of names to values: download it again.")
    return content


@dataclass
class Files:
    """Files of a local folder or of a repository on the Hub.

    Args:
        source (`str`): The folder or the Hub id, for messages.
        names (`list[str]`): Names of the files, relative to the folder, with slashes.
        path (`Callable`): Function from the name of a file to its path on this machine; downloads the file if needed.
        is_local (`bool`): Whether the files are on this machine.
    """

    source: str
    names: list[str]
    path: Callable[[str], Path]
    is_local: bool

    def checkpoint(self) -> str:
        """Return the name of the checkpoint: the one that `meta.yaml` names, or else the only sensible one.

        Raises:
            ValueError: If there is none or more than one, or `meta.yaml` names a missing file.
        """
        if named := self._named("files", "model_file"):
            return named
        names = self.names[:1] if Path(self.source).is_file() else [n for n in self.names if n.endswith(SUFFIXES)]
        for pattern in LESS_LIKELY:
            if len(names) > 1:
                names = [name for name in names if not re.search(pattern, name)] or names
        if self.is_local:  # ESPnet names its best checkpoint by links
            names = sorted({self.path(name).resolve(): name for name in names}.values())
        if not names:
            raise ValueError(
                f"{self.source} contains no checkpoint, a file ending in {', '.join(SUFFIXES)}: give another folder, "
                "file or Hub id."
            )
        if len(names) > 1:
            fix = "give one of these files"
            if not self.is_local:
                fix = f"download one with `hf download {self.source} FILE --local-dir FOLDER` and give that file"
            listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise ValueError(f"{self.source} contains {len(names)} checkpoints ({listed}): {fix}.")
        return names[0]

    def configuration(self, checkpoint: str, levels: int = LEVELS) -> dict[str, Any] | None:
        """Return ESPnet's configuration of a checkpoint: the `config.yaml` that `meta.yaml` names or the nearest one.

        Args:
            checkpoint (`str`): Name of the checkpoint.
            levels (`int`, *optional*, defaults to 6): Number of folders to look into, upwards from the checkpoint's.

        Raises:
            ValueError: If the file is damaged, or `meta.yaml` names a missing one.
        """
        if named := self._named("yaml_files", "train_config"):
            return read_yaml(self.path(named))
        for folder in PurePosixPath(checkpoint).parents[:levels]:
            if (name := str(folder / "config.yaml")) in self.names:
                config = read_yaml(self.path(name))
                if isinstance(config.get("encoder_conf"), dict):
                    return config
        return None

    def _named(self, section: str, ending: str) -> str | None:
        """Return the only file that a section of the topmost `meta.yaml` names under a key with the ending, if any."""
        metas = sorted(
            (name for name in self.names if PurePosixPath(name).name == "meta.yaml"), key=lambda name: name.count("/")
        )
        if not metas:
            return None
        entries = read_yaml(self.path(metas[0])).get(section)
        if not isinstance(entries, dict):
            return None
        named = [value for key, value in entries.items() if str(key).endswith(ending)]
        if len(named) != 1:
            return None
        name = str(PurePosixPath(metas[0]).parent / str(named[0]))
        if name not in self.names:
            raise ValueError(f"{self.source} lacks {named[0]}, which its {metas[0]} names: download the whole folder.")
        return name


def local_files(path: Path) -> Files:
    """Return the files of a local folder, or a local file with the configurations in the folders above it."""
    if path.is_dir():
        folder = path
        files = [file.relative_to(folder) for file in sorted(path.rglob("*")) if file.is_file()]
        names = [file.as_posix() for file in files if not any(part.startswith(".") for part in file.parts)]
    else:
        for file in (path.absolute(), path.resolve()):  # of a link, or else of the file that it leads to
            parents = file.parents[:LEVELS]
            folder = parents[-1]
            configurations = [config for parent in parents if (config := parent / "config.yaml").is_file()]
            names = [name.relative_to(folder).as_posix() for name in (file, *configurations)]
            if configurations:
                break
    return Files(str(path), names, lambda name: folder / name, is_local=True)


def hub_files(repo_id: str, revision: str | None = None) -> Files:
    """Return the files of a model on the Hub; each is downloaded, with progress, when its path is asked for.

    If the Hub is unreachable, they are those of the model in the local cache.

    Raises:
        ConnectionError: If the Hub is unreachable, and the cache does not contain the model.
        ValueError: If there is no such model or revision, or access to it is restricted.
    """
    wanted = repo_id if revision is None else f"{repo_id}, revision {revision},"

    def ask(request: Callable[[], Any]) -> Any:
        try:
            return request()
        except OfflineModeIsEnabled:
            raise ConnectionError(
                f"{wanted} is neither a local path nor in the local cache, and HF_HUB_OFFLINE forbids downloading it "
                "from the Hub: unset it, or download the model elsewhere and give its folder."
            ) from None
        except GatedRepoError:
            raise ValueError(
                f"Access to {repo_id} is restricted: accept its terms on the Hub and run `hf auth login`."
            ) from None
        except (RepositoryNotFoundError, HFValidationError):
            raise ValueError(
                f"{repo_id} is neither a local file or folder nor a model on the Hub: check its spelling."
            ) from None
        except RevisionNotFoundError:
            raise ValueError(
                f"{repo_id} has no revision {revision} on the Hub: name an existing branch, tag or commit."
            ) from None
        except (OSError, HTTPError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise ConnectionError(
                f"{wanted} could not be downloaded from the Hub ({reason}): check the connection, or download the "
                "model elsewhere and give its folder."
            ) from None

    try:
        info = ask(lambda: HfApi().model_info(repo_id, revision=revision, timeout=SECONDS_TO_ANSWER))
    except ConnectionError:
        try:
            cached = local_files(Path(snapshot_download(repo_id, revision=revision, local_files_only=True)))
        except LocalEntryNotFoundError:
            cached = None
        if cached is None:
            raise
        print(f"The Hub is not available: {repo_id} is read from the local cache.", file=sys.stderr)
        return Files(repo_id, cached.names, cached.path, is_local=False)
    return Files(
        repo_id,
        [file.rfilename for file in info.siblings or []],
        lambda name: Path(ask(lambda: hf_hub_download(repo_id, name, revision=revision))),
        is_local=False,
    )


def find_files(source: str, revision: str | None = None) -> Files:
    """Return the files of a source: a local file or folder, or else a model on the Hub.

    Args:
        source (`str`): Path or Hub id. The network is not asked about a path that exists.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.

    Raises:
        ConnectionError: If the Hub is unreachable.
        FileNotFoundError: If the source is neither an existing path nor of the form of a Hub id.
        ValueError: If there is no such model or revision, or a revision of a local path is asked for.
    """
    path = Path(source)
    if path.exists():
        if revision is not None:
            raise ValueError(f"{source} is a local path, which has no revisions: leave out --revision.")
        return local_files(path)
    if not re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", source) or source.endswith((*SUFFIXES, ".yaml", ".yml")):
        raise FileNotFoundError(f"There is no file or folder {source}: give an existing one, or a Hub id (user/name).")
    return hub_files(source, revision)
