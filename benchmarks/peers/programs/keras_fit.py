"""Keras 3 on torch, as its documentation writes it: compile, fit, a callback that stops at the target."""

# mypy: ignore-errors

import os

os.environ["KERAS_BACKEND"] = "torch"

import keras
from keras_nets import build
from task import GLOBAL_BATCH, LR, MOMENTUM, arguments, load


class StopAt(keras.callbacks.Callback):
    def __init__(self, target):
        super().__init__()
        self.target = target

    def on_epoch_end(self, epoch, logs=None):
        if logs["val_accuracy"] >= self.target:
            self.model.stop_training = True


args = arguments()
keras.utils.set_random_seed(args.seed)
x_train, y_train, x_test, y_test = load(args.case)
model = build(args.case)
model.compile(
    optimizer=keras.optimizers.SGD(learning_rate=LR, momentum=MOMENTUM),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
history = model.fit(
    x_train,
    y_train,
    batch_size=GLOBAL_BATCH,
    epochs=args.epochs,
    validation_data=(x_test, y_test),
    callbacks=[StopAt(args.target)],
    verbose=2,
)
print(f"accuracy {history.history['val_accuracy'][-1]:.4f}")
