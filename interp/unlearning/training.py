"""Fine-tuning: one loop for every objective that moves a model by gradients.

Every step draws examples of each set, computes what the objective needs
(`objective_inputs`) and takes an AdamW step. The embedding and the unembedding stay as they
are, so that U shares them with V. Draws, losses and the state of the optimiser depend on the
configuration and the step alone: a run that was killed goes on from its last state as if nothing
had happened.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any

import torch
from tqdm.auto import tqdm

from interp.models.language_model import LanguageModel
from interp.models.precision import computes_bfloat16
from interp.unlearning.checkpoints import load_state, read_progress, save_state
from interp.unlearning.config import OWN_METRICS, TrainingConfig
from interp.unlearning.examples import Draws, Example
from interp.unlearning.goal import BestCheckpoint, check_before, find_watched
from interp.unlearning.model_card import describe_difference, make_training_card
from interp.unlearning.objective_inputs import ObjectiveInputs, find_logprobs
from interp.unlearning.objectives.losses import label_mean
from interp.unlearning.objectives.rmu import draw_rmu_direction
from interp.unlearning.registry import OBJECTIVES, Objective, default_settings, find_sets
from interp.unlearning.resume import RunStore, Trained
from interp.unlearning.trainable_model import TrainableModel, copy_weights
from interp.unlearning.validation import check_training

Evaluate = Callable[[LanguageModel], Mapping[str, float]]


DEFAULTS = TrainingConfig()


def train(
    vanilla: LanguageModel,
    examples: Mapping[str, Sequence[Example]],
    config: TrainingConfig = DEFAULTS,
    *,
    evaluate: Evaluate | None = None,
    confirm: Evaluate | None = None,
    about: Mapping[str, object] = MappingProxyType({}),
    out: str | Path | None = None,
    progress: bool = True,
) -> Trained:
    """Train a copy of V on an objective.

    Args:
        vanilla: V, left untouched.
        examples: by set: `forget`, `retain`, `preferred` (to each forget example the answer that is
            preferred to its own), as the objective needs them. `finetune` learns `retain`.
        config: the settings.
        evaluate: called with θ in evaluation mode every `config.evaluate_every` steps, and before
            training and after the last step where something is bound to one of its metrics; they go
            into the history.
        confirm: called with θ where by `evaluate` the goal is reached and all guards hold: what it
            gives, measured more exactly, takes the place of the same metrics, and decides.
        about: further entries of the model's card (JSON), such as where the examples come from.
        out: directory for the model (an adapter where LoRA trained it) and its card. What it holds
            of the same run is not done again; a run that was killed goes on from its last
            evaluation.
        progress: show a progress bar on standard error.

    Raises:
        ValueError: a setting or set of examples that is not valid, an example without labels, or
            `out` holds another run.
        ImportError: LoRA without the package `peft`.
    """
    check_training(vanilla, examples, config, evaluates=evaluate is not None)
    used = {name: examples[name] for name in find_sets(config.objective)}
    store = None
    if out is not None:
        store = RunStore(Path(out), make_training_card(vanilla, used, config, about))
        if finished := store.load_finished(vanilla):
            return finished
    trainable = TrainableModel(
        vanilla,
        config.parameters,
        layers=config.choose_layers(vanilla.num_layers),
        lora_rank=config.lora_rank,
        lora_alpha=config.lora_alpha,
        gradient_checkpointing=config.gradient_checkpointing,
        seed=config.seed,
    )
    run = _TrainingLoop(vanilla, trainable, used, config, evaluate, confirm)
    if store is not None and store.state.exists():
        run.resume(store)
    reason = run.train(store, progress)
    if run.negated is not None:
        trainable.negate(run.negated)
    adapter = trainable.extract_adapter()
    trained = Trained(model=trainable.finish(), history=run.history, reason=reason)
    if store is not None:
        store.finish(trained, adapter)
    return trained


class _TrainingLoop:
    """Training run under way."""

    def __init__(
        self,
        vanilla: LanguageModel,
        trainable: TrainableModel,
        examples: Mapping[str, Sequence[Example]],
        config: TrainingConfig,
        evaluate: Evaluate | None,
        confirm: Evaluate | None,
    ) -> None:
        self.trainable, self.config = trainable, config
        self.evaluate, self.confirm = evaluate, confirm
        self.objectives = OBJECTIVES[config.objective]
        self.settings = {**default_settings(config.objective), **config.settings}
        self.negated: float | None = None
        if self.objectives[0].negated is not None:
            self.negated = self.settings.pop("alpha")
        direction = None
        if any("direction" in objective.needs for objective in self.objectives):
            direction = draw_rmu_direction(vanilla.text_config.hidden_size, seed=config.seed)
            direction = direction.to(vanilla.device)
        self.inputs = ObjectiveInputs(
            trainable.model,
            trainable.reference,
            dict(examples),
            layer=config.layer,
            direction=direction,
            retain_by_kl=config.retain_loss == "kl",
        )
        # The preferred answer of a forget example is drawn with it.
        self.draws = {
            name: Draws(
                given,
                seed=config.seed,
                purpose=name,
                steps_per_language=config.steps_per_language,
            )
            for name, given in examples.items()
            if name != "preferred"
        }
        if "preferred" in examples and "forget" not in self.draws:
            self.draws["preferred"] = Draws(
                examples["preferred"], seed=config.seed, purpose="preferred"
            )
        self.optimizer = torch.optim.AdamW(
            trainable.trained.values(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            eps=config.adam_epsilon,
            fused=True,
        )
        self.num_vocabulary = vanilla.anatomy.unembed.out_features
        self.history: list[dict[str, float]] = []
        self.before: dict[str, float] = {}
        self.good = copy_weights(trainable.trained)
        self.best = BestCheckpoint(config)

    @property
    def step(self) -> int:
        """Number of steps taken."""
        return len(self.history)

    def resume(self, store: RunStore) -> None:
        """Resume a run where it was stored."""
        stored = read_progress(store.state)
        if other := describe_difference(stored["card"], store.card):
            raise ValueError(
                f"{store.state} is the state of another run ({other}); choose another output "
                "directory"
            )
        self.history, self.before = stored["history"], stored["before"]
        self.best.resume(stored.get("best"))
        kept = load_state(store.state, self.trainable.trained, self.optimizer, self.step)
        self.good = kept or copy_weights(self.trainable.trained)
        # States of earlier versions do not have them.
        self.settings |= stored.get("settings", {})

    def train(self, store: RunStore | None, progress: bool) -> str:
        """Train, and return the reason why it ended."""
        config = self.config
        if find_watched(config) and not self.before:
            self.before = self._run_evaluation()
            check_before(config, self.before)
            self._keep_good(self.before)
            if self.best.is_reached:
                return self._finish("nothing is left to forget")
        bar = tqdm(
            total=config.num_steps,
            initial=self.step,
            desc=config.objective,
            unit="step",
            disable=not progress,
        )
        with bar:
            while self.step < config.num_steps:
                row = self._compute_gradients()
                if reason := self._check_divergence(row):
                    self._restore_good()
                    if self.best.is_wanted:
                        return self._finish(reason)
                    return f"{reason}; the weights are those of the last evaluation"
                for name in OWN_METRICS:
                    if name in row:
                        self.before.setdefault(name, row[name])
                if reason := self._check_stops(row):
                    self.history.append(row)
                    self.optimizer.zero_grad(set_to_none=True)
                    if self.best.is_wanted and self.evaluate is not None:
                        metrics = self._run_evaluation()
                        row.update(metrics)
                        self._keep_good(metrics)
                    return self._finish(reason)
                self._take_step()
                self.history.append(row)
                shown = {key: f"{row[key]:.2f}" for key in ("forget_ce", "retain_ce") if key in row}
                bar.set_postfix(shown)
                bar.update()
                if config.checkpoint_every and self.step % config.checkpoint_every == 0 and store:
                    with self.trainable.evaluate_as_made(self.negated):
                        store.save_checkpoint(
                            self.trainable.model, self.trainable.extract_adapter(), self.history
                        )
                at_last = self.best.is_wanted and self.step == config.num_steps
                if at_last or (config.evaluate_every and self.step % config.evaluate_every == 0):
                    metrics = self._run_evaluation() if self.evaluate is not None else {}
                    row.update(metrics)
                    reached = self._keep_good(metrics)
                    reason = self._check_stops(metrics)
                    if store is not None:
                        self._save_state(store)
                    if reached or reason:
                        return self._finish(reason)
        return self._finish(f"all {config.num_steps} steps")

    def _keep_good(self, metrics: Mapping[str, float]) -> bool:
        """Keep the weights if they are to be gone back to; return whether the goal is reached."""
        if not self.best.is_wanted:
            self.good = copy_weights(self.trainable.trained)
            return False
        if self.best.offer(self.step, metrics, self.before):
            self.good = copy_weights(self.trainable.trained)
        return self.best.is_reached

    def _finish(self, reason: str) -> str:
        """Return the reason why the run ends, and go back to its best evaluation."""
        if not self.best.is_wanted:
            return reason
        self._restore_good()
        return "; ".join(filter(None, (reason, self.best.describe(self.step))))

    def _compute_gradients(self) -> dict[str, float]:
        """Compute one step's losses, and leave the gradients in the parameters."""
        config = self.config
        device = self.trainable.model.device
        objective, step = self._choose_objective()
        whole = {
            name: draws.indices(step, _find_batch_size(config, name))
            for name, draws in self.draws.items()
            if name in objective.sets
        }
        if "preferred" in objective.sets and "forget" in whole:
            whole["preferred"] = whole["forget"]
        sums: dict[str, float] = {}
        changes: list[dict[str, float]] = []
        for part in range(config.accumulation):
            drawn = {name: numbers[part :: config.accumulation] for name, numbers in whole.items()}
            lower = config.autocast and computes_bfloat16(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=lower):
                tensors = self.inputs.compute(objective.needs, drawn)
            loss: Any = objective.function(**tensors, **self.settings)
            (loss / config.accumulation).backward()
            changes.append(objective.compute_changes(tensors, self.settings))
            values = {"loss": loss.item()}
            scored = ("forget",) if config.retain_loss == "kl" else ("forget", "retain")
            for name in scored:
                if (logprobs := find_logprobs(tensors, name)) is not None:
                    values[f"{name}_ce"] = -label_mean(logprobs, tensors[f"{name}_mask"]).item()
            for key, value in values.items():
                sums[key] = sums.get(key, 0.0) + value / config.accumulation
        norm = torch.nn.utils.clip_grad_norm_(
            list(self.trainable.trained.values()), config.max_grad_norm
        )
        changed = {name: fmean(each[name] for each in changes) for name in changes[0]}
        self.settings |= changed
        return {"step": float(self.step), **sums, "grad_norm": norm.item(), **changed}

    def _choose_objective(self) -> tuple[Objective, int]:
        """Return the objective of the next step, and which step of that objective it is."""
        if len(self.objectives) == 1:
            return self.objectives[0], self.step
        # In turn, an epoch each.
        epochs = [self._count_epoch_steps(objective) for objective in self.objectives]
        before, place = divmod(self.step, sum(epochs))
        for objective, length in zip(self.objectives, epochs, strict=True):
            if place < length:
                return objective, before * length + place
            place -= length
        raise AssertionError("the place lies within the epochs")

    def _count_epoch_steps(self, objective: Objective) -> int:
        """Count the steps until an objective has seen its largest set."""
        return max(
            math.ceil(len(self.draws[name]) / _find_batch_size(self.config, name))
            for name in objective.sets
        )

    def _take_step(self) -> None:
        rate = self.config.compute_learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _check_divergence(self, row: Mapping[str, float]) -> str:
        if not all(map(math.isfinite, row.values())):
            return f"diverged at step {self.step}: the loss is not finite"
        # One batch of a few labels may be that bad by chance.
        recent = [each["retain_ce"] for each in (*self.history[-2:], row) if "retain_ce" in each]
        guessing = math.log(self.num_vocabulary)
        most = max(guessing + 2, 3 * self.before.get("retain_ce", 0.0))
        if len(recent) == 3 and sum(recent) / 3 > most:
            return (
                f"diverged at step {self.step}: the retain examples' loss, {sum(recent) / 3:.1f} "
                f"nats per token over three steps, is worse than guessing ({guessing:.1f})"
            )
        return ""

    def _check_stops(self, metrics: Mapping[str, float]) -> str:
        for stop in self.config.stops:
            for name in stop.find(metrics):
                if not stop.measure_gap(name, metrics[name], self.before):
                    return f"{name} reached {metrics[name]:.3g} (stop at {stop})"
        return ""

    def _run_evaluation(self) -> dict[str, float]:
        assert self.evaluate is not None
        with self.trainable.evaluate_as_made(self.negated), torch.no_grad():
            metrics = dict(self.evaluate(self.trainable.model))
            reached = bool(self.before) and self.best.would_be_reached(metrics, self.before)
            if reached and self.confirm is not None:
                metrics |= self.confirm(self.trainable.model)
        return {name: float(value) for name, value in metrics.items()}

    def _restore_good(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.trainable.restore(self.good)

    def _save_state(self, store: RunStore) -> None:
        progress = {
            "card": store.card,
            "history": self.history,
            "before": self.before,
            "best": self.best.state,
            "settings": self.settings,
        }
        good = self.good if self.best.is_wanted else {}
        save_state(store.state, self.trainable.trained, self.optimizer, progress, good=good)


def _find_batch_size(config: TrainingConfig, name: str) -> int:
    if isinstance(config.batch_size, Mapping):
        return config.batch_size[name]
    return config.batch_size
