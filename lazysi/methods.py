"""Methods: from checked options to the grid and the table of the multistep method that they come to."""

import functools
import math
from typing import cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from lazysi.checks import known
from lazysi.defaults import Method, default_method
from lazysi.frames import gaussian_frame
from lazysi.grids import uniform_time
from lazysi.options import Options
from lazysi.plans import Plan
from lazysi.solvers import Multistep

__all__ = ["grid_of", "method_of", "tabulated"]


def grid_of(options: Options, event: tuple[int, ...]) -> Array:
    """Angles of the steps."""
    if options.plan is not None:
        return options.plan.table.angles.astype(options.dtype).at[-1].set(jnp.pi / 2)
    if options.grid is not None:
        return options.grid
    if not _takes_table(options):
        return uniform_time(options.steps, options.schedule).astype(options.dtype)
    return method_of(options, event).grid(options.steps).astype(options.dtype)


def _takes_table(options: Options) -> bool:
    """Whether a multistep method in a frame is run, ours or a default."""
    return options.schedule is None and isinstance(options.solver, Multistep | None)


def method_of(options: Options, event: tuple[int, ...]) -> Method:
    """Frame, solver and last step of a multistep method, asked for or default."""
    kappa = jnp.asarray(options.kappa, options.dtype)
    if options.solver is None and options.frame is None:
        one_path = options.tolerance is not None
        return default_method(options.steps, kappa, options.moments, math.prod(event), one_path=one_path)
    frame = gaussian_frame(options.moments) if options.frame is None else options.frame
    solver = Multistep(jnp.where(kappa > 0, 1, 2)) if options.solver is None else cast(Multistep, options.solver)
    # with the right moments, or in one step, the frozen step is the right law
    bare, one = options.frame is None and options.moments is None and options.steps > 1, jnp.ones((), options.dtype)
    return Method(frame, solver, frame.is_open() | (bare & (kappa > 0)), one, one)


def tabulated(options: Options, event: tuple[int, ...]) -> Options:
    """The same with a multistep method as the plan it comes to, made by a program of its own.

    So all methods, asked for, default or planned, share the program that follows a table: in a session that compares
    them it is compiled once for each number of steps, and the network with it. The plan of the default is kept, because
    making it takes as long as some evaluations of a small network.
    """
    if not _takes_table(options) or options.plan is not None:
        return options
    kappa, ours = known(options.kappa), (options.solver, options.frame, options.moments, options.grid)
    usual = all(part is None for part in ours) and isinstance(options.denoise, bool | None)
    # under a mesh arrays belong to it, and would not serve outside
    if usual and kappa is not None and jax.sharding.get_abstract_mesh().empty:
        tolerance = None if options.tolerance is None else float(options.tolerance)
        numbers = (options.steps, options.dtype, float(kappa), options.denoise, tolerance)
        plan = _default_plan(*numbers, event, jnp.result_type(float))
    else:
        plan = _plan_of(options._replace(chunk_size=None), event)
    return options._replace(plan=plan, solver=None, frame=None, moments=None, grid=None, denoise=None)


@functools.lru_cache(maxsize=256)
def _default_plan(
    steps: int,
    dtype: jnp.dtype,
    kappa: float,
    denoise: bool | None,
    tolerance: float | None,
    event: tuple[int, ...],
    inside: jnp.dtype,
) -> Plan:
    """The plan that the default comes to, numbers also while something else is traced; `inside` is JAX's float."""
    del inside  # in which the coefficients are made: others, in the same dtype
    with jax.ensure_compile_time_eval():
        return _plan_of(Options(steps, dtype, jnp.asarray(kappa, dtype), denoise=denoise, tolerance=tolerance), event)


@eqx.filter_jit
def _plan_of(options: Options, event: tuple[int, ...]) -> Plan:
    method, kappa = method_of(options, event), jnp.asarray(options.kappa, options.dtype)
    grid = method.grid(options.steps).astype(options.dtype) if options.grid is None else options.grid
    denoise = method.denoise if options.denoise is None else options.denoise
    frame = jax.tree.map(lambda leaf: leaf.astype(options.dtype), method.frame)
    return Plan(method._replace(frame=frame, denoise=jnp.asarray(denoise)).table(grid, kappa), frame.moments, kappa)
