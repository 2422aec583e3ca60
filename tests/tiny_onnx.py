"""A face detector small enough to write by hand: it finds the bright quarters of a picture.

Written as protobuf bytes, field by field as in onnx.proto, so that the tests don't need the onnx package.
"""

import numpy as np

SIDE = 16


def brightness_detector(channels=3, boxes_name="boxes"):
    """ONNX bytes: input (1, channels, 16, 16); scores (1, 4, 2) and boxes (1, 4, 4) of the four quarters.

    The score of a quarter is its mean over pixels and channels, which is −1 for black and 1 for white.
    """
    quarters = [[x, y, x + 0.5, y + 0.5] for y in (0, 0.5) for x in (0, 0.5)]
    mix = np.stack([-np.ones(channels), np.ones(channels)]).reshape(2, channels, 1, 1) / channels
    half = _attribute("kernel_shape", [SIDE // 2] * 2), _attribute("strides", [SIDE // 2] * 2)
    nodes = [
        _node("AveragePool", ["input"], ["quarters"], *half),
        _node("Conv", ["quarters", "mix"], ["mixed"], _attribute("kernel_shape", [1, 1])),
        _node("Reshape", ["mixed", "flat"], ["rows"]),
        _node("Transpose", ["rows"], ["scores"], _attribute("perm", [0, 2, 1])),
        _node("Sub", ["scores", "scores"], ["zeros"]),  # outputs have to depend on the input for OpenCV 4
        _node("Concat", ["zeros", "zeros"], ["nowhere"], _field(1, b"axis") + _field(3, 2) + _field(20, 2)),
        _node("Add", ["nowhere", "corners"], [boxes_name]),
    ]
    constants = [
        _tensor("mix", mix.astype(np.float32)),
        _tensor("flat", np.array([1, 2, 4])),
        _tensor("corners", np.array([quarters], np.float32)),
    ]
    graph = b"".join(_field(1, node) for node in nodes) + _field(2, b"quarters")
    graph += b"".join(_field(5, constant) for constant in constants)
    graph += _field(11, _value("input", [1, channels, SIDE, SIDE]))
    graph += _field(12, _value("scores", [1, 4, 2])) + _field(12, _value(boxes_name, [1, 4, 4]))
    return _field(1, 8) + _field(7, graph) + _field(8, _field(2, 13))


def _varint(number):
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def _field(number, value):
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _node(kind, inputs, outputs, *attributes):
    named = [_field(1, name.encode()) for name in inputs] + [_field(2, name.encode()) for name in outputs]
    return b"".join(named) + _field(4, kind.encode()) + b"".join(_field(5, a) for a in attributes)


def _attribute(name, numbers):
    return _field(1, name.encode()) + b"".join(_field(8, number) for number in numbers) + _field(20, 7)


def _tensor(name, array):
    kind = 1 if array.dtype == np.float32 else 7
    raw = array.astype("<f4" if kind == 1 else "<i8").tobytes()
    shape = b"".join(_field(1, side) for side in array.shape)
    return shape + _field(2, kind) + _field(8, name.encode()) + _field(9, raw)


def _value(name, shape):
    sides = b"".join(_field(1, _field(1, side)) for side in shape)
    return _field(1, name.encode()) + _field(2, _field(1, _field(1, 1) + _field(2, sides)))
