"""`lazysi evaluate`: measure how good samples are.

Two draws of the reference law are kept apart: the samples are compared with one of them, and so is the other draw,
which gives the value of each measure for perfect samples of this number.
"""

import contextlib
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.table import Table

from lazysi.cli.common import (
    DEFAULT_MODEL,
    ChunkSize,
    Guidance,
    Kappa,
    Labels,
    Model,
    Number,
    OneSentence,
    PlanSource,
    ScheduleName,
    Seed,
    Shift,
    Steps,
    UseMoments,
    check_at_least,
    check_features,
    check_guided,
    conditioned,
    console,
    draw_samples,
    find_features,
    find_labels,
    find_sampler,
)

if TYPE_CHECKING:
    import numpy as np

    from lazysi.models.classifier import PretrainedClassifier
    from lazysi.models.pretrained import PretrainedModel

FINE = "fine"
MEASURES = {
    "rms": "RMS to the fine-grid end point",
    "sliced_wasserstein": "sliced Wasserstein distance",
    "frechet": "Frechet distance in features",
    "precision": "precision",
    "recall": "recall",
    "agreement": "classifier agrees with the class",
    "total_std": "total standard deviation",
    "bits_per_dimension": "bits per dimension of the reference",
}
FEWEST = 4  # samples for the third nearest neighbour of precision and recall


class Draw(NamedTuple):
    """Images, in [-1, 1] or bytes, and the class of each where it is known."""

    images: "np.ndarray"
    labels: "np.ndarray | None" = None
    class_names: tuple[str, ...] = ()

    def take(self, chosen: "slice | np.ndarray") -> "Draw":
        """Some of them, in [-1, 1]."""
        from lazysi.data import to_unit_range

        images = self.images[chosen]
        labels = None if self.labels is None else self.labels[chosen]
        return Draw(to_unit_range(images) if images.dtype == "uint8" else images, labels, self.class_names)


Draws = tuple[Draw, Draw]


def evaluate(
    context: typer.Context,
    model: Model = DEFAULT_MODEL,
    steps: Steps = 8,
    kappa: Kappa = 0.0,
    schedule: ScheduleName = "lazy",
    shift: Shift = None,
    moments: UseMoments = False,
    plan: PlanSource = None,
    guidance: Guidance = 1.0,
    labels: Labels = "all",
    n: Number = 2_000,
    seed: Seed = 0,
    reference: Annotated[
        str,
        typer.Option(
            help="'fine': the model itself on a fine grid; or a .npz of samples (one half, drawn again: the other), "
            "or data as for [bold]lazysi train[/bold] (held-out images, drawn again: training images)."
        ),
    ] = FINE,
    fine_steps: Annotated[int, typer.Option(help="Steps of the fine grid.")] = 64,
    samples: Annotated[
        str | None, typer.Option(help="Evaluate the first -n images of this .npz of samples, or data, without a model.")
    ] = None,
    classifier: Annotated[
        str, typer.Option(help="Whose features to measure in: a bundled classifier, a classifier file, or 'none'.")
    ] = "fashion-mnist",
    bits: Annotated[
        int,
        typer.Option(
            help="Bits per dimension of so many held-out images of --reference, by the model's likelihood (ODE, "
            "Hutchinson's estimate)."
        ),
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the figures to this .json file.")] = None,
    chunk_size: ChunkSize = 256,
) -> None:
    """Measure the quality of samples against a reference, beside a second draw of the reference itself."""
    with OneSentence():
        from lazysi.files import check_writable, whole_file

        if out is not None:
            check_writable(out, (".json",))
        check_at_least(FEWEST, {"-n": n})
        check_at_least(1, {"--chunk-size": chunk_size, "--fine-steps": fine_steps})
        check_at_least(0, {"--bits": bits})
        if bits and (samples is not None or reference == FINE):
            raise ValueError("expected --bits with a model and a --reference of images, got it without")
        import numpy as np

        import lazysi as lz
        from lazysi.defaults import fine_options

        judge = find_features(classifier)
        network = None
        if samples is None:
            network = lz.load_pretrained(model)
            check_features(judge, network.shape)
            classes = find_labels(labels, network)
            check_guided(context, guidance, classes)
            settings, guidance = find_sampler(
                context,
                network,
                steps=steps,
                kappa=kappa,
                guidance=guidance,
                classes=classes,
                schedule=schedule,
                shift=shift,
                moments=moments,
                plan=plan,
            )
            steps, kappa = settings["steps"], settings["kappa"]
            only = None if classes is None or len(set(classes)) == network.config.classes else classes
            data = None if reference == FINE else _two_draws(reference, n, seed, network.class_names, only)
            _check_alike(network.shape, data)  # before the long work
            if data is not None and bits > (held_out := len(data[1].images)):
                raise ValueError(f"expected --bits of at most the {held_out} images of --reference, got {bits}")
            asked = None if classes is None else np.resize(np.asarray(classes), n)

            def draw(times: int, settings: dict[str, Any]) -> list[Draw]:
                """Draws of n samples each: the first from the noise of these n, the second from the next n."""
                every = None if asked is None else np.tile(asked, times).tolist()
                field, count = conditioned(network, every, times * n, guidance), times * n
                found, *_ = draw_samples(field, network.shape, count, seed, min(chunk_size, count), settings)
                return [Draw(part, asked, network.class_names) for part in np.split(found, times)]

            (drawn,) = draw(1, settings)
            again, first = data or draw(2, {"kappa": kappa} | fine_options(fine_steps, noisy=kappa > 0))
            about: dict[str, Any] = {"model": model, "steps": steps, "kappa": kappa, "schedule": schedule}
            about |= {"shift": shift, "moments": moments, "guidance": guidance, "labels": classes}
            about |= {"fine_steps": None if data else fine_steps} | ({} if plan is None else {"plan": plan})
        elif reference == FINE:
            raise ValueError(f"expected --reference to name data or a file of samples for --samples, got {FINE}")
        else:
            drawn, (again, first) = _given(samples, n), _two_draws(reference, n, seed)
            check_features(judge, drawn.images.shape[1:])
            _check_alike(drawn.images.shape[1:], (again, first))
            about = {"samples": samples}
        about |= {"count": len(drawn.images), "reference": reference, "reference_count": len(first.images)}
        about |= {"classifier": classifier, "seed": seed} | ({"bits_count": bits} if bits else {})
        figures: dict[str, float] = {}
        if samples is None and reference == FINE and kappa == 0:  # a noise has one end point
            figures["rms"] = float(lz.metrics.rms(drawn.images, again.images))
        with console.status("measuring"):
            figures |= _measure(drawn, first, judge, seed)
            if bits and network is not None:
                figures["bits_per_dimension"] = _bits(network, first, bits, seed, guidance)
            beside = _measure(again, first, judge, seed)
        _report(figures, beside)
        if out is not None:
            with whole_file(out) as part:
                content = {"about": about, "samples": figures, "reference_drawn_again": beside}
                part.write_text(json.dumps(content, indent=1) + "\n")
            console.print(f"written {out}")


def _report(figures: dict[str, float], beside: dict[str, float]) -> None:
    table = Table("measure")
    for name in ("samples", "reference, drawn again"):
        table.add_column(name, justify="right")
    for name, value in figures.items():
        table.add_row(MEASURES[name], f"{value:.4g}", f"{beside[name]:.4g}" if name in beside else "")
    console.print(table)


def _measure(draw: Draw, reference: Draw, classifier: "PretrainedClassifier | None", seed: int) -> dict[str, float]:
    """Every measure that the images allow."""
    import jax

    from lazysi import metrics

    key = jax.random.key(seed)
    found = {"sliced_wasserstein": float(metrics.sliced_wasserstein(key, draw.images, reference.images))}
    if classifier is not None:
        ours, theirs = (metrics.features(classifier.features, part.images) for part in (draw, reference))
        found["frechet"] = metrics.frechet_distance(theirs, ours)
        found["precision"], found["recall"] = metrics.precision_recall(theirs, ours)
        if draw.labels is not None and draw.class_names == classifier.class_names:
            logits = metrics.features(classifier.logits, draw.images)
            found["agreement"] = float((logits.argmax(-1) == draw.labels).mean())
    return found | {"total_std": float(metrics.total_std(draw.images))}


def _bits(network: "PretrainedModel", draw: Draw, count: int, seed: int, guidance: float) -> float:
    """Mean bits per dimension of the first images, each given its class where the model knows it."""
    import jax
    import numpy as np

    import lazysi as lz

    images = np.clip(np.round((draw.images[:count] + 1) * 127.5), 0, 255).astype(np.uint8)
    labels = None
    if draw.labels is not None and draw.class_names == network.class_names:
        labels = draw.labels[:count].tolist()
    field = conditioned(network, labels, len(images), guidance)
    return float(lz.bits_per_dimension(jax.random.key(seed), field, images).mean())


def _check_alike(shape: tuple[int, ...], draws: Draws | None) -> None:
    for draw in draws or ():
        if draw.images.shape[1:] != tuple(shape):
            raise ValueError(f"expected reference images of shape {shape}, got {draw.images.shape[1:]}")


def _given(source: str, count: int) -> Draw:
    """The first images of a file of samples, or of data."""
    import numpy as np

    draws = _load(source)
    labels = [draw.labels for draw in draws if draw.labels is not None]
    images = np.concatenate([draw.images for draw in draws])
    return Draw(images, np.concatenate(labels) if labels else None, draws[0].class_names).take(slice(count))


def _two_draws(source: str, count: int, seed: int, names: tuple[str, ...] = (), only: list[int] | None = None) -> Draws:
    """Two disjoint random draws of up to `count` images, of data or of a file; the second is the reference."""
    import numpy as np

    draws = _load(source)
    orders = [np.random.RandomState(seed).permutation(len(draw.images)) for draw in draws]
    if len(draws) == 1:  # two halves
        draws, orders = draws * 2, np.array_split(orders[0], 2)
    chosen = []
    for draw, order in zip(draws, orders, strict=True):
        if only is not None:
            if draw.labels is None or draw.class_names != names:
                raise ValueError(f"expected --reference with the classes of the model for --labels, got {source}")
            order = order[np.isin(draw.labels[order], only)]
        chosen.append(draw.take(order[:count]))
    return chosen[0], chosen[1]


def _load(source: str) -> list[Draw]:
    """One draw from a file of samples; two from data, its training and its held-out images."""
    import numpy as np

    import lazysi as lz
    from lazysi.data import load_dataset

    if (path := Path(source)).suffix == ".npz" and zipfile.is_zipfile(path):
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name in {"samples", "about"}}
        if "samples" in arrays:
            images, about = arrays["samples"], json.loads(str(arrays.get("about", "{}")))
            if images.ndim != 4 or not np.issubdtype(images.dtype, np.floating):
                raise ValueError(
                    f"expected float samples (count, height, width, channels) in {path}, "
                    f"got {images.dtype} {images.shape}"
                )
            if not about.get("labels"):
                return [Draw(images)]
            names = ()
            with contextlib.suppress(ValueError):  # the model is no longer there
                names = lz.load_pretrained(about["model"]).class_names
            return [Draw(images, np.resize(np.asarray(about["labels"]), len(images)), names)]
    data = load_dataset(source)
    parts = ((data.images, data.labels), (data.held_out_images, data.held_out_labels))
    return [Draw(images, labels if data.class_names else None, data.class_names) for images, labels in parts]
