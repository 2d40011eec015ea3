"""Make the tokenizer of this folder: 1024 tokens of English and German, numbers digit by digit.

It is trained on the texts that the models are not scored on here: the first halves of the
held-out files. The same call writes the same file.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).parent
TEXTS = HERE.parent / "quickstart" / "heldout"
END = "<|endoftext|>"


def main() -> None:
    """Train, and write `tokenizer/`."""
    lines = []
    for language in ("english", "german"):
        found = (TEXTS / f"{language}.jsonl").read_text(encoding="utf-8").splitlines()
        lines += [json.loads(line)["text"] for line in found[: len(found) // 2]]
    made = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(lines, trainer)
    folder = HERE / "tokenizer"
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END}
    text = json.dumps(settings, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
