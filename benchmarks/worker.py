"""A stage of one implementation in a process of its own, with an allocator of its own."""

import contextlib
import gc
import importlib.util
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
    """Imports `stages.py` of another implementation's folder, which may import its neighbours."""
    path = folder / "stages.py"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no stages.py with functions named like those of benchmarks/stages.py.")
    sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location("other_stages", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Worker:
    """Prepares a stage in a new process; a call of the worker is a call of the stage.

    Args:
        stage (`str`): Name of the stage.
        folder (`Path`, *optional*): Of another implementation; this project without it.
        threads (`int`): Threads of torch.
        keep_memory (`bool`): Whether freed memory is kept, as the training scripts do.
        scratch (`Path`): Folder for recordings and caches.
        impulse_responses (`Path`, *optional*): Folder of WAV files.
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
        self.receive()  # what is prepared, such as recordings, is written by one process at a time

    def ask(self, question: str) -> Any:
        """Returns the answer to `call` (nothing), `memory` (bytes) or `work` (operations and bytes)."""
        with contextlib.suppress(BrokenPipeError):  # it is told below why a process has ended
            self.connection.send(question)
        return self.receive()

    def receive(self) -> Any:
        """Returns what the process sends next."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            raise RuntimeError(
                f"The process of {self.process.name} has ended with exit code {self.process.exitcode}; -9 is that of "
                "one for which memory did not suffice."
            ) from None

    def __call__(self) -> None:
        self.ask("call")

    def close(self) -> None:
        """Ends the process."""
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
    """Answers the questions of a [`Worker`] until it closes the connection."""
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
