"""What training shows on the console."""

from types import SimpleNamespace

from transformers import TrainerControl, TrainerState

from train.common.progress import MetricLines


EPOCHS = SimpleNamespace(max_steps=-1, num_train_epochs=30)


def show(callback, args, epoch, logs, step=0, should_evaluate=False):
    state = TrainerState(epoch=epoch, global_step=step, is_world_process_zero=True)
    callback.on_log(args, state, TrainerControl(should_evaluate=should_evaluate), logs=logs)


def test_one_line_of_numbers_for_an_epoch(capsys):
    callback = MetricLines(with_bar=False, with_lines=True)
    show(callback, EPOCHS, 1.0, {"loss": 1.92345, "grad_norm": 1.0, "learning_rate": 0.006, "epoch": 1.0})
    assert capsys.readouterr().out == "Epoch 1/30: loss 1.923, learning rate 0.006\n"


def test_held_out_metrics_are_in_the_same_line(capsys):
    callback = MetricLines(with_bar=False, with_lines=True)
    show(callback, EPOCHS, 2.0, {"loss": 1.5, "learning_rate": 0.006}, should_evaluate=True)
    assert capsys.readouterr().out == ""
    held_out = {"eval_loss": 1.25, "eval_macro_accuracy": 0.5, "eval_accuracy_seen_devices": 0.4, "eval_runtime": 3.0}
    show(callback, EPOCHS, 2.0, held_out, should_evaluate=True)
    expected = "Epoch 2/30: loss 1.5, learning rate 0.006, held-out loss 1.25, held-out macro accuracy 0.5\n"
    assert capsys.readouterr().out == expected


def test_runs_that_count_in_steps(capsys):
    args = SimpleNamespace(max_steps=1000, num_train_epochs=-1)
    show(MetricLines(with_bar=False, with_lines=True), args, 0.1, {"loss": 6.5, "perplexity": 200.0}, step=50)
    assert capsys.readouterr().out == "Step 50/1000: loss 6.5, perplexity 200\n"


def test_the_end_of_training_and_the_test_have_no_lines(capsys):
    callback = MetricLines(with_bar=False, with_lines=True)
    show(callback, EPOCHS, 30.0, {"train_runtime": 9.0, "train_loss": 1.0, "total_flos": 0.0, "epoch": 30.0})
    show(callback, EPOCHS, 30.0, {"test_macro_accuracy": 0.7, "epoch": 30.0})
    assert capsys.readouterr().out == ""
