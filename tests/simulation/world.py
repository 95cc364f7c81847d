"""A world of actors of which one acts at a time, by a virtual clock and one seed.

An actor is a thread that holds the world's baton, or waits for it. It may lose it where it calls
`point`, and gives it away where it waits. Time stands still while anybody can act, but for the
little that each point takes, and jumps to the next wake-up when nobody can.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import traceback
from collections.abc import Callable
from random import Random
from typing import Any

BEGINS = 1_000_000.0  # seconds
POINT_SECONDS = 0.002  # that a statement, a commit or a lock takes
REAL_SECONDS = 60.0  # after which a schedule hangs


class Killed(BaseException):
    """The actor's process is gone: nothing that it still does has any effect."""


class Violation(BaseException):
    """Something happened that must not."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(kind, text)
        self.kind, self.text = kind, text

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


class Actor:
    """A thread of a simulated process."""

    def __init__(self, name: str, process: Process, work: Callable[[], None]) -> None:
        self.name, self.process, self.work = name, process, work
        self.baton = threading.Lock()  # held until it has the baton
        self.baton.acquire()
        self.waits = False  # asleep, or for a lock
        self.waited = 0  # times
        self.done = False

    def __repr__(self) -> str:
        return self.name


class Process:
    """Actors that are killed, and paused, together."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.actors: list[Actor] = []
        self.dead = False
        self.paused = False
        self.ended = False  # by itself
        self.pid, self.host = 0, "elsewhere"
        self.machine: Any = None  # that it runs on, if it is a controller's
        self.life: Any = None

    @property
    def lives(self) -> bool:
        return not (self.dead or self.ended)

    def __repr__(self) -> str:
        return self.name


class World:
    """One schedule: its actors, what is to happen, and what has happened."""

    def __init__(self, seed: str, *, restless: float = 0.3) -> None:
        """`restless` is the probability that a point gives the baton to another actor."""
        self.random = Random(seed)
        self.now = BEGINS
        self.log: list[str] | None = None
        self.violation: Violation | None = None
        self.points = 0
        self.restless = restless
        self.tick = 0.0  # with one, more happens at the same time
        self.limit = float("inf")  # of virtual time
        self.on_point: Callable[[Actor, str], None] | None = None  # faults
        self._actors: list[Actor] = []
        self._doomed: list[Actor] = []  # to be unwound before anybody else acts
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._over = threading.Lock()
        self._over.acquire()
        self._ending = False
        self.current: Actor | None = None

    def note(self, text: str) -> None:
        """Log what happens, in a schedule that is to be printed."""
        if self.log is not None:
            who = self.current.name if self.current else "world"
            self.log.append(f"{self.now - BEGINS:10.3f} {who:>14}  {text}")

    def at(self, seconds: float, do: Callable[[], None]) -> None:
        """Have `do` called in so many seconds, or at the next tick. It must not wait."""
        when = self.now + seconds
        if self.tick:
            when = math.ceil(when / self.tick) * self.tick
        heapq.heappush(self._events, (when, next(self._order), do))

    def spawn(self, process: Process, name: str, work: Callable[[], None]) -> Actor:
        """Let a new actor of `process` do `work`, as soon as its turn comes."""
        actor = Actor(name, process, work)
        process.actors.append(actor)
        self._actors.append(actor)
        thread = threading.Thread(target=self._play, args=(actor,), name=name, daemon=True)
        thread.start()
        return actor

    def run(self) -> None:
        """Let the actors act until all have ended, or there is a violation."""
        first = self._choose()
        if first is not None:
            self.current = first
            first.baton.release()
            if not self._over.acquire(timeout=REAL_SECONDS):
                raise RuntimeError(f"the schedule hangs in {self.current}")

    def point(self, what: str) -> None:
        """A point at which the current actor may lose the baton, or its life."""
        me = self.current
        if me is None:
            return
        process = me.process
        if process.dead:
            raise Killed
        self.points += 1
        self.now += POINT_SECONDS
        self._fire()
        if self.on_point is not None:
            self.on_point(me, what)
        if process.dead:
            raise Killed
        if process.paused or me.waits or self._doomed or self.random.random() < self.restless:
            self._give(me)

    def slow(self, actor: Actor, seconds: float) -> None:
        """Have what `actor` does now take so long."""
        actor.waits = True
        actor.waited += 1
        ticket = actor.waited
        self.at(seconds, lambda: self.wake(actor) if actor.waited == ticket else None)

    def wait(self, seconds: float | None = None) -> None:
        """Have the current actor wait until somebody wakes it, for so long at most."""
        me = self.current
        assert me is not None
        if me.process.dead:
            raise Killed
        me.waits = True
        me.waited += 1
        if seconds is not None:
            ticket = me.waited
            self.at(seconds, lambda: self.wake(me) if me.waited == ticket else None)
        self._give(me)

    def wake(self, actor: Actor) -> None:
        """End the wait of `actor`."""
        actor.waits = False

    def kill(self, process: Process) -> None:
        """Kill `process`, as SIGKILL does. If it is the caller's, the next point raises Killed."""
        process.dead = True
        process.paused = False
        for actor in process.actors:
            actor.waits = False
            if not actor.done:
                self._doomed.append(actor)

    def pause(self, process: Process, seconds: float) -> None:
        """Have none of its actors act for so long, as SIGSTOP and SIGCONT do."""
        process.paused = True

        def go_on() -> None:
            process.paused = False

        self.at(seconds, go_on)

    def fail(self, violation: Violation) -> None:
        """Note the first violation; the schedule ends."""
        if self.violation is None:
            self.violation = violation
        self.stop()

    def stop(self) -> None:
        """End the schedule: all actors are killed."""
        self._ending = True
        for actor in self._actors:
            if not actor.process.dead:
                self.kill(actor.process)

    def _play(self, actor: Actor) -> None:
        actor.baton.acquire()
        try:
            if not actor.process.dead:
                actor.work()
        except Killed:
            pass
        except Violation as violation:
            self.fail(violation)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it must not happen
            if not actor.process.dead:
                text = "".join(traceback.format_exception(error))
                self.fail(Violation(f"raised {type(error).__name__}", text))
        actor.done = True
        self._actors.remove(actor)
        following = self._choose()
        self.current = following
        if following is None:
            self._over.release()
        else:
            following.baton.release()

    def _give(self, me: Actor) -> None:
        following = self._choose()
        if following is not me:
            assert following is not None
            self.current = following
            following.baton.release()
            me.baton.acquire()
        if me.process.dead:
            raise Killed

    def _choose(self) -> Actor | None:
        """Who acts next; None if there is nobody left."""
        while True:
            while self._doomed:
                doomed = self._doomed[-1]
                if not doomed.done:
                    return doomed
                self._doomed.pop()
            ready = [a for a in self._actors if not (a.waits or a.process.paused)]
            if ready:
                return ready[0] if len(ready) == 1 else self.random.choice(ready)
            if not self._actors and (self._ending or not self._events):
                return None
            if not self._events or self._events[0][0] > self.limit:
                kind = "stuck" if self._events else "deadlock"
                waiting = ", ".join(map(str, self._actors))
                self.fail(Violation(kind, f"after {self.now - BEGINS:.0f} s wait: {waiting}"))
                if not self._actors:
                    return None
                continue
            self.now = max(self.now, self._events[0][0])
            self._fire()

    def _fire(self) -> None:
        while self._events and self._events[0][0] <= self.now and not self._ending:
            _, _, do = heapq.heappop(self._events)
            try:
                do()
            except Violation as violation:
                self.fail(violation)
            except Exception as error:  # noqa: BLE001 - it must not happen in whoever acts now
                text = "".join(traceback.format_exception(error))
                self.fail(Violation(f"raised {type(error).__name__}", text))


class Lock:
    """A lock, re-entrant, of one process. Taking it is a point."""

    def __init__(self, world: World, name: str) -> None:
        self._world, self._name = world, name
        self._owner: Actor | None = None
        self._depth = 0
        self._waiting: list[Actor] = []

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        world, me = self._world, self._world.current
        if self._owner is not me or me is None:
            if me is not None and not me.process.dead:
                world.point(self._name)
            while self._owner is not None and me is not None and not self._owner.process.dead:
                self._waiting.append(me)
                world.wait()
            self._owner = me
        self._depth += 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
            for actor in self._waiting:
                self._world.wake(actor)
            self._waiting.clear()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()
