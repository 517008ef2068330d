"""Images per second of the bundled network: `lz.sample` against the same network in PyTorch, sampled by diffusers.

    python benchmarks/throughput.py                 # about 10 minutes on two cores

Both ask the network 8 times, with the same weights, from start noise to images, on the same device and in the same
dtype: `lz.sample` against diffusers' UniPC (the usual few-step sampler) and its flow-matching Euler (the cheapest).
PyTorch runs in inference mode with fused attention: eager and compiled, with all threads and with one (on a GPU also
with CUDA graphs, and TF32 allowed, as JAX does). The fastest peer is marked; a ratio above 1 says that `lz.sample` is
faster. All calls take turns, medians are compared, compile time is apart. On a GPU bfloat16 networks are compared too.
Run it on an idle machine: with one thread the peer is indifferent to other work, and JAX is not. Results in
results/throughput.csv.
"""

import argparse
import copy
import functools
import importlib.util
import itertools
import os
import time
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # two frameworks on one GPU
os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # beside other threads PyTorch's spinning ones cost it a factor of 20

import jax
import jax.numpy as jnp
import numpy as np
from _report import interleaved, report
from flax import nnx

import lazysi as lz
from lazysi.models.sit import SiT

STEPS = 8
BATCHES = (1, 16, 128)
WEIGHTS = resources.files("lazysi") / "assets" / "fashion-mnist.safetensors"
COLUMNS = ["dtype", "batch", "call", "first call (s)", "images/s", "lz.sample / this", "quartiles"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--smoke", action="store_true", help="a small run that writes nothing")
    arguments = parser.parse_args()
    peers = all(importlib.util.find_spec(name) is not None for name in ("torch", "diffusers"))
    if not peers:
        print("PyTorch or diffusers is not installed (the extra `parity`): timing lz.sample alone")
    batches, repeats = ((2,), 1) if arguments.smoke else (BATCHES, arguments.repeats)
    gpu = jax.default_backend() == "gpu"
    if peers:
        import torch

        if gpu != torch.cuda.is_available():
            raise SystemExit("expected JAX and PyTorch to see the same device, and one of them sees no GPU")
        torch.set_float32_matmul_precision("high" if gpu else "highest")
        print_differences("cuda" if gpu else "cpu")
    rows: list[list[Any]] = []
    for dtype in ("float32", "bfloat16") if gpu else ("float32",):
        for batch in batches:
            calls = {"lz.sample": jax_call(batch, dtype)}
            if peers:
                calls |= torch_calls(batch, dtype, "cuda" if gpu else "cpu", smoke=arguments.smoke)
            rows += measure(batch, dtype, calls, repeats)
    report(f"{STEPS} network evaluations per image", COLUMNS, rows, None if arguments.smoke else "throughput.csv")


def jax_call(batch: int, dtype: str) -> Callable[[], Any]:
    model = lz.load_pretrained("fashion-mnist", dtype=None if dtype == "float32" else dtype)
    field = model.field(jnp.arange(batch) % model.config.classes)
    return lambda: lz.sample(jax.random.key(0), field, (batch, *model.shape), steps=STEPS)


def torch_calls(batch: int, dtype: str, device: str, *, smoke: bool) -> dict[str, Callable[[], Any]]:
    """Samplers of diffusers on every variant of the network that runs on this machine."""
    import _torch_sit
    import torch

    network = _torch_sit.load(WEIGHTS, getattr(torch, dtype), device)
    labels = torch.arange(batch, device=device) % network.config.classes
    shape, threads = (batch, *network.config.shape), _threads()
    counts = {"": threads, ", one thread": 1} if device == "cpu" and threads > 1 else {"": threads}
    modes: dict[str, str | None] = {} if smoke else {"compiled": None}
    if device == "cuda" and not smoke:
        modes["CUDA graphs"] = "reduce-overhead"
    variants: dict[str, tuple[Any, int]] = {f"eager{suffix}": (network, n) for suffix, n in counts.items()}
    torch.compiler.reset()  # else the second batch size would be compiled for any size
    for (name, mode), (suffix, n) in itertools.product(modes.items(), counts.items()):
        torch.set_num_threads(n)  # compiled in
        compiled = torch.compile(copy.deepcopy(network), mode=mode, dynamic=False)
        try:
            with torch.inference_mode():
                compiled(torch.zeros(shape, device=device), torch.zeros((), device=device), labels)
        except Exception as error:  # no compiler here
            print(f"torch.compile ({name}) does not run: {str(error).splitlines()[0]}")
        else:
            variants[f"{name}{suffix}"] = (compiled, n)

    def draw(make: Callable[[], Any], network: Any, threads: int) -> Any:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        with torch.inference_mode():
            scheduler = make()
            x = torch.randn(shape, device=device)
            for step, timestep in enumerate(scheduler.timesteps):
                t = (1 - scheduler.sigmas[step]).to(device)
                x = scheduler.step(-network(x, t, labels).clone(), timestep, x, return_dict=False)[0]
        if device == "cuda":
            torch.cuda.synchronize()
        return x

    return {
        f"diffusers {sampler}, PyTorch {name}": functools.partial(draw, make, *variant)
        for sampler, make in (("UniPC", unipc), ("Euler", euler))
        for name, variant in variants.items()
    }


@functools.cache
def _threads() -> int:
    """PyTorch's own choice, asked before anything changes it."""
    import torch

    return torch.get_num_threads()


def unipc() -> Any:
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    scheduler.set_timesteps(STEPS)
    scheduler.set_begin_index(0)
    return scheduler


def euler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / STEPS, STEPS))
    scheduler.set_begin_index(0)
    return scheduler


def measure(batch: int, dtype: str, calls: dict[str, Callable[[], Any]], repeats: int) -> Iterator[list[Any]]:
    """One row per call; the ratio is images per second of `lz.sample` over those of this call."""
    first = {}
    for name, call in calls.items():
        start = time.perf_counter()
        jax.block_until_ready(call())
        first[name] = time.perf_counter() - start
    seconds = interleaved(calls, repeats)
    ours = np.median(seconds["lz.sample"])
    fastest = min((name for name in calls if name != "lz.sample"), key=lambda n: np.median(seconds[n]), default=None)
    for name, values in seconds.items():
        low, median, high = np.percentile(values, (25, 50, 75))
        label = f"{name} (fastest peer)" if name == fastest else name
        quartiles = f"{batch / high:.3g}-{batch / low:.3g}"
        yield [dtype, batch, label, first[name], batch / median, float(median / ours), quartiles]


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
            torch.from_numpy(x).to(device), torch.tensor(0.3, dtype=getattr(torch, dtype)), torch.from_numpy(labels)
        )
        difference = np.abs(ours - theirs.cpu().numpy()).max()
        print(f"largest difference between the two networks in {dtype}: {difference:.1e} of {np.abs(ours).max():.2f}")


if __name__ == "__main__":
    main()
