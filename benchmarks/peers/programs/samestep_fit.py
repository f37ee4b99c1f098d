"""samestep's Python interface: `fit`, as its README writes it."""

# mypy: ignore-errors

import torch
from nets import build
from task import GLOBAL_BATCH, LR, MOMENTUM, arguments, load

import samestep

args = arguments()
torch.manual_seed(args.seed)
x_train, y_train, x_test, y_test = load(args.case)
result = samestep.fit(
    build(args.case),
    x_train,
    y_train,
    validation=(x_test, y_test),
    target=samestep.Target(metric="accuracy", value=args.target),
    global_batch=GLOBAL_BATCH,
    microbatch=args.microbatch,
    epochs=args.epochs,
    optimizer="sgd",
    lr=LR,
    momentum=MOMENTUM,
    seed=args.seed,
    workers=args.workers,
)
print(f"accuracy {result.record.last_evaluation['accuracy']:.4f}")
