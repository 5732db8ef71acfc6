"""The checks of a model: each fails on a model that breaks it, and the command says which."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhc_jax
from mhc_jax import decode, registry, sampling
from mhc_jax.config import ConfigError
from mhc_jax.models import nanogpt, with_topology
from mhc_jax.nn.channel import ChannelMixer, ChannelMixerConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.projections import ProjectionConfig
from mhc_jax.nn.residual import StaticMHCConfig
from mhc_jax.tree import flatten
from train import validate
from train.checks import decoding, forward, learning, mirror, mixing, storage
from train.checks.finding import Finding
from train.checks.subject import Subject, compiled, small
from train.config import RunConfig
from train.loop import named

RUNS = itertools.count(1)


class Faulty(ChannelMixer):
    """Adds its input, times one plus a gain, to the stream; unless its configuration names a fault."""

    def __init__(self, config, width, policy, init):
        self.fault, self.policy = config.fault, policy
        self.gain = init("gain", lambda key, shape: jnp.zeros(shape), width, axes=("features",))

    def __call__(self, u_BTD, scope):
        y = u_BTD if self.fault == "unused" else u_BTD * (1 + self.gain[...])
        if self.fault == "sees later":
            return y + jnp.roll(u_BTD, -1, axis=1)
        if self.fault == "narrows":
            return y[..., 1:]
        if self.fault == "overflows" and self.policy.compute == jnp.bfloat16:
            return y * jnp.inf
        if self.fault == "counts":
            number = jax.ShapeDtypeStruct((), jnp.float32)
            return y * jnp.sin(jax.pure_callback(lambda x: np.float32(next(RUNS)), number, y[0, 0, 0]))
        return y


@dataclasses.dataclass(frozen=True)
class FaultyConfig(ChannelMixerConfig):
    fault: str = ""

    def build(self, width, policy, init):
        return Faulty(self, width, policy, init)


@dataclasses.dataclass(frozen=True)
class LopsidedConfig(ProjectionConfig):
    """Rows that sum to one, and columns that do not."""

    def project(self, logits, streams):
        return jax.nn.softmax(logits + jnp.arange(streams))


def model_with(mlp, **changes):
    changes = {"vocab_size": 61, "max_len": 24, "width": 8, "layers": 1, "mlp": mlp} | changes
    return nanogpt("plain").replace(mixer=AttentionConfig(heads=2), **changes)


def subject_of(model):
    return Subject.of(RunConfig(model=model), quick=True)


@pytest.fixture(scope="module", autouse=True)
def faulty():
    """Both parts, registered for these tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_REGISTRY", {axis: dict(kinds) for axis, kinds in registry._REGISTRY.items()})
        registry.register("channel", "faulty")(FaultyConfig)
        registry.register("projection", "lopsided")(LopsidedConfig)
        yield


@pytest.fixture(scope="module")
def sound():
    return subject_of(model_with(FaultyConfig()))


def altered(subject, **changes):
    """The subject with other parameters, or another output, and the same program."""
    fields = {name: changes.pop(name) for name in ("initial", "params") if name in changes}
    other = dataclasses.replace(subject, **fields)
    vars(other).update({"forward": subject.forward} | changes)
    return other


def verdicts(findings):
    return {finding.check: finding.verdict for finding in findings}


def failed(findings):
    return [finding.check for finding in findings if finding.ok is False]


def test_a_sound_model_passes(sound):
    found = [*forward.logits(sound), *forward.first_loss(sound), *forward.causality(sound), *storage.saved(sound)]
    assert {finding.verdict for finding in found} == {"ok"}
    assert {finding.verdict for finding in decoding.decoding(sound)} == {"ok"}


def test_a_part_that_breaks_its_contract_fails_the_check(monkeypatch):
    monkeypatch.setattr(validate, "CHECKS", (forward.first_loss, storage.saved))
    found = validate.validate(subject_of(model_with(FaultyConfig("narrows"))))
    assert verdicts(found) == {"first loss": "FAIL", "saved": "FAIL"}
    assert "Faulty must give an output of shape (4, 16, 8), not (4, 16, 7)" in found[0].detail


def test_tensors_of_the_mirror_are_compared_by_name_and_shape():
    ours = {
        "blocks.0.mlp.branch.gain": np.zeros(3),
        "blocks.1.mlp.branch.gain": np.zeros(3),
        "embed.tokens": np.ones(2),
    }
    assert mirror.differences(ours, ours) == []
    twins = {
        "blocks.0.mlp.branch.bias": np.zeros(3),
        "blocks.1.mlp.branch.bias": np.zeros(3),
        "embed.tokens": np.ones(4),
    }
    assert mirror.differences(ours, twins) == [
        "the twin of mlp.branch has 'bias', which JAX lacks",
        "the twin of mlp.branch lacks 'gain'",
        "the twin of embed has 'tokens' of shape (4,), JAX of (2,)",
    ]


def test_logits_of_another_shape_or_not_finite(sound):
    output = sound.output
    short = dataclasses.replace(output, logits_BTV=output.logits_BTV[..., 1:])
    assert failed(forward.logits(altered(sound, output=short))) == ["logits, shape"]
    nan = dataclasses.replace(output, logits_BTV=output.logits_BTV * np.nan)
    assert failed(forward.logits(altered(sound, output=nan))) == ["logits, finite"]


@pytest.mark.parametrize("factor", [60, np.nan])
def test_a_first_loss_that_is_not_that_of_ignorance(sound, factor):
    loud = jax.tree.map(lambda x: x * factor, sound.initial)
    assert failed(forward.first_loss(altered(sound, initial=loud))) == ["first loss, near ln V"]


def test_a_first_loss_too_good_to_be_true(sound):
    """Logits that favour the targets."""
    known = np.float32(9 * np.eye(61)[sound.batch["targets"]])
    told = altered(sound, forward=lambda params, tokens: dataclasses.replace(sound.output, logits_BTV=known))
    assert failed(forward.first_loss(told)) == ["first loss, near ln V"]


def test_tokens_that_see_later_ones():
    subject = subject_of(model_with(FaultyConfig("sees later")))
    assert failed(forward.causality(subject)) == ["causality, before a change"]
    assert "cached, off whole passes" in failed(decoding.decoding(subject))


def test_tokens_that_change_nothing(sound):
    deaf = altered(sound, forward=lambda params, tokens: sound.output)
    assert failed(forward.causality(deaf)) == ["causality, from it on"]


def test_parameters_without_a_gradient_are_named():
    (broken, missing) = learning.gradients(subject_of(model_with(FaultyConfig("unused"))))
    assert (broken.verdict, missing.verdict) == ("ok", "FAIL")
    assert missing.detail == "blocks.mlp.branch.gain"


@pytest.mark.slow
def test_weights_of_a_single_stream_need_no_gradient():
    model = model_with(None, residual=StaticMHCConfig(streams=1), ends=nanogpt("mhc").ends)
    broken, missing = learning.gradients(subject_of(model))
    assert (broken.verdict, missing.verdict) == ("ok", "ok")
    assert missing.bound == "all but 3 of one stream"


def test_gradients_that_are_not_finite_are_named(sound):
    nan = altered(sound, params=jax.tree.map(lambda x: x * np.nan, sound.params))
    broken, _ = learning.gradients(nan)
    assert broken.verdict == "FAIL"
    assert broken.detail.split(", ") == list(flatten(sound.params))


@pytest.mark.slow
def test_a_loss_that_does_not_fall_and_an_overflow_in_bfloat16(monkeypatch):
    monkeypatch.setattr(learning, "RATE", 1e-9)
    monkeypatch.setattr(learning, "STEPS", 2)
    found = learning.steps(subject_of(model_with(FaultyConfig("overflows"))))
    assert failed(found) == ["loss after 2 steps", "bfloat16 step, finite", "bfloat16, off float32"]


def test_mixing_matrices_that_break_a_promise():
    model = nanogpt("mhc", vocab_size=61, max_len=24, width=8, layers=1, heads=2)
    model = model.replace(residual=StaticMHCConfig(streams=2, projection=LopsidedConfig()))
    found = mixing.mixing(subject_of(model))
    assert failed(found) == ["mixer H_res: column sums", "mlp H_res: column sums"]
    assert len(found) == 6


def test_a_mixing_matrix_without_a_tap(sound):
    model = nanogpt("mhc", vocab_size=61, max_len=24, width=8, layers=1, heads=2)
    hidden = altered(sound, output=dataclasses.replace(sound.output, taps={}))
    hidden = dataclasses.replace(hidden, config=hidden.config.replace(model=model))
    vars(hidden)["output"] = dataclasses.replace(sound.output, taps={})
    assert failed(mixing.mixing(hidden)) == ["mixing, mixer H_res", "mixing, mlp H_res"]


def test_singular_values_outside_the_bounds_of_a_topology(sound):
    """At two sites the floor of 0.1 allows none below its square root."""
    model = with_topology(nanogpt("plain", vocab_size=61, max_len=24, width=8, layers=1, heads=2), "shc")
    subject = dataclasses.replace(sound, config=sound.config.replace(model=model))
    for scale, faults in (
        (0.3, ["mixer H_res: 1 - least singular value"]),
        (0.4, []),
        (1.1, ["mixer H_res: spectral norm - 1"]),
    ):
        taps = {f"blocks.{name}.residual.h_res": x * np.eye(4) for name, x in (("mixer", scale), ("mlp", 1.0))}
        vars(subject)["output"] = dataclasses.replace(sound.output, taps=taps)
        found = mixing.mixing(subject)
        assert len(found) == 4
        assert failed(found) == faults


def test_a_model_that_mixes_nothing_is_not_said_to_pass(sound):
    assert verdicts(mixing.mixing(sound)) == {"mixing matrices": "-"}


@pytest.mark.parametrize("kind", registry.names("projection"))
def test_every_projection_keeps_its_promise_and_other_matrices_do_not(kind):
    projection = registry.get("projection", kind)()
    logits = np.float32(np.random.default_rng(3).normal(size=(5, *projection.shape(4))))
    matrices = np.asarray(compiled(lambda x: projection.project(x, 4), quick=True)(logits), np.float64)
    promised = {name: bound for name, bound in dataclasses.asdict(projection.promise).items() if bound is not None}
    assert promised
    for name, bound in promised.items():
        _, errors = mixing.ERRORS[name]
        assert errors(matrices).max() <= bound, name
        assert errors(1.5 * matrices - 0.6 * np.eye(4)[::-1]).max() > bound, name


@pytest.mark.slow
def test_a_model_that_is_never_the_same():
    subject = subject_of(model_with(FaultyConfig("counts")))
    assert failed(storage.saved(subject)) == ["saved, logits"]
    assert "greedy, twice" in failed(decoding.decoding(subject))


def test_a_configuration_that_comes_back_as_another(sound, monkeypatch):
    load = mhc_jax.load
    monkeypatch.setattr(mhc_jax, "load", lambda folder: (sound.model.replace(layers=2), load(folder)[1]))
    assert failed(storage.saved(sound)) == ["saved, configuration"]


@pytest.mark.slow
def test_a_decoder_that_takes_the_least_likely_token_and_stops_early(monkeypatch):
    monkeypatch.setattr(sampling, "sample_token", lambda logits, key, **options: jnp.argmin(logits, axis=-1))
    generate = decode.generate_with_lengths

    def short(*arguments, **options):
        ids, lengths = generate(*arguments, **options)
        return ids, lengths - 1

    monkeypatch.setattr(decode, "generate_with_lengths", short)
    # Of a size of its own: a program with this decoder must serve no other test.
    found = decoding.decoding(subject_of(model_with(FaultyConfig(), vocab_size=59)))
    assert failed(found) == ["generated, new tokens", "greedy, below likeliest", "drawn, top 5, top-p 0.9"]


def test_what_may_be_drawn():
    logits = np.log([[[0.5, 0.2, 0.15, 0.1, 0.03, 0.02], [0.2, 0.2, 0.2, 0.2, 0.1, 0.1]]])
    # Of the five likeliest, which together have 0.98, the first four are needed to reach 0.9.
    assert [bool(decoding.outside(logits[:, :1], np.array([[i]]))[0, 0]) for i in range(6)] == [False] * 4 + [True] * 2
    # Two that are equally likely as the fifth may both be drawn.
    assert not decoding.outside(logits[:, 1:], np.array([[5]])).any()
    assert decoding.short_of_the_likeliest(logits, np.array([[0, 3]])) == 0
    assert decoding.short_of_the_likeliest(logits, np.array([[1, 3]])) > 0.1


@pytest.mark.slow
def test_a_mirror_that_differs_or_is_not_there(monkeypatch, sound):
    model = small(named.load("gpt2").sized(61).model)
    twin = subject_of(model)
    assert verdicts(mirror.mirror(twin)) == {"PyTorch mirror, logits": "ok"}
    true = mirror._logits
    monkeypatch.setattr(mirror, "_logits", lambda *arguments: 1.001 * true(*arguments))
    assert failed(mirror.mirror(twin)) == ["PyTorch mirror, logits"]
    monkeypatch.undo()
    (unknown,) = mirror.mirror(sound)
    assert unknown.ok is None
    assert "faulty" in unknown.detail
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (absent,) = mirror.mirror(sound)
    assert (absent.ok, absent.detail) == (None, "torch is not installed")


@pytest.fixture
def quick(monkeypatch, sound):
    """One passing, one failing and one open check."""
    findings = [Finding("a", "1", "1", True), Finding("b", "2", "1", False, "b.c"), Finding.unchecked("c", "no d")]
    monkeypatch.setattr(validate, "CHECKS", [lambda subject: findings])
    monkeypatch.setattr(Subject, "of", lambda config, params, quick: sound)


def test_the_command_fails_with_a_table_and_a_file(quick, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        validate.main(["nanogpt", "--json", str(tmp_path / "found.json")])
    assert stop.value.code == 1
    out = capsys.readouterr().out
    assert "b: b.c" in out
    assert "c: no d" in out
    assert out.endswith("\n1 passed, 1 failed, 1 not checked\n")
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(x["name"], x["check"], x["ok"]) for x in found] == [
        ("nanogpt", "a", True),
        ("nanogpt", "b", False),
        ("nanogpt", "c", None),
    ]


def test_a_family_is_each_of_its_forms_once(quick, capsys):
    with pytest.raises(SystemExit):
        validate.main(["rlm"])
    heads = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines() if "layers of width" in line]
    assert sorted(heads) == ["rlm_small", "rlm_small_folded", "rlm_small_original", "rlm_small_plain"]


@pytest.mark.parametrize(
    ("argv", "fault"),
    [
        (["rml_small"], "unknown configuration 'rml_small'; did you mean 'rlm_small'"),
        (["rml"], "did you mean 'rlm'"),
        (["nanogpt@mch"], "did you mean 'mhc'"),
        (["runs/nothing"], "runs/nothing: no such folder"),
        (["rlm", "--full"], "--full checks one configuration; of rlm there are"),
        (["rlm_large", "--full"], "parameters take"),
        (["nanogpt", "--json", "."], "--json . is a folder"),
    ],
)
def test_bad_input_is_one_line(argv, fault, monkeypatch):
    monkeypatch.setattr("train.devices.memory.memory", lambda: 10**9)
    with pytest.raises(ConfigError, match=fault):
        validate.main(argv)


@pytest.mark.parametrize("name", named.names())
def test_every_configuration_has_a_size_for_checks(name):
    model = validate._small(named.load(name)).model
    model.validate()
    assert mhc_jax.functional.parameter_count(model) < 20_000
