"""The checks of the exercises accept right solutions, and say what is wrong with others."""

import re
import subprocess
import sys

import pytest

from vggkit.models.lessons.exercises import __main__ as program
from vggkit.models.lessons.exercises.tasks import TASKS, write_start

SOLUTIONS = """
import copy
import torch
from torch import nn
from torch.nn.functional import cross_entropy


def output_side(side, kernel, padding, stride):
    return (side + 2 * padding - kernel) // stride + 1


def count_convolution(in_channels, out_channels, kernel, height, width):
    weights = in_channels * out_channels * kernel**2
    return weights + out_channels, weights * height * width


def receptive_field(layers):
    side, step = 1, 1
    for kernel, stride in layers:
        side += (kernel - 1) * step
        step *= stride
    return side


def conv_block(in_channels, *widths):
    layers = []
    for width in widths:
        layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU(inplace=True)]
        in_channels = width
    return nn.Sequential(*layers, nn.MaxPool2d(2))


class VGG11(nn.Module):
    def __init__(self, num_classes=1000):
        super().__init__()
        self.features = nn.Sequential(
            conv_block(3, 64), conv_block(64, 128), conv_block(128, 256, 256), conv_block(256, 512, 512),
            conv_block(512, 512, 512),
        )
        self.classifier = nn.Sequential(
            nn.Linear(25088, 4096), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(0.5),
            nn.Linear(4096, num_classes),
        )

    def forward(self, images):
        return self.classifier(self.features(images).flatten(1))


def name_network(network):
    count = sum(isinstance(layer, nn.Conv2d) for layer in network.modules())
    return {8: "VGG11", 10: "VGG13", 13: "VGG16", 16: "VGG19"}.get(count, "none")


def initialize(network):
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)


def train_step(network, optimizer, images, labels):
    network.train()
    loss = cross_entropy(network(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def fold_batch_norm(conv, bn):
    folded = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, padding=conv.padding)
    factor = bn.weight / (bn.running_var + bn.eps).sqrt()
    with torch.no_grad():
        folded.weight.copy_(conv.weight * factor[:, None, None, None])
        bias = 0 if conv.bias is None else conv.bias
        folded.bias.copy_((bias - bn.running_mean) * factor + bn.bias)
    return folded


def rename_weights(weights):
    places = {0: "conv1_1", 3: "conv2_1", 6: "conv3_1", 8: "conv3_2", 11: "conv4_1", 13: "conv4_2", 16: "conv5_1",
              18: "conv5_2"}
    names = {f"features.{place}": name for place, name in places.items()}
    names |= {"classifier.0": "fc6", "classifier.3": "fc7", "classifier.6": "fc8"}
    return {f"{names[key.rsplit('.', 1)[0]]}.{key.rsplit('.', 1)[1]}": value for key, value in weights.items()}
"""
WRONG = [
    (1, "2 * padding", "padding", "a 3×3 window with padding 1 keeps the size"),
    (2, "weights + out_channels", "weights", "the biases are missing"),
    (2, "weights * height * width", "weights", "every position"),
    (3, "(kernel - 1) * step", "kernel - 1", "behind a pool each step is two pixels"),
    (4, "3, padding=1", "3", r"not \(6, 6\)"),
    (4, "in_channels = width", "pass", "reads the channels"),
    (5, "conv_block(3, 64)", "conv_block(3, 64, 64)", "it has 9 convolutions"),
    (5, "nn.Dropout(0.5), nn.Linear(4096, 4096)", "nn.Linear(4096, 4096)", "behind the first two matrices"),
    (5, ".flatten(1)", "", "RuntimeError"),
    (6, "network.modules()", "network", "which are nested"),
    (7, "fan_out", "fan_in", "this is fan_in"),
    (7, "nn.init.zeros_(layer.bias)", "pass", "biases are not 0"),
    (7, "isinstance(layer, nn.Conv2d):", "isinstance(layer, nn.Conv2d | nn.Linear):", "belong to no convolution"),
    (8, "optimizer.zero_grad()", "pass", "were the old gradients set to 0"),
    (8, "network.train()", "pass", "evaluation mode"),
    (8, "loss.item()", "loss", "as a float"),
    (8, "    optimizer.step()", "    pass", "backward"),
    (9, ", padding=conv.padding)", ")", "keep the padding"),
    (9, " + bn.eps", " * 2", "values differ"),
    (10, '16: "conv5_1"', '16: "conv5_2"', "missing"),
]  # fmt: skip


@pytest.fixture
def run(tmp_path):
    def run(text, number):
        path = tmp_path / "vgg_exercises.py"
        path.write_text(text, encoding="utf-8")
        return program.find_problems(program.load(path), number)

    return run


@pytest.mark.parametrize("number", range(1, 11))
def test_a_right_solution_is_accepted_and_the_start_is_not(run, number):
    assert run(SOLUTIONS, number) == []
    assert run(write_start(), number)


@pytest.mark.parametrize(("number", "right", "wrong", "message"), WRONG)
def test_a_wrong_solution_is_explained(run, number, right, wrong, message):
    assert right in SOLUTIONS
    problems = run(SOLUTIONS.replace(right, wrong), number)
    assert any(re.search(message, each) for each in problems), problems


def test_the_program(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["exercises"])
    assert program.main() == 1
    assert capsys.readouterr().out.count("open") == 10
    (tmp_path / "vgg_exercises.py").write_text(SOLUTIONS, encoding="utf-8")
    assert program.main() == 0
    assert capsys.readouterr().out.count("solved") == 10
    monkeypatch.setattr(sys, "argv", ["exercises", "3"])
    assert program.main() == 0
    assert "Solved. Next: exercise 4." in capsys.readouterr().out
    (tmp_path / "vgg_exercises.py").write_text("import nothing_of_this_name\n", encoding="utf-8")
    assert program.main() == 1
    assert "ModuleNotFoundError" in capsys.readouterr().out


def test_an_error_names_the_readers_line(run):
    [problem] = run("def output_side(side, kernel, padding, stride):\n    return side / 0\n", 1)
    assert problem == "ZeroDivisionError: division by zero (line 2: return side / 0)"


@pytest.mark.slow
def test_it_runs_as_a_module(tmp_path):
    command = [sys.executable, "-m", "vggkit.models.lessons.exercises", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Wrote vgg_exercises.py" in done.stdout
    assert TASKS[0].title in done.stdout
