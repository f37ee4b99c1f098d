"""Where a run is written down while it goes on: files, TensorBoard, MLflow, Weights & Biases."""
