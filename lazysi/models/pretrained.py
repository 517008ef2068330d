"""Pretrained networks: weights with their configuration, schedule and data moments, ready to sample from."""

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from lazysi.fields import Field, PerSample
from lazysi.models.convert import MOMENTS, PUBLISHED, check_time, check_told, find_config, open_network
from lazysi.models.decoding import PretrainedAutoencoder, load_autoencoder
from lazysi.models.mmdit import MMDiTConfig
from lazysi.models.network_fields import Condition, network_field
from lazysi.models.published import structure
from lazysi.models.sit import SiTConfig
from lazysi.models.storage import HUB
from lazysi.models.tables import unit_gain
from lazysi.models.text import TextEmbeddings, text_condition
from lazysi.models.weights import flatten_state, unflatten_state, write_tensors
from lazysi.moments import Moments
from lazysi.plans import Plan, load_plan

__all__ = ["BUNDLED", "PLAN_GUIDANCE", "PretrainedModel", "load_pretrained", "plan_name", "save_pretrained"]

BUNDLED = ("fashion-mnist",)
PLAN_GUIDANCE = 2.0  # of the bundled plans with guidance


class PretrainedModel(NamedTuple):
    """A velocity network with what is known about it.

    Args:
        config: sizes of the network.
        parameters: its weights.
        moments: of the data it was trained on, in a cosine basis; None where unknown.
        class_names: one name per class; none where unknown, or where text is the condition.
        header: everything else the file says (schedule, training summary).
        dtype: of the computation inside the network; None is the wider one of the weights' and the state's.
        name: of a bundled model; None for others.
        autoencoder: of a network of latents; None where samples are images, or none was given.
        reversed_time: the network counts time from data (0) to noise (1) and predicts noise - data, as those of SD3
            and REPA do.
        flash: fused attention inside the network: cuDNN's, for 16 bit numbers on an NVIDIA GPU.
    """

    config: SiTConfig | MMDiTConfig
    parameters: nnx.State
    moments: Moments | None
    class_names: tuple[str, ...]
    header: dict[str, Any]
    dtype: DTypeLike | None = None
    name: str | None = None
    autoencoder: PretrainedAutoencoder | None = None
    reversed_time: bool = False
    flash: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one sample: (height, width, channels); a network conditional on text takes others too."""
        return self.config.shape

    def decode(self, samples: Float[Array, "batch *event"], *, tile: int | None = None) -> Array:
        """Images of samples: of latents through the autoencoder; samples that are images as they are."""
        return samples if self.autoencoder is None else self.autoencoder.decode(samples, tile=tile)

    def field(
        self,
        labels: ArrayLike | None = None,
        *,
        text: TextEmbeddings | None = None,
        negative: TextEmbeddings | None = None,
        guidance: ArrayLike | None = None,
        guided_channels: int | None = None,
    ) -> Field:
        """The network as a field, with its own conventions inside.

        Args:
            labels: class of every sample (one number for all, or one per sample); None for no class.
            text: of a network conditional on text, one prompt for all samples or one per sample.
            negative: text that guidance leads away from, usually the embedded empty prompt.
            guidance: scale of classifier-free guidance, both predictions in one network call of twice the batch; None
                for the plain conditional network.
            guided_channels: the first so many channels are guided, the others conditional: 3 is what the published
                samples of SiT were drawn with. None guides all.

        Raises:
            ValueError: if a condition does not fit the network, or guidance is asked for without one.
        """
        if isinstance(self.config, MMDiTConfig):
            condition, null = self._text_conditions(text, negative, guided=guidance is not None)
            if labels is not None:
                raise ValueError("expected `text` for this network, got `labels`")
        else:
            condition, null = self._class_conditions(labels, guided=guidance is not None)
            if text is not None or negative is not None:
                raise ValueError("expected `labels` for this network, got `text`")
        return network_field(
            self.config,
            self.parameters,
            condition,
            null,
            guidance=guidance,
            guided_channels=guided_channels,
            reversed_time=self.reversed_time,
            dtype=self.dtype,
            flash=self.flash,
        )

    def _class_conditions(self, labels: ArrayLike | None, *, guided: bool) -> tuple[Condition, Condition]:
        known = self.config.classes
        no_label = jnp.asarray(known)
        if labels is None:
            if guided:
                raise ValueError("expected `labels` to guide towards, got None")
            return (no_label,), (no_label,)
        labels = jnp.asarray(labels)
        if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.ndim > 1:
            raise ValueError(f"expected integer `labels`, one or one per sample, got {labels.dtype} {labels.shape}")
        if labels.size and not (0 <= int(labels.min()) and int(labels.max()) < known):
            raise ValueError(f"expected labels from 0 to {known - 1}, got {int(labels.min())} to {int(labels.max())}")
        return (PerSample(labels) if labels.ndim else labels,), (no_label,)

    def _text_conditions(
        self, text: TextEmbeddings | None, negative: TextEmbeddings | None, *, guided: bool
    ) -> tuple[Condition, Condition]:
        assert isinstance(self.config, MMDiTConfig)
        if text is None:
            raise ValueError("expected `text` for a network conditional on text, got None")
        if guided and negative is None:
            raise ValueError("expected `negative` text to guide away from, got None")
        condition = text_condition(self.config, text)
        if negative is None:
            return condition, condition
        null = text_condition(self.config, negative)
        shapes = jnp.shape(text.context), jnp.shape(negative.context)
        if guided and shapes[0][-2] != shapes[1][-2]:
            raise ValueError(
                f"expected as many tokens of `negative` text as of `text`, got {shapes[1]} and {shapes[0]}"
            )
        return condition, null

    def plan(self, steps: int, *, kappa: float = 0.0, guidance: float | None = None) -> Plan:
        """The bundled plan of this model for a field with all its classes.

        Args:
            steps: network evaluations.
            kappa: relative diffusion.
            guidance: of the field; None or 1 is none.

        Returns:
            the plan, for `sample(plan=...)`; its `about` says how it was found.

        Raises:
            ValueError: if there is no such plan, naming those that there are.
        """
        return load_plan(self._bundled("plans", steps, kappa, guidance))

    def fitted_schedule(self, steps: int, *, kappa: float = 0.0, guidance: float | None = None) -> Plan:
        """The bundled fitted schedule of this model, from `fit_schedule`, for a field with all its classes.

        Args:
            steps: network evaluations.
            kappa: relative diffusion.
            guidance: of the field; None or 1 is none.

        Raises:
            ValueError: if there is no such schedule, naming those that there are.
        """
        return load_plan(self._bundled("schedules", steps, kappa, guidance))

    def _bundled(self, kind: str, steps: int, kappa: float, guidance: float | None) -> str:
        """Path of a bundled plan or schedule."""
        if self.name is None:
            raise ValueError(f"expected a bundled model ({', '.join(BUNDLED)}) for bundled {kind}, got one of your own")
        directory = resources.files("lazysi") / "assets" / kind
        names = [file.name for file in directory.iterdir()] if directory.is_dir() else []
        wanted = f"{plan_name(self.name, steps, kappa, guidance)}.json"
        if wanted not in names:
            form = re.compile(rf"{re.escape(self.name)}-(\d+)-kappa([\d.]+)(-guided)?\.json")
            known: dict[tuple[float, float], list[int]] = {}
            for name in names:
                if match := form.fullmatch(name):
                    case = float(match[2]), PLAN_GUIDANCE if match[3] else 1.0
                    known.setdefault(case, []).append(int(match[1]))
            listed = [
                f"{', '.join(map(str, sorted(known[case])))} steps at kappa {case[0]:g}, guidance {case[1]:g}"
                for case in sorted(known)
            ]
            raise ValueError(
                f"expected one of the bundled {kind} ({'; '.join(listed) or 'there are none'}), got {steps} steps at "
                f"kappa {kappa:g}, guidance {1.0 if guidance is None else guidance:g}"
            )
        return str(directory / wanted)


def plan_name(model: str, steps: int, kappa: float, guidance: float | None) -> str:
    """File name of a bundled plan or fitted schedule, without .json.

    Example:
        >>> plan_name("fashion-mnist", 4, 0.0, None), plan_name("fashion-mnist", 6, 1.0, 2.0)
        ('fashion-mnist-4-kappa0', 'fashion-mnist-6-kappa1-guided')
    """
    guided = {None: "", 1.0: "", PLAN_GUIDANCE: "-guided"}.get(guidance, f"-guided{guidance}")
    return f"{model}-{steps}-kappa{kappa:g}{guided}"


def load_pretrained(
    source: str | Path,
    *,
    weights: str | Path | None = None,
    autoencoder: str | Path | PretrainedAutoencoder | None = None,
    config: Any = None,
    dtype: DTypeLike | None = None,
    reversed_time: bool | None = None,
    random_weights: bool = False,
) -> PretrainedModel:
    """Load a model: a bundled one, a file of ours, or published weights of SiT and of SD3 and SD3.5.

    Args:
        source: "fashion-mnist"; the path of a file of ours (`lazysi train`, `lazysi convert-weights`) or of published
            weights (safetensors, single or sharded, a PyTorch checkpoint, a directory, `hf://owner/name/file`); or the
            name of a published network ("sit-xl-2", "sd3.5-medium", ...), with `weights`.
        weights: a file as above that holds the named network.
        autoencoder: of its latents, a file or a loaded one; decodes samples. A file is taken for one of SD latents (of
            SD3 latents for a text network), unless its header or the `config.json` beside it says otherwise: that is
            an error, and `load_autoencoder` with `latents` the way to decide.
        config: sizes, where the shapes of published weights do not tell them all (heads of a SiT).
        dtype: of the computation inside the network, for instance bfloat16; the state keeps its own.
        reversed_time: the weights count time from data to noise, as REPA's do. By default what the file says: REPA's
            are known by the projectors of their training.
        random_weights: draw the weights of a named network instead, to measure time and memory.

    Raises:
        ValueError: if the name is unknown or the file is truncated, foreign or does not fit its own configuration.

    Example:
        >>> import lazysi as lz
        >>> model = lz.load_pretrained("fashion-mnist")
        >>> model.shape, len(model.class_names)
        ((28, 28, 1), 10)
    """
    name = str(source) if str(source) in PUBLISHED else None
    if name is None and (weights is not None or random_weights):
        raise ValueError(f"expected the name of a published network ({', '.join(PUBLISHED)}), got {source}")
    if name is not None and random_weights:
        if weights is not None:
            raise ValueError("expected `weights` or `random_weights`, got both")
        sizes = config or find_config(name)
        abstract = structure(sizes)[1]
        header = {"kind": "model", "network": type(sizes).__name__.removesuffix("Config"), "random_weights": True}
        header |= {"schedule": "linear", "prediction": "velocity", "class_names": [], "training": {}}
        state = unflatten_state(unit_gain(abstract), abstract)
        return _assemble(sizes, state, {}, header, autoencoder, dtype, reversed_time, None)
    if name is not None and weights is None:
        raise ValueError(f"expected `weights` of {name}, or a file of them as the model: none come with the library")
    bundled = str(source) if str(source) in BUNDLED else None
    path = Path(str(resources.files("lazysi") / "assets" / f"{source}.safetensors")) if bundled else (weights or source)
    if not str(path).startswith(HUB) and not Path(path).exists():
        raise ValueError(
            f"expected a weights file or one of the bundled models {', '.join(BUNDLED)}, got {path}; "
            f"networks that take `weights`: {', '.join(PUBLISHED)}"
        )
    opened = open_network(path, config=config, name=name)
    abstract = structure(opened.config)[1]
    state = unflatten_state(opened.tensors, abstract, source=f"the weights in {path}", keep_dtype=True)
    stored = {entry.removeprefix(MOMENTS): jnp.array(tensor.read()) for entry, tensor in opened.extra.items()}
    return _assemble(opened.config, state, stored, opened.header, autoencoder, dtype, reversed_time, bundled)


def _assemble(
    config: Any,
    parameters: nnx.State,
    moments: dict[str, Array],
    header: dict[str, Any],
    autoencoder: str | Path | PretrainedAutoencoder | None,
    dtype: DTypeLike | None,
    reversed_time: bool | None,
    name: str | None,
) -> PretrainedModel:
    latents = "sd3" if isinstance(config, MMDiTConfig) else "sd"
    if autoencoder is not None and not isinstance(autoencoder, PretrainedAutoencoder):
        check_told(autoencoder, latents)
        autoencoder = load_autoencoder(autoencoder, latents=latents, dtype=dtype)
    if autoencoder is not None and autoencoder.config.latent_channels != config.channels:
        raise ValueError(
            f"expected an autoencoder of {config.channels} latent channels, got {autoencoder.config.latent_channels}"
        )
    known = Moments(moments["mean"], moments["std"], cosine=True) if moments else None
    if reversed_time is not None:
        check_time(config, reversed_time)
    else:
        reversed_time = bool(header.get("reversed_time", isinstance(config, MMDiTConfig)))
    names = tuple(header.get("class_names", ()))
    return PretrainedModel(config, parameters, known, names, header, dtype, name, autoencoder, reversed_time)


def save_pretrained(
    path: str | Path,
    config: SiTConfig,
    parameters: nnx.State,
    moments: Moments,
    class_names: Sequence[str],
    training: dict[str, Any],
) -> None:
    """Write a model file that `load_pretrained` reads: weights, data moments (cosine basis) and a JSON header.

    Args:
        path: safetensors file to write.
        config: sizes of the network.
        parameters: weights to keep (the averaged ones).
        moments: of the training data, from `cosine_basis`.
        class_names: one name per class.
        training: JSON summary of the training.

    Raises:
        OSError: if the file cannot be written.
    """
    tensors = flatten_state(parameters) | {f"{MOMENTS}mean": moments.mean, f"{MOMENTS}std": moments.std}
    header = {
        "kind": "model",
        "network": "SiT",
        "config": vars(config),
        "schedule": "linear",
        "prediction": "velocity",
        "class_names": list(class_names),
        "training": training,
    }
    write_tensors(path, tensors, header)
