"""What a profile must look like (profiles/schema.json), and profiles made for tests.

The figures are invented, but hang together: rates follow from token times, energy from power,
power from samples. All of it is seeded.
"""

import json
import random
import statistics
from pathlib import Path

from jsonschema import Draft202012Validator

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "profiles" / "schema.json").read_text(encoding="utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA)

NS = 10**9
PARAMETERS = 2795443200
# Artefact, engine, framework, precision, bits per weight, bytes of weights per token, watts.
TABLE11 = (
    ("mlx-fp16", "mlx", "MLX", "FP16", 16.0, 5333335040, 21.0),
    ("mlx-int4", "mlx", "MLX", "INT4", 4.5, 1500478880, 24.0),
    ("gguf-f16", "llama.cpp", "GGUF", "FP16", 16.0, 5334000640, 20.0),
    ("gguf-q5_k_m", "llama.cpp", "GGUF", "Q5_K_M", 5.67, 1903067360, 27.0),
    ("gguf-q6_k", "llama.cpp", "GGUF", "Q6_K", 6.56, 2188558900, 26.0),
)
KV_BYTES_PER_POSITION = 327680
LEVELS = ("nominal", "moderate")
NULL_WHEN_FAILED = (
    *("decode_tok_s", "prefill_tok_s", "ttft_s", "power_w", "joules_per_token"),
    *("joules_per_token_net", "bandwidth_fraction", "token_latency_ms", "peak_memory_bytes"),
)
# What a stranger may write where a name belongs.
HOSTILE = (
    "</text></svg><script>alert(1)</script>",
    "$\\frac{1}{0}$ a_b^c {x",
    '& &amp; "quoted" \'too\' url(#p) id="x"',
    "line\nbreak\ttab\x00nul\x1b[31mred\u202eback\u2028",
    "名前 \U0001f600 " + "very-long-" * 40,
)


def faults(profile):
    """Where a profile breaks the schema, a line each."""
    return [f"{list(e.absolute_path)}: {e.message[:200]}" for e in VALIDATOR.iter_errors(profile)]


def mac_profile(depths=(0, 4096), power=True, quality=False, model="stable-code-3b", seed=1):
    """Table 11's rows on an Apple M2 Max."""
    device = {
        "name": "Apple M2 Max",
        "architecture": "arm64",
        "physical_cores": 12,
        "logical_cores": 12,
        "memory_bytes": 64 << 30,
        "os": "macOS 15.5 (24F74)",
        "hw_model": "Mac14,6",
        "cores_by_level": {"Performance": 8, "Efficiency": 4},
        "gpu_name": "Apple M2 Max",
        "gpu_cores": 38,
        "memory_bandwidth": {"gb_s": 409.6, "source": "table: M2 Max"},
        "gpu_memory_bandwidth": None,
        "cache_bytes": 100_000_000,
        "remarks": [],
    }
    rows = [
        row(kind, depth, 409.6, power=power, quality=quality, seed=seed)
        for depth in depths
        for kind in TABLE11
    ]
    return profile(device, rows, model=model)


def linux_profile(seed=2):
    """The same rows on a processor without any meter."""
    device = {
        "name": "AMD Ryzen 7 7840U",
        "architecture": "x86_64",
        "physical_cores": 8,
        "logical_cores": 16,
        "memory_bytes": 32 << 30,
        "os": "Linux 6.8.0",
        "memory_bandwidth": {"gb_s": 71.0, "source": "measured read, best of 3 passes"},
        "cache_bytes": 16 << 20,
        "remarks": [],
    }
    return profile(device, [row(kind, 0, 71.0, power=False, seed=seed) for kind in TABLE11])


def failed_profile():
    """Every row died."""
    made = mac_profile(depths=(0,))
    made["rows"] = [
        failed_row(r, f"the worker was killed (signal 9) in round {n % 3 + 1} of 3: out of memory")
        for n, r in enumerate(made["rows"])
    ]
    return made


def many_rows_profile(count=20):
    """Twenty artefacts with long names, every seventh of them failed."""
    made = mac_profile(depths=(0,))
    rows = []
    for n in range(count):
        kind = list(TABLE11[n % len(TABLE11)])
        kind[0] = f"{kind[0]}-recipe-{n:02d}-with-importance-matrix"
        kind[1] = ("mlx", "mlx-lm", "llama.cpp", "llama-bench", "unheard-of")[n % 5]
        rows.append(row(kind, 0, 409.6, seed=n))
    made["rows"] = [failed_row(r, "no memory") if n % 7 == 6 else r for n, r in enumerate(rows)]
    return made


def hostile_profile():
    """Strings that try to be markup, mathematics, ids or an escape, wherever text may stand."""
    made = mac_profile(depths=(0,), quality=True)
    for n, (r, text) in enumerate(zip(made["rows"], HOSTILE, strict=True)):
        r.update(artefact=text, framework=text, precision=text)
        if n % 2:
            r["engine"] = text
        r["reasons"] = [text]
        r["power"].update(source=text, boundary=text)
    made["rows"][0] = failed_row(made["rows"][0], HOSTILE[0])
    made["model"].update(name=HOSTILE[1], source=HOSTILE[0])
    made["device"].update(name=HOSTILE[2], os=HOSTILE[3])
    made["software"] = {"edge": HOSTILE[0], "mlx": HOSTILE[4]}
    made["argv"] = list(HOSTILE)
    return made


def profile(device, rows, model="stable-code-3b"):
    """A whole profile around some rows."""
    return {
        "schema": 1,
        "created_utc": "2026-11-20T12:00:00+00:00",
        "argv": ["bench.py", "stabilityai/stable-code-3b", "--suite", "table11"],
        "device": device,
        "software": {"edge": "0.1.0", "mlx": "0.32.4", "llama-cpp-python": "0.3.36"},
        "model": {
            "name": model,
            "source": f"stabilityai/{model}",
            "revision": "0123456789abcdef",
            "parameters": PARAMETERS,
            "synthetic": False,
        },
        "method": {
            "decode_rate": "sum of (N - 1) / sum of (t_N - t_1) over a trial's passes",
            "excluded": ["load", "tokenisation", "sampling", "detokenisation"],
            "warmups": 1,
            "repetitions": 6,
            "processes_per_row": 3,
            "trials_per_process": 2,
            "min_window_s": 10.0,
            "seed": 0,
            "clock": "monotonic_ns",
            "finished": True,
        },
        "rows": rows,
    }


def row(kind, depth, bandwidth_gb_s, power=True, quality=False, seed=0):
    """One row: three processes of a warm-up and two trials each."""
    artefact, engine, framework, precision, bits, weight_bytes, watts = kind
    rng = random.Random(f"{artefact} {depth} {seed}")
    bytes_per_token = weight_bytes + (depth + 64) * KV_BYTES_PER_POSITION
    rate = 0.62 * bandwidth_gb_s * 1e9 / bytes_per_token * rng.uniform(0.95, 1.05)
    begins = [(1000 + 60 * n) * NS for n in range(3)]
    trials = [
        trial(rng, begins[n] + (2 + 8 * i) * NS, rate, n, i, watts if power else None)
        for n in range(3)
        for i in range(3)
    ]
    counted = [t for t in trials if not t["warmup"]]
    rates = [t["decode_tok_s"] for t in counted]
    made = {
        "artefact": artefact,
        "engine": engine,
        "framework": framework,
        "precision": precision,
        "workload": {"prompt": 512, "generate": 128, "depth": depth, "joint": False},
        "file_bytes": weight_bytes,
        "bits_per_weight": bits,
        "bytes_per_token": bytes_per_token,
        "decode_tok_s": quantity(rates),
        "prefill_tok_s": quantity([t["prefill_tok_s"] for t in counted]),
        "ttft_s": quantity([t["ttft_s"] for t in counted]),
        **_energy(counted, power),
        "peak_memory_bytes": int(weight_bytes * 1.06 + depth * KV_BYTES_PER_POSITION + 4e8),
        "peak_device_bytes": None,
        "bandwidth_fraction": statistics.median(rates) * bytes_per_token / bandwidth_gb_s / 1e9,
        "quality": quality_at(bits) if quality else None,
        "verdict": "VALID",
        "reasons": [] if quality else ["quality was not measured: add --quality"],
        "load_s": 1.5,
        "engine_facts": None,
        "token_latency_ms": None,
        "power": None,
        "processes": [
            process(n, begins[n], trials[3 * n : 3 * n + 3], watts if power else None)
            for n in range(3)
        ],
        "trials": trials,
    }
    times_ms = [us / 1000 for t in counted for us in t["token_us"][0]]
    cuts = statistics.quantiles(times_ms, n=100)
    made["token_latency_ms"] = {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98]}
    if power:
        made["power"] = {
            "source": "powermetrics",
            "boundary": "CPU, GPU and ANE; leaves out DRAM, display and losses",
            "flags": [],
        }
    else:
        made["reasons"].append("power_w, joules_per_token and their like: there is no meter here")
    return made


def quality_at(bits):
    """Each bit less doubles what is lost; sixteen of them are the reference."""
    lost = 0.0 if bits == 16 else 0.4 * 2**-bits
    return {
        "perplexity": 5.0 * (1 + lost),
        "perplexity_ratio": 1 + lost,
        "kl_mean": lost,
        "kl_p99": 9 * lost,
        "top1_agreement": 1 - lost,
        "tokens": 4096,
        "reference": "mlx-fp16",
        "corpus": "a sample",
    }


def trial(rng, begin_ns, rate, round_number, number, watts):
    """Prefill for 0.7 s, then 128 tokens; the first trial of a process is its warm-up."""
    slowness = rng.gauss(1.0, 0.01) + 0.02 * round_number + (0.15 if number == 0 else 0)
    typical_us = 1e6 / rate * slowness
    token_us = [
        round(typical_us * (rng.gauss(1.0, 0.02) + (0.6 if rng.random() < 0.02 else 0)))
        for _ in range(127)
    ]
    prefill_ns = int(0.7 * NS * slowness)
    first_ns = begin_ns + prefill_ns + 20_000_000
    window_s = sum(token_us) / 1e6
    return {
        "repetition": number,
        "round": round_number,
        "warmup": number == 0,
        "prompt_tokens": 512,
        "decode_tok_s": 127 / window_s,
        "prefill_tok_s": 512 / (prefill_ns / NS),
        "ttft_s": prefill_ns / NS,
        "prefill_ns": [begin_ns, begin_ns + prefill_ns],
        "pass_begin_ns": [first_ns],
        "pass_end_ns": [first_ns + 1000 * sum(token_us)],
        "token_us": [token_us],
        "energy_j": {"CPU": 2 * window_s, "GPU": (watts - 2) * window_s} if watts else None,
        "energy_coverage": 1.0 if watts else None,
        "decode_energy": decode_energy(window_s, watts * rng.uniform(0.98, 1.02))
        if watts
        else None,
        "prefill_energy": None,
    }


def decode_energy(window_s, watts):
    """Of one trial: two watts of the CPU, the rest of the GPU."""
    return {
        "window_s": window_s,
        "tokens": 127,
        "joules": {"CPU": 2 * window_s, "GPU": (watts - 2) * window_s},
        "beside": {},
        "coverage": 1.0,
        "edge_error_j": 0.1,
        "records": 30,
        "thermal_worst": "nominal",
        "missing": None,
    }


def process(round_number, begin_ns, trials, watts):
    """What is kept of one process; its power in whole milliwatts, ten samples a second."""
    made = {
        "round": round_number,
        "load_s": 1.5,
        "peak_memory_bytes": None,
        "peak_device_bytes": None,
        "failed": False,
        "waited_s": 3.0,
        "unsettled": None,
        "before": {"thermal": "nominal"},
        "after": {"thermal": "nominal"},
    }
    if watts is not None:
        made["power_series"] = power_series(begin_ns, trials, watts, round_number)
    return made


def power_series(begin_ns, trials, watts, round_number, samples=260):
    """Idle, but for a burst while a prompt is read and a plateau while tokens come."""
    rng = random.Random(round_number)
    begins = [begin_ns + n * NS // 10 for n in range(samples)]
    cpu, gpu = [], []
    for n in range(samples):
        at_ns = begins[n] + NS // 20
        burst = any(t["prefill_ns"][0] <= at_ns <= t["prefill_ns"][1] for t in trials)
        busy = any(t["prefill_ns"][0] <= at_ns <= t["pass_end_ns"][0] for t in trials)
        cpu.append(round(1000 * (2.0 if busy else 0.4) * rng.uniform(0.9, 1.1)))
        gpu.append(round(1000 * (1.6 if burst else 1 if busy else 0.02) * (watts - 2)))
    changes = [{"begin_ns": begins[0], "level": LEVELS[0]}]
    if round_number == 0:
        changes.append({"begin_ns": begins[200], "level": LEVELS[1]})
    return {
        "begin_ns": begins,
        "end_ns": [b + NS // 10 for b in begins],
        "milliwatts": {"CPU": cpu, "GPU": gpu, "ANE": [0] * samples},
        "thermal": changes,
    }


def failed_row(made, reason):
    """What a row is without any figure."""
    null = dict.fromkeys(NULL_WHEN_FAILED)
    return {**made, **null, "verdict": "INVALID", "reasons": [reason], "trials": []}


def quantity(values):
    """As `edge.bench.row` has it; the interval is a rough one."""
    mean, sd = statistics.mean(values), statistics.stdev(values)
    half = 4.3 * sd / len(values) ** 0.5
    return {
        "median": statistics.median(values),
        "mean": mean,
        "sd": sd,
        "n": len(values),
        "ci95": [mean - half, mean + half],
    }


def _energy(trials, power):
    names = ("power_w", "joules_per_token", "joules_per_token_net")
    if not power:
        return dict.fromkeys(names)
    windows = [t["decode_energy"] for t in trials]
    joules = [sum(w["joules"].values()) for w in windows]
    powers = [j / w["window_s"] for j, w in zip(joules, windows, strict=True)]
    gross = [j / w["tokens"] for j, w in zip(joules, windows, strict=True)]
    net = [(j - 1.2 * w["window_s"]) / w["tokens"] for j, w in zip(joules, windows, strict=True)]
    return {name: quantity(v) for name, v in zip(names, (powers, gross, net), strict=True)}
