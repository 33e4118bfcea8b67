"""dist_train/token_text.py: every kind of tokenizer's tokens can be read on one line."""

import pytest
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordPiece

from dist_train.token_text import token_texts
from model.backbone_files import locate_backbone
from model.backbone_loading import load_tokenizer
from tests.helpers.backbones import TOKENIZER_SIZE, VOCAB_SIZE, tiny_backbone


def fast(tokenizer: Tokenizer, **special: str) -> transformers.PreTrainedTokenizerFast:
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def byte_level() -> transformers.PreTrainedTokenizerFast:
    pieces = [
        "the",
        "\u0120the",
        "\u010a",
        "\u0120\u0120",
        "\u00e4\u00b8\u0138",
        "\u00e4",
        "\u0138",
        "<|end|>",
    ]
    tokenizer = Tokenizer(BPE({piece: number for number, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return fast(tokenizer, eos_token="<|end|>")


def test_byte_level_tokens_show_blanks_and_bytes():
    assert token_texts(byte_level(), range(8)) == [
        "the", "\u2581the", r"\n", "\u2581\u2581", "\u4e16", "<0xE4>", "<0x96>", "<|end|>",
    ]  # fmt: skip


def test_sentencepiece_keeps_its_marks():
    pieces = ["<unk>", "<0x0A>", "\u2581the", "ing", "\u2581"]
    tokenizer = Tokenizer(
        Unigram([(piece, -1.0) for piece in pieces], unk_id=0, byte_fallback=False)
    )
    tokenizer.decoder = decoders.Metaspace()
    assert token_texts(fast(tokenizer, unk_token="<unk>"), range(5)) == pieces


def test_wordpiece_keeps_its_marks():
    pieces = ["[UNK]", "the", "##ing", "#"]
    tokenizer = Tokenizer(
        WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    tokenizer.decoder = decoders.WordPiece()
    assert token_texts(fast(tokenizer, unk_token="[UNK]"), range(4)) == pieces


def test_ids_stand_for_what_no_tokenizer_knows():
    assert token_texts(None, [0, 17]) == ["#0", "#17"]
    assert token_texts(byte_level(), [7, 8, 4000]) == ["<|end|>", "#8", "#4000"]


def test_every_token_of_a_backbone_is_one_visible_word():
    tokenizer = load_tokenizer(locate_backbone(str(tiny_backbone("gpt2"))))
    texts = token_texts(tokenizer, range(VOCAB_SIZE))
    for text in texts:
        assert text
        assert text.isprintable()
        assert len(text.split()) == 1
    known = texts[: len(tokenizer)]
    assert len(set(known)) == len(known) >= 256
    assert texts[TOKENIZER_SIZE:] == [f"#{number}" for number in range(TOKENIZER_SIZE, VOCAB_SIZE)]


@pytest.mark.parametrize("text", ["min 0.5, max", "\u4e16\u754c\n", "na\u00efve"])
def test_the_tokens_of_a_text_spell_it(text: str):
    tokenizer = load_tokenizer(locate_backbone(str(tiny_backbone("gpt2"))))
    ids = tokenizer(text, add_special_tokens=False).input_ids
    spelt = b""
    for piece in token_texts(tokenizer, ids):
        if piece.startswith("<0x"):
            spelt += bytes.fromhex(piece.replace("<0x", "").replace(">", ""))
        else:
            spelt += piece.replace("\u2581", " ").replace(r"\n", "\n").encode()
    assert spelt.decode() == text
