"""Times every stage, beside another implementation if one is given.

    python -m benchmarks [--stages log_mel forward] [--other FOLDER] [--threads 1 2] [--repeats 7] [--out results.json]

Both implementations are timed in turns within one run, each in a process of its own; the ratio is the median over the
rounds. `--keep_freed_memory ours` sets this project's allocator as its training scripts do, `ours other` that of both.
Peak memory is what a call adds to the process. The last columns compare with the machine: operations of matrix
products and convolutions, and bytes that the operators of an eager run move, each over the machine's own measured
rate, are the least time the stage could take if nothing but that mattered.
"""

import argparse
import json
import logging
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import stages
from benchmarks.timing import machine_rates, median_ratio, time_interleaved
from benchmarks.worker import Worker, load_other


COLUMNS = "{:<20} {:>7} {:>10} {:>10} {:>7} {:>9} {:>9} {:>9} {:>9}"


def run_stage(
    name: str, threads: int, folders: dict[str, Path | None], keep_memory: list[str], repeats: int, **place: Any
) -> dict:
    """Times one stage and returns its row; `folders` are those of the implementations, by name."""
    workers = {key: Worker(name, folder, threads, key in keep_memory, **place) for key, folder in folders.items()}
    seconds = time_interleaved(workers, repeats)
    row = {
        "stage": name,
        "what": stages.STAGES[name],
        "threads": threads,
        "keep_freed_memory": keep_memory,
        "seconds": seconds,
        "median": {key: statistics.median(values) for key, values in seconds.items()},
        "peak_memory": {key: worker.ask("memory") for key, worker in workers.items()},
        "ratio": median_ratio(seconds["ours"], seconds["other"]) if "other" in seconds else None,
    }
    if not name.endswith("_compiled"):
        row["operations"], row["bytes"] = workers["ours"].ask("work")
    for worker in workers.values():
        worker.close()
    return row


def format_row(row: dict, rates: dict[str, float]) -> str:
    """The row of the printed table."""
    memory = row["peak_memory"]["ours"]
    other = row["median"].get("other")
    return COLUMNS.format(
        row["stage"],
        row["threads"],
        f"{1e3 * row['median']['ours']:.1f}",
        f"{1e3 * other:.1f}" if other else "-",
        f"{row['ratio']:.2f}" if row["ratio"] else "-",
        f"{memory / 2**20:.0f}" if memory is not None else "-",
        f"{row['operations'] / 1e9:.2f}" if "operations" in row else "-",
        f"{1e3 * row['operations'] / rates['matrix_rate']:.1f}" if "operations" in row else "-",
        f"{1e3 * row['bytes'] / rates['bandwidth']:.1f}" if "bytes" in row else "-",
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=stages.STAGES, default=list(stages.STAGES), metavar="STAGE")
    parser.add_argument("--other", type=Path, help="Folder with the stages.py of another implementation.")
    parser.add_argument("--threads", type=int, nargs="+", default=[2], help="Numbers of threads to time with.")
    parser.add_argument(
        "--keep_freed_memory", nargs="+", choices=("ours", "other"), default=[], help="Who keeps freed memory."
    )
    parser.add_argument("--repeats", type=int, default=7, help="Rounds of timing.")
    parser.add_argument("--impulse_responses", type=Path, help="Folder of WAV files; random ones without it.")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks.json"), help="JSON file to write.")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    log = logging.getLogger("benchmarks").info
    try:
        other = load_other(args.other) if args.other else None
    except FileNotFoundError as error:
        parser.error(str(error))

    torch.set_num_threads(max(args.threads))
    rates = machine_rates()
    log(
        "%s, torch %s, %d threads: copies %.1f GB/s, multiplies matrices at %.0f GFLOP/s",
        platform.processor() or platform.machine(),
        torch.__version__,
        max(args.threads),
        rates["bandwidth"] / 1e9,
        rates["matrix_rate"] / 1e9,
    )
    log(COLUMNS.format("stage", "threads", "ours ms", "other ms", "ratio", "peak MB", "GFLOP", "FLOP ms", "bytes ms"))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = {"scratch": Path(folder), "impulse_responses": args.impulse_responses}
        for name in args.stages:
            folders = {"ours": None, **({"other": args.other} if hasattr(other, name) else {})}
            for threads in args.threads:
                rows.append(run_stage(name, threads, folders, args.keep_freed_memory, args.repeats, **place))
                log(format_row(rows[-1], rates))
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps({"machine": rates, "torch": torch.__version__, "rows": rows}, indent=2))
    log("Written to %s", args.out)


if __name__ == "__main__":
    main()
