"""Fine-tuning a speech model on recordings of one's own, with mlx-lm's trainer."""
