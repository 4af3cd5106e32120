"""`python -m bench.shadow`: how often experiments without a difference get a winner, and how soon those with one do.

Chunks of runs are appended to bench/results/shadow.jsonl as they are done; a chunk that is there is not played again, so
a run that was interrupted goes on. The report is made from all that is there.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from bench.shadow_cases import CASES
from bench.shadow_report import render, save_plots
from bench.shadow_runs import Found, simulate
from bench.shadow_selection import measure

RESULTS: Final = Path(__file__).parent / "results"
RUNS: Final = 2_000
CHUNK: Final = 500
QUICK_RUNS: Final = 20  # runs of --quick, each cut to its first outcomes: shows that everything works, not what is true
QUICK_OUTCOMES: Final = 1_000
QUICK_CALLS: Final = 1_000


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.shadow", description=__doc__)
    listed = "; ".join(CASES).replace("%", "%%")  # argparse formats its texts
    parser.add_argument("--cases", help="names with semicolons between; all when left out: " + listed)
    parser.add_argument("--runs", type=int, default=RUNS, help=f"runs of each case ({RUNS:,})")
    parser.add_argument("--chunk", type=int, default=CHUNK, help=f"runs that are played together ({CHUNK})")
    parser.add_argument("--seed", type=int, default=1, help="of the first chunk; the others follow")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no chunk after this time")
    parser.add_argument("--quick", action="store_true", help="20 runs of 1,000 outcomes, into a file of their own")
    parser.add_argument("--report", action="store_true", help="only print what the results say")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results go (bench/results)")
    return parser


def load(path: Path) -> list[Found]:
    """Return the chunks in a file, none if it is not there."""
    if not path.exists():
        return []
    return [msgspec.json.decode(line, type=Found) for line in path.read_bytes().splitlines()]


def main() -> int:
    """Run the command line."""
    parser = _parser()
    arguments = parser.parse_args()
    names = list(CASES) if arguments.cases is None else [name.strip() for name in arguments.cases.split(";")]
    unknown = [name for name in names if name not in CASES]
    if unknown or min(arguments.runs, arguments.chunk) < 1:
        parser.error(f"no such case: {', '.join(unknown)}" if unknown else "--runs and --chunk must be above 0")
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / ("shadow-quick.jsonl" if arguments.quick else "shadow.jsonl")
    if not arguments.report:
        _play(arguments, names, path)
    found = load(path)
    timings = measure(QUICK_CALLS, 3) if arguments.quick else measure()
    sys.stdout.write(render(found, timings) + "\n")
    for plot in save_plots(found, arguments.out, timings):
        sys.stdout.write(f"{plot}\n")
    return 0


def _play(arguments: argparse.Namespace, names: list[str], path: Path) -> None:
    """Play the chunks that are missing, and append each as it is done."""
    began = time.monotonic()
    runs, chunk = (QUICK_RUNS, QUICK_RUNS) if arguments.quick else (arguments.runs, arguments.chunk)
    there = {(one.case, one.seed, one.runs) for one in load(path)}
    for number, start in enumerate(range(0, runs, chunk)):
        for name in names:
            case = CASES[name]
            if arguments.quick:
                case = msgspec.structs.replace(case, outcomes=min(case.outcomes, QUICK_OUTCOMES))
            wanted = (case, arguments.seed + number, min(chunk, runs - start))
            if wanted in there:
                continue
            if time.monotonic() - began > arguments.seconds:
                return
            found = simulate(case, wanted[2], wanted[1])
            with path.open("ab") as file:
                file.write(msgspec.json.encode(found) + b"\n")
            sys.stderr.write(f"{name}: {found.runs} runs, {time.monotonic() - began:,.0f} s since the start\n")


if __name__ == "__main__":
    sys.exit(main())
