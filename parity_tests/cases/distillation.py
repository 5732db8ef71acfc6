"""Distillation: its losses, and a hundred steps of a student over streams beside a frozen transformer."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import train.update.optimizer
import train.update.step
from mhc_jax import interop
from parity_tests.cases.ops import B, D, T, draw, op
from parity_tests.cases.training import STEPS, batches_of
from parity_tests.compare import Case, DType, Values
from parity_tests.frameworks import jax_precision, jit, jitter
from parity_tests.systems import SYSTEMS, System, Weights, kinds_of
from parity_tests.taps import in_dtype, to_module, to_params
from torch_ref import train as torch_train
from torch_ref.distillation import Distillation
from torch_ref.ops import loss as torch_loss
from train.config import OptimConfig, RunConfig
from train.data.config import CorpusConfig
from train.objectives.distillation import PROJECTIONS, DistillationConfig
from train.objectives.kind import TeacherConfig
from train.update.state import TrainState, joined, trained_info

VOCAB = 9
STAGED = DistillationConfig(temperature=1.5, cross_entropy=0.3, hidden_until=0.5, kl_from=0.25)


def cases() -> Iterator[Case]:
    yield from _losses()
    yield trajectory("distillation, staged", SYSTEMS["mhc 4, original, rms"], SYSTEMS["gpt"], STAGED)


def _losses() -> Iterator[Case]:
    targets = np.random.default_rng(11).integers(0, VOCAB, (B, T))
    targets[0, :3] = targets[1, -1] = -100
    counted = {"targets_BT": targets}
    for what, scale in (("", 1.0), ("of confident logits", 50.0)):
        logits = draw(scale, teacher_BTV=(B, T, VOCAB), logits_BTV=(B, T, VOCAB))
        yield op("loss.kl_divergence", what, logits | counted, temperature=2.0)
    yield op("loss.state_distance", "", draw(states_BTD=(B, T, D), goals_BTD=(B, T, D)) | counted)
    student = draw(hidden_BTD=(B, T, D), head_VD=(VOCAB, D))
    teacher = draw(teacher_BTE=(B, T, 4), teacher_head_VE=(VOCAB, 4))
    options = {"kl_weight": 0.7, "entropy_weight": 0.2, "temperature": 2.0}
    for chunk in (3, 64):
        yield op(
            "loss.chunked_distillation",
            f"by {chunk}",
            student | teacher | counted,
            torch=functools.partial(_whole, options),
            chunk=chunk,
            **options,
        )
    logits = draw(logits_BTV=(B, T, VOCAB), teacher_BTV=(B, T, VOCAB))
    states = draw(states_LBTD=(2, B, T, D), goals_LBTD=(2, B, T, D))
    yield op("loss.published_distillation", "", logits | states | counted)


def _whole(options, arrays):
    return torch_loss.chunked_distillation(**arrays, **options)


def trajectory(name: str, student: System, teacher: System, objective: DistillationConfig) -> Case:
    """The loss of every step of a student, its parameters and its projections at the end; see that of training."""
    objective = objective.taught(student.config, TeacherConfig("teacher", "", teacher.config))
    run = RunConfig(model=student.config, objective=objective, optim=OptimConfig(lr=1e-2))
    return Case(
        tier="trajectory",
        name=name,
        jax=functools.partial(_train_jax, run),
        torch=functools.cache(functools.partial(_train_torch, run)),
        dtypes=("float64",),
        covers=kinds_of(run),
    )


def _projections(run: RunConfig) -> np.ndarray:
    """(P, Ds, Dt): none of them is an identity."""
    (info,) = run.objective.param_info(run.model).values()
    return np.random.default_rng(5).standard_normal(info.shape).astype(np.float32)


def _teacher(run: RunConfig) -> TeacherConfig:
    assert run.objective.teacher is not None
    return run.objective.teacher


def _train_jax(run: RunConfig, dtype: DType) -> Values:
    with jax_precision(dtype):
        objective, model = run.objective, in_dtype(run.model, dtype)
        told = _teacher(run)
        teacher = in_dtype(told.known, dtype)
        objective = objective.replace(teacher=told.replace(model=teacher))
        found = batches_of(model, run.data)
        _, rows, length = found["tokens"].shape
        data = CorpusConfig(seq_len=length, batch_size=rows)
        run = run.replace(model=model, objective=objective, data=data)
        params, own = to_params(model, Weights(model), dtype), {PROJECTIONS: jnp.asarray(_projections(run), dtype)}
        adamw = train.update.optimizer.make_optimizer(run.optim, STEPS, trained_info(run))
        step = train.update.step.make_train_step(run, adamw, total_steps=STEPS)
        taught = to_params(teacher, Weights(teacher), dtype)
        zero = jnp.zeros((), jnp.int32)
        state = TrainState(zero, params, adamw.init(joined(params, own)), zero, zero, objective=own)
        inputs = {("inputs" if name == "tokens" else name): jnp.asarray(x, jnp.int32) for name, x in found.items()}
        scan = functools.partial(jax.lax.scan, lambda state, batch: step(state, batch, taught))
        state, metrics = jit(scan, dtype)(state, inputs)
        values = {f"params {name}": x for name, x in interop.to_torch(model, state.params).items()}
        kernels = np.asarray(state.objective[PROJECTIONS])
        values |= {f"projection {pair}": kernel.T for pair, kernel in zip(objective.layers, kernels)}
        return {"loss of every step": np.asarray(metrics["loss"]), **values}


def _train_torch(run: RunConfig, dtype: DType, sample: int) -> Values:
    student, teacher = (
        to_module(model, jitter(Weights(model), sample), dtype) for model in (run.model, _teacher(run).known)
    )
    module = Distillation(student, teacher, run.objective, run.objective.pairs).to(getattr(torch, dtype))
    projections: Any = module.projections
    with torch.no_grad():
        for layer, kernel in zip(projections, jitter({"": _projections(run)}, sample)[""]):
            layer.weight.copy_(torch.from_numpy(kernel.T.copy()))
    adamw = torch_train.make_optimizer(module, run.optim)
    losses = []
    found = {name: torch.from_numpy(x) for name, x in batches_of(run.model, run.data).items()}
    for index in range(STEPS):
        loss = torch_train.train_step(
            module,
            adamw,
            found["tokens"][index],
            found["targets"][index],
            lr=torch_train.learning_rate(run.optim, index, STEPS),
            clip=run.optim.clip,
            progress=index / STEPS,
        )
        losses.append(float(loss))
    values = {f"params {name}": x.detach().numpy() for name, x in student.named_parameters()}
    kernels = [layer.weight.detach().numpy() for layer in projections]
    values |= {f"projection {pair}": kernel for pair, kernel in zip(run.objective.layers, kernels)}
    return {"loss of every step": np.array(losses), **values}
