"""Plans: files that are whole or refused, and sampling with a plan as with the method it tabulates."""

import itertools
import json
from pathlib import Path

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lazysi as lz
from lazysi.models import pretrained
from lazysi.multistep import log_variable

KEY = jax.random.key(4)
ROUNDOFF = 1e-12  # float64: the same method by two programs
SINGLE = 1e-5  # float32: the same samples by programs that round in another order
STEPS = 4

FIELD = lz.targets.mixture([0.4, 0.6], [[-1.0, 0.5], [1.5, -0.5]], [0.25, 0.4])
LAZY = lambda: lz.gaussian_frame(lz.isotropic(0.3, 0.6))  # noqa: E731
METHODS = {
    "DDIM": (lz.point_frame, 0.0, {"order": 1, "variable": log_variable}),
    "UniPC": (
        lz.point_frame,
        0.0,
        {"order": 2, "variable": log_variable, "midpoint": True, "corrector": True, "taper": True},
    ),
    "lazy": (LAZY, 0.0, {"order": 3, "corrector": True}),
    "lazy SDE": (LAZY, 1.0, {"order": 2, "extrapolation": 0.3}),
    "SDE-DPM-Solver++": (lz.point_frame, 0.5, {"order": 2, "variable": log_variable, "midpoint": True}),
}


tabulate = eqx.filter_jit(lz.Multistep.table)


def plan_of(name, steps=STEPS, about="{}", shift=1.5):
    """Plan of a known method, and the arguments of `sample` for the same."""
    frame, kappa, options = METHODS[name]
    made, solver, grid = frame(), lz.Multistep(**options), lz.grids.shifted_time(steps, shift)
    table = tabulate(solver, made, grid, jnp.asarray(kappa), made.is_open())
    plan = lz.Plan(table, lz.isotropic(made.moments.mean), jnp.asarray(kappa, float), about)
    return plan, {"steps": steps, "kappa": kappa, "frame": made, "solver": solver, "grid": grid}


def write(path, change):
    """The file of a plan, changed."""
    lz.save_plan(path, plan_of("UniPC")[0])
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", METHODS)
def test_a_plan_of_a_known_method_is_that_method(name):
    plan, arguments = plan_of(name)
    expected = lz.sample(KEY, FIELD, (20, 2), **arguments)
    np.testing.assert_allclose(lz.sample(KEY, FIELD, (20, 2), plan=plan), expected, rtol=ROUNDOFF, atol=ROUNDOFF)


@pytest.mark.parametrize("wide", [False, True])
def test_a_file_keeps_every_bit(tmp_path, wide):
    with jax.enable_x64(wide):
        plan, _ = plan_of("lazy SDE", about='{"sliced_wasserstein": 0.25}')
        lz.save_plan(tmp_path / "plan.json", plan)
        found = lz.load_plan(tmp_path / "plan.json")
        assert found.steps == STEPS
        assert json.loads(found.about) == {"sliced_wasserstein": 0.25}
        for ours, theirs in zip(jax.tree.leaves(found.table), jax.tree.leaves(plan.table), strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
        assert found.kappa == plan.kappa
        assert found.moments.mean == plan.moments.mean
        drawn = (lz.sample(KEY, FIELD, (5, 2), plan=p) for p in (found, plan))
        np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"kind": "lazysi plan", "version": 1, "table": {"angl', "expected a plan in JSON"),
        (b"\x93NUMPY\xff\xfe", "expected a plan in JSON"),
        (b"[1, 2]", "expected a file of kind 'lazysi plan', version 1"),
        (b'{"kind": "model"}', "expected a file of kind 'lazysi plan', version 1"),
        (b'{"kind": "lazysi plan", "version": 2}', "expected a file of kind 'lazysi plan', version 1"),
        (b'{"kind": "lazysi plan", "version": 1}', "expected a whole plan in .*: expected an entry `angles`"),
        (b'{"kind": "lazysi plan", "version": 1, "table": [1]}', "expected an entry `angles`"),
    ],
)
def test_what_is_no_plan_is_refused(tmp_path, content, sentence):
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        lz.load_plan(tmp_path / "plan.json")


def test_a_missing_file_and_a_directory_are_refused(tmp_path):
    for path in (tmp_path / "plan.json", tmp_path):
        with pytest.raises(ValueError, match="expected a plan in JSON"):
            lz.load_plan(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d["table"].pop("spread"), "expected an entry `spread`, got none"),
        (lambda d: d.pop("kappa"), "expected an entry `kappa`, got none"),
        (lambda d: d.update(kappa=-1), "expected `kappa` of at least 0, got -1"),
        (lambda d: d.update(mean=[0.0, 1.0]), "expected `mean` to be a number"),
        (lambda d: d["table"].update(stay="none"), "expected numbers as `stay`"),
        (lambda d: d["table"].update(weights=[[1.0, 2.0], [1.0]]), "expected numbers as `weights`"),
        (lambda d: d["table"]["stay"].pop(), r"expected `stay` of shape \(4,\), got \(3,\)"),
        (lambda d: d["table"]["weights"].pop(), r"expected `weights` of shape \(4, 4\), got \(3, 4\)"),
        (lambda d: d["table"]["data"].__setitem__(1, [1.0, 1.0]), "expected numbers as `data`"),
        (lambda d: d["table"]["data"].__setitem__(1, float("nan")), "expected finite numbers as `data`"),
        (lambda d: d["table"]["angles"].__setitem__(1, 1.5), "expected angles rising from 0 to pi/2"),
        (lambda d: d["table"]["angles"].__setitem__(0, 0.1), "expected angles rising from 0 to pi/2"),
        (lambda d: d["table"]["angles"].__setitem__(-1, 1.57), "expected angles rising from 0 to pi/2"),
    ],
)
def test_an_incomplete_plan_is_refused(tmp_path, change, sentence):
    write(tmp_path / "plan.json", change)
    with pytest.raises(ValueError, match=f"expected a whole plan in .*: {sentence}"):
        lz.load_plan(tmp_path / "plan.json")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path, (plan, _) = tmp_path / "plan.json", plan_of("DDIM")
    lz.save_plan(path, plan)
    before = path.read_bytes()

    def fail(self, text):
        with self.open("w") as file:
            file.write(text[:100])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="no space left"):
        lz.save_plan(path, plan_of("UniPC")[0])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_plan_with_directions_is_no_file(tmp_path):
    plan, _ = plan_of("DDIM")
    for moments in (lz.cosine_basis(jnp.zeros((2, 2)), jnp.ones((2, 2))), lz.isotropic(jnp.zeros(2))):
        with pytest.raises(ValueError, match="expected a plan with one frame for all directions"):
            lz.save_plan(tmp_path / "plan.json", lz.Plan(plan.table, moments, plan.kappa))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"schedule": lz.linear()}, "expected `plan` alone, as it decides how to sample, got `schedule` too"),
        ({"solver": lz.Multistep()}, "got `solver` too"),
        ({"grid": lz.grids.uniform_angle}, "got `grid` too"),
        ({"moments": lz.isotropic()}, "got `moments` too"),
        ({"frame": lz.point_frame()}, "got `frame` too"),
        ({"denoise": True}, "got `denoise` too"),
        ({"brownian_tolerance": 1e-3}, "got `brownian_tolerance` too"),
        ({"steps": STEPS + 1}, "expected `steps` of the plan, 4, got 5"),
        ({"kappa": 0.7}, "expected `kappa` of the plan, 0.5, got 0.7"),
        ({"kappa": lambda angle: angle}, "expected `kappa` of the plan, 0.5, got"),
        ({"kappa": float("nan")}, "expected `kappa` to be finite"),
        ({"plan": "plan.json"}, "expected a Plan as `plan`, from `tune` or `load_plan`, got 'plan.json'"),
    ],
)
def test_arguments_that_contradict_a_plan_are_refused(arguments, sentence):
    plan, _ = plan_of("SDE-DPM-Solver++")
    for draw in (lz.sample, lz.sample_path):
        with pytest.raises(ValueError, match=sentence):
            draw(KEY, FIELD, (5, 2), **({"plan": plan} | arguments))


def test_moments_of_another_shape_are_refused():
    plan, _ = plan_of("DDIM")
    with pytest.raises(ValueError, match=r"expected moments with `mean` of shape \(\) or \(2,\), got \(3,\)"):
        lz.sample(KEY, FIELD, (5, 2), plan=lz.Plan(plan.table, lz.isotropic(jnp.zeros(3)), plan.kappa))


def test_arguments_that_agree_are_accepted():
    plan, _ = plan_of("DDIM")
    plan = lz.Plan(plan.table, plan.moments, jnp.asarray(0.3))  # not a float32
    np.testing.assert_array_equal(
        lz.sample(KEY, FIELD, (5, 2), plan=plan, steps=STEPS, kappa=0.3), lz.sample(KEY, FIELD, (5, 2), plan=plan)
    )


def test_chunks_paths_jit_and_vmap():
    plan, _ = plan_of("lazy SDE")
    draw = lambda key, **options: lz.sample(key, FIELD, (5, 2), plan=plan, **options)  # noqa: E731
    expected = draw(KEY)
    np.testing.assert_allclose(draw(KEY, chunk_size=2), expected, atol=SINGLE)
    np.testing.assert_allclose(lz.sample(KEY, FIELD, (2, 2), plan=plan, first=3), expected[3:], atol=SINGLE)
    np.testing.assert_allclose(jax.jit(draw)(KEY), expected, atol=SINGLE)
    keys = jax.random.split(KEY, 3)
    np.testing.assert_allclose(jax.vmap(draw)(keys), jnp.stack([draw(key) for key in keys]), atol=SINGLE)
    angles, path = lz.sample_path(KEY, FIELD, (5, 2), plan=plan)
    np.testing.assert_array_equal(angles, plan.table.angles)
    assert path.shape == (STEPS + 1, 5, 2)
    np.testing.assert_allclose(path[-1], expected, atol=SINGLE)


class _Counting(eqx.Module):
    """A field that counts how often Python runs it."""

    calls: list = eqx.field(static=True)

    def __call__(self, angle, u):
        self.calls.append(1)
        return FIELD(angle, u)


class _Calls(list):
    __hash__ = object.__hash__
    __eq__ = object.__eq__


def test_plans_of_equal_steps_share_one_program():
    """Whatever they say about themselves; under the user's jit too, if they say the same."""
    field, draws = _Counting(_Calls()), []
    for name in METHODS:
        plan, _ = plan_of(name, about=json.dumps({"name": name}))
        draws.append(lz.sample(KEY, field, (3, 2), plan=plan))
        if name == "DDIM":
            compiled = len(field.calls)
    assert len(field.calls) == compiled > 0

    @eqx.filter_jit
    @chex.assert_max_traces(n=1)
    def draw(plan):
        return lz.sample(KEY, FIELD, (3, 2), plan=plan)

    for name, expected in zip(METHODS, draws, strict=True):
        np.testing.assert_allclose(draw(plan_of(name)[0]), expected, atol=SINGLE)
    assert len({float(x[0, 0]) for x in draws}) == len(METHODS)


@pytest.fixture
def bundled(tmp_path, monkeypatch):
    """The bundled model, with two plans of ours as the bundled ones."""
    model = lz.load_pretrained("fashion-mnist")
    (tmp_path / "assets" / "plans").mkdir(parents=True)
    monkeypatch.setattr(pretrained.resources, "files", lambda package: tmp_path)
    return model, tmp_path / "assets" / "plans"


def test_bundled_plans_are_found_by_steps_kappa_and_guidance(bundled):
    model, directory = bundled
    with pytest.raises(ValueError, match=r"there are none\), got 4 steps at kappa 0, guidance 1$"):
        model.plan(4)
    names = {
        "fashion-mnist-12-kappa0": {"steps": 12},
        "fashion-mnist-4-kappa0": {"steps": 4, "guidance": 1.0},
        "fashion-mnist-4-kappa1-guided": {"steps": 4, "kappa": 1, "guidance": 2.0},
    }
    for name, wanted in names.items():
        method = "lazy SDE" if "kappa1" in name else "lazy"
        lz.save_plan(directory / f"{name}.json", plan_of(method, wanted["steps"], json.dumps({"name": name}))[0])
        assert json.loads(model.plan(**wanted).about) == {"name": name}
    (directory / "other-4-kappa0.json").write_text("{}")
    known = "4, 12 steps at kappa 0, guidance 1; 4 steps at kappa 1, guidance 2"
    for wanted, got in [
        ({"steps": 5}, "5 steps at kappa 0, guidance 1"),
        ({"steps": 4, "kappa": 0.5}, "4 steps at kappa 0.5, guidance 1"),
        ({"steps": 4, "guidance": 0.0}, "4 steps at kappa 0, guidance 0"),
        ({"steps": 12, "kappa": 1.0, "guidance": 2.0}, "12 steps at kappa 1, guidance 2"),
    ]:
        with pytest.raises(ValueError, match=rf"expected one of the bundled plans \({known}\), got {got}$"):
            model.plan(**wanted)
    with pytest.raises(ValueError, match="expected a bundled model"):
        model._replace(name=None).plan(4)


def test_there_is_a_bundled_plan_for_every_case():
    directory = Path(lz.__file__).parent / "assets" / "plans"
    wanted = itertools.product((3, 4, 6, 8, 12, 16), (0.0, 1.0), (None, 2.0))
    assert {path.stem for path in directory.iterdir()} == {
        pretrained.plan_name("fashion-mnist", *key) for key in wanted
    }


def test_every_bundled_plan_is_what_its_name_says():
    directory = Path(lz.__file__).parent / "assets" / "plans"
    model = lz.load_pretrained("fashion-mnist")
    for path in directory.glob("*.json"):
        about = json.loads(lz.load_plan(path).about)
        plan = model.plan(about["steps"], kappa=float(lz.load_plan(path).kappa), guidance=about["guidance"])
        assert plan.steps == about["steps"]
        assert json.loads(plan.about) == about
        assert path.stem == pretrained.plan_name("fashion-mnist", plan.steps, float(plan.kappa), about["guidance"])
