"""Data sets by name."""


def DatasetLoader(name):
    if name == "LZ4Dataset":
        from utils.torch.LZ4Dataset import LZ4Dataset

        return LZ4Dataset
    raise NotImplementedError(f"there is no data set {name}")
