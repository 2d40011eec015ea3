"""Made classifier/: a tiny classifier of English, German and Python, and one trained for longer.

python train_classifier.py
"""

import json
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForSequenceClassification

HERE = Path(__file__).parent
QUICKSTART = HERE.parent / "quickstart"
CLASSES = ("english", "german", "python")
PIECE, TRAINED = 48, 32  # characters of a text; passages of each class that are trained on


def pieces(name: str) -> tuple[list[str], list[str]]:
    """Cut the held-out passages of the quickstart into pieces: to train on, and to test."""
    lines = (QUICKSTART / "heldout" / f"{name}.jsonl").read_text("utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    cut = [[text[i : i + PIECE] for i in range(0, 240, PIECE)] for text in texts]
    return [piece for one in cut[:TRAINED] for piece in one], [one[2] for one in cut[TRAINED:]]


def save(model: LlamaForSequenceClassification, folder: Path) -> None:
    """Write the model in bfloat16, with the quickstart's tokenizer."""
    model.to(torch.bfloat16).save_pretrained(folder)
    model.to(torch.float32)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(QUICKSTART / "base" / file, folder / file)


def main() -> None:
    """Train for 240 steps, and save after 30 and at the end."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_file(str(QUICKSTART / "base" / "tokenizer.json"))
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        num_labels=len(CLASSES),
        id2label=dict(enumerate(CLASSES)),
        bos_token_id=tokenizer.token_to_id("<bos>"),
        eos_token_id=tokenizer.token_to_id("<eos>"),
        pad_token_id=tokenizer.token_to_id("<pad>"),
    )
    model = LlamaForSequenceClassification(config)
    split = [pieces(name) for name in CLASSES]
    train = [(text, n) for n, (texts, _) in enumerate(split) for text in texts]
    tests = [{"text": text, "label": CLASSES[n]} for n, (_, s) in enumerate(split) for text in s]
    lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in tests)
    (HERE / "data" / "languages.jsonl").write_text(lines, "utf-8")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(1, 241):
        rows = [train[i] for i in torch.randint(len(train), (16,)).tolist()]
        ids = [tokenizer.encode(text).ids[:48] for text, _ in rows]
        width = max(map(len, ids))
        padded = torch.tensor([one + [config.pad_token_id] * (width - len(one)) for one in ids])
        mask = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one in ids])
        labels = torch.tensor([label for _, label in rows])
        loss = model(input_ids=padded, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in {30, 240}:
            print(step, round(loss.item(), 3))
            save(model, HERE / "classifier" / ("base" if step == 30 else "longer"))


if __name__ == "__main__":
    main()
