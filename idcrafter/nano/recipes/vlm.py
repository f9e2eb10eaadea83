"""The nano VLM: transformers' Qwen2.5-VL at width 192, which reads photos of puppets and a sentence and answers with
who is who and who does what to whom, when it is asked as `IDCrafterRelate` asks.

First the vision tower learns to name what is to be seen in a photo (:mod:`vlm_eyes`). Then, with the tower as it is,
the language model learns to write answers, in which descriptions come before the relations that refer to them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from ...training.loop import Trainer
from . import vlm_data, vlm_eyes, vlm_hops, vlm_tokens
from .core import device, use_comfyui
from .vlm_net import IMAGE_TOKENS, NAME, build, write_processor

STEPS, BATCH, RATE = 6200, 16, 4e-3
HOP_WEIGHT = 2.0
IGNORED = vlm_eyes.IGNORED


class Stories:
    """Batches of requests and their answers; `draw` depends on the step alone.

    looks  [people, PHOTOS, IMAGE_TOKENS, WIDTH]: what the vision tower makes of each photo
    """

    def __init__(self, people: vlm_data.People, looks: torch.Tensor, tokenizer, seed: int):
        self.people, self.looks, self.tokenizer, self.seed = people, looks, tokenizer, seed
        token = tokenizer.token_to_id
        self.pad, self.image = token(vlm_tokens.PAD), token(vlm_tokens.IMAGE)
        texts = {i: tokenizer.decode([i]) for i in range(tokenizer.get_vocab_size())}
        (self.after_looks,) = (i for i, text in texts.items() if text.endswith('"relations": [{"subject": "'))
        self.texts = texts

    def draw(self, n: int, size: int = BATCH, count: int | None = None) -> dict:
        """The batch of step n, all casts as large (drawn, unless given): `tokens`, and the `looks` in their places."""
        rng = np.random.default_rng((self.seed, n, 2))
        shares = vlm_data.EASY_COUNTS if n < vlm_data.EASY_STEPS else vlm_data.COUNTS
        count = count or 1 + int(rng.choice(len(shares), p=shares))
        photos = 1 + int(count < 4 and rng.uniform() < vlm_data.TWO_PHOTOS)
        # Of twice as many those that are about as long, which need less padding.
        examples = [vlm_data.draw_example(self.people, rng, count, photos) for _ in range(2 * size)]
        examples.sort(key=lambda example: len(self.tokenizer.encode(example.answer).ids))
        start = int(rng.integers(size + 1))
        examples = examples[start : start + size]
        shown = torch.tensor([photo for example in examples for photo in example.photos])
        looks = self.looks[shown[:, 0], shown[:, 1]].to(device())
        return {**self.tokens(examples), "looks": looks.flatten(0, 1)}

    def tokens(self, examples: list[vlm_data.Example]) -> dict:
        """`ids` and `labels` [B, L], padded at the end; the labels are the answers' tokens, IGNORED elsewhere and where
        descriptions may be wrong. `hops` are (row, hop)."""
        chats = [vlm_tokens.as_chat(example.parts, IMAGE_TOKENS) for example in examples]
        asked = self.tokenizer.encode_batch(chats)
        said = self.tokenizer.encode_batch([e.answer + vlm_tokens.END for e in examples])
        length = max(len(a.ids) + len(b.ids) for a, b in zip(asked, said, strict=True))
        ids = torch.full((len(examples), length), self.pad)
        labels, hops = torch.full_like(ids, IGNORED), []
        for row, (a, b) in enumerate(zip(asked, said, strict=True)):
            start, end = len(a.ids), len(a.ids) + len(b.ids)
            ids[row, :end] = torch.tensor([*a.ids, *b.ids])
            learned = start + (b.ids.index(self.after_looks) if examples[row].mistaken else 0)
            labels[row, learned:end] = ids[row, learned:end]
            texts = [self.texts[i] for i in b.ids]
            hops += [(row, hop) for hop in vlm_hops.hops(examples[row], chats[row], a, texts)]
        return {"ids": ids.to(device()), "labels": labels.to(device()), "hops": hops}


def positions(pictured: torch.Tensor) -> torch.Tensor:
    """Time, row and column [3, B, L] of tokens as Qwen2.5-VL counts them; `pictured` [B, L] are those of photos.

    All tokens of a photo have one time, and the next word comes after its longer side.
    """
    side = round(IMAGE_TOKENS**0.5)
    place = (pictured.cumsum(1) - 1) % IMAGE_TOKENS
    step = torch.where(pictured, torch.where(place == IMAGE_TOKENS - 1, side, 0), 1)
    start = step.cumsum(1) - step
    row, column = (torch.where(pictured, start + each, start) for each in (place // side, place % side))
    return torch.stack([start, row, column])


def attend(
    module, query, key, value, attention_mask, scaling: float, watched: dict | None = None, **_
) -> tuple[torch.Tensor, None]:
    """Causal attention [B, heads, L, D] -> [B, L, heads, D] in float32: on a CPU torch's kernel for bfloat16 takes
    twice as long. `watched` gets the layer's queries and keys."""
    query, key, value = (each.float() for each in (query, key, value))
    if watched is not None:
        watched[module.layer_idx] = query, key
    found = nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, enable_gqa=True
    )
    return found.transpose(1, 2).to(module.o_proj.weight.dtype), None


def use_attend(model) -> None:
    """Lets the language model attend by `attend`."""
    import transformers

    transformers.AttentionInterface.register("idcrafter_nano", attend)
    model.model.language_model.config._attn_implementation = "idcrafter_nano"


def states(model, stories: Stories, batch: dict, watched: dict | None = None) -> torch.Tensor:
    """The model's last hidden states [B, L, WIDTH]. What comes after a token does not change it, so padding needs no
    mask."""
    embeddings = model.get_input_embeddings()(batch["ids"])
    pictured = batch["ids"] == stories.image
    looks = batch["looks"].to(embeddings.dtype)
    embeddings = embeddings.masked_scatter(pictured[..., None], looks)
    return model.model.language_model(
        inputs_embeds=embeddings,
        attention_mask={"full_attention": None},
        position_ids=positions(pictured),
        use_cache=False,
        watched=watched,
    ).last_hidden_state


def story_loss(model, stories: Stories, n: int, size: int = BATCH, count: int | None = None) -> dict[str, torch.Tensor]:
    """Cross-entropy of the answers' tokens, and what the heads that are told where to look miss; also how many tokens,
    and how many names' first ones in relations, are the likeliest."""
    batch = stories.draw(n, size, count)
    asked = batch["labels"][:, 1:] != IGNORED
    watched: dict = {}
    logits = model.lm_head(states(model, stories, batch, watched)[:, :-1][asked]).float()
    target = batch["labels"][:, 1:][asked]
    right = logits.detach().argmax(-1) == target
    names = torch.zeros_like(asked)
    for row, (kind, place, _) in batch["hops"]:
        names[row, place] |= kind == vlm_hops.NAME
    said = nn.functional.cross_entropy(logits, target)
    missed = vlm_hops.hop_loss(batch["hops"], watched)
    return {
        "loss": said + HOP_WEIGHT * missed,
        "said": said.detach(),
        "missed": missed.detach(),
        "right": right.float().mean(),
        "names": right[names[asked]].float().mean(),
    }


def train(folder: Path, seed: int = 61, eye_steps: int = vlm_eyes.STEPS, steps: int = STEPS) -> Path:
    """Trains both stages -> the model folder."""
    use_comfyui()
    people = vlm_data.prepare(folder)
    target = folder / NAME
    tokenizer = vlm_tokens.train(people, seed)
    write_processor(target, tokenizer)
    model = build(target, seed).to(device())
    pixels = vlm_eyes.Pixels(target, people)
    visual = model.model.visual
    vlm_eyes.train_eyes(folder, visual, pixels, seed, eye_steps)
    stories = Stories(people, vlm_eyes.look(visual, pixels), tokenizer, seed)
    visual.requires_grad_(False)
    use_attend(model)
    facts = {"vocabulary": str(tokenizer.get_vocab_size()), "eyes": str(eye_steps)}
    trainer = Trainer(model, folder, "vlm", steps, RATE, warmup=60, adam=("embed_tokens", "lm_head"), facts=facts)
    trainer.run(lambda net, n: story_loss(net, stories, n), log_every=20)
    return export(target, trainer, people, seed)


def export(target: Path, trainer: Trainer, people: vlm_data.People, seed: int) -> Path:
    """Writes the averaged weights under the published names, and the licence where loaders look for it."""
    weights = {}
    for name, value in trainer.model.named_parameters():
        value = trainer.ema.get(name, value.detach()).view(value.shape)
        name = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        weights[name] = value.half().contiguous().cpu()
    facts = {
        "format": "pt",
        "licence": "Apache-2.0",
        "made_by": "idcrafter.nano",
        "steps": str(trainer.n),
        "batch": str(BATCH),
        "seed": str(seed),
        "parameters": str(sum(w.numel() for w in weights.values())),
        "data": hashlib.sha256(people.photos.numpy().tobytes()).hexdigest(),
    }
    save_file(weights, target / "model.safetensors", facts)
    (target / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
    return target
