"""`lazysi convert-weights`: published weights as a file of ours."""

from pathlib import Path
from typing import Annotated

import typer

from lazysi.cli.common import OneSentence, ReversedTime, check_dtype, print_table


def convert_weights(
    source: Annotated[
        str, typer.Argument(help="safetensors (a file, an index or a directory), .pt, or hf://owner/name/file.")
    ],
    out: Annotated[Path, typer.Argument(help="The safetensors file to write.")],
    network: Annotated[
        str | None, typer.Option(help="Published network that it has to be, such as sit-xl-2 or sd3.5-medium.")
    ] = None,
    vae: Annotated[bool, typer.Option("--vae", help="Take the autoencoder of a file with several networks.")] = False,
    latents: Annotated[
        str | None, typer.Option(help="Conventions of an autoencoder's latents: sd, sdxl, sd3 or flux.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16 (default: as in the source).")] = None,
    reversed_time: ReversedTime = None,
) -> None:
    """Write published weights as a model file: every tensor accounted for, with sizes and conventions in its header."""
    with OneSentence():
        from lazysi.files import check_writable

        check_writable(out, (".safetensors",))
        check_dtype(dtype)
        if latents is not None and not vae:
            raise ValueError("expected --latents together with --vae")
        if network is not None and vae:
            raise ValueError("expected --latents to name an autoencoder, got --network")
        import math

        from lazysi.models.convert import convert_weights, find_config

        if network is not None:
            find_config(network)
        written = convert_weights(
            source,
            out,
            name=latents if vae else network,
            autoencoder=vae,
            reversed_time=reversed_time,
            dtype=dtype,
        )
        print_table(
            {
                "network": written.header["network"],
                "layout": written.header.get("layout", "lazysi"),
                "parameters": f"{sum(math.prod(tensor.shape) for tensor in written.tensors.values()):,}",
                "tensors": len(written.tensors),
                "written": out,
            }
        )
