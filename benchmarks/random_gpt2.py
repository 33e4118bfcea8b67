"""A GPT-2 with random weights as a Transformers folder, with a tokenizer that cuts as GPT-2's does.

The published tokenizer cannot be had without a network, and which words it knows is of no matter
to a step's time; how many tokens it makes is. So a byte-level BPE, GPT-2's own algorithm and split
into words, numbers and marks, is trained on the prompts' own words and on random numbers: a word
is one token and a number of 16 digits about seven, as with the published one.
"""

import random
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

END_OF_TEXT = "<|endoftext|>"
# Learns every word of the prompts, all pairs of digits and about half of all triples: GPT-2 writes
# a float32's digits in tokens of 2.2 digits each, this one in tokens of 2.4.
TOKENIZER_SIZE = 1200


def write_random_gpt2(
    folder: Path, *, width: int, layers: int, heads: int, vocab_size: int, text: str
) -> None:
    """Write weights, configuration and tokenizer.

    Args:
        folder: Where; created.
        width: Hidden width.
        layers: Blocks.
        heads: Attention heads of a block.
        vocab_size: Rows of the word embedding, at least TOKENIZER_SIZE.
        text: What the prompts say, beside numbers.
    """
    config = transformers.GPT2Config(
        vocab_size=vocab_size,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        bos_token_id=0,
        eos_token_id=0,
    )
    transformers.logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.GPT2Model(config).save_pretrained(folder)
    _train_tokenizer(text).save_pretrained(folder)


def _train_tokenizer(text: str) -> transformers.PreTrainedTokenizerFast:
    digits = random.Random(0)
    numbers = (f"{digits.random():.16f}"[2:] for _ in range(2000))
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=TOKENIZER_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The words come often enough to be merged before the last triples of digits.
    tokenizer.train_from_iterator([*[text] * 500, *numbers], trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT
    )
