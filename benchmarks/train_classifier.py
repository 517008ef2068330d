"""How were the weights of the bundled classifier made?

    python benchmarks/train_classifier.py # 17 minutes on two busy cores: test accuracy 0.9228

Cross-entropy with smoothed labels, AdamW, random flips and shifts by up to two pixels, averaged weights. Nothing is
chosen by the test images: the accuracy on them is measured once, at the end, and kept in the header of the weights
file. A run that was stopped goes on from its checkpoint; everything random in a step derives from (seed, step).
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array

from lazysi.data import Dataset, load_dataset, to_unit_range
from lazysi.models.classifier import Classifier, ClassifierConfig, PretrainedClassifier, save_classifier
from lazysi.models.weights import parameter_count, read_header, read_tensors, write_tensors

BATCH = 128
PEAK_RATE, WEIGHT_DECAY, SMOOTHING, DECAY = 2e-3, 0.02, 0.1, 0.999
SHIFT = 2  # pixels
SAVE_EVERY = 250  # steps
SEED = 0


def augment(key: Array, images: Array) -> Array:
    """Flip every image with probability 1/2, and shift it by up to `SHIFT` pixels each way."""
    flip_key, shift_key = jax.random.split(key)
    flipped = jnp.where(jax.random.bernoulli(flip_key, 0.5, (len(images), 1, 1, 1)), images[:, :, ::-1], images)
    padded = jnp.pad(flipped, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), constant_values=-1)
    corners = jax.random.randint(shift_key, (len(images), 2), 0, 2 * SHIFT + 1)
    return jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:]))(padded, corners)


def train(dataset: Dataset, config: ClassifierConfig, epochs: int, checkpoint: Path | None) -> tuple[nnx.State, dict]:
    """Averaged weights after `epochs` passes through the training images, and a summary of the training."""
    per_epoch = len(dataset.images) // BATCH
    steps = max(1, epochs * per_epoch)
    rate = optax.cosine_onecycle_schedule(steps, PEAK_RATE, pct_start=0.15)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=WEIGHT_DECAY))
    graph, parameters = nnx.split(Classifier(config, rngs=nnx.Rngs(SEED)))
    state = (parameters, parameters, optimizer.init(parameters))
    leaves, structure = jax.tree.flatten(state)
    begin, seconds = 0, 0.0
    if checkpoint is not None and checkpoint.exists():
        stored, header = read_tensors(checkpoint), read_header(checkpoint)
        state = jax.tree.unflatten(structure, [stored[str(index)] for index in range(len(leaves))])
        begin, seconds = header["step"], header["seconds"]

    @jax.jit
    def update(state: tuple, step: Array, images: Array, labels: Array) -> tuple[tuple, Array]:
        parameters, average, optimizer_state = state
        images = augment(jax.random.fold_in(jax.random.key(SEED), step), images)
        targets = optax.smooth_labels(jax.nn.one_hot(labels, config.classes), SMOOTHING)

        def loss(parameters: nnx.State) -> Array:
            return optax.softmax_cross_entropy(nnx.merge(graph, parameters)(images)[1], targets).mean()

        value, gradient = jax.value_and_grad(loss)(parameters)
        change, optimizer_state = optimizer.update(gradient, optimizer_state, parameters)
        parameters = optax.apply_updates(parameters, change)
        decay = jnp.minimum(DECAY, (1 + step) / (10 + step))
        average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, parameters)
        return (parameters, average, optimizer_state), value

    clock = time.perf_counter()
    for step in range(begin, steps):
        epoch, position = divmod(step, max(1, per_epoch))
        order = np.random.RandomState([SEED, epoch]).permutation(len(dataset.images))
        chosen = order[position * BATCH : (position + 1) * BATCH]
        images, labels = jnp.asarray(to_unit_range(dataset.images[chosen])), jnp.asarray(dataset.labels[chosen])
        state, loss = update(state, jnp.asarray(step), images, labels)
        if (step + 1) % SAVE_EVERY == 0 and checkpoint is not None:
            now = time.perf_counter()
            seconds, clock = seconds + now - clock, now
            print(f"step {step + 1} of {steps}: loss {float(loss):.4f}, {seconds:.0f} s", flush=True)
            tensors = {str(index): jnp.asarray(leaf) for index, leaf in enumerate(jax.tree.leaves(state))}
            write_tensors(checkpoint, tensors, {"kind": "checkpoint", "step": step + 1, "seconds": seconds})
    summary = {
        "images": len(dataset.images),
        "epochs": epochs,
        "steps": steps,
        "batch_size": BATCH,
        "peak_rate": PEAK_RATE,
        "weight_decay": WEIGHT_DECAY,
        "label_smoothing": SMOOTHING,
        "average_decay": DECAY,
        "augmentation": f"flips, shifts by up to {SHIFT} pixels",
        "seconds": round(seconds + time.perf_counter() - clock),
    }
    return state[1], summary


def accuracy(classifier: PretrainedClassifier, images: np.ndarray, labels: np.ndarray) -> float:
    """Fraction of images that the classifier puts in their class."""
    found = [
        np.asarray(classifier.logits(jnp.asarray(to_unit_range(images[first : first + 500])))).argmax(-1)
        for first in range(0, len(images), 500)
    ]
    return float((np.concatenate(found) == labels).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist", help="data set, as for `lazysi train`")
    parser.add_argument("--epochs", type=int, default=12, help="passes through the training images")
    parser.add_argument("--out", type=Path, default=Path("fashion-mnist-classifier.safetensors"), help="weights file")
    parser.add_argument("--smoke", action="store_true", help="a small run that writes nothing")
    arguments = parser.parse_args()
    if arguments.smoke:
        labels = np.arange(BATCH, dtype=np.int32) % 2
        images = np.where(labels[:, None, None, None] == 0, 40, 200) * np.ones((BATCH, 8, 8, 1), np.uint8)
        dataset = Dataset(images.astype(np.uint8), labels, images.astype(np.uint8), labels, ("dark", "bright"))
        config, checkpoint = ClassifierConfig(8, 1, 4, 8, 2), None
    else:
        dataset, config = load_dataset(arguments.data), ClassifierConfig()
        checkpoint = arguments.out.with_name("checkpoint-" + arguments.out.name)
    parameters, summary = train(dataset, config, arguments.epochs, checkpoint)
    classifier = PretrainedClassifier(config, parameters, dataset.class_names, {})
    measured = accuracy(classifier, dataset.held_out_images, dataset.held_out_labels)
    print(f"{parameter_count(parameters):,} parameters, test accuracy {measured:.4f}, {summary['seconds']} s")
    if not arguments.smoke:
        save_classifier(
            arguments.out, config, parameters, dataset.class_names, summary, test_accuracy=round(measured, 4)
        )


if __name__ == "__main__":
    main()
