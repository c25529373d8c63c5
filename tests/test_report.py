"""Reports: numbers against hand-made checkpoints, gates, forms, pictures, and what is imported for them."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from prunecli import checkpoint as checkpoints
from prunecli import models, sidecar
from prunecli.commands.report import run
from prunecli.errors import DamagedError, GateError, PruneError, UsageError
from prunecli.measure import cost
from prunecli.options.report import ReportOptions
from prunecli.reporting.columns import accuracy, count, share, size
from prunecli.reporting.html import page
from prunecli.reporting.row import short_names
from prunecli.reporting.terminal import render
from prunecli.sidecar import Arch, Data, EpochLog, IndexSet, Metrics, Score, Sidecar, Step, Surgery

DATA = Data(
    name="digits", classes=10, shape=[1, 32, 32], mean=[0.5], std=[0.5], train_size=1437, test_size=360,
)  # fmt: skip


def score(epoch, top1):
    return Score(epoch=epoch, values={"top1": top1, "loss": 3 * (1 - top1)})


def write(path, network, *, top1=None, history=(), **parts):
    metrics = Metrics()
    if top1 is not None:
        curve = [
            EpochLog(epoch=e, lr=0.1, train={"loss": 2 / e, "top1": top1}, score={"loss": 1 / e, "top1": top1 * e / 3})
            for e in (1, 2, 3)
        ]
        metrics = Metrics(last=score(3, top1), best=score(2, top1), curve=curve)
    described = Sidecar(
        arch=Arch(name="lenet5", args={"num_classes": 10}),
        data=DATA,
        cost=cost(network, torch.zeros(1, 1, 32, 32)),
        metrics=metrics,
        history=list(history),
        **parts,
    )
    weights = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    return checkpoints.save(checkpoints.Checkpoint(weights, described), path)


def step(command, parent=None, **options):
    return Step(command=command, options=options, versions={"prunecli": "0"}, parent=parent)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """base (dense), cut (conv1 from 6 to 4 channels), masked (conv3 half zero), and bare, which was never scored."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    network = models.build("lenet5", {"num_classes": 10})
    write(folder / "bare.safetensors", network)
    train = step("train", arch="lenet5", training={"epochs": 3, "lr": 0.05, "schedule": {"kind": "cosine"}})
    base = write(folder / "base.safetensors", network, top1=0.98, history=[train])

    pruned = step("prune", base, method="l1", sparsity=1 / 3, round_to=1)
    kept = [0, 1, 3, 5]
    weights = network.state_dict()
    smaller = models.build("lenet5", {"num_classes": 10})
    for name, tensor in weights.items():
        if name.startswith("conv1."):
            tensor = tensor[kept]
        elif name == "conv2.weight":
            tensor = tensor[:, kept]
        module, _, attribute = name.rpartition(".")
        setattr(smaller.get_submodule(module), attribute, torch.nn.Parameter(tensor.clone()))
    cut = Surgery(
        index=[IndexSet(of=6, kept=kept)],
        axes={"conv1.weight": {"0": 0}, "conv1.bias": {"0": 0}, "conv2.weight": {"1": 0}},
        attributes={"conv1": {"out_channels": 4}, "conv2": {"in_channels": 4}},
    )
    cut_sha = write(folder / "cut.safetensors", smaller, top1=0.95, history=[train, pruned], surgery=cut)
    tuned = step("finetune", cut_sha, training={"epochs": 3, "lr": 0.001, "schedule": {"kind": "constant"}})
    write(folder / "small.safetensors", smaller, top1=0.97, history=[train, pruned, tuned], surgery=cut)

    masked = models.build("lenet5", {"num_classes": 10})
    masked.load_state_dict(weights)
    keep = torch.arange(48_000).reshape(120, 16, 5, 5) % 2 == 0
    with torch.no_grad():
        masked.conv3.weight *= keep
    thinned = step("prune", base, method="magnitude", sparsity=0.5)
    write(
        folder / "masked.safetensors", masked, top1=0.96, history=[train, thinned],
        masks={"conv3.weight": checkpoints.pack_mask(keep)},
    )  # fmt: skip
    return folder


def report(folder, *names, **options):
    return run(ReportOptions(checkpoints=tuple(str(folder / f"{name}.safetensors") for name in names), **options))


def test_numbers_of_dense_cut_and_masked(folder):
    dense, cut, masked = report(folder, "base", "cut", "masked").data()["checkpoints"]
    assert (dense["params"], dense["nonzero"], dense["macs"]) == (61_706, 61_706, 416_520)
    assert dense["flops"] == 2 * 416_520
    assert cut["params"] == 61_706 - 2 * 26 - 16 * 2 * 25
    assert cut["macs"] == 416_520 - 2 * 25 * 784 - 16 * 2 * 25 * 100
    assert (cut["original_params"], cut["original_macs"]) == (61_706, 416_520)
    assert (masked["params"], masked["macs"]) == (61_706, 416_520)
    assert (masked["nonzero"], masked["effective_macs"]) == (61_706 - 24_000, 416_520 - 24_000)
    assert (masked["sparsity"], masked["masked_params"]) == (0.5, 48_000)
    assert masked["sparsity_all"] == 24_000 / 61_706
    assert dense["bytes"] == (folder / "base.safetensors").stat().st_size
    assert dense["sidecar_bytes"] == (folder / "base.json").stat().st_size
    assert masked["compressed"] < dense["compressed"] < dense["bytes"] * 1.01
    assert dense["last"] == {"epoch": 3, "top1": 0.98, "loss": pytest.approx(0.06)}
    assert dense["split"] == "test"
    assert [layer["name"] for layer in cut["layers"]] == ["conv1", "conv2", "conv3", "fc1", "fc2"]
    assert cut["layers"][1]["shape"] == (16, 4, 5, 5)
    assert cut["layers"][1]["original_shape"] == (16, 6, 5, 5)


def test_validation_scores_are_shown_apart_from_those_on_the_test_split(folder, tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "held.safetensors"
    write(path, models.build("lenet5", {"num_classes": 10}), top1=0.93)
    loaded = checkpoints.load(path)
    loaded.sidecar.metrics.split, loaded.sidecar.metrics.test = "val", score(3, 0.91)
    checkpoints.save(loaded, path)
    made = run(ReportOptions(checkpoints=(str(path), str(folder / "base.safetensors")), fail_under=("test_top1=0.92",)))
    held, base = made.data()["checkpoints"]
    assert (held["split"], held["top1"], held["test_top1"]) == ("val", 0.93, 0.91)
    assert held["test"] == {"epoch": 3, "top1": 0.91, "loss": pytest.approx(0.27)}
    assert (base["split"], base["top1"], base["test_top1"], base["test"]) == ("test", 0.98, 0.98, None)
    assert "held.safetensors: test_top1 0.91 is below 0.92" in made.failure.message
    assert "base" not in made.failure.message
    line = next(line for line in render(made, width=200, color=False).splitlines() if line.strip().startswith("held"))
    assert "93.00 %" in line
    assert "91.00 %" in line
    assert "on test" not in render(report(folder, "base"), width=200, color=False)


def test_the_story_tells_cuts_of_different_kinds_apart(tmp_path):
    options = {"method": "l1", "sparsity": 0.5, "heads": True, "compensate": False, "recalibrate": 0}
    limited = options | {"heads": False, "max_layer_sparsity": 0.8, "compensate": True, "recalibrate": 4}
    network = models.build("lenet5", {"num_classes": 10})
    for name, given, story in (
        ("heads", options, "prune(method=l1, sparsity=0.5, heads=True)"),
        (
            "limited",
            limited,
            "prune(method=l1, sparsity=0.5, max_layer_sparsity=0.8, compensate=True, recalibrate=4)",
        ),
    ):
        write(tmp_path / f"{name}.safetensors", network, history=[step("prune", **given)])
        assert report(tmp_path, name).rows[0].story == story


def test_parents_are_found_by_hash(folder):
    rows = report(folder, "small", "base", "masked", "cut").rows
    assert [row.parent for row in rows] == ["cut", None, "base", "base"]
    assert [row.parent for row in report(folder, "small", "base").rows] == ["base", None]
    assert rows[0].story == "[cut] → finetune(epochs=3, lr=0.001)"
    assert rows[1].story == "train(arch=lenet5, epochs=3, lr=0.05, schedule=cosine)"
    assert rows[2].story == "[base] → prune(method=magnitude, sparsity=0.5)"
    (alone,) = report(folder, "small").rows
    assert alone.story.endswith("→ prune(method=l1, sparsity=0.333) → finetune(epochs=3, lr=0.001)")
    assert report(folder, "bare").rows[0].story == "no history"


def test_a_step_tells_its_method_with_the_settings_that_are_not_at_their_default(tmp_path):
    settings = {"only": [], "skip": ["conv1"], "sparsity": 0.9, "ratios": {"a": 0.25}, "a_min": 0.1, "a_max": 1000.0}
    options = {
        "method": "swd",
        "settings": settings,
        "settings_changed": ["skip", "sparsity", "ratios", "a_max"],
        "epochs": 5,
    }
    history = [step("train", **options), step("train", method="swd", settings=1, changed="epochs", epochs=5)]
    write(tmp_path / "x.safetensors", models.build("lenet5", {"num_classes": 10}), history=history)
    assert report(tmp_path, "x").rows[0].story == (
        "train(method=swd, sparsity=0.9, ratios=a:0.25, skip=conv1, a_max=1000, epochs=5) → train(method=swd, epochs=5)"
    )


def test_gates(folder):
    met = report(folder, "small", fail_under=("top1=97%", "top1=0.97"), fail_over=("macs=370k", "params=99%"))
    assert met.failure is None
    assert [gate["met"] for gate in met.data()["gates"]] == [True] * 4
    missed = report(folder, "small", "masked", fail_under=("top1=0.965", "sparsity=50%"), fail_over=("macs=90%",))
    assert isinstance(missed.failure, GateError)
    assert missed.failure.exit_code == 6
    message = missed.failure.message
    assert message.startswith("3 gates are not met: ")
    assert f"{folder / 'small.safetensors'}: sparsity 0 is below 0.5" in message
    assert "masked.safetensors: top1 0.96 is below 0.965" in message
    assert "masked.safetensors: macs 416520 is above 374868" in message
    assert "not met" in missed.text()


def test_a_number_that_is_not_known_meets_no_gate(folder):
    failure = report(folder, "bare", fail_over=("loss=100",)).failure
    assert failure is not None
    assert "loss is not known" in failure.message


@pytest.mark.parametrize(
    "options, message, hint",
    [
        ({"fail_under": ("top2=1",)}, "unknown metric 'top2'", "top1"),
        ({"fail_under": ("top1",)}, "not METRIC=VALUE", "top1=0.97"),
        ({"fail_over": ("macs=lots",)}, "not an amount", "20M"),
        ({"fail_over": ("bytes=50%",)}, "bytes has no whole", "absolute"),
        ({"fail_over": ("latency=1",)}, "latency is not measured", "--latency"),
        ({"fail_over": ("compressed=1",), "compressed": False}, "not measured", "--no-compressed"),
        ({"csv": True, "md": True}, "different forms", "choose one"),
        ({"html": "report.pdf"}, "not the name of a page", "report.html"),
        ({"batch": "0"}, "--batch", "1,64"),
        ({"batch": ""}, "--batch", "1,64"),
        ({"repeats": 1}, "--repeats", "2 or more"),
    ],
)
def test_options_that_mean_nothing(folder, options, message, hint):
    with pytest.raises(UsageError, match=re.escape(message)) as error:
        report(folder, "base", **options)
    assert hint in error.value.hint


def test_no_checkpoint_and_damaged_checkpoint(folder, tmp_path):
    with pytest.raises(UsageError, match="no checkpoint"):
        ReportOptions()
    with pytest.raises(DamagedError, match="no such file"):
        report(tmp_path, "base")


def test_differences(folder):
    (difference,) = report(folder, "base", "cut").differences
    changes = {change.what: change for change in difference.changes}
    assert changes["top1"].before == 0.98
    assert changes["top1"].after == 0.95
    assert changes["shape of conv1"].after == [4, 1, 5, 5]
    assert "shape of conv3" not in changes
    assert changes["steps"].before is None
    assert changes["steps"].after == ["prune(method=l1, sparsity=0.333)"]
    assert changes["macs"].ratio == changes["macs"].after / 416_520
    assert report(folder, "base", "cut", "masked").differences == ()
    assert [d.after for d in report(folder, "base", "cut", "masked", diff=True).differences] == ["cut", "masked"]
    (same,) = report(folder, "base", "base").differences
    assert same.changes == ()


def test_csv_reads_back(folder):
    text = report(folder, "base", "masked", "bare", csv=True).text()
    base, masked, bare = csv.DictReader(io.StringIO(text))
    assert base["checkpoint"] == str(folder / "base.safetensors")
    assert (int(base["params"]), int(base["macs"]), float(base["top1"])) == (61_706, 416_520, 0.98)
    assert int(masked["nonzero"]) == 37_706
    assert bare["top1"] == ""


def test_markdown_is_a_table(folder):
    lines = report(folder, "base", "masked", md=True).text().splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert lines[0].startswith("| checkpoint | parameters | non-zero | MACs |")
    assert lines[3].startswith("| masked | 61.7k | 37.7k | 417k | 393k |")


@pytest.mark.parametrize("width", [80, 120])
def test_terminal_table_fits(folder, width):
    text = render(report(folder, "base", "cut", "masked", "small", "bare"), width=width, color=False)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "\x1b" not in text
    for needed in ("masked", "61.7k", "417k", "98.00 %", "prune(method=magnitude, sparsity=0.5)", "FLOPs = 2 x MACs"):
        assert needed in text
    assert "Masks alone make nothing faster" in text
    assert "on the test split" in text


def test_where_the_last_weights_are_the_best_no_epoch_was_chosen(folder, tmp_path):
    assert (
        "Accuracy is on the test split; the best epoch was chosen on that same split." in report(folder, "base").notes
    )
    loaded = checkpoints.load(folder / "base.safetensors")
    loaded.sidecar.metrics.best = loaded.sidecar.metrics.last  # as it is after a method that prunes at the end
    checkpoints.save(loaded, tmp_path / "pruned.safetensors")
    assert "Accuracy is on the test split." in report(tmp_path, "pruned").notes


def test_terminal_alone_and_in_colour(folder, monkeypatch):
    text = render(report(folder, "cut"), width=100, color=True)
    assert "\x1b[" in text
    assert "4 of 6" in text
    assert "Masks alone" not in text
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in render(report(folder, "cut"))


def test_numbers_for_people():
    assert [count(n) for n in (0, 999, 1000, 61_706, 999_949, 1_234_567, 41.2e9, None)] == [
        "0", "999", "1k", "61.7k", "1M", "1.23M", "41.2G", "–",
    ]  # fmt: skip
    assert [size(n) for n in (12, 247_600)] == ["12 B", "248 kB"]
    assert [share(n) for n in (0.9, 0.98765, 1, None)] == ["90 %", "98.77 %", "100 %", "–"]
    assert accuracy(0.97) == "97.00 %"


def test_names_tell_checkpoints_apart():
    assert short_names(["a/x.safetensors", "a/y.safetensors"]) == ["x", "y"]
    assert short_names(["a/x.safetensors", "b/x.safetensors"]) == ["a/x", "b/x"]
    assert short_names(["x.safetensors", "x.safetensors"]) == ["x", "x"]


def test_schema():
    schema = run(ReportOptions(schema=True))
    assert schema.data() == sidecar.json_schema()
    assert json.loads(schema.text()) == schema.data()


def test_page_is_self_contained_and_has_every_picture(folder, tmp_path):
    names = ["base", "cut", "small", "masked", "bare"]
    report(folder, *names, html=str(tmp_path / "report.html"), fail_under=("top1=0.97",), diff=True)
    text = (tmp_path / "report.html").read_text()
    assert text.count("<svg ") == text.count("<figcaption>") == 4
    for title in ("Error against cost", "Widths and sparsity by layer", "Learning curves", "Weight distributions"):
        assert re.search(rf"<title id=\"[a-z]+-title\">{title}</title>", text)
    assert not re.search(r"(src|href)=\"(?!#)|url\((?!#)|@import|<script|<link|<!DOCTYPE svg", text)
    assert set(re.findall(r"https?://[^\"' <]+", text)) <= {
        "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink",
    }  # fmt: skip
    ids = re.findall(r"\bid=\"([^\"]+)\"", text)
    assert set(re.findall(r"(?:href=\"#|url\(#)([^\")]+)", text)) <= set(ids)
    assert len(ids) == len(set(ids))
    assert str(tmp_path) not in text
    assert str(folder) not in text
    assert "Masks alone make nothing faster" in text
    assert text.count('class="missed"') == 3
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]


def test_page_is_the_same_every_time(folder):
    first = report(folder, "base", "masked")
    assert page(first) == page(report(folder, "base", "masked"))


def test_page_of_one_checkpoint_without_scores(folder):
    text = page(report(folder, "bare"))
    assert text.count("<svg ") == 2
    assert "Error against cost" not in text


def test_page_draws_what_a_method_logged(tmp_path):
    network = models.build("lenet5", {"num_classes": 10})
    sums = {"sparsity": 0.25, "macs": 3e5, "params": 4e4}
    for name, own in (
        ("swd", {"a": 10.0, "penalty": 0.0}),
        ("asl", {"bound/conv1": 0.25, "bound/conv2": 0.5, "penalty": 1.0}),
        ("greg", {"kept_norm": 2.0, "pruned_norm": 1e-4} | {f"factor/layer{k}": 0.5 for k in range(30)}),
    ):
        path = tmp_path / f"{name}.safetensors"
        write(path, network, top1=0.9)
        loaded = checkpoints.load(path)
        for log in loaded.sidecar.metrics.curve:
            log.method = sums | {key: value * log.epoch for key, value in own.items()}
        loaded.sidecar.metrics.last = score(3, 0.85)
        checkpoints.save(loaded, path)
    text = page(report(tmp_path, "swd", "asl", "greg"))
    assert text.count("<svg ") == 6
    logged = text[text.index('<title id="numbers-title">') :]
    logged = logged[: logged.index("</svg>")]
    titles = re.findall(r"<!-- (.*?) -->", logged) + re.findall(r"<text[^>]*>([^<]*)</text>", logged)
    assert {"a", "penalty", "bound by layer, asl", "norm of kept and pruned weights", "factor by layer, greg"} <= {
        *titles
    }
    assert {"swd", "asl", "greg, kept norm", "greg, pruned norm", "conv1", "conv2", "layer0", "layer29"} <= {*titles}
    assert "layer2" not in titles  # of many layers some are named
    assert not {"sparsity", "macs", "params", "kept norm"} & {*titles}
    assert "0.001" in titles  # norms that far apart are drawn on a logarithmic axis
    assert "after the run" in text


def test_page_escapes_what_checkpoints_say(folder):
    made = report(folder, "base")
    row = replace(made.rows[0], name="<script>alert(1)</script>")
    text = page(replace(made, rows=(row,)))
    assert "<script" not in text


def test_page_that_cannot_be_written(folder, tmp_path):
    with pytest.raises(PruneError, match="cannot write"):
        report(folder, "base", html=str(tmp_path / "missing" / "report.html"))


def test_latency(folder):
    made = report(folder, "base", "cut", latency=True, batch="1,2", repeats=2, threads=1, fail_under=("latency=1G",))
    assert made.failure is not None
    assert [(t["backend"], t["batch"]) for t in made.data()["checkpoints"][1]["timings"]] == [
        ("pytorch", 1), ("onnxruntime", 1), ("pytorch", 2), ("onnxruntime", 2),
    ]  # fmt: skip
    text = made.text()
    assert "onnxruntime (cpu)" in text
    assert "2 runs on this machine, 1 thread" in text
    (header, first, _) = csv.reader(io.StringIO(replace(made, form="csv").text()))
    assert float(first[header.index("latency_onnxruntime_batch2_ms")]) > 0


def test_json_needs_neither_torch_nor_numpy(folder):
    program = (
        "import sys, json\n"
        "from prunecli.commands.report import run\n"
        "from prunecli.options.report import ReportOptions\n"
        "json.dumps(run(ReportOptions(checkpoints=(sys.argv[1],), fail_over=('macs=1G',))).data())\n"
        "print(sorted({'torch', 'numpy', 'matplotlib', 'jinja2', 'rich'} & sys.modules.keys()))\n"
    )
    command = [sys.executable, "-c", program, str(folder / "base.safetensors")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
