"""Fast computation of many frames together; this package holds no equation of the model."""
