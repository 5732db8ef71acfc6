"""The data of a run. The kinds are text, instructions with responses, and generated tasks."""

from train.data.config import CorpusConfig as CorpusConfig
from train.data.corpus import Corpus as Corpus
from train.data.corpus import load_corpus as load_corpus
from train.data.corpus import pack as pack
from train.data.corpus import with_characters as with_characters
from train.data.errors import DataError as DataError
from train.data.group_words import GroupWordsConfig as GroupWordsConfig
from train.data.instructions import InstructionsConfig as InstructionsConfig
from train.data.loader import eval_batches as eval_batches
from train.data.loader import steps_per_epoch as steps_per_epoch
from train.data.loader import train_batches as train_batches
from train.data.mqar import MQARConfig as MQARConfig
from train.data.tokenizer import Tokenizer as Tokenizer
from train.data.tokenizer import load_tokenizer as load_tokenizer
from train.data.tokens import ShardedTokens as ShardedTokens
from train.data.tokens import Tokens as Tokens
from train.data.tokens import check_ids as check_ids
from train.data.tokens import unigram_perplexity as unigram_perplexity
