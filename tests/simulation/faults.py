"""What befalls a schedule: drawn from its seed, one fault independent of the others.

So a schedule can be run again with fewer of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

AT_POINT = ("kill", "pause", "slow")
AT_COMMIT = ("refused", "lost", "killed")  # the last: killed after a commit
AT_TIME = {
    "away": 4,  # the database, for everybody
    "cut off": 1,  # for one machine
    "jump": 2,  # of the database's clock
    "gang dies": 4,
    "gang hangs": 1,
    "disk full": 2,
    "checkpoint lost": 2,
    "enqueue": 1,
    "stop": 1,
    "more trials": 1,
    "fail": 1,
    "fail in the dashboard": 1,
    "rename": 1,
    "delete": 1,
    "erase": 1,
    "another machine": 1,
}


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong, or that a person does."""

    kind: str
    machine: int = 0
    nth: int = 0  # point, or commit, of its machine
    at: float = 0.0  # seconds from the beginning
    seconds: float = 0.0  # that it lasts
    pick: float = 0.0  # in [0, 1): which of those that there are

    def __str__(self) -> str:
        if self.kind in AT_POINT:
            where = f"at point {self.nth} of machine {self.machine}"
        elif self.kind in AT_COMMIT:
            where = f"at commit {self.nth} of machine {self.machine}"
        else:
            where = f"after {self.at:.2f} s (machine {self.machine}, pick {self.pick:.2f})"
        return f"{self.kind} {where}, {self.seconds:.1f} s"


def draw(seed: str, machines: int, longest: float) -> list[Fault]:
    """Draw the faults of a schedule, most of which takes no longer than so many seconds."""
    random = Random(f"{seed}-faults")
    number = random.choice([1, 2, 2, 3, 3, 4, 5, 7])
    return [_one(random, machines, longest) for _ in range(number)]


def _one(random: Random, machines: int, longest: float) -> Fault:
    kinds = {"point": 6, "commit": 6, **AT_TIME}
    kind = random.choices(list(kinds), weights=list(kinds.values()))[0]
    machine, pick = random.randrange(machines), random.random()
    longest_away = random.choices([700.0, 60.0], weights=[1, 9])[0]
    seconds = math.exp(random.uniform(math.log(0.2), math.log(longest_away)))
    at = random.uniform(0.0, longest)
    if kind == "point":
        kind = random.choices(AT_POINT, weights=[4, 3, 1])[0]
        if kind == "pause" and pick < 0.5:
            seconds = random.uniform(14.0, 45.0)  # about a lease, or two
        return Fault(kind, machine, int(math.exp(random.uniform(0, math.log(500)))), 0.0, seconds)
    if kind == "commit":
        kind = random.choices(AT_COMMIT, weights=[2, 3, 2])[0]
        return Fault(kind, machine, int(math.exp(random.uniform(0.0, math.log(25)))), 0.0, seconds)
    if kind == "jump":
        seconds = random.choice([-60.0, -15.0, -1.0, 1.0, 10.0, 16.0, 60.0, 3600.0])
    return Fault(kind, machine, 0, at, seconds, pick)
