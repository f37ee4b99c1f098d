"""Plain torch, as its tutorials write it: TensorDataset, DataLoader, a loop."""

# mypy: ignore-errors

import torch
from nets import build
from task import GLOBAL_BATCH, LR, MOMENTUM, arguments, load
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

args = arguments()
torch.manual_seed(args.seed)
x_train, y_train, x_test, y_test = map(torch.from_numpy, load(args.case))
train_loader = DataLoader(TensorDataset(x_train, y_train), batch_size=GLOBAL_BATCH, shuffle=True)
test_loader = DataLoader(TensorDataset(x_test, y_test), batch_size=GLOBAL_BATCH)
model = build(args.case)
loss_fn = nn.CrossEntropyLoss()
optimizer = optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)

for _ in range(args.epochs):
    model.train()
    for x, y in train_loader:
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        correct = sum((model(x).argmax(1) == y).sum().item() for x, y in test_loader)
    accuracy = correct / len(y_test)
    print(f"accuracy {accuracy:.4f}")
    if accuracy >= args.target:
        break
