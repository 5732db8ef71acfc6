"""Training: a gradient for every parameter, a loss that falls, and the same in bfloat16."""

import functools

import jax
import numpy as np

from mhc_jax.functional import param_info
from mhc_jax.tree import flatten
from train.checks.finding import Finding
from train.checks.subject import Subject, with_policy
from train.config import RunConfig
from train.update.optimizer import make_optimizer
from train.update.step import init_state, make_train_step

STEPS = 10
RATE = 3e-3
# Of the float32 loss: by how much it must fall, and by how much the bfloat16 loss may lie off it.
FALL, NARROW = 0.01, 0.02


def gradients(subject: Subject) -> list[Finding]:
    """Every parameter has a gradient that is finite and, in some element, not zero."""

    def loss(params):
        sums, penalties = subject.config.objective.sums(subject.model, params, subject.batch)
        return sums["loss"] / sums["tokens"] + sum(penalties.values())

    found = {name: np.asarray(x) for name, x in flatten(subject.compiled(jax.grad(loss))(subject.params)).items()}
    broken = [name for name, x in found.items() if not np.isfinite(x).all()]
    idle = {name for name in found if _weighs_one_stream(subject, name)}
    missing = [name for name, x in found.items() if not x.any() and name not in idle]
    most = f"all but {len(idle)} of one stream" if idle else "all"
    return [
        Finding(f"gradients, {what}", f"{len(names)} of {len(found)} are not", bound, not names, ", ".join(names))
        for what, names, bound in (("finite", broken, "all"), ("not zero", missing, most))
    ]


def _weighs_one_stream(subject: Subject, name: str) -> bool:
    """Whether a parameter only weighs streams against each other, of which there is one."""
    residual = getattr(subject.model, "residual", None)
    return residual is not None and residual.stream_count == 1 and bool({"residual", "ends"} & {*name.split(".")})


def steps(subject: Subject) -> list[Finding]:
    """Steps of the run's optimizer on one batch lower its loss; the first in bfloat16 has nearly the float32 loss."""
    losses, _ = _trained(subject, subject.config, STEPS)
    narrow = subject.config.replace(model=with_policy(subject.model, "bfloat16"))
    (low, *_), skipped = _trained(subject, narrow, 1)
    start, end = losses[0], losses[-1]
    return [
        Finding(
            f"loss after {STEPS} steps",
            f"{start:.3f} to {end:.3f}",
            f"at most {(1 - FALL) * start:.3f}",
            end <= (1 - FALL) * start,
        ),
        Finding("bfloat16 step, finite", "skipped" if skipped else f"loss {low:.3f}", "not skipped", not skipped),
        Finding.at_most("bfloat16, off float32", abs(low - start) / start, NARROW),
    ]


def _trained(subject: Subject, config: RunConfig, count: int) -> tuple[list[float], int]:
    """The losses before each step and after the last, and how many steps were skipped as not finite."""
    optim = config.optim.replace(lr=RATE, value_lr=0.0, residual_lr=0.0, schedule="constant", warmup_steps=0)
    config = config.replace(
        optim=optim, train=config.train.replace(accumulate=1), objective=config.objective.without_teacher()
    )
    optimizer = make_optimizer(optim, count, param_info(config.model))
    step = subject.compiled(make_train_step(config, optimizer))
    state = subject.compiled(functools.partial(init_state, config, optimizer))()
    losses, metrics = [], {}
    for _ in range(count + (count > 1)):
        state, metrics = step(state, subject.batch)
        losses.append(float(metrics["loss"]))
    return losses, int(metrics["skipped"])
