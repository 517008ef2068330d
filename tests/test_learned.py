"""Learned schedules and samplers: exactly what they began with, monotone, and differentiable in every parameter."""

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import SCHEDULES, plane_mixture
from selection import slow_but

import lazysi as lz
from lazysi.fitting import rollout
from lazysi.multistep import log_variable

KEY = jax.random.key(3)
DIFFERENCES = 1e-6  # relative: gradients against central differences, in float64
STEP = 1e-3  # of five-point differences: exact to its fourth power
INVERSE = 1e-12  # float64: rounding of a time
SINGLE = 1e-5  # float32: the same samples by another program
METHODS = {
    "default": lambda: lz.learned_steps((1, 2), 4),
    "default SDE": lambda: lz.learned_steps((1, 2), 5, kappa=1.0),
    "lazy, order 3": lambda: lz.learned_steps((1, 2), 6, solver=lz.Multistep(3, corrector=True)),
    "UniPC-2": lambda: lz.learned_steps((1, 2), 4, frame=lz.point_frame(), solver=unipc(), denoise=True),
}


def unipc():
    return lz.Multistep(2, corrector=True, midpoint=True, variable=log_variable, taper=True)


def moved(tree, size):
    """Every number changed at random."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(8), len(leaves))
    changed = [leaf + size * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, changed)


def test_velocities_at_the_ends_are_limits(x64):
    """One-sided derivatives of alpha, beta at 0 and 1; finite parameter gradients where the base is infinitely fast."""
    warped = eqx.tree_at(lambda s: s.clock, lz.learned_schedule(lz.linear()), jnp.linspace(1.0, -1.0, 6))
    for end, inside in ((0.0, 1e-7), (1.0, 1 - 1e-7)):
        for curve in (warped.alpha, warped.beta):
            assert jax.grad(curve)(end) == pytest.approx(float(jax.grad(curve)(inside)), rel=1e-5)
    fast = lz.learned_schedule(lz.lazy(0.0))
    for end in (0.0, 1.0):
        moved = jax.grad(lambda clock, end=end: eqx.tree_at(lambda s: s.clock, fast, clock).alpha(end))(fast.clock)
        assert np.all(np.asarray(moved) == 0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_learned_schedule_begins_exactly_at_its_base(name):
    base = SCHEDULES[name]()
    learned, t = lz.learned_schedule(base, 5), jnp.linspace(0, 1, 41)
    for curve in ("alpha", "beta", "angle", "radius"):
        np.testing.assert_array_equal(getattr(learned, curve)(t), getattr(base, curve)(t))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", slow_but({"linear"}, ["linear", "variance_exploding", "point_mass"]))
def test_whatever_the_parameters_the_angle_rises_and_the_ends_stay(name):
    base, t = SCHEDULES[name](), jnp.linspace(0, 1, 201)
    learned = moved(lz.learned_schedule(base), 1.0)
    learned = eqx.tree_at(lambda schedule: schedule.base, learned, base)
    assert np.all(np.diff(learned.angle(t)) > 0)
    assert np.all(learned.radius(t[1:]) > 0)
    for curve in ("alpha", "beta"):
        ends = t[jnp.asarray([0, -1])]
        np.testing.assert_array_equal(getattr(learned, curve)(ends), getattr(base, curve)(ends))
    np.testing.assert_allclose(learned.time(learned.angle(t)), t, atol=INVERSE / float(jnp.diff(learned.warp(t)).min()))
    slope = jax.vmap(jax.grad(lambda angle: learned.time(angle)))(learned.angle(t[1:-1]))
    expected = 1 / jax.vmap(jax.grad(lambda t: learned.angle(t)))(t[1:-1])
    np.testing.assert_allclose(slope, expected, rtol=DIFFERENCES)
    outside = base.angle(1.0) + 0.3 * (jnp.pi / 2 - base.angle(1.0)) if name == "variance_exploding" else None
    if outside is not None:
        assert learned.time(outside) == base.time(outside)


@pytest.mark.parametrize("name", slow_but({"default", "UniPC-2"}, METHODS))
def test_learned_steps_begin_exactly_at_their_method(name):
    learned = METHODS[name]()
    known = learned.method(learned.angles())
    np.testing.assert_array_equal(learned.angles(), jnp.asarray(learned.grid))
    for ours, theirs in zip(jax.tree.leaves(learned.table()), jax.tree.leaves(known), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert np.all(np.diff(moved(learned, 1.0).angles()) > 0)


@pytest.mark.parametrize("kappa", [0.0, 1.0])
def test_they_sample_as_the_default_sampler_at_first(kappa):
    field, steps = plane_mixture(), 4
    learned = lz.learned_steps((6, 2), steps, kappa=kappa)
    expected = lz.sample(KEY, field, (6, 2), steps=steps, kappa=kappa)
    np.testing.assert_allclose(lz.sample(KEY, field, (6, 2), plan=learned.plan()), expected, atol=SINGLE)
    drawn = rollout(KEY, field, learned.plan(), jnp.arange(6), (2,), steps=steps)
    np.testing.assert_allclose(drawn, expected, atol=SINGLE)


@pytest.mark.parametrize("name", METHODS)
def test_a_learned_plan_begins_at_the_plan(name):
    plan = moved(METHODS[name](), 0.1).plan()
    again = lz.learned_plan(plan).plan()
    np.testing.assert_array_equal(again.table.angles, plan.table.angles)
    for part in ("data", "noise", "stay", "weights", "spread"):
        np.testing.assert_allclose(getattr(again.table, part), getattr(plan.table, part), atol=SINGLE)


def schedule_with_parameters():
    return lz.learned_schedule(lz.shifted(lz.lazy(0.5), 1.5), 4)


def through_schedule(key, field, learned):
    return rollout(key, field, learned, jnp.arange(5), (2,), steps=5, kappa=0.7)


def through_plan(key, field, learned):
    return lz.sample(key, field, (5, 2), plan=learned.plan())


def through_rollout(key, field, learned):
    return rollout(key, field, learned.plan(), jnp.arange(5), (2,), steps=learned.stay.size)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("make", "draw"),
    [
        pytest.param(schedule_with_parameters, through_schedule, id="schedule", marks=pytest.mark.slow),
        pytest.param(METHODS["default"], through_rollout, id="default"),
        pytest.param(METHODS["default SDE"], through_plan, id="default SDE", marks=pytest.mark.slow),
        pytest.param(METHODS["lazy, order 3"], through_plan, id="lazy, order 3", marks=pytest.mark.slow),
        pytest.param(METHODS["UniPC-2"], through_rollout, id="UniPC-2", marks=pytest.mark.slow),
    ],
)
def test_gradient_of_the_end_point_in_every_parameter(make, draw):
    field, learned = plane_mixture(), moved(make(), 0.05)
    flat, unravel = jax.flatten_util.ravel_pytree(learned)
    weights = jax.random.normal(jax.random.key(6), (5, 2))
    end = jax.jit(lambda flat: jnp.vdot(weights, draw(KEY, field, unravel(flat))))
    shifts = STEP * np.eye(flat.size)
    found = np.asarray(jax.grad(end)(flat))
    near, far = (np.asarray([end(flat + k * s) - end(flat - k * s) for s in shifts]) for k in (1, 2))
    expected = (8 * near - far) / (12 * STEP)
    floor = DIFFERENCES * np.abs(expected).max() * 1e-2  # what the noise of a difference is to small entries
    np.testing.assert_allclose(found, expected, rtol=DIFFERENCES, atol=floor)


def test_optax_moves_them():
    field, learned = plane_mixture(), lz.learned_steps((8, 2), 3)
    end = lz.sample(KEY, field, (8, 2), steps=64)
    loss = jax.jit(lambda learned: jnp.mean((lz.sample(KEY, field, (8, 2), plan=learned.plan()) - end) ** 2))
    optimizer = optax.adam(0.01)
    state, before = optimizer.init(learned), float(loss(learned))
    slopes = jax.jit(jax.grad(loss))
    for _ in range(10):
        moves, state = optimizer.update(slopes(learned), state)
        learned = optax.apply_updates(learned, moves)
    assert loss(learned) < 0.7 * before  # measured 0.3


class Wide(eqx.Module):
    """A network of several wide layers."""

    layers: jax.Array

    def __call__(self, t, x):
        h = jnp.tile(x, (1, 128))
        for layer in self.layers:
            h = jnp.tanh(h @ layer)
        return h[:, :2] - x


@pytest.mark.slow
def test_memory_does_not_grow_with_network_times_steps():
    """The bytes that the compiled gradient needs beside its arguments."""
    field = lz.velocity_field(Wide(0.05 * jax.random.normal(KEY, (6, 256, 256))), lz.linear())

    def bytes_for(steps):
        learned = lz.learned_steps((1, 2), steps)
        end = lambda learned: rollout(KEY, field, learned.plan(), jnp.arange(512), (2,), steps=steps).sum()  # noqa: E731
        return jax.jit(jax.grad(end)).lower(learned).compile().memory_analysis().temp_size_in_bytes

    few, many = bytes_for(4), bytes_for(24)
    inside = 6 * 512 * 256 * 4  # activations of one evaluation, which without checkpoints would be kept for each step
    assert many - few < inside  # measured a tenth of that, for the states


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: lz.learned_schedule(lz.linear(), 0), "expected `pieces` to be an integer of at least 1, got 0"),
        (lambda: lz.learned_steps((1, 2), 0), "expected `steps` to be an integer of at least 1, got 0"),
        (
            lambda: lz.learned_steps((1, 2), 4, solver=lz.linear()),
            "expected a Multistep method as `solver`, got Linear",
        ),
        (
            lambda: lz.learned_steps((1, 2), 4, moments=lz.diagonal([0.0, 0.0], [1.0, 2.0])),
            "expected one frame with one mean for all entries of a sample",
        ),
        (
            lambda: jax.jit(lambda kappa: lz.learned_steps((1, 2), 4, kappa=kappa).stay)(1.0),
            "expected `learned_steps` outside of jit",
        ),
    ],
)
def test_bad_arguments(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
