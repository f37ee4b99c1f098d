"""Lightning, as its documentation writes it: a LightningModule and a Trainer."""

# mypy: ignore-errors

import lightning as L  # noqa: N812 (as its documentation has it)
import torch
from lightning.pytorch.callbacks import EarlyStopping
from nets import build
from task import GLOBAL_BATCH, LR, MOMENTUM, arguments, load
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset


class Classifier(L.LightningModule):
    def __init__(self, case):
        super().__init__()
        self.model = build(case)
        self.loss_fn = nn.CrossEntropyLoss()

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.loss_fn(self.model(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        accuracy = (self.model(x).argmax(1) == y).float().mean()
        self.log("accuracy", accuracy, sync_dist=True)

    def configure_optimizers(self):
        return optim.SGD(self.parameters(), lr=LR, momentum=MOMENTUM)


if __name__ == "__main__":
    args = arguments()
    L.seed_everything(args.seed)
    share = GLOBAL_BATCH // args.workers
    x_train, y_train, x_test, y_test = map(torch.from_numpy, load(args.case))
    train_loader = DataLoader(TensorDataset(x_train, y_train), batch_size=share, shuffle=True)
    test_loader = DataLoader(TensorDataset(x_test, y_test), batch_size=share)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=args.workers,
        strategy=args.strategy,
        max_epochs=args.epochs,
        callbacks=[EarlyStopping("accuracy", mode="max", stopping_threshold=args.target, patience=args.epochs)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(Classifier(args.case), train_loader, test_loader)
    if trainer.is_global_zero:
        print(f"accuracy {trainer.callback_metrics['accuracy']:.4f}")
