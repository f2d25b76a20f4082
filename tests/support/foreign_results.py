"""Results as llama-bench and mlx_lm.benchmark print them."""

import json


def llama_test(prompt=0, generate=0, rate=60.0, spread=0.01, repetitions=5, **changes):
    """One test of llama-bench -o json; the rates are those of `samples_ns`, and rise."""
    tokens, middle = prompt + generate, (repetitions - 1) / 2
    order = [0, 2, 1, 4, 3, *range(5, repetitions)][:repetitions]  # no trend
    rates = [rate * (1 + spread * (place - middle) / repetitions) for place in order]
    times_ns = [round(1e9 * tokens / r) for r in rates]
    test = {
        **{"build_commit": "1a2b3c4", "build_number": 7001},
        **{"cpu_info": "Apple M2 Max, Accelerate", "gpu_info": "Apple M2 Max"},
        **{"backends": "MTL,BLAS", "model_type": "stablelm 3B Q4_0"},
        "model_filename": "/Users/anna/models/stable-code-3b/gguf-q4_0.gguf",
        **{"model_size": 1608571392, "model_n_params": 2795443200},
        **{"n_batch": 2048, "n_ubatch": 512, "n_threads": 8, "type_k": "f16", "type_v": "f16"},
        **{"n_gpu_layers": -1, "flash_attn": -1, "cpu_strict": False, "devices": "auto"},
        **{"n_prompt": prompt, "n_gen": generate, "n_depth": 0},
        "test_time": "2026-11-20T12:00:00Z",
        **{"avg_ns": sum(times_ns) // repetitions, "stddev_ns": 1},
        **{"avg_ts": sum(rates) / repetitions, "stddev_ts": 1.0},
        "samples_ns": times_ns,
        "samples_ts": [float(f"{1e9 * tokens / ns:.6g}") for ns in times_ns],
    }
    return {key: value for key, value in {**test, **changes}.items() if value is not None}


def llama_bench(*tests):
    return json.dumps(tests or [llama_test(512, rate=1200), llama_test(0, 128)]).encode()


def mlx_lm_benchmark(rates=(133.5, 134.5, 132.5), average=None, batch=1, head=True):
    lines = ["Running warmup.."]
    if head:
        lines.append(f"Timing with prompt_tokens=512, generation_tokens=128, batch_size={batch}.")
    figures = "prompt_tps=1621.100, generation_tps={:.3f}, peak_memory=2.310"
    lines += [
        f"Trial {n}:  {figures.format(rate)}, total_time=1.300" for n, rate in enumerate(rates, 1)
    ]
    mean = sum(rates) / len(rates) if average is None else average
    return "\n".join([*lines, f"Averages: {figures.format(mean)}", ""]).encode()
