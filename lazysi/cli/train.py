"""`lazysi train`: train a velocity network."""

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from lazysi.cli.common import DEFAULT_MODEL, INTERRUPTED, OneSentence, console, errors, progress_bar


def train(
    data: Annotated[
        str,
        typer.Option(help="Directory of idx files or of images, .npy or .npz file; 'fashion-mnist' is downloaded."),
    ] = DEFAULT_MODEL,
    out: Annotated[Path, typer.Option(help="Directory for checkpoint.safetensors and model.safetensors.")] = Path(
        "run"
    ),
    steps: Annotated[int, typer.Option(help="Optimiser steps in all.")] = 8_000,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    label_dropout: Annotated[float, typer.Option(help="Fraction of labels dropped, for guidance.")] = 0.1,
    patch_size: Annotated[int, typer.Option(help="Side of a patch in pixels.")] = 4,
    width: Annotated[int, typer.Option(help="Token dimension.")] = 128,
    depth: Annotated[int, typer.Option(help="Transformer blocks.")] = 6,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = 4,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in --out; sizes come from there.")
    ] = False,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 250,
) -> None:
    """Train a class-conditional velocity network; Ctrl-C leaves a checkpoint to --resume from."""
    with OneSentence():
        if save_every < 1:
            raise ValueError(f"expected --save-every of at least 1, got {save_every}")
        from lazysi import training
        from lazysi.data import load_dataset
        from lazysi.models.sit import SiTConfig
        from lazysi.models.weights import parameter_count

        checkpoint = out / "checkpoint.safetensors"
        dataset = load_dataset(data)
        if resume:
            config, options, state, history = training.restore(checkpoint)
            options = dataclasses.replace(options, steps=steps)
        else:
            if checkpoint.exists():
                raise ValueError(f"expected an --out without a checkpoint, or --resume, got {checkpoint}")
            height, image_width, channels = dataset.images.shape[1:]
            if height != image_width:
                raise ValueError(f"expected square images, got {height} x {image_width}")
            config = SiTConfig(height, channels, patch_size, width, depth, heads, len(dataset.class_names))
            options = training.TrainingOptions(
                steps=steps,
                batch_size=batch_size,
                learning_rate=learning_rate,
                label_dropout=label_dropout,
                seed=seed,
            )
            state, history = training.start(config, options), {"validation": [], "seconds": 0.0}
            out.mkdir(parents=True, exist_ok=True)
        console.print(f"{parameter_count(state.parameters):,} parameters, {len(dataset.images):,} images")
        state = _training_loop(config, options, dataset, state, history, checkpoint, save_every)
        model = out / "model.safetensors"
        training.export(model, config, options, state, dataset, history)
        console.print(f"written {model}")


def _training_loop(
    config: Any, options: Any, dataset: Any, state: Any, history: dict[str, Any], checkpoint: Path, save_every: int
) -> Any:
    """Train with a progress bar, validation at start, middle and end, and checkpoints; returns the last state."""
    from lazysi import training

    def validate(current: Any) -> None:
        if all(entry["step"] != int(current.step) for entry in history["validation"]):
            loss = training.validation_loss(config, current.average, dataset)
            history["validation"].append({"step": int(current.step), "loss": loss})
            console.print(f"step {int(current.step)}: validation loss {loss:.5f}")

    if int(state.step) == 0:
        validate(state)
    latest, clock, smooth = state, time.perf_counter(), None
    with progress_bar("training") as (progress, task):
        progress.update(task, total=options.steps, completed=int(state.step))

        def on_step(current: Any, loss: float) -> None:
            nonlocal latest, clock, smooth
            latest, now = current, time.perf_counter()
            history["seconds"], clock = history["seconds"] + now - clock, now
            smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
            step = int(current.step)
            progress.update(task, completed=step, description=f"training, loss {smooth:.4f}")
            if step % 100 == 0 and not console.is_terminal:
                console.print(f"step {step}: loss {smooth:.5f}, {history['seconds']:.0f} s")
            if step in {options.steps // 2, options.steps}:
                validate(current)
            if step % save_every == 0:
                training.save(checkpoint, config, options, current, history)

        try:
            state = training.train(config, options, dataset, state, on_step=on_step)
        except KeyboardInterrupt:
            training.save(checkpoint, config, options, latest, history)
            errors.print(f"interrupted at step {int(latest.step)}; go on with --resume")
            raise typer.Exit(INTERRUPTED) from None
    training.save(checkpoint, config, options, state, history)
    return state
