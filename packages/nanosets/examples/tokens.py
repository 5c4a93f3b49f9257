"""Write chats as tokens, a few rows at a time, and read shuffled batches of them back."""

import tempfile
from pathlib import Path

from nanorlhf.nanosets import Writer, load_dataset


def encode(text):
    return list(text.encode())


def main():
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder) / "train.nano")


def run(path):
    features = {"text": "utf8", "tokens": "list<int32>", "loss_mask": "list<bool>"}
    with Writer(path, features=features) as writer:
        for i in range(1000):
            question, answer = f"What is {i} + {i}?", f" {2 * i}"
            tokens = encode(question + answer)
            mask = [position >= len(encode(question)) for position in range(len(tokens))]
            writer.write({"text": question, "tokens": tokens, "loss_mask": mask})

    ds = load_dataset(path, verify=True)
    split = ds.filter(lambda text: "7" not in text, input_columns="text").train_test_split(
        0.1, seed=0
    )
    print(ds, split["train"], sep="\n")

    epoch = split["train"].shuffle(seed=1)
    for start in range(0, len(epoch), 256):
        rows = range(start, min(start + 256, len(epoch)))
        tokens, cu_seqlens = epoch.gather("tokens", rows)
        answers = epoch.gather("loss_mask", rows).values
        print(
            f"{len(rows)} rows, {len(tokens)} tokens, {answers.sum()} of them answers, "
            f"longest {max(cu_seqlens[1:] - cu_seqlens[:-1])}"
        )


if __name__ == "__main__":
    main()
