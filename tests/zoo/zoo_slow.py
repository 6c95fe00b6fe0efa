"""A training that takes a while, to be killed in the middle."""

import time

from zoo_base import Base


class Slow(Base):
    num_epochs = 5

    def __init__(self, pause=0.02):
        self.pause = pause

    def step(self, parts, batch):
        time.sleep(self.pause)
        return super().step(parts, batch)
