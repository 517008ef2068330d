"""Pictures: samples as a grid of images, and the curves of the schedules."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lazysi.files import whole_file
from lazysi.schedules import AbstractSchedule, angle

__all__ = ["image_grid", "plot_schedules", "save_samples"]

MARGIN = 2  # pixels between images
SMALLEST = 56  # images below this many pixels are enlarged


def image_grid(images: np.ndarray, columns: int) -> Image.Image:
    """Images side by side, row by row.

    Args:
        images: shape (count, height, width, channels) in [-1, 1] (values beyond are shown as black or white), one or
            three channels.
        columns: images in a row.

    Raises:
        ValueError: if the array is no set of images.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in {1, 3} or not len(images):
        raise ValueError(f"expected images (count, height, width, 1 or 3), got an array of shape {images.shape}")
    if not np.isfinite(images).all():
        raise ValueError("expected finite images, got NaN or infinity")
    count, height, width, channels = images.shape
    factor = -(-SMALLEST // height) if height < SMALLEST else 1
    pixels = np.round((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    rows, columns = -(-count // columns), min(columns, count)
    step = (height * factor + MARGIN, width * factor + MARGIN)
    canvas = np.full((rows * step[0] + MARGIN, columns * step[1] + MARGIN, channels), 255, np.uint8)
    for index, image in enumerate(pixels):
        top, left = (MARGIN + position * size for position, size in zip(divmod(index, columns), step, strict=True))
        canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return Image.fromarray(canvas[..., 0] if channels == 1 else canvas)


def save_samples(path: Path, samples: np.ndarray, *, columns: int, about: Mapping[str, Any]) -> None:
    """Write samples as a `.png` grid, or as arrays to `.npz`, with what they are in the metadata.

    Args:
        path: ends in .png or .npz.
        samples: images in [-1, 1].
        columns: images in a row of the grid.
        about: JSON values: settings of the run; kept in the file.

    Raises:
        OSError: if the file cannot be written.
    """
    text = json.dumps(about)
    if path.suffix.lower() == ".npz":
        with whole_file(path) as part, part.open("wb") as file:
            np.savez_compressed(file, samples=samples, about=np.asarray(text))
        return
    metadata = PngInfo()
    metadata.add_text("lazysi", text)
    picture = image_grid(samples, columns)
    with whole_file(path) as part:
        picture.save(part, format="PNG", pnginfo=metadata)


def plot_schedules(path: Path, schedules: Mapping[str, AbstractSchedule]) -> None:
    """Draw the curves in the quarter plane, and the angle against time.

    Args:
        path: ends in .png, .pdf or .svg.
        schedules: by name.

    Raises:
        OSError: if the file cannot be written.
    """
    from matplotlib.figure import Figure  # a second to import: only where a plot is drawn

    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    plane, clock = figure.subplots(1, 2)
    t = jnp.linspace(0, 1, 401)
    for index, (name, schedule) in enumerate(schedules.items()):
        style = ("-", "--", "-.", ":")[index % 4]  # curves that coincide show through each other
        plane.plot(schedule.beta(t), schedule.alpha(t), style, label=name)
        clock.plot(t, angle(schedule, t), style, label=name)
    plane.set(xlabel="beta (data)", ylabel="alpha (noise)", xlim=(-0.03, 1.1), ylim=(-0.03, 1.1), aspect="equal")
    plane.set_title("curves: noise at the top left, data at the bottom right", fontsize=10)
    clock.set(xlabel="time", ylabel="angle", yticks=[0, np.pi / 4, np.pi / 2])
    clock.set_yticklabels(["0: noise", "pi/4", "pi/2: data"])
    clock.set_title("how far noise has turned into data", fontsize=10)
    clock.legend(fontsize=8, frameon=False)
    with whole_file(path) as part:
        figure.savefig(part, format=path.suffix.lower().removeprefix("."), dpi=150)
