"""Run by each of two processes in an empty folder: trainings by `vggkit.train`; prints what they gave, as JSON."""

import json
import sys

import vggkit as vk
from vggkit.training import trainer

data = sys.argv[1]
PLAIN = {
    **{"model": "vgg11", "until": "pool2", "image_size": 32, "epochs": 2, "batch_size": 8, "device": "cpu"},
    **{"precision": "fp32", "dropout": 0.0, "warmup_epochs": 0.5, "learning_rate": 0.02},
}
heard = []
runs = {
    "plain": vk.train(data, out="plain", on_epoch=lambda epoch: heard.append(epoch.epoch), **PLAIN),
    "synchronized": vk.train(data, out="synchronized", **{**PLAIN, "model": "vgg11_bn"}, sync_norm=True),
}
options = {"image_size": 32, "until": "pool2", "device": "cpu", "weights": "plain/best.safetensors"}
runs["probe"] = vk.train(data, out="probe", trainable="head", views=2, **options)
validate = trainer.validate


def diverge(*arguments, **others):
    trainer.validate = validate
    raise trainer.Diverged(float("nan"))


trainer.validate = diverge
runs["diverged"] = vk.train(data, out="diverged", **PLAIN)
runs["probe-again"] = vk.train(data, out="probe-again", trainable="head", views=2, **options)
print(
    json.dumps(
        {
            name: {
                "heard": heard,
                "epochs": len(run.history),
                "top1": run.evaluation.top1,
                "loss": run.evaluation.loss,
                "n": run.evaluation.n,
                "paths": [path.rpartition("/")[2] for path in run.evaluation.predictions.paths],
                "weights": float(
                    sum(value.double().sum() for value in run.classifier.network.state_dict().values())
                ),
            }
            for name, run in runs.items()
        }
    )
)
