"""The objective of a student with a teacher: its sums, its gradients, its stages and its map of layers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhc_jax
from mhc_jax.config import ConfigError
from mhc_jax.models import gpt2, mhc_ssm
from mhc_jax.models.shc_original import SHCOriginalConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.stack import Execution
from mhc_jax.ops import loss
from mhc_jax.ops.loss import IGNORE
from mhc_jax.tree import flatten
from train.config import RunConfig, TrainConfig
from train.objectives.cross_entropy import CrossEntropyConfig
from train.objectives.distillation import PROJECTIONS, DistillationConfig
from train.objectives.kind import TeacherConfig
from train.update.optimizer import make_optimizer
from train.update.state import trained_info
from train.update.step import init_state, make_train_step

SIZES = {"vocab_size": 11, "max_len": 8}
TEACHER = gpt2(**SIZES, width=12, layers=4, mixer=AttentionConfig(heads=2))
STUDENT = mhc_ssm("mhc", **SIZES, width=10, layers=2)


def taught(student=STUDENT, teacher=TEACHER, **changes):
    objective = DistillationConfig(chunk=3, **changes)
    return objective.taught(student, TeacherConfig("teacher", "", teacher))


@pytest.fixture(scope="module")
def known():
    """Parameters of student, objective and teacher, and a batch with places that do not count."""
    params, teacher = (mhc_jax.init(model, jax.random.key(i)) for i, model in enumerate((STUDENT, TEACHER)))
    own = taught().init(STUDENT, jax.random.key(2))
    inputs = jax.random.randint(jax.random.key(3), (2, 8), 0, 11)
    targets = np.roll(inputs, -1, axis=1)
    targets[0, 5:] = targets[1, 0] = IGNORE
    return params, own, teacher, {"inputs": inputs, "targets": jnp.asarray(targets)}


@functools.partial(jax.jit, static_argnums=(0, 1))
def training_sums(objective, model, params, own, teacher, batch):
    return objective.training_sums(model, params, own, teacher, batch)


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, tokens):
    return mhc_jax.apply(model, params, tokens, taps=True)


def streams_apart(params):
    """As after some training: fresh streams are all alike."""
    key = jax.random.key(9)
    return jax.tree.map(lambda x: x + 0.2 * jax.random.normal(key, x.shape), params)


@pytest.mark.slow
def test_the_terms_are_those_of_whole_logits_and_of_activations(known):
    params, own, teacher, batch = known
    params, objective = streams_apart(params), taught(temperature=3.0, layers=("0:2", "1:3", "1:0"))
    own = objective.init(STUDENT, jax.random.key(4))
    sums, penalties = training_sums(objective, STUDENT, params, own, teacher, batch)
    found, goal = forward(STUDENT, params, batch["inputs"]), forward(TEACHER, teacher, batch["inputs"])
    kl, count = loss.kl_divergence(goal.logits_BTV, found.logits_BTV, batch["targets"], temperature=3.0)
    entropy, _ = loss.cross_entropy(found.logits_BTV, batch["targets"])

    def normal(x):
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True))

    hidden = 0.0
    for (ours, theirs), kernel in zip(((0, 2), (1, 3), (1, 0)), own[PROJECTIONS], strict=True):
        state = np.asarray(found.taps["blocks.mixer.state"][ours]).mean(axis=2)
        aim = np.asarray(goal.taps["blocks.mlp.state"][theirs])
        distance = np.square(normal(state) @ kernel - normal(aim)).mean(-1)
        hidden += distance[batch["targets"] != IGNORE].sum() / 3
    expected = {"kl": kl, "cross_entropy": entropy, "hidden": hidden, "tokens": count}
    expected["loss"] = kl + 0.5 * hidden + 0.1 * entropy
    assert sums.keys() == expected.keys()
    assert not penalties
    for name, value in expected.items():
        np.testing.assert_allclose(sums[name], value, rtol=2e-5, err_msg=name)
    assert count == 12


@pytest.mark.slow
def test_gradients_reach_the_student_and_its_projections_alone(known):
    params, own, teacher, batch = known

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1, 2))
    def gradient(params, own, teacher):
        return taught().training_sums(STUDENT, params, own, teacher, batch)[0]["loss"]

    of_student, of_projections, of_teacher = gradient(streams_apart(params), own, teacher)
    assert all(np.asarray(x).any() for x in flatten(of_student).values())
    assert all(np.asarray(x).any() for x in of_projections[PROJECTIONS])
    assert not any(np.asarray(x).any() for x in flatten(of_teacher).values())
    assert taught(hidden=0.0).init(STUDENT, jax.random.key(0)) == {}


def test_a_student_that_is_its_teacher_has_nothing_to_learn_but_the_text(known):
    *_, teacher, batch = known
    objective = taught(TEACHER)
    own = objective.init(TEACHER, jax.random.key(0))
    sums, _ = training_sums(objective, TEACHER, teacher, own, teacher, batch)
    np.testing.assert_allclose([sums["kl"], sums["hidden"]], 0, atol=1e-6)
    np.testing.assert_allclose(sums["loss"], 0.1 * sums["cross_entropy"], rtol=1e-5)


@pytest.mark.slow
def test_evaluation_is_that_of_cross_entropy_and_needs_no_teacher(known):
    params, _, _, batch = known
    expected, _ = CrossEntropyConfig(chunk=3, errors=True).sums(STUDENT, params, batch)
    found, _ = taught(errors=True).sums(STUDENT, params, batch)
    assert found == expected
    assert taught(errors=True).without_teacher() == CrossEntropyConfig(chunk=3, errors=True)


def test_each_term_counts_in_its_stage(known):
    params, own, teacher, batch = known
    objective = taught(hidden_until=0.5, kl_from=0.25, cross_entropy_from=0.75)
    stages = {0.0: (0, 0.5, 0), 0.25: (1, 0.5, 0), 0.5: (1, 0, 0), 0.75: (1, 0, 0.1), 1.0: (1, 0, 0.1)}
    run = jax.jit(lambda progress: objective.training_sums(STUDENT, params, own, teacher, batch, progress=progress)[0])
    for progress, weights in stages.items():
        assert objective.weights(progress) == weights
        sums = run(progress)  # one program for all stages
        terms = [sums[name] for name in ("kl", "hidden", "cross_entropy")]
        assert all(terms)  # reported in every stage
        np.testing.assert_allclose(sums["loss"], np.dot(weights, terms), rtol=1e-5)
    assert run._cache_size() == 1
    assert taught().weights(1.0) == (1, 0.5, 0.1)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"temperature": 0.0}, "temperature must be at least 1e-06, got 0.0"),
        ({"kl": -1.0}, "kl must not be negative"),
        ({"kl": 0.0, "hidden": 0.0, "cross_entropy": 0.0}, "no term counts from 0% of training on"),
        ({"hidden_until": 0.5, "kl_from": 0.75, "cross_entropy_from": 0.75}, "no term counts from 50% of training on"),
        ({"kl_from": 1.5}, r"kl_from must lie in \[0, 1\]"),
        ({"layers": ("0-1",)}, "layers must be pairs STUDENT:TEACHER such as 0:1, got '0-1'"),
        ({"layers": ("0:1", "0:1")}, "layers must not hold a pair twice"),
        ({"form": "original", "kl_from": 0.1}, "form 'original' has no stages"),
    ],
)
def test_records_that_contradict_themselves(changes, fault):
    with pytest.raises(ConfigError, match=fault):
        DistillationConfig(**changes).validate()


def test_layers_are_paired_by_depth_or_as_they_are_given():
    assert taught().layers == ("0:1", "1:3")
    assert taught(TEACHER, STUDENT).layers == ("0:0", "1:0", "2:1", "3:1")
    for count in (3, 7, 10):
        pairs = taught(STUDENT.replace(layers=count), TEACHER.replace(layers=12)).pairs
        assert [ours for ours, _ in pairs] == list(range(count))
        assert [theirs for _, theirs in pairs] == sorted({theirs for _, theirs in pairs})
        assert pairs[-1] == (count - 1, 11)
    assert taught(layers=("1:0",)).pairs == [(1, 0)]
    assert taught(hidden=0.0).layers == ()
    wide = STUDENT.replace(width=12)
    assert taught(wide, form="original").layers == ("0:0", "1:2")  # the last of the teacher is none of them
    for pair, fault in (("2:0", "student has layers 0 to 1, and no 2"), ("0:4", "teacher has layers 0 to 3, and no 4")):
        with pytest.raises(ConfigError, match=f"^--objective.layers {pair}: the {fault}$"):
            taught(layers=(pair,))
    with pytest.raises(ConfigError, match=r"not of 10 \(the student\) and 12; give --model.width 12"):
        taught(form="original")


@pytest.mark.slow
def test_the_published_form_is_the_published_loss(known):
    *_, teacher, batch = known
    student = gpt2(**SIZES, width=12, layers=2, mixer=AttentionConfig(heads=2))
    params, objective = mhc_jax.init(student, jax.random.key(5)), taught(student, form="original")
    assert objective.init(student, jax.random.key(0)) == {}
    sums, _ = training_sums(objective, student, params, {}, teacher, batch)
    found, goal = forward(student, params, batch["inputs"]), forward(TEACHER, teacher, batch["inputs"])
    states, goals = found.taps["blocks.mlp.state"], goal.taps["blocks.mlp.state"][np.array([0, 2])]
    logits = found.logits_BTV, goal.logits_BTV
    expected = loss.published_distillation(*logits, states, goals, batch["targets"])
    names = ("loss", "kl", "hidden", "cross_entropy")
    np.testing.assert_allclose([sums[name] / sums["tokens"] for name in names], expected, rtol=1e-5)


@pytest.mark.slow
def test_models_of_other_kinds_have_layers_too(known):
    params, _, _, batch = known
    published = SHCOriginalConfig(**SIZES, width=8, layers=2, heads=2, hidden=7, streams=1)
    objective = taught(teacher=published, layers=("1:1",))
    teacher, own = mhc_jax.init(published, jax.random.key(0)), objective.init(STUDENT, jax.random.key(1))
    sums, _ = training_sums(objective, STUDENT, params, own, teacher, batch)
    assert np.isfinite(sums["hidden"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_sums_are_float32_under_every_policy(name, known):
    params, own, teacher, batch = known
    narrow = Execution(policy=name)
    student = STUDENT.replace(execution=narrow)
    objective = taught(student, TEACHER.replace(execution=narrow))

    def total(params, own):
        sums, _ = objective.training_sums(student, params, own, teacher, batch)
        return sums["loss"], sums

    (_, sums), gradients = jax.eval_shape(jax.value_and_grad(total, (0, 1), has_aux=True), params, own)
    assert {x.dtype.name for x in jax.tree.leaves((sums, gradients))} == {"float32"}


@pytest.mark.slow
def test_micro_batches_make_the_step_of_the_whole_batch(known):
    params, own, teacher, batch = known
    batch = jax.tree.map(lambda x: jnp.concatenate([x, x[::-1]]), batch)
    found = []
    for accumulate in (1, 2):
        config = RunConfig(model=STUDENT, objective=taught(), train=TrainConfig(accumulate=accumulate))
        optimizer = make_optimizer(config.optim, 10, trained_info(config))
        state = dataclasses.replace(init_state(config, optimizer), params=params, objective=own)
        after, metrics = jax.jit(make_train_step(config, optimizer))(state, batch, teacher)
        assert np.abs(after.objective[PROJECTIONS] - own[PROJECTIONS]).max() > 0
        found.append([metrics[name] for name in ("loss", "kl", "hidden", "cross_entropy", "grad_norm")])
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_a_teacher_that_no_run_has_found_is_asked_for():
    with pytest.raises(ConfigError, match=r"python -m train.distill TEACHER NAME"):
        DistillationConfig().param_info(STUDENT)
