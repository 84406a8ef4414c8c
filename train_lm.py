"""Pretrain or fine-tune an AWD-LSTM language model.

python train_lm.py                                          the embedded sample, about a minute
python train_lm.py --data reviews.csv --output-dir runs/lm  your own corpus
accelerate launch train_lm.py --data ...                    the same on every GPU
"""

import sys

from ulmfit.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train-lm", *sys.argv[1:]], prog="python train_lm.py"))
