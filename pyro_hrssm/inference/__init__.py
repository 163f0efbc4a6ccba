"""What is learned from and said with p and q: objectives, bounds, scores and predictions."""
