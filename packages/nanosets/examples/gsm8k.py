"""Word problems from JSONL to packed batches of tokens on a DataLoader.

Runs on GSM8K where its files lie in a folder ``gsm8k`` of ``$NANORLHF_DATA`` or ``../shared/data``,
else on three problems of the same shape.
"""

import json
import os
import tempfile
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from nanorlhf.nanosets import Batch, WholeDocuments, load_dataset

ROWS = [
    {"question": "Ann has 3 bags of 4 nuts. How many nuts?", "answer": "3*4=<<3*4=12>>12\n#### 12"},
    {"question": "A bus with 9 riders loses 5. How many stay?", "answer": "9-5=<<9-5=4>>4\n#### 4"},
    {"question": "Half of 18 eggs break. How many?", "answer": "18/2=<<18/2=9>>9 eggs\n#### 9"},
]
END, IGNORED = 256, -100
CAPACITY = 4096


def tokenize(question, answer):
    """One token a byte; no loss on the question."""
    asked, told = list(question.encode() + b"\n"), [*answer.encode(), END]
    return {"tokens": asked + told, "labels": [IGNORED] * len(asked) + told}


def main():
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder))


def run(folder):
    load_dataset(problems(folder)).save_to_disk(folder / "problems.nano")
    ds = load_dataset(folder / "problems.nano", verify=True)
    print(ds)

    ds = ds.map(
        tokenize, input_columns=["question", "answer"], output=folder / "tokens.nano"
    ).filter(lambda tokens: len(tokens) <= CAPACITY, input_columns="tokens")
    packed = WholeDocuments(ds, CAPACITY, columns=["tokens", "labels"])
    tokens = int(ds["tokens"].lengths().sum())
    print(f"{len(ds)} problems, {tokens} tokens; samples of up to {CAPACITY}: {len(packed)}")

    loader = DataLoader(
        packed,
        batch_size=None,  # a sample is a batch already: whole documents, end to end
        collate_fn=Batch.torch,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
    )
    learned = 0
    for batch in loader:
        assert batch["cu_seqlens"][-1] == len(batch["tokens"]) == len(batch["labels"])
        learned += int((batch["labels"] != IGNORED).sum())
    print(f"{learned} tokens of answers; the last batch: ", end="")
    print({name: tuple(value.shape) for name, value in batch.items()})


def problems(folder):
    """Return the path of GSM8K's training problems, or of three others."""
    data = os.environ.get("NANORLHF_DATA")
    places = [Path(data)] if data else []
    places += [parent / "shared" / "data" for parent in Path(__file__).resolve().parents]
    for place in places:
        if (place / "gsm8k" / "train.jsonl").exists():
            return place / "gsm8k" / "train.jsonl"
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


if __name__ == "__main__":
    main()
