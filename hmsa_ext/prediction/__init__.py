"""Predicting with a trained model: photos and videos in, label maps and pictures of them out."""
