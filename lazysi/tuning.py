"""Tuning: fit a sampler to a frozen network for one number of steps, without gradients.

The methods are in `tuning_ode` and `tuning_sde`. In both, noise that was not used to fit decides.
"""

import json

import jax.numpy as jnp
from jaxtyping import ArrayLike, PRNGKeyArray

from lazysi.checks import check_number, check_untraced, count
from lazysi.fields import Field
from lazysi.metrics import Features
from lazysi.moments import isotropic
from lazysi.options import check_field, check_shape
from lazysi.plans import Plan
from lazysi.searching import Progress, Task
from lazysi.tuning_ode import fit_ode
from lazysi.tuning_sde import fit_sde

__all__ = ["FINE", "SMALLEST_BATCH", "tune"]

FINE = 128  # steps of the solution to follow; angles of a plan for the ODE are among its own
SMALLEST_BATCH = 8


def tune(
    key: PRNGKeyArray,
    field: Field,
    shape: tuple[int, ...],
    steps: int,
    *,
    kappa: ArrayLike = 0.0,
    trials: int = 60,
    fine_steps: int = FINE,
    features: Features | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Fit a sampler of `steps` steps to a field: a plan for `sample(plan=...)`.

    Args:
        key: of the noise it is fitted on.
        field: the network, with what it holds per sample (labels) for `shape[0]` samples.
        shape: (batch, *event). For the ODE half of the batch fits the weights, the other half decides; 128 is enough
            for images. For the SDE, whose law is compared, all of it fits and another draw decides; 256 or more.
        steps: network evaluations of the plan.
        kappa: relative diffusion.
        trials: grids (ODE) or samplers (SDE) tried.
        fine_steps: of the solution that counts as exact.
        features: (batch, *event) to (batch, d), for the SDE, differentiable in forward mode, called with parts of the
            batch: the energy distance is taken in samples and features side by side, features scaled to spread as far
            as the samples do. What counts for little among all entries then counts as in a Frechet distance in these.
        progress: called with the fraction done and a word on the best so far.

    Returns:
        the plan with the least error on the held-out half, for the SDE on a held-out draw, if it is ahead of the
            default method by two standard errors, there or, where that does not tell, together with up to three further
            draws; and else, for the ODE, the best of those that are ahead of it there, or the default method.
            `plan.about` is JSON text of what was measured: for the ODE `rms` on the noise that decided; for the SDE, on
            a further draw that decided nothing,
            `energy_distance` (0 on average for the right law; with `features`, in samples and these),
            `sliced_wasserstein` with the `floor` that a fine-grid draw scores, `total_std` and `total_std_law`.

    Raises:
        ValueError: if an argument is out of range or traced, the batch is smaller than 8, or there are `features` for
            an ODE.
        RuntimeError: if the field returns NaN.

    Example:
        >>> import jax, lazysi as lz
        >>> field = lz.targets.mixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], [0.3, 0.4])
        >>> plan = lz.tune(jax.random.key(0), field, (64, 2), 4, trials=4, fine_steps=64)
        >>> lz.sample(jax.random.key(1), field, (10, 2), plan=plan).shape
        (10, 2)
    """
    shape, steps = check_shape(shape), count("steps", steps)
    if len(shape) < 2 or shape[0] < SMALLEST_BATCH:
        raise ValueError(f"expected `shape` (batch, *event) with a batch of at least {SMALLEST_BATCH}, got {shape}")
    trials, fine_steps = count("trials", trials), count("fine_steps", fine_steps)
    if fine_steps < 4 * steps:
        raise ValueError(f"expected `fine_steps` of at least 4 times `steps`, {4 * steps}, got {fine_steps}")
    check_number("kappa", kappa, minimum=0)
    check_untraced("tune", key=key, kappa=kappa)
    check_field(field, shape[0])
    progress = progress or (lambda fraction, message: None)
    relative = float(jnp.asarray(kappa))
    if features is not None and not relative:
        raise ValueError("expected `features` for an SDE, `kappa` above 0: an ODE is fitted to end points")
    task = Task(key, field, shape, steps, relative, trials, fine_steps, progress)
    table, about = fit_sde(task, features) if relative else fit_ode(task)
    about |= {"steps": steps, "batch": shape[0], "trials": trials, "fine_steps": fine_steps}
    return Plan(table, isotropic(), jnp.asarray(kappa, float), json.dumps(about))
