"""What one would do without a network: predict the mean shape, or register images and compare SIFT descriptors."""
