"""Workers: a stage of one implementation in its own process, with its own allocator."""

import contextlib
import gc
import importlib
import multiprocessing
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks import stages
from benchmarks.inputs import make_inputs
from benchmarks.timing import count_work, peak_memory
from train.common.process import keep_freed_memory


def load_other(folder: Path) -> ModuleType:
    """Import the `stages.py` in the folder of another implementation, which may import its neighbours.

    Raises:
        FileNotFoundError: If the folder has no `stages.py`.
    """
    if not (folder / "stages.py").is_file():
        raise FileNotFoundError(f"{folder} has no stages.py: define functions named as in benchmarks/stages.py there.")
    sys.path.insert(0, str(folder))
    return importlib.import_module("stages")


class Worker:
    """Process that has prepared a stage; calling the worker calls the stage.

    Args:
        stage (`str`): Name of the stage.
        folder (`Path` or `None`): Folder of another implementation; `None` for this project.
        threads (`int`): Number of threads of torch.
        keep_memory (`bool`): Whether the allocator keeps freed memory, as in the training scripts.
        scratch (`Path`): Folder for recordings and caches.
        impulse_responses (`Path` or `None`): Folder of WAV files; `None` to generate some.
    """

    def __init__(
        self,
        stage: str,
        folder: Path | None,
        threads: int,
        keep_memory: bool,
        scratch: Path,
        impulse_responses: Path | None,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other_end = context.Pipe()
        arguments = (other_end, stage, folder, threads, keep_memory, scratch, impulse_responses)
        self.process = context.Process(
            target=serve, args=arguments, name=f"{stage} of {folder or 'ours'}", daemon=True
        )
        self.process.start()
        other_end.close()
        self.receive()  # wait until it is prepared: only one process at a time may write the recordings

    def ask(self, question: str) -> Any:
        """Return the answer to `call` (`None`), `memory` (bytes) or `work` (operations and bytes)."""
        with contextlib.suppress(BrokenPipeError):  # receive() reports why the process ended
            self.connection.send(question)
        return self.receive()

    def receive(self) -> Any:
        """Return the next object that the process sends.

        Raises:
            RuntimeError: If the process has ended.
        """
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            raise RuntimeError(
                f"The process of {self.process.name} ended with exit code {self.process.exitcode} (-9 usually means "
                "that it ran out of memory)."
            ) from None

    def __call__(self) -> None:
        self.ask("call")

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.join()


def serve(
    connection: Connection,
    stage: str,
    folder: Path | None,
    threads: int,
    keep_memory: bool,
    scratch: Path,
    impulse_responses: Path | None,
) -> None:
    """Answer the questions of a [`Worker`] until it closes the connection."""
    if keep_memory:
        keep_freed_memory()
    torch.set_num_threads(threads)
    implementation = load_other(folder) if folder else stages
    call = getattr(implementation, stage)(make_inputs(scratch, impulse_responses))
    connection.send("ready")
    answers = {"call": call, "memory": lambda: peak_memory(call), "work": lambda: count_work(call)}
    while True:
        try:
            question = connection.recv()
        except EOFError:
            return
        answer = answers[question]()
        connection.send(None if question == "call" else answer)
        gc.collect()
