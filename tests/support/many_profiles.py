"""Profiles of invented devices, whose figures agree with their trials; as large as real ones."""

import random
import statistics

METHOD = {
    "decode_rate": "sum of (N - 1) / sum of (t_N - t_1) over a trial's passes",
    "excluded": ["load", "tokenisation"],
    "warmups": 1,
    "repetitions": 3,
    "processes_per_row": 3,
    "finished": True,
    "idle": {
        "before": {"watts": 2.0, "sd_w": 0.1, "seconds": 10.0, "samples": 10},
        "after": None,
        "net_of_w": 2.0,
        "drift": None,
    },
}
CHIPS = {  # GPU cores, GB/s, GB
    "Apple M1 Max": (32, 409.6, 64),
    "Apple M2": (10, 102.4, 16),
    "Apple M2 Max": (38, 409.6, 96),
    "Apple M3 Pro": (18, 153.6, 36),
    "Apple M4": (10, 120.0, 24),
}
MB = 1_000_000
PRECISIONS = {
    "mlx-fp16": ("MLX", "FP16", 5333 * MB),
    "mlx-int4": ("MLX", "INT4", 1500 * MB),
    "gguf-f16": ("GGUF", "FP16", 5334 * MB),
    "gguf-q6_k": ("GGUF", "Q6_K", 2189 * MB),
}


def make_profile(
    chip="Apple M2 Max",
    created="2026-03-01T10:00:00+00:00",
    rate=1.0,
    artefacts=tuple(PRECISIONS),
    model="stable-code-3b",
    prompt=64,
    generate=32,
    repetitions=3,
    passes=1,
    seed=0,
    hw_model="Mac14,6",
):
    """A whole profile; `rate` scales every speed, half of the roofline at 1."""
    cores, gb_s, memory_gb = CHIPS[chip]
    shape = (prompt, generate, repetitions, passes)
    return {
        "schema": 1,
        "created_utc": created,
        "argv": ["bench.py", model],
        "device": {
            "name": chip,
            "architecture": "arm64",
            "physical_cores": 12,
            "logical_cores": 12,
            "memory_bytes": memory_gb * 2**30,
            "os": "macOS 27.0 (26A428)",
            "hw_model": hw_model,
            "gpu_cores": cores,
            "memory_bandwidth": {"gb_s": gb_s, "source": "table"},
            "remarks": [],
        },
        "software": {"edge": "0.1.0", "mlx": "0.32.4", "llama-cpp-python": "0.3.36"},
        "model": {
            "name": model,
            "source": f"stabilityai/{model}",
            "revision": None,
            "parameters": 2_795_443_200,
            "synthetic": False,
        },
        "method": METHOD,
        "rows": [make_row(name, gb_s, rate, shape, seed) for name in artefacts],
    }


def make_row(artefact, gb_s, rate, shape, seed):
    prompt, generate, repetitions, passes = shape
    framework, precision, bytes_per_token = PRECISIONS[artefact]
    rng = random.Random(f"{artefact} {seed}")
    step_ns = int(bytes_per_token / gb_s / rate / 0.5)
    trials = [
        make_trial(number, step_ns, prompt, generate, passes, rng) for number in range(repetitions)
    ]
    counted = trials[1:]
    decode = summary(t["decode_tok_s"] for t in counted)
    energies = [t["decode_energy"] for t in counted]
    watts = [e["joules"]["CPU"] + e["joules"]["GPU"] for e in energies]
    times = [t for trial in counted for one in trial["token_us"] for t in one]
    p50, p90, p99 = (statistics.quantiles(times, n=100)[i] / 1e3 for i in (49, 89, 98))
    gross = [w / e["tokens"] for w, e in zip(watts, energies, strict=True)]
    net = [g - 2.0 * e["window_s"] / e["tokens"] for g, e in zip(gross, energies, strict=True)]
    return {
        "artefact": artefact,
        "engine": "mlx" if framework == "MLX" else "llama.cpp",
        "framework": framework,
        "precision": precision,
        "workload": {"prompt": prompt, "generate": generate, "depth": 0, "joint": False},
        "file_bytes": bytes_per_token,
        "bits_per_weight": 4.5,
        "bytes_per_token": bytes_per_token,
        "decode_tok_s": decode,
        "prefill_tok_s": summary(t["prefill_tok_s"] for t in counted),
        "ttft_s": summary(t["ttft_s"] for t in counted),
        "power_w": summary(w / e["window_s"] for w, e in zip(watts, energies, strict=True)),
        "joules_per_token": summary(gross),
        "joules_per_token_net": summary(net),
        "peak_memory_bytes": bytes_per_token + 300 * MB,
        "bandwidth_fraction": decode["median"] * bytes_per_token / gb_s / 1e9,
        "quality": None,
        "verdict": "VALID",
        "reasons": ["quality was not measured: add --quality"],
        "load_s": 1.25,
        "engine_facts": {
            "device": "Apple GPU" if framework == "MLX" else "GPU",
            "compute_dtype": "float16",
            "kv_dtype": "float16",
        },
        "token_latency_ms": {"p50": p50, "p90": p90, "p99": p99},
        "power": {"source": "powermetrics", "boundary": "CPU, GPU, ANE", "flags": []},
        "trials": trials,
    }


def make_trial(number, step_ns, prompt, generate, passes, rng):
    """The first is the warm-up. Passes follow each other 1 ms apart."""
    begin = number * 10**11 + 10**9
    prefill_ns = prompt * step_ns // 20
    at, begins, ends, times = begin + prefill_ns + 10**6, [], [], []
    for _ in range(passes):
        kept = [int(step_ns * rng.uniform(0.95, 1.05)) // 1000 for _ in range(generate - 1)]
        begins.append(at)
        ends.append(at + sum(kept) * 1000)
        times.append(kept)
        at = ends[-1] + 10**6
    window_s = (ends[-1] - begins[0]) / 1e9
    decode_s = sum(map(sum, times)) / 1e6
    return {
        "repetition": number,
        "round": number,
        "warmup": number == 0,
        "prompt_tokens": prompt,
        "decode_tok_s": passes * (generate - 1) / decode_s,
        "prefill_tok_s": prompt / prefill_ns * 1e9,
        "ttft_s": prefill_ns / 1e9,
        "prefill_ns": [begin, begin + prefill_ns],
        "pass_begin_ns": begins,
        "pass_end_ns": ends,
        "token_us": times,
        "energy_j": {"CPU": 3.0 * window_s, "GPU": 15.0 * window_s},
        "energy_coverage": 1.0,
        "decode_energy": {
            "window_s": window_s,
            "tokens": passes * generate - 1,
            "joules": {"CPU": 3.0 * window_s, "GPU": 15.0 * window_s},
            "beside": {},
            "coverage": 1.0,
            "edge_error_j": 0.01,
            "records": 10,
            "thermal_worst": "nominal",
            "missing": None,
        },
        "prefill_energy": None,
    }


def summary(values):
    listed = list(values)
    sd = statistics.stdev(listed) if len(listed) > 1 else None
    return {
        "median": statistics.median(listed),
        "mean": statistics.fmean(listed),
        "sd": sd,
        "n": len(listed),
    }
