"""Networks conditional on text, which comes embedded: the text encoders are no part of the library."""

import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lazysi.fields import PerSample
from lazysi.models.mmdit import MMDiTConfig
from lazysi.models.storage import open_safetensors

__all__ = ["TextEmbeddings", "load_embeddings", "text_condition"]


class TextEmbeddings(NamedTuple):
    """Text as a network takes it.

    Args:
        context: tokens, of shape (tokens, width) for all samples or (prompts, tokens, width).
        pooled: of shape (width,) or (prompts, width).
    """

    context: Array
    pooled: Array


def load_embeddings(path: str | Path) -> tuple[TextEmbeddings, TextEmbeddings | None]:
    """Embedded prompts, and the negative ones that guidance leads away from, from arrays in a file.

    Args:
        path: `.npz` or safetensors with "context" and "pooled", and perhaps "negative_context" and "negative_pooled".

    Raises:
        ValueError: if the file is damaged or lacks an array.
    """
    path = Path(path)
    try:
        if path.suffix == ".npz":
            with path.open("rb") as file, np.load(file) as content:
                arrays = {name: content[name] for name in content.files}
        else:
            arrays = {name: tensor.read() for name, tensor in open_safetensors(path).items()}
        found = {name: jnp.array(array) for name, array in arrays.items()}
        positive = TextEmbeddings(found["context"], found["pooled"])
        if "negative_context" not in found and "negative_pooled" not in found:
            return positive, None
        return positive, TextEmbeddings(found["negative_context"], found["negative_pooled"])
    except (KeyError, OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"expected embedded text (arrays context and pooled) in {path}: {error}") from error


def text_condition(config: MMDiTConfig, text: TextEmbeddings) -> tuple[PerSample | Array, ...]:
    """What the network takes after the time.

    Raises:
        ValueError: if an array does not fit the network.
    """
    context, pooled = jnp.asarray(text.context), jnp.asarray(text.pooled)
    widths = (context.shape[-1:], pooled.shape[-1:])
    if (
        context.ndim - pooled.ndim != 1
        or context.ndim not in {2, 3}
        or widths != ((config.context_width,), (config.pooled_width,))
        or (context.ndim == 3 and len(context) != len(pooled))
    ):
        raise ValueError(
            f"expected text ([prompts,] tokens, {config.context_width}) and ([prompts,] {config.pooled_width}),"
            f" got {context.shape} and {pooled.shape}"
        )
    return (PerSample(context), PerSample(pooled)) if context.ndim == 3 else (context, pooled)
