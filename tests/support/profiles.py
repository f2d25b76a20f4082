"""Seeded, consistent profiles as plain JSON data."""

import json
import random
import statistics
from itertools import product
from pathlib import Path

from edge.profile.profile import Profile, decode

ROOT = Path(__file__).resolve().parents[2]
NS = 10**9
PROMPT = 512
CHIPS = {  # GPU cores, GB/s, GB
    "Apple M2": (10, 102.4, 16),
    "Apple M2 Max": (38, 409.6, 64),
    "Apple M4": (10, 120.0, 24),
    "AMD Ryzen 7 7840U": (None, 71.0, 32),
}
# Artefact, engine, framework, precision, bits per weight, bytes of weights per token, watts.
TABLE11 = (
    ("mlx-fp16", "mlx", "MLX", "FP16", 16.0, 5333335040, 21.0),
    ("mlx-int4", "mlx", "MLX", "INT4", 4.5, 1500478880, 24.0),
    ("gguf-f16", "llama.cpp", "GGUF", "FP16", 16.0, 5334000640, 20.0),
    ("gguf-q5_k_m", "llama.cpp", "GGUF", "Q5_K_M", 5.67, 1903067360, 27.0),
    ("gguf-q6_k", "llama.cpp", "GGUF", "Q6_K", 6.56, 2188558900, 26.0),
)
KV_BYTES_PER_POSITION = 327680
NULL_WHEN_FAILED = (
    *("decode_tok_s", "prefill_tok_s", "ttft_s", "power_w", "joules_per_token"),
    *("joules_per_token_net", "bandwidth_fraction", "token_latency_ms", "peak_memory_bytes"),
)
# Markup, mathematics, ids, formulas, escapes, long lines.
HOSTILE = (
    "</text></svg></script><script>window.attacked = 1</script>",
    "$\\frac{1}{0}$ a_b^c {x {{ 7 * 7 }} {% raw %}",
    '& &amp; "quoted" \' onmouseover=\'window.attacked = 2\' url(#p) id="x"',
    '"><img src=x onerror="window.attacked = 3"> <!-- <style></title></textarea></pre>',
    "line\nbreak\ttab\x00nul\x1b[31mred\x1b]0;title\x07\u202eback\u2066\u2028\u200f",
    '=HYPERLINK("http://127.0.0.1:9/x") | ![x](http://127.0.0.1:9/y) `code` \n# head',
    "名前 \U0001f600 " + "very-long-" * 400,
)
GATE = {
    **{"prompt_tokens": 512, "depth": 64, "positions": 11, "worst_position": 575, "bound": 0.05},
    **{"worst_error": 0.0062, "reference_error": 0.017, "reference_bound": 0.05},
}


def typed(profile):
    """The struct of a profile's JSON data."""
    return decode(json.dumps(profile).encode(), Path("p.json"), Profile)


def make_profile(
    chip="Apple M2 Max",
    artefacts=tuple(kind[0] for kind in TABLE11),
    depths=(0,),
    batches=(1,),
    created="2026-11-20T12:00:00+00:00",
    model="stable-code-3b",
    hw_model="Mac14,6",
    **how,
):
    """Rows of Table 11 on a Mac; `how` is that of `row`."""
    cores, gb_s, memory_gb = CHIPS[chip]
    device = {
        **{"name": chip, "architecture": "arm64", "physical_cores": 12, "logical_cores": 12},
        **{"memory_bytes": memory_gb << 30, "os": "macOS 15.5 (24F74)", "hw_model": hw_model},
        "cores_by_level": {"Performance": 8, "Efficiency": 4},
        **{"gpu_name": chip, "gpu_cores": cores, "cache_bytes": 100_000_000, "remarks": []},
        "memory_bandwidth": {"gb_s": gb_s, "source": f"table: {chip}"},
        "gpu_memory_bandwidth": None,
    }
    kinds = [kind for kind in TABLE11 if kind[0] in artefacts]
    shapes = product(depths, batches, kinds)
    rows = [row(kind, depth, gb_s, batch=batch, **how) for depth, batch, kind in shapes]
    return {
        **{"schema": 1, "created_utc": created, "device": device, "rows": rows},
        "argv": ["bench.py", "stabilityai/stable-code-3b", "--suite", "table11"],
        "software": {"edge": "0.1.0", "mlx": "0.32.4", "llama-cpp-python": "0.3.36"},
        "model": {
            **{"name": model, "source": f"stabilityai/{model}", "revision": "0123456789abcdef"},
            **{"parameters": 2795443200, "synthetic": False},
        },
        "method": {
            "decode_rate": "sum of (N - 1) / sum of (t_N - t_1) over a trial's passes",
            "excluded": ["load", "tokenisation", "sampling", "detokenisation"],
            **{"warmups": 1, "repetitions": 6, "finished": True},
        },
    }


def linux_profile():
    """The rows of Table 11 on a CPU without a meter."""
    made = make_profile("AMD Ryzen 7 7840U", power=False, hw_model=None)
    made["device"].update(os="Linux 6.8.0", architecture="x86_64", cores_by_level={}, gpu_name=None)
    made["device"]["memory_bandwidth"]["source"] = "measured read, best of 3 passes"
    return made


def failed_profile():
    made = make_profile()
    reason = "the worker was killed (signal 9) in round {} of 3: out of memory"
    made["rows"] = [failed_row(r, reason.format(n % 3 + 1)) for n, r in enumerate(made["rows"])]
    return made


def hostile_profile(made=None, first=0):
    """A profile with every free text replaced by one of HOSTILE."""
    made = make_profile(quality=True) if made is None else made
    fixed = {"created_utc", "verdict"}
    count = [first]

    def spoilt(value, key=""):
        if isinstance(value, str) and key not in fixed:
            count[0] += 1
            prefix = "given " if key == "source" and value.startswith(("table", "measured")) else ""
            return prefix + HOSTILE[count[0] % len(HOSTILE)]
        if isinstance(value, list):
            return [spoilt(item) for item in value]
        if isinstance(value, dict):
            return {k: spoilt(item, k) for k, item in value.items()}
        return value

    made = spoilt(made)
    made["software"].update({text: text for text in HOSTILE})
    return made


def row(
    kind,
    depth,
    gb_s,
    power=True,
    quality=False,
    seed=1,
    rate=1.0,
    generate=128,
    processes=3,
    samples=260,
    batch=1,
):
    """One row: processes of a warm-up and two trials each, at 62 % of the roofline times `rate`."""
    artefact, engine, framework, precision, bits, weight_bytes, watts = kind
    rng = random.Random(f"{artefact} {depth} {seed}")
    bytes_per_token = weight_bytes // batch + (depth + 64) * KV_BYTES_PER_POSITION
    speed = 0.62 * rate * gb_s * 1e9 / bytes_per_token * rng.uniform(0.95, 1.05)
    watts = watts if power else None
    begins = [(1000 + 60 * n) * NS for n in range(processes)]
    rounds = [
        [
            trial(rng, begin + (2 + 8 * i) * NS, speed, n, i, watts, generate, batch)
            for i in range(3)
        ]
        for n, begin in enumerate(begins)
    ]
    trials = [one for found in rounds for one in found]
    counted = [one for one in trials if not one["warmup"]]
    times_ms = [us / 1000 for one in counted for us in one["token_us"][0]]
    cuts = statistics.quantiles(times_ms, n=100, method="inclusive")
    reasons = [] if quality else ["quality was not measured: add --quality"]
    if not power:
        reasons.append("power_w, joules_per_token and their like: there is no meter here")
    rates = [one["decode_tok_s"] for one in counted]
    has_series = watts and samples
    power_by_process = [
        power_series(begin, found, watts, n, samples) if has_series else None
        for n, (begin, found) in enumerate(zip(begins, rounds, strict=True))
    ]
    boundary = "CPU, GPU and ANE; leaves out DRAM, display and losses"
    return {
        **{"artefact": artefact, "engine": engine, "framework": framework, "precision": precision},
        "workload": {
            **{"prompt": PROMPT, "generate": generate, "depth": depth, "joint": False},
            "batch": batch,
        },
        **{"file_bytes": weight_bytes, "bits_per_weight": bits, "bytes_per_token": bytes_per_token},
        "decode_tok_s": quantity(rates),
        "prefill_tok_s": quantity([one["prefill_tok_s"] for one in counted]),
        "ttft_s": quantity([one["ttft_s"] for one in counted]),
        **_energy(counted, power),
        "peak_memory_bytes": int(weight_bytes * 1.06 + depth * KV_BYTES_PER_POSITION + 4e8),
        "bandwidth_fraction": statistics.median(rates) * bytes_per_token / gb_s / 1e9,
        "quality": quality_at(bits) if quality else None,
        "verdict": "VALID",
        "reasons": reasons,
        "load_s": 1.5,
        "engine_facts": {
            **{"device": "GPU" if power else "CPU", "compute_dtype": "float16"},
            "kv_dtype": "float16",
        },
        "token_latency_ms": {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98]},
        "power": {"source": "powermetrics", "boundary": boundary, "flags": []} if power else None,
        "processes": [
            {"round": n, "load_s": 1.5, "waited_s": 3.0, "power_series": series}
            for n, series in enumerate(power_by_process)
        ],
        "trials": trials,
    }


def quality_at(bits):
    """Half the loss with every bit; 16 bits are the reference."""
    lost = 0.0 if bits == 16 else 0.4 * 2**-bits
    return {
        **{"perplexity": 5.0 * (1 + lost), "perplexity_ratio": 1 + lost},
        **{"kl_mean": lost, "kl_p99": 9 * lost, "top1_agreement": 1 - lost},
        **{"tokens": 4096, "reference": "mlx-fp16", "corpus": "a sample"},
    }


def trial(rng, begin_ns, rate, round_number, number, watts, generate, batch):
    """Prefill for 0.7 s, then tokens; the first trial of a process is its warm-up."""
    slowness = rng.gauss(1.0, 0.01) + 0.02 * round_number + (0.15 if number == 0 else 0)
    typical_us = 1e6 * batch / rate * slowness
    token_us = [
        round(typical_us * (rng.gauss(1.0, 0.02) + (0.6 if rng.random() < 0.02 else 0)))
        for _ in range(generate - 1)
    ]
    prefill_ns = int(0.7 * NS * slowness)
    first_ns = begin_ns + prefill_ns + 20_000_000
    window_s = sum(token_us) / 1e6
    energy = None
    if watts:
        gpu_w = watts * rng.uniform(0.98, 1.02) - 2
        joules = {"CPU": 2 * window_s, "GPU": gpu_w * window_s}
        tokens = batch * (generate - 1)
        energy = {"window_s": window_s, "tokens": tokens, "joules": joules, "coverage": 1.0}
    return {
        **{"repetition": number, "round": round_number, "warmup": number == 0},
        "prompt_tokens": batch * PROMPT,
        "decode_tok_s": batch * (generate - 1) / window_s,
        "prefill_tok_s": batch * PROMPT / (prefill_ns / NS),
        "ttft_s": prefill_ns / NS,
        "prefill_ns": [begin_ns, begin_ns + prefill_ns],
        "pass_begin_ns": [first_ns],
        "pass_end_ns": [first_ns + 1000 * sum(token_us)],
        "token_us": [token_us],
        "decode_energy": energy,
    }


def power_series(begin_ns, trials, watts, round_number, samples):
    """Ten samples a second: idle, prefill, decode."""
    rng = random.Random(round_number)
    begins = [begin_ns + n * NS // 10 for n in range(samples)]
    cpu, gpu = [], []
    for begin in begins:
        at_ns = begin + NS // 20
        burst = any(t["prefill_ns"][0] <= at_ns <= t["prefill_ns"][1] for t in trials)
        busy = any(t["prefill_ns"][0] <= at_ns <= t["pass_end_ns"][0] for t in trials)
        cpu.append(round(1000 * (2.0 if busy else 0.4) * rng.uniform(0.9, 1.1)))
        gpu.append(round(1000 * (1.6 if burst else 1 if busy else 0.02) * (watts - 2)))
    changes = [{"begin_ns": begins[0], "level": "nominal"}]
    if round_number == 0:
        changes.append({"begin_ns": begins[-60], "level": "moderate"})
    return {
        "begin_ns": begins,
        "end_ns": [b + NS // 10 for b in begins],
        "milliwatts": {"CPU": cpu, "GPU": gpu, "ANE": [0] * samples},
        "thermal": changes,
    }


def failed_row(made, reason):
    null = dict.fromkeys(NULL_WHEN_FAILED)
    return {**made, **null, "verdict": "INVALID", "reasons": [reason], "trials": []}


def quantity(values):
    """A quantity with an approximate interval."""
    mean, sd, n = statistics.mean(values), statistics.stdev(values), len(values)
    half = 4.3 * sd / n**0.5
    ci95 = [mean - half, mean + half]
    return {"median": statistics.median(values), "mean": mean, "sd": sd, "n": n, "ci95": ci95}


def _energy(trials, power):
    names = ("power_w", "joules_per_token", "joules_per_token_net")
    if not power:
        return dict.fromkeys(names)
    windows = [one["decode_energy"] for one in trials]
    joules = [sum(w["joules"].values()) for w in windows]
    powers = [j / w["window_s"] for j, w in zip(joules, windows, strict=True)]
    gross = [j / w["tokens"] for j, w in zip(joules, windows, strict=True)]
    net = [(j - 1.2 * w["window_s"]) / w["tokens"] for j, w in zip(joules, windows, strict=True)]
    return {name: quantity(v) for name, v in zip(names, (powers, gross, net), strict=True)}
