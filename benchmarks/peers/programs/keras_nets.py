"""The two networks in Keras, with torch's order of dimensions. Shared, so they count as nobody's lines."""

# mypy: ignore-errors

from keras import Input, Sequential, layers

CNN_WIDTH = 8


def build(case):
    """The networks of `nets`."""
    if case == "mlp":
        hidden = [layers.Dense(256, activation="relu"), layers.Dense(256, activation="relu")]
        return Sequential([Input((784,)), *hidden, layers.Dense(10)])
    w, first = CNN_WIDTH, {"data_format": "channels_first"}
    return Sequential(
        [
            Input((1, 28, 28)),
            layers.Conv2D(w, 5, padding="same", **first),
            layers.MaxPooling2D(2, **first),
            layers.ReLU(),
            layers.Conv2D(2 * w, 5, padding="same", **first),
            layers.MaxPooling2D(2, **first),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(32 * w, activation="relu"),
            layers.Dense(10),
        ]
    )
