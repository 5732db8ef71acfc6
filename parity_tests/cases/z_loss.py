"""The z-loss: whole, by chunks beside the cross-entropy, and its gradient through a whole model."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import torch

from mhc_jax import interop
from parity_tests.cases.ops import B, D, T, draw, op
from parity_tests.compare import Case, DType, Values
from parity_tests.frameworks import Arrays, jax_precision, jit, jitter
from parity_tests.systems import SYSTEMS, System, Weights, batch
from parity_tests.taps import in_dtype, to_module, to_params
from torch_ref.ops import loss as torch_loss
from train.objectives.cross_entropy import CrossEntropyConfig

OBJECTIVE = CrossEntropyConfig(chunk=3, z_loss=0.1)


def cases() -> Iterator[Case]:
    targets = np.random.default_rng(11).integers(0, 9, (B, T))
    targets[0, :3] = targets[1, -1] = -100
    for what, scale in (("", 1.0), ("of confident logits", 50.0)):
        yield op("loss.z_loss", what, draw(scale, logits_BTV=(B, T, 9)) | {"targets_BT": targets})
    inputs = draw(hidden_BTD=(B, T, D), head_VD=(9, D)) | {"targets_BT": targets}
    for chunk in (3, 64):
        yield op("loss.chunked_cross_entropy_and_z_loss", f"by {chunk}", inputs, torch=_whole, chunk=chunk, weight=0.3)
    yield gradients(SYSTEMS["adapters 4, rms"])


def _whole(arrays):
    logits_BTV = arrays["hidden_BTD"] @ arrays["head_VD"].T
    entropy, count = torch_loss.cross_entropy(logits_BTV, arrays["targets_BT"])
    squares, _ = torch_loss.z_loss(logits_BTV, arrays["targets_BT"])
    return entropy + 0.3 * squares, entropy.detach(), squares.detach(), count


def gradients(system: System) -> Case:
    """The loss, the auxiliary loss and every parameter's gradient."""
    arguments = system.config, Weights(system.config), batch(system.config)
    return Case(
        tier="gradients",
        name=f"{system.name}, z-loss",
        jax=functools.partial(_jax, *arguments),
        torch=functools.cache(functools.partial(_torch, *arguments)),
    )


def _jax(config, weights: Arrays, batch: Arrays, dtype: DType) -> Values:
    with jax_precision(dtype):
        config = in_dtype(config, dtype)
        inputs = {"inputs": jnp.asarray(batch["tokens"]), "targets": jnp.asarray(batch["targets"])}

        def total(params):
            sums, penalties = OBJECTIVE.sums(config, params, inputs)
            loss = sums["loss"] / sums["tokens"]
            return loss + sum(penalties.values()), (loss, penalties["z_loss"])

        step = jit(jax.grad(total, has_aux=True), dtype)
        gradients, (loss, z_loss) = step(to_params(config, weights, dtype))
        values = {f"gradient {name}": x for name, x in interop.to_torch(config, gradients).items()}
        return {"forward loss": np.asarray(loss), "forward penalty z_loss": np.asarray(z_loss)} | values


def _torch(config, weights: Arrays, batch: Arrays, dtype: DType, sample: int) -> Values:
    module = to_module(config, jitter(weights, sample), dtype)
    penalties: dict[str, list[torch.Tensor]] = {}
    words = torch.from_numpy(batch["tokens"]), torch.from_numpy(batch["targets"])
    total, count = module.loss_terms(*words, z_weight=OBJECTIVE.z_loss, penalties=penalties)
    module.loss(*words, z_weight=OBJECTIVE.z_loss).backward()
    values = {f"gradient {name}": x.grad.numpy() for name, x in module.named_parameters()}
    (z_loss,) = penalties["z_loss"]
    forward = {"forward loss": total / count, "forward penalty z_loss": z_loss}
    return {name: x.detach().numpy() for name, x in forward.items()} | values
