"""Uses of p and q: training objectives, bounds, scores and predictions."""
