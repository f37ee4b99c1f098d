"""skorch, as its documentation writes it: a NeuralNetClassifier with the test part as its validation split."""

# mypy: ignore-errors

import torch
from nets import build
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback
from skorch.dataset import Dataset
from skorch.helper import predefined_split
from task import GLOBAL_BATCH, LR, MOMENTUM, arguments, load
from torch import nn, optim


class StopAt(Callback):
    def __init__(self, target):
        self.target = target

    def on_epoch_end(self, net, **kwargs):
        if net.history[-1, "valid_acc"] >= self.target:
            raise KeyboardInterrupt


args = arguments()
torch.manual_seed(args.seed)
x_train, y_train, x_test, y_test = load(args.case)
net = NeuralNetClassifier(
    build(args.case),
    criterion=nn.CrossEntropyLoss,
    optimizer=optim.SGD,
    optimizer__momentum=MOMENTUM,
    lr=LR,
    batch_size=GLOBAL_BATCH,
    max_epochs=args.epochs,
    iterator_train__shuffle=True,
    train_split=predefined_split(Dataset(x_test, y_test)),
    callbacks=[StopAt(args.target)],
)
net.fit(x_train, y_train)
print(f"accuracy {net.history[-1, 'valid_acc']:.4f}")
