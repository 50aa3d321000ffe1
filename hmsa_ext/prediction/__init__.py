"""Predicting with a trained model: photos and videos in, label maps and pictures of them out.

>>> predictor = hmsa_ext.load("runs/NAME")  # doctest: +SKIP
>>> found = predictor.predict("photo.jpg")  # doctest: +SKIP
>>> found.labels, found.confidence, found.classes.names  # doctest: +SKIP
>>> found.save("overlay.jpg", "overlay", legend=True)  # doctest: +SKIP
"""

from hmsa_ext.engine.tiling import Plan
from hmsa_ext.prediction.prediction import Prediction
from hmsa_ext.prediction.predictor import Predictor, load
from hmsa_ext.prediction.settings import PredictionSettings

__all__ = ["Plan", "Prediction", "PredictionSettings", "Predictor", "load"]
