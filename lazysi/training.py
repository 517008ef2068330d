"""Training of velocity networks: flow matching along a schedule, with an averaged copy of the weights.

At a random time t the network sees I_t = alpha_t Z + beta_t X and learns the velocity alpha'_t Z + beta'_t X:

    loss = E || v(t, I_t, label) - (alpha'_t Z + beta'_t X) ||^2 / pixels.

Everything random in step n derives from (seed, n) alone, so a resumed run repeats an uninterrupted one exactly.
Reference: Albergo, Boffi and Vanden-Eijnden, "Stochastic Interpolants", arXiv 2303.08797.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lazysi.data import Dataset, to_unit_range
from lazysi.models.pretrained import save_pretrained
from lazysi.models.sit import SiT, SiTConfig
from lazysi.models.weights import flatten_state, read_header, read_tensors, unflatten_state, write_tensors
from lazysi.moments import cosine_basis, fit_moments
from lazysi.schedules import AbstractSchedule, derivatives, linear

__all__ = [
    "TrainingOptions",
    "TrainingState",
    "export",
    "flow_matching_loss",
    "restore",
    "save",
    "start",
    "train",
    "validation_loss",
]

VALIDATION_IMAGES = 2_000
VALIDATION_BATCH = 250
VALIDATION_SEED = 1_234


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Args:
        steps: optimiser steps in all.
        batch_size: images per step.
        learning_rate: peak rate of AdamW, after a linear warm-up and before a linear decay to zero.
        warmup_steps: steps of the warm-up.
        decay_fraction: fraction of `steps` over which the rate decays, at the end.
        weight_decay: of AdamW.
        ema_decay: decay of the averaged weights, reached gradually.
        label_dropout: fraction of labels replaced by "no label", for classifier-free guidance.
        seed: of everything random.
    """

    steps: int = 8_000
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    decay_fraction: float = 0.4
    weight_decay: float = 0.0
    ema_decay: float = 0.999
    label_dropout: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(f"expected `steps` and `batch_size` of at least 1, got {self.steps} and {self.batch_size}")
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"expected `label_dropout` in [0, 1], got {self.label_dropout}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"expected `ema_decay` in [0, 1), got {self.ema_decay}")
        if not 0 < self.decay_fraction <= 1:
            raise ValueError(f"expected `decay_fraction` in (0, 1], got {self.decay_fraction}")

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW behind gradient clipping, with warm-up, plateau and linear decay."""
        decay_steps = max(1, round(self.decay_fraction * self.steps))

        def rate(step: ArrayLike) -> Array:
            step = jnp.asarray(step)
            rise = (step + 1) / max(1, self.warmup_steps)
            fall = (self.steps - step) / decay_steps
            return self.learning_rate * jnp.clip(jnp.minimum(rise, fall), 0.0, 1.0)

        return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=self.weight_decay, b2=0.99))


class TrainingState(NamedTuple):
    """Everything that changes during training."""

    step: Int[Array, ""]
    parameters: nnx.State
    average: nnx.State
    optimizer: Any


def flow_matching_loss(
    velocity: Callable[[Array, Array, Array], Array],
    key: PRNGKeyArray,
    images: Float[Array, "batch *shape"],
    labels: Int[Array, " batch"],
    *,
    schedule: AbstractSchedule,
    label_dropout: float = 0.0,
    no_label: int = 0,
) -> Float[Array, ""]:
    """Mean squared error of the velocity at stratified uniform times, one per image.

    Args:
        velocity: (x, t, labels) -> velocity.
        key: draws times, noise and dropped labels.
        images: data in [-1, 1].
        labels: class of each image.
        schedule: the interpolant to train under.
        label_dropout: fraction of labels replaced by `no_label`.
        no_label: the label that means "no label".
    """
    order_key, time_key, noise_key, drop_key = jax.random.split(key, 4)
    batch = images.shape[0]
    t = (jax.random.permutation(order_key, batch) + jax.random.uniform(time_key, (batch,), images.dtype)) / batch
    noise = jax.random.normal(noise_key, images.shape, images.dtype)
    alpha, beta, alpha_dot, beta_dot = derivatives(schedule, t)
    column = (batch,) + (1,) * (images.ndim - 1)
    x = alpha.reshape(column) * noise + beta.reshape(column) * images
    target = alpha_dot.reshape(column) * noise + beta_dot.reshape(column) * images
    dropped = jax.random.uniform(drop_key, (batch,)) < label_dropout
    return jnp.mean(jnp.square(velocity(x, t, jnp.where(dropped, no_label, labels)) - target))


def start(config: SiTConfig, options: TrainingOptions) -> TrainingState:
    """State before the first step."""
    parameters = nnx.state(SiT(config, rngs=nnx.Rngs(options.seed)))
    return TrainingState(jnp.asarray(0), parameters, parameters, options.optimizer().init(parameters))


def train(
    config: SiTConfig,
    options: TrainingOptions,
    dataset: Dataset,
    state: TrainingState,
    *,
    schedule: AbstractSchedule | None = None,
    on_step: Callable[[TrainingState, float], None] | None = None,
) -> TrainingState:
    """Run the remaining steps.

    Args:
        config: size of the network.
        options: how to train.
        dataset: images and labels.
        state: where to go on, from `start` or `restore`.
        schedule: the interpolant; linear by default.
        on_step: called after every step with the new state and the loss; an exception raised there stops the training
            between two steps.

    Raises:
        ValueError: if the images do not have the network's shape, or a label is not one of its classes.
        FloatingPointError: if the loss is not finite, naming the step.
    """
    if dataset.images.shape[1:] != config.shape:
        raise ValueError(f"expected images of shape {config.shape}, got {dataset.images.shape[1:]}")
    if dataset.labels.size and config.classes and dataset.labels.max() >= config.classes:
        raise ValueError(f"expected labels below {config.classes}, got {dataset.labels.max()}")
    schedule = linear() if schedule is None else schedule
    labels_of_all = _labels(dataset.labels, config)
    for step in range(int(state.step), options.steps):
        chosen = _batch_indices(options, len(dataset.images), step)
        images, labels = jnp.asarray(to_unit_range(dataset.images[chosen])), jnp.asarray(labels_of_all[chosen])
        state, value = _update(config, options, schedule, state, images, labels)
        if not np.isfinite(value):
            raise FloatingPointError(f"the loss became {float(value)} at step {step + 1}")
        if on_step is not None:
            on_step(state, float(value))
    return state


def validation_loss(
    config: SiTConfig, parameters: nnx.State, dataset: Dataset, *, schedule: AbstractSchedule | None = None
) -> float:
    """Loss on up to 2,000 held-out images with fixed noise and times, labels kept."""
    schedule = linear() if schedule is None else schedule
    images = dataset.held_out_images[:VALIDATION_IMAGES]
    labels = _labels(dataset.held_out_labels, config)[:VALIDATION_IMAGES]
    total = 0.0
    for index, first in enumerate(range(0, len(images), VALIDATION_BATCH)):
        part = slice(first, first + VALIDATION_BATCH)
        key = jax.random.fold_in(jax.random.key(VALIDATION_SEED), index)
        arrays = jnp.asarray(to_unit_range(images[part])), jnp.asarray(labels[part])
        total += float(_validation_part(config, schedule, parameters, key, *arrays)) * len(images[part])
    return total / len(images)


def save(
    path: str | Path, config: SiTConfig, options: TrainingOptions, state: TrainingState, history: dict[str, Any]
) -> None:
    """Write a checkpoint from which `restore` goes on exactly.

    Args:
        path: safetensors file to write.
        config: size of the network.
        options: how it is being trained.
        state: what to keep.
        history: JSON data to carry along, for instance losses so far.

    Raises:
        OSError: if the file cannot be written.
    """
    tensors = {f"parameters.{name}": array for name, array in flatten_state(state.parameters).items()}
    tensors |= {f"average.{name}": array for name, array in flatten_state(state.average).items()}
    tensors |= {f"optimizer.{index}": jnp.asarray(leaf) for index, leaf in enumerate(jax.tree.leaves(state.optimizer))}
    header = {
        "kind": "checkpoint",
        "step": int(state.step),
        "config": dataclasses.asdict(config),
        "training": dataclasses.asdict(options),
        "history": history,
    }
    write_tensors(path, tensors, header)


def restore(path: str | Path) -> tuple[SiTConfig, TrainingOptions, TrainingState, dict[str, Any]]:
    """Read a checkpoint written by `save`.

    Returns:
        configuration, options, state and history.

    Raises:
        ValueError: if the file is truncated, foreign or does not fit its own configuration.
    """
    header = read_header(path)
    if header.get("kind") != "checkpoint":
        raise ValueError(f"expected a training checkpoint, got {path} of kind {header.get('kind')!r}")
    try:
        config, options = SiTConfig(**header["config"]), TrainingOptions(**header["training"])
        step, history = int(header["step"]), header["history"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"expected a checkpoint of this version of lazysi, got {path}: {error!r}") from error
    tensors = read_tensors(path)
    blank = jax.eval_shape(lambda: start(config, options))

    def part(prefix: str) -> dict[str, Any]:
        return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}

    parameters = unflatten_state(part("parameters."), blank.parameters, source=f"the parameters in {path}")
    average = unflatten_state(part("average."), blank.average, source=f"the averaged parameters in {path}")
    leaves, structure = jax.tree.flatten(blank.optimizer)
    stored = part("optimizer.")
    if stored.keys() != {str(index) for index in range(len(leaves))}:
        raise ValueError(f"expected {len(leaves)} optimiser arrays in {path}, got {len(stored)}")
    for index, leaf in enumerate(leaves):
        found = stored[str(index)]
        if found.shape != leaf.shape or found.dtype != leaf.dtype:
            raise ValueError(
                f"expected optimiser array {index} in {path} of {leaf.dtype}{list(leaf.shape)}, "
                f"got {found.dtype}{list(found.shape)}"
            )
    optimizer = jax.tree.unflatten(structure, [stored[str(index)] for index in range(len(leaves))])
    return config, options, TrainingState(jnp.asarray(step), parameters, average, optimizer), history


def export(
    path: str | Path,
    config: SiTConfig,
    options: TrainingOptions,
    state: TrainingState,
    dataset: Dataset,
    history: dict[str, Any],
) -> None:
    """Write a model file for `load_pretrained`: the averaged weights, the data moments and a summary of the training.

    Args:
        path: safetensors file to write.
        config: size of the network.
        options: how it was trained.
        state: where the training stands.
        dataset: what it was trained on.
        history: losses and seconds so far.

    Raises:
        OSError: if the file cannot be written.
    """
    moments = fit_moments(to_unit_range(dataset.images), cosine_basis)
    summary = {"steps_taken": int(state.step), **dataclasses.asdict(options), **history, "images": len(dataset.images)}
    save_pretrained(path, config, state.average, moments, dataset.class_names, summary)


@eqx.filter_jit
def _update(
    config: SiTConfig,
    options: TrainingOptions,
    schedule: AbstractSchedule,
    state: TrainingState,
    images: Array,
    labels: Array,
) -> tuple[TrainingState, Array]:
    """One step of the optimiser: the new state and the loss before it."""
    key = jax.random.fold_in(jax.random.key(options.seed), state.step)
    optimizer, graph = options.optimizer(), _graph(config)

    def loss(parameters: nnx.State) -> Array:
        return flow_matching_loss(
            nnx.merge(graph, parameters),
            key,
            images,
            labels,
            schedule=schedule,
            label_dropout=options.label_dropout,
            no_label=config.classes,
        )

    value, gradient = jax.value_and_grad(loss)(state.parameters)
    change, optimizer_state = optimizer.update(gradient, state.optimizer, state.parameters)
    parameters = cast(nnx.State, optax.apply_updates(state.parameters, change))
    decay = jnp.minimum(options.ema_decay, (1 + state.step) / (10 + state.step))
    average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.average, parameters)
    return TrainingState(state.step + 1, parameters, average, optimizer_state), value


@eqx.filter_jit
def _validation_part(
    config: SiTConfig,
    schedule: AbstractSchedule,
    parameters: nnx.State,
    key: PRNGKeyArray,
    images: Array,
    labels: Array,
) -> Array:
    return flow_matching_loss(nnx.merge(_graph(config), parameters), key, images, labels, schedule=schedule)


def _graph(config: SiTConfig) -> nnx.GraphDef[SiT]:
    return nnx.graphdef(nnx.eval_shape(lambda: SiT(config, rngs=nnx.Rngs(0))))


def _labels(labels: np.ndarray, config: SiTConfig) -> np.ndarray:
    """Labels to train on: "no label" throughout for an unconditional network."""
    return labels if config.classes else np.zeros_like(labels)


def _batch_indices(options: TrainingOptions, count: int, step: int) -> np.ndarray:
    """Images of one step: every epoch passes through the data in its own random order."""
    position = np.arange(step * options.batch_size, (step + 1) * options.batch_size)
    chosen = np.empty(options.batch_size, np.int64)
    for epoch in np.unique(position // count):
        order = np.random.RandomState([options.seed, epoch]).permutation(count)
        mine = position // count == epoch
        chosen[mine] = order[position[mine] % count]
    return chosen
