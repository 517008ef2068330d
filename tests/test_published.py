"""Published weights: every layout gives the same network, and whatever is wrong with a file is said by name."""

import argparse
import contextlib
import dataclasses
import json
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published_networks import CONFIGS, KL, MMDIT, SIT, parameters, published, tables
from safetensors.numpy import save_file

import lazysi as lz
from lazysi.models.autoencoder import AutoencoderConfig
from lazysi.models.convert import convert_weights, open_network
from lazysi.models.mmdit import MMDIT_CONFIGS
from lazysi.models.published import autoencoder_table, mmdit_table, recognise, sit_table, structure
from lazysi.models.sit import SIT_CONFIGS
from lazysi.models.storage import Stored, open_weights
from lazysi.models.tables import Table, apply_table, linear_rules
from lazysi.models.weights import parameter_count, read_header, read_tensors, variables, write_tensors

HALF = 2.0**-8  # relative rounding of bfloat16

LAYOUTS = [(name, style) for name, config in CONFIGS.items() for style in tables(config)]


def write(path, tensors, dtype=np.float32):
    save_file({name: np.ascontiguousarray(array, dtype) for name, array in tensors.items()}, path)
    return path


def is_autoencoder(config):
    return isinstance(config, AutoencoderConfig)


def names(config):
    return {"latents": "sd3" if config.latent_channels == 16 else "sd"} if is_autoencoder(config) else {}


@pytest.mark.parametrize(("name", "style"), LAYOUTS)
def test_every_layout_is_recognised_and_gives_the_same_parameters(tmp_path, name, style):
    config = CONFIGS[name]
    path = write(tmp_path / "weights.safetensors", published(config, style))
    opened = open_network(path, config=config, autoencoder=is_autoencoder(config))
    assert opened.header["layout"] == style
    expected = parameters(config)
    assert opened.tensors.keys() == expected.keys()
    for parameter, array in expected.items():
        np.testing.assert_array_equal(opened.tensors[parameter].read(), array.astype(np.float32), err_msg=parameter)


@pytest.mark.parametrize(("name", "style"), LAYOUTS)
def test_sizes_are_read_off_the_shapes(name, style):
    config = CONFIGS[name]
    free = {"heads": 4, "width": 64, "groups": 8}  # SiT's heads and group norms leave no trace in shapes
    if name.startswith("sit"):
        config = dataclasses.replace(config, width=384, heads=6)
        free = {}
    shapes = {n: Stored(a.shape, np.dtype(np.float32), lambda a=a: a) for n, a in published(config, style).items()}
    found = recognise(shapes, source="here").config
    if is_autoencoder(config):
        found = dataclasses.replace(found, groups=free["groups"], scale=config.scale, shift=config.shift)
    expected = config if not name.startswith("mmdit") or config.qk_norm else dataclasses.replace(config, heads=1)
    assert found == expected  # without qk_norm heads are of size 64, as all published ones


@pytest.mark.slow
def test_names_and_sizes_of_published_networks():
    """Counts of parameters from the published files (SiT's without its fixed position table)."""
    for name, table_entries, total in (("sit-s-2", 256 * 384, 32_963_360), ("sit-xl-2", 256 * 1152, 675_129_632)):
        assert parameter_count(structure(SIT_CONFIGS[name])[1]) + table_entries == total
    totals = {"sd3-medium": 2_028_328_000, "sd3.5-medium": 2_243_171_520, "sd3.5-large": 8_056_627_520}
    assert {name: parameter_count(structure(config)[1]) for name, config in MMDIT_CONFIGS.items()} == totals
    assert parameter_count(structure(AutoencoderConfig())[1]) == 83_653_863
    sd3 = AutoencoderConfig(latent_channels=16, quantised=False)
    assert parameter_count(structure(sd3)[1]) == 83_819_683
    assert len(SIT_CONFIGS) == 12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "config"),
    [(sit_table, SIT_CONFIGS["sit-xl-2"])]
    + [(lambda c, s=style: mmdit_table(c, s), MMDIT_CONFIGS["sd3.5-medium"]) for style in ("original", "diffusers")]
    + [(lambda c, s=style: autoencoder_table(c, s), AutoencoderConfig()) for style in tables(KL)],
)
def test_tables_of_the_full_networks_fill_every_parameter_once(table, config):
    found = [rule.path for rule in table(config).rules]
    assert sorted(found) == sorted(variables(structure(config)[1]))
    sources = [name for rule in table(config).rules for name in rule.sources]
    assert len(sources) == len(set(sources))


def test_diffusers_stores_scale_before_shift_where_the_original_does_not():
    original, diffusers = (published(MMDIT, style) for style in ("original", "diffusers"))
    last = MMDIT.depth - 1
    pairs = {
        "final_layer.adaLN_modulation.1": "norm_out.linear",
        f"joint_blocks.{last}.context_block.adaLN_modulation.1": f"transformer_blocks.{last}.norm1_context.linear",
    }
    for ours, theirs in pairs.items():
        for kind in ("weight", "bias"):
            shift, scale = np.split(original[f"{ours}.{kind}"], 2)
            np.testing.assert_array_equal(diffusers[f"{theirs}.{kind}"], np.concatenate([scale, shift]))


def damage(tensors, how):
    """Tensors with one thing wrong, and what the error has to say."""
    tensors = dict(tensors)
    victim = next(name for name in tensors if name.endswith(("blocks.0.attn.proj.weight", "attn.to_out.0.weight",
                                                             "0.x_block.attn.proj.weight", "mid.block_1.conv1.weight",
                                                             "mid_block.resnets.0.conv1.weight")))  # fmt: skip
    array = tensors[victim]
    if how == "drop":
        del tensors[victim]
        return tensors, [f"missing {victim}"]
    if how == "add":
        return tensors | {"stranger.weight": np.zeros(3)}, ["unknown stranger.weight"]
    if how == "reshape":
        tensors[victim] = array[:-1]
        return tensors, [f"{victim} of shape {array[:-1].shape} where {array.shape} is expected"]
    if how == "rename":
        tensors[victim + "s"] = tensors.pop(victim)
        return tensors, [f"missing {victim}", f"unknown {victim}s"]
    if how == "integers":
        tensors[victim] = array.astype(np.int8)
        return tensors, [f"{victim} of dtype int8 where"]
    if how == "several":
        other = next(name for name in tensors if name.endswith(".bias") and "blocks" not in name)
        del tensors[victim]
        tensors[other] = tensors[other][None]
        tensors["stranger"] = np.zeros(1)
        return tensors, [f"missing {victim}", f"{other} of shape", "unknown stranger"]
    raise ValueError(how)


@pytest.mark.parametrize("how", ["drop", "add", "reshape", "rename", "integers", "several"])
@pytest.mark.parametrize(("name", "style"), [("sit", "original"), ("mmdit-x", "original"), ("mmdit-x", "diffusers"),
                                             ("autoencoder", "original"), ("autoencoder", "diffusers")])  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path, name, style, how):
    config = CONFIGS[name]
    tensors, said = damage(published(config, style), how)
    path = tmp_path / "weights.safetensors"
    save_file({n: np.ascontiguousarray(a if a.dtype == np.int8 else a.astype(np.float32)) for n, a in tensors.items()},
              path)  # fmt: skip
    for given in (config, None) if not name.startswith(("sit", "autoencoder")) else (config,):
        with pytest.raises(ValueError, match="do not fit the network") as caught:
            open_network(path, config=given, autoencoder=is_autoencoder(config))
        assert "\n" not in str(caught.value)
        for words in said:
            assert words in str(caught.value), str(caught.value)


def test_swapped_halves_of_a_position_table_are_found(tmp_path):
    for config, key in ((SIT, "pos_embed"), (MMDIT, "pos_embed")):
        tensors = published(config)
        tensors[key] = np.roll(tensors[key], config.width // 2, axis=-1)
        with pytest.raises(ValueError, match=f"do not fit the network: {key} differs from its formula"):
            open_network(write(tmp_path / "weights.safetensors", tensors), config=config)


@pytest.mark.parametrize("array", [np.zeros((1, 64, 64), np.int8), np.zeros((1, 64, 0), np.float32)])
def test_a_position_table_of_another_kind_is_named(tmp_path, array):
    for config in (SIT, MMDIT):
        tensors = {name: np.ascontiguousarray(values, np.float32) for name, values in published(config).items()}
        save_file(tensors | {"pos_embed": array}, tmp_path / "a.safetensors")
        with pytest.raises(ValueError, match=r"pos_embed (of dtype int8|differs)|the shapes in .* tell no network"):
            open_network(tmp_path / "a.safetensors", config=config if config is SIT else None)


def test_a_position_table_of_half_precision_agrees_with_its_formula(tmp_path):
    open_network(write(tmp_path / "a.safetensors", published(MMDIT), jnp.bfloat16))
    open_network(write(tmp_path / "b.safetensors", published(SIT), np.float16), config=SIT)


def test_swapped_halves_of_a_file_of_ours_are_found(tmp_path):
    path = write(tmp_path / "weights.safetensors", published(SIT))
    convert_weights(path, tmp_path / "ours.safetensors", config=SIT)
    content = bytearray((tmp_path / "ours.safetensors").read_bytes())
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    start, end = (8 + length + offset for offset in header["out_mod.kernel"]["data_offsets"])
    middle = (start + end) // 2
    content[start:end] = content[middle:end] + content[start:middle]
    (tmp_path / "ours.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"got other contents in .*ours\.safetensors: out_mod\.kernel$"):
        lz.load_pretrained(tmp_path / "ours.safetensors")


def test_truncation_names_the_tensors_that_are_cut_off(tmp_path):
    path = write(tmp_path / "weights.safetensors", published(SIT))
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    with pytest.raises(
        ValueError, match=r"expected a complete safetensors file, got .*: y_embedder\S+ cut off at the end"
    ):
        open_network(path)
    half = len(content) // 2
    path.write_bytes(content[half:] + content[:half])  # the file's own halves
    with pytest.raises(ValueError, match="expected a complete safetensors file"):
        open_network(path)


@pytest.mark.parametrize(("dtype", "message"), [("F16", "bytes, which is not shape"), ("F4", "of unknown dtype F4")])
def test_a_wrong_dtype_in_the_header_names_the_tensor(tmp_path, dtype, message):
    path = write(tmp_path / "weights.safetensors", published(SIT))
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["y_embedder.embedding_table.weight"]["dtype"] = dtype
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(ValueError, match=rf"expected a complete safetensors .*y_embedder\S+weight .*{message}"):
        open_network(path)


def test_a_rule_too_many_and_one_too_few_are_errors():
    abstract = structure(SIT)[1]
    rules, tensors = sit_table(SIT).rules, published(SIT)
    twice = Table((*rules, *linear_rules("blocks.0.attn.proj", "blocks.1.proj")), sit_table(SIT).checked)
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.proj\.weight used 2 times.*blocks\.1\.proj\.bias filled 2"):
        apply_table(tensors, twice, abstract)
    with pytest.raises(ValueError, match=r"patch\.kernel filled 0 times"):
        apply_table(tensors, Table(rules[1:], sit_table(SIT).checked), abstract)


def test_layouts_of_training_are_unwrapped(tmp_path):
    """PyTorch checkpoints: flat, {"model", "ema", ...} with settings, parallel training; the averaged weights count."""
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(array, dtype=torch.float32) for name, array in published(SIT).items()}
    other = {name: tensor + 1 for name, tensor in tensors.items()}
    contents = {
        "flat": tensors,
        "ema": {"model": other, "ema": tensors, "opt": {"state": {}}, "args": argparse.Namespace(lr=1e-4)},
        "parallel": {"model": {f"module.{name}": tensor for name, tensor in tensors.items()}},
    }
    for name, content in contents.items():
        torch.save(content, tmp_path / f"{name}.pt")
        opened = open_network(tmp_path / f"{name}.pt", config=SIT)
        for parameter, array in parameters(SIT).items():
            np.testing.assert_array_equal(opened.tensors[parameter].read(), array.astype(np.float32))
    half = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    torch.save(half, tmp_path / "half.pt")
    assert open_network(tmp_path / "half.pt", config=SIT).tensors["out.kernel"].dtype == jnp.bfloat16


def test_nothing_is_unpickled(tmp_path):
    torch = pytest.importorskip("torch")

    class Trap:
        def __reduce__(self):
            return (print, ("unpickled",))

    torch.save({"a": Trap()}, tmp_path / "trap.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    torch.save({"a": torch.zeros(2)}, tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:-200])
    for name in ("trap", "text", "cut"):
        with pytest.raises(ValueError, match=rf"expected a complete PyTorch checkpoint of tensors alone.*{name}"):
            open_weights(tmp_path / f"{name}.pt")
    torch.save({"a": 1.0}, tmp_path / "number.pt")
    with pytest.raises(ValueError, match="got something else at a"):
        open_weights(tmp_path / "number.pt")
    foreign = {"sparse": torch.eye(2).to_sparse(), "eight": torch.zeros(2).to(torch.float8_e4m3fn)}
    torch.save({"dense": torch.zeros(2)} | foreign, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match=r"got something else at sparse, eight$"):
        open_weights(tmp_path / "foreign.pt")


def test_a_checkpoint_damaged_anywhere_is_named(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.zeros(2)}, tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    start = content.index(b"data.pkl") + len(b"data.pkl")
    for position in range(start, start + 160, 7):
        damaged = bytearray(content)
        damaged[position] ^= 0x55
        (tmp_path / "damaged.pt").write_bytes(damaged)
        with contextlib.suppress(ValueError):  # or the damage does no harm: anything else is a failure
            open_weights(tmp_path / "damaged.pt")


def shard(directory, tensors):
    directory.mkdir(exist_ok=True)
    files = {"one.safetensors": {}, "two.safetensors": {}}
    for index, (name, array) in enumerate(tensors.items()):
        files[["one.safetensors", "two.safetensors"][index % 2]][name] = array
    for file, part in files.items():
        write(directory / file, part)
    places = {name: file for file, part in files.items() for name in part}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return files


def test_shards_are_put_together_and_refused_where_they_are_not_those_of_the_index(tmp_path):
    files = shard(tmp_path / "x", published(SIT))
    for source in (tmp_path / "x", tmp_path / "x" / "model.safetensors.index.json"):
        opened = open_network(source, config=SIT)
        for parameter, array in parameters(SIT).items():
            np.testing.assert_array_equal(opened.tensors[parameter].read(), array.astype(np.float32))
    first, second = (tmp_path / "x" / file for file in files)
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(ValueError, match=r"missing x_embedder\.proj\.bias in one\.safetensors|missing .* in one\.saf"):
        open_network(tmp_path / "x", config=SIT)
    first.write_bytes(kept)
    second.unlink()
    with pytest.raises(ValueError, match=r"expected a complete safetensors file, got .*two\.safetensors"):
        open_network(tmp_path / "x", config=SIT)
    (tmp_path / "x" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="expected an index of shards"):
        open_network(tmp_path / "x", config=SIT)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"expected one file of weights in .*empty, got none"):
        open_network(tmp_path / "empty", config=SIT)


def test_networks_in_one_file_are_told_apart(tmp_path):
    tensors = {f"model.diffusion_model.{name}": array for name, array in published(MMDIT).items()}
    tensors |= {f"first_stage_model.{name}": array for name, array in published(KL).items()}
    tensors["text_encoders.clip.weight"] = np.zeros(2)
    path = write(tmp_path / "all.safetensors", tensors)
    assert open_network(path).config == MMDIT
    assert open_network(path, config=KL, autoencoder=True).config == KL
    path = write(path, tensors | {"odd.weight": np.zeros(2)})
    with pytest.raises(ValueError, match=r"unknown odd\.weight"):
        open_network(path)


@pytest.mark.parametrize(
    ("name", "stray"), [("mmdit-x", "joint_blocks.700.x_block.x"), ("autoencoder", "encoder.down.9.x")]
)
def test_a_stray_number_makes_no_block(tmp_path, name, stray):
    config = CONFIGS[name]
    path = write(tmp_path / "a.safetensors", published(config) | {stray: np.zeros(2)})
    with pytest.raises(ValueError, match=rf"do not fit the network: unknown {re.escape(stray)}$"):
        open_network(path, autoencoder=is_autoencoder(config), **({"name": "sd"} if is_autoencoder(config) else {}))


def test_shapes_of_no_network_are_refused(tmp_path):
    tensors = published(MMDIT) | {"x_embedder.proj.weight": np.zeros((64, 4, 0, 0))}
    with pytest.raises(ValueError, match=r"the shapes in .*a\.safetensors tell no network"):
        open_network(write(tmp_path / "a.safetensors", tensors))


def test_a_tensor_with_and_without_prefix_is_an_error(tmp_path):
    tensors = published(MMDIT)
    for prefix in ("module.", "model.diffusion_model."):
        path = write(tmp_path / "a.safetensors", tensors | {f"{prefix}out.bias": np.zeros(3), "out.bias": np.zeros(3)})
        with pytest.raises(ValueError, match=rf"got with and without prefix: {prefix}out\.bias"):
            open_network(path)


@pytest.mark.parametrize("name", ["sit", "mmdit-x", "autoencoder"])
def test_conversion_round_trips_exactly(tmp_path, name):
    config = CONFIGS[name]
    options = {"config": config, "autoencoder": is_autoencoder(config)}
    convert_weights(write(tmp_path / "a.safetensors", published(config)), tmp_path / "b.safetensors", **options)
    header = read_header(tmp_path / "b.safetensors")
    assert header["source"] == "a.safetensors"
    again = open_network(tmp_path / "b.safetensors", autoencoder=is_autoencoder(config))
    assert again.config == config
    for parameter, array in parameters(config).items():
        np.testing.assert_array_equal(again.tensors[parameter].read(), array.astype(np.float32))
    convert_weights(tmp_path / "b.safetensors", tmp_path / "c.safetensors", dtype=jnp.bfloat16, **options)
    half = open_network(tmp_path / "c.safetensors", autoencoder=is_autoencoder(config)).tensors
    for parameter, array in parameters(config).items():
        assert half[parameter].dtype == jnp.bfloat16
        np.testing.assert_allclose(half[parameter].read().astype(float), array, rtol=HALF)


def test_repa_is_known_by_its_projectors(tmp_path):
    tensors = published(SIT)
    plain = lz.load_pretrained(write(tmp_path / "a.safetensors", tensors), config=SIT)
    repa = lz.load_pretrained(
        write(tmp_path / "b.safetensors", tensors | {"projectors.0.0.weight": np.zeros((2, 2))}), config=SIT
    )
    assert not plain.reversed_time
    assert repa.reversed_time
    told = lz.load_pretrained(tmp_path / "a.safetensors", config=SIT, reversed_time=True)
    assert told.reversed_time
    convert_weights(tmp_path / "b.safetensors", tmp_path / "c.safetensors", config=SIT)
    assert lz.load_pretrained(tmp_path / "c.safetensors").reversed_time
    convert_weights(tmp_path / "a.safetensors", tmp_path / "d.safetensors", config=SIT, reversed_time=True)
    assert lz.load_pretrained(tmp_path / "d.safetensors").reversed_time
    assert not lz.load_pretrained(tmp_path / "d.safetensors", reversed_time=False).reversed_time
    with pytest.raises(ValueError, match="expected `reversed_time` of a SiT, got True for Autoencoder"):
        open_network(write(tmp_path / "e.safetensors", published(KL)), config=KL, autoencoder=True, reversed_time=True)


def rewritten(path, out, change=lambda header: header, **tensors):
    """A file of ours with another header or other tensors."""
    held = {name: array for name, array in (read_tensors(path) | tensors).items() if array is not None}
    write_tensors(out, held, change(read_header(path)))
    return out


def test_headers_and_tensors_that_no_file_of_ours_has_are_refused(tmp_path):
    path, out = tmp_path / "ours.safetensors", tmp_path / "other.safetensors"
    convert_weights(write(tmp_path / "a.safetensors", published(SIT)), path, config=SIT)
    ours = read_header(path)
    for header, message in (
        ([ours], "expected a JSON object as header"),
        (ours | {"network": None}, "expected a model file"),
        (ours | {"config": [1]}, "expected a SiT configuration"),
        (ours | {"config": ours["config"] | {"width": 64.0}}, r"expected a SiT configuration .*, got width 64\.0"),
        (ours | {"config": ours["config"] | {"patch_size": 5}}, "expected a SiT configuration .*`patch_size`"),
        (ours | {"config": ours["config"] | {"colour": 1}}, "expected a SiT configuration .*colour"),
        (ours | {"class_names": None}, "expected a SiT configuration .*, got class_names None"),
        (ours | {"reversed_time": "no"}, "expected a SiT configuration .*, got reversed_time 'no'"),
    ):
        with pytest.raises(ValueError, match=message):
            lz.load_pretrained(rewritten(path, out, lambda _, header=header: header))
    for tensors, message in (
        ({"moments.mean": np.zeros(3)}, r"expected moments\.mean and moments\.std in .*, got moments\.mean alone"),
        ({"moments.mean": np.zeros(3), "moments.std": np.zeros(3, int)}, r"moments\.std of dtype int"),
        ({"out.bias": np.zeros(32, np.int8)}, r"out\.bias of dtype int8"),
    ):
        with pytest.raises(ValueError, match=message):
            lz.load_pretrained(rewritten(path, out, **tensors))


def test_other_sizes_than_those_of_a_file_of_ours_are_refused(tmp_path):
    path = tmp_path / "only" / "ours.safetensors"
    path.parent.mkdir()
    convert_weights(write(tmp_path / "a.safetensors", published(SIT)), path, config=SIT)
    assert open_network(path.parent).config == SIT  # the directory of one file
    assert open_network(path.parent, config=SIT).config == SIT
    with pytest.raises(ValueError, match=r"expected SiTConfig\(.*heads=2.* in .*ours\.safetensors, got .*heads=4"):
        open_network(path, config=dataclasses.replace(SIT, heads=2))


def test_numbers_beyond_float16_are_not_written(tmp_path):
    tensors = published(SIT)
    tensors["final_layer.linear.bias"] = tensors["final_layer.linear.bias"] + 1e5
    path = write(tmp_path / "a.safetensors", tensors)
    with pytest.raises(ValueError, match=r"expected numbers within the range of float16 in out\.bias, got 100000"):
        convert_weights(path, tmp_path / "b.safetensors", config=SIT, dtype=jnp.float16)
    convert_weights(path, tmp_path / "c.safetensors", config=SIT, dtype=jnp.bfloat16)
    assert {file.name for file in tmp_path.iterdir()} == {"a.safetensors", "c.safetensors"}


def test_a_fixed_position_table_may_be_absent(tmp_path):
    tensors = published(SIT)
    del tensors["pos_embed"]
    assert open_network(write(tmp_path / "a.safetensors", tensors), config=SIT).tensors.keys() == parameters(SIT).keys()


def test_settings_beside_an_autoencoder_contradict_what_is_only_implied(tmp_path):
    (tmp_path / "sit").mkdir()
    sit = write(tmp_path / "sit" / "a.safetensors", published(SIT))
    wide = dataclasses.replace(KL, groups=32, widths=(32, 64, 64))
    path = write(tmp_path / "vae.safetensors", published(wide))
    (tmp_path / "config.json").write_text(json.dumps({"scaling_factor": 0.13025}))
    with pytest.raises(ValueError, match=r"expected the autoencoder of sd latents .*, got .*0\.13025"):
        lz.load_pretrained(sit, config=SIT, autoencoder=path)
    (tmp_path / "config.json").write_text(json.dumps({"scaling_factor": wide.scale}))
    loaded = lz.load_pretrained(sit, config=SIT, autoencoder=path)
    assert loaded.autoencoder.config == wide
    (tmp_path / "config.json").write_text(json.dumps({"scaling_factor": 0.13025}))
    told = lz.load_autoencoder(path, latents="sd")
    assert lz.load_pretrained(sit, config=SIT, autoencoder=told).autoencoder.config.scale == wide.scale


def test_a_named_network_has_to_be_the_one_in_the_file(tmp_path):
    path = write(tmp_path / "a.safetensors", published(SIT))
    with pytest.raises(ValueError, match=r"expected a published width \(384, 768, 1024, 1152\) in .*, got 64"):
        lz.load_pretrained("sit-xl-2", weights=path)
    path = write(tmp_path / "b.safetensors", published(dataclasses.replace(SIT, width=384, heads=6)))
    with pytest.raises(ValueError, match=r"expected the weights of sit-xl-2 .*width 384, not 1152, depth 3, not 28"):
        lz.load_pretrained("sit-xl-2", weights=path)
    with pytest.raises(ValueError, match="expected `weights` of sit-xl-2"):
        lz.load_pretrained("sit-xl-2")
    with pytest.raises(ValueError, match="expected the name of a published network"):
        lz.load_pretrained("fashion-mnist", weights=path)
    with pytest.raises(ValueError, match=r"expected the weights of an autoencoder in .*, got those of SiT"):
        open_network(path, autoencoder=True)


@pytest.mark.parametrize(
    ("name", "said"),
    [("double_blocks.0.img_mod.lin.bias", "those of FLUX"), ("x.weight", "tensors like x.weight"), (None, "like none")],
)
def test_other_networks_are_refused_by_name(tmp_path, name, said):
    path = write(tmp_path / "a.safetensors", {name: np.zeros(3)} if name else {})
    with pytest.raises(ValueError, match=f"expected weights of SiT, MMDiT, AutoencoderKL in {path}, got .*{said}"):
        open_network(path)


def test_latents_have_the_conventions_that_their_file_tells(tmp_path):
    path = write(tmp_path / "a.safetensors", published(KL))
    with pytest.raises(ValueError, match=re.escape("expected the conventions of the latents (sd, sdxl, sd3, flux)")):
        open_network(path, autoencoder=True)
    (tmp_path / "config.json").write_text(json.dumps({"scaling_factor": 0.5, "shift_factor": None}))
    wide = dataclasses.replace(KL, groups=32, widths=(32, 64, 64))
    path = write(path, published(wide))
    found = open_network(path, autoencoder=True).config
    assert found == dataclasses.replace(wide, scale=0.5)
    assert open_network(path, autoencoder=True, name="sdxl").config.scale == 0.13025


def test_hub_names(tmp_path, monkeypatch):
    for wrong in ("hf://owner", "hf://owner/name", "hf:///x/y"):
        with pytest.raises(ValueError, match="expected hf://owner/name/file"):
            open_weights(wrong)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"expected the package huggingface_hub \(extra `hub`\)"):
        open_weights("hf://owner/name/file.safetensors")
    path = write(tmp_path / "w.safetensors", published(SIT))
    calls = []

    def download(repository, file):
        calls.append((repository, file))
        return str(path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=download))
    assert open_network("hf://owner/name/folder/w.safetensors", config=SIT).config == SIT
    assert calls == [("owner/name", "folder/w.safetensors")]


def test_loaded_parameters_keep_their_dtype_and_outlive_the_file(tmp_path):
    path = write(tmp_path / "a.safetensors", published(SIT), jnp.bfloat16)
    model = lz.load_pretrained(path, config=SIT)
    assert {leaf.dtype for leaf in jax.tree.leaves(model.parameters)} == {jnp.dtype(jnp.bfloat16)}
    path.write_bytes(b"")
    u = jax.random.normal(jax.random.key(0), (2, *SIT.shape))
    assert model.field(0)(jnp.asarray(0.5), u).data.dtype == jnp.float32
