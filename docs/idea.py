"""Draws docs/idea.png, the figure of the README.

python docs/idea.py                             # about half a minute on two cores
"""

import argparse
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import lazysi as lz
from lazysi.files import whole_file
from lazysi.pictures import image_grid

COLOURS = {"linear": "C3", "lazy, kappa = 0": "C0", "point mass, kappa = 1": "C2"}
SCHEDULES = dict(zip(COLOURS, (lz.linear(), lz.lazy(0.0), lz.point_mass()), strict=True))


def draw_curves(axes: Axes) -> None:
    """Three curves, and one state on all of them: equal angle, other radius."""
    t = jnp.linspace(0, 1, 400)
    for name, schedule in SCHEDULES.items():
        axes.plot(schedule.beta(t), schedule.alpha(t), color=COLOURS[name], label=name)
        there = schedule.time(jnp.asarray(0.75))
        axes.plot(schedule.beta(there), schedule.alpha(there), "o", color=COLOURS[name])
    axes.plot([0, 1.1 * np.sin(0.75)], [0, 1.1 * np.cos(0.75)], ":", color="0.4")
    axes.text(0.78, 0.84, "same angle:\nsame state,\nrescaled", fontsize=8, color="0.3")
    axes.set(
        xlabel="data coefficient", ylabel="noise coefficient", aspect="equal", xlim=(-0.03, 1.13), ylim=(-0.03, 1.13)
    )
    axes.set_title("a network does not care which curve\nit was trained on", fontsize=10)
    axes.legend(
        frameon=False,
        fontsize=8,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),
        ncols=3,
        handlelength=1,
        columnspacing=1,
    )


def draw_motion(axes: Axes) -> None:
    """Straight lines where the data is Gaussian: paths of the ODE under two schedules."""
    field = lz.targets.gaussian(jnp.zeros(1), 1.0)
    angles, states = lz.sample_path(
        jax.random.key(3), field, (9, 1), steps=200, schedule=lz.linear(), solver=diffrax.Tsit5()
    )
    times = lz.linear().time(angles)
    axes.plot(times, states[:, :, 0], color=COLOURS["linear"], lw=1)
    lazy_times, lazy_states = lz.convert_path(lz.linear(), lz.lazy(0.0), times, states)
    axes.plot(1.45 + lazy_times, lazy_states[:, :, 0], color=COLOURS["lazy, kappa = 0"], lw=1)
    axes.set(xticks=[0, 1, 1.45, 2.45], xticklabels=["noise", "data", "noise", "data"], yticks=[])
    axes.set_title("on Gaussian data the lazy curve stands still:\none step is exact", fontsize=10)
    axes.spines[:].set_visible(False)


def draw_samples(axes: Axes) -> None:
    """The bundled network from the same noise."""
    model = lz.load_pretrained("fashion-mnist")
    labels = jnp.asarray([0, 1, 3, 7, 8, 9])
    field, shape = model.field(labels, guidance=2.0), (labels.size, *model.shape)
    rows = [(f"{steps} steps", lz.sample(jax.random.key(7), field, shape, steps=steps)) for steps in (4, 8, 64)]
    axes.imshow(image_grid(np.concatenate([samples for _, samples in rows]), labels.size), cmap="gray")
    for index, (name, _) in enumerate(rows):
        axes.text(-6, 58 * index + 30, name, ha="right", va="center", fontsize=9)
    axes.axis("off")
    axes.set_title("bundled network, trained on the linear curve,\nsampled on the lazy one", fontsize=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("idea.png"))
    out = parser.parse_args().out
    figure = Figure(figsize=(12, 3.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 1.35])
    draw_curves(left)
    draw_motion(middle)
    draw_samples(right)
    with whole_file(out) as part:
        figure.savefig(part, format="png", dpi=130)


if __name__ == "__main__":
    main()
