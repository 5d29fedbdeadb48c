"""A model of few parameters with batch norms on jets and on candidates."""

import torch
from torch import nn
from utils.models.base_model import Classifier_base


class Small(Classifier_base):
    classes = {"b": ["isB"], "c": ["isC"], "light": ["isUDS", "isG"]}

    def __init__(self, config, width=6):
        super().__init__(config)
        (_, n_global), (_, n_features) = self.input_dims
        self.norm = nn.BatchNorm1d(n_global)
        self.embed = nn.Sequential(nn.Conv1d(n_features, width, 1), nn.ReLU(), nn.BatchNorm1d(width))
        self.head = nn.Sequential(nn.Linear(width + n_global, width), nn.ReLU(), nn.Linear(width, len(self.classes)))
        self.never_used = nn.Linear(2, 2)

    def forward(self, inpt):
        jets, candidates = inpt
        tokens = self.embed(candidates.transpose(1, 2)).mean(2)
        return self.head(torch.cat([self.norm(jets[:, 0]), tokens], 1))
