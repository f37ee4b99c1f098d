"""Plain torch, as somebody writes it who has profiled: no DataLoader (the data lie in memory), the fused optimiser."""

# mypy: ignore-errors

import torch
from nets import build
from task import GLOBAL_BATCH, LR, MOMENTUM, arguments, load
from torch import nn, optim

args = arguments()
torch.manual_seed(args.seed)
x_train, y_train, x_test, y_test = map(torch.from_numpy, load(args.case))
model = build(args.case)
loss_fn = nn.CrossEntropyLoss()
optimizer = optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, fused=True)

for _ in range(args.epochs):
    for batch in torch.randperm(len(x_train)).split(GLOBAL_BATCH):
        loss = loss_fn(model(x_train[batch]), y_train[batch])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        answers = torch.cat([model(x).argmax(1) for x in x_test.split(GLOBAL_BATCH)])
    accuracy = (answers == y_test).float().mean().item()
    print(f"accuracy {accuracy:.4f}")
    if accuracy >= args.target:
        break
