"""Small real CLIPs, SigLIPs and classifiers of transformers with random weights, in folders that it loads."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 12,
}
VISION = {**TOWER, "image_size": 16, "patch_size": 8}
SIZE = {"height": 16, "width": 16}


def save_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's tokenizer without merges: a token for each letter."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: k for k, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_clip(folder: Path, seed: int = 0) -> Path:
    """A CLIPModel with its tokenizer and image processor."""
    tokenizer = save_tokenizer(folder)
    torch.manual_seed(seed)
    text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 64}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(text_config={**text, **ends}, vision_config=VISION, projection_dim=12)
    _widen(CLIPModel(config)).save_pretrained(folder)
    CLIPImageProcessorPil(size=SIZE, crop_size=SIZE).save_pretrained(folder)
    return folder


def save_siglip(folder: Path, seed: int = 0) -> Path:
    """A SiglipModel; its tokenizer is CLIP's, which needs no sentencepiece."""
    tokenizer = save_tokenizer(folder)
    torch.manual_seed(seed)
    text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "projection_size": 16}
    model = _widen(SiglipModel(SiglipConfig(text_config=text, vision_config=VISION)))
    torch.nn.init.constant_(model.logit_bias, -1.5)
    model.save_pretrained(folder)
    SiglipImageProcessorPil(size=SIZE).save_pretrained(folder)
    return folder


def save_classifier(folder: Path, labels: list[str], *, multi: bool = False) -> Path:
    """A CLIPForImageClassification with these labels."""
    torch.manual_seed(0)
    config = CLIPConfig(vision_config=VISION, projection_dim=12, num_labels=len(labels))
    config.id2label = dict(enumerate(labels))
    config.problem_type = "multi_label_classification" if multi else "single_label_classification"
    _widen(CLIPForImageClassification(config)).save_pretrained(folder)
    CLIPImageProcessorPil(size=SIZE, crop_size=SIZE).save_pretrained(folder)
    return folder


def _widen(model: Any) -> Any:
    """Larger weights than a training begins with, so that pictures and words differ."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "position" not in name:
                torch.nn.init.normal_(weight, std=0.4)
    return model.eval()
