"""Public landmark datasets as tensorflow-datasets builders, prepared and read without TensorFlow."""
