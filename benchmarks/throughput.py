"""Images per second of the bundled network: `lz.sample` against the same network in PyTorch, sampled by diffusers.

    python benchmarks/throughput.py                 # about 20 minutes on two cores

Both ask the network 8 times, with the same weights, from start noise to images, on the same device and in the same
dtype: `lz.sample` against diffusers' UniPC (the usual few-step sampler) and its flow-matching Euler (the cheapest).
From batch 8 on every core of a processor draws its part of ours, where PyTorch's threads share every operation. PyTorch
runs in inference mode with fused attention: eager and compiled, with all threads and with one (on a GPU
compiled with CUDA graphs, and TF32 allowed, as JAX does; there ours is also called under a `jax.jit` of the caller, and
takes cuDNN's attention in bfloat16). Its schedulers are made before, and set to their timesteps inside the timed call.
All calls take turns, medians are compared, compile time is apart: in the first call, PyTorch's too. Everything runs
twice, in processes of their own: with threads that spin while they wait, as OpenMP has it by default, and with threads
that sleep (OMP_WAIT_POLICY=PASSIVE), which beside JAX's threads can be the faster one by far; of either run the faster
counts, for every call. (On a GPU, where threads do not compute, once.) On a CPU both take batches of more than 16 whole
and in chunks of 16, whose values stay in its caches. The ratios are images per second of the faster of ours over those
of the call, above 1 where `lz.sample` is faster; the fastest peer is marked. On a GPU bfloat16 networks are compared
too, and batches of 1024. Run it on an idle machine: with one thread the peer is indifferent to other work, and JAX is
not.
Results in results/throughput.csv, of a GPU in results/throughput_gpu.csv.
"""

import argparse
import copy
import functools
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # two frameworks on one GPU

import jax
import jax.numpy as jnp
import numpy as np
from _report import interleaved, report
from flax import nnx

import lazysi as lz
from lazysi.models.sit import SiT

STEPS = 8
BATCHES, CHUNK = (1, 16, 128), 16
GPU_BATCHES = (*BATCHES, 1024)
WEIGHTS = resources.files("lazysi") / "assets" / "fashion-mnist.safetensors"
COLUMNS = ["dtype", "batch", "call", "OMP_WAIT_POLICY", "first call (s)", "images/s", "ours / this", "quartiles"]
OURS, JITTED = "lz.sample", "jax.jit of lz.sample"
POLICIES = ("default", "PASSIVE")


class Call(NamedTuple):
    """What is timed, and the seconds that compiling took before, if it did."""

    run: Callable[[], Any]
    compiling: float = 0.0


class Timing(NamedTuple):
    """Seconds of a call's first and of its repeated runs, under a policy of waiting."""

    dtype: str
    batch: int
    call: str
    policy: str
    first: float
    seconds: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--smoke", action="store_true", help="a small run that writes nothing")
    parser.add_argument("--times", type=Path, help="time in this process and write the seconds to this file, no table")
    arguments = parser.parse_args()
    if arguments.times is not None:
        timings = list(time_all(1 if arguments.smoke else arguments.repeats, smoke=arguments.smoke))
        arguments.times.write_text(json.dumps(timings))
        return
    gpu = jax.default_backend() == "gpu"
    policies = POLICIES if has_peers() and not gpu else POLICIES[:1]  # of PyTorch's threads
    if not has_peers():
        print("PyTorch or diffusers is not installed (the extra `parity`): timing lz.sample alone")
    timings = [timing for policy in policies for timing in time_under(policy, sys.argv[1:])]
    report(
        f"{STEPS} network evaluations per image",
        COLUMNS,
        list(table(timings)),
        None if arguments.smoke else "throughput_gpu.csv" if gpu else "throughput.csv",
    )


def has_peers() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "diffusers"))


def time_under(policy: str, options: list[str]) -> list[Timing]:
    """All timings of a process of its own, because the policy is read when PyTorch is loaded."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # what an earlier run compiled is no time of compiling
    if policy != "default":
        environment["OMP_WAIT_POLICY"] = policy
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "times.json"
        subprocess.run([sys.executable, __file__, *options, "--times", file], env=environment, check=True)
        return [Timing(*cells) for cells in json.loads(file.read_text())]


def time_all(repeats: int, *, smoke: bool) -> Iterator[Timing]:
    """Every dtype and batch, all calls in turn."""
    gpu = jax.default_backend() == "gpu"
    if has_peers():
        import torch

        if gpu != torch.cuda.is_available():
            raise SystemExit("expected JAX and PyTorch to see the same device, and one of them sees no GPU")
        torch.set_float32_matmul_precision("high" if gpu else "highest")
        print_differences("cuda" if gpu else "cpu")
    for dtype in ("float32", "bfloat16") if gpu else ("float32",):
        for batch in (2,) if smoke else GPU_BATCHES if gpu else BATCHES:
            calls: dict[str, Call] = {}
            for chunk in (batch, CHUNK) if batch > CHUNK and not gpu else (batch,):
                added = {OURS: Call(jax_call(batch, chunk, dtype))}
                if gpu:  # where what Python does before a call takes as long as the network does
                    added[JITTED] = Call(jax_call(batch, chunk, dtype, jitted=True))
                if has_peers():
                    added |= torch_calls(batch, chunk, dtype, "cuda" if gpu else "cpu", smoke=smoke)
                suffix = "" if chunk == batch else f", chunks of {chunk}"
                calls |= {name + suffix: call for name, call in added.items()}
            yield from measure(batch, dtype, calls, repeats)


def jax_call(batch: int, chunk: int, dtype: str, *, jitted: bool = False) -> Callable[[], Any]:
    half = dtype != "float32"
    model, key = lz.load_pretrained("fashion-mnist", dtype=dtype if half else None), jax.random.key(0)
    field = model._replace(flash=half).field(jnp.arange(batch) % model.config.classes)
    draw = lambda key: lz.sample(key, field, (batch, *model.shape), steps=STEPS, chunk_size=chunk)  # noqa: E731
    return functools.partial(jax.jit(draw) if jitted else draw, key)


def torch_calls(batch: int, chunk: int, dtype: str, device: str, *, smoke: bool) -> dict[str, Call]:
    """Samplers of diffusers on every variant of the network that runs on this machine, so many images at once."""
    import _torch_sit
    import torch

    network = _torch_sit.load(WEIGHTS, getattr(torch, dtype), device)
    labels = torch.arange(batch, device=device) % network.config.classes
    shape, threads = (chunk, *network.config.shape), _threads()
    counts = {"": threads, ", one thread": 1} if device == "cpu" and threads > 1 else {"": threads}
    compiled_for = {"cuda": {"compiled, CUDA graphs": "reduce-overhead"}, "cpu": {"compiled": None}}
    modes: dict[str, str | None] = {} if smoke else compiled_for[device]
    variants: dict[str, tuple[Any, int, float]] = {f"eager{suffix}": (network, n, 0.0) for suffix, n in counts.items()}
    torch.compiler.reset()  # else the second batch size would be compiled for any size
    for (name, mode), (suffix, n) in itertools.product(modes.items(), counts.items()):
        torch.set_num_threads(n)  # compiled in
        compiled = torch.compile(copy.deepcopy(network), mode=mode, dynamic=False)
        start = time.perf_counter()
        try:
            with torch.inference_mode():
                compiled(torch.zeros(shape, device=device), torch.zeros((), device=device), labels[:chunk])
        except Exception as error:  # no compiler here
            print(f"torch.compile ({name}) does not run: {str(error).splitlines()[0]}")
        else:
            variants[f"{name}{suffix}"] = (compiled, n, time.perf_counter() - start)

    def draw(scheduler: Any, timesteps: dict[str, Any], network: Any, threads: int) -> Any:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        parts = []
        with torch.inference_mode():
            for some in labels.split(chunk):
                scheduler.set_timesteps(**timesteps)
                scheduler.set_begin_index(0)
                times = (1 - scheduler.sigmas).to(device)
                x = torch.randn(shape, device=device)
                for step, timestep in enumerate(scheduler.timesteps):
                    # the minus makes a new array, so that CUDA graphs may overwrite the network's
                    x = scheduler.step(-network(x, times[step], some), timestep, x, return_dict=False)[0]
                parts.append(x)
        if device == "cuda":
            torch.cuda.synchronize()
        return parts

    return {
        f"diffusers {sampler}, PyTorch {name}": Call(
            functools.partial(draw, scheduler, timesteps, module, n), compiling
        )
        for sampler, (scheduler, timesteps) in schedulers().items()
        for name, (module, n, compiling) in variants.items()
    }


@functools.cache
def _threads() -> int:
    """PyTorch's own choice, asked before anything changes it."""
    import torch

    return torch.get_num_threads()


def schedulers() -> dict[str, tuple[Any, dict[str, Any]]]:
    """diffusers' schedulers, and what they are told of the timesteps before every run."""
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    unipc = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    return {
        "UniPC": (unipc, {"num_inference_steps": STEPS}),
        "Euler": (FlowMatchEulerDiscreteScheduler(), {"sigmas": np.linspace(1, 1 / STEPS, STEPS)}),
    }


def measure(batch: int, dtype: str, calls: dict[str, Call], repeats: int) -> Iterator[Timing]:
    """One timing per call, all taken in turn; the first of each with what compiling took."""
    first = {}
    for name, call in calls.items():
        start = time.perf_counter()
        jax.block_until_ready(call.run())
        first[name] = call.compiling + time.perf_counter() - start
    policy = os.environ.get("OMP_WAIT_POLICY", "default")
    for name, seconds in interleaved({name: call.run for name, call in calls.items()}, repeats).items():
        print(f"{dtype}, batch {batch}, {name}: {np.median(seconds):.3g} s, the first {first[name]:.3g} s", flush=True)
        yield Timing(dtype, batch, name, policy, first[name], seconds.tolist())


def table(timings: list[Timing]) -> Iterator[list[Any]]:
    """One row per call, the faster of its runs, in order; ratios to the faster of ours."""
    for dtype, batch in dict.fromkeys((timing.dtype, timing.batch) for timing in timings):
        fastest: dict[str, Timing] = {}
        for timing in sorted(timings, key=lambda timing: np.median(timing.seconds)):
            if (timing.dtype, timing.batch) == (dtype, batch):
                fastest.setdefault(timing.call, timing)
        ours = np.median(next(timing.seconds for name, timing in fastest.items() if name.startswith(OURS)))
        peer = next((name for name in fastest if OURS not in name), None)
        for name, timing in fastest.items():
            low, median, high = np.percentile(timing.seconds, (25, 50, 75))
            label = f"{name} (fastest peer)" if name == peer else name
            quartiles = f"{batch / high:.3g}-{batch / low:.3g}"
            yield [dtype, batch, label, timing.policy, timing.first, batch / median, float(median / ours), quartiles]


def print_differences(device: str) -> None:
    """Largest difference between the two networks on the same random images, in float64 and float32."""
    import _torch_sit
    import torch

    model = lz.load_pretrained("fashion-mnist")
    labels = np.arange(5) % model.config.classes
    for dtype in ("float64", "float32"):
        with jax.enable_x64(dtype == "float64"):
            abstract = nnx.eval_shape(lambda dtype=dtype: SiT(model.config, param_dtype=dtype, rngs=nnx.Rngs(0)))
            weights = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), model.parameters)
            network = nnx.merge(nnx.graphdef(abstract), weights)
            x = np.random.RandomState(0).standard_normal((5, *model.shape)).astype(dtype)
            ours = np.asarray(network(jnp.asarray(x), jnp.asarray(0.3, dtype), jnp.asarray(labels)))
        theirs = _torch_sit.load(WEIGHTS, getattr(torch, dtype), device)(
            torch.from_numpy(x).to(device),
            torch.tensor(0.3, dtype=getattr(torch, dtype), device=device),
            torch.from_numpy(labels).to(device),
        )
        difference = np.abs(ours - theirs.cpu().numpy()).max()
        print(f"largest difference between the two networks in {dtype}: {difference:.1e} of {np.abs(ours).max():.2f}")


if __name__ == "__main__":
    main()
