"""Pretrain or fine-tune an AWD-LSTM language model.

python train_lm.py                                          the embedded sample, about a minute
python train_lm.py --data reviews.csv --output-dir runs/lm  your own corpus
accelerate launch train_lm.py --data ...                    the same on every GPU
"""

from ulmfit.distributed.stop import StopRequest

if __name__ == "__main__":
    stop = StopRequest.install()  # before torch is imported: a signal during the import must not kill the run
    from ulmfit.command import run_script
    from ulmfit.config import LMConfig
    from ulmfit.training.lm_task import train_language_model

    raise SystemExit(run_script(LMConfig, train_language_model, stop))
