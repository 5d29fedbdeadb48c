"""weaver-core's ParT, trained and compared; runs in weaver's environment and answers lines of JSON (see peer.py).

    python weaver_train.py BATCHES.npz

A request is either {"do": "train", "trim": BOOL, "bf16": BOOL, "batch": N}, answered with the seconds of that step (the
mean of several, if "steps" is given), or {"do": "outputs", "trim": BOOL, "training": BOOL, "batch": N, "length": N,
"path": FILE}: state and logits to a file, dropout off, of inputs cut to a length, since the batch norm of the inputs
sees the padding. The device is $DEVICE, the core of a CPU $CORE.
"""

import json
import sys
from functools import lru_cache
from importlib.metadata import version

import numpy as np
import torch
from weaver_ddp import build, now, prepare

PARTS = ("x", "v", "mask", "target")
WARM_UP = 6  # the trimmer does nothing in the first five


class Training:
    def __init__(self, trim, device):
        torch.manual_seed(1)
        self.device = device
        self.model = build(trim=trim).train().to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.loss = torch.nn.CrossEntropyLoss()

    def warm_up(self, inputs):
        with torch.no_grad():
            for _ in range(WARM_UP if self.model.trimmer.enabled else 0):
                self.model(*(values[:2].to(self.device) for values in inputs[:3]))

    def step(self, inputs, bf16, steps=1):
        features, vectors, mask, target = (values.to(self.device) for values in inputs)
        start = now(self.device)
        for _ in range(steps):
            self.optimizer.zero_grad()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                loss = self.loss(self.model(features, v=vectors, mask=mask), target)
            loss.backward()
            self.optimizer.step()
        return (now(self.device) - start) / steps


def write_outputs(inputs, request):
    torch.manual_seed(1)
    model = build(
        trim=request["trim"], block_params=dict.fromkeys(("dropout", "attn_dropout", "activation_dropout"), 0)
    )
    # weights that no initial value hides
    for value in [*model.parameters(), *model.buffers()]:
        if value.is_floating_point():
            value.data += 0.05 * torch.rand_like(value)
    state = {f"state/{name}": value.numpy().copy() for name, value in model.state_dict().items()}
    if request["training"]:
        # batch norms of rows sum in float32 one by one: the more jets the further off
        model, inputs = model.double(), [values.double() for values in inputs]
    with torch.no_grad():
        # past the trimmer's first forwards
        for _ in range(WARM_UP):
            model.eval()(inputs[0][:2], v=inputs[1][:2], mask=inputs[2][:2])
        logits = model.train(request["training"])(inputs[0], v=inputs[1], mask=inputs[2])
    np.savez(request["path"], logits=logits.numpy(), **state)
    return {}


def main():
    device = prepare()
    with np.load(sys.argv[1]) as arrays:
        batches = {name: arrays[name] for name in arrays.files}

    def inputs(number):
        return [torch.from_numpy(batches[name][number % len(batches["target"])]) for name in PARTS]

    @lru_cache(None)
    def training(trim):
        made = Training(trim, device)
        made.warm_up(inputs(0))
        return made

    print(json.dumps({"weaver-core": version("weaver-core"), "torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "outputs":
            cut = [values[..., : request["length"]] for values in inputs(request["batch"])[:3]]
            answer = write_outputs(cut, request)
        else:
            one = training(request["trim"])
            answer = {"seconds": one.step(inputs(request["batch"]), request["bf16"], request.get("steps", 1))}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
