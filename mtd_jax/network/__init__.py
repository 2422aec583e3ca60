"""The network: VocaLiST (teacher) and MTDVocaLiST (student) as one Flax NNX model.

In: a `ModelConfig`, uint8 frames (batch, T, 48, 96, 3), and a log-mel spectrogram (batch, S, 80) with S = 3.2·T.
Out: logits (batch,), and on request the tokens and attention logits that distillation compares.

Start with `model.py`. `layers.py` has its blocks, `towers.py` what may take the place of the transformers,
`conv3d.py` the fast 3-D convolution, `mel.py` the spectrogram. `weights.py` turns a model into named arrays and
back; `folded.py` is the same network, rearranged for fast scoring.
"""
