"""Train a text classifier on the encoder of a language model.

python train_clf.py                                         the embedded sample, about a minute
python train_clf.py --data reviews.csv --encoder runs/lm    your own corpus
accelerate launch train_clf.py --data ...                   the same on every GPU
"""

from ulmfit.distributed.stop import StopRequest

if __name__ == "__main__":
    stop = StopRequest.install()  # before torch is imported: a signal during the import must not kill the run
    from ulmfit.command import run_script
    from ulmfit.config import ClassifierConfig
    from ulmfit.training.clf_task import train_classifier

    raise SystemExit(run_script(ClassifierConfig, train_classifier, stop))
