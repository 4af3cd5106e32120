"""`python -m bench`: run scenarios, print what they found beside the targets, and keep it."""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import uvloop

from app.embedded import EmbeddedFault
from bench.growth import ACCOUNT_STEPS, CHAIN_STEPS, GrowthPoint, grow
from bench.machine import describe
from bench.plain_postgres import CONNECTIONS_DEFAULT
from bench.plot import PlotError, plot
from bench.progress import bar_wanted
from bench.report import Report, make_report, render, save
from bench.rounds import GeneratorError, Pace, Scenario, Series, interleave
from bench.scenarios import (
    DEFAULT_NAMES,
    SHADOW_NAMES,
    TENANTS,
    SetupError,
    make_accounts,
    needed_servers,
    scenarios,
)
from bench.servers import ServerError, running
from bench.shadow_load import ExperimentsRefused, make_experiments
from bench.soak import Soak, soak

CONNECTIONS: Final = (64, 128, 256)
SECONDS: Final = 10.0
ROUNDS: Final = 3
QUICK_SECONDS: Final = 2.0  # seconds per run of --quick: shows that everything works, not how fast it is
QUICK_TENANTS: Final = 1_000
EXIT_FAILED: Final = 1
RESULTS: Final = Path(__file__).parent / "results"


def _numbers(text: str) -> tuple[int, ...]:
    """Parse `64,128` into numbers above 0, for argparse."""
    numbers = tuple(int(part) for part in text.split(","))
    if min(numbers) < 1:
        raise ValueError(text)
    return numbers


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {one.name:<13} {one.about}" for one in scenarios().values())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog=f"scenarios:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scenario", help="names with commas; all but ceiling and peer when left out")
    parser.add_argument("--seconds", type=float, help=f"measured time of one run ({SECONDS:g})")
    parser.add_argument("--rounds", type=int, help=f"rounds in which contestants take turns ({ROUNDS})")
    parser.add_argument("--connections", type=_numbers, help="closed loop: one or more numbers (64,128,256)")
    parser.add_argument("--tenants", type=int, help=f"accounts that spread load is spread over ({TENANTS:,})")
    parser.add_argument("--peer-connections", type=int, default=CONNECTIONS_DEFAULT, metavar="N")
    parser.add_argument("--quick", action="store_true", help="2 s, 1 round, 64 connections, 1,000 tenants")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="one long run that watches memory")
    parser.add_argument("--growth", action="store_true", help="cost at many accounts and rows; takes long")
    parser.add_argument("--growth-accounts", type=_numbers, default=ACCOUNT_STEPS, metavar="N,N")
    parser.add_argument("--growth-rows", type=_numbers, default=CHAIN_STEPS, metavar="N,N")
    parser.add_argument("--data-dir", type=Path, help="an empty directory for the databases; a temporary one")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results go (bench/results)")
    parser.add_argument("--no-plot", action="store_true", help="write no PNG")
    parser.add_argument("--progress", action="store_true", help="draw the bar even if stderr is no terminal")
    return parser


class Plan:
    """The command line with its defaults filled in."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Choose scenarios: those named, or all unless only --soak or --growth is asked for.

        faults  ValueError for a name that is no scenario, or a number out of range
        """
        quick = bool(arguments.quick)
        self.tenants: int = arguments.tenants or (QUICK_TENANTS if quick else TENANTS)
        closed_loop = CONNECTIONS[:1] if quick else CONNECTIONS
        self.connections: tuple[int, ...] = arguments.connections or closed_loop
        self.pace = Pace(
            seconds=arguments.seconds or (QUICK_SECONDS if quick else SECONDS),
            rounds=arguments.rounds or (1 if quick else ROUNDS),
            bar=bar_wanted(forced=arguments.progress),
        )
        known = scenarios(self.tenants)
        special = arguments.soak is not None or arguments.growth
        names = arguments.scenario.split(",") if arguments.scenario else () if special else DEFAULT_NAMES
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"no such scenario: {', '.join(unknown)}; there are {', '.join(known)}")
        if self.pace.seconds <= 0 or self.pace.rounds < 1 or self.tenants < 1:
            raise ValueError("--seconds, --rounds and --tenants must be above 0")
        self.chosen: list[Scenario] = [known[name] for name in names]
        self.servers = needed_servers(self.chosen) | ({"shieldx"} if special else frozenset())
        self.soak_seconds: float | None = arguments.soak
        self.growth: bool = arguments.growth
        self.growth_accounts: tuple[int, ...] = arguments.growth_accounts
        self.growth_rows: tuple[int, ...] = arguments.growth_rows
        self.peer_connections: int = arguments.peer_connections

    @property
    def accounts(self) -> int:
        """How many accounts are made before anything is measured; growth makes its own."""
        return self.tenants if self.chosen or self.soak_seconds is not None else 0


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


async def run(plan: Plan, directory: Path) -> Report:
    """Start the servers, make the accounts, measure, and put the report together.

    faults  ServerError, SetupError, GeneratorError, the faults of `app.embedded`
    """
    series: list[Series] = []
    growth: list[GrowthPoint] = []
    soaked: Soak | None = None
    async with running(plan.servers, directory, tenants=plan.tenants, peer_connections=plan.peer_connections) as servers:
        machine = await describe(servers)
        if "shieldx" in plan.servers and plan.accounts:
            await make_accounts(servers, 0, plan.accounts, bar=plan.pace.bar)
        if SHADOW_NAMES & {scenario.name for scenario in plan.chosen}:
            await make_experiments(servers.origin("shieldx"))
        for scenario in plan.chosen:
            series += await interleave(scenario, servers, plan.connections, plan.pace, _tell)
        if plan.soak_seconds is not None:
            soaked = await soak(servers, tenants=plan.tenants, seconds=plan.soak_seconds, bar=plan.pace.bar)
        if plan.growth:
            growth = await grow(
                servers,
                plan.pace,
                existing=plan.accounts,
                accounts=plan.growth_accounts,
                chain_rows=plan.growth_rows,
                tell=_tell,
            )
    return make_report(machine, series, growth, soaked)


@contextlib.contextmanager
def _directory(named: Path | None) -> Iterator[Path]:
    """Give the directory of the run; a temporary one is removed with everything in it."""
    if named is None:
        with tempfile.TemporaryDirectory(prefix="shieldx-bench-") as made:
            yield Path(made)
        return
    named.mkdir(parents=True, exist_ok=True)
    if any(named.iterdir()):
        raise ValueError(f"{named} is not empty; figures would depend on what it holds")
    yield named.resolve()


def main() -> int:
    """Run the command line; returns the exit status, which does not depend on the targets."""
    parser = _parser()
    arguments = parser.parse_args()
    try:
        plan = Plan(arguments)
        with _directory(arguments.data_dir) as directory:
            report = uvloop.run(run(plan, directory))
    except ValueError as error:
        parser.error(str(error))
    except (ServerError, SetupError, ExperimentsRefused, GeneratorError, EmbeddedFault) as error:
        _tell(f"bench: {error}")
        return EXIT_FAILED
    sys.stdout.write(render(report) + "\n")
    path = save(report, arguments.out)
    sys.stdout.write(f"\n{path}\n")
    if report.series and not arguments.no_plot:
        try:
            plot(report, path.with_suffix(".png"))
        except PlotError as error:
            _tell(f"bench: {error}")
            return EXIT_FAILED
        sys.stdout.write(f"{path.with_suffix('.png')}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
