"""Published networks: one guided forward pass, here and in the class of diffusers with the same (random) weights.

    python benchmarks/networks.py                 # about 10 minutes on two cores, 14 GB; needs PyTorch and diffusers
    python benchmarks/networks.py --networks sit-s-2

Both run in float32 on the same processor, in turns; medians (quartiles) and their ratio, with the time of the first
call apart. "difference" is the largest of the two outputs, at unit rms. Peak memory is that of a process of its own
with one forward pass, weights included. On a GPU instead: SiT-XL/2 in bfloat16, images per second of one guided network
evaluation and the share of the measured matrix peak, over batch sizes, with fused attention and without.
Results in results/networks.csv (results/networks_gpu.csv).
"""

import argparse
import functools
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _report import interleaved, report
from flax import nnx

from lazysi.models.mmdit import MMDiTConfig
from lazysi.models.published import mmdit_table, sit_table, structure
from lazysi.models.sit import SIT_CONFIGS, SiTConfig
from lazysi.models.tables import undo_table, unit_gain
from lazysi.models.weights import unflatten_state

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the references in PyTorch stand there

CONFIGS: dict[str, Any] = {
    "sit-s-2": SIT_CONFIGS["sit-s-2"],
    "sit-xl-2": SIT_CONFIGS["sit-xl-2"],
    "mmdit-small": MMDiTConfig(64, width=512, depth=8, heads=8, dual_blocks=4, table_size=96),
}
SMOKE = {
    "sit-tiny": SiTConfig(8, 4, 2, width=64, depth=2, heads=4, classes=10, learn_sigma=True),
    "mmdit-tiny": MMDiTConfig(8, 4, width=64, depth=2, heads=4, context_width=32, pooled_width=24, table_size=8,
                              table_base=4, dual_blocks=1),
}  # fmt: skip
TOKENS = 77  # of text
BATCHES = (1, 4, 16, 64, 128)
COLUMNS = [
    "network",
    "ours (s)",
    "diffusers (s)",
    "ratio",
    "first call (s)",
    "difference",
    "ours (GB)",
    "diffusers (GB)",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--networks", default=",".join(CONFIGS))
    parser.add_argument("--smoke", action="store_true", help="a small run that writes nothing")
    parser.add_argument("--peak", nargs=2, metavar=("NETWORK", "FRAMEWORK"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak is not None:
        print(json.dumps(peak_of_one_call(*arguments.peak)))
        return
    if jax.default_backend() == "gpu":
        report_gpu(smoke=arguments.smoke)
        return
    try:
        import torch_reference  # noqa: F401
    except ImportError:
        print("PyTorch or diffusers is not installed (the extra `parity`): nothing to compare with")
        return
    names = list(SMOKE) if arguments.smoke else arguments.networks.split(",")
    rows = [compare(name, 1 if arguments.smoke else arguments.repeats) for name in names]
    file = "networks.csv" if names == list(CONFIGS) else None
    report("one guided forward pass (batch 2), float32", COLUMNS, rows, file)


def config_of(name: str) -> Any:
    return (CONFIGS | SMOKE)[name]


def guided_inputs(config: Any) -> dict[str, np.ndarray]:
    """One image with its condition and without."""
    random = np.random.RandomState(0)
    x = random.standard_normal((1, *config.shape)).astype(np.float32).repeat(2, axis=0)
    if isinstance(config, SiTConfig):
        return {"x": x, "t": np.full(2, 0.3, np.float32), "labels": np.array([config.classes // 2, config.classes])}
    context = random.standard_normal((2, TOKENS, config.context_width)).astype(np.float32)
    pooled = random.standard_normal((2, config.pooled_width)).astype(np.float32)
    return {"x": x, "sigma": np.full(2, 0.7, np.float32), "context": context, "pooled": pooled}


def ours(config: Any) -> Callable[[], jax.Array]:
    graph, abstract = structure(config)
    state = unflatten_state(unit_gain(abstract), abstract)
    forward = jax.jit(lambda state, arguments: nnx.merge(graph, state)(**arguments))
    return functools.partial(forward, state, jax.tree.map(jnp.asarray, guided_inputs(config)))


def theirs(config: Any) -> Callable[[], np.ndarray]:
    import torch
    import torch_reference as reference

    sit = isinstance(config, SiTConfig)
    table = sit_table(config) if sit else mmdit_table(config, "diffusers")
    parameters = {path: tensor.read().astype(np.float32) for path, tensor in unit_gain(structure(config)[1]).items()}
    tensors = undo_table(parameters, table)
    del parameters
    module = (reference.dit if sit else reference.sd3)(config, tensors, "float32")
    run = reference.run_dit if sit else reference.run_sd3

    def call() -> np.ndarray:
        with torch.inference_mode():
            return run(module, **guided_inputs(config), dtype="float32")

    return call


def compare(name: str, repeats: int) -> list[Any]:
    config = config_of(name)
    peaks = [peak_elsewhere(name, framework) for framework in ("ours", "diffusers")]  # before memory is needed here
    calls: dict[str, Callable[[], Any]] = {"diffusers": theirs(config), "ours": ours(config)}
    start = time.perf_counter()
    found = np.asarray(calls["ours"]())
    first = time.perf_counter() - start
    expected = calls["diffusers"]()
    difference = float(np.abs(found - expected).max() / np.sqrt(np.mean(expected**2)))
    seconds = interleaved(calls, repeats)
    middles = {call: float(np.median(values)) for call, values in seconds.items()}
    shown = {call: "{:.3f} ({:.3f}-{:.3f})".format(*np.percentile(v, (50, 25, 75))) for call, v in seconds.items()}
    ratio = middles["ours"] / middles["diffusers"]
    return [name, shown["ours"], shown["diffusers"], ratio, first, f"{difference:.1e}", *peaks]


def peak_elsewhere(name: str, framework: str) -> float:
    command = [sys.executable, __file__, "--peak", name, framework]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def peak_of_one_call(name: str, framework: str) -> float:
    """Gigabytes, from a process that loads a file of weights and calls once."""
    config = config_of(name)
    call = {"ours": ours, "diffusers": theirs}[framework](config)
    if framework == "diffusers":
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the weights were there twice: forget that peak
    jax.block_until_ready(call())
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def report_gpu(*, smoke: bool) -> None:
    """Images per second and FLOP/s of SiT-XL/2 in bfloat16, against the matrix peak measured here."""
    config = SMOKE["sit-tiny"] if smoke else CONFIGS["sit-xl-2"]
    peak = matrix_peak(1024 if smoke else 16384)
    abstract = structure(config)[1]
    state = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), unflatten_state(unit_gain(abstract), abstract))
    rows = []
    for flash in (False, True):
        graph = structure(config, dtype=jnp.bfloat16, flash=flash)[0]
        forward = jax.jit(lambda state, x, t, y, graph=graph: nnx.merge(graph, state)(x, t, y))
        for batch in (1, 2) if smoke else BATCHES:
            x = jnp.ones((2 * batch, *config.shape), jnp.float32)
            arguments = (state, x, jnp.full(2 * batch, 0.3), jnp.arange(2 * batch) % config.classes)
            compiled = forward.lower(*arguments).compile()
            values = interleaved({"": functools.partial(compiled, *arguments)}, 2 if smoke else 20)[""]
            seconds = float(np.median(values))
            flops = 2 * batch * flops_per_image(config)
            rows.append([batch, flash, seconds, batch / seconds, flops / seconds / 1e12, flops / seconds / peak])
    columns = ["images", "fused attention", "seconds", "guided images/s", "TFLOP/s", "of the matrix peak"]
    title = f"{jax.devices()[0].device_kind}, matrix peak {peak / 1e12:.0f} TFLOP/s in bfloat16"
    report(title, columns, rows, None if smoke else "networks_gpu.csv")


def flops_per_image(config: SiTConfig) -> float:
    """Of the matrix products of one forward pass: 2 for every multiplication."""
    tokens, width = (config.image_size // config.patch_size) ** 2, config.width
    return config.depth * (2 * tokens * 12 * width**2 + 4 * tokens**2 * width + 12 * width**2)


def matrix_peak(size: int) -> float:
    a, b = jax.random.normal(jax.random.key(0), (2, size, size), jnp.bfloat16)  # of ones chips are faster
    product = jax.jit(lambda a, b: a @ b)
    seconds = interleaved({"": lambda: product(a, b)}, 20)[""]
    return 2 * size**3 / float(np.min(seconds))


if __name__ == "__main__":
    main()
