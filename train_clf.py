"""Train a text classifier on the encoder of a language model.

python train_clf.py                                         the embedded sample, about a minute
python train_clf.py --data reviews.csv --encoder runs/lm    your own corpus
accelerate launch train_clf.py --data ...                   the same on every GPU
"""

import sys

from ulmfit.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train-clf", *sys.argv[1:]], prog="python train_clf.py"))
