"""Ensembles of nets that predict what a sequence of actions brings: one module for each kind of member."""

from sb3_rgrl.ensemble.attention import AttentionEnsemble
from sb3_rgrl.ensemble.base import Ensemble, Layer, WindowPrediction, end_logit
from sb3_rgrl.ensemble.kinds import MEMBER_KINDS, make_ensemble
from sb3_rgrl.ensemble.mixed import MixedEnsemble
from sb3_rgrl.ensemble.mlp import MlpEnsemble
from sb3_rgrl.ensemble.recurrent import GruEnsemble, LstmEnsemble, RecurrentEnsemble, RnnEnsemble

__all__ = [
    "MEMBER_KINDS",
    "AttentionEnsemble",
    "Ensemble",
    "GruEnsemble",
    "Layer",
    "LstmEnsemble",
    "MixedEnsemble",
    "MlpEnsemble",
    "RecurrentEnsemble",
    "RnnEnsemble",
    "WindowPrediction",
    "end_logit",
    "make_ensemble",
]
