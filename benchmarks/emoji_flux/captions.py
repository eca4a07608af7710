"""Captions for scenes, and the two tokenizers that are trained on them."""

from __future__ import annotations

import json
import math
import string
from collections import Counter
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, T5Tokenizer

from safeflux.reference import CLIP_TOKENS
from safeflux.reference.vocabulary import NOTHING_WORD, Concept, Vocabulary, caption

from .scenes import NOTHING, Scene

CLIP_VOCABULARY = 2048
"""Upper bound: training stops where every word of the corpus is one piece."""
SYNONYM_SHARE = 0.4
"""How often a concept that has synonyms is called by one of them."""
CAPITAL_SHARE = 0.1
"""How often a caption starts with a capital letter."""


def describe(scene: Scene, words: Vocabulary, rng: np.random.Generator) -> str:
    """Caption a scene: mostly complete, sometimes without style or background, sometimes empty (the null prompt).

    A bare picture is also captioned by style and background alone: a caption without a thing has a picture without one.
    """
    things = [NOTHING_WORD if c == NOTHING else _word(words.concepts[c], rng) for c in scene.concepts]
    style, background = words.styles[scene.style], words.background_names[scene.background]
    text = _form(things, style, background, rng.random())
    return text[:1].upper() + text[1:] if rng.random() < CAPITAL_SHARE else text


def _form(things: list[str], style: str, background: str, form: float) -> str:
    if form < 0.06:
        return ""
    if form < 0.10:
        return caption(things)
    if form < 0.14:
        return caption(things, style)
    if form < 0.18:
        return caption(things, None, background)
    if things == [NOTHING_WORD] and form < 0.55:
        return caption([], style, background)
    return caption(things, style, background)


def _word(concept: Concept, rng: np.random.Generator) -> str:
    others = concept.synonyms + concept.held_out
    if others and rng.random() < SYNONYM_SHARE:
        return others[int(rng.integers(len(others)))]
    return concept.words


def corpus(words: Vocabulary) -> list[str]:
    """Every word of the vocabulary in captions, for the tokenizers."""
    things = [NOTHING_WORD, *(w for c in words.concepts for w in (c.words, *c.synonyms, *c.held_out))]
    singles = [caption([t], s, b) for t in things for s in words.styles for b in words.background_names]
    pairs = [caption([a, b]) for a, b in zip(things, things[1:] + things[:1], strict=True)]
    return [*singles, *pairs, *(text.capitalize() for text in pairs[:8]), "An owl"]


def t5_tokenizer(words: Vocabulary) -> T5Tokenizer:
    """A Unigram tokenizer of T5's form: every word of the corpus is a piece, and single characters spell the rest."""
    counts = Counter(word for text in corpus(words) for word in text.replace(",", "").split())
    total = sum(counts.values())
    pieces = [(f"▁{word}", math.log(count / total)) for word, count in counts.most_common()]
    spelled = [("▁", -14.0), *((c, -14.0) for c in string.ascii_letters + string.digits + string.punctuation)]
    known = {piece for piece, _ in pieces}
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=[*special, *pieces, *(s for s in spelled if s[0] not in known)], extra_ids=0)


def clip_tokenizer(out: Path, words: Vocabulary) -> CLIPTokenizer:
    """The run's tokenizer of CLIP's form, in `clip_tokenizer/`: trained when it is first asked for, then kept.

    Its training breaks ties by the order of a hash map, which differs from process to process: stages that each
    trained their own would give some words each other's embeddings.
    """
    folder = out / "clip_tokenizer"
    if not folder.exists():
        staged = folder.with_suffix(".partial")
        _train_clip_tokenizer(words).save_pretrained(staged)
        staged.rename(folder)
    return CLIPTokenizer.from_pretrained(folder)


def _train_clip_tokenizer(words: Vocabulary) -> CLIPTokenizer:
    """A byte-level BPE tokenizer."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    shape = CLIPTokenizer()  # gives CLIP's own normaliser and pre-tokenizer
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=end))
    tokenizer.normalizer = shape.backend_tokenizer.normalizer
    tokenizer.pre_tokenizer = shape.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=CLIP_VOCABULARY,
        special_tokens=[],
        end_of_word_suffix="</w>",
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(words), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab = dict(model["vocab"])
    for token in (start, end):
        vocab[token] = len(vocab)
    merges = [tuple(m) for m in model["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CLIP_TOKENS)
