"""Raw data of a row's processes: trials with time stamps and joules, power samples."""

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

# Larger than any quantity of a device, and exact as a float.
MOST = 10**15
Count = Annotated[int, Meta(ge=0, le=MOST)]
Number = Annotated[float, Meta(ge=-float(MOST), le=float(MOST))]
NotNegative = Annotated[float, Meta(ge=0, le=float(MOST))]
Above0 = Annotated[float, Meta(ge=1e-9, le=float(MOST))]
Share = Annotated[float, Meta(ge=0, le=1.0000001)]
Interval = tuple[Number, Number]
Stamp = Annotated[int, Meta(ge=0, le=2**62)]


class EnergyWindow(Struct, frozen=True, kw_only=True):
    """Joules per rail over one timed window, and the tokens computed in it.

    `beside` are rails that the total already includes, `coverage` is the share of the window
    that samples cover, `missing` the reason why there is no total.
    """

    window_s: Above0
    tokens: Count = 0
    joules: dict[str, Number]
    beside: dict[str, Number] = {}
    coverage: Share
    edge_error_j: NotNegative = 0.0
    records: Count = 0
    thermal_worst: str | None = None
    missing: str | None = None

    @property
    def total_j(self) -> float | None:
        """Energy of the whole window; uncovered parts count with the mean of the rest."""
        if self.missing is not None or not self.coverage:
            return None
        return sum(self.joules.values()) / self.coverage

    @property
    def power_w(self) -> float | None:
        return None if self.total_j is None else self.total_j / self.window_s

    @property
    def joules_per_token(self) -> float | None:
        """Gross: all energy within the boundary in the window."""
        return self.total_j / self.tokens if self.total_j is not None and self.tokens else None


class Trial(Struct, frozen=True, kw_only=True):
    """One timed repetition; all stamps are of `time.monotonic_ns()`.

    `prefill_ns` has begin and end of every prefill pass, flat; `pass_begin_ns` and `pass_end_ns`
    have the first and last stamp of every generation pass. `token_us` has the microseconds
    between a pass's stamps; later passes of a long trial do not keep them. A stamp of a batch is
    that of a token of every sequence, and `prompt_tokens` are all prompts'. Passes of a server are
    requests, with the numbers of tokens in `pass_tokens` instead of `token_us`. The last three
    fields are of older files.
    """

    repetition: Count = 0
    round: Count = 0
    warmup: bool
    prompt_tokens: Count = 0
    decode_tok_s: NotNegative | None = None
    prefill_tok_s: NotNegative | None = None
    ttft_s: NotNegative | None = None
    prefill_ns: list[Stamp] = []
    pass_begin_ns: list[Stamp] = []
    pass_end_ns: list[Stamp] = []
    token_us: list[list[Count]] = []
    pass_tokens: list[Count] | UnsetType = UNSET
    energy_j: dict[str, Number] | None = None
    energy_coverage: Share | None = None
    decode_energy: EnergyWindow | None = None
    prefill_energy: EnergyWindow | None = None
    token_ns: list[Stamp] | UnsetType = UNSET
    prefill_begin_ns: Stamp | UnsetType = UNSET
    prefill_end_ns: Stamp | UnsetType = UNSET

    @property
    def request_tokens(self) -> list[int]:
        """Generated tokens of each request to a server; empty for other trials."""
        return [] if self.pass_tokens is UNSET else self.pass_tokens

    @property
    def prefills(self) -> list[tuple[int, int]]:
        begin_ns, end_ns = self.prefill_begin_ns, self.prefill_end_ns
        if begin_ns is not UNSET and end_ns is not UNSET:
            return [(begin_ns, end_ns)] if self.ttft_s is not None else []
        return list(zip(self.prefill_ns[::2], self.prefill_ns[1::2], strict=False))

    @property
    def passes(self) -> list[tuple[int, int]]:
        if self.token_ns is not UNSET:
            return [(self.token_ns[0], self.token_ns[-1])] if self.token_ns else []
        return list(zip(self.pass_begin_ns, self.pass_end_ns, strict=False))


class ThermalChange(Struct, frozen=True):
    """The machine's thermal level from `begin_ns` on."""

    begin_ns: Stamp
    level: str


class PowerSeries(Struct, frozen=True):
    """A process's power samples on the trials' clock; `thermal` has the changes of level."""

    begin_ns: list[Stamp]
    end_ns: list[Stamp]
    milliwatts: dict[str, list[Count]]
    thermal: list[ThermalChange] = []


class Process(Struct, frozen=True, kw_only=True):
    """One process of a row: the time it waited, and the machine's state before and after it."""

    round: Count = 0
    load_s: NotNegative | None = None
    peak_memory_bytes: Count | None = None
    peak_device_bytes: Count | None = None
    failed: bool = False
    waited_s: NotNegative = 0.0
    unsettled: str | None = None
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    power_series: PowerSeries | None = None
