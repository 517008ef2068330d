"""One exact velocity dressed as each network: the conventions inside the fields undo every dress."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published_networks import MMDIT, SIT, inputs
from selection import slow_but

import lazysi as lz
from lazysi.models import network_fields
from lazysi.models.network_fields import network_field
from lazysi.models.pretrained import PretrainedModel
from lazysi.models.published import structure
from lazysi.models.tables import unit_gain
from lazysi.models.weights import unflatten_state

ROUNDOFF = 1e-12  # float64
SAME_SUM = 1e-5  # float32: two ways to batch the same matrix products
ANGLES = (0.05, 0.8, 1.5)


def target():
    """Two round blobs, in the precision of the moment."""
    return lz.targets.mixture(jnp.array([0.3, 0.7]), jnp.array([[0.7] * 4, [-0.7] * 4]), jnp.array([0.4, 0.4]))


def velocity(t, x):
    return lz.velocity(target(), lz.linear(), jnp.asarray(t), x)


DRESSES = {
    "SiT": (SIT, lambda x, t, labels: velocity(t, x), False),
    "REPA": (SIT, lambda x, t, labels: -velocity(1 - t, x), True),
    "SD3": (MMDIT, lambda x, sigma, context, pooled: -velocity(1 - sigma, x), True),
}


def conditions(config):
    if config is SIT:
        return (jnp.asarray(1),)
    return (jnp.zeros((5, config.context_width)), jnp.zeros(config.pooled_width))


@pytest.fixture
def dressed(monkeypatch):
    """Field of a network whose forward pass is the exact velocity in its own convention."""

    def make(name, **options):
        config, network, reversed_time = DRESSES[name]
        monkeypatch.setattr(network_fields.nnx, "merge", lambda graph, parameters: network)
        condition = conditions(config)
        return network_field(config, None, condition, condition, reversed_time=reversed_time, **options)

    return make


@pytest.mark.parametrize("name", DRESSES)
@pytest.mark.usefixtures("x64")
def test_every_network_gives_the_same_predictions(name, dressed):
    u = jnp.asarray(np.random.RandomState(0).standard_normal((3, 4)))
    for options in ({}, {"guidance": 2.5}):  # guidance between equal velocities changes nothing
        field = dressed(name, **options)
        for angle in ANGLES:
            found, expected = field(jnp.asarray(angle), u), target()(jnp.asarray(angle), u)
            np.testing.assert_allclose(found.noise, expected.noise, rtol=0, atol=ROUNDOFF)
            np.testing.assert_allclose(found.data, expected.data, rtol=0, atol=ROUNDOFF)


@pytest.mark.parametrize("name", slow_but({"SD3"}, DRESSES))
def test_the_ode_of_every_network_ends_at_the_data(name, dressed):
    samples = lz.sample(jax.random.key(0), dressed(name), (4000, 4), steps=16)
    expected = lz.sample(jax.random.key(0), target(), (4000, 4), steps=16)
    np.testing.assert_allclose(samples, expected, rtol=0, atol=1e-3)  # float32, 16 steps through t and 1 - t
    share = float((samples.mean(-1) > 0).mean())
    assert abs(share - 0.3) < 5 * (0.3 * 0.7 / 4000) ** 0.5 + 0.02  # statistics, and 16 steps


def model(config):
    abstract = structure(config)[1]
    return PretrainedModel(
        config, unflatten_state(unit_gain(abstract), abstract), None, (), {}, reversed_time=config is MMDIT
    )


def test_guided_channels_leave_the_others_conditional():
    network, labels = model(SIT), jnp.array([0, 3])
    u, angle = jax.random.normal(jax.random.key(0), (2, *SIT.shape)), jnp.asarray(0.7)
    every = network.field(labels, guidance=4.0)(angle, u).data
    three = network.field(labels, guidance=4.0, guided_channels=3)(angle, u).data
    plain = network.field(labels)(angle, u).data
    np.testing.assert_allclose(three[..., :3], every[..., :3], rtol=0, atol=SAME_SUM)
    np.testing.assert_allclose(three[..., 3:], plain[..., 3:], rtol=0, atol=SAME_SUM)
    assert float(jnp.abs(every - plain)[..., 3:].max()) > 0.1
    for wrong in (0, 5):
        with pytest.raises(ValueError, match=f"expected `guided_channels` from 1 to 4, got {wrong}"):
            network.field(labels, guidance=4.0, guided_channels=wrong)


def test_text_is_one_prompt_for_all_or_one_per_sample():
    network, arguments = model(MMDIT), inputs(MMDIT)
    context, pooled = (jnp.asarray(arguments[name], jnp.float32) for name in ("context", "pooled"))
    u, angle = jax.random.normal(jax.random.key(0), (2, *MMDIT.shape)), jnp.asarray(0.7)
    per_sample = network.field(text=lz.TextEmbeddings(context, pooled))
    both = per_sample(angle, u).data
    first = network.field(text=lz.TextEmbeddings(context[0], pooled[0]))(angle, u).data
    np.testing.assert_allclose(first[0], both[0], rtol=0, atol=SAME_SUM)
    assert float(jnp.abs(first[1] - both[1]).max()) > 0.01  # the prompt does matter
    negative = lz.TextEmbeddings(context[1], pooled[1])
    guided = network.field(text=lz.TextEmbeddings(context[0], pooled[0]), negative=negative, guidance=3.0)
    second = network.field(text=negative)
    expected = lz.guided(network.field(text=lz.TextEmbeddings(context[0], pooled[0])), second, 3.0)(angle, u).data
    np.testing.assert_allclose(guided(angle, u).data, expected, rtol=0, atol=10 * SAME_SUM)


def test_conditions_that_do_not_fit_are_refused():
    text, classes = model(MMDIT), model(SIT)
    good = lz.TextEmbeddings(jnp.zeros((5, 32)), jnp.zeros(24))
    for call, message in (
        (lambda: text.field(), "expected `text` for a network conditional on text, got None"),
        (lambda: text.field(0, text=good), "expected `text` for this network, got `labels`"),
        (lambda: text.field(text=good, guidance=2.0), "expected `negative` text to guide away from, got None"),
        (
            lambda: text.field(text=good._replace(pooled=jnp.zeros(23))),
            r"24\), got \(5, 32\) and \(23,\)",
        ),
        (
            lambda: text.field(text=good, negative=good._replace(context=good.context[..., :-1, :]), guidance=2.0),
            r"expected as many tokens of `negative` text as of `text`, got \(.*\) and \(.*\)",
        ),
        (lambda: classes.field(0, text=good), "expected `labels` for this network, got `text`"),
        (lambda: classes.field(guidance=2.0), "expected `labels` to guide towards, got None"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_embeddings_come_from_either_kind_of_file(tmp_path):
    from safetensors.numpy import save_file

    arrays = {"context": np.ones((2, 5, 32), np.float32), "pooled": np.zeros((2, 24), np.float32)}
    np.savez(tmp_path / "a.npz", **arrays)
    save_file(arrays | {"negative_context": arrays["context"], "negative_pooled": arrays["pooled"]}, tmp_path / "b")
    positive, negative = lz.load_embeddings(tmp_path / "a.npz")
    assert (positive.context.shape, negative) == ((2, 5, 32), None)
    assert lz.load_embeddings(tmp_path / "b")[1].pooled.shape == (2, 24)
    np.savez(tmp_path / "c.npz", context=arrays["context"])
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[:-100])
    (tmp_path / "damaged.npz").write_bytes(content[:200] + bytes(20) + content[220:])
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("c.npz", "cut.npz", "damaged.npz", "empty.npz", "missing.npz", "missing"):
        with pytest.raises(ValueError, match="expected embedded text"):
            lz.load_embeddings(tmp_path / name)
