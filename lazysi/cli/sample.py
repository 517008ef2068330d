"""`lazysi sample`: draw images."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lazysi.cli.common import (
    DEFAULT_MODEL,
    Guidance,
    Kappa,
    Labels,
    OneSentence,
    PlanSource,
    ReversedTime,
    ScheduleName,
    Seed,
    Shift,
    Steps,
    UseMoments,
    check_at_least,
    check_dtype,
    check_guided,
    conditioned,
    draw_samples,
    find_labels,
    find_sampler,
    has_bundled_plan,
    is_given,
    print_table,
)

if TYPE_CHECKING:
    from lazysi.fields import Field
    from lazysi.models.pretrained import PretrainedModel

NUMBER, LATENT_NUMBER = 64, 4  # samples, where neither number nor classes are given for latents
CHUNK, LATENT_CHUNK = 256, 4


def sample(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Option(help="Name of a bundled model, a model file, or with --weights a published network (sit-xl-2)."),
    ] = DEFAULT_MODEL,
    steps: Steps = 8,
    kappa: Kappa = 0.0,
    schedule: ScheduleName = "lazy",
    shift: Shift = None,
    moments: UseMoments = False,
    plan: PlanSource = None,
    guidance: Guidance = 2.0,
    labels: Labels = "all",
    n: Annotated[
        int | None,
        typer.Option("-n", "--number", help="Number of samples (default: 64; of latents one for each label)."),
    ] = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Picture (.png) or arrays (.npz).")] = Path("samples.png"),
    chunk_size: Annotated[
        int | None, typer.Option(help="Most samples in memory at once (default: 256; of latents 4).")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Weights of the published network that --model names: a file or hf://...")
    ] = None,
    vae: Annotated[str | None, typer.Option(help="Autoencoder that decodes latents: a file or hf://...")] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="Embedded text (.npz or safetensors), for a network conditional on text.")
    ] = None,
    guided_channels: Annotated[
        int | None, typer.Option(help="Guide the first so many channels alone (3: as SiT was published).")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Side of the pictures in pixels, where the network is conditional on text.")
    ] = None,
    tile: Annotated[int | None, typer.Option(help="Decode in tiles of this side, in latent pixels.")] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Random weights of the network that --model names: to measure.")
    ] = False,
    reversed_time: ReversedTime = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Of the computation: float32, float16 or bfloat16 (default: at least float32)."),
    ] = None,
) -> None:
    """Draw samples from a pretrained model."""
    with OneSentence():
        from lazysi.files import check_writable

        check_writable(out, (".png", ".npz"))
        given = {"-n": n, "--chunk-size": chunk_size, "--tile": tile, "--guided-channels": guided_channels}
        check_at_least(1, {name: value for name, value in given.items() if value is not None})
        check_dtype(dtype)
        from lazysi.checks import check_number
        from lazysi.pictures import save_samples

        check_number("--guidance", guidance)
        network = _load(model, weights, vae, random_weights=random_weights, reversed_time=reversed_time, dtype=dtype)
        latents = network.shape[-1] not in {1, 3}
        if latents and network.autoencoder is None and out.suffix.lower() == ".png":
            raise ValueError(f"expected --vae to decode the latents of {model} for a picture, or --out x.npz")
        text = network.header["network"] == "MMDiT"
        if text and labels != "none" and is_given(context, "labels"):
            raise ValueError(f"expected --embeddings for a network conditional on text, got --labels {labels}")
        classes = find_labels("none" if latents and labels == "all" else labels, network)
        if not text:
            check_guided(context, guidance, classes)
        if guided_channels is not None and (classes is None or guidance == 1):
            raise ValueError("expected --guided-channels with --labels and guidance, got it alone")
        if tile is not None and network.autoencoder is None:
            raise ValueError("expected --tile with an autoencoder, got it alone")
        shape = _shape(network, size)
        n = n or ((len(classes) if classes else LATENT_NUMBER) if latents else NUMBER)
        chunk_size = min(chunk_size or (LATENT_CHUNK if latents else CHUNK), n)
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
        if embeddings is not None or text:
            field, guided = _field_of_text(network, embeddings, n, guidance), guidance != 1
        else:
            field = conditioned(network, classes, n, guidance, guided_channels=guided_channels)
            guided = classes is not None and guidance != 1
        samples, compile_seconds, sample_seconds = draw_samples(
            field, shape, n, seed, chunk_size, settings, lambda part: network.decode(part, tile=tile)
        )
        columns = math.ceil(math.sqrt(n))
        if classes is not None and len(classes) > 1 and n % len(classes) == 0:
            columns = len(classes)
        about: dict[str, Any] = {"model": model, "steps": steps, "kappa": kappa, "schedule": schedule, "shift": shift}
        about |= {"moments": moments, "guidance": guidance if guided else None, "labels": classes, "seed": seed}
        more = {"plan": plan, "weights": weights, "vae": vae, "embeddings": embeddings and str(embeddings)}
        more |= {
            "guided_channels": guided_channels,
            "size": size,
            "tile": tile,
            "random_weights": random_weights or None,
            "reversed_time": reversed_time,
            "dtype": dtype,
        }
        about |= {name: value for name, value in more.items() if value is not None}
        save_samples(out, samples, columns=columns, about=about)
        condition = "text" if text else "class"
        evaluations = f"{steps} for each sample" + (f", with and without its {condition}" if guided else "")
        rows = {"network evaluations": evaluations}
        if has_bundled_plan(network, settings, guidance, classes):
            rows["plan"] = "none (there is one for this: --plan bundled)"
        print_table(
            rows
            | {
                "seconds to compile": f"{compile_seconds:.1f}",
                "seconds to sample": f"{sample_seconds:.2f}",
                "images/s": f"{n / sample_seconds:.1f}",
                "written": f"{out} (random weights)" if random_weights else out,
            }
        )


def _load(
    model: str, weights: str | None, vae: str | None, *, random_weights: bool, **options: bool | str | None
) -> "PretrainedModel":
    import lazysi as lz

    given: dict[str, Any] = {
        "weights": weights,
        "autoencoder": vae,
        "random_weights": random_weights or None,
        **options,
    }
    network = lz.load_pretrained(model, **{name: value for name, value in given.items() if value is not None})
    if vae is not None or not random_weights:
        return network
    kind = "sd" if network.config.classes else "sd3"
    return network._replace(autoencoder=lz.load_autoencoder(kind, random_weights=True, dtype=network.dtype))


def _shape(network: "PretrainedModel", size: int | None) -> tuple[int, ...]:
    """Shape of a sample whose picture has `size` pixels a side."""
    if size is None:
        return network.shape
    if network.config.classes or network.autoencoder is None:
        raise ValueError("expected --size for a network of latents that is conditional on text")
    unit = network.autoencoder.config.factor * network.config.patch_size
    if size < unit or size % unit:
        raise ValueError(f"expected --size in multiples of {unit}, got {size}")
    side = size // network.autoencoder.config.factor
    return (side, side, network.shape[-1])


def _field_of_text(network: "PretrainedModel", path: Path | None, count: int, guidance: float) -> "Field":
    """Field of `count` samples that take the prompts of a file in turn."""
    import jax.numpy as jnp

    from lazysi.models.text import TextEmbeddings, load_embeddings

    if path is None:
        raise ValueError("expected --embeddings with the text, as the network is conditional on text")

    def for_samples(text: TextEmbeddings) -> TextEmbeddings:
        if text.context.ndim == 2 or text.pooled.ndim == 1:
            return text
        return TextEmbeddings(*(values[jnp.arange(count) % len(values)] for values in text))

    positive, negative = load_embeddings(path)
    if negative is None and guidance != 1:
        raise ValueError(f"expected negative text in {path} to guide away from, or --guidance 1, got neither")
    return network.field(
        text=for_samples(positive),
        negative=None if negative is None else for_samples(negative),
        guidance=None if guidance == 1 else guidance,
    )
