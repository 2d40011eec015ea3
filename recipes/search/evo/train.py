"""Train the pool: LoRA adapters of rank 4 on the quickstart base, one for each skill.

21 skills are made up (`skills.py`); German and Python are real texts, those of the quickstart. An
adapter sees its own skill alone, and the loss is on labels alone. Needs torch, transformers and
peft; about five minutes on two CPU cores. `python train.py [NAME...]` trains some of them again.
"""

from __future__ import annotations

import importlib.util
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from skills import SKILLS, Pair, pairs
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent
BASE = HERE.parent.parent / "quickstart" / "base"
TEXTS = ("german", "python")
RANK, ALPHA = 4, 8
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
STEPS, ROWS, PEAK_LR = 250, 32, 5e-3
TEXT_ROWS, TEXT_BYTES = 4, 240
SEED = 20
TEST_PAIRS = 100


def quickstart() -> ModuleType:
    """Give the quickstart's training script, which reads the real texts."""
    place = BASE.parent / "train.py"
    spec = importlib.util.spec_from_file_location("quickstart_train", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def passages(name: str, draw: random.Random) -> Iterator[Pair]:
    """Give passages of training texts, for ever: no prompt, all of it a label."""
    shared = quickstart()
    with tempfile.TemporaryDirectory() as work:
        read = shared.bible_chapters if name == "german" else None
        if read:
            database = shared.fetch_bible_database(Path(work))
            documents = read(database, shared.BIBLE_IDS[name])
        else:
            documents = shared.library_files()
    texts = [text for key, text in documents.items() if shared.bucket(key, 20)]
    while True:
        text = draw.choice(texts)
        start = draw.randrange(max(1, len(text) - TEXT_BYTES))
        yield "", text[start : start + TEXT_BYTES]


def batch(tokenizer: Any, rows: list[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    """Give ids and targets; what is not a label has the target -100."""
    made = []
    for prompt, label in rows:
        before = tokenizer(prompt, add_special_tokens=False).input_ids if prompt else []
        whole = tokenizer(prompt + label, add_special_tokens=False).input_ids
        shared = next(
            (i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b),
            min(len(before), len(whole)),
        )
        ids = [tokenizer.bos_token_id, *whole]
        made.append((ids, [-100] * (shared + 1) + whole[shared:]))
    width = max(len(ids) for ids, _ in made)
    ids = torch.zeros(len(made), width, dtype=torch.long)
    targets = torch.full_like(ids, -100)
    for i, (one, wanted) in enumerate(made):
        ids[i, : len(one)] = torch.tensor(one)
        targets[i, : len(wanted)] = torch.tensor(wanted)
    return ids, targets


def loss_of(model: Any, tokenizer: Any, rows: list[Pair]) -> torch.Tensor:
    """Give the mean cross-entropy of the labels' tokens."""
    ids, targets = batch(tokenizer, rows)
    logits = model(input_ids=ids).logits[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1).float(), targets[:, 1:].flatten())


def train(name: str, tokenizer: Any) -> dict[str, float]:
    """Train one adapter, write it, and give its losses before and after on held-out pairs."""
    torch.manual_seed(SEED)
    draw = random.Random(f"{SEED} {name}")
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=MODULES, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32), config)
    is_text = name in TEXTS
    source = passages(name, draw) if is_text else pairs(SKILLS[name], draw, held_out=False)
    tests = source if is_text else pairs(SKILLS[name], random.Random(name), held_out=True)
    test = list(islice(tests, 24 if is_text else TEST_PAIRS))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], PEAK_LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=STEPS)
    with torch.inference_mode():
        before = loss_of(model, tokenizer, test).item()
    for _ in range(STEPS):
        loss = loss_of(model, tokenizer, list(islice(source, TEXT_ROWS if is_text else ROWS)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        after = loss_of(model, tokenizer, test).item()
    write(model, HERE / "pool" / name)
    return {"base": round(before, 3), "adapter": round(after, 3)}


def write(model: Any, folder: Path) -> None:
    """Write an adapter in bfloat16, without what is of this machine alone."""
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        tensors = load_file(Path(scratch) / "adapter_model.safetensors")
        config = json.loads((Path(scratch) / "adapter_config.json").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    halves = {key: value.to(torch.bfloat16) for key, value in tensors.items()}
    save_file(halves, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    kept = ("peft_type", "task_type", "r", "lora_alpha", "target_modules", "bias")
    fields = {key: config[key] for key in kept} | {"base_model_name_or_path": "quickstart/base"}
    fields["target_modules"] = sorted(fields["target_modules"])
    (folder / "adapter_config.json").write_text(json.dumps(fields, indent=1) + "\n")


def main(names: list[str]) -> None:
    """Train the named adapters, or all; the losses go to scores.json."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    file = HERE / "scores.json"
    scores = json.loads(file.read_text()) if file.exists() else {}
    for name in names or [*SKILLS, *TEXTS]:
        began = time.perf_counter()
        scores[name] = train(name, tokenizer)
        print(name, scores[name], f"{time.perf_counter() - began:.0f} s", flush=True)
        file.write_text(json.dumps(scores, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
