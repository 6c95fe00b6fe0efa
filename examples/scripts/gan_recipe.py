"""A generative adversarial network that learns to write digits of 8x8 pixels."""

import time

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pol

SEED = 1
EPOCHS = 4
BATCH_SIZE = 64
NOISE = 32
LR = 0.002
REAL, FAKE = 0.9, 0.0  # a label of 0.9 keeps the discriminator from being too sure


def make_generator():
    return nn.Sequential(
        nn.Linear(NOISE, 128), nn.BatchNorm1d(128), nn.ReLU(),
        nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU(),
        nn.Linear(128, 64), nn.Sigmoid(),
    )  # fmt: skip


def make_discriminator():
    return nn.Sequential(
        nn.Linear(64, 128), nn.LeakyReLU(0.2), nn.Dropout(0.3),
        nn.Linear(128, 64), nn.LeakyReLU(0.2), nn.Dropout(0.3),
        nn.Linear(64, 1),
    )  # fmt: skip


def show(generator, noise):
    """Print what the generator makes of some noise that stays the same."""
    generator.eval()
    with torch.no_grad():
        images = generator(noise).view(-1, 8, 8)
    for row in range(8):
        print("  ".join("".join(" .:-=+*#%@"[int(9 * pixel)] for pixel in image[row]) for image in images))
    generator.train()


def main(run):
    torch.manual_seed(SEED)
    images = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    loader = DataLoader(TensorDataset(images), batch_size=BATCH_SIZE, shuffle=True, drop_last=True)
    generator, discriminator = make_generator(), make_discriminator()
    optim_g = torch.optim.Adam(generator.parameters(), lr=LR, betas=(0.5, 0.999))
    optim_d = torch.optim.Adam(discriminator.parameters(), lr=LR, betas=(0.5, 0.999))
    criterion = nn.BCEWithLogitsLoss()
    fixed_noise = torch.randn(6, NOISE)
    run.attach(model=generator, discriminator=discriminator, optim_g=optim_g, optim_d=optim_d, randomness="observed")
    for epoch in run.epochs(EPOCHS):
        begin = time.time()
        for batch, (real,) in enumerate(run.loader(loader)):
            labels = torch.full((len(real), 1), REAL)
            optim_d.zero_grad()
            fake = generator(torch.randn(len(real), NOISE))
            loss_d = criterion(discriminator(real), labels)
            loss_d = loss_d + criterion(discriminator(fake.detach()), torch.full_like(labels, FAKE))
            loss_d.backward()
            optim_d.step()

            optim_g.zero_grad()
            loss_g = criterion(discriminator(fake), torch.ones_like(labels))
            loss_g.backward()
            optim_g.step()
            run.commit(loss=loss_g)
            if batch % 10 == 0:
                each = (time.time() - begin) / (batch + 1)
                losses = f"loss D {loss_d.item():.4f}, loss G {loss_g.item():.4f}"
                print(f"epoch {epoch} batch {batch}/{len(loader)}: {losses}, {1000 * each:.1f} ms a batch")
        with run.aside():
            show(generator, fixed_noise)


class GAN(pol.Recipe):
    def train(self, run):
        main(run)
