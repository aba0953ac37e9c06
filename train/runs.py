"""Output folders of the scripts: whose run they hold, where it goes on, and the results it leaves."""

import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import transformers
from accelerate import PartialState

from model_cards.results import RESULTS_FILE, RUN_FILE, read_json
from train.runtime import keep_freed_memory, use_all_cores
from train.trainer import COMPLETE


logger = logging.getLogger(__name__)


def claim_output_folder(folder: str | Path, run: Mapping[str, Any]) -> None:
    """Make `folder` the output of `run`, or check that it is already; all processes must call this.

    Args:
        folder (`str` or `Path`): Created if need be.
        run (`Mapping`): What makes the run what it is: arguments that change its outcome. Kept in `run.json`.

    Raises:
        FileExistsError: If the folder holds another run or other files.
        OSError: If the folder cannot be written to.
        ValueError: If `run.json` is damaged.
    """
    folder = Path(folder)
    run = json.loads(json.dumps(run))
    state = PartialState()
    state.wait_for_everyone()
    if (folder / RUN_FILE).is_file():
        other = read_json(folder / RUN_FILE)
        changed = [name for name in {**other, **run} if other.get(name) != run.get(name)]
        if changed:
            name = changed[0]
            raise FileExistsError(
                f"{folder} holds another run ({name} is {other.get(name)!r} there and {run.get(name)!r} here): give "
                "another --output_dir, or delete the folder."
            )
    elif folder.exists() and (
        not folder.is_dir() or any(path.name != RUN_FILE + ".part" for path in folder.iterdir())
    ):
        raise FileExistsError(f"{folder} exists and holds no run: give another --output_dir, or empty it.")
    state.wait_for_everyone()
    with main_process_first():
        if not (folder / RUN_FILE).is_file():
            try:
                write_json(folder / RUN_FILE, run)
            except OSError as error:
                reason = error.strerror
                raise OSError(f"{folder} cannot be written to ({reason}): give another --output_dir.") from None
    state.wait_for_everyone()


@contextmanager
def main_process_first() -> Iterator[None]:
    """Let the main process go ahead, and the others follow.

    They follow also if it fails, and so come to the same error, where accelerate's would leave them waiting for it.
    """
    state = PartialState()
    if not state.is_main_process:
        state.wait_for_everyone()
    try:
        yield
    finally:
        if state.is_main_process:
            state.wait_for_everyone()


def last_complete_checkpoint(folder: str | Path) -> str | None:
    """Return the newest complete checkpoint in `folder`, after deleting those that were interrupted.

    All processes must call this. None means that the run starts from its beginning.
    """
    state = PartialState()
    checkpoints = sorted(
        (path for path in Path(folder).glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()),
        key=lambda path: int(path.name.removeprefix("checkpoint-")),
    )
    complete = [path for path in checkpoints if (path / COMPLETE).is_file()]
    state.wait_for_everyone()
    if state.is_main_process:
        for path in set(checkpoints) - set(complete):
            logger.warning("Deleting %s: the run was interrupted while it was written.", path)
            shutil.rmtree(path)
    state.wait_for_everyone()
    return str(complete[-1]) if complete else None


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` to `path`, which is at no time incomplete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)


def provenance() -> dict[str, Any]:
    """Return what it takes to get a result again: command, commit and versions."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    script = "/".join(Path(sys.argv[0]).resolve().parts[-2:])  # as seen from the project
    packages = ("torch", "transformers", "datasets", "accelerate", "numpy", "soxr")
    return {
        "command": shlex.join(["python", script, *sys.argv[1:]]),
        "commit": commit.stdout.strip() or None,
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
    }


def finished_results(folder: str | Path) -> dict[str, Any] | None:
    """Return the results of the run in `folder`, or None if it has not come to its end.

    Raises:
        ValueError: If the file is damaged.
    """
    path = Path(folder) / RESULTS_FILE
    return read_json(path) if path.is_file() else None


def configure_logging(log_level: str = "info") -> None:
    """Show the messages of this project, on the main process; those of the libraries from warnings on."""
    level = logging.INFO if log_level == "passive" else log_level.upper()
    logging.basicConfig(format="%(message)s")
    for name in ("train", "dataset_script", "__main__"):
        logging.getLogger(name).setLevel(level if _is_main_process() else logging.WARNING)
    transformers.utils.logging.disable_progress_bar()  # of reading and writing model files


def run_script(main: Callable[[], Any]) -> None:
    """Run a script's `main`; wrong input and Ctrl-C end it with one sentence, and a traceback at log level debug."""
    keep_freed_memory()
    use_all_cores()
    try:
        main()
    except (ValueError, OSError) as error:
        logger.debug("Traceback of the error:", exc_info=True)
        sys.exit(f"{type(error).__name__}: {error}" if _is_main_process() else 1)
    except KeyboardInterrupt:
        sys.exit("Interrupted: the same command goes on." if _is_main_process() else 1)


def _is_main_process() -> bool:
    # Known before the processes are connected, which may not come to pass.
    return os.environ.get("RANK", "0") == "0"
