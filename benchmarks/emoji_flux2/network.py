"""The trained parts of emoji-flux-2: a Qwen3 with its tokenizer, and the transformer in the layout of FLUX.2 klein."""

from __future__ import annotations

import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from benchmarks.emoji_flux.captions import corpus
from safeflux.reference.vocabulary import Vocabulary

TEXT_TOKENS = 16
"""Of a prompt; the longest caption of the embedded model's vocabulary has 15 with its end."""
TEXT_LAYERS = (1, 2, 3)
"""The hidden states that the transformer reads side by side, of a text encoder with as many layers as the last."""
TEXT_WIDTH = 128
TRANSFORMER = {
    "in_channels": 128,
    "num_layers": 2,
    "num_single_layers": 4,
    "attention_head_dim": 32,
    "num_attention_heads": 5,
    "joint_attention_dim": TEXT_WIDTH * len(TEXT_LAYERS),
    "axes_dims_rope": (8, 8, 8, 8),
    "guidance_embeds": False,
}
PAD, UNKNOWN, END = "<|endoftext|>", "<|unknown|>", "<|im_end|>"


def tokenizer_of(words: Vocabulary) -> PreTrainedTokenizerFast:
    """A token for each word of the captions, in lower case and without commas; a chat is its messages, each ended."""
    known = sorted({word for text in corpus(words) for word in text.lower().replace(",", "").split()})
    vocabulary = {word: k for k, word in enumerate((PAD, UNKNOWN, END, *known))}
    whole = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    whole.normalizer = normalizers.Sequence([normalizers.Replace(Regex("[,.]"), " "), normalizers.Lowercase()])
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=whole,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        padding_side="right",
        model_max_length=TEXT_TOKENS,
        chat_template="{% for message in messages %}{{ message.content }}" + END + "{% endfor %}",
    )


class EmojiFlux2(nn.Module):
    """Both trained parts together; the tokenizer beside them.

    Args:
        words: What it is to draw.
    """

    def __init__(self, words: Vocabulary) -> None:
        super().__init__()
        self.words, self.tokenizer = words, tokenizer_of(words)
        self.text_encoder = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=len(self.tokenizer),
                hidden_size=TEXT_WIDTH,
                intermediate_size=3 * TEXT_WIDTH,
                num_hidden_layers=TEXT_LAYERS[-1],
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=32,
                max_position_embeddings=TEXT_TOKENS,
                tie_word_embeddings=True,
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
            )
        )
        nn.init.normal_(self.text_encoder.get_input_embeddings().weight)  # the transformer reads them unnormalised
        self.transformer = Flux2Transformer2DModel(**TRANSFORMER)
        for name, module in self.transformer.named_modules():
            # AdaLN-zero (Peebles & Xie, arXiv 2212.09748): every block starts as the identity.
            if ("modulation" in name and isinstance(module, nn.Linear)) or name in ("norm_out.linear", "proj_out"):
                nn.init.zeros_(module.weight)

    def encode(self, prompts: list[str]) -> torch.Tensor:
        """Text embeddings (B, L, 384), as Flux2KleinPipeline computes them."""
        return Flux2KleinPipeline._get_qwen3_prompt_embeds(
            self.text_encoder,
            self.tokenizer,
            prompts,
            max_sequence_length=TEXT_TOKENS,
            hidden_states_layers=list(TEXT_LAYERS),
        )

    def velocity(self, x_BNC: torch.Tensor, s_B: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The predicted e - x_0, (B, N, C)."""
        return self.transformer(
            hidden_states=x_BNC,
            timestep=s_B,
            encoder_hidden_states=tokens,
            img_ids=Flux2KleinPipeline._prepare_latent_ids(torch.empty(1, 1, 4, 4))[0],
            txt_ids=Flux2KleinPipeline._prepare_text_ids(tokens[:1])[0],
            return_dict=False,
        )[0]
