"""A word language model: an LSTM reads a text from beginning to end and guesses each next word.

The text describes the data sets of scikit-learn; in version 1.9.1 its SHA-256 begins with efcc63d1a838d213.
"""

import argparse
import hashlib
import math
import re
import time
from collections import Counter
from importlib import resources

import torch
from sklearn.datasets import descr
from torch import nn
from torch.utils.data import DataLoader, Dataset

import pol

COLUMNS, LENGTH, WIDTH = 16, 20, 64


def read_words():
    files = [file for file in resources.files(descr).iterdir() if file.name.endswith(".rst")]
    text = "".join(file.read_text(encoding="utf-8") for file in sorted(files, key=lambda file: file.name))
    words = re.findall(r"[a-z]+|\d|[^\sa-z\d]", text.lower())
    print(f"{len(words)} words from a text with SHA-256 {hashlib.sha256(text.encode()).hexdigest()[:16]}")
    return words


class Corpus:
    """The words as numbers; rare ones share the number 0. The last tenth is held out."""

    def __init__(self, most=1000):
        words = read_words()
        number = {word: i for i, (word, _) in enumerate(Counter(words).most_common(most - 1), start=1)}
        tokens = torch.tensor([number.get(word, 0) for word in words])
        self.size = len(number) + 1
        self.train, self.valid = tokens[: len(tokens) * 9 // 10], tokens[len(tokens) * 9 // 10 :]


class Windows(Dataset):
    """A text cut into columns that are read side by side, ``length`` words at a time."""

    def __init__(self, tokens, columns, length):
        rows = len(tokens) // columns
        self.columns = tokens[: rows * columns].view(columns, rows).t().contiguous()
        self.length = length

    def __len__(self):
        return (len(self.columns) - 1) // self.length

    def __getitem__(self, index):
        begin = index * self.length
        return self.columns[begin : begin + self.length], self.columns[begin + 1 : begin + self.length + 1]


class LanguageModel(nn.Module):
    def __init__(self, size, width, layers=2, dropout=0.2):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.embedding = nn.Embedding(size, width)
        self.lstm = nn.LSTM(width, width, layers, dropout=dropout)
        self.decoder = nn.Linear(width, size)
        self.decoder.weight = self.embedding.weight

    def forward(self, words, hidden):
        output, hidden = self.lstm(self.dropout(self.embedding(words)), hidden)
        return self.decoder(self.dropout(output)), hidden

    def first_hidden(self, columns):
        shape = self.lstm.num_layers, columns, self.lstm.hidden_size
        return torch.zeros(shape), torch.zeros(shape)


def detach(hidden):
    return tuple(part.detach() for part in hidden)


def evaluate(model, loader, columns):
    model.eval()
    total = 0.0
    hidden = model.first_hidden(columns)
    with torch.no_grad():
        for words, following in loader:
            output, hidden = model(words, hidden)
            total += nn.functional.cross_entropy(output.flatten(0, 1), following.flatten()).item()
    model.train()
    return total / len(loader)


def main(run, args):
    torch.manual_seed(args.seed)
    corpus = Corpus()
    train_loader = DataLoader(Windows(corpus.train, COLUMNS, LENGTH), batch_size=None)
    valid_loader = DataLoader(Windows(corpus.valid, 4, LENGTH), batch_size=None)
    model = LanguageModel(corpus.size, WIDTH)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    carried = {}
    run.attach(model=model, optimizer=optimizer, carried=carried, randomness="observed")
    for epoch in run.epochs(args.epochs):
        total, begin = 0.0, time.time()
        carried["hidden"] = model.first_hidden(COLUMNS)
        for batch, (words, following) in enumerate(run.loader(train_loader)):
            optimizer.zero_grad()
            output, hidden = model(words, carried["hidden"])
            loss = nn.functional.cross_entropy(output.flatten(0, 1), following.flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), args.clip)
            optimizer.step()
            carried["hidden"] = detach(hidden)
            run.commit(loss=loss)
            total += loss.item()
            if batch % 10 == 9:
                each = (time.time() - begin) / 10
                print(f"epoch {epoch} batch {batch + 1}: loss {total / 10:.3f}, {1000 * each:.1f} ms a batch")
                total, begin = 0.0, time.time()
        with run.aside():
            loss = evaluate(model, valid_loader, columns=4)
        print(f"epoch {epoch}: validation loss {loss:.3f}, perplexity {math.exp(loss):.1f}")


class Words(pol.Recipe):
    def __init__(self, epochs: int = 3, lr: float = 0.005, clip: float = 0.25, seed: int = 1) -> None:
        """What was the command line."""

    def train(self, run):
        main(run, argparse.Namespace(**self.configuration))
