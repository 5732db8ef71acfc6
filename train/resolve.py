"""A configuration with everything filled in that it leaves to the data."""

from train.config import RunConfig
from train.data import load_tokenizer


def resolve(config: RunConfig) -> RunConfig:
    """``vocab_size = 0`` becomes the tokenizer's and ``max_len = 0`` the length of the data's windows.

    Raises:
        ConfigError: the result contradicts itself.
    """
    model = config.model
    if not model.vocab_size:
        model = model.replace(vocab_size=load_tokenizer(config.data.tokenizer).vocab_size)
    if not model.max_len:
        model = model.replace(max_len=config.data.seq_len)
    config = config.replace(model=model)
    config.validate()
    return config
