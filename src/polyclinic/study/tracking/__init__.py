"""What a study writes anyway, told to TensorBoard and MLflow while it is written."""
