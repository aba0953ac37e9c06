"""Time the reading of crops for pre-training, from files and from shards behind a web server on this machine.

    python -m benchmarks.shards [--clips 480] [--shards 4] [--workers 0 1 2] [--repeats 3]

The clips are 10 seconds of noise at 16 kHz in FLAC, and the crops are whole clips. The server runs in a process of its
own. The sources take turns. Each measurement reads all clips twice, after a pass that fills the buffers. Training is
not slowed down by reading if it needs fewer crops per second, which `scenes pretrain --dry_run` prints.
"""

import argparse
import logging
import multiprocessing
import re
import statistics
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import soundfile
from torch.utils.data import DataLoader

from benchmarks.machine import describe, describe_run
from dataset_script.files import write_json
from modeling_beats import BeatsFeatureExtractor
from train.common.distributed import BatchRows
from train.common.sources import load_unlabelled
from train.pretraining.crops import CropBatches, CropCollator, Crops, StreamedCrops


RATE = 16_000
SECONDS = 10
BATCH_SIZE = 16
PASSES = 2
COLUMNS = "{:<20} {:>7} {:>12} {:>12} {:>8}"

log = logging.getLogger("benchmarks").info


class FileHandler(SimpleHTTPRequestHandler):
    """Sends files and lists of files as the base class does, and parts of files, which Parquet files need."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Send a file, a part of it, or the list of a folder."""
        path = Path(self.translate_path(self.path))
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if part is None or not path.is_file():
            super().do_GET()
            return
        first, last = map(int, part.groups())
        with path.open("rb") as file:
            file.seek(first)
            content = file.read(last - first + 1)
        self.send_response(HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Range", f"bytes {first}-{first + len(content) - 1}/{path.stat().st_size}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


class FileServer(ThreadingHTTPServer):
    """Web server of a folder on this machine.

    Args:
        folder (`Path`): The folder.
        handler (`type`, *optional*, defaults to [`FileHandler`]): Answers the requests.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, handler: type[FileHandler] = FileHandler):
        super().__init__(("127.0.0.1", 0), partial(handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore that a client has closed its connection."""


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder from another process, and return its address."""
    with FileServer(folder) as server:
        process = multiprocessing.get_context("fork").Process(target=server.serve_forever, daemon=True)
        process.start()
        try:
            yield server.url
        finally:
            process.terminate()
            process.join()


def write_shards(folder: Path, clips: int, shards: int, seconds: float = SECONDS) -> int:
    """Write clips as files in `audio/`, and the same ones as numbered tar and Parquet files.

    Returns:
        `int`: Bytes of the files.
    """
    random = np.random.default_rng(0)
    (folder / "audio").mkdir()
    total = 0
    for shard in range(shards):
        rows = []
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as archive:
            for clip in range(shard, clips, shards):
                path = folder / "audio" / f"{clip:05d}.flac"
                soundfile.write(path, 0.05 * random.normal(size=round(seconds * RATE)), RATE)
                archive.add(path, path.name)
                rows.append({"bytes": path.read_bytes(), "path": path.name})
                total += path.stat().st_size
        table = datasets.Dataset.from_dict({"audio": rows}).cast_column("audio", datasets.Audio(decode=False))
        table.to_parquet(str(folder / f"{shard:03d}.parquet"))
    return total


def make_loader(dataset: str, workers: int, seconds: float = SECONDS) -> DataLoader:
    """Return a loader of batches like that of pre-training: from shards if `dataset` is an address of them."""
    streaming = not Path(dataset).is_dir()
    source = load_unlabelled(dataset, streaming=streaming)
    collator = CropCollator(BeatsFeatureExtractor(), min_samples=1)
    if streaming:
        stream = StreamedCrops(source, seconds, RATE, seed=0, batch_size=BATCH_SIZE)
        return DataLoader(stream, BATCH_SIZE, num_workers=stream.usable_workers(workers), collate_fn=collator)
    crops = Crops(source, seconds, RATE, seed=0)
    batches = CropBatches(len(crops), BATCH_SIZE, 10**6, 0, BatchRows(1, 0))
    return DataLoader(crops, batch_sampler=batches, num_workers=workers, collate_fn=collator)


def crops_per_second(loader: DataLoader, clips: int) -> float:
    """Return the crops per second of some passes over all clips, after the first one."""
    batches = iter(loader)
    for _ in range(clips // BATCH_SIZE):
        next(batches)
    start = time.perf_counter()
    for _ in range(PASSES * clips // BATCH_SIZE):
        next(batches)
    return PASSES * clips / (time.perf_counter() - start)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=480, help="Clips of 10 seconds.")
    parser.add_argument("--shards", type=int, default=4, help="Shards of each kind.")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="Numbers of workers to time.")
    parser.add_argument("--repeats", type=int, default=3, help="Timing rounds.")
    parser.add_argument("--out", type=Path, default=Path("build/shards.json"), help="JSON file to write.")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    datasets.disable_progress_bars()
    results = describe_run()
    log(describe(results["machine"]))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        total = write_shards(folder, args.clips, args.shards)
        log("%d clips, %.0f MB, in %d shards.", args.clips, total / 1e6, args.shards)
        with serve(folder) as url:
            numbers = f"{{000..{args.shards - 1:03d}}}"
            sources = {
                "folder of files": str(folder / "audio"),
                "tar over HTTP": f"{url}/{numbers}.tar",
                "Parquet over HTTP": f"{url}/{numbers}.parquet",
            }
            rates: dict[tuple[str, int], list[float]] = {}
            for _ in range(args.repeats):
                for name, dataset in sources.items():
                    for workers in args.workers:
                        rate = crops_per_second(make_loader(dataset, workers), args.clips)
                        rates.setdefault((name, workers), []).append(rate)
    log(COLUMNS.format("source", "workers", "crops/s", "fastest", "MB/s"))
    rows = []
    for (name, workers), values in rates.items():
        rate = statistics.median(values)
        row = {"source": name, "workers": workers, "crops_per_second": rate, "fastest": max(values)}
        row["megabytes_per_second"] = rate * total / args.clips / 1e6
        rows.append(row)
        log(COLUMNS.format(name, workers, f"{rate:.0f}", f"{max(values):.0f}", f"{row['megabytes_per_second']:.0f}"))
    write_json(args.out, results | {"rows": rows})
    log("Results written to %s.", args.out)


if __name__ == "__main__":
    main()
