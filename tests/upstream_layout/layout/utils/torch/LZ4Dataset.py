"""Jets of `file_<k>.lz4`: frames of rows, each with its features, process, truth labels and weight."""

import lz4.frame
import numpy as np
import torch
from torch.utils.data import IterableDataset


class LZ4Dataset(IterableDataset):
    def __init__(self, files, model, config, data_type="training", weighted_sampling=False, batch_size=512, **kwargs):
        self.files, self.batch_size = list(files), batch_size
        self.is_training, self.weighted_sampling = data_type == "training", weighted_sampling
        self.classes, self.truths = model.classes, list(config["truths"])

    def shuffleFileList(self):
        np.random.shuffle(self.files)

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        files = self.files if worker is None else np.array_split(self.files, worker.num_workers)[worker.id]
        left = None
        for file in files:
            with lz4.frame.open(file, mode="r") as data:
                numbers = np.frombuffer(data.read(), dtype=np.float32)
            jets = numbers[2:].reshape(-1, int(numbers[1]))
            if self.weighted_sampling:
                jets = jets[np.random.rand(len(jets)) < jets[:, -1]]
            jets = np.random.permutation(jets)
            jets = jets if left is None else np.concatenate((left, jets))
            n_full = len(jets) // self.batch_size * self.batch_size
            for start in range(0, n_full, self.batch_size):
                yield self.split(jets[start : start + self.batch_size])
            left = jets[n_full:]
        if not self.is_training and left is not None and len(left):
            yield self.split(left)

    def split(self, jets):
        labels = jets[:, -len(self.truths) - 1 : -1]
        truth = np.zeros(len(jets))
        for index, flavours in enumerate(self.classes.values()):
            for flavour in flavours:
                truth[labels[:, self.truths.index(flavour)] == 1] = index
        return jets[:, : -len(self.truths) - 2].copy(), truth, jets[:, -1].copy(), jets[:, -len(self.truths) - 2].copy()
