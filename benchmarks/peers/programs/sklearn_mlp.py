"""scikit-learn's MLPClassifier, an epoch at a time with `partial_fit`, for its own stopping rule knows no target."""

# mypy: ignore-errors

import numpy as np
from sklearn.neural_network import MLPClassifier
from task import GLOBAL_BATCH, LR, MOMENTUM, arguments, load

args = arguments()
x_train, y_train, x_test, y_test = load(args.case)
model = MLPClassifier(
    hidden_layer_sizes=(256, 256),
    solver="sgd",
    learning_rate_init=LR,
    momentum=MOMENTUM,
    nesterovs_momentum=False,
    alpha=0,
    batch_size=GLOBAL_BATCH,
    random_state=args.seed,
)

for _ in range(args.epochs):
    model.partial_fit(x_train, y_train, classes=np.arange(10))
    accuracy = model.score(x_test, y_test)
    print(f"accuracy {accuracy:.4f}")
    if accuracy >= args.target:
        break
