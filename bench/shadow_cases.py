"""What `python -m bench.shadow` simulates, and what a fixed horizon would have needed."""

from statistics import NormalDist
from typing import Final

from bench.shadow_runs import ALPHA, Case

HORIZON: Final = 50_000  # outcomes of an A/A run, each of them looked at
POWER: Final = 0.8
PATIENCE: Final = 12  # times the fixed horizon: a run without a decision by then counts with all of it


def fixed_horizon(control: float, challenger: float, alpha: float = ALPHA, *, two_sided: bool = False) -> int:
    """Return the samples of each arm that a z-test looked at once needs for a power of 0.8.

    source  J. L. Fleiss et al., "Statistical Methods for Rates and Proportions", 3rd edition, formula 4.14
    """
    normal = NormalDist()
    mean = (control + challenger) / 2
    critical: float = normal.inv_cdf(1 - alpha / (2 if two_sided else 1)) * (2 * mean * (1 - mean)) ** 0.5
    spread: float = (control * (1 - control) + challenger * (1 - challenger)) ** 0.5
    samples: float = ((critical + normal.inv_cdf(POWER) * spread) / (challenger - control)) ** 2
    return round(samples)


def _null(name: str, start: float, end: float, *, thompson: bool) -> Case:
    return Case(name=name, start=(start, start), end=(end, end), thompson=thompson, outcomes=HORIZON)


A_A: Final = tuple(
    _null(f"{about}, {'Thompson' if thompson else 'fixed'}", start, end, thompson=thompson)
    for about, start, end in (
        ("1 %", 0.01, 0.01),
        ("10 %", 0.1, 0.1),
        ("50 %", 0.5, 0.5),
        ("5 to 15 %", 0.05, 0.15),
        ("15 to 5 %", 0.15, 0.05),
    )
    for thompson in (False, True)
)
# Of several challengers only the evidence is looked at: the product's further conditions can only take winners away.
SEVERAL: Final = tuple(
    Case(name=f"10 %, 4 challengers, {'Thompson' if thompson else 'fixed'}", start=(0.1,) * 5, end=(0.1,) * 5,
         thompson=thompson, outcomes=HORIZON, until="evidence")
    for thompson in (False, True)
)  # fmt: skip
LIFT_20: Final = Case(
    name="10 % or 12 %", start=(0.1, 0.12), end=(0.1, 0.12), thompson=False,
    outcomes=2 * PATIENCE * fixed_horizon(0.1, 0.12), until="winner",
)  # fmt: skip
LIFT_5: Final = Case(
    name="10 % or 10.5 %", start=(0.1, 0.105), end=(0.1, 0.105), thompson=False,
    outcomes=2 * PATIENCE * fixed_horizon(0.1, 0.105), until="evidence",
)  # fmt: skip
REGRET: Final = tuple(
    Case(name=f"regret, {'Thompson' if thompson else 'fixed'}", start=(0.1, 0.12), end=(0.1, 0.12), thompson=thompson,
         outcomes=HORIZON)
    for thompson in (False, True)
)  # fmt: skip
CASES: Final = {case.name: case for case in (*A_A, *SEVERAL, LIFT_20, LIFT_5, *REGRET)}
