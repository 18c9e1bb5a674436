"""Evaluation of pretrained encoders by scores computed from their features."""

from .baselines import random_weights, raw_pixels
from .features import AVERAGE_POOL, StageFeatures, extract_features, features_of_source
from .finetune import FinetuneSettings, evaluate_finetune, finetune
from .images import ImageFormat, Reading
from .knn import evaluate_knn, knn_accuracy, knn_predict, knn_scores
from .linear import LinearSettings, evaluate_linear
from .logistic import LogisticRegression, fit_logistic, fit_with_chosen_penalty
from .scores import Accuracy, Evaluation, Score, merged
from .splits import LabelledSplits, balanced_subset, dataset_splits, folder_splits, stratified
from .transfer import evaluate_transfer

__all__ = [
    "AVERAGE_POOL",
    "Accuracy",
    "Evaluation",
    "FinetuneSettings",
    "ImageFormat",
    "LabelledSplits",
    "LinearSettings",
    "LogisticRegression",
    "Reading",
    "Score",
    "StageFeatures",
    "balanced_subset",
    "dataset_splits",
    "evaluate_finetune",
    "evaluate_knn",
    "evaluate_linear",
    "evaluate_transfer",
    "extract_features",
    "features_of_source",
    "finetune",
    "fit_logistic",
    "fit_with_chosen_penalty",
    "folder_splits",
    "knn_accuracy",
    "knn_predict",
    "knn_scores",
    "merged",
    "random_weights",
    "raw_pixels",
    "stratified",
]
