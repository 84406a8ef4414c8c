"""Generation in tokens a second: one prompt and many, beside a loop that feeds the whole text again for every word.

    python benchmarks/generation.py --peer PEER/bin/python
    python benchmarks/generation.py --preset small --words 20 40 80 160 --batch 64

Ours is `generate_ids`, which carries the state on. `again` is the same network asked anew for each word with all the
text so far, which is what the usual loop around a model without a cache does; `predict` is fastai's `learn.predict`,
which does that by its whole machinery (tokenizer included, once a call). Prompts are 8 random words and xxbos; words
are drawn at temperature 0.75 from random weights, so no side stops early. First of all the greedy continuations of
ours and of the loop must be equal, batched and alone.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

import side_by_side as sides
import torch
from lm_step import SIZES

PROMPT = 8


def prompts_of(number: int, vocab_size: int) -> list[list[int]]:
    """xxbos and random words."""
    words = torch.randint(10, vocab_size, (number, PROMPT), generator=torch.Generator().manual_seed(0))
    return [[2, *row] for row in words.tolist()]


def serve_ours(options: argparse.Namespace) -> None:
    from ulmfit.model.awd_lstm import PRESETS, AWDLSTMConfig
    from ulmfit.model.language_model import LanguageModelNet

    torch.manual_seed(0)
    net = LanguageModelNet(AWDLSTMConfig(options.vocab_size, **PRESETS[options.preset]))
    net = net.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    prompts = prompts_of(options.batch, options.vocab_size)

    @torch.inference_mode()
    def feed_again(words: int, temperature: float = 0.75) -> list[int]:
        """Continue the first prompt."""
        text = torch.tensor([prompts[0]], device=net.decoder_bias.device)
        for _ in range(words):
            logits, _ = net.next_logits(text, net.init_state(1))
            if temperature:
                word = torch.multinomial((logits / temperature).softmax(1), 1)
            else:
                word = logits.argmax(1, keepdim=True)
            text = torch.cat([text, word], 1)
        return text[0, len(prompts[0]) :].tolist()

    generate = partial(net.generate_ids, banned=(0, 1))
    greedy = feed_again(10, temperature=0)
    alone, batched = (net.generate_ids(some, max_new_tokens=10, temperature=0)[0] for some in (prompts[:1], prompts))
    assert alone == greedy == batched

    def measure() -> dict[str, float]:
        found = {}
        for words in options.words:
            found[f"one {words}"] = words / sides.seconds(partial(generate, prompts[:1], max_new_tokens=words))
            found[f"batch {words}"] = (
                options.batch * words / sides.seconds(partial(generate, prompts, max_new_tokens=words))
            )
            found[f"again {words}"] = words / sides.seconds(partial(feed_again, words))
        return found

    sides.serve(measure)


def serve_peer(options: argparse.Namespace) -> None:
    import pandas as pd
    from fastai.text.all import AWD_LSTM, TextDataLoaders, awd_lstm_lm_config, defaults, language_model_learner

    defaults.cpus = 1
    # Words that fastai's rules leave whole: no letter three times in a row, as 444 would be.
    words = ("q".join("abcdefghij"[int(digit)] for digit in str(i)) for i in range(options.vocab_size))
    vocab = [*defaults.text_spec_tok, *words][: options.vocab_size]
    texts = [" ".join(vocab[i] for i in prompt[1:]) for prompt in prompts_of(16, options.vocab_size)]
    loaders = TextDataLoaders.from_df(
        pd.DataFrame({"text": texts}), is_lm=True, text_vocab=vocab, text_col="text", bs=2, seq_len=4, num_workers=0
    )
    embedding, hidden, layers = SIZES[options.preset]
    config = awd_lstm_lm_config | {"emb_sz": embedding, "n_hid": hidden, "n_layers": layers}
    learn = language_model_learner(loaders, AWD_LSTM, config=config, pretrained=False)
    assert len(loaders.test_dl([texts[0]]).items[0]) == PROMPT + 1

    def measure() -> dict[str, float]:
        return {
            f"predict {number}": number
            / sides.seconds(partial(learn.predict, texts[0], number, temperature=0.75, no_bar=True))
            for number in options.words
        }

    sides.serve(measure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="base", choices=SIZES)
    parser.add_argument("--vocab-size", type=int, default=60_000)
    parser.add_argument("--words", type=int, nargs="+", default=[40, 160], help="words of a continuation")
    parser.add_argument("--batch", type=int, default=16, help="prompts that are continued together")
    sides.add_options(parser, rounds=5)
    options = parser.parse_args()
    if options.side:
        with sides.protocol():
            return serve_ours(options) if options.side == "ours" else serve_peer(options)

    print(sides.machine())
    print(f"{options.preset}, V = {options.vocab_size}, prompts of {PROMPT} words, medians of {options.rounds} rounds")
    found = sides.alternate(options, sys.argv, sides.environment(options.threads))
    for words in options.words:
        one = found["ours"].values(f"one {words}")
        print(f"{words} words\n  {'one prompt':26} {found['ours'].median(f'one {words}'):8.1f} tokens/s")
        rows = {f"{options.batch} prompts together": ("ours", "batch"), "text fed again": ("ours", "again")}
        if options.peer:
            rows["fastai predict"] = ("peer", "predict")
        for label, (side, key) in rows.items():
            pace = found[side].median(f"{key} {words}")
            beside = sides.ratio(one, found[side].values(f"{key} {words}"))
            print(f"  {label:26} {pace:8.1f} tokens/s; one prompt is {beside} of it")


if __name__ == "__main__":
    main()
