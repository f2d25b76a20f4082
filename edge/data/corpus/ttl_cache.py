"""A small in-process cache: least recently used entries go first, old ones go anyway.

The cache is meant for values that are expensive to look up and harmless when a few seconds
stale: exchange rates, feature flags, rendered fragments. It is safe to use from several threads.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Callable, Generic, Hashable, Iterator, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_ABSENT = object()


@dataclass
class CacheStats:
    """Counters since the cache was made or since the last call of `reset_stats`."""

    hits: int = 0
    misses: int = 0
    expired: int = 0
    evicted: int = 0

    @property
    def hit_rate(self) -> float:
        looked_up = self.hits + self.misses
        return self.hits / looked_up if looked_up else 0.0


@dataclass
class _Entry(Generic[V]):
    value: V
    expires_at: float
    weight: int


class TtlCache(Generic[K, V]):
    """Maps keys to values that live for a limited time.

    `capacity` is a total weight, not a number of entries. Without a `weigh` function every entry
    weighs one, so the two are the same thing.
    """

    def __init__(
        self,
        capacity: int,
        ttl_seconds: float,
        *,
        weigh: Callable[[V], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if capacity < 1:
            raise ValueError("capacity must be at least 1")
        if ttl_seconds <= 0:
            raise ValueError("ttl_seconds must be positive")
        self._capacity = capacity
        self._ttl = ttl_seconds
        self._weigh = weigh or (lambda value: 1)
        self._clock = clock
        self._entries: OrderedDict[K, _Entry[V]] = OrderedDict()
        self._weight = 0
        self._lock = threading.RLock()
        self._building: dict[K, threading.Event] = {}
        self.stats = CacheStats()

    def __len__(self) -> int:
        with self._lock:
            return len(self._entries)

    def __contains__(self, key: K) -> bool:
        with self._lock:
            entry = self._entries.get(key)
            return entry is not None and entry.expires_at > self._clock()

    def keys(self) -> Iterator[K]:
        """The live keys, coldest first, as they were when this was called."""
        now = self._clock()
        with self._lock:
            live = [key for key, entry in self._entries.items() if entry.expires_at > now]
        return iter(live)

    def get(self, key: K, default: V | None = None) -> V | None:
        with self._lock:
            found = self._find(key)
            return default if found is _ABSENT else found

    def put(self, key: K, value: V, *, ttl_seconds: float | None = None) -> bool:
        """Stores a value. Returns False if it is too heavy to be cached at all."""
        weight = self._weigh(value)
        with self._lock:
            self._drop(key)
            if weight > self._capacity:
                return False
            lifetime = self._ttl if ttl_seconds is None else ttl_seconds
            self._entries[key] = _Entry(value, self._clock() + lifetime, weight)
            self._weight += weight
            self._make_room()
            return True

    def discard(self, key: K) -> None:
        with self._lock:
            self._drop(key)

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._weight = 0

    def get_or_build(self, key: K, build: Callable[[K], V]) -> V:
        """Returns the cached value, or builds it exactly once even if many threads ask for it.

        Threads that lose the race wait for the winner. If the winner fails, its exception is its
        own; one of the waiting threads tries again.
        """
        while True:
            with self._lock:
                found = self._find(key)
                if found is not _ABSENT:
                    return found
                pending = self._building.get(key)
                if pending is None:
                    mine = self._building[key] = threading.Event()
                    break
            pending.wait()

        try:
            value = build(key)
            self.put(key, value)
            return value
        finally:
            with self._lock:
                del self._building[key]
            mine.set()

    def purge(self) -> int:
        """Removes everything that has expired and returns how many entries that were."""
        now = self._clock()
        with self._lock:
            stale = [key for key, entry in self._entries.items() if entry.expires_at <= now]
            for key in stale:
                self._drop(key)
            self.stats.expired += len(stale)
        return len(stale)

    def reset_stats(self) -> CacheStats:
        with self._lock:
            old, self.stats = self.stats, CacheStats()
        return old

    # The methods below expect the lock to be held.

    def _find(self, key):
        entry = self._entries.get(key)
        if entry is None:
            self.stats.misses += 1
            return _ABSENT
        if entry.expires_at <= self._clock():
            self._drop(key)
            self.stats.expired += 1
            self.stats.misses += 1
            return _ABSENT
        self._entries.move_to_end(key)
        self.stats.hits += 1
        return entry.value

    def _drop(self, key: K) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._weight -= entry.weight

    def _make_room(self) -> None:
        while self._weight > self._capacity:
            _, coldest = self._entries.popitem(last=False)
            self._weight -= coldest.weight
            self.stats.evicted += 1


def check_eviction_order() -> None:
    cache: TtlCache[str, int] = TtlCache(2, ttl_seconds=60)
    cache.put("one", 1)
    cache.put("two", 2)
    assert cache.get("one") == 1  # now "two" is the coldest
    cache.put("three", 3)
    assert list(cache.keys()) == ["one", "three"]
    assert cache.stats.evicted == 1


def check_expiry() -> None:
    now = [100.0]
    cache: TtlCache[str, str] = TtlCache(10, ttl_seconds=5, clock=lambda: now[0])
    cache.put("short", "a", ttl_seconds=1)
    cache.put("long", "b")
    now[0] += 2
    assert "short" not in cache and "long" in cache
    assert cache.purge() == 1
    assert len(cache) == 1


def check_weights() -> None:
    cache: TtlCache[str, bytes] = TtlCache(10, ttl_seconds=60, weigh=len)
    assert cache.put("a", b"12345")
    assert cache.put("b", b"123456")
    assert cache.get("a") is None
    assert not cache.put("c", b"x" * 11)
    assert cache.get("b") == b"123456"


if __name__ == "__main__":
    for check in (check_eviction_order, check_expiry, check_weights):
        check()
        print("ok", check.__name__)
