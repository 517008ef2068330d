"""Which plans come with the package? Fits them to the bundled network, as `lazysi tune` does.

    python benchmarks/make_plans.py                 # all 24: hours on two cores, those with kappa 1 longest
    python benchmarks/make_plans.py --steps 4 6 --kappa 0 --guidance none

One plan for every number of steps, kappa and guidance, into lazysi/assets/plans; those that exist are left alone unless
--force is given. The classes take turns. With --features the SDE's are fitted in pixels and in the features of the
bundled classifier.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from _report import report

import lazysi as lz
from lazysi.models.pretrained import PLAN_GUIDANCE, plan_name

MODEL = "fashion-mnist"
STEPS = (3, 4, 6, 8, 12, 16)
COUNTS = {0.0: 128, 1.0: 1024}  # samples to fit on, by kappa
FINE = {0.0: 128, 1.0: 64}  # steps of the fine grid; a law of so few samples does not tell 64 from more
GUIDANCE = {"none": None, f"{PLAN_GUIDANCE:g}": PLAN_GUIDANCE}
PLANS = Path(lz.__file__).parent / "assets" / "plans"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--kappa", type=float, nargs="+", default=list(COUNTS), choices=list(COUNTS))
    parser.add_argument("--guidance", nargs="+", default=list(GUIDANCE), choices=list(GUIDANCE))
    parser.add_argument("--trials", type=int, default=60, help="grids (ODE) or samplers (SDE) tried for each plan")
    parser.add_argument("--count", type=int, default=None, help="samples to fit on (default: by kappa)")
    parser.add_argument("--features", action="store_true", help="SDE: take distances in the classifier's features too")
    parser.add_argument("--force", action="store_true", help="make plans that exist, too")
    parser.add_argument("--smoke", action="store_true", help="a small run that writes nothing")
    arguments = parser.parse_args()
    if arguments.smoke:
        wanted = [(3, 0.0, "none")]
    else:
        PLANS.mkdir(exist_ok=True)
        wanted = [
            (n, kappa, scale) for kappa in arguments.kappa for scale in arguments.guidance for n in arguments.steps
        ]

    model, rows = lz.load_pretrained(MODEL), []
    classifier = lz.load_classifier(MODEL) if arguments.features else None
    for steps, kappa, guidance in wanted:
        path = PLANS / f"{plan_name(MODEL, steps, kappa, GUIDANCE[guidance])}.json"
        if path.exists() and not (arguments.force or arguments.smoke):
            print(f"{path.stem} exists")
            continue
        count, trials, fine = arguments.count or COUNTS[kappa], arguments.trials, FINE[kappa]
        if arguments.smoke:
            count, trials, fine = 8, 2, 16
        labels, start = jnp.arange(count) % model.config.classes, time.perf_counter()
        field = model.field(labels, guidance=GUIDANCE[guidance])
        shape = (count, *model.shape)
        options = {"features": classifier.features} if classifier and kappa else {}
        plan = lz.tune(jax.random.key(0), field, shape, steps, kappa=kappa, trials=trials, fine_steps=fine, **options)
        about = json.loads(plan.about) | {
            "model": MODEL,
            "guidance": GUIDANCE[guidance],
            "labels": list(range(10)),
            "seed": 0,
        }
        about |= {"features": MODEL} if options else {}
        if not arguments.smoke:
            lz.save_plan(path, plan.described(about))
        error, floor = about.get("rms", about.get("sliced_wasserstein")), about.get("floor", "")
        rows.append([steps, kappa, guidance, error, floor, time.perf_counter() - start])
        print(f"{path.stem}: {error:.4g} after {rows[-1][-1]:.0f} s", flush=True)
    columns = ["steps", "kappa", "guidance", "held-out error", "floor", "seconds"]
    report("Plans: RMS for the ODE, sliced Wasserstein distance for the SDE", columns, rows, None)


if __name__ == "__main__":
    main()
