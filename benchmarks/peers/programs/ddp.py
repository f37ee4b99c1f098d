"""DistributedDataParallel on Gloo, as torch's tutorial for torchrun writes it."""

# mypy: ignore-errors

import torch
import torch.distributed as dist
from nets import build
from task import GLOBAL_BATCH, LR, MOMENTUM, arguments, load
from torch import nn, optim
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

args = arguments()
torch.manual_seed(args.seed)
dist.init_process_group("gloo")
share = GLOBAL_BATCH // dist.get_world_size()
x_train, y_train, x_test, y_test = map(torch.from_numpy, load(args.case))
train_set, test_set = TensorDataset(x_train, y_train), TensorDataset(x_test, y_test)
train_sampler = DistributedSampler(train_set, seed=args.seed)
train_loader = DataLoader(train_set, batch_size=share, sampler=train_sampler)
test_loader = DataLoader(test_set, batch_size=share, sampler=DistributedSampler(test_set, shuffle=False))
model = DistributedDataParallel(build(args.case))
loss_fn = nn.CrossEntropyLoss()
optimizer = optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)

for epoch in range(args.epochs):
    train_sampler.set_epoch(epoch)
    model.train()
    for x, y in train_loader:
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        correct = sum((model(x).argmax(1) == y).sum() for x, y in test_loader)
    dist.all_reduce(correct)
    accuracy = correct.item() / len(y_test)
    if dist.get_rank() == 0:
        print(f"accuracy {accuracy:.4f}")
    if accuracy >= args.target:
        break

dist.destroy_process_group()
