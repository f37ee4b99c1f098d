"""Accelerate, as its documentation writes it: a torch loop whose parts went through `prepare`."""

# mypy: ignore-errors

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from nets import build
from task import GLOBAL_BATCH, LR, MOMENTUM, arguments, load
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

args = arguments()
set_seed(args.seed)
accelerator = Accelerator(cpu=True)
share = GLOBAL_BATCH // accelerator.num_processes
x_train, y_train, x_test, y_test = map(torch.from_numpy, load(args.case))
train_loader = DataLoader(TensorDataset(x_train, y_train), batch_size=share, shuffle=True)
test_loader = DataLoader(TensorDataset(x_test, y_test), batch_size=share)
model = build(args.case)
loss_fn = nn.CrossEntropyLoss()
optimizer = optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
model, optimizer, train_loader, test_loader = accelerator.prepare(model, optimizer, train_loader, test_loader)

for _ in range(args.epochs):
    model.train()
    for x, y in train_loader:
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        accelerator.backward(loss)
        optimizer.step()
    model.eval()
    correct = 0
    for x, y in test_loader:
        with torch.no_grad():
            answers = model(x).argmax(1)
        answers, references = accelerator.gather_for_metrics((answers, y))
        correct += (answers == references).sum().item()
    accuracy = correct / len(y_test)
    accelerator.print(f"accuracy {accuracy:.4f}")
    if accuracy >= args.target:
        break

accelerator.end_training()
