"""Serve a classifier that `ulmfit export --to onnx` wrote. Needs fastapi, uvicorn, onnxruntime, tokenizers and numpy.

MODEL=EXPORTED uvicorn --app-dir examples serve:app --no-access-log --timeout-graceful-shutdown 60
curl localhost:8000/predict -d '{"texts": ["What a film!", "Two hours of my life"]}'

Texts that arrive while a batch is computed form the next batch. At SIGTERM uvicorn accepts no more requests and answers
those that it has. No text is logged or returned.
"""

import asyncio
import contextlib
import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
import tokenizers
from fastapi import FastAPI, HTTPException, Request
from starlette.requests import ClientDisconnect

MOST_BYTES, MOST_TEXTS, MOST_TOKENS = 2**20, 64, 5000  # of a request, of a request, of a text
BATCH, MOST_WAITING = 32, 1024  # texts; a longer queue is refused

folder = Path(os.environ["MODEL"])
config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
labels, thresholds = config["label_names"], config.get("thresholds")  # thresholds: a text may have several labels
tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1  # for more cores, start more processes (uvicorn --workers)
session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
waiting: asyncio.Queue = asyncio.Queue()  # of (ids, future of probabilities)


def classify(documents: list[list[int]]) -> list[list[float]]:
    lengths = np.array([len(ids) for ids in documents])
    tokens = np.zeros((len(documents), lengths.max()), np.int64)
    for row, ids in zip(tokens, documents, strict=True):
        row[: len(ids)] = ids
    return session.run(["probabilities"], {"tokens": tokens, "lengths": lengths})[0].tolist()


async def work() -> None:
    while True:
        batch = [await waiting.get()]
        while len(batch) < BATCH and not waiting.empty():
            batch.append(waiting.get_nowait())
        try:
            results: list = await asyncio.to_thread(classify, [ids for ids, _ in batch])
        except Exception as error:  # these requests fail, and the next batch is served
            results = [error] * len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            if not future.cancelled():  # as it is when the client has gone
                (future.set_exception if isinstance(result, Exception) else future.set_result)(result)


@contextlib.asynccontextmanager
async def running(_: FastAPI):
    task = asyncio.create_task(work())
    yield
    task.cancel()


app = FastAPI(lifespan=running)


@app.get("/health")
def health() -> dict:
    return {"status": "ok", "waiting": waiting.qsize()}


@app.post("/predict")
async def predict(request: Request) -> list[dict]:
    body = bytearray()
    try:
        async for part in request.stream():  # no more than the limit is read, whatever the header says
            body += part
            if len(body) > MOST_BYTES:
                raise HTTPException(413, f"a request may have {MOST_BYTES} bytes")
    except ClientDisconnect:  # in the middle of its request
        raise HTTPException(400, "the request has no end") from None
    try:
        texts = json.loads(body)["texts"]
        texts = [str.encode(text, "utf-8", "replace").decode() for text in texts] if isinstance(texts, list) else []
    except (ValueError, TypeError, KeyError, RecursionError):
        texts = []
    if not 0 < len(texts) <= MOST_TEXTS:
        raise HTTPException(422, f'send {{"texts": [...]}} with 1 to {MOST_TEXTS} strings')
    documents = [encoding.ids for encoding in await asyncio.to_thread(tokenizer.encode_batch, texts)]
    if max(map(len, documents)) > MOST_TOKENS:
        raise HTTPException(413, f"a text may have {MOST_TOKENS} tokens")
    if waiting.qsize() + len(documents) > MOST_WAITING:
        raise HTTPException(503, "too many texts are waiting", {"Retry-After": "1"})
    futures = [asyncio.get_running_loop().create_future() for _ in documents]
    for item in zip(documents, futures, strict=True):
        waiting.put_nowait(item)
    return [answer(row) for row in await asyncio.gather(*futures)]


def answer(row: list[float]) -> dict:
    found = {"probabilities": dict(zip(labels, row, strict=True))}
    if thresholds is None:
        return {"label": labels[row.index(max(row))]} | found
    return {"labels": [label for label, p, least in zip(labels, row, thresholds, strict=True) if p >= least]} | found
