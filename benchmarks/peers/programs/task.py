"""What all programs train on, and how they are called. Shared, so it counts as nobody's lines.

Imports no torch: scikit-learn's program does without it.
"""

# mypy: ignore-errors

import argparse

import numpy as np

GLOBAL_BATCH = 256
LR, MOMENTUM = 0.05, 0.9

_SHAPES = {"mlp": (784,), "cnn": (1, 28, 28)}


def arguments():
    """The command line: ``CASE [--epochs N] [--target ACCURACY] [--seed N] [--workers N] [--strategy NAME]``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=tuple(_SHAPES))
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--target", type=float, default=2.0, help="test accuracy to stop at; 2 is never")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--microbatch", type=int)
    parser.add_argument("--strategy", default="auto")
    return parser.parse_args()


def load(case):
    """Training inputs, training labels, test inputs, test labels: float32 in 0..1, int64."""
    x_train, y_train, x_test, y_test = (np.load(f"{name}.npy") for name in ("x_train", "y_train", "x_test", "y_test"))
    return x_train.reshape(-1, *_SHAPES[case]), y_train, x_test.reshape(-1, *_SHAPES[case]), y_test
