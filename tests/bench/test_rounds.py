"""Whole short runs: servers and generator in their own processes, in turns."""

import subprocess
import sys
from pathlib import Path

from bench.machine import describe
from bench.progress import bar_line
from bench.report import Report, make_report, render, save
from bench.rounds import Pace, Series, interleave
from bench.scenarios import DEFAULT_NAMES, needed_servers, scenarios
from bench.servers import REPOSITORY, running

PACE = Pace(seconds=0.4, rounds=2, bar=False)


async def short_report(directory: Path) -> tuple[Report, list[Series], list[str]]:
    """Measure the ceiling alone."""
    told: list[str] = []
    scenario = scenarios(100)["ceiling"]
    async with running(needed_servers([scenario]), directory, tenants=100, peer_connections=1) as servers:
        machine = await describe(servers)
        series = await interleave(scenario, servers, [4, 8], PACE, told.append)
    return make_report(machine, series, [], None), series, told


async def test_short_run_of_the_ceiling_is_measured_and_reported(tmp_path: Path) -> None:
    report, series, told = await short_report(tmp_path)

    assert [one.connections for one in series] == [4, 8]
    assert len(told) == 4
    for one in series:
        assert len(one.rounds) == PACE.rounds
        for measured in one.rounds:
            assert measured.load.errors == 0
            assert measured.load.operations > 50
            assert measured.server.memory_bytes > 1 << 20
            # A generator that costs more than what it measures would measure itself.
            assert 0 < measured.load.generator_cpu_seconds < measured.server.cpu_seconds
    text = render(report)
    assert "ceiling: ceiling" in text
    assert report.machine.versions["aiohttp"] in text
    assert save(report, tmp_path / "out").read_bytes().startswith(b"{")


def test_contestants_take_turns_with_their_peers() -> None:
    known = scenarios(10)

    pairs = {name: [one.name for one in known[name].contestants] for name in known}

    assert pairs["consume"] == ["consume", "ceiling"]
    assert pairs["hot"] == ["consume hot", "consume"]
    assert pairs["postgres-hot"] == ["consume hot", "plain postgres hot"]
    assert needed_servers([known[name] for name in DEFAULT_NAMES]) == {"shieldx", "ceiling", "postgres"}


def test_unknown_scenario_is_refused_with_the_names_there_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--scenario", "fast"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 2
    assert "no such scenario: fast" in done.stderr
    assert "postgres-hot" in done.stderr


def test_bar_fills_with_what_is_done() -> None:
    lines = [bar_line("consume", done, 10, 1234.5, "s") for done in (0, 5, 10, 20)]

    assert [line.count("#") for line in lines] == [0, 12, 24, 24]
    assert "1,234/s" in lines[0]
