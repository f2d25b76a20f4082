"""Shortest routes in a network of stations, with changes between lines taken into account.

A state of the search is a station *and* the line one arrives on, because what a station costs
depends on whether one stays on the train. The usual search over stations alone would be wrong.
"""
from __future__ import annotations

import heapq
import math
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Dict, Iterable, List, NamedTuple, Optional, Set, Tuple

EARTH_RADIUS_KM = 6371.0


class Position(NamedTuple):
    latitude: float
    longitude: float

    def distance_km(self, other: 'Position') -> float:
        phi1, phi2 = math.radians(self.latitude), math.radians(other.latitude)
        d_phi = phi2 - phi1
        d_lambda = math.radians(other.longitude - self.longitude)
        a = math.sin(d_phi / 2) ** 2 + math.cos(phi1) * math.cos(phi2) * math.sin(d_lambda / 2) ** 2
        return 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(a))


@dataclass(frozen=True)
class Hop:
    start: str
    end: str
    line: str
    minutes: float


@dataclass
class Route:
    hops: List[Hop] = field(default_factory=list)
    minutes: float = 0.0

    @property
    def changes(self) -> int:
        return sum(a.line != b.line for a, b in zip(self.hops, self.hops[1:]))

    @property
    def stations(self) -> List[str]:
        if not self.hops:
            return []
        return [self.hops[0].start] + [hop.end for hop in self.hops]

    def describe(self) -> str:
        """One line of text for every train one sits in."""
        legs: List[List[Hop]] = []
        for hop in self.hops:
            if legs and legs[-1][-1].line == hop.line:
                legs[-1].append(hop)
            else:
                legs.append([hop])
        lines = []
        for leg in legs:
            stops = 'stop' if len(leg) == 1 else 'stops'
            lines.append(f'{leg[0].line}: {leg[0].start} - {leg[-1].end}, {len(leg)} {stops}')
        return '\n'.join(lines)


class Network:
    def __init__(self, change_minutes: float = 4.0, top_speed_kmh: float = 80.0) -> None:
        self.change_minutes = change_minutes
        self.top_speed_kmh = top_speed_kmh
        self._hops: Dict[str, List[Hop]] = defaultdict(list)
        self._positions: Dict[str, Position] = {}
        self._closed: Set[str] = set()

    def place(self, station: str, latitude: float, longitude: float) -> None:
        self._positions[station] = Position(latitude, longitude)

    def connect(self, start: str, end: str, line: str, minutes: float, both_ways: bool = True) -> None:
        if minutes <= 0:
            raise ValueError(f'{start} to {end} must take some time, not {minutes} minutes')
        self._hops[start].append(Hop(start, end, line, minutes))
        self._hops.setdefault(end, [])
        if both_ways:
            self._hops[end].append(Hop(end, start, line, minutes))

    def add_line(self, line: str, stops: Iterable[Tuple[str, float]]) -> None:
        """Stops with the minutes from the one before; the first one's minutes are ignored."""
        previous = None
        for station, minutes in stops:
            if previous is not None:
                self.connect(previous, station, line, minutes)
            previous = station

    def close(self, station: str) -> None:
        """Trains still pass a closed station, but nobody can change or get off there."""
        self._closed.add(station)

    def reopen(self, station: str) -> None:
        self._closed.discard(station)

    def _at_least(self, station: str, goal: str) -> float:
        """A lower bound on the minutes still to go: as the crow flies, at top speed."""
        here, there = self._positions.get(station), self._positions.get(goal)
        if here is None or there is None:
            return 0.0
        return here.distance_km(there) / self.top_speed_kmh * 60

    def route(self, start: str, goal: str) -> Optional[Route]:
        """The quickest route, or None if there is none. Fewer changes win a tie."""
        for station in (start, goal):
            if station not in self._hops:
                raise KeyError(f'there is no station {station}')
        if start == goal:
            return Route()
        if goal in self._closed:
            return None

        best: Dict[Tuple[str, Optional[str]], float] = {(start, None): 0.0}
        came_by: Dict[Tuple[str, Optional[str]], Tuple[Tuple[str, Optional[str]], Hop]] = {}
        done: Set[Tuple[str, Optional[str]]] = set()
        queue = [(self._at_least(start, goal), 0, 0, start, None)]
        counter = 0
        while queue:
            _, changes, _, station, line = heapq.heappop(queue)
            state = (station, line)
            if state in done:
                continue
            done.add(state)
            if station == goal:
                return self._unwind(state, came_by, best[state])
            for hop in self._hops[station]:
                changing = line is not None and hop.line != line
                if changing and station in self._closed:
                    continue
                cost = best[state] + hop.minutes + (self.change_minutes if changing else 0.0)
                following = (hop.end, hop.line)
                if cost < best.get(following, math.inf):
                    best[following] = cost
                    came_by[following] = (state, hop)
                    counter += 1
                    estimate = cost + self._at_least(hop.end, goal)
                    heapq.heappush(queue, (estimate, changes + changing, counter, hop.end, hop.line))
        return None

    @staticmethod
    def _unwind(state, came_by, minutes) -> Route:
        hops = []
        while state in came_by:
            state, hop = came_by[state]
            hops.append(hop)
        return Route(hops[::-1], minutes)

    def reachable(self, start: str, most_changes: int) -> Dict[str, int]:
        """Stations that can be reached, with the changes it takes, however long the ride."""
        fewest: Dict[Tuple[str, Optional[str]], int] = {(start, None): 0}
        queue = deque([(start, None)])
        while queue:
            station, line = queue.popleft()
            so_far = fewest[station, line]
            for hop in self._hops[station]:
                changing = line is not None and hop.line != line
                if changing and (station in self._closed or so_far == most_changes):
                    continue
                following = (hop.end, hop.line)
                if so_far + changing < fewest.get(following, most_changes + 1):
                    fewest[following] = so_far + changing
                    # Staying on costs nothing, so those states go first.
                    (queue.append if changing else queue.appendleft)(following)
        result: Dict[str, int] = {}
        for (station, _), changes in fewest.items():
            if station not in self._closed:
                result[station] = min(changes, result.get(station, changes))
        return result

    def components(self) -> List[Set[str]]:
        """Parts of the network without a connection between them, largest first."""
        neighbours: Dict[str, Set[str]] = {station: set() for station in self._hops}
        for hops in self._hops.values():
            for hop in hops:
                neighbours[hop.start].add(hop.end)
                neighbours[hop.end].add(hop.start)
        parts, seen = [], set()
        for station in neighbours:
            if station in seen:
                continue
            part, todo = set(), [station]
            while todo:
                at = todo.pop()
                if at not in part:
                    part.add(at)
                    todo.extend(neighbours[at] - part)
            seen |= part
            parts.append(part)
        return sorted(parts, key=len, reverse=True)


if __name__ == '__main__':
    city = Network(change_minutes=3)
    city.add_line('U1', [('Harbour', 0), ('Market', 2), ('Museum', 2), ('Stadium', 5)])
    city.add_line('U2', [('Airport', 0), ('Museum', 9), ('University', 3)])
    city.add_line('Tram 7', [('Market', 0), ('Garden', 3), ('University', 3)])

    found = city.route('Harbour', 'University')
    assert found is not None and found.minutes == 10
    print(found.describe())

    city.close('Museum')
    assert city.route('Harbour', 'Airport').stations == [
        'Harbour', 'Market', 'Garden', 'University', 'Museum', 'Airport']
    assert city.reachable('Harbour', 0) == {'Harbour': 0, 'Market': 0, 'Stadium': 0}
    assert len(city.components()) == 1
