"""Any language model of the mirror behind ``PreTrainedModel`` and ``generate`` of Hugging Face transformers.

``python -m train.export RUN FOLDER --format huggingface`` copies this file, and all that it imports, into the folder.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from torch_ref.huggingface.configuration_mhc import MHCConfig
from torch_ref.nn.lm import build

# Its name among arguments and outputs: newer releases of transformers call it cache.
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


class MHCCache(Cache):
    """The decoding state of any mixer, see :meth:`torch_ref.nn.lm.LM.init_cache`.

    Attributes:
        state: nested containers of tensors, whose first axis is the batch, or as many times as long; None at first.
        batch: number of rows.
    """

    def __init__(self):
        super().__init__(layers=[])
        self.state: Any = None
        self.batch = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0 if self.state is None else self.state["column"]

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    @property
    def is_croppable(self) -> bool:
        return False

    def reset(self) -> None:
        self.state, self.batch = None, 0

    def crop(self, tokens_to_remove: int) -> None:
        raise NotImplementedError("a recurrent state cannot forget its last tokens")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices(torch.arange(self.batch).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        def selected(x: Tensor) -> Tensor:
            return x.unflatten(0, (self.batch, -1))[indices.to(x.device)].flatten(0, 1)

        if self.state is not None:
            self.state, self.batch = _map(selected, self.state), len(indices)


class MHCForCausalLM(PreTrainedModel, GenerationMixin):
    """Logits of the next token, with the mirror under ``lm``.

    In bfloat16 or float16 the parameters stay in float32, and the products are computed under autocast.
    """

    config_class = MHCConfig
    base_model_prefix = "lm"
    main_input_name = "input_ids"
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["lm"]
    _is_stateful = True  # so that nothing tries to take tokens back

    def __init__(self, config: MHCConfig):
        super().__init__(config)
        with _with_values():
            self.lm: Any = build(config.mhc)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """The mirror has initialised itself."""

    def get_input_embeddings(self) -> None:
        """None, as with the head: the mirror's table is a parameter, not a module."""

    def get_output_embeddings(self) -> None:
        return None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: MHCCache | None = None,
        past_key_values: MHCCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int = 0,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits (B, T, V), and the mean cross-entropy if there are ``labels`` (B, T), of which -100 does not count.

        Args:
            input_ids: (B, T), after the tokens in the cache.
            attention_mask: (B, T with those in the cache), 0 for padding before or after a row; with a cache, before.
            position_ids: (B, T); by default they count from each row's first token, as they always do with a cache.
            cache, past_key_values: two names of the cache, which is changed.
            logits_to_keep: number of columns at the end whose logits are wanted; 0 for all.

        Raises:
            ValueError: padding elsewhere, positions with a cache, or a cache of another kind.
        """
        cache = past_key_values if cache is None else cache
        if use_cache and cache is None:
            cache = MHCCache()
        if cache is not None and not isinstance(cache, MHCCache):
            raise ValueError(f"the cache must be an MHCCache, not a {type(cache).__name__}; leave it out")
        low = self.config.dtype if self.config.dtype in (torch.bfloat16, torch.float16) else None
        with torch.autocast(input_ids.device.type, dtype=low, enabled=low is not None):
            logits = self._logits(input_ids, attention_mask, position_ids, cache, logits_to_keep)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1])
        output = CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: cache})
        return output.to_tuple() if return_dict is False else output

    def _logits(
        self, ids: Tensor, mask: Tensor | None, positions: Tensor | None, cache: MHCCache | None, last: int
    ) -> Tensor:
        mask = None if mask is None or mask.all() else mask.long()
        if mask is not None and (mask.diff(dim=1, prepend=mask.new_zeros(len(mask), 1)) > 0).sum(1).max() > 1:
            raise ValueError("padding inside a row: it must stand before the row, or after it (padding_side='left')")
        if cache is None:
            if mask is not None and positions is None:
                positions = (mask.cumsum(1) - 1).clamp(min=0)
            return self.lm(ids, positions=positions, segment_ids=mask, last=last)
        if positions is not None:
            raise ValueError("with a cache, positions count from each row's first token: leave out position_ids")
        if cache.state is None:
            if mask is not None and not mask[:, -1].all():
                raise ValueError("with a cache, padding must stand before a row: padding_side='left'")
            start_B = None if mask is None else (1 - mask).sum(1)
            cache.state, cache.batch = self.lm.init_cache(len(ids), start_B=start_B), len(ids)
        logits, cache.state = self.lm.extend(ids, cache.state, last=last)
        return logits

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict, *_: Any, **__: Any) -> None:
        if generation_config.use_cache is not False and model_kwargs.get(CACHE) is None:
            model_kwargs[CACHE] = MHCCache()

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> dict[str, Any]:
        cache = options.get(CACHE)
        seen = 0 if cache is None else cache.get_seq_length()
        inputs = {"input_ids": input_ids[:, seen:], "attention_mask": attention_mask}
        inputs = {name: x if x is None else x.to(self.device) for name, x in inputs.items()}
        return inputs | {CACHE: cache, "use_cache": options.get("use_cache"), "logits_to_keep": 1}


@contextlib.contextmanager
def _with_values() -> Iterator[None]:
    """On a processor in float32: some initial values are computed, while transformers builds on meta, in any dtype."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


def _map(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The nested containers with the function's results in the place of tensors."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {name: _map(function, leaf) for name, leaf in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_map(function, leaf) for leaf in tree)
    return tree
