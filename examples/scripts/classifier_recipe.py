"""Classify handwritten digits with a small convolutional network."""

import argparse
import random
import time

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, Dataset

import pol


class Digits(Dataset):
    """Images of 8x8 pixels. For training each is moved by up to a pixel and gets some noise."""

    def __init__(self, train):
        images, labels = load_digits(return_X_y=True)
        part = slice(0, 1500) if train else slice(1500, None)
        self.images = torch.tensor(images[part], dtype=torch.float32).view(-1, 1, 8, 8) / 16
        self.labels = torch.tensor(labels[part])
        self.train = train

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = self.images[index]
        if self.train:
            x, y = random.randint(0, 2), random.randint(0, 2)
            image = F.pad(image, (1, 1, 1, 1))[:, y : y + 8, x : x + 8]
            image = image + 0.05 * torch.randn(image.shape)
        return image, self.labels[index]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.dropout = nn.Dropout(0.25)
        self.fc = nn.Linear(32 * 4 * 4, 10)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.max_pool2d(F.relu(self.norm(self.conv2(x))), 2)
        return self.fc(self.dropout(x.flatten(1)))


def train(run, model, loader, optimizer, epoch):
    model.train()
    begin = time.time()
    for batch, (images, labels) in enumerate(run.loader(loader)):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        run.commit(loss=loss)
        if batch % 10 == 0:
            each = (time.time() - begin) / (batch + 1)
            print(f"epoch {epoch} batch {batch}/{len(loader)}: loss {loss.item():.4f}, {1000 * each:.1f} ms a batch")


def test(model, loader):
    model.eval()
    loss, correct = 0.0, 0
    with torch.no_grad():
        for images, labels in loader:
            output = model(images)
            loss += F.cross_entropy(output, labels, reduction="sum").item()
            correct += (output.argmax(dim=1) == labels).sum().item()
    count = len(loader.dataset)
    print(f"test: loss {loss / count:.4f}, {correct}/{count} correct")


def main(run, args):
    random.seed(args.seed)
    torch.manual_seed(args.seed)
    train_loader = DataLoader(Digits(train=True), batch_size=args.batch_size, shuffle=True)
    test_loader = DataLoader(Digits(train=False), batch_size=100)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    scheduler = StepLR(optimizer, step_size=1, gamma=0.7)
    run.attach(model=model, optimizer=optimizer, scheduler=scheduler, randomness="observed")
    for epoch in run.epochs(args.epochs):
        train(run, model, train_loader, optimizer, epoch)
        with run.aside():
            test(model, test_loader)
        scheduler.step()


class Classifier(pol.Recipe):
    def __init__(self, epochs: int = 3, batch_size: int = 64, lr: float = 0.02, seed: int = 1) -> None:
        """What was the command line."""

    def train(self, run):
        main(run, argparse.Namespace(**self.configuration))
