"""fit: the whole job. Language model, classifier, a baseline beside them, and one summary.

The trainings are those of `train_language_model` and `train_classifier`, each with a run directory of its own in OUTPUT,
and end with the same bits. This file puts them in order, keeps OUTPUT/status.json, and compares. A job that was stopped
or killed goes on with the same call: each training resumes from its own checkpoint, a finished one is left as it is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

from ulmfit import files
from ulmfit.config import ClassifierConfig, LMConfig, options
from ulmfit.config_check import check
from ulmfit.data.in_memory import in_memory
from ulmfit.data.sources import find
from ulmfit.distributed.early_stop import EarlyStop
from ulmfit.distributed.group import Group
from ulmfit.distributed.runtime import Runtime, environment, open_runtime
from ulmfit.distributed.stop import STOP_FILE, StopRequest
from ulmfit.errors import StoppedEarly, UserError
from ulmfit.excerpts import failure, hide_values, values_shown
from ulmfit.fit_config import (
    CLF,
    LM,
    MEAN,
    NGRAMS,
    FitConfig,
    classifier_configs,
    config_of,
    filled,
    naming,
    stage_configs,
)
from ulmfit.limits import check_numbers
from ulmfit.option_types import normalized, path_text
from ulmfit.reports import check_installed
from ulmfit.run import lock
from ulmfit.run.directory import MODEL, check_movable, check_output
from ulmfit.run.status import STATUS, read_status, write_status
from ulmfit.run_scores import temperature_of
from ulmfit.training.baseline import NOT_INSTALLED, has_labels, is_installed, run_baselines
from ulmfit.training.begun import read_begun
from ulmfit.training.clf_training import check_options, train_classifier
from ulmfit.training.ensemble import Together, score_together, usual_number, write_model
from ulmfit.training.job_files import (
    RIVALS,
    ROWS,
    begun_options,
    content_of,
    ensemble_of,
    holds_training,
    locked,
    minutes_of,
    ngrams_option_of,
    put_back,
    read_json,
    rivals_of,
    row_options,
    start_and_length,
)
from ulmfit.training.lm_training import train_language_model
from ulmfit.training.ngram_member import NO_NGRAMS, ngrams_wanted, obstacle
from ulmfit.training.result import FitResult, TrainingResult, result_of_job
from ulmfit.training.session import tell_stopped_early
from ulmfit.training.setup import access_of, opened_corpus
from ulmfit.training.stages import recipe_for
from ulmfit.training.summary import as_markdown, summarize, tell_rivals, write_summary
from ulmfit.turns import own_turn

_SHORTEST = 1e-3  # minutes left to a training whose time is up: it saves a checkpoint and stops


def fit(config: FitConfig | Any = None, /, *, stop: StopRequest | None = None, **options: Any) -> FitResult:
    """Fine-tune a language model on the texts, train a classifier on its encoder, and compare it with a baseline.

        result = ulmfit.fit("reviews.csv", output_dir="runs/reviews", lm={"epochs": 3})
        result.summary["verdict"], result.model().predict("What a film!")

    The result is written to output_dir. The language model reads the labelled and unlabelled training texts, and never
    those of the test split unless `lm_on_test`. A second call with the same options goes on where the first one stopped.
    Under `accelerate launch`, torchrun or `notebook_launcher` every process must call it.

    Args:
        config: the options; not modified. Or the data, and the options as keyword arguments, those of `FitConfig`.
        stop: the stop request of a script that handles signals itself. Without it, Ctrl-C (in the main thread) stops
            after the current step, with a checkpoint, and a second Ctrl-C stops at once.

    Raises:
        UserError: an option, file, column or model is wrong. It is raised on all processes of a launch.
        TrainingInterrupted: stopped by Ctrl-C; a checkpoint was written.
    """
    config = config_of(config, options)
    handling = StopRequest.on_interrupt() if stop is None else nullcontext(stop)
    with own_turn(), values_shown(bool(config.samples)), handling as request:
        return _Job(config, request).run()


class _Job:
    """One start of a job. The files of its directory are written by rank 0."""

    def __init__(self, config: FitConfig, stop: StopRequest) -> None:
        self._given = normalized(config)
        self._given.data = in_memory(self._given.data)
        self._config = self._given
        self._stop, self._started = stop, time.monotonic()
        stop.before_leaving = lambda: self._status("preempted", reason=stop.reason or "asked of another process")
        self._path = Path(path_text(self._given.output_dir))
        self._lock: lock.DirectoryLock | None = None
        self._aside: Path | None = None  # an earlier job, with --resume never
        self._is_main = True
        self._stage = "baseline"
        self._classifiers: dict[str, ClassifierConfig] = {}  # by name of their folder
        self._minutes: dict[str, float] = {}
        self._was_done = self._has_trained = False
        self._before: dict[str, bytes | None] = {}  # files of the job as this start found them

    def run(self) -> FitResult:
        """Do what is left to do."""
        language_model: TrainingResult | None = None
        members: list[TrainingResult] = []
        try:
            with self._status_of_failure():
                rivals = self._prepare()
                lm_config, _ = stage_configs(self._config)
                if "score_test" not in self._config.lm:
                    # Beside a classifier nothing depends on it, and the full softmax is slow: 3,750 of IMDb's reviews took
                    # a core 8 minutes, and its test split has 25,000.
                    lm_config.score_test = rivals is None
                with self._training(LM, LM, lm_config):
                    language_model = train_language_model(lm_config, self._stop)
                if language_model.state != "done":
                    return self._preempted(language_model, members)
                if rivals is not None:
                    self._settle_number(rivals["rows"]["train"])
                for name, config in self._classifiers.items() if rivals is not None else ():
                    if len(self._classifiers) > 1 and self._is_main:
                        number = len(members) + 1
                        print(f"classifier {number} of {len(self._classifiers)}, seed {config.seed}", flush=True)
                    with self._training(name, CLF, config):
                        members.append(train_classifier(config, self._stop))
                    if members[-1].state != "done":
                        return self._preempted(language_model, members)
                self._stage = "summary"
                if not self._was_done:
                    self._status("running")
                clf_config = self._classifiers[CLF]
                together, ngrams = Together({}), ngrams_wanted(self._config)
                if len(members) > 1 or (members and ngrams != "never"):
                    begun = time.monotonic()
                    together = score_together(self._path, members, lm_config, clf_config, self._stop, ngrams)
                    if not self._was_done:
                        self._add_minutes(MEAN, begun)
                else:
                    self._minutes.pop(MEAN, None)
                with open_runtime(clf_config) as (runtime, _):
                    summary = runtime.on_main(lambda: self._finish(rivals, language_model, members, together))
            return result_of_job("done", self._path, language_model, members, summary, together.scores)
        except StoppedEarly:  # while the corpus was read, or the rivals were trained
            return self._preempted(language_model, members)
        finally:
            if self._lock is not None:
                self._lock.close()

    # Beginning

    def _prepare(self) -> dict[str, Any] | None:
        """Check options and corpus, open the directory, and score the rivals. None for a corpus without labels.

        Raises:
            UserError: an option or the corpus is wrong. Nothing was written.
            StoppedEarly: a stop was requested meanwhile.
        """

        def prepare(group: Group) -> ClassifierConfig:
            afresh = self._given.resume == "never"
            # A job whose config.json is gone is still one.
            check_output(self._path, resume="never" if holds_training(self._path) else self._given.resume)
            if afresh:
                check_movable(self._path)
            begun = None if afresh or group.rank else begun_options(self._path, lambda line: print(line, flush=True))
            begun = group.broadcast(begun)  # disks may be local to a machine
            if begun is not None:
                self._config = filled(self._given, begun)
                if not self._config.samples:
                    hide_values()
            check_numbers(vars(self._config))
            language_model, _ = stage_configs(self._config)
            self._classifiers = classifier_configs(self._config)
            for training in (language_model, *self._classifiers.values()):
                with naming(self._config, training.task):
                    check(training)
                    recipe_for(training, pretrained=True)  # refuses a recipe without its options now, not hours later
                    if begun is None and not group.rank:
                        check_installed(training.report_to)
            return self._classifiers[CLF]

        with open_runtime(ClassifierConfig(), prepare) as (runtime, clf_config):
            assert isinstance(clf_config, ClassifierConfig)
            self._is_main = runtime.is_main
            # The other ranks wait for rank 0, and one of them may be asked to stop.
            early = EarlyStop(
                self._stop,
                rank=runtime.rank,
                world_size=runtime.world_size,
                store=runtime.store(),
                tell=tell_stopped_early,
            )
            with closing(early):
                rivals = runtime.on_main(lambda: self._begin(clf_config, runtime))
            self._stop.watch_job(self._path)
        return rivals

    def _begin(self, config: ClassifierConfig, runtime: Runtime) -> dict[str, Any] | None:
        """On rank 0: read the corpus, open the directory, score the rivals or take their stored scores."""
        stored = None if self._given.resume == "never" else rivals_of(self._path, config)
        if self._config.baseline and stored and stored["reason"] in (NOT_INSTALLED, "--no-baseline") and is_installed():
            stored = None  # it can be added now
        access = access_of(config, read_begun(config), runtime)  # as the trainings of this job read it
        labelled, corpus, unlabelled = True, None, False
        if stored is None:
            labelled = bool(config.probability_columns) or has_labels(self._config, access)
            unlabelled = config.labels is not None or "unsup" in find(self._config.data, access)
        if (stored is None and labelled) or self._given.ngrams:  # a job that was begun may be given it later
            with self._stop.interruptible():
                corpus = opened_corpus(config, access)
            with naming(self._config, CLF):
                check_options(config, corpus)  # now, and not after the hours of the language model
            if self._config.ngrams and (reason := obstacle(config, corpus)):
                raise UserError(NO_NGRAMS.format(reason))
        self._open()
        if not labelled:
            print("the corpus has no labels: fit trains the language model alone", flush=True)
            return None
        if stored is not None or corpus is None:
            return stored
        with self._stop.interruptible():
            rivals = run_baselines(
                corpus,
                labels=config.labels,
                seed=config.seed_of_draws,
                wanted=self._config.baseline,
                stopped=self._asked,
            )
        rivals[ROWS] = row_options(config)
        rivals["unlabelled"] = unlabelled or bool(corpus.splits["train"].skipped["unlabelled"])
        files.write_text(self._path / RIVALS, json.dumps(rivals, indent=2) + "\n")
        tell_rivals(rivals)
        return rivals

    def _open(self) -> None:
        """Lock the directory and write what the job is."""
        try:
            self._lock, self._aside = locked(self._path, afresh=self._given.resume == "never")
            (self._path / STOP_FILE).unlink(missing_ok=True)
            self._stop.watch_job(self._path)
            files.remove_torn(self._path)
            status = read_status(self._path) or {}
            stored = read_json(self._path / "config.json")
            # With another number of classifiers some may be to train, and with or without n-grams the model is another one.
            same = (self._config.ensemble or 1, self._config.ngrams) == (ensemble_of(stored), ngrams_option_of(stored))
            self._was_done = status.get("state") == "done" and same
            self._before = {name: content_of(self._path / name) for name in ("config.json", STATUS, RIVALS)}
            self._minutes = minutes_of(status)
            if not self._was_done:
                self._write_config()
                self._status("running")
        except OSError as error:
            raise UserError(
                f"--output-dir {self._path} cannot be written ({error.strerror}); name a directory you may write to"
            ) from None

    def _write_config(self) -> None:
        content = {"task": "fit", "options": options(self._config)} | environment()
        files.write_text(self._path / "config.json", json.dumps(content, indent=2) + "\n")

    # The trainings

    def _settle_number(self, rows: int) -> None:
        """Decide how many classifiers are trained, and keep it for later starts (a collective)."""
        if self._config.ensemble is not None:
            return

        def settle() -> int:
            number = usual_number(self._path, self._config, rows)
            if number > 1:
                print(
                    f"training {number} classifiers, whose probabilities are averaged; --ensemble 1 trains one, in less "
                    "time", flush=True)  # fmt: skip
            return number

        with open_runtime(self._classifiers[CLF]) as (runtime, _):
            self._config.ensemble = runtime.on_main(settle)
            self._classifiers = classifier_configs(self._config)
            runtime.on_main(self._write_config)

    @contextmanager
    def _training(self, name: str, kind: str, config: LMConfig | ClassifierConfig) -> Iterator[None]:
        """Context of a training: its time limit, its minutes, and what status.json says meanwhile.

        Args:
            name: of its folder.
            kind: LM or CLF, by which its options are named.
        """
        self._stage = name
        if self._config.max_time is not None:
            config.max_time = max(_SHORTEST, self._config.max_time - (time.monotonic() - self._started) / 60)
        before = self._is_main and read_status(self._path / name)
        begun = time.monotonic()
        if not self._was_done:
            self._status("running")
        with naming(self._config, kind):
            yield
        if self._is_main and not (before and before.get("state") == "done"):
            self._has_trained = True
            self._add_minutes(name, begun)

    def _add_minutes(self, name: str, begun: float) -> None:
        self._minutes[name] = self._minutes.get(name, 0.0) + (time.monotonic() - begun) / 60

    def _asked(self) -> bool:
        """Whether this process has been asked to stop, or the time is up."""
        limit = self._config.max_time
        return self._stop.requested() or (limit is not None and time.monotonic() - self._started >= 60 * limit)

    # The end

    def _preempted(self, language_model: TrainingResult | None, members: list[TrainingResult]) -> FitResult:
        self._status("preempted", reason=self._stop.reason or "--max-time or another process")
        return result_of_job("preempted", self._path, language_model, members)

    def _finish(
        self,
        rivals: dict[str, Any] | None,
        language_model: TrainingResult,
        members: list[TrainingResult],
        together: Together,
    ) -> dict[str, Any]:
        """On rank 0: write the model and the summary, and print it."""
        sources = members or [language_model]
        folders, share = [source.model_dir for source in sources], None
        if together.ngrams:
            folders, share = [*folders, self._path / NGRAMS], together.ngrams["share"]
        write_model(self._path / MODEL, folders, temperature_of(together.scores), share)
        summary = summarize(
            data=str(self._config.data or "the embedded sample"),
            rivals=rivals,
            language_model=language_model,
            classifiers=members,
            seeds=[config.seed for config in self._classifiers.values()],
            scores=together.scores or (members[0].metrics if members else {}),
            ngrams=together.ngrams,
            minutes={name: self._minutes[name] for name in (LM, *self._classifiers, MEAN) if name in self._minutes},
            model=str(self._path / MODEL),
            used={
                "unlabelled": bool(rivals and rivals.get("unlabelled")),
                **start_and_length(self._path, self._config, (LM, CLF) if members else (LM,)),
            },
        )
        if self._was_done:
            print(f"{self._path} holds this job, finished; --resume never starts it afresh", flush=True)
        write_summary(self._path, summary, sources[0].step, anew=not self._was_done)
        print(f"\n{as_markdown(summary)}", flush=True)
        self._stage = "done"
        self._status("done")
        return summary

    def _status(self, state: Literal["running", "done", "preempted", "failed"], **fields: Any) -> None:
        """Write status.json. Its step counts those of all trainings, so that it grows from start to start."""
        if self._is_main and self._lock is not None:
            step = sum((read_status(self._path / name) or {}).get("step", 0) for name in (LM, *self._classifiers))
            write_status(self._path, state, step, stage=self._stage, minutes=self._minutes, **fields)

    @contextmanager
    def _status_of_failure(self) -> Iterator[None]:
        """Context whose exceptions go into status.json. A mistake found before any training leaves no directory."""
        try:
            yield
        except StoppedEarly:
            raise
        except KeyboardInterrupt:  # TrainingInterrupted is one; work between the trainings raises it at once
            self._status("preempted", reason="KeyboardInterrupt")
            raise
        except UserError as error:
            failed = (read_status(self._path / self._stage) or {}).get("state") == "failed"
            if self._has_trained or failed:
                self._status("failed", error=str(error))
            elif self._is_main and self._lock is not None:
                put_back(self._path, self._before, self._lock, self._aside)
            raise
        except BaseException as error:
            first = (read_status(self._path / self._stage) or {}).get("error")
            with suppress(OSError):
                self._status("failed", error=first or failure(error))
            raise
